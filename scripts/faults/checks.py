"""Compares a run with a run without any fault, and checks that a program ended with one expected error sentence."""

import json
import pathlib
import re

from faults.runs import finish, start

TIMES = ("seconds", "chars_per_second")  # columns of metrics that differ even between runs of the same training


def read_rows(workdir: pathlib.Path) -> list[dict]:
    """The rows of a run's metrics, without times and without seals, which are digests of the rows."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in (*TIMES, "seal")} for line in lines]


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """Lists what is not bit-for-bit equal in a run and a run without any fault. An empty list means that the run survived.

    Args:
      straight: the run without any fault.
    """
    import jax
    import numpy as np

    from charlm.inference import restore

    found = []
    if read_rows(workdir) != read_rows(straight):
        found.append("rows of metrics")
    if different := _names(workdir) ^ _names(straight):
        found.append(f"files: {sorted(different)}")
    for file in (straight / "samples").iterdir():
        sample = workdir / "samples" / file.name
        if not sample.exists() or sample.read_text(encoding="utf-8") != file.read_text(encoding="utf-8"):
            found.append(f"sample {file.name}")
    if json.loads((workdir / "status.json").read_text()) != json.loads((straight / "status.json").read_text()):
        found.append("status")
    left, right = (jax.tree.leaves(restore.load(str(path), "latest").params) for path in (workdir, straight))
    if not all(np.array_equal(*pair) for pair in zip(left, right, strict=True)):
        found.append("parameters")
    return found


def survival(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """Returns a list with one line that names the run and its differences. Returns an empty list if nothing differs."""
    found = differences(workdir, straight)
    return [f"{workdir}: {', '.join(found)}"] if found else []


def _names(workdir: pathlib.Path) -> set[str]:
    """The names of a run's files.

    The names of array files and of TensorBoard files differ from run to run. Instead of the name of an array file, the name of
    its folder is returned. Instead of the name of a TensorBoard file, `events` is returned.
    """
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    names = {re.sub(r"(^events|checkpoints/\d+/\w+/).*", r"\1", name) for name in names}
    return {name for name in names if name != "evaluations.jsonl" and not name.startswith("unreadable/")}


def outcome(command: list[str]) -> tuple[int, str, str]:
    """Runs a command. Returns its exit status, its standard output without times, and its standard error."""
    process = start(command)
    output, errors = finish(process)
    return process.returncode, re.sub(r'"(seconds|chars_per_second|time|speed)": [^,}]*', "", output), errors


def refusal(status: int, errors: str, words: tuple[str, ...], what: str) -> list[str]:
    """Checks that a program ended with one error sentence that contains one of the words.

    Returns:
      An empty list if the program ended in this way. Otherwise a list with one line that says how the program ended.
    """
    sentences = [line for line in errors.strip().splitlines() if not line.startswith("note: ")]
    right = status in (1, 2) and len(sentences) == 1 and sentences[0].startswith("error: ")
    return [] if right and any(word in errors for word in words) else [f"{what}: exit status {status}: {errors[-400:]}"]


def noted(errors: str, words: tuple[str, ...]) -> bool:
    """Whether a note on standard error contains one of the words."""
    return any(line.startswith("note: ") and any(word in line for word in words) for line in errors.splitlines())


def resumed_at(workdir: pathlib.Path, saved: int, output: str) -> list[str]:
    """Checks that a program resumed from the saved checkpoint. A program that ended before it printed its first step passes.

    Args:
      saved: the step of the saved checkpoint; 0 if no checkpoint was saved.
      output: what the program printed.

    Returns:
      An empty list if the check passes. Otherwise a list with one line that says at which step the program began.
    """
    said = re.search(r"resuming at step (\d+)", output)
    if said is None and saved and "steps," in output:
        return [f"{workdir}: began at step 0, although step {saved} was saved"]
    return [f"{workdir}: {said[0]}, although step {saved} was saved"] if said and int(said[1]) != saved else []
