"""Computes the mean loss for each value of a config key, or for each combination of values of several keys.

All runs with the same value of the key are averaged. These runs differ in other keys or in their seed. In this module, the
"config" of a run is the set of all config keys except the seed. A "figure" is a loss in nats/char, as in `tables`.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from charlm.compare import tables
from charlm.compare.reading import Record


class Marginal(NamedTuple):
    """The mean figure of all configs that have the same value of a key, or the same values of several keys.

    Attributes:
      value: the values that these configs have in common, one for each key.
      nats: the mean of the configs' figures, in nats/char.
      spread: the standard deviation of the configs' figures. None if there is only one config, or if a figure is infinite.
        A standard error would become smaller if more configs were tried. The spread does not, because the configs differ on
        purpose and not by chance.
      error: the standard error of the mean, if there is a single config with several seeds. None if there are several configs
        or only one seed, or if a figure is infinite.
      figures: the figure of each config, in nats/char. It is the mean over the seeds of this config.
      runs: the number of runs.
    """

    value: tuple
    nats: float
    spread: float | None
    error: float | None
    figures: list[float]
    runs: int


def finished(records: Sequence[Record]) -> list[Record]:
    """The runs that are done, or all runs if no run is done.

    The figure of an unfinished run depends on how many steps it has done. A mean over configs must not include such a figure.
    """
    return [record for record in records if record.state == "done"] or list(records)


def num_configs(records: Sequence[Record]) -> int:
    """The number of different configs. Runs that differ only in their seed have the same config."""
    return len({tables.without_seed(record) for record in records})


def marginals(records: Sequence[Record], keys: Sequence[str], metric: str) -> list[Marginal]:
    """The mean figure for each value of a key, or for each combination of values of several keys.

    Only the runs that `finished` returns are used. Runs with the same config and the same seed are averaged first. Then the
    seeds of each config are averaged, and at last the configs. Each config therefore has the same weight in the mean, and each
    seed has the same weight in its config.

    Two means are comparable only if both values of the key were tried with the same values of the other keys. Means over
    different numbers of configs are therefore not comparable.

    Args:
      records: runs whose metric was measured under the same protocol.
      keys: config keys.
      metric: the metric to average.
    """
    found: dict[str, tuple[tuple, list[Record]]] = {}  # keyed by repr, because lists such as corpus.split can't be dict keys
    for record in finished(records):
        if record.figure(metric) is not None:
            value = tuple(record.config.get(key) for key in keys)
            found.setdefault(repr(value), (value, []))[1].append(record)
    result = [_marginal(value, members, metric) for value, members in found.values()]
    return sorted(result, key=lambda marginal: tuple(tables.sort_key(part) for part in marginal.value))


def _marginal(value: tuple, records: Sequence[Record], metric: str) -> Marginal:
    figures_of: dict[str, dict[object, list[float]]] = {}  # config → seed → the figures of the runs with this seed
    for record in records:
        figure = record.figure(metric)
        assert figure is not None
        seeds = figures_of.setdefault(tables.without_seed(record), {})
        seeds.setdefault(record.config.get("seed"), []).append(figure)
    of_seeds = [[tables.mean(figures) for figures in seeds.values()] for seeds in figures_of.values()]
    of_configs = [tables.mean(figures) for figures in of_seeds]
    has_spread = len(of_configs) > 1 and all(map(math.isfinite, of_configs))
    return Marginal(
        value,
        tables.mean(of_configs),
        statistics.stdev(of_configs) if has_spread else None,
        tables.mean_and_error(of_seeds[0])[1] if len(of_seeds) == 1 else None,
        of_configs,
        len(records),
    )
