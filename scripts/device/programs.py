"""Starts programs of charlm as a user would, and reads what they write."""

import json
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from faults import runs
from faults.checks import read_rows
from faults.runs import command

from charlm.errors import Failure

ROOT = runs.ROOT
ON_CPU = {"JAX_PLATFORMS": "cpu"}


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """Runs a program, and returns its standard output. Raises a Failure if it fails or does not end in time."""
    name, seconds = pathlib.Path(command[1]).name, max(0.0, seconds)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **(environment or {})}
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{name} did not end within {seconds:.0f} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["it printed nothing"]
        raise Failure(f"{name} ended with status {done.returncode}: {' '.join(lines[-1].split())[:300]}")
    return done.stdout


def train(config: str, workdir: pathlib.Path, overrides: Mapping[str, Any]) -> list[str]:
    """The command that trains the recipe `configs/CONFIG.py`."""
    file = ROOT / "configs" / f"{config}.py"
    return command("train", f"--config={file}", f"--workdir={workdir}", *runs.as_flags(dict(overrides)))


def evaluate(workdir: pathlib.Path, seconds: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Scores the latest checkpoint of a run on its validation split."""
    flags = (f"--workdir={workdir}", "--split=validation", "--checkpoint=latest")
    return json.loads(run(command("evaluate", *flags), seconds, environment).splitlines()[-1])


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run, without times."""
    return read_rows(workdir)


def chars_per_second(workdir: pathlib.Path) -> float:
    """The median of the speeds in the rows of a run."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = sorted(row["chars_per_second"] for row in map(json.loads, lines) if row["split"] == "train")
    return speeds[len(speeds) // 2]


def made_up_text(folder: str, chars: int) -> pathlib.Path:
    """A file with a text of made-up words, which is the same on every machine."""
    file = pathlib.Path(folder) / "made_up.txt"
    if not file.exists():
        file.write_text(runs.make_text(chars), encoding="utf-8")
    return file
