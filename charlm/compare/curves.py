"""Combines the learning curves of runs that differ only in their seed into one curve, for plots and for the HTML page.

The combined curve has the mean, the minimum and the maximum of the losses of these runs at each point.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from charlm.compare import reading


class Curve(NamedTuple):
    """The learning curve of a group of runs that differ only in their seed.

    Attributes:
      step: the step of each point, (points,).
      chars: the mean number of characters trained on until each point, (points,).
      seconds: the mean training time until each point, (points,).
      mean: the mean loss of the runs at each point, in nats/char, (points,).
      low: the lowest loss of the runs at each point, in nats/char, (points,).
      high: the highest loss of the runs at each point, in nats/char, (points,).
    """

    step: np.ndarray
    chars: np.ndarray
    seconds: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(series: Sequence[dict[str, list]]) -> Curve | None:
    """The curve of a group. The curve has a point for each step at which all runs of the group have a value.

    The result is None if there is no such step.

    Args:
      series: the curve of each run. All curves are of the same split. `reading.series` returns such curves.
    """
    seeds = [reading.plottable(each) for each in series]
    steps = sorted(set.intersection(*(set(seed["step"]) for seed in seeds))) if seeds else []
    if not steps:
        return None
    index_of = [{step: index for index, step in enumerate(seed["step"])} for seed in seeds]

    def at_steps(name: str) -> np.ndarray:
        """The values of the field `name` of each curve, as an array of the shape (seeds, steps)."""
        rows = [[seed[name][index[step]] for step in steps] for seed, index in zip(seeds, index_of, strict=True)]
        return np.array(rows, float)

    nats = at_steps("nats")
    return Curve(
        np.array(steps, float), at_steps("chars").mean(0), at_steps("seconds").mean(0), nats.mean(0), nats.min(0), nats.max(0)
    )
