"""Runs made into tables: which differ in what, how good each became, and which knob mattered.

Figures that were measured under different protocols are never ranked together.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from charlm import measures, progress
from charlm.compare.reading import Record, is_number
from charlm.config import keys as config_keys
from charlm.config import load

METRICS = ("best", "last", "test", "train")


class Group(NamedTuple):
    """Runs that differ in nothing but their seed. counted: those that the figures are of, the done ones if there are any."""

    records: list[Record]
    counted: list[Record]

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
        """The mean over seeds, in nats; None where they were not measured alike."""
        return mean_and_error([record.figure(metric) for record in self.counted])[0] if is_alike(self.counted, metric) else None


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Mean, standard error of the mean (None of fewer than two), and number of the values that are there."""
    there = [value for value in values if value is not None]
    if not there:
        return None, None, 0
    spread = len(there) > 1 and all(map(math.isfinite, there))
    error = statistics.stdev(there) / math.sqrt(len(there)) if spread else None
    mean = there[0] if len(set(there)) == 1 else statistics.fmean(there)  # whole numbers stay whole
    return mean, error, len(there)


def by_protocol(records: Sequence[Record], metric: str) -> list[tuple[dict, list[Record]]]:
    """The runs apart by how this figure of theirs was measured, the largest set first."""
    apart: dict[str, tuple[dict, list[Record]]] = {}
    for record in records:
        protocol = record.protocols[metric]
        apart.setdefault(json.dumps(protocol, sort_keys=True), (protocol, []))[1].append(record)
    return sorted(apart.values(), key=lambda item: -len(item[1]))


def is_alike(records: Sequence[Record], metric: str) -> bool:
    """Whether all of these runs that have this figure have it under one protocol."""
    return len(by_protocol([record for record in records if record.figure(metric) is not None], metric)) <= 1


def protocol_in_words(protocol: Mapping) -> str:
    if "why" in protocol:
        return str(protocol["why"])
    parts = [f"{protocol.get('split')} split", f"corpus {str(protocol.get('corpus'))[:8]}", f"state {protocol.get('state')}"]
    return ", ".join(
        [*parts, f"{protocol.get('chars'):,} chars scored" if is_number(protocol.get("chars")) else "chars unknown"]
    )


def differing_keys(records: Sequence[Record], besides: Sequence[str] = ()) -> list[str]:
    """The config keys in which these runs differ, in the order of charlm/config/keys.py."""
    keys = list(dict.fromkeys([*config_keys.KEYS, *(key for record in records for key in record.config)]))
    ignored = {*besides, *config_keys.CHANGE_NO_RESULT}
    missing = object()
    return [
        key for key in keys if key not in ignored and len({repr(record.config.get(key, missing)) for record in records}) > 1
    ]


def groups_of(records: Sequence[Record], each: bool = False) -> list[Group]:
    """Runs together that differ in their seed and in nothing else; with `each`, every run on its own.

    Imported weights have a config, but were not trained as it says: they are no seed of those that were.
    """
    together: dict[str, list[list[Record]]] = {}
    for record in records:
        config = {
            key: value for key, value in record.config.items() if key != "seed" and key not in config_keys.CHANGE_NO_RESULT
        }
        is_imported = record.state == "done" and record.steps == 0
        key = str(record.path) if each else json.dumps([config, is_imported], sort_keys=True)
        groups = together.setdefault(key, [])
        # The same seed again is no other draw, and so begins another row.
        fit = [group for group in groups if all(member.config.get("seed") != record.config.get("seed") for member in group)]
        (fit[0] if fit else groups.append([]) or groups[-1]).append(record)
    return [Group.of(members) for groups in together.values() for members in groups]


class Column(NamedTuple):
    """A column of a table. value: of a group, for sorting and machines. text: the same for people."""

    name: str
    value: Callable[[Group], object]
    text: Callable[[Group], str]


def columns_of(groups: Sequence[Group], metric: str, each: bool) -> list[Column]:
    """What a table of these groups shows: config keys that differ, then figures, as far as there are any.

    Perplexity and bits of a group are those of its mean nats.
    """
    records = [record for group in groups for record in group.records]
    keys = differing_keys(records, besides=() if each else ("seed",))
    figures = [
        Column("perplexity", _perplexity_of(metric), lambda group: _with_error(group, metric, as_perplexity=True)),
        Column("nats", lambda group: group.figure(metric), lambda group: _with_error(group, metric)),
        _column("bits", lambda group: _bits(group.figure(metric)), _number),
        _column("n", lambda group: len(group.counted), str),
        _column("at step", _mean_of("best_step"), _whole),
        _column("best", _perplexity_of("best"), _number),
        _column("test", _perplexity_of("test"), _number),
        _column("last", _perplexity_of("last"), _number),
        _column("train", _perplexity_of("train"), _number),
        _column("parameters", _mean_of("parameters"), _whole),
        _column("chars/s", _mean_of("chars_per_second"), _whole),
        _column("time", _mean_of("seconds"), _duration),
        Column("state", _states, _states),
        Column("run", lambda group: group.name, lambda group: group.name),
    ]
    left_out = {metric, "n" if len(groups) == len(records) else "", "at step" if metric != "best" else ""}
    return [_column(key, lambda group, key=key: group.config.get(key), written) for key in keys] + [
        column for column in figures if column.name not in left_out and any(column.value(group) is not None for group in groups)
    ]


def _column(name: str, value: Callable[[Group], object], text: Callable[[object], str]) -> Column:
    return Column(name, value, lambda group: text(value(group)))


def _mean_of(field: str) -> Callable[[Group], float | None]:
    return lambda group: mean_and_error([getattr(record, field) for record in group.counted])[0]


def _perplexity_of(metric: str) -> Callable[[Group], float | None]:
    return lambda group: perplexity(group.figure(metric))


def filtered(records: Sequence[Record], conditions: Sequence[str]) -> list[Record]:
    """The runs for which all conditions hold, on config keys or on state, name and the figures of a Record.

    Raises:
      UserError: a condition is none, or its key is not known.
    """
    kept = list(records)
    for text in conditions:
        name, holds = load.condition(text)
        value = _value_of(name)
        kept = [record for record in kept if holds(value(record))]
    return kept


def _value_of(name: str) -> Callable[[Record], object]:
    of_best = {"nats": float, "bits": measures.bits, "perplexity": measures.perplexity}
    if name in of_best:
        return lambda record: None if record.best is None else of_best[name](record.best)
    if name in Record._fields:
        return lambda record: getattr(record, name)
    key = config_keys.known(name)
    return lambda record: record.config.get(key)


def sorted_groups(groups: Sequence[Group], columns: Sequence[Column], metric: str, by: str | None) -> list[Group]:
    """By the metric, or by a column or config key; a minus before its name turns it round. What has no value comes last."""
    if by is None:
        value, descending = (lambda group: group.figure(metric)), False
    else:
        descending, name = by.startswith("-"), by.removeprefix("-")
        named = {column.name: column.value for column in columns}
        value = named.get(name) or (lambda group: group.config.get(name))
    there = [group for group in groups if value(group) is not None]
    missing = [group for group in groups if value(group) is None]
    return sorted(there, key=lambda group: sortable(value(group)), reverse=descending) + missing


class Marginal(NamedTuple):
    """One value of a knob. nats: mean over all groups with it; error: its standard error; best: the lowest; n: groups."""

    value: tuple
    nats: float
    error: float | None
    best: float
    n: int


def finished(groups: Sequence[Group]) -> list[Group]:
    """Those whose runs are done; all of them where none are. A figure of a run on its way says how far it is."""
    done = [group for group in groups if all(record.state == "done" for record in group.counted)]
    return done or list(groups)


def marginals(groups: Sequence[Group], keys: Sequence[str], metric: str) -> list[Marginal]:
    """For each value of a key, or of several together, the mean over whatever the other keys are, of what is done.

    The mean is fair where each value was tried with the same others; n tells where it was not.
    """
    for key in keys:
        config_keys.known(key)
    groups = finished(groups)
    apart: dict[str, tuple[tuple, list[float]]] = {}
    for group in groups:
        figure = group.figure(metric)
        if figure is not None:
            value = tuple(group.config.get(key) for key in keys)
            apart.setdefault(repr(value), (value, []))[1].append(figure)
    result = [Marginal(value, *mean_and_error(nats)[:2], min(nats), len(nats)) for value, nats in apart.values()]
    return sorted(result, key=lambda marginal: tuple(sortable(part) for part in marginal.value))


def perplexity(nats: float | None) -> float | None:
    """Of nats that may not be there."""
    return None if nats is None else measures.perplexity(nats)


def written(value: object) -> str:
    """A config value for people, on one line."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(written, value)) + ")"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def sortable(value: object) -> tuple:
    """Numbers before texts, None last."""
    if isinstance(value, bool | int | float):
        return (0, value, "")
    return (2, 0, "") if value is None else (1, 0, str(value))


def _bits(nats: float | None) -> float | None:
    return None if nats is None else measures.bits(nats)


def _with_error(group: Group, metric: str, as_perplexity: bool = False) -> str:
    """The mean nats, or the perplexity of that mean, ± its standard error, which exp scales by its slope."""
    nats, error, _ = mean_and_error([record.figure(metric) for record in group.counted])
    value, slope = (perplexity(nats), perplexity(nats)) if as_perplexity else (nats, 1.0)
    return _number(value) + (f" ± {error * slope:.4f}" if error is not None else "")


def _states(group: Group) -> str:
    states = [record.state for record in group.records]
    if len(set(states)) == 1:
        return states[0]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _duration(value: float | None) -> str:
    return "" if value is None else progress.duration(value)
