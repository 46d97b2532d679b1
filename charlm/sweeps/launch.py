"""Runs the trials of a sweep as processes on this machine."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from charlm.hardware import devices
from charlm.sweeps import sweep
from charlm.sweeps.display import Display
from charlm.sweeps.status import FINAL_STATES, TrialStatus, failure_message, read_status

POLL_SECONDS = 0.2
EXTERNAL = "in another process"
STOPPED_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a training that saved its state and stopped


class Job(NamedTuple):
    """A process that trains one trial, or a pack of trials.

    Attributes:
      trials: the trials.
      command: the command of the process.
      log: the file to which the output of the process is appended. The output of a trial of a pack goes to `Root.log`.
    """

    trials: tuple[sweep.Trial, ...]
    command: list[str]
    log: pathlib.Path


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
    env = {**os.environ, **devices.huge_pages(), "PYTHONUNBUFFERED": "1"}
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
    jobs: Iterator[Job],
    slots: list[Slot],
    display: Display,
    on_end: Callable[[sweep.Trial, TrialStatus], None] = lambda trial, status: None,
    should_stop: Callable[[sweep.Trial], bool] = lambda trial: False,
) -> int:
    """Runs trials on this machine. Each slot runs one job at a time.

    If a launcher was killed, the trainings that it started may still be running. If one of these trainings already trains a
    trial, this launcher does not start the job of the trial, but waits until the training ends.

    Args:
      root: folder of the sweep.
      jobs: an iterator over the jobs. The launcher takes the next job only when a slot is free.
      slots: the parts of the machine.
      display: shows the trials.
      on_end: called with a trial and its status when the trial ends.
      should_stop: called repeatedly for each running trial. True stops the job of the trial and makes its state `pruned`.

    Returns:
      The number of the signal that stopped the launcher, or 0.
    """
    return _LocalLauncher(root, jobs, slots, display, on_end, should_stop).run()


class _LocalLauncher:
    """The state of `run_local`."""

    def __init__(
        self,
        root: sweep.Root,
        jobs: Iterator[Job],
        slots: list[Slot],
        display: Display,
        on_end: Callable[[sweep.Trial, TrialStatus], None],
        should_stop: Callable[[sweep.Trial], bool],
    ):
        self._root, self._jobs, self._slots, self._display = root, jobs, slots, display
        self._on_end, self._should_stop = on_end, should_stop
        self._running: dict[int, tuple[Job, subprocess.Popen]] = {}  # index of the slot → job and its process
        self._external: dict[int, Job] = {}  # index of the slot → job with a trial that another process trains
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
        job, process = self._running[slot]
        if process.poll() is not None:
            del self._running[slot]
            # A training exits with status 2 if another process holds the lock of the run directory. This other process may be
            # a training that a killed launcher has started.
            if process.returncode == 2 and self._is_training(job):
                self._external[slot] = job
                return
            for trial in job.trials:
                was_pruned = trial.name in self._pruned
                self._end(trial, _status_after_exit(self._root, trial, job.log, process.returncode, was_pruned))
            return
        for trial in job.trials:
            if not self._signals and trial.name not in self._pruned and self._should_stop(trial):
                self._pruned.add(trial.name)
                process.send_signal(signal.SIGTERM)
            else:
                self._show_running(trial)

    def _poll_external(self, slot: int) -> None:
        job = self._external[slot]
        if self._is_training(job):
            for trial in job.trials:
                self._show_running(trial, EXTERNAL)
            return
        del self._external[slot]
        statuses = [read_status(self._root.run(trial)) for trial in job.trials]
        if any(status.state not in FINAL_STATES for status in statuses) and not self._signals:
            self._start(slot, job)
        else:
            for trial, status in zip(job.trials, statuses, strict=True):
                self._end(trial, status)

    def _fill(self, slot: int) -> None:
        """Starts the next job in the slot if the slot is free and jobs are left.

        If another process already trains a trial of the job, the slot waits for this process instead.
        """
        if slot in self._running or slot in self._external or self._all_taken or self._signals:
            return
        job = next(self._jobs, None)
        if job is None:
            self._all_taken = True
            return
        is_external = self._is_training(job)
        if is_external:
            self._external[slot] = job
        else:
            self._start(slot, job)
        for trial in job.trials:
            self._show_running(trial, EXTERNAL if is_external else "")

    def _is_training(self, job: Job) -> bool:
        """Whether a process is training a trial of this job now."""
        return any(self._root.run(trial).is_training() for trial in job.trials)

    def _start(self, slot: int, job: Job) -> None:
        process = start_training(job.command, self._slots[slot], job.log)
        self._running[slot] = (job, process)
        # A signal that arrived while the process was starting was not forwarded to it, because it was not in `_running` yet.
        if self._signals:
            process.send_signal(self._signals[0])

    def _end(self, trial: sweep.Trial, status: TrialStatus) -> None:
        self._display.set(trial, status)
        self._on_end(trial, status)

    def _show_running(self, trial: sweep.Trial, message: str = "") -> None:
        status = read_status(self._root.run(trial))
        if status.state not in ("done", "diverged"):  # a trial of a pack may end before the other trials
            status = status._replace(state="running", message=message)
        self._display.set(trial, status)


def _status_after_exit(root: sweep.Root, trial: sweep.Trial, log: pathlib.Path, code: int, was_pruned: bool) -> TrialStatus:
    """The status of a trial whose process has exited with `code`. `code` is -n if signal n killed the process.

    Args:
      log: the output of the process.
    """
    status = read_status(root.run(trial))
    if status.state in FINAL_STATES:
        return status
    if was_pruned:
        return status._replace(state="pruned")
    if code < 0:
        return status._replace(state="stopped", message=f"killed by {signal.Signals(-code).name}")
    if code in STOPPED_CODES:
        return status._replace(state="stopped")
    return status._replace(state="failed", message=failure_message(root.log(trial), log) or f"exit status {code}")


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
