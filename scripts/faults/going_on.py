"""Kills runs that begin with the parameters of another run, and runs that --extend lengthens. Also tries changes to refuse.

Each run is killed by `kill -9` at random moments and started again by the same command until it is done.
"""

import pathlib
import shutil
import signal
from collections.abc import Callable

from faults import checks
from faults.runs import MOMENTS, STEPS, Result, Runs, finish, make_text, saved_step, start, succeed, wait_for_moment

KILLS = 12  # for each kind of run
SECONDS = 6.0  # about the duration of a run
LONGER = {"train.steps": STEPS + 150, "optim.schedule": "step", "optim.decay_epochs": 1, "optim.decay_after": 2}
# Changes that --extend must refuse, and the key that the error must name.
REFUSED = (
    ({"model.hidden": 32, "train.steps": STEPS + 10}, "model.hidden"),
    ({"batch.length": 8, "train.steps": STEPS + 10}, "batch.length"),
    ({"vocab.unknown": True, "train.steps": STEPS + 10}, "vocab.unknown"),
    ({"train.steps": STEPS - 10}, "train.steps"),
    ({"train.steps": STEPS + 10, "sample.prompt": "%"}, "sample.prompt"),
)


def results(runs: Runs) -> list[Result]:
    done, corpus = runs.straight("stream"), runs.folder / "other_symbols.txt"
    corpus.write_text(make_text(20_000).translate(str.maketrans("ab", "ÄB")), encoding="utf-8")
    child = {"train.init_from": done, "corpus.path": corpus, "vocab.source": "corpus"}

    def copied(workdir: pathlib.Path) -> None:
        shutil.copytree(done, workdir)

    return [
        _kill(runs, "init_from", lambda workdir: runs.train(workdir, "stream", **child), lambda workdir: None),
        _kill(runs, "extend", lambda workdir: [*runs.train(workdir, "stream", **LONGER), "--extend"], copied),
        _refuse(runs, done),
    ]


def _kill(
    runs: Runs,
    name: str,
    command: Callable[[pathlib.Path], list[str]],
    prepare: Callable[[pathlib.Path], None],
) -> Result:
    rng, straight, failures = runs.random(name), runs.folder / f"{name}_straight", []
    prepare(straight)
    succeed(command(straight))
    killed, number = 0, 0
    while killed < KILLS:
        workdir = runs.folder / f"{name}_{number}"
        prepare(workdir)
        status = -signal.SIGKILL
        while status == -signal.SIGKILL and killed < KILLS:
            saved = saved_step(workdir)
            process = start(command(workdir))
            wait_for_moment(process, workdir, rng.choice(MOMENTS), rng, SECONDS)
            process.kill()
            output, errors = finish(process)
            failures += checks.resumed_at(workdir, saved, output)
            status, killed = process.returncode, killed + (process.returncode == -signal.SIGKILL)
            if status not in (0, -signal.SIGKILL):
                failures.append(f"{workdir}: exit status {status}: {errors[-300:]}")
                return Result(f"kill -9, {name}", killed, failures)
        succeed(command(workdir))
        failures += checks.survival(workdir, straight)
        number += 1
    return Result(f"kill -9, {name}", killed, failures, f"{number} runs")


def _refuse(runs: Runs, done: pathlib.Path) -> Result:
    failures = []
    for changes, key in REFUSED:
        before = _contents(done)
        process = start([*runs.train(done, "stream", **changes), "--extend"])
        _, errors = finish(process)
        failures += checks.refusal(process.returncode, errors, (key,), f"--extend with {changes}")
        if _contents(done) != before:
            failures.append(f"{done}: the refused --extend with {changes} changed a file")
    return Result("refused --extend", len(REFUSED), failures, "no byte of the run may change")


def _contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
