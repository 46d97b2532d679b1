"""Compares runs in tables, plots and one HTML page.

The program reads only run directories. The runs may still be training.

    scripts/compare.py runs/NAME [runs/OTHER ...] [--where='model.layers>=2'] [--sort=-parameters] [--by=model.hidden]
    scripts/compare.py runs/NAME --plot=curves.png [--x=seconds]       scripts/compare.py runs/NAME --html=report.html
    scripts/compare.py runs/NAME --by=model.hidden,optim.learning_rate --plot=map.svg

If you name a folder, all runs below the folder are compared. The columns include the config keys that differ between runs.

Runs that differ only in their seed are shown together in one row. The row shows the mean of their losses in nats ± the standard
error of this mean. The perplexity and the bits of the row are computed from the mean.

Runs evaluated under different protocols are shown in separate tables.

--by=KEY shows one row for each value of the key. The row shows the mean loss of all finished configs that have this value.
--by=KEY,KEY shows one row for each pair of values.
"""

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from charlm import cli, measures
from charlm.compare import reading, tables
from charlm.config import keys
from charlm.errors import UserError
from charlm.progress import counted

_WHERE = flags.DEFINE_multi_string(
    "where", [], "show only runs that meet this condition; it names a config key, state, best or steps"
)
_SORT = flags.DEFINE_string(
    "sort", None, "column or config key to sort by; -NAME sorts in descending order; default: the metric"
)
_METRIC = flags.DEFINE_enum(
    "metric", "best", tables.METRICS, "loss that ranks the runs: best or last validation loss, test loss, or mean training loss"
)
_BY = flags.DEFINE_list("by", [], "one config key, or two keys separated by a comma: show the mean loss for each value")
_EACH = flags.DEFINE_bool("each", False, "show one row for each run, instead of means over runs that differ only in their seed")
_CSV = flags.DEFINE_bool("csv", False, "print CSV")
_JSON = flags.DEFINE_bool("json", False, "print a JSON list of objects")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "print Markdown")
_PLOT = flags.DEFINE_string(
    "plot", None, ".png or .svg file to write, with a plot of the learning curves; with --by, a plot of the means"
)
_X = flags.DEFINE_enum(
    "x", "step", ("step", "chars", "seconds"), "x axis of the curves: steps, training characters, or seconds"
)
_HTML = flags.DEFINE_string(
    "html", None, "file to write, an HTML page with tables, curves, config differences and samples; works offline"
)


class _Table(NamedTuple):
    """The table of the runs with one protocol.

    Attributes:
      protocol: the description of the protocol.
      header: the names of the columns.
      texts: the rows; each cell is text for people.
      values: the rows; each cell is a value for CSV and JSON.
    """

    protocol: str
    header: list[str]
    texts: list[list[str]]
    values: list[list[Any]]


def run() -> None:
    cli.run(main, takes_arguments=True)


def main(overrides: dict[str, str], paths: list[str]) -> int:
    del overrides
    _check_flags(paths)
    records, problems = reading.read(reading.find(paths))
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    if not records:
        raise UserError("none of these runs can be read: the notes above say why.")
    records = tables.filtered(records, _WHERE.value)
    if not records:
        conditions = " ".join(f"--where={condition}" for condition in _WHERE.value)
        what = "this condition" if len(_WHERE.value) == 1 else "all these conditions"
        raise UserError(f"{conditions}: no run meets {what}.")
    comparable = [
        (protocol, tables.groups_of(members, _each())) for protocol, members in tables.by_protocol(records, _METRIC.value)
    ]
    _check_sort(comparable)
    _print([_marginal_table(*item) if _BY.value else _run_table(*item) for item in comparable])
    if _PLOT.value:
        from charlm.compare import plots  # imported only if needed, because importing Matplotlib is slow

        print(f"written: {plots.write(_PLOT.value, comparable, _METRIC.value, _X.value, _BY.value)}", file=sys.stderr)
    if _HTML.value:
        from charlm.compare import report

        print(f"written: {report.write(_HTML.value, records)}", file=sys.stderr)
    return 0


def _check_flags(paths: list[str]) -> None:
    if not paths:
        raise UserError("no runs are given: name run directories, or folders that contain run directories.")
    formats = [f"--{name}" for name, flag in (("csv", _CSV), ("json", _JSON), ("markdown", _MARKDOWN)) if flag.value]
    if len(formats) > 1:
        raise UserError(f"{' and '.join(formats)} are given together: give only one of them.")
    if len(_BY.value) > 2:
        raise UserError(f"--by={','.join(_BY.value)} has {len(_BY.value)} keys: give one or two.")
    if _PLOT.value and not _PLOT.value.endswith((".png", ".svg")):
        raise UserError(f"--plot={_PLOT.value}: the file's name must end in .png or .svg.")
    if _SORT.value is not None and _BY.value:
        raise UserError("--sort and --by are given together: leave out --sort, because --by always sorts by its keys.")


def _each() -> bool:
    """Returns whether each run has its own row. This is true with --each, or if --sort or --by names the seed."""
    return _EACH.value or "seed" in [*_BY.value, (_SORT.value or "").removeprefix("-")]


def _check_sort(comparable: list[tuple[dict, list[tables.Group]]]) -> None:
    """Raises a UserError if --sort names an unknown column, or a loss that the runs measured under different protocols."""
    if _SORT.value is None:
        return
    name = _SORT.value.removeprefix("-")
    columns = {column.name: None for _, groups in comparable for column in tables.columns_of(groups, _METRIC.value, _each())}
    if name not in {*columns, *keys.KEYS}:
        raise UserError(f"--sort={_SORT.value} is not a column or a config key: the columns are {', '.join(columns)}.")
    for _, groups in comparable:
        averaged = [record for group in groups for record in group.averaged]
        if name in tables.METRICS and not tables.share_protocol(averaged, name):
            raise UserError(
                f"--sort={_SORT.value} can't sort these runs, because the metric {name} was measured under different protocols"
                f": use --metric={name} to show the runs in separate tables."
            )


def _run_table(protocol: dict, groups: list[tables.Group]) -> _Table:
    """Returns a table with one row for each group of runs."""
    columns = tables.columns_of(groups, _METRIC.value, _each())
    groups = tables.sorted_groups(groups, columns, _METRIC.value, _SORT.value)
    header = [column.name for column in columns]
    texts = [[column.text(group) for column in columns] for group in groups]
    values = [[column.value(group) for column in columns] for group in groups]
    if _for_machines():  # the table for people shows the standard error in the column nats
        header.append("standard error")
        for row, group in zip(values, groups, strict=True):
            row.append(tables.mean_and_error([record.figure(_METRIC.value) for record in group.averaged])[1])
    return _Table(tables.protocol_in_words(protocol), header, texts, values)


def _marginal_table(protocol: dict, groups: list[tables.Group]) -> _Table:
    """Returns a table with one row for each combination of values of the keys in --by."""
    marginals = tables.marginals(groups, _BY.value, _METRIC.value)
    if left_out := len(groups) - len(tables.finished(groups)):
        configs = counted(len(groups), "config")
        why = "only configs with a finished run are averaged"
        print(f"note: the means leave out {left_out} of {configs}, because {why}.", file=sys.stderr)
    header = [*_BY.value, "perplexity", "nats", "standard error", "best nats", "configs"]
    texts, values = [], []
    for marginal in marginals:
        perplexity = measures.perplexity(marginal.nats)
        error = "" if marginal.error is None else f"{marginal.error:.4f}"
        figures = [f"{perplexity:.4f}", f"{marginal.nats:.4f}", error, f"{marginal.best:.4f}", str(marginal.n)]
        texts.append([*map(tables.value_text, marginal.value), *figures])
        values.append([*marginal.value, perplexity, marginal.nats, marginal.error, marginal.best, marginal.n])
    return _Table(tables.protocol_in_words(protocol), header, texts, values)


def _for_machines() -> bool:
    return _CSV.value or _JSON.value


def _print(shown: list[_Table]) -> None:
    if _for_machines():
        _print_for_machines(shown)
        return
    if len(shown) > 1:
        print(f"These runs were evaluated under different protocols, so they are shown in {len(shown)} tables:\n")
    for table in shown:
        if _MARKDOWN.value:
            print(f"{table.protocol}\n\n" + "\n".join(_markdown(table)) + "\n")
        else:
            _print_for_people(table)


def _print_for_machines(shown: list[_Table]) -> None:
    rows = [
        measures.finite(dict(zip(table.header, values, strict=True))) | {"protocol": table.protocol}
        for table in shown
        for values in table.values
    ]
    if _JSON.value:
        print(json.dumps(rows, indent=1, default=str))
    else:
        writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _print_for_people(table: _Table) -> None:
    """Prints a table. In a terminal, the table fits the width of the terminal. In a pipe, no line is wrapped."""
    grid = Table(box=None, pad_edge=False)
    for name in table.header:
        grid.add_column(name, justify="left" if name in ("state", "run") else "right", overflow="fold")
    for row in table.texts:
        grid.add_row(*map(Text, row))  # Rich would read brackets in a plain string as markup
    console = Console()
    console.print(table.protocol, style="italic", markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(grid)
    else:
        with (wide := Console(width=10_000)).capture() as captured:
            wide.print(grid)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    print()


def _markdown(table: _Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(table.header), "|" + " --- |" * len(table.header), *map(line, table.texts)]
