"""Lists runs as plain dicts, for notebooks. Each dict describes one run. All dicts have the same keys, like rows of a table."""

import os
from collections.abc import Sequence

from charlm.compare import reading, tables
from charlm.errors import UserError
from charlm.progress import warn

FIGURES = ("best", "best_step", "last", "test", "train", "steps", "parameters", "chars_per_second", "seconds")
# Key of a dict that holds a protocol → the key of the loss that was measured under this protocol.
PROTOCOLS = {"protocol": "best", "test_protocol": "test", "train_protocol": "train"}


def listed(paths: Sequence[str | os.PathLike]) -> list[dict]:
    """All runs at or below these paths; see `charlm.runs`.

    A run whose config can't be read is left out, and a note on stderr says so.

    Raises:
      UserError: no path is given, a path is not a directory or contains no runs, or no run can be read.
    """
    if not paths:
        raise UserError("no runs are given: call charlm.runs(RUN_OR_FOLDER, ...).")
    records, problems = reading.read(reading.find([os.fspath(path) for path in paths]))
    for problem in problems:
        warn(problem)
    if not records:
        raise UserError("none of these runs can be read.")
    keys = dict.fromkeys(key for record in records for key in record.config)
    return [
        {"name": record.name, "path": os.fspath(record.path), "state": record.state}
        | {figure: record.figure(figure) for figure in FIGURES}
        | {"bits_per_byte": record.bits_per_byte("best")}
        | {
            column: tables.protocol_in_words(tables.named_protocol(record.protocols[metric], [record]))
            for column, metric in PROTOCOLS.items()
        }
        | {key: record.config.get(key) for key in keys}
        | {"parent": record.parent_in_words(), "extended": record.extensions_in_words()}
        | {"rows": reading.all_rows(record.path), "problems": list(record.problems)}
        for record in records
    ]
