"""Kills runs that begin with the parameters of another run, and runs that --extend lengthens.

Each run is killed by `kill -9` at random moments and started again by the same command until it is done. Further runs are
killed while they write their first files and the checkpoint of step 0, or while --extend writes its change to a file.

Also checks that --extend refuses changes that are not allowed, and that it then changes no file.
"""

import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from faults import checks
from faults.runs import MOMENTS, STEPS, Result, Runs, finish, make_text, saved_step, start, succeed, wait_for_moment

KILLS = 12  # number of kills for each of the two kinds of run
BEGINNINGS = 6  # number of runs that are killed once at their beginning, for each of the two kinds of run
SECONDS = 6.0  # about the duration of a run
# Kind of run → the file whose writing a kill waits for, and the longest time in seconds from this moment to the kill. In about
# this time, the run writes its first files and the checkpoint of step 0, or --extend writes its change.
WRITTEN = {"init_from": ("vocab.json", 0.3), "extend": ("extensions.json", 0.01)}
LONGER = {"train.steps": STEPS + 150, "optim.schedule": "step", "optim.decay_epochs": 1, "optim.decay_after": 2}
# Changes that --extend must refuse, each with the key that the error must name.
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

    def begin(workdir: pathlib.Path) -> list[str]:
        return runs.train(workdir, "stream", **child)

    def extend(workdir: pathlib.Path) -> list[str]:
        return [*runs.train(workdir, "stream", **LONGER), "--extend"]

    return [
        _kill(runs, "init_from", begin, lambda workdir: None),
        _kill_at_the_beginning(runs, "init_from", begin, lambda workdir: None),
        _kill(runs, "extend", extend, copied),
        _kill_at_the_beginning(runs, "extend", extend, copied),
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


def _kill_at_the_beginning(
    runs: Runs,
    name: str,
    command: Callable[[pathlib.Path], list[str]],
    prepare: Callable[[pathlib.Path], None],
) -> Result:
    """Kills each run once, at a random time while the run writes its first files, or while --extend writes its change."""
    rng, failures, unsaved = runs.random(name, "beginning"), [], 0
    file, seconds = WRITTEN[name]
    for number in range(BEGINNINGS):
        workdir = runs.folder / f"{name}_beginning_{number}"
        prepare(workdir)
        process = start(command(workdir))
        _wait_for_file(process, workdir, file)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        finish(process)
        unsaved += not list(workdir.glob("checkpoints/[0-9]*[0-9]"))
        succeed(command(workdir))
        failures += checks.survival(workdir, runs.folder / f"{name}_straight")
    note = f"{unsaved} before the checkpoint of step 0" if name == "init_from" else "while the change is written"
    return Result(f"kill -9 at the beginning, {name}", BEGINNINGS, failures, note)


def _wait_for_file(process: subprocess.Popen, workdir: pathlib.Path, name: str) -> None:
    """Waits until the process has begun to write a file, or until it has ended.

    The file is first written under a temporary name, which begins with `name`.
    """
    while process.poll() is None and not list(workdir.glob(f"{name}*")):
        time.sleep(0.0002)


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
