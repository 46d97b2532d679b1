"""The results of scripts/benchmark.py as a JSON file."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from peers.measuring import Measurement

from charlm.errors import UserError


class Results(NamedTuple):
    """All results of one or more calls of the benchmark.

    Attributes:
      machine: the machine; see `measuring.machine`.
      commit: the commit of charlm.
      time: when the benchmark started, in UTC.
      versions: implementation → library → version.
      seconds: the duration of each measurement.
    """

    machine: dict[str, Any]
    commit: str | None
    time: str
    versions: dict[str, dict[str, str]]
    seconds: float
    measurements: list[Measurement]


def as_json(results: Results) -> str:
    return json.dumps(results._asdict() | {"measurements": [row._asdict() for row in results.measurements]}, indent=1) + "\n"


def joined(paths: Sequence[str]) -> Results:
    """Reads files that `as_json` made, and joins their results. If two files have the same group, the later file counts.

    Raises:
      UserError: a file can't be read, has no results, or comes from another machine than the first file.
    """
    parts = [_read(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if (part.machine["processor"], part.machine["cores"]) != (parts[0].machine["processor"], parts[0].machine["cores"]):
            raise UserError(f"--from={path}: measured on another machine than {paths[0]}, so their speeds can't be compared.")
    rows_of = {}
    for part in parts:
        for group in dict.fromkeys(row.group for row in part.measurements):
            rows_of[group] = [row for row in part.measurements if row.group == group]
    return parts[-1]._replace(
        versions={name: versions for part in parts for name, versions in part.versions.items()},
        measurements=[row for rows in rows_of.values() for row in rows],
    )


def _read(path: str) -> Results:
    try:
        results = Results(**json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
        results = results._replace(measurements=[Measurement(**row) for row in results.measurements])
        machine_line(results)
    except OSError as error:
        raise UserError(f"--from={path} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--from={path}: is not a file that scripts/benchmark.py --json has written.") from error
    if not results.measurements:
        raise UserError(f"--from={path}: has no measurements.")
    return results


def machine_line(results: Results) -> str:
    """The machine in one line."""
    return f"machine: {results.machine['cores']} cores, {results.machine['processor']}"
