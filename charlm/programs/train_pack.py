"""Trains a pack of trials as one compiled program. The launcher `packed` of the program sweep starts this program.

    charlm train_pack --pack=FILE

`charlm/sweeps/packed.py` writes the file. Exit status: as of the program train; 1 if any trial of the pack diverged or failed.
"""

import json
import pathlib
import signal
from typing import Any

from absl import flags

from charlm import cli
from charlm.config import load
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.programs import model_flags
from charlm.training import start

_PACK = flags.DEFINE_string("pack", None, "file that describes the trials of the pack", required=True)
_TRUST_CODE = model_flags.trust_code()

FIELDS = ("name", "workdir", "log", "config")  # of `packing.Trial`


def run() -> None:
    """Runs the program with the flags of the command line."""
    cli.run(main)


def main(overrides: dict[str, str]) -> int:
    """Trains the pack. Returns the exit status."""
    del overrides  # this program has no flag --config, so the dict is empty
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in the program train
    places = _places(pathlib.Path(_PACK.value))
    devices.use_huge_pages()
    configs = [None if place is None else load.from_dict(place["config"]) for place in places]
    start.prepare_pack(next(config for config in configs if config is not None), len(places))
    from charlm.training import packing

    trials = [
        None if place is None else packing.Trial(**place | {"config": config})
        for place, config in zip(places, configs, strict=True)
    ]
    return packing.train(trials, _TRUST_CODE.value)


def _places(file: pathlib.Path) -> list[dict[str, Any] | None]:
    """The contents of the file: for each place of the pack, the fields of `packing.Trial`, or None."""
    try:
        places = json.loads(file.read_text(encoding="utf-8"))["places"]
        if not any(places):
            raise ValueError("it has no trial")
        return [place and {field: place[field] for field in FIELDS} for place in places]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--pack={file} can't be read ({error}): give a file that --launcher=packed has written.") from error
