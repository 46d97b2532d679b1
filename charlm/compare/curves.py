"""The learning curve of runs that differ only in their seed: their mean and their range, for plots and for the HTML page."""

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
      mean: the mean over the seeds at each point, in nats/char, (points,).
      low: the minimum over the seeds at each point, in nats/char, (points,).
      high: the maximum over the seeds at each point, in nats/char, (points,).
    """

    step: np.ndarray
    chars: np.ndarray
    seconds: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(series: Sequence[dict[str, list]]) -> Curve | None:
    """The curve of a group, with a point for each step at which all its runs have a value. None if there is no such step.

    Args:
      series: the curve of each run, for one split, as in the result of `reading.series`.
    """
    seeds = [reading.plottable(each) for each in series]
    steps = sorted(set.intersection(*(set(seed["step"]) for seed in seeds))) if seeds else []
    if not steps:
        return None
    index_of = [{step: index for index, step in enumerate(seed["step"])} for seed in seeds]

    def at_steps(name: str) -> np.ndarray:
        """The values of this name as an array of the shape (seeds, steps)."""
        rows = [[seed[name][index[step]] for step in steps] for seed, index in zip(seeds, index_of, strict=True)]
        return np.array(rows, float)

    nats = at_steps("nats")
    return Curve(
        np.array(steps, float), at_steps("chars").mean(0), at_steps("seconds").mean(0), nats.mean(0), nats.min(0), nats.max(0)
    )
