"""Compares runs by their perplexity logs: tables, plots, one page of HTML. Reads run directories only, running ones too.

    scripts/compare.py runs/NAME [runs/OTHER ...] [--where='model.layers>=2'] [--sort=-parameters] [--by=model.hidden]
    scripts/compare.py runs/NAME --plot=curves.png [--x=seconds]       scripts/compare.py runs/NAME --html=report.html
    scripts/compare.py runs/NAME --by=model.hidden,optim.learning_rate --plot=map.svg

A folder stands for all runs below it. Config keys that differ become columns. Runs that differ in nothing but their seed become
one row: the mean of their nats ± its standard error, perplexity and bits of that mean. Figures measured under different
protocols are never ranked together. --by gives the mean over all other keys for each value of a key, or of two.
"""

import csv
import json
import sys

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from charlm import cli, measures
from charlm.compare import reading, tables
from charlm.config import keys
from charlm.errors import UserError

_WHERE = flags.DEFINE_multi_string(
    "where", [], "only runs for which this holds, on a config key or state, best, steps; repeatable"
)
_SORT = flags.DEFINE_string("sort", None, "column or config key to sort by, -NAME from the highest; by default the metric")
_METRIC = flags.DEFINE_enum(
    "metric", "best", tables.METRICS, "figure that ranks: best or last validation, test, mean training loss"
)
_BY = flags.DEFINE_list("by", [], "config key, or two with a comma: means over all other keys, to see which knob mattered")
_EACH = flags.DEFINE_bool("each", False, "a row for each run: seeds are not put together")
_CSV = flags.DEFINE_bool("csv", False, "print CSV")
_JSON = flags.DEFINE_bool("json", False, "print a JSON list of objects")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "print Markdown")
_PLOT = flags.DEFINE_string("plot", None, "file, .png or .svg: learning curves, or with --by the sweep")
_X = flags.DEFINE_enum("x", "step", ("step", "chars", "seconds"), "of the curves: steps, characters trained on, or wall time")
_HTML = flags.DEFINE_string("html", None, "file: one page with table, curves, config differences and samples, without network")


def run() -> None:
    cli.run(main, takes_arguments=True)


def main(overrides: dict[str, str], paths: list[str]) -> int:
    del overrides
    if not paths:
        raise UserError("no runs are given: scripts/compare.py RUN_OR_FOLDER …")
    if sum((_CSV.value, _JSON.value, _MARKDOWN.value)) > 1:
        raise UserError("--csv, --json and --markdown are given together: one of them would be right.")
    if len(_BY.value) > 2:
        raise UserError(f"--by={','.join(_BY.value)} has {len(_BY.value)} keys: one or two would be right.")
    if _PLOT.value and not _PLOT.value.endswith((".png", ".svg")):
        raise UserError(f"--plot={_PLOT.value} is not right: its name must end in .png or .svg.")
    records, problems = reading.read(reading.find(paths))
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    if not records:
        raise UserError("none of these runs can be read.")
    records = tables.filtered(records, _WHERE.value)
    if not records:
        raise UserError(f"--where={_WHERE.value[-1]}: no run is like that.")
    comparable = [
        (protocol, tables.groups_of(members, _each())) for protocol, members in tables.by_protocol(records, _METRIC.value)
    ]
    _check_sort(comparable)
    _print(comparable)
    if _PLOT.value:
        from charlm.compare import plots

        print(f"written: {plots.write(_PLOT.value, comparable, _METRIC.value, _X.value, _BY.value)}", file=sys.stderr)
    if _HTML.value:
        from charlm.compare import report

        print(f"written: {report.write(_HTML.value, records)}", file=sys.stderr)
    return 0


def _each() -> bool:
    """Whether each run is a row: asked for, or needed to look at seeds."""
    return _EACH.value or "seed" in [*_BY.value, (_SORT.value or "").removeprefix("-")]


def _check_sort(comparable: list[tuple[dict, list[tables.Group]]]) -> None:
    if _SORT.value is None:
        return
    if _BY.value:
        raise UserError("--sort and --by are both given: the table of --by stands in the order of its key.")
    names = {column.name: None for _, groups in comparable for column in tables.columns_of(groups, _METRIC.value, _each())}
    if _SORT.value.removeprefix("-") not in {*names, *keys.KEYS}:
        raise UserError(f"--sort={_SORT.value}: one of {', '.join(names)}, or a config key, would be right.")
    metric = _SORT.value.removeprefix("-")
    for _, groups in comparable:
        if metric in tables.METRICS and not tables.is_alike([one for group in groups for one in group.counted], metric):
            raise UserError(
                f"--sort={_SORT.value}: not measured alike in these runs; --metric={metric} sorts them in tables apart."
            )


def _print(comparable: list[tuple[dict, list[tables.Group]]]) -> None:
    machine: list[dict] = []
    if len(comparable) > 1 and not (_CSV.value or _JSON.value):
        print(f"{len(comparable)} tables, for these runs were not measured alike:\n")
    for protocol, groups in comparable:
        if _BY.value:
            header, rows, values = _marginal_table(groups)
            if left_out := len(groups) - len(tables.finished(groups)):
                print(f"note: {left_out} of {len(groups)} configs are not done and left out of the means.", file=sys.stderr)
        else:
            columns = tables.columns_of(groups, _METRIC.value, _each())
            ordered = tables.sorted_groups(groups, columns, _METRIC.value, _SORT.value)
            header = [column.name for column in columns]
            rows = [[column.text(group) for column in columns] for group in ordered]
            values = [[column.value(group) for column in columns] for group in ordered]
            if _CSV.value or _JSON.value:
                header.append("standard error")  # of the mean nats; people read it beside them
                for row, group in zip(values, ordered, strict=True):
                    row.append(tables.mean_and_error([record.figure(_METRIC.value) for record in group.counted])[1])
        words = tables.protocol_in_words(protocol)
        if _CSV.value or _JSON.value:
            machine += [measures.finite(dict(zip(header, row, strict=True))) | {"protocol": words} for row in values]
        elif _MARKDOWN.value:
            print(f"{words}\n\n" + "\n".join(_markdown(header, rows)) + "\n")
        else:
            _rich(words, header, rows)
    if _JSON.value:
        print(json.dumps(machine, indent=1, default=str))
    if _CSV.value:
        writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(key for row in machine for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(machine)


def _marginal_table(groups: list[tables.Group]) -> tuple[list[str], list[list[str]], list[list]]:
    marginals = tables.marginals(groups, _BY.value, _METRIC.value)
    header = [*_BY.value, "perplexity", "nats", "standard error", "best nats", "configs"]
    rows, values = [], []
    for each in marginals:
        perplexity = tables.perplexity(each.nats)
        error = "" if each.error is None else f"{each.error:.4f}"
        rows.append(
            [*map(tables.written, each.value), f"{perplexity:.4f}", f"{each.nats:.4f}", error, f"{each.best:.4f}", str(each.n)]
        )
        values.append([*each.value, perplexity, each.nats, each.error, each.best, each.n])
    return header, rows, values


def _rich(words: str, header: list[str], rows: list[list[str]]) -> None:
    """A table for people; as wide as it is where no screen limits it."""
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name in ("state", "run") else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as they are: brackets in names are no markup
    console = Console()
    console.print(words, style="italic", markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    else:
        with (wide := Console(width=10_000)).capture() as captured:
            wide.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    print()


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + " --- |" * len(header), *map(line, rows)]
