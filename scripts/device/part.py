"""Runs one part of scripts/check_device.py.

    python scripts/device/part.py NAME JOB

JOB is a JSON object with the fields of `reporting.Job`, except `end`. The part reports on standard output.
"""

import importlib
import json
import os
import pathlib
import sys
import time

BEGIN = time.monotonic()
SCRIPTS = pathlib.Path(__file__).resolve().parents[1]
MARGIN = 3.0  # seconds; a part that ends by itself has reported everything


def main() -> None:
    # The folder of this file must not be in the search path: the names of its modules are too common.
    others = [place for place in sys.path if pathlib.Path(place or ".").resolve() != SCRIPTS / "device"]
    sys.path = [os.fspath(SCRIPTS), os.fspath(SCRIPTS.parent), *others]
    from device.parts import PARTS
    from device.reporting import Job, Report

    name, text = sys.argv[1:]
    part, fields = PARTS[name], json.loads(text)
    job = Job(end=BEGIN + fields["seconds"] - MARGIN, **fields)
    if not part.on_device:  # two processes that use a GPU at the same time could run out of its memory
        import jax

        jax.config.update("jax_platforms", "cpu")
    getattr(importlib.import_module(f"device.{part.module}"), part.function)(job, Report())


if __name__ == "__main__":
    main()
