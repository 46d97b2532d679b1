"""Reads the status of a trial from its run directory and its log."""

import os
import pathlib
from typing import Any, NamedTuple

from charlm.compare import reading
from charlm.errors import UserError
from charlm.rundir.run import Run

FINAL_STATES = ("done", "diverged", "failed", "pruned")
TAIL_BYTES = 2**14  # number of bytes to read from the end of metrics.jsonl; enough for many rows


class TrialStatus(NamedTuple):
    """The status of a trial, read from its run directory.

    Attributes:
      state: `new`, one of run.STATES, or a state that only a launcher sets: `running`, `queued`, `stopped` or `pruned`.
      step: number of steps trained.
      total_steps: number of steps of the whole training; None if the training has not started.
      best: {"step", "nats", "split"} of the best evaluation so far.
      chars_per_second: training speed in the last log interval.
      seconds: training time so far.
      message: reason why the trial failed, diverged or stopped.
    """

    state: str
    step: int = 0
    total_steps: int | None = None
    best: dict[str, Any] | None = None
    chars_per_second: float | None = None
    seconds: float | None = None
    message: str = ""

    @property
    def seconds_left(self) -> float | None:
        """The remaining time, estimated from the average speed so far; None if the speed is unknown."""
        if not (self.seconds and self.step and self.total_steps):
            return None
        return self.seconds / self.step * max(self.total_steps - self.step, 0)


def read_status(run: Run) -> TrialStatus:
    """Reads the status of a run. Another process may write to the run directory at the same time.

    If the run directory is damaged, the returned state is `failed`.
    """
    if not (run.workdir / "status.json").exists():
        return TrialStatus("new")
    try:
        status = run.status()
        starts = run.starts() if (run.workdir / "environment.json").exists() else []
    except UserError as error:
        return TrialStatus("failed", message=str(error))
    row = _last_train_row(run.workdir / "metrics.jsonl")
    return TrialStatus(
        status["state"],
        max(status.get("step", 0), row.get("step", 0)),
        starts[-1].get("total_steps") if starts else None,
        status.get("best"),
        row.get("chars_per_second"),
        row.get("seconds"),
        status.get("message", ""),
    )


def failure_message(*logs: pathlib.Path) -> str:
    """The error message at the end of the first log that ends with one, or else the last line of the last log.

    Empty if no log exists.
    """
    last_line = ""
    for log in logs:
        try:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            continue
        for line in reversed(lines[-3:]):
            if line.startswith("error: "):
                return line.removeprefix("error: ")[:300]
        last_line = lines[-1] if lines else last_line
    return last_line[:300]


def _last_train_row(file: pathlib.Path) -> dict[str, Any]:
    """The last row of the split `train` in a metrics file. An empty dict if the last TAIL_BYTES have no such row."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = opened.read().splitlines()
    except OSError:
        return {}
    rows = (reading.parsed(line) for line in reversed(lines))
    return next((row for row in rows if row is not None and row["split"] == "train"), {})
