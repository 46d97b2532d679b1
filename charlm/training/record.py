"""Writes metrics rows, samples and checkpoints to the run directory, and shows the progress of a training."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from charlm import progress as messages
from charlm.inference import evaluate
from charlm.rundir import events
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training.judging import is_evaluation_shown
from charlm.training.setup import Setup
from charlm.training.state import Progress, to_checkpoint
from charlm.training.step import TrainState


class Clock:
    """Measures wall-clock time, and adds the time to the fields `seconds` and `interval_seconds` of `progress`."""

    def __init__(self, progress: Progress):
        self._progress, self._last = progress, time.perf_counter()
        self._first_step, self._begin = progress.step, self._last

    def lap(self, training: bool) -> None:
        """Adds the seconds since the last lap to `seconds`.

        If `training` is true, also adds them to `interval_seconds`. The training speed is computed from `interval_seconds`.
        """
        now = time.perf_counter()
        self._progress.seconds += now - self._last
        if training:
            self._progress.interval_seconds += now - self._last
        self._last = now

    def pace(self, total_steps: int) -> tuple[float, float]:
        """The training speed in this log interval (characters per second), and the estimated seconds left.

        The estimate is based on all time since the process started or resumed training, including evaluations.
        """
        progress, now = self._progress, time.perf_counter()
        left = (total_steps - progress.step) * (now - self._begin) / max(progress.step - self._first_step, 1)
        return progress.interval.chars / (progress.interval_seconds + now - self._last), left


class Record:
    """Writes the results of one training process.

    Use this class in a `with` statement, which closes the progress bar and TensorBoard's file even after an error.

    Args:
      all_rows: whether to print the rows of log intervals on a terminal too.
    """

    def __init__(self, setup: Setup, run: Run, checkpoints: Checkpoints, progress: Progress, all_rows: bool = False):
        self._setup, self._run, self._checkpoints = setup, run, checkpoints
        self._progress, self._first_step = progress, progress.step
        self._best_saved, self._all_rows = _best_step(progress), all_rows

    def __enter__(self) -> "Record":
        with contextlib.ExitStack() as stack:
            self._reporter = stack.enter_context(messages.Reporter(self._setup.total_steps, self._first_step, self._all_rows))
            opened = events.opened(self._run.workdir, self._first_step, self._run.config_fields())
            self._events = stack.enter_context(opened)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def step(self, progress: Progress, clock: Clock) -> None:
        """Updates the progress bar."""
        nats = progress.interval.nats / progress.interval.chars
        self._reporter.step(progress.step, nats, *clock.pace(self._setup.total_steps))

    def row(self, row: dict[str, Any], clock: Clock) -> None:
        """Writes and shows the row of a log interval."""
        self._append(row)
        self._reporter.row(row, clock.pace(self._setup.total_steps)[1])

    def say(self, line: str) -> None:
        """Prints a line."""
        self._reporter.say(line)

    def evaluation(self, progress: Progress, rows: list[dict[str, Any]], params: Any) -> None:
        """Writes the rows of an evaluation and a sample. Prints the rows if `judging.is_evaluation_shown` is true.

        The last row holds the loss that `train.best` names.
        """
        is_shown = is_evaluation_shown(self._setup, progress)
        for row in rows:
            self._append(row)
            if is_shown:
                self._reporter.row(row, note="  best so far" if row is rows[-1] and progress.since_best == 0 else "")
        if self._setup.draw_sample:
            text = self._setup.draw_sample(evaluate.on_one_device(params), progress.step, self._setup.seed)
            self._run.write_sample(progress.step, text)
            self._events.sample(progress.step, text)

    def save(self, progress: Progress, state: TrainState) -> None:
        """Starts to save a checkpoint of this step, and deletes older checkpoints that are no longer needed.

        The latest complete checkpoint and the best checkpoint are kept. If the new checkpoint is the best, the previous best
        checkpoint is also kept until the new checkpoint is on disk.
        """
        self._run.sync_metrics()
        self._checkpoints.wait()
        others = [step for step in self._checkpoints.steps() if step != progress.step]
        self._checkpoints.keep_only(_best_step(progress) | self._best_saved | {progress.step} | set(others[-1:]))
        self._best_saved = _best_step(progress)
        self._checkpoints.save(progress.step, *to_checkpoint(state), progress.to_dict())
        self._run.write_status("incomplete", progress.step, progress.best, rows=progress.rows)

    def end(self, progress: Progress, finished: bool) -> None:
        """Waits until the last checkpoint is on disk. Then keeps only the best and the two latest, and writes the status."""
        self._checkpoints.wait()
        self._checkpoints.keep_only(_best_step(progress) | set(self._checkpoints.steps()[-2:]))
        self._run.write_status("done" if finished else "incomplete", progress.step, progress.best, rows=progress.rows)

    def _append(self, row: dict[str, Any]) -> None:
        self._run.append(row)
        self._events.row(row)
        self._progress.rows += 1


class NoRecord:
    """Replaces `Record` in every process except the first process. All methods of this class do nothing."""

    def __enter__(self) -> "NoRecord":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


def _best_step(progress: Progress) -> set[int]:
    return {progress.best["step"]} if progress.best else set()
