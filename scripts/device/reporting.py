"""What a part is given, and how it reports. `running` reads the reports.

A report is one line of JSON on standard output, so that everything that a part has found is kept even if the part is killed.
"""

import json
import math
import sys
import time
from typing import Any, NamedTuple

LEAST_SECONDS = 10  # a program of charlm needs some seconds to start


class Job(NamedTuple):
    """What a part needs to know.

    Attributes:
      seconds: the time after which the part is killed.
      end: the value of `time.monotonic()` at that time.
      folder: an empty folder for runs.
      text: the file of a text; empty: no text was found.
      device: the result of `probe.py`.
    """

    seconds: float
    end: float
    folder: str
    text: str
    device: dict[str, Any]

    @property
    def platform(self) -> str:
        """The platform of JAX: `cpu`, `gpu` or `tpu`."""
        return self.device["platform"]

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    @property
    def is_cuda(self) -> bool:
        return self.device["is_cuda"]

    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def is_over(self) -> bool:
        """Whether so little time is left that the part should start no other program."""
        return self.seconds_left() < LEAST_SECONDS


class Report:
    """Writes the reports of a part."""

    def figure(self, **values: Any) -> None:
        """Reports measured values."""
        self._write(figure=values)

    def wrong(self, line: str) -> None:
        """Reports that something is wrong."""
        self._write(wrong=line)

    def left_out(self, what: str) -> None:
        """Reports that there was no time for a measurement."""
        self._write(left_out=what)

    def skip(self, reason: str) -> None:
        """Reports why the part does nothing."""
        self._write(skipped=reason)

    def _write(self, **values: Any) -> None:
        print(json.dumps(values, default=_plain), file=sys.stdout, flush=True)


def difference(report: Report, what: str, name: str, error: float, allowed: float) -> None:
    """Reports that `name` differs too much. `what` says where."""
    if not error <= allowed:  # also true for nan
        report.wrong(f"{what}: {name} differs by {error:.1e}, allowed {allowed:.1e}")


def rows_difference(rows: list[dict], expected: list[dict]) -> float:
    """The largest difference in nats between the rows of two runs. Infinite if the runs have rows of different steps."""
    places, other_places = ([(row["step"], row["split"]) for row in each] for each in (rows, expected))
    if places != other_places or not rows:
        return math.inf
    return max(abs(row["nats"] - other["nats"]) for row, other in zip(rows, expected, strict=True))


def _plain(value: Any) -> Any:
    """A NumPy number or a path as a value of JSON."""
    return value.item() if hasattr(value, "item") else str(value)
