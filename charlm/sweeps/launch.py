"""Runs the trials of a sweep as processes on this machine, and shows the status of each trial."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from charlm import measures, progress
from charlm.compare import reading
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.sweeps import sweep

POLL_SECONDS = 0.2
REPORT_SECONDS = 60.0  # without a terminal, the time between two reports on the running trials
EXTERNAL = "in another process"
FINAL_STATES = ("done", "diverged", "failed", "pruned")
STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a training that saved its state and stopped
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


class Slot(NamedTuple):
    """The part of the machine for one of several concurrent processes.

    Attributes:
      cores: numbers of the CPU cores.
      gpus: value of CUDA_VISIBLE_DEVICES; None if the machine has no GPUs.
      shares_gpu: whether another slot may use the same GPU.
    """

    cores: tuple[int, ...]
    gpus: str | None
    shares_gpu: bool


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


def failure_message(log: pathlib.Path) -> str:
    """The error message at the end of a training's log, or else its last line. An empty string if no log exists."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [line.removeprefix("error: ") for line in lines[-3:] if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:300]


def divide_machine(parallel: int, cores: Iterable[int], gpus: list[str]) -> list[Slot]:
    """Divides cores and GPUs evenly among `parallel` processes.

    All slots have the same size, so the results of a trial do not depend on its slot. If the machine has fewer cores or GPUs
    than processes, several processes share a core or a GPU.
    """
    cores = sorted(cores)
    cores_each, gpus_each = max(1, len(cores) // parallel), max(1, len(gpus) // parallel)
    return [
        Slot(
            tuple(cores[(slot * cores_each + number) % len(cores)] for number in range(cores_each)),
            ",".join(gpus[(slot * gpus_each + number) % len(gpus)] for number in range(gpus_each)) if gpus else None,
            0 < len(gpus) < parallel,
        )
        for slot in range(parallel)
    ]


def available_cores() -> set[int]:
    """The CPU cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def available_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as values for CUDA_VISIBLE_DEVICES."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        return [str(number) for number in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []


def start_training(command: list[str], slot: Slot, log: pathlib.Path) -> subprocess.Popen:
    """Starts a training on the cores and GPUs of a slot, and appends the output of the training to a log.

    The training has its own terminal session, so Ctrl-C on the terminal does not reach the training directly. Instead, the
    launcher receives the signal and forwards it to the training.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if slot.gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = slot.gpus
    if slot.shares_gpu:
        env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    launcher_cores = available_cores()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, slot.cores)  # the child process inherits these cores
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        finally:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, launcher_cores)


def run_local(
    root: sweep.Root,
    trials: Iterator[sweep.Trial],
    command_of: Callable[[sweep.Trial], list[str]],
    slots: list[Slot],
    display: "Display",
    on_end: Callable[[sweep.Trial, TrialStatus], None] = lambda trial, status: None,
    should_stop: Callable[[sweep.Trial], bool] = lambda trial: False,
) -> int:
    """Runs trials on this machine. Each slot runs one trial at a time.

    If a launcher was killed, the trainings that it started may still be running. If one of these trainings already trains a
    trial, this launcher does not start the trial, but waits until the training ends.

    Args:
      root: folder of the sweep.
      trials: an iterator over the trials. The launcher takes the next trial only when a slot is free.
      command_of: trial → the command that trains the trial.
      slots: the parts of the machine.
      display: shows the trials.
      on_end: called with a trial and its status when the trial ends.
      should_stop: called repeatedly for each running trial. True stops the trial and makes its state `pruned`.

    Returns:
      The number of the signal that stopped the launcher, or 0.
    """
    return _LocalLauncher(root, trials, command_of, slots, display, on_end, should_stop).run()


class _LocalLauncher:
    """The state of `run_local`."""

    def __init__(
        self,
        root: sweep.Root,
        trials: Iterator[sweep.Trial],
        command_of: Callable[[sweep.Trial], list[str]],
        slots: list[Slot],
        display: "Display",
        on_end: Callable[[sweep.Trial, TrialStatus], None],
        should_stop: Callable[[sweep.Trial], bool],
    ):
        self._root, self._trials, self._command_of, self._slots, self._display = root, trials, command_of, slots, display
        self._on_end, self._should_stop = on_end, should_stop
        self._running: dict[int, tuple[sweep.Trial, subprocess.Popen]] = {}  # index of the slot → trial and its process
        self._external: dict[int, sweep.Trial] = {}  # index of the slot → trial that another process trains
        self._pruned: set[str] = set()
        self._all_taken = False
        self._signals: list[int] = []

    def run(self) -> int:
        with self._display, _forward_signals(self._processes) as self._signals:
            while True:
                for slot in list(self._running):
                    self._poll_running(slot)
                for slot in list(self._external):
                    self._poll_external(slot)
                for slot in range(len(self._slots)):
                    self._fill(slot)
                if not self._running and (self._signals or (self._all_taken and not self._external)):
                    return self._signals[0] if self._signals else 0
                self._display.refresh()
                time.sleep(POLL_SECONDS)

    def _processes(self) -> list[subprocess.Popen]:
        return [process for _, process in self._running.values()]

    def _poll_running(self, slot: int) -> None:
        trial, process = self._running[slot]
        if process.poll() is not None:
            del self._running[slot]
            # A training exits with status 2 if another process holds the lock of the run directory. This other process may be
            # a training that a killed launcher has started.
            if process.returncode == 2 and self._root.run(trial).is_training():
                self._external[slot] = trial
                return
            self._end(trial, _status_after_exit(self._root, trial, process.returncode, trial.name in self._pruned))
        elif not self._signals and trial.name not in self._pruned and self._should_stop(trial):
            self._pruned.add(trial.name)
            process.send_signal(signal.SIGTERM)
        else:
            self._show_running(trial)

    def _poll_external(self, slot: int) -> None:
        trial = self._external[slot]
        if self._root.run(trial).is_training():
            self._show_running(trial, EXTERNAL)
            return
        del self._external[slot]
        status = read_status(self._root.run(trial))
        if status.state not in FINAL_STATES and not self._signals:
            self._start(slot, trial)
        else:
            self._end(trial, status)

    def _fill(self, slot: int) -> None:
        """Starts the next trial in the slot if the slot is free and trials are left.

        If another process already trains the trial, the slot waits for this process instead.
        """
        if slot in self._running or slot in self._external or self._all_taken or self._signals:
            return
        trial = next(self._trials, None)
        if trial is None:
            self._all_taken = True
        elif self._root.run(trial).is_training():
            self._external[slot] = trial
            self._show_running(trial, EXTERNAL)
        else:
            self._start(slot, trial)
            self._show_running(trial)

    def _start(self, slot: int, trial: sweep.Trial) -> None:
        process = start_training(self._command_of(trial), self._slots[slot], self._root.log(trial))
        self._running[slot] = (trial, process)
        # A signal that arrived while the process was starting was not forwarded to it, because it was not in `_running` yet.
        if self._signals:
            process.send_signal(self._signals[0])

    def _end(self, trial: sweep.Trial, status: TrialStatus) -> None:
        self._display.set(trial, status)
        self._on_end(trial, status)

    def _show_running(self, trial: sweep.Trial, message: str = "") -> None:
        self._display.set(trial, read_status(self._root.run(trial))._replace(state="running", message=message))


class Display:
    """Shows the status of trials.

    On a terminal, the display is a live table. Without a terminal, the display prints a line when a trial starts or ends, and
    every minute a line for each running trial.
    """

    def __init__(self, total: int):
        """`total` is the number of trials in the sweep."""
        self._total = total
        self._statuses: dict[str, TrialStatus] = {}
        self._console = Console()
        self._live = None
        self._reported = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether the display is a live table. The table does not show why a trial failed."""
        return self._live is not None

    def set(self, trial: sweep.Trial, status: TrialStatus) -> None:
        """Updates the status of a trial. Without a live table, prints the status if the state has changed."""
        before = self._statuses.get(trial.name)
        self._statuses[trial.name] = status
        if not self._live and (before is None or before.state != status.state):
            self._print(trial.name, status)

    def set_silently(self, trial: sweep.Trial, status: TrialStatus) -> None:
        """Updates the status of a trial without printing it."""
        self._statuses[trial.name] = status

    def refresh(self) -> None:
        """Without a live table, prints the running trials once a minute."""
        if not self._live and time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            for name, status in self._statuses.items():
                if status.state == "running":
                    self._print(name, status)

    def statuses(self) -> dict[str, TrialStatus]:
        """Trial name → status, for all trials whose status was set."""
        return dict(self._statuses)

    def _print(self, name: str, status: TrialStatus) -> None:
        parts = [f"{status.state:<8} {name}"]
        if status.step:
            parts.append(f"step {status.step}" + (f"/{status.total_steps}" if status.total_steps else ""))
        if status.best:
            parts.append(measures.best_in_words(status.best))
        if status.state == "running" and status.seconds_left is not None:
            parts.append(f"{progress.duration(status.seconds_left)} left")
        if status.message:
            parts.append(status.message)
        if status.state in FINAL_STATES:
            parts.append(f"({sum(other.state in FINAL_STATES for other in self._statuses.values())} of {self._total} ended)")
        print("  ".join(parts), flush=True)

    def _table(self) -> Table:
        """The table of trials.

        Running trials come first, then queued trials, then failed and stopped trials, then all other trials. Trials with the
        same state are sorted by their best loss. The table shows only as many trials as fit on the screen.
        """
        order = {"running": 0, "queued": 1, "failed": 2, "stopped": 2, "diverged": 3, "done": 4, "pruned": 5}
        rows = sorted(
            self._statuses.items(),
            key=lambda item: (order.get(item[1].state, 6), item[1].best["nats"] if item[1].best else float("inf")),
        )
        max_rows = max(3, self._console.height - 6)
        hidden = len(rows) - max_rows
        table = Table(box=None, pad_edge=False, caption_justify="left")
        table.caption = self._caption() + (f"; {hidden} more not shown" if hidden > 0 else "")
        table.add_column("trial", overflow="fold")
        table.add_column("state", no_wrap=True)
        for name in ("step", "best ppl", "chars/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, status in rows[:max_rows]:
            table.add_row(*_table_row(name, status))
        return table

    def _caption(self) -> str:
        counts: dict[str, int] = {}
        for status in self._statuses.values():
            counts[status.state] = counts.get(status.state, 0) + 1
        text = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        waiting = self._total - len(self._statuses)
        return text + (f", {waiting} waiting" if waiting > 0 else "")


def _table_row(name: str, status: TrialStatus) -> list[str]:
    colours = {"running": "cyan", "done": "green", "diverged": "magenta", "failed": "red", "stopped": "yellow"}
    colour = colours.get(status.state, "default")
    is_running = status.state == "running"
    return [
        name,
        f"[{colour}]{status.state}[/{colour}]",
        f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step or ""),
        f"{measures.perplexity(status.best['nats']):.4f}" if status.best else "",
        f"{status.chars_per_second:,.0f}" if status.chars_per_second else "",
        progress.duration(status.seconds_left) if is_running and status.seconds_left is not None else "",
    ]


def _status_after_exit(root: sweep.Root, trial: sweep.Trial, code: int, was_pruned: bool) -> TrialStatus:
    """The status of a trial whose process has exited with `code`. `code` is -n if signal n killed the process."""
    status = read_status(root.run(trial))
    if status.state in FINAL_STATES:
        return status
    if was_pruned:
        return status._replace(state="pruned")
    if code < 0:
        return status._replace(state="stopped", message=f"killed by {signal.Signals(-code).name}")
    if code in STOPPED_CODES:
        return status._replace(state="stopped")
    return status._replace(state="failed", message=failure_message(root.log(trial)) or f"exit status {code}")


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


@contextlib.contextmanager
def _forward_signals(processes: Callable[[], list[subprocess.Popen]]) -> Iterator[list[int]]:
    """Forwards the first SIGINT or SIGTERM to the processes. A second signal kills the processes.

    If the launcher itself fails, it sends SIGTERM to the processes, so that they save their state. It then waits until all
    processes have ended.

    Yields:
      A list to which the number of each received signal is appended.
    """
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        del frame
        for process in processes():
            process.send_signal(signal.SIGKILL if received else number)
        received.append(number)

    previous_handlers = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except BaseException:
        for process in processes():
            process.send_signal(signal.SIGTERM)
        for process in processes():
            process.wait()
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
