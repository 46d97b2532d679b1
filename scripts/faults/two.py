"""Tries faults that need more than one process.

- While a training runs, a second training is started in the same directory. The second training must be refused, even if the
  file `lock` of the directory has been deleted.
- While a training runs, other programs read its run directory. These programs must not fail.
- One of two processes that train together is killed. The other process must end.
"""

import pathlib
import signal
import subprocess
import time

from faults import checks
from faults.runs import Result, Runs, finish, free_port, readers, start, wait_for_moment

TRIES = 3  # trainings in whose directory a second training is started
PAIRS = 4  # pairs of processes that train together
PATIENCE = 60  # seconds within which the surviving process must end


def results(runs: Runs) -> list[Result]:
    rng, straight = runs.random("two"), runs.straight("stream")
    second_failures, unlocked_failures, reader_failures, tried, unlocked, read = [], [], [], 0, 0, 0
    for number in range(TRIES):
        workdir = runs.folder / f"two_{number}"
        command = runs.train(workdir, "stream", **{"train.checkpoint_every": 3})
        process = start(command)
        wait_for_moment(process, workdir, "row", rng, 60.0)
        process.send_signal(signal.SIGSTOP)  # so that it does not end before the others have begun
        status, _, errors = checks.outcome(command)
        if process.poll() is None:
            tried += 1
            second_failures += checks.refusal(status, errors, ("is in use by process",), "a second training")
        (workdir / "lock").unlink()
        status, _, errors = checks.outcome(command)
        if process.poll() is None:
            unlocked += 1
            words = ("is in use by another process",)
            unlocked_failures += checks.refusal(status, errors, words, "a second training without the file `lock`")
        process.send_signal(signal.SIGCONT)
        for reader in readers(workdir):
            status, _, errors = checks.outcome(reader)
            read += 1
            if status or "can't be read" in errors or "Traceback" in errors:
                reader_failures.append(f"{reader[1]} during a training: exit status {status}: {errors[-300:]}")
        finish(process)
        # Only rows and parameters are compared with the run without any fault (`straight`). The files may differ, because this
        # run saves checkpoints more often than that run.
        if {"rows of metrics", "parameters"} & set(found := checks.differences(workdir, straight)):
            second_failures.append(f"{workdir}: {found}")
    return [
        Result("second training in the same directory", tried, second_failures),
        Result("second training after the file `lock` was deleted", unlocked, unlocked_failures),
        Result("evaluate, sample, compare beside a training", read, reader_failures),
        _one_of_two(runs),
    ]


def _one_of_two(runs: Runs) -> Result:
    """Kills one of two processes that train together.

    The other process must end. When both processes are started again, the run must resume, and its result must not differ
    from the run without a kill.
    """
    rng, failures, slowest, straight = runs.random("pair"), [], 0.0, runs.folder / "pair_straight"
    for process in _pair(runs, straight):
        finish(process)
    for number in range(PAIRS):
        workdir, killed = runs.folder / f"pair_{number}", number % 2
        processes = _pair(runs, workdir)
        wait_for_moment(processes[0], workdir, "row", rng, 60.0)
        processes[killed].kill()
        begin = time.monotonic()
        other = processes[1 - killed]
        _, errors = finish(other)
        seconds = time.monotonic() - begin
        slowest = max(slowest, seconds)
        finish(processes[killed])
        expected = ["error: another process of this training has gone"]
        if killed == 0:  # JAX may print an error before charlm does
            expected.append("JAX distributed service detected fatal errors")
        if other.returncode == 0 or not any(line in errors for line in expected) or seconds > PATIENCE:
            failures.append(f"{workdir}: process {killed} killed: {errors[-300:]}")
        for process in _pair(runs, workdir):
            finish(process)
        failures += checks.survival(workdir, straight)
    return Result("one of two processes killed", PAIRS, failures, f"the other ended within {slowest:.1f} s")


def _pair(runs: Runs, workdir: pathlib.Path) -> list[subprocess.Popen]:
    command = [*runs.train(workdir, "stream"), f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [start([*command, f"--process_id={i}"]) for i in range(2)]
