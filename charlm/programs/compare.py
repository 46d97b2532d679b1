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
--by=KEY,KEY shows one row for each pair of values. The spread of a row is the standard deviation of the losses of its configs,
which differ in other keys. A row has a standard error only if it has a single config with several seeds.

If a table is too wide for the terminal, the program leaves out the least important columns and lists their names. In a pipe,
all columns are printed.

Instead of the full name of a key, you can give only its end if no other key ends in this way, as in --by=hidden.
"""

import csv
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.text import Text

from charlm import cli, measures
from charlm.compare import layout, marginals, reading, tables
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
    "metric",
    "best",
    list(tables.METRICS),
    "loss that ranks the runs: best or last validation loss, test loss, or mean training loss",
)
_BY = flags.DEFINE_multi_string("by", [], "config key, or two keys separated by a comma: show the mean loss for each value")
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
      importance: the names of the columns, the most important one first.
      captions: name of a column, or the sign ± → what the column or the number after the sign shows.
    """

    protocol: str
    header: list[str]
    texts: list[list[str]]
    values: list[list[Any]]
    importance: list[str]
    captions: dict[str, str]


def run() -> None:
    cli.run(main, takes_arguments=True)


def main(overrides: dict[str, str], paths: list[str]) -> int:
    del overrides
    _check_flags(paths)
    by, sort = _by(), _sort()
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
    each = _EACH.value or (sort or "").removeprefix("-") == "seed"
    differing = tables.differing_keys(records, besides=() if each else ("seed",))
    comparable = [
        (protocol, tables.groups_of(members, each)) for protocol, members in tables.by_protocol(records, _METRIC.value)
    ]
    _check_sort(comparable, sort, differing)
    if by:
        means = [_marginal_table(protocol, groups, by) for protocol, groups in comparable]
        _print([table for table in means if table.texts] or means[:1])  # runs without an evaluation have no means
    else:
        _print([_run_table(protocol, groups, differing, sort) for protocol, groups in comparable])
    if _PLOT.value:
        from charlm.compare import plots  # imported only if needed, because importing Matplotlib is slow

        print(f"written: {plots.write(_PLOT.value, comparable, _METRIC.value, _X.value, by)}", file=sys.stderr)
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
    if _PLOT.value and not _PLOT.value.endswith((".png", ".svg")):
        raise UserError(f"--plot={_PLOT.value}: the file's name must end in .png or .svg.")
    if _SORT.value is not None and _BY.value:
        raise UserError("--sort and --by are given together: leave out --sort, because --by always sorts by its keys.")
    if _EACH.value and _BY.value:
        raise UserError("--each and --by are given together: leave out --each, because --by always shows means.")


def _by() -> list[str]:
    """The full names of the keys in --by. Two keys can be given in one flag, separated by a comma, or in two flags."""
    given = [name.strip() for names in _BY.value for name in names.split(",") if name.strip()]
    names = [keys.full_name(name) for name in given]
    if len(names) > 2:
        raise UserError(f"--by={','.join(given)} has {len(names)} keys: give one or two.")
    if len(set(names)) < len(names):
        raise UserError(f"--by={','.join(given)} has {names[0]} twice: give two different keys.")
    return names


def _sort() -> str | None:
    """The value of --sort, in which a key has its full name. A leading minus, a column and an unknown name do not change."""
    if _SORT.value is None:
        return None
    name = _SORT.value.removeprefix("-")
    is_column = name in tables.COLUMNS or not keys.ending_in(name)
    return _SORT.value if is_column else _SORT.value.removesuffix(name) + keys.full_name(name)


def _check_sort(comparable: list[tuple[dict, list[tables.Group]]], sort: str | None, differing: Sequence[str]) -> None:
    """Raises a UserError if --sort names an unknown column, or a loss that the runs measured under different protocols."""
    if sort is None:
        return
    name = sort.removeprefix("-")
    columns = {column.name: None for _, groups in comparable for column in tables.columns_of(groups, _METRIC.value, differing)}
    if name not in {*columns, *keys.KEYS}:
        raise UserError(f"--sort={_SORT.value} is not a column or a config key: the columns are {', '.join(columns)}.")
    for _, groups in comparable:
        averaged = [record for group in groups for record in group.averaged]
        if name in tables.METRICS and not tables.share_protocol(averaged, name):
            raise UserError(
                f"--sort={_SORT.value} can't sort these runs, because the metric {name} was measured under different protocols"
                f": use --metric={name} to show the runs in separate tables."
            )


def _run_table(protocol: dict, groups: list[tables.Group], differing: Sequence[str], sort: str | None) -> _Table:
    """Returns a table with one row for each group of runs.

    Args:
      differing: the config keys that have a column each, because the runs differ in them.
      sort: what to sort by, see `tables.sorted_groups`.
    """
    columns = tables.columns_of(groups, _METRIC.value, differing)
    groups = tables.sorted_groups(groups, columns, _METRIC.value, sort)
    header = [column.name for column in columns]
    texts = [[column.text(group) for column in columns] for group in groups]
    values = [[column.value(group) for column in columns] for group in groups]
    importance = tables.by_importance(columns, groups, (sort or "").removeprefix("-"))
    captions = tables.captions(header, _METRIC.value)
    if any("±" in text for row in texts for text in row):
        captions["±"] = "standard error over seeds"
    if _for_machines():  # the table for people shows the standard error in the column nats
        header.append("standard error")
        for row, group in zip(values, groups, strict=True):
            row.append(tables.mean_and_error([record.figure(_METRIC.value) for record in group.averaged])[1])
    return _Table(tables.protocol_in_words(protocol), header, texts, values, importance, captions)


def _marginal_table(protocol: dict, groups: list[tables.Group], by: list[str]) -> _Table:
    """Returns a table with one row for each combination of values of the keys in `by`."""
    records = [record for group in groups for record in group.records]
    averaged = marginals.finished(records)
    total = marginals.num_configs(records)
    if left_out := total - marginals.num_configs(averaged):
        why = "only configs with a finished run are averaged"
        print(f"note: the means leave out {left_out} of {counted(total, 'config')}, because {why}.", file=sys.stderr)
    rows = marginals.marginals(records, by, _METRIC.value)
    columns: dict[str, tuple[list[Any], Callable[[Any], str]]] = {
        **{key: ([row.value[index] for row in rows], tables.value_text) for index, key in enumerate(by)},
        "perplexity": ([measures.perplexity(row.nats) for row in rows], tables.four_decimals),
        "nats": ([row.nats for row in rows], tables.four_decimals),
        "spread": ([row.spread for row in rows], tables.four_decimals),
        "standard error": ([row.error for row in rows], tables.four_decimals),
        "best nats": ([min(row.figures) for row in rows], tables.four_decimals),
        "configs": ([len(row.figures) for row in rows], str),
        "runs": ([row.runs for row in rows], str),
    }
    captions = {
        "perplexity": f"{tables.METRICS[_METRIC.value]}, computed from the mean nats",
        "nats": "mean over configs and seeds",
        "spread": "standard deviation of the nats over configs",
        "standard error": "of the nats, over seeds",
    }
    if differing := tables.differing_keys(averaged, besides=("seed", *by)):
        captions["spread"] += f", which differ in {', '.join(differing)}"
    for name in ("spread", "standard error"):
        if all(value is None for value in columns[name][0]):
            del captions[name]
            if not _for_machines():
                del columns[name]
    values = [list(row) for row in zip(*(cells for cells, _ in columns.values()), strict=True)]
    texts = [list(row) for row in zip(*([text(cell) for cell in cells] for cells, text in columns.values()), strict=True)]
    importance = ["perplexity", *by, *columns]
    return _Table(tables.protocol_in_words(protocol), list(columns), texts, values, list(dict.fromkeys(importance)), captions)


def _for_machines() -> bool:
    return _CSV.value or _JSON.value


def _print(shown: list[_Table]) -> None:
    if _for_machines():
        _print_for_machines(shown)
        return
    is_fitted = sys.stdout.isatty() and not _MARKDOWN.value
    width = shutil.get_terminal_size().columns if is_fitted else 0
    if len(shown) > 1:
        words = f"These runs were evaluated under different protocols, so they are shown in {len(shown)} tables:"
        _print_wrapped(words, width)
        print()
    captions: dict[str, str] = {}
    for table in shown:
        left_out: list[str] = []
        if _MARKDOWN.value:
            print(f"{table.protocol}\n\n" + "\n".join(_markdown(table)) + "\n")
        else:
            left_out = _print_for_people(table, width)
        captions |= {name: words for name, words in table.captions.items() if name not in left_out}
    phrases = [f"{name}: {words}" for name, words in captions.items()]
    for line in ["; ".join(phrases)] if width else phrases:
        _print_wrapped(line, width)


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


def _print_for_people(table: _Table, width: int) -> list[str]:
    """Prints a table, and returns the names of the columns that are left out.

    Args:
      width: the width of the terminal that the table must fit; 0 without a terminal, to print all columns.
    """
    left_out: list[str] = []
    if width:
        (header, *rows), left_out = layout.fitted(table.header, table.texts, table.importance, width)
    else:
        header, *rows = layout.lines(table.header, table.texts)
    _print_wrapped(table.protocol, width, style="italic")
    for line, style in [(header, "bold"), *((row, "") for row in rows)]:
        Console().print(Text(line, style), soft_wrap=True)
    if left_out:
        _print_wrapped(f"left out, because the terminal is too narrow: {', '.join(left_out)}", width)
    print()
    return left_out


def _print_wrapped(text: str, width: int, style: str = "") -> None:
    """Prints a text, broken only at spaces into lines of this width. With the width 0, no line is broken."""
    for line in layout.wrapped(text, width) if width else [text]:
        Console().print(Text(line, style), soft_wrap=True)


def _markdown(table: _Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(table.header), "|" + " --- |" * len(table.header), *map(line, table.texts)]
