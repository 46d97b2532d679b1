"""Reads the losses, other results and learning curves of runs from their run directories, to compare the runs.

A run may still be training, or its files may be damaged or half-written. Data that can't be read is reported and left out.
"""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from charlm import measures
from charlm.config import keys
from charlm.errors import UserError
from charlm.files import opened
from charlm.rundir.run import Run

NOT_EVALUATED = {"split": "none", "why": "not evaluated yet"}  # the protocol of a loss that does not exist yet
SAMPLED_ROWS = 101  # about this many rows of the training loss are parsed; the run's speed is the median of their speeds


class Record(NamedTuple):
    """The data of one run that a comparison needs.

    Attributes:
      name: the run's path, relative to the folder that contains all compared runs.
      path: the run directory, absolute.
      config: dotted key → value.
      state: one of run.STATES, `running` if a process is training the run now, `pruned` if a search has stopped the run early,
        or `unknown` if status.json can't be read.
      best: the lowest nats/char on the validation split. Without a validation split, the lowest mean training loss instead.
      best_step: the step of `best`.
      last: the latest value of the loss whose lowest value is `best`.
      test: the latest nats/char that evaluate.py measured on the test split.
      train: the latest mean training loss between two evaluations, in nats/char.
      protocols: metric (`best`, `last`, `test`, `train`) → the protocol of its value: which text was scored, and how it was
        read. Two values are comparable only if their protocols are equal.
      chars_per_byte: metric (`best`, `last`, `test`) → the number of scored characters divided by the number of bytes of the
        scored text, or None if the run did not record the number of bytes. The product of this number and the bits per
        character is the bits per byte.
      unknown: metric (`best`, `last`, `test`) → the number of scored characters that were `<unk>`. The dict has no entry for a
        metric if none of its scored characters was `<unk>`.
      steps: the number of steps done.
      parameters: the number of parameters of the model.
      chars_per_second: the median speed of training.
      seconds: the time spent on training and evaluating.
      problems: one sentence for each file or line that could not be read.
      parent: the content of parent.json, which names the run whose parameters this run began with. None without such a run.
      extensions: the content of extensions.json: one dict for each change of the run's config.
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
    chars_per_byte: dict[str, float | None]
    unknown: dict[str, int]
    steps: int
    parameters: int | None
    chars_per_second: float | None
    seconds: float | None
    problems: tuple[str, ...]
    parent: dict | None
    extensions: tuple[dict, ...]

    def figure(self, metric: str) -> float | None:
        """The nats/char of a metric: `best`, `last`, `test` or `train`."""
        return getattr(self, metric)

    def bits_per_byte(self, metric: str) -> float | None:
        """The loss of a metric in bits per byte of the scored text. None if the run did not record the number of bytes."""
        nats, chars_per_byte = self.figure(metric), self.chars_per_byte.get(metric)
        return None if nats is None or chars_per_byte is None else measures.bits(nats) * chars_per_byte

    def parent_in_words(self) -> str | None:
        """The run directory of the parent and the step of its parameters, such as `runs/a step 100`. None without a parent."""
        return None if self.parent is None else f"{self.parent['path']} step {self.parent['step']}"

    def extensions_in_words(self) -> str | None:
        """The changes by --extend, each with its step, such as `at 100: steps 100 → 200`. None if there are no such changes.

        Keys that may differ when a run is resumed are left out, because they change no parameter. They are not left out if they
        changed how the validation loss is measured.
        """
        resumable = keys.resumable(self.config)
        changes = [
            (entry["step"], [f"{keys.short(name)} {entry['before'].get(name)} → {entry['after'][name]}" for name in names])
            for entry in self.extensions
            if (names := [name for name in entry["after"] if name not in resumable or _resets_best(entry, name)])
        ]
        return "; ".join(f"at {step}: {', '.join(changed)}" for step, changed in changes) or None


def _resets_best(entry: dict[str, Any], name: str) -> bool:
    """Whether the change of this key changed the protocol, so that earlier evaluations are not compared."""
    return entry["resets_best"] and name.startswith("eval.")


def find(paths: Sequence[str]) -> list[pathlib.Path]:
    """All run directories at or below these paths, without duplicates.

    Raises:
      UserError: a path is not a directory, or contains no run.
    """
    found: dict[pathlib.Path, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            raise UserError(f"{path} is not a directory: give run directories, or folders that contain run directories.")
        runs = sorted(_runs_below(path))
        if not runs:
            raise UserError(f"{path} contains no runs: a run directory has a status.json and a config.json.")
        found |= dict.fromkeys(runs)
    return list(found)


def read(paths: Sequence[pathlib.Path]) -> tuple[list[Record], list[str]]:
    """The runs in these directories, and one sentence for each file or line that could not be read.

    A run whose config can't be read is left out.
    """
    absolute = [pathlib.Path(os.path.abspath(path)) for path in paths]
    base = pathlib.Path(os.path.commonpath(absolute)) if len(absolute) > 1 else absolute[0].parent
    records, problems = [], []
    for path in dict.fromkeys(absolute):
        try:
            record = read_run(path, str(path.relative_to(base)))
        except UserError as error:
            problems.append(f"{error}")
            continue
        records.append(record)
        problems += [f"{path}: {problem}" for problem in record.problems]
    return records, problems


def read_run(path: pathlib.Path, name: str) -> Record:
    """Reads one run.

    Raises:
      UserError: config.json can't be read. A run without a config can't be compared.
    """
    run = Run(path)
    problems: list[str] = []
    config = run.config_fields()
    state, expected_rows = _state(run, problems)
    parameters = _parameters(run, problems)
    parent, extensions = _checked(run.parent, None, problems), _checked(run.extensions, [], problems)
    rows = list(_rows(path / "metrics.jsonl", expected_rows, problems))
    evaluations = _evaluations(path / "evaluations.jsonl", problems)

    mean_rows = [row for row in rows if row["split"] == "train_mean"]
    train_protocol = _train_protocol(run, config) if mean_rows else NOT_EVALUATED
    ranked_rows = [row for row in rows if row["split"] == "validation"]
    if ranked_rows:
        # If --extend or a resume changed the protocol, only the evaluations with the latest protocol are compared.
        ranked_rows = [row for row in ranked_rows if row.get("protocol") == ranked_rows[-1].get("protocol")]
        protocol = ranked_rows[-1].get("protocol")
        if not isinstance(protocol, dict):
            protocol = {"split": "validation", "why": "no protocol was recorded"}
    elif mean_rows:
        ranked_rows, protocol = mean_rows, train_protocol
    elif "validation" in evaluations:  # imported weights, or a run that stopped before its first evaluation
        ranked_rows, protocol = [evaluations["validation"]], evaluations["validation"]["protocol"]
    else:
        protocol = NOT_EVALUATED

    best = min(ranked_rows, key=lambda row: row["nats"]) if ranked_rows else None
    test = evaluations.get("test", {"nats": None, "protocol": NOT_EVALUATED})
    scored = {"best": best, "last": ranked_rows[-1] if ranked_rows else None, "test": test}
    speeds = sorted(row["chars_per_second"] for row in rows if is_number(row.get("chars_per_second")))
    return Record(
        name=name,
        path=path,
        config=config,
        state=state,
        best=best["nats"] if best else None,
        best_step=best.get("step") if best else None,
        last=ranked_rows[-1]["nats"] if ranked_rows else None,
        test=test["nats"],
        train=mean_rows[-1]["nats"] if mean_rows else None,
        protocols={"best": protocol, "last": protocol, "test": test["protocol"], "train": train_protocol},
        chars_per_byte={metric: _chars_per_byte(row) for metric, row in scored.items()},
        unknown={metric: row["unknown"] for metric, row in scored.items() if row and type(row.get("unknown")) is int},
        steps=max((row["step"] for row in rows), default=0),
        parameters=parameters,
        chars_per_second=statistics.median(speeds) if speeds else None,
        seconds=max((row["seconds"] for row in rows if is_number(row.get("seconds"))), default=None),
        problems=tuple(problems),
        parent=parent,
        extensions=tuple(extensions),
    )


def series(record: Record) -> dict[str, dict[str, list]]:
    """The curves of a run: split (`train`, `validation`) → lists of step, chars, seconds and nats, one item for each
    row of metrics that is in the curve.

    `chars` is the total number of characters trained on until that row was written. Rows with unknown chars or seconds, and
    rows with infinite nats, are left out.
    """
    curves: dict[str, dict[str, list]] = {
        split: {name: [] for name in ("step", "chars", "seconds", "nats")} for split in ("train", "validation")
    }
    rows = all_rows(record.path)
    # A validation row does not have the number of characters trained on, and in runs of older versions it has no seconds. The
    # characters and the seconds of a validation point therefore come from the `train_mean` row of the same step.
    for split, source in (("train", "train"), ("validation", "train_mean")):
        totals = _totals(rows, source)
        for row in rows:
            if row["split"] == split and row["step"] in totals and math.isfinite(row["nats"]):
                chars, seconds = totals[row["step"]]
                for name, value in (("step", row["step"]), ("chars", chars), ("seconds", seconds), ("nats", row["nats"])):
                    curves[split][name].append(value)
    return curves


def _totals(rows: Sequence[dict], split: str) -> dict[int, tuple[int, float]]:
    """Step → (total number of characters trained on, total seconds) at that step, from the rows of one split."""
    totals, chars = {}, 0
    for row in rows:
        if row["split"] == split and is_number(row.get("chars")) and is_number(row.get("seconds")):
            chars += row["chars"]
            totals[row["step"]] = (chars, row["seconds"])
    return totals


def plottable(curve: dict[str, list]) -> dict[str, list]:
    """A curve of `series` without the points whose nats are at least measures.MOST_NATS.

    Only a diverging run writes such points. If a plot showed them, all other curves of the plot would look like flat lines.
    """
    kept = [index for index, nats in enumerate(curve["nats"]) if nats < measures.MOST_NATS]
    return {name: [values[index] for index in kept] for name, values in curve.items()}


def validation_nats(path: pathlib.Path) -> list[float]:
    """The validation nats/char that the run in this directory has logged so far, in order."""
    return [row["nats"] for row in all_rows(path, b'"split": "validation"') if row["split"] == "validation"]


def all_rows(path: pathlib.Path, containing: bytes = b"") -> list[dict]:
    """All rows in metrics.jsonl of the run in this directory. Lines that are not rows of metrics are skipped.

    Args:
      containing: only lines that contain these bytes are parsed. This is faster than parsing all lines.
    """
    try:
        lines = (path / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    return [row for line in lines if containing in line and (row := parsed(line)) is not None]


def parsed(line: bytes) -> dict | None:
    """A line of metrics.jsonl as a dict, or None if it is not a row of metrics.

    JSON has no infinity, so the file has null for infinite nats. The dict has math.inf instead.
    """
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


def _state(run: Run, problems: list[str]) -> tuple[str, object]:
    """The run's state, and the number of rows of metrics that its status.json records."""
    try:
        status = run.status()
    except UserError as error:
        problems.append(str(error))
        return "unknown", 0
    state = status["state"]
    if state == "incomplete":
        state = "running" if run.is_training() else "pruned" if _is_pruned(run.workdir) else state
    return state, status.get("rows", 0)


def _is_pruned(path: pathlib.Path) -> bool:
    """Whether the sweep.json beside the run directory says that a search has pruned this run."""
    try:
        return path.name in json.loads((path.parent / "sweep.json").read_text(encoding="utf-8"))["pruned"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # not a search, an older search, or a damaged file
        return False


def _parameters(run: Run, problems: list[str]) -> int | None:
    """The number of parameters that the run's latest start recorded."""
    try:
        starts = run.starts()
    except UserError as error:
        problems.append(str(error))
        return None
    parameters = starts[-1].get("parameters") if starts else None
    return parameters if type(parameters) is int else None


def _checked(read: Callable[[], Any], default: Any, problems: list[str]) -> Any:
    """The result of `read`. If `read` raises a UserError, adds its message to `problems` and returns `default`."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return default


def _rows(file: pathlib.Path, expected_rows: object, problems: list[str]) -> Iterator[dict]:
    """The rows of metrics that a table needs: all evaluations, and a sample of the rows of the training loss.

    The sample includes the last row of the training loss. Parsing all of these rows would be slow.

    Args:
      expected_rows: the number of rows that status.json records. If the file has fewer rows, this is a problem.
    """
    lines = []
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"metrics.jsonl can't be read ({error.strerror})")
        return
    num_rows = max(0, len(lines) - 1)
    if isinstance(expected_rows, int) and num_rows < expected_rows:
        problems.append(f"metrics.jsonl has {num_rows} of the {expected_rows} rows that were written")
    train_lines = [index for index, line in enumerate(lines) if b'"split": "train"' in line]
    sampled = set(train_lines[:: -max(1, len(train_lines) // SAMPLED_ROWS)]) if train_lines else set()
    skipped = set(train_lines) - sampled
    for index, line in enumerate(lines):
        if index in skipped or not line.strip():
            continue
        row = parsed(line)
        if row is not None:
            yield row
        elif index < len(lines) - 1:  # the last line may be half-written
            problems.append(f"metrics.jsonl line {index + 1} is not a row of metrics and is ignored")


def _chars_per_byte(row: dict | None) -> float | None:
    """The number of scored characters divided by their number of bytes.

    None if there is no result, or if the result is of an older version, which did not record the number of bytes.

    Args:
      row: a result of an evaluation, or None.
    """
    chars, size = (None, None) if row is None else (row.get("chars"), row.get("bytes"))
    return chars / size if type(chars) is int and type(size) is int and size > 0 else None


def _train_protocol(run: Run, config: dict[str, object]) -> dict:
    """The protocol of a run's mean training loss. It names the corpus and the framing."""
    try:
        corpus = run.corpus().get("sha256")
    except UserError:
        corpus = None
    framing = f"{config.get('batch.framing')} of {config.get('batch.length')}"
    why = f"mean training loss between two evaluations, {framing}"
    return {"corpus": corpus, "split": "train", "why": why}


def _evaluations(file: pathlib.Path, problems: list[str]) -> dict[str, dict]:
    """Split → the latest result of evaluate.py for that split. A result is a dict with `nats` and `protocol`.

    Results of dynamic evaluation, of ensembles and of n-grams are left out. Their protocols have the key `method`. If they were
    not left out, such a result would replace the run's own result for the split.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return {}
    latest: dict[str, dict] = {}
    for line in lines:
        try:
            result: Any = opened(line.decode())
            split = result["protocol"]["split"]
            if isinstance(split, str) and is_number(result["nats"]) and "method" not in result["protocol"]:
                latest[split] = result
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.append("evaluations.jsonl has a line that is not an evaluation; it is ignored")
    return latest
