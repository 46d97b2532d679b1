"""What a training leaves: rows, samples and checkpoints in its run directory, and lines for the person who watches."""

import contextlib
import dataclasses

from charlm import progress
from charlm.inference import evaluate
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training.setup import Setup
from charlm.training.state import Progress, TrainState


class Record:
    """The record of one start; a context manager, so that bar and event file are closed whatever happens."""

    def __init__(self, setup: Setup, run: Run, checkpoints: Checkpoints, done: Progress):
        self._setup, self._run, self._checkpoints = setup, run, checkpoints
        self._done, self._first_step = done, done.step
        self._best_saved = best_step(done)

    def __enter__(self) -> "Record":
        with contextlib.ExitStack() as held:
            self._reporter = held.enter_context(progress.Reporter(self._setup.total_steps, self._first_step))
            self._log = held.enter_context(self._run.metric_logger(self._first_step))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._held.close()

    def step(self, done: Progress, clock) -> None:
        """A step was trained."""
        self._reporter.step(done.step, done.interval.nats / done.interval.chars, *clock.pace(self._setup.total_steps))

    def row(self, row: dict, clock) -> None:
        """A log interval has ended."""
        self._put(row)
        self._reporter.row(row, clock.pace(self._setup.total_steps)[1])

    def evaluation(self, done: Progress, rows: list[dict], params) -> None:
        """An evaluation was made; the last of its rows is the one that judges."""
        for row in rows:
            self._put(row)
            self._reporter.row(row, note="  best so far" if row is rows[-1] and done.since_best == 0 else "")
        if self._setup.draw_sample:
            self._run.write_sample(done.step, self._setup.draw_sample(evaluate.on_one_device(params), done.step))

    def save(self, done: Progress, state: TrainState) -> None:
        """Starts a checkpoint, and drops those that are neither the latest on disk nor the best, of now and of the last time:
        that one stays until this one is on disk."""
        self._run.sync_metrics()
        self._checkpoints.wait()
        others = [step for step in self._checkpoints.steps() if step != done.step]
        self._checkpoints.keep_only(best_step(done) | self._best_saved | {done.step} | set(others[-1:]))
        self._best_saved = best_step(done)
        self._checkpoints.save(done.step, state.params, (state.opt_state, state.carry), dataclasses.asdict(done))
        self._run.write_status("incomplete", done.step, done.best, rows=done.rows)

    def end(self, done: Progress, finished: bool) -> None:
        """Waits for what is being saved, and writes how it ended."""
        self._checkpoints.wait()
        self._checkpoints.keep_only(best_step(done) | set(self._checkpoints.steps()[-2:]))
        self._run.write_status("done" if finished else "incomplete", done.step, done.best, rows=done.rows)

    def _put(self, row: dict) -> None:
        self._log(row)
        self._done.rows += 1


class Silence:
    """In the place of a record where another process keeps it."""

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *error) -> None:
        pass

    def __getattr__(self, name: str):
        return lambda *arguments: None


def best_step(done: Progress) -> set[int]:
    return {done.best["step"]} if done.best else set()
