"""Writes one HTML page that compares runs. The page has a table, curves, the differences of the configs, and samples.

As in the table of the program compare, runs that differ only in their seed are shown in one row. A switch on the page shows
each run in its own row instead.

The page contains its data and needs no network. It shows texts from runs, such as names and samples, as text, never as HTML.
"""

import datetime
import importlib.resources
import math
import pathlib
from collections.abc import Mapping, Sequence

from charlm import files
from charlm.compare import reading, tables
from charlm.compare.curves import curve_of
from charlm.config import keys as config_keys
from charlm.errors import UserError

MAX_POINTS = 400  # per curve
FIGURES = ("best", "best_step", "last", "test", "train", "steps", "parameters", "chars_per_second", "seconds")
ALWAYS_SHOWN = ("run", "state", "perplexity")  # columns that are never left out, even if the page is narrow
MAX_SAMPLES = 12  # per run; the page contains the latest samples


def write(file: str, records: Sequence[reading.Record]) -> str:
    """Writes the page and returns the file's name.

    Raises:
      UserError: the file can't be written.
    """
    folder = importlib.resources.files("charlm.compare")
    template, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.html", "report.js"))
    page = template.replace("__SCRIPT__", script).replace("__DATA__", files.embedded(content(records)))
    try:
        files.write(pathlib.Path(file), page)
    except OSError as error:
        raise UserError(f"--html={file} can't be written ({error.strerror}): choose another file.") from error
    return file


def content(records: Sequence[reading.Record]) -> dict:
    """The data of the page, as JSON values.

    The protocol of a run says on which text and how its loss was measured. Runs are sorted by protocol. The protocol with the
    most runs comes first.
    """
    runs: list[dict] = []
    groups: list[dict] = []
    protocols: list[str] = []
    for protocol, members in tables.by_protocol(records, "best"):
        # The page can sort runs by any of its columns. If the test losses of these runs have different protocols, they can't be
        # compared. In that case the page contains no test losses.
        hidden = set() if tables.share_protocol(members, "test") else {"test"}
        number_of = {record.path: number for number, record in enumerate(members, start=len(runs))}
        groups += [_group(group, number_of, len(protocols), hidden) for group in tables.groups_of(members)]
        for record in members:
            results = {name: None if name in hidden else _finite(getattr(record, name)) for name in FIGURES}
            runs.append(
                {
                    "name": record.name,
                    "state": record.state,
                    "parent": record.parent_in_words(),
                    "extended": record.extensions_in_words(),
                    "config": {key: _finite(value) for key, value in record.config.items()},
                    "texts": _texts(record.config),
                    "protocol": len(protocols),
                    **results,
                    "bits_per_byte": _finite(record.bits_per_byte("best")),
                    "unknown": record.unknown.get("best"),
                    "curves": {split: _thinned(curve) for split, curve in reading.series(record).items()},
                    "samples": _samples(record),
                }
            )
        protocols.append(tables.protocol_in_words(protocol))
    read = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    keys = tables.differing_keys(records)
    return {
        "runs": runs,
        "groups": groups,
        "protocols": protocols,
        "keys": keys,
        "short": {key: config_keys.short(key) for key in keys},
        "paths": [key for key in keys if key in config_keys.SHOWN_BY_LAST_PART],
        "least_important": [name for name in reversed(tables.COLUMNS) if name not in ALWAYS_SHOWN],
        "read": read,
    }


def _group(group: tables.Group, number_of: dict[pathlib.Path, int], protocol: int, hidden: set[str]) -> dict:
    """The data of a row of the table.

    If the row is a single run, its data is only the number of this run, because the page already has the data of each run.

    Args:
      number_of: path of a run → the index of the run in the page's list of runs.
      protocol: the index of the protocol in the page's list of protocols.
      hidden: the metrics that the page does not show.
    """
    numbers = [number_of[record.path] for record in group.records]
    if len(numbers) == 1:
        return {"runs": numbers}
    figures = {
        name: group.figure(name)
        if name in tables.METRICS
        else tables.mean_and_error([getattr(record, name) for record in group.averaged])[0]
        for name in FIGURES
        if name not in hidden
    }
    series = [reading.series(record) for record in group.averaged]
    return {
        "runs": numbers,
        "n": len(group.averaged),
        "name": group.name,
        "state": tables.states_in_words(group),
        "parent": group.records[0].parent_in_words(),
        "extended": group.records[0].extensions_in_words(),
        "config": {key: _finite(value) for key, value in group.config.items() if key != "seed"},
        "texts": _texts(group.config),
        "protocol": protocol,
        **dict.fromkeys(FIGURES),
        **{name: _finite(value) for name, value in figures.items()},
        "bits_per_byte": _finite(group.bits_per_byte("best")),
        "unknown": group.unknown("best"),
        "error": tables.mean_and_error([record.best for record in group.averaged])[1],
        "curves": {split: _mean_curve([each[split] for each in series]) for split in series[0]},
    }


def _mean_curve(series: Sequence[dict[str, list]]) -> dict[str, list]:
    """The mean curve of several runs, and the lowest and the highest loss of these runs at each point."""
    curve = curve_of(series)
    if curve is None:
        return {name: [] for name in ("step", "chars", "seconds", "nats", "low", "high")}
    values = {"nats" if name == "mean" else name: array.tolist() for name, array in curve._asdict().items()}
    return _thinned(values | {"step": [round(step) for step in values["step"]]})


def _thinned(curve: dict[str, list]) -> dict[str, list]:
    """At most MAX_POINTS evenly spaced points of a curve, including the last point.

    `reading.plottable` first removes the very large losses that a diverging run writes. Values are rounded to six digits,
    because a screen shows no more digits.
    """
    curve = reading.plottable(curve)
    every = max(1, math.ceil(len(curve["step"]) / MAX_POINTS))
    return {name: [_rounded(value) for value in values[::-every][::-1]] for name, values in curve.items()}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _texts(config: Mapping[str, object]) -> dict[str, str]:
    """Key → text, only for the values that the table describes in words, such as `by epochs`."""
    texts = {key: tables.config_text(config, key) for key in config}
    return {key: text for key, text in texts.items() if text != tables.value_text(config[key])}


def _finite(value: object) -> object:
    """The value, or None if it is a number that JSON can't represent."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _samples(record: reading.Record) -> list[dict]:
    samples = []
    for file in sorted((record.path / "samples").glob("*.txt"))[-MAX_SAMPLES:]:
        try:
            samples.append({"step": int(file.stem), "text": file.read_text(encoding="utf-8", errors="replace")})
        except (OSError, ValueError):  # charlm did not write this file, or it has just been deleted
            continue
    return samples
