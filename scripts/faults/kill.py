"""Kills runs by `kill -9` at random moments and resumes them.

Each run is killed and resumed again and again until the run is done. New runs are started until each framing has had the
number of kills in --kills.
"""

import pathlib
import signal
import time
from collections.abc import Iterator

from faults import checks
from faults.runs import MOMENTS, STEPS, Result, Runs, Start, finish, saved_step, start, succeed, wait_for_moment


def results(runs: Runs) -> Iterator[Result]:
    return runs.of_each_framing(lambda runs, framing: kill(runs, framing, runs.kills))


def killed_run(runs: Runs, kind: str) -> pathlib.Path:
    """The directory of the first run that `kill` killed and resumed."""
    return runs.folder / f"kill_{kind}_0"


def kill(runs: Runs, kind: str, kills: int, start: Start = start) -> Result:
    """Kills runs of one kind until there have been this number of kills. `start` starts the trainings."""
    rng, straight, failures = runs.random(kind), runs.straight(kind, start), []
    begin = time.monotonic()
    succeed(runs.train(runs.folder / f"timed_{kind}", kind), start)
    seconds = time.monotonic() - begin
    killed, kills_of_run, number = 0, 0, 0
    while killed < kills or kills_of_run:
        workdir = runs.folder / f"kill_{kind}_{number}"
        if killed >= kills:
            succeed(runs.train(workdir, kind), start)
        else:
            saved = saved_step(workdir)
            process = start(runs.train(workdir, kind))
            wait_for_moment(process, workdir, rng.choice(MOMENTS), rng, seconds)
            process.kill()
            output, errors = finish(process)
            failures += checks.resumed_at(workdir, saved, output)
            if process.returncode == -signal.SIGKILL:
                killed, kills_of_run = killed + 1, kills_of_run + 1
                continue
            if process.returncode:
                failures.append(f"{workdir}: exit status {process.returncode}: {errors}")
                break
        failures += checks.survival(workdir, straight) * max(1, kills_of_run)  # a failure counts once per kill
        number, kills_of_run = number + 1, 0
    return Result(f"kill -9, {kind.replace('_', ', ')}", killed, failures, f"{number} runs of {STEPS} steps")
