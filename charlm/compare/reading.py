"""What run directories tell those who compare: figures and curves of each, whatever state it is in.

Knows only the files of run directories, those of running and half-written ones too.
"""

import math
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from charlm import measures
from charlm.errors import UserError
from charlm.files import opened
from charlm.rundir.run import Run

NO_FIGURE = {"split": "none", "why": "not evaluated yet"}
SAMPLED_ROWS = 101  # of the training loss, whose median speed is a run's


class Record(NamedTuple):
    """One run as compare sees it.

    Attributes:
      name: its path below what was asked for. config: flat.
      state: of run.STATES, `running` where a process trains it, `unknown` where status.json can't be read.
      best, last: nats per char of the validation split, or of the mean training loss where there is none.
      test: nats of the latest evaluation of the test split by scripts/evaluate.py. train: latest mean loss.
      protocols: metric → how that figure was measured; figures with different ones don't compare.
      steps: done. seconds: of training and evaluating. chars_per_second: median over the log intervals.
      problems: what could not be read, a sentence each.
    """

    name: str
    path: pathlib.Path
    config: dict[str, object]
    state: str
    best: float | None
    best_step: int | None
    last: float | None
    test: float | None
    train: float | None
    protocols: dict[str, dict]
    steps: int
    parameters: int | None
    chars_per_second: float | None
    seconds: float | None
    problems: tuple[str, ...]

    def figure(self, metric: str) -> float | None:
        return getattr(self, metric)


def find(paths: Sequence[str]) -> list[pathlib.Path]:
    """The run directories that these paths are or hold.

    Raises:
      UserError: a path is not there, or holds no runs.
    """
    found: dict[pathlib.Path, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            raise UserError(f"{path} is no directory: give run directories, or folders that hold some.")
        runs = sorted(_runs_below(path))
        if not runs:
            raise UserError(f"{path} holds no runs: a run directory has a status.json and a config.json.")
        found |= dict.fromkeys(runs)
    return list(found)


def read(paths: Sequence[pathlib.Path]) -> tuple[list[Record], list[str]]:
    """The runs in these directories, and a sentence on each that can't be compared or was read in part."""
    whole = [pathlib.Path(os.path.abspath(path)) for path in paths]
    base = pathlib.Path(os.path.commonpath(whole)) if len(whole) > 1 else whole[0].parent
    records, problems = [], []
    for path in dict.fromkeys(whole):
        try:
            record = read_run(path, str(path.relative_to(base)))
        except UserError as error:
            problems.append(f"{error}")
            continue
        records.append(record)
        problems += [f"{path}: {problem}" for problem in record.problems]
    return records, problems


def read_run(path: pathlib.Path, name: str) -> Record:
    """One run. Raises a UserError where its config can't be read, without which nothing compares."""
    run, problems = Run(path), []
    config = run.config_fields()
    state, starts, written = "unknown", [], 0
    try:
        status = run.status()
        state, written = status["state"], status.get("rows", 0)
    except UserError as error:
        problems.append(str(error))
    if state == "incomplete" and run.is_training():
        state = "running"
    try:
        starts = run.starts()
    except UserError as error:
        problems.append(str(error))
    rows = list(_rows(path / "metrics.jsonl", written, problems))
    judged = [row for row in rows if row["split"] == "validation"]
    means = [row for row in rows if row["split"] == "train_mean"]
    of_training = _of_training(run, config) if means else NO_FIGURE
    protocol = judged[-1].get("protocol") if judged else of_training
    protocol = protocol if isinstance(protocol, dict) else {"split": "validation", "why": "no protocol was written down"}
    scored = _scored(path / "evaluations.jsonl", problems)
    test = scored.get("test", {"nats": None, "protocol": NO_FIGURE})
    if not (judged or means) and "validation" in scored:  # imported, or stopped before the first evaluation
        judged, protocol = [scored["validation"]], scored["validation"]["protocol"]
    judged = judged or means
    best = min(judged, key=lambda row: row["nats"]) if judged else None
    speeds = sorted(row["chars_per_second"] for row in rows if is_number(row.get("chars_per_second")))
    return Record(
        name=name,
        path=path,
        config=config,
        state=state,
        best=best and best["nats"],
        best_step=best and best.get("step"),
        last=judged[-1]["nats"] if judged else None,
        test=test["nats"],
        train=means[-1]["nats"] if means else None,
        protocols={"best": protocol, "last": protocol, "test": test["protocol"], "train": of_training},
        steps=max((row["step"] for row in rows), default=0),
        parameters=_parameters(starts),
        chars_per_second=statistics.median(speeds) if speeds else None,
        seconds=max((row["seconds"] for row in rows if is_number(row.get("seconds"))), default=None),
        problems=tuple(problems),
    )


def series(record: Record) -> dict[str, dict[str, list]]:
    """A run's curves: split (`train`, `validation`) → step, chars, seconds and nats of its rows, as lists.

    chars: trained on so far, summed over the rows of the training loss, for evaluations over those of its mean.
    """
    curves = {split: {name: [] for name in ("step", "chars", "seconds", "nats")} for split in ("train", "validation")}
    try:
        lines = (record.path / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return curves
    rows = [row for row in map(parsed, lines) if row is not None]
    told = {split: {} for split in ("train", "train_mean")}  # step → chars and seconds so far
    for split, at in told.items():
        chars = 0
        for row in rows:
            if row["split"] == split and is_number(row.get("chars")) and is_number(row.get("seconds")):
                chars += row["chars"]
                at[row["step"]] = (chars, row["seconds"])
    for split, teller in (("train", "train"), ("validation", "train_mean")):
        for row in rows:
            if row["split"] == split and row["step"] in told[teller] and math.isfinite(row["nats"]):
                chars, seconds = told[teller][row["step"]]
                for name, value in (("step", row["step"]), ("chars", chars), ("seconds", seconds), ("nats", row["nats"])):
                    curves[split][name].append(value)
    return curves


def within_reason(curve: dict[str, list]) -> dict[str, list]:
    """One curve of `series` without the points, of a run that diverges, that would make a picture of one point."""
    kept = [place for place, nats in enumerate(curve["nats"]) if nats < measures.MOST_NATS]
    return {name: [values[place] for place in kept] for name, values in curve.items()}


def validation_nats(path: pathlib.Path) -> list[float]:
    """A run's validation nats so far, in order."""
    try:
        lines = (path / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    rows = (parsed(line) for line in lines if b'"split": "validation"' in line)
    return [row["nats"] for row in rows if row is not None and row["split"] == "validation"]


def parsed(line: bytes) -> dict | None:
    """A row of metrics; infinite nats, which JSON can't say, as such. None where the line is no row."""
    try:
        row = opened(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("split"), str) or type(row.get("step")) is not int:
        return None
    if "nats" in row and row["nats"] is None:
        row["nats"] = math.inf
    return row if is_number(row.get("nats")) or row.get("nats") == math.inf else None


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf and abs(value) < 1e300


def _runs_below(folder: str) -> Iterator[pathlib.Path]:
    for path, folders, files in os.walk(folder):
        if "config.json" in files or "status.json" in files:
            folders.clear()
            yield pathlib.Path(path)
        else:
            folders[:] = [name for name in folders if not name.startswith(".")]


def _rows(file: pathlib.Path, written: object, problems: list[str]) -> Iterator[dict]:
    """The rows of metrics that a table needs: all evaluations, and of the training loss some, the last among them.

    Args:
      written: how many there should be at least.
    """
    lines = []
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"metrics.jsonl can't be read ({error.strerror})")
        return
    if isinstance(written, int) and max(0, len(lines) - 1) < written:
        problems.append(f"metrics.jsonl has {max(0, len(lines) - 1)} rows of the {written} that were written")
    of_training = [number for number, line in enumerate(lines) if b'"split": "train"' in line]
    sampled = set(of_training[:: -max(1, len(of_training) // SAMPLED_ROWS)]) if of_training else set()
    skipped = set(of_training) - sampled
    for number, line in enumerate(lines):
        if number in skipped or not line.strip():
            continue
        row = parsed(line)
        if row is not None:
            yield row
        elif number < len(lines) - 1:  # the last one may be half-written
            problems.append(f"metrics.jsonl line {number + 1} is no row of metrics and was passed over")


def _parameters(starts: list[dict]) -> int | None:
    parameters = starts[-1].get("parameters") if starts else None
    return parameters if type(parameters) is int else None


def _of_training(run: Run, config: dict[str, object]) -> dict:
    """The protocol of a training loss: its corpus, and from which state its rows begin."""
    try:
        corpus = run.corpus().get("sha256")
    except UserError:
        corpus = None
    framing = f"{config.get('batch.framing')} of {config.get('batch.length')}"
    why = f"mean training loss between two evaluations, {framing}, corpus {str(corpus)[:8]}"
    return {"corpus": corpus, "split": "train", "why": why}


def _scored(file: pathlib.Path, problems: list[str]) -> dict[str, dict]:
    """By split, what evaluate.py found there last: a dict that has nats and protocol."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        try:
            result = opened(line.decode())
            split = result["protocol"]["split"]
            if isinstance(split, str) and is_number(result["nats"]):
                found[split] = result
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.append("evaluations.jsonl has a line that is no evaluation, which was passed over")
    return found
