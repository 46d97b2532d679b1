"""Compares runs: tables, plots and one HTML page. Reads only run directories, also those of runs that are still training.

    scripts/compare.py runs/NAME [runs/OTHER ...] [--where='model.layers>=2'] [--sort=-parameters] [--by=model.hidden]
    scripts/compare.py runs/NAME --plot=curves.png [--x=seconds]       scripts/compare.py runs/NAME --html=report.html
    scripts/compare.py runs/NAME --by=model.hidden,optim.learning_rate --plot=map.svg

A folder stands for all runs below it. Config keys in which the runs differ become columns. Runs that differ only in their seed
share a row: the mean of their nats ± its standard error, and the perplexity and the bits of that mean. Runs evaluated under
different protocols are shown in separate tables. --by shows, for each value of a key or of two, the mean over all other keys.
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
    "where", [], "show only runs that fulfil this condition on a config key, or on state, best or steps; may be repeated"
)
_SORT = flags.DEFINE_string("sort", None, "column or config key to sort by, -NAME for descending order; default: the metric")
_METRIC = flags.DEFINE_enum(
    "metric", "best", tables.METRICS, "figure that ranks the runs: best or last validation, test, or mean training loss"
)
_BY = flags.DEFINE_list("by", [], "one config key, or two with a comma: show the means over all other keys")
_EACH = flags.DEFINE_bool("each", False, "show a row for each run instead of the mean over seeds")
_CSV = flags.DEFINE_bool("csv", False, "print CSV")
_JSON = flags.DEFINE_bool("json", False, "print a JSON list of objects")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "print Markdown")
_PLOT = flags.DEFINE_string("plot", None, "file, .png or .svg, for a plot of the learning curves, or with --by of the means")
_X = flags.DEFINE_enum("x", "step", ("step", "chars", "seconds"), "x axis of the curves: steps, characters trained on, or time")
_HTML = flags.DEFINE_string("html", None, "file for one HTML page, usable offline: table, curves, config differences, samples")


class _Table(NamedTuple):
    """The runs of one protocol.

    Attributes:
      protocol: in words.
      header: the names of the columns.
      texts: the cells as people read them, row by row.
      values: the cells for CSV and JSON, row by row.
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
        raise UserError("none of these runs can be read: see the notes above.")
    records = tables.filtered(records, _WHERE.value)
    if not records:
        conditions = " ".join(f"--where={condition}" for condition in _WHERE.value)
        what = "this condition" if len(_WHERE.value) == 1 else "all these conditions"
        raise UserError(f"{conditions}: no run fulfils {what}.")
    comparable = [
        (protocol, tables.groups_of(members, _each())) for protocol, members in tables.by_protocol(records, _METRIC.value)
    ]
    _check_sort(comparable)
    _print([_marginal_table(*item) if _BY.value else _run_table(*item) for item in comparable])
    if _PLOT.value:
        from charlm.compare import plots  # Matplotlib takes a while to import

        print(f"written: {plots.write(_PLOT.value, comparable, _METRIC.value, _X.value, _BY.value)}", file=sys.stderr)
    if _HTML.value:
        from charlm.compare import report

        print(f"written: {report.write(_HTML.value, records)}", file=sys.stderr)
    return 0


def _check_flags(paths: list[str]) -> None:
    if not paths:
        raise UserError("no runs are given: name run directories, or folders that contain some.")
    formats = [f"--{name}" for name, flag in (("csv", _CSV), ("json", _JSON), ("markdown", _MARKDOWN)) if flag.value]
    if len(formats) > 1:
        raise UserError(f"{' and '.join(formats)} are given together: give only one of them.")
    if len(_BY.value) > 2:
        raise UserError(f"--by={','.join(_BY.value)} has {len(_BY.value)} keys: give one or two.")
    if _PLOT.value and not _PLOT.value.endswith((".png", ".svg")):
        raise UserError(f"--plot={_PLOT.value}: the file's name must end in .png or .svg.")
    if _SORT.value is not None and _BY.value:
        raise UserError("--sort and --by are both given: the table of --by is always sorted by its keys.")


def _each() -> bool:
    """Whether each run has its own row: if the user asked for it, or sorts by the seed or compares seeds."""
    return _EACH.value or "seed" in [*_BY.value, (_SORT.value or "").removeprefix("-")]


def _check_sort(comparable: list[tuple[dict, list[tables.Group]]]) -> None:
    """Raises a UserError if --sort names nothing to sort by, or a figure that is not comparable."""
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
                f"--sort={_SORT.value} can't sort these runs, because the figure was measured under different protocols; "
                f"--metric={name} shows them in separate tables."
            )


def _run_table(protocol: dict, groups: list[tables.Group]) -> _Table:
    """A row for each group of runs."""
    columns = tables.columns_of(groups, _METRIC.value, _each())
    groups = tables.sorted_groups(groups, columns, _METRIC.value, _SORT.value)
    header = [column.name for column in columns]
    texts = [[column.text(group) for column in columns] for group in groups]
    values = [[column.value(group) for column in columns] for group in groups]
    if _for_machines():  # people read the error of the mean nats in the column nats
        header.append("standard error")
        for row, group in zip(values, groups, strict=True):
            row.append(tables.mean_and_error([record.figure(_METRIC.value) for record in group.averaged])[1])
    return _Table(tables.protocol_in_words(protocol), header, texts, values)


def _marginal_table(protocol: dict, groups: list[tables.Group]) -> _Table:
    """A row for each value of the keys of --by."""
    marginals = tables.marginals(groups, _BY.value, _METRIC.value)
    if left_out := len(groups) - len(tables.finished(groups)):
        configs = counted(len(groups), "config")
        print(f"note: {left_out} of {configs} left out of the means: not done.", file=sys.stderr)
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
        print(f"{len(shown)} tables, because these runs were evaluated under different protocols:\n")
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
    """Prints a table as wide as the terminal; in a pipe, as wide as it needs to be."""
    grid = Table(box=None, pad_edge=False)
    for name in table.header:
        grid.add_column(name, justify="left" if name in ("state", "run") else "right", overflow="fold")
    for row in table.texts:
        grid.add_row(*map(Text, row))  # Text, so that brackets in names are not taken for Rich's markup
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
