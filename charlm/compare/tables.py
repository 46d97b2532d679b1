"""Makes tables from runs. A table has the config keys in which the runs differ, and the figures of each run.

The module `marginals` computes the mean figure for each value of a config key. The module `layout` prints a table.

A figure is a loss in nats/char. A metric names one of the figures of a run: `best`, `last`, `test` or `train` (see `Record`).
A protocol says how a figure was measured. Figures that were measured under different protocols are never ranked together.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from charlm import measures, progress
from charlm.compare.reading import Record, is_number
from charlm.config import keys as config_keys
from charlm.config import load

# Metric → what it measures, in words that can follow the word "perplexity".
METRICS = {
    "best": "at the evaluation with the lowest loss",
    "last": "at the latest evaluation",
    "test": "on the test split, as evaluate.py measured it",
    "train": "of the training loss, averaged between the last two evaluations",
}


# All columns that are not config keys, the most important column first. If a terminal is too narrow for all columns, the least
# important columns are left out first.
COLUMNS = (
    *("perplexity", "state", "nats", "n", "bits/byte", "test", "best", "run", "parent", "extended", "at step", "last"),
    *("unknown", "train", "parameters", "time", "bits", "chars/s"),
)


class Group(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
      records: all runs of the group.
      averaged: the runs whose figures are averaged. These are the runs that are done, or all runs if no run is done.
    """

    records: list[Record]
    averaged: list[Record]

    @classmethod
    def of(cls, records: list[Record]) -> "Group":
        done = [record for record in records if record.state == "done"]
        return cls(records, done or records)

    @property
    def config(self) -> dict[str, object]:
        return self.records[0].config

    @property
    def name(self) -> str:
        first = self.records[0].name
        return first if len(self.records) == 1 else f"{first} and {len(self.records) - 1} more"

    def figure(self, metric: str) -> float | None:
        """The mean of the metric over the averaged runs, in nats/char.

        None if no averaged run has the metric, or if these runs were measured under different protocols.
        """
        if not share_protocol(self.averaged, metric):
            return None
        return mean_and_error([record.figure(metric) for record in self.averaged])[0]

    def bits_per_byte(self, metric: str) -> float | None:
        """The mean of the metric in bits per byte.

        None if the mean in nats/char is None, or if no averaged run recorded the number of bytes.

        The averaged runs have the same protocol, so each run scored the same characters. The number of characters per byte is
        therefore the same for all of these runs. It is enough if one of them recorded the number of bytes.
        """
        nats = self.figure(metric)
        ratios = [record.chars_per_byte.get(metric) for record in self.averaged]
        ratio = next((ratio for ratio in ratios if ratio is not None), None)
        return None if nats is None or ratio is None else measures.bits(nats) * ratio

    def unknown(self, metric: str) -> int | None:
        """The number of scored characters that were `<unk>`. None if there were none in any averaged run.

        If the averaged runs have different numbers, this is the largest of them.
        """
        return max((record.unknown[metric] for record in self.averaged if metric in record.unknown), default=None)


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """The mean of the values that are not None, the standard error of this mean, and the number of these values.

    The mean is None if all values are None. The error is None if there are fewer than two values, or if a value is infinite.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None, None, 0
    has_error = len(present) > 1 and all(map(math.isfinite, present))
    error = statistics.stdev(present) / math.sqrt(len(present)) if has_error else None
    return mean(present), error, len(present)


def mean(values: Sequence[float]) -> float:
    """The mean of one or more values. If all values are equal, the result is exactly this value, without rounding.

    The mean of equal integers is therefore an integer.
    """
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def by_protocol(records: Sequence[Record], metric: str) -> list[tuple[dict, list[Record]]]:
    """Groups the runs by the protocol of this metric. The protocol with the most runs comes first.

    `named_protocol` has added the name of the corpus to each returned protocol.
    """
    found: dict[str, tuple[dict, list[Record]]] = {}
    for record in records:
        protocol = record.protocols[metric]
        found.setdefault(json.dumps(protocol, sort_keys=True), (protocol, []))[1].append(record)
    named = [(named_protocol(protocol, members), members) for protocol, members in found.values()]
    return sorted(named, key=lambda item: -len(item[1]))


def named_protocol(protocol: dict, records: Sequence[Record]) -> dict:
    """The protocol with the additional field `corpus_name`. This is the name of the corpus in the configs of these runs.

    A protocol identifies the corpus by a hash, because files with the same name may have different texts. If the configs have
    several names for the same text, the field has all these names. A protocol without a corpus is returned unchanged.
    """
    names = dict.fromkeys(_corpus_name(record.config) for record in records)
    return {**protocol, "corpus_name": " and ".join(names)} if protocol.get("corpus") else protocol


def _corpus_name(config: Mapping[str, object]) -> str:
    """The file name of the corpus, or the name of a corpus that charlm downloads."""
    path = config.get("corpus.path")
    return pathlib.PurePath(str(path)).name if path else str(config.get("corpus.tfds") or config.get("corpus.name"))


def share_protocol(records: Sequence[Record], metric: str) -> bool:
    """Whether the metric was measured under the same protocol in all runs. Runs without the metric are ignored."""
    return len(by_protocol([record for record in records if record.figure(metric) is not None], metric)) <= 1


def protocol_in_words(protocol: Mapping) -> str:
    """A protocol in one line, as the heading of a table."""
    digest, name = str(protocol.get("corpus") or "unknown")[:8], protocol.get("corpus_name")
    corpus = f"corpus {value_text(name)} ({digest})" if name else f"corpus {digest}"
    if "why" in protocol:
        return f"{protocol['why']}, {corpus}" if "corpus" in protocol else str(protocol["why"])
    chars: Any = protocol.get("chars")
    return ", ".join(
        [
            f"{protocol.get('split')} split",
            corpus,
            f"state {protocol.get('state')}",
            f"{progress.counted(chars, 'char')} scored" if is_number(chars) else "chars unknown",
        ]
    )


def differing_keys(records: Sequence[Record], besides: Sequence[str] = ()) -> list[str]:
    """The config keys in which these runs differ, in the order of `config.keys.KEYS`.

    Args:
      besides: keys to leave out. Keys that change only time or memory are always left out.
    """
    keys = list(dict.fromkeys([*config_keys.KEYS, *(key for record in records for key in record.config)]))
    ignored = {*besides, *config_keys.CHANGE_NO_RESULT}
    missing = object()
    return [
        key for key in keys if key not in ignored and len({repr(record.config.get(key, missing)) for record in records}) > 1
    ]


def groups_of(records: Sequence[Record], each: bool = False) -> list[Group]:
    """Groups the runs that differ only in their seed.

    Runs with the same seed are never in one group, because a repeated run is not a new sample. Imported weights are never
    grouped with trained runs, because the config of imported weights does not describe their training. Two runs are also not
    grouped if they began with different parameters (see `train.init_from`), or if --extend changed them differently.

    Args:
      each: whether each run is its own group.
    """
    groups: dict[str, list[list[Record]]] = {}
    for record in records:
        key = str(record.path) if each else without_seed(record)
        same_config = groups.setdefault(key, [])
        for group in same_config:
            if all(member.config.get("seed") != record.config.get("seed") for member in group):
                group.append(record)
                break
        else:
            same_config.append([record])
    return [Group.of(members) for same_config in groups.values() for members in same_config]


def without_seed(record: Record) -> str:
    """A text that describes everything that affects the result of a run, except the seed.

    Two runs that differ only in their seed, or that do not differ at all, have the same text. See `groups_of`.
    """
    config = {key: value for key, value in record.config.items() if key != "seed" and key not in config_keys.CHANGE_NO_RESULT}
    is_imported = record.state == "done" and record.steps == 0
    began_with = record.parent and record.parent["digest"]
    return json.dumps([config, is_imported, began_with, record.extensions_in_words()], sort_keys=True)


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: the heading.
      value: function that returns the value of a group. CSV, JSON and sorting use this value.
      text: function that returns the value of a group as text for the printed table.
    """

    name: str
    value: Callable[[Group], Any]
    text: Callable[[Group], str]


def columns_of(groups: Sequence[Group], metric: str, keys: Sequence[str]) -> list[Column]:
    """The columns of a table of these groups: the config keys, then the figures that at least one group has.

    The perplexity, the bits and the bits per byte of a group are computed from its mean nats. The column `unknown` has the
    number of scored characters that were outside the vocabulary, so that the model read them as `<unk>`.

    Args:
      metric: the metric that ranks the groups.
      keys: the config keys in which any runs of all tables differ. All tables have these keys as columns, so that rows of
        different tables can be compared.
    """
    records = [record for group in groups for record in group.records]
    figures = [
        Column("perplexity", _perplexity_of(metric), lambda group: _with_error(group, metric, as_perplexity=True)),
        Column("nats", _figure_of(metric), lambda group: _with_error(group, metric)),
        _column("bits", lambda group: _bits(group.figure(metric)), four_decimals),
        _column("bits/byte", lambda group: group.bits_per_byte(metric), four_decimals),
        _column("unknown", lambda group: group.unknown(metric), _integer),
        _column("n", lambda group: len(group.averaged), str),
        _column("at step", _mean_of("best_step"), _integer),
        _column("best", _perplexity_of("best"), four_decimals),
        _column("test", _perplexity_of("test"), four_decimals),
        _column("last", _perplexity_of("last"), four_decimals),
        _column("train", _perplexity_of("train"), four_decimals),
        _column("parameters", _mean_of("parameters"), _integer),
        _column("chars/s", _mean_of("chars_per_second"), _integer),
        _column("time", _mean_of("seconds"), _duration),
        _column("parent", lambda group: group.records[0].parent_in_words(), lambda words: words or ""),
        _column("extended", lambda group: group.records[0].extensions_in_words(), lambda words: words or ""),
        Column("state", states_in_words, states_in_words),
        Column("run", lambda group: group.name, lambda group: value_text(group.name)),
    ]
    left_out = {metric}  # the column perplexity shows this metric
    if len(groups) == len(records):
        left_out.add("n")
    if metric != "best":
        left_out.add("at step")
    return [Column(key, _config_value(key), _config_text(key)) for key in keys] + [
        column for column in figures if column.name not in left_out and any(column.value(group) is not None for group in groups)
    ]


def by_importance(columns: Sequence[Column], groups: Sequence[Group], sort: str) -> list[str]:
    """The names of the columns, sorted by importance. The name of the most important column comes first.

    A terminal that is too narrow for all columns shows the most important columns.

    Args:
      columns: the columns of the table.
      groups: the rows of the table.
      sort: the name of the column that the rows are sorted by; empty for the default.
    """
    names = [column.name for column in columns]
    values = [{column.name: repr(column.value(group)) for column in columns} for group in groups]
    keys = [name for name in names if name not in COLUMNS]
    varying = [key for key in keys if len({row[key] for row in values}) > 1]
    # If no two rows have the same values of the keys, these values identify the rows. The column `run` is then less important.
    is_named_by_keys = len({tuple(row[key] for key in varying) for row in values}) == len(values)
    varying.sort(key=lambda key: -len({row[key] for row in values}))  # the keys with the most different values come first
    first = ["perplexity", sort, "state", *([] if is_named_by_keys else ["run"]), *varying, "nats", "n", *keys]
    return [name for name in dict.fromkeys([*first, *COLUMNS]) if name in names]


def _column(name: str, value: Callable[[Group], Any], text: Callable[[Any], str]) -> Column:
    return Column(name, value, lambda group: text(value(group)))


def _config_value(key: str) -> Callable[[Group], object]:
    return lambda group: group.config.get(key)


def _config_text(key: str) -> Callable[[Group], str]:
    return lambda group: config_text(group.config, key)


def _figure_of(metric: str) -> Callable[[Group], float | None]:
    return lambda group: group.figure(metric)


def _mean_of(field: str) -> Callable[[Group], float | None]:
    return lambda group: mean_and_error([getattr(record, field) for record in group.averaged])[0]


def _perplexity_of(metric: str) -> Callable[[Group], float | None]:
    return lambda group: perplexity(group.figure(metric))


def filtered(records: Sequence[Record], conditions: Sequence[str]) -> list[Record]:
    """The runs that meet all conditions.

    Args:
      conditions: strings such as `model.hidden>=256`. A condition names a config key, a field of Record, or nats,
        bits, bits_per_byte or perplexity. The last four names are units: such a name means the metric `best` in this unit. A
        key can be shortened as in `config.keys.full_name`.

    Raises:
      UserError: a string is not a condition, or its key is unknown or ambiguous.
    """
    kept = list(records)
    for text in conditions:
        name, holds = load.condition(text)
        value = _record_value(name)
        kept = [record for record in kept if holds(value(record))]
    return kept


def _record_value(name: str) -> Callable[[Record], object]:
    of_best: dict[str, Callable[[float], float]] = {
        "nats": float,
        "bits": measures.bits,
        "perplexity": measures.perplexity,
    }
    if name in of_best:
        return lambda record: None if record.best is None else of_best[name](record.best)
    if name == "bits_per_byte":
        return lambda record: record.bits_per_byte("best")
    if name in Record._fields:
        return lambda record: getattr(record, name)
    key = config_keys.full_name(name)
    return lambda record: record.config.get(key)


def sorted_groups(groups: Sequence[Group], columns: Sequence[Column], metric: str, by: str | None) -> list[Group]:
    """Sorts the groups by a column or a config key. Groups that have no value there come last.

    Args:
      columns: the columns of the table.
      metric: the metric to sort by if `by` is None.
      by: the name of a column, or a config key. A leading minus sorts from the highest value to the lowest.
    """
    descending = by is not None and by.startswith("-")
    value: Callable[[Group], object]
    if by is None:
        value = _figure_of(metric)
    else:
        name = by.removeprefix("-")
        value = {column.name: column.value for column in columns}.get(name, _config_value(name))
    present = [group for group in groups if value(group) is not None]
    missing = [group for group in groups if value(group) is None]
    return sorted(present, key=lambda group: sort_key(value(group)), reverse=descending) + missing


def perplexity(nats: float | None) -> float | None:
    """The perplexity of a loss in nats/char. None if the loss is None."""
    return None if nats is None else measures.perplexity(nats)


def value_text(value: object) -> str:
    """A config value as text for people, on one line."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(value_text, value)) + ")"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def config_text(config: Mapping[str, object], key: str) -> str:
    """The value of a key as text for people.

    Either train.steps or train.epochs sets the length of a training. The text of the key that does not set it is `by epochs`
    or `by steps`.
    """
    if key == "train.steps" and config.get(key) == 0:
        return "by epochs"
    if key == "train.epochs" and config.get("train.steps"):
        return "by steps"
    return value_text(config.get(key))


def sort_key(value: object) -> tuple:
    """A key that sorts values of any type: numbers first, then texts, then None."""
    if isinstance(value, bool | int | float):
        return (0, value, "")
    return (2, 0, "") if value is None else (1, 0, str(value))


def captions(names: Sequence[str], metric: str) -> dict[str, str]:
    """Column → what it shows, for each of these columns whose name alone does not explain it."""
    meanings = {
        "perplexity": METRICS[metric],
        "at step": "the step of the evaluation with the lowest loss",
        "n": "number of runs that are averaged",
        **{name: f"perplexity {METRICS[name]}" for name in ("best", "test", "last", "train")},
        "unknown": "number of scored characters outside the vocabulary",
    }
    return {name: meaning for name, meaning in meanings.items() if name in names}


def _bits(nats: float | None) -> float | None:
    return None if nats is None else measures.bits(nats)


def _with_error(group: Group, metric: str, as_perplexity: bool = False) -> str:
    """Text of the mean nats and their standard error, such as `1.5018 ± 0.0033`.

    With `as_perplexity`, the text has the perplexity of this mean and the standard error of the perplexity.

    The error of the perplexity is the error of the nats times the slope of exp at the mean nats.
    """
    nats, error, _ = mean_and_error([record.figure(metric) for record in group.averaged])
    if nats is None:
        return ""
    value, slope = (measures.perplexity(nats), measures.perplexity(nats)) if as_perplexity else (nats, 1.0)
    return four_decimals(value) + (f" ± {error * slope:.4f}" if error is not None else "")


def states_in_words(group: Group) -> str:
    """The states of the runs in a group, such as `done` or `2 done, 1 failed`."""
    states = [record.state for record in group.records]
    if len(set(states)) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def four_decimals(value: float | None) -> str:
    """A number with four decimals as text. An empty text for None."""
    return "" if value is None else f"{value:.4f}"


def _integer(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _duration(value: float | None) -> str:
    return "" if value is None else progress.duration(value)
