"""Damages the files of a run, and then runs every program on the run.

A run begins with the parameters of another run. It is stopped, changed with --extend, and stopped again. It then has every
file that a run can have. This stopped run is copied many times. In each copy, one file is damaged in one way: it is truncated,
emptied or deleted, or one bit of it is flipped. The damaged file is a text file of the run, or a file of its latest or best
checkpoint. In further copies, a whole checkpoint is deleted. Samples and TensorBoard files are not damaged, because no program
reads these files and they have no seal (a digest that reveals damage).
"""

import concurrent.futures
import functools
import json
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

from faults import checks
from faults.runs import HARMS, STEPS, TEXTS, Result, Runs, finish, harm, readers, saved_step, start, succeed

WAYS = {"resume": "damaged file, then resume", "read": "damaged file, then evaluate, sample, compare"}


def results(runs: Runs) -> list[Result]:
    stopped, straight = runs.folder / "stopped" / "run", runs.folder / "damage_straight" / "run"
    child = {"train.init_from": runs.straight("stream")}
    _stop_at(runs.train(stopped, "stream", **child), stopped, 60)
    train = functools.partial(_longer, runs, child)
    _stop_at(train(stopped), stopped, 120)
    shutil.copytree(stopped, straight)
    succeed(train(straight))
    expected = [checks.outcome(command)[1] for command in readers(stopped)]
    steps = {saved_step(stopped), json.loads((stopped / "status.json").read_text())["best"]["step"]}
    checkpoints = [pathlib.Path("checkpoints", str(step)) for step in steps]
    files = [pathlib.Path(name) for name in (*TEXTS, "evaluations.jsonl", "parent.json", "extensions.json")]
    for checkpoint in checkpoints:
        files += [path.relative_to(stopped) for path in (stopped / checkpoint).rglob("*") if path.is_file()]
    cases = [(name, how) for name in files for how in HARMS] + [(checkpoint, "deleted") for checkpoint in checkpoints]

    def one(case: tuple[pathlib.Path, str]) -> dict[str, list[list[str]]]:
        return _harm_and_run(runs, train, stopped, straight, expected, *case)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tried = list(pool.map(one, cases))
    table = []
    for way, fault in WAYS.items():
        commands = [failures for case in tried for failures in case[way]]
        table.append(Result(fault, len(commands), [line for failures in commands for line in failures]))
    return table


def _longer(runs: Runs, child: dict, workdir: pathlib.Path) -> list[str]:
    """The command that changes the run with --extend. The same command resumes the changed run."""
    changes = {"train.steps": STEPS + 50, "optim.schedule": "constant"}
    return [*runs.train(workdir, "stream", **child, **changes), "--extend"]


def _stop_at(command: list[str], workdir: pathlib.Path, step: int) -> None:
    """Starts a training, and stops it as soon as the checkpoint of this step exists."""
    process = start(command)
    while not (workdir / "checkpoints" / str(step)).exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    finish(process)


def _harm_and_run(
    runs: Runs,
    train: Callable[[pathlib.Path], list[str]],
    stopped: pathlib.Path,
    straight: pathlib.Path,
    expected: list[str],
    name: pathlib.Path,
    how: str,
) -> dict[str, list[list[str]]]:
    """Damages one file in a copy of the stopped run, and runs every command on the copy.

    Args:
      train: function from the directory of a copy to the command that resumes this copy.
      straight: a run without any fault, for comparison.
      expected: the output of each command of `readers` on the run that is not damaged.
      name: the path of the damaged file, or of a deleted checkpoint, in the run directory.
      how: one of HARMS.

    Returns:
      A dict with the keys of WAYS. Its values are lists with one entry for each command: the list of failures of this command.
    """
    workdir = runs.folder / "damage" / f"{str(name).replace('/', '_')}_{how}" / "run"
    shutil.copytree(stopped, workdir)
    rng = runs.random(name, how)
    harm(workdir / name, how, rng.random(), rng.randrange(8))
    # An error sentence or a note about the damage must contain one of these words.
    words = (name.name,) if len(name.parts) == 1 else ("/".join(name.parts[:2]), "--checkpoint=latest", "--checkpoint=best")
    failures = {
        "read": [
            _read(command, words, f"{command[1]} with {name} {how}", right, (str(workdir), str(stopped)))
            for command, right in zip(readers(workdir), expected, strict=True)
        ],
        "resume": [_resume(train(workdir), workdir, straight, words, f"train with {name} {how}")],
    }
    if not any(line for commands in failures.values() for line in commands):
        shutil.rmtree(workdir)
    return failures


def _read(command: list[str], words: tuple[str, ...], what: str, expected: str, renamed: tuple[str, str]) -> list[str]:
    """Runs a command that reads the damaged run. Returns one line if the command fails the test, else an empty list.

    The command passes if it prints the expected output, or if it prints another output with a note about the damage. It also
    passes if it ends with one error sentence about the damage.

    Args:
      renamed: the paths of the damaged run and of the stopped run. The output has the first path, `expected` has the second.
    """
    status, output, errors = checks.outcome(command)
    if "Traceback" in errors:
        return [f"{what}: {errors[-400:]}"]
    if status:
        return checks.refusal(status, errors, words, what)
    same = output.replace(*renamed) == expected
    return [] if same or checks.noted(errors, words) else [f"{what}: the output differs without a note: {output[:300]}"]


def _resume(command: list[str], workdir: pathlib.Path, straight: pathlib.Path, words: tuple[str, ...], what: str) -> list[str]:
    """Resumes the damaged run. Returns one line if the training fails the test, else an empty list.

    The training passes if its result equals the result of `straight`, or if it ends with one error sentence about the damage.
    With a note about the damage, rows of metrics may be missing and the status may differ, but all other rows must be right.
    """
    status, _, errors = checks.outcome(command)
    if status:
        return checks.refusal(status, errors, words, what)
    found = checks.differences(workdir, straight)
    all_rows = checks.read_rows(straight)
    if checks.noted(errors, words) and all(row in all_rows for row in checks.read_rows(workdir)):
        found = [difference for difference in found if difference not in ("rows of metrics", "status")]
    return [f"{what}: {found} {errors[-300:]}"] if found else []
