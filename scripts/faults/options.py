"""Kills runs with other cells, averaged weights and regularisers by `kill -9`, as the fault `kill` does.

The runs are of each framing with each cell of `runs.CELLS`. The kills of a framing are divided among the cells. The killed
trainings are forks; see `forks`.

Then dynamic evaluations of the resumed runs are killed. The weights of a model change during a dynamic evaluation, but its run
directory must not. The result of a dynamic evaluation that ends must equal that of the run that was never killed.
"""

import contextlib
import signal
import subprocess
from collections.abc import Iterator

from faults import checks, forks, kill
from faults.runs import CELLS, FRAMINGS, Result, Runs, command, finish, start

EVALUATIONS = 4  # kills of dynamic evaluations for each cell
SECONDS = 8.0  # about the duration of a dynamic evaluation
KINDS = [f"{framing}_{cell}" for framing in FRAMINGS for cell in CELLS]


def results(runs: Runs) -> Iterator[Result]:
    kills_each = -(-runs.kills // len(CELLS))
    with forks.forking() as start:
        yield from runs.of_each(KINDS, lambda runs, kind: kill.kill(runs, kind, kills_each, start))
    yield from runs.of_each(CELLS, _evaluate)


def _evaluate(runs: Runs, cell: str) -> Result:
    kind = f"stream_{cell}"
    rng, straight, failures, killed = runs.random("dynamic", cell), runs.straight(kind), [], 0
    workdir = kill.killed_run(runs, kind)
    for _ in range(EVALUATIONS):
        process = start(_dynamic(workdir))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, SECONDS))
        process.kill()
        finish(process)
        killed += process.returncode == -signal.SIGKILL
    expected, found = (checks.outcome(_dynamic(path)) for path in (straight, workdir))
    if found[0] or found[1].replace(str(workdir), str(straight)) != expected[1]:
        failures.append(f"{workdir}: dynamic evaluation: {found}, not {expected}")
    failures += checks.survival(workdir, straight)
    return Result(f"kill -9 during evaluate --dynamic, {cell}", killed, failures)


def _dynamic(workdir: object) -> list[str]:
    return command("evaluate", f"--workdir={workdir}", "--dynamic", "--checkpoint=latest")
