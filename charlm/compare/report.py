"""Writes one HTML page that compares runs. The page has a table, curves, the differences of the configs, and samples.

The page contains its data and needs no network. It shows texts from runs, such as names and samples, as text, never as HTML.
"""

import datetime
import importlib.resources
import json
import math
import pathlib
from collections.abc import Sequence

from charlm import files
from charlm.compare import reading, tables
from charlm.config import keys as config_keys
from charlm.errors import UserError

MAX_POINTS = 400  # per curve
MAX_SAMPLES = 12  # per run; the page contains the latest samples


def write(file: str, records: Sequence[reading.Record]) -> str:
    """Writes the page and returns the file's name.

    Raises:
      UserError: the file can't be written.
    """
    template = importlib.resources.files("charlm.compare").joinpath("report.html").read_text(encoding="utf-8")
    try:
        files.write(pathlib.Path(file), template.replace("__DATA__", embedded(content(records))))
    except OSError as error:
        raise UserError(f"--html={file} can't be written ({error.strerror}): choose another file.") from error
    return file


def content(records: Sequence[reading.Record]) -> dict:
    """The data of the page, as JSON values.

    The protocol of a run says on which text and how its loss was measured. Runs are sorted by protocol. The protocol with the
    most runs comes first.
    """
    runs: list[dict] = []
    protocols: list[str] = []
    for protocol, members in tables.by_protocol(records, "best"):
        # The page can sort runs by any of its columns. If the test losses of these runs have different protocols, they can't be
        # compared. In that case the page contains no test losses.
        hidden = set() if tables.share_protocol(members, "test") else {"test"}
        for record in members:
            results = {
                name: None if name in hidden else _finite(getattr(record, name))
                for name in ("best", "best_step", "last", "test", "train", "steps", "parameters", "chars_per_second", "seconds")
            }
            runs.append(
                {
                    "name": record.name,
                    "state": record.state,
                    "parent": record.parent_in_words(),
                    "extended": record.extensions_in_words(),
                    "config": {key: _finite(value) for key, value in record.config.items()},
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
        "protocols": protocols,
        "keys": keys,
        "short": {key: config_keys.short(key) for key in keys},
        "read": read,
    }


def embedded(values: object) -> str:
    """The values as JSON that can stand inside an HTML script element, even if strings in the values contain HTML."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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
