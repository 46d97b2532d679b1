"""A second training in the same directory, readers beside a training, and the death of one of two processes."""

import pathlib
import subprocess
import time

from faults import checks
from faults.runs import Result, Runs, finish, free_port, readers, start, wait_for_moment

TRIES = 3
PAIRS = 4
PATIENCE = 60  # seconds within which the other process must end


def results(runs: Runs) -> list[Result]:
    rng, straight = runs.random("two"), runs.straight("stream")
    second_failures, reader_failures, tried, read = [], [], 0, 0
    for number in range(TRIES):
        workdir = runs.folder / f"two_{number}"
        command = runs.train(workdir, "stream", **{"train.checkpoint_every": 3})
        process = start(command)
        wait_for_moment(process, workdir, "row", rng, 60.0)
        second = start(command)
        for reader in readers(workdir):
            status, _, errors = checks.outcome(reader)
            read += 1
            if status or "can't be read" in errors or "Traceback" in errors:
                reader_failures.append(f"{reader[1]} beside a training: exit status {status}: {errors[-300:]}")
        _, errors = finish(second)
        if second.returncode:  # else the first had ended before
            tried += 1
            second_failures += checks.refusal(second.returncode, errors, ("is in use by process",), "a second training")
        finish(process)
        # The files differ, since the checkpoints come more often.
        if {"rows of metrics", "parameters"} & set(found := checks.differences(workdir, straight)):
            second_failures.append(f"{workdir}: {found}")
    return [
        Result("second training in the same directory", tried, second_failures),
        Result("evaluate, sample, compare beside a training", read, reader_failures),
        _one_of_two(runs),
    ]


def _one_of_two(runs: Runs) -> Result:
    """Two processes train together and one is killed. The other must end, and both together must resume."""
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
        right = ["error: another process of this training has gone"]
        if killed == 0:  # JAX's own message may come first
            right.append("JAX distributed service detected fatal errors")
        if other.returncode == 0 or not any(line in errors for line in right) or seconds > PATIENCE:
            failures.append(f"{workdir}: process {killed} killed: {errors[-300:]}")
        for process in _pair(runs, workdir):
            finish(process)
        failures += checks.survival(workdir, straight)
    return Result("one of two processes killed", PAIRS, failures, f"the other ended within {slowest:.1f} s")


def _pair(runs: Runs, workdir: pathlib.Path) -> list[subprocess.Popen]:
    command = [*runs.train(workdir, "stream"), f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [start([*command, f"--process_id={i}"]) for i in range(2)]
