"""One page of HTML that compares runs: table, curves, config differences, samples. It holds all its data and needs no network.

What runs contain, such as names and samples, is data for the page's script, which makes it text and never HTML.
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

MOST_POINTS = 400  # of a curve
MOST_SAMPLES = 12  # of a run, the latest


def write(file: str, records: Sequence[reading.Record]) -> str:
    """Writes the page; returns its name. Raises a UserError where it can't be written."""
    template = importlib.resources.files("charlm.compare").joinpath("report.html").read_text(encoding="utf-8")
    try:
        files.write(pathlib.Path(file), template.replace("__DATA__", embedded(content(records))))
    except OSError as error:
        raise UserError(f"--html={file} can't be written ({error.strerror}): choose another file.") from error
    return file


def content(records: Sequence[reading.Record]) -> dict:
    """What the page shows, as JSON values; runs of one protocol stand together, and the first one has the most."""
    runs, protocols = [], []
    for protocol, members in tables.by_protocol(records, "best"):
        hidden = set() if tables.is_alike(members, "test") else {"test"}  # the page sorts by it
        for record in members:
            figures = {
                name: None if name in hidden else _finite(getattr(record, name))
                for name in ("best", "best_step", "last", "test", "train", "steps", "parameters", "chars_per_second", "seconds")
            }
            runs.append(
                {
                    "name": record.name,
                    "state": record.state,
                    "config": {key: _finite(value) for key, value in record.config.items()},
                    "protocol": len(protocols),
                    **figures,
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
    """JSON that can stand in a script element whatever its strings hold."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _thinned(curve: dict[str, list]) -> dict[str, list]:
    """At most so many points, evenly, the last one among them; six digits are more than a screen shows. Of a run that diverges
    the points beyond reason are left out."""
    curve = reading.within_reason(curve)
    every = max(1, math.ceil(len(curve["step"]) / MOST_POINTS))
    return {name: [_rounded(value) for value in values[::-every][::-1]] for name, values in curve.items()}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _finite(value: object) -> object:
    """None for a number that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _samples(record: reading.Record) -> list[dict]:
    samples = []
    for file in sorted((record.path / "samples").glob("*.txt"))[-MOST_SAMPLES:]:
        try:
            samples.append({"step": int(file.stem), "text": file.read_text(encoding="utf-8", errors="replace")})
        except (OSError, ValueError):  # somebody's own file, or gone meanwhile
            continue
    return samples
