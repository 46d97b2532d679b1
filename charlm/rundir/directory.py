"""Checks the run directory and the checkpoint that a user names, and creates the directory of a new run."""

import os
import pathlib

from ml_collections import ConfigDict

from charlm import cli
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.rundir.run import Run

# The files that a new run writes first.
FIRST_FILES = {"lock", "vocab.json", "corpus.json", "parent.json", "cells.json", "config.json", "status.json"}


def check_checkpoint_name(which: str) -> None:
    """Raises a UserError if --checkpoint is neither best, latest nor a step."""
    if not _is_checkpoint_name(which):
        raise UserError(f"--checkpoint={which}: must be best, latest or a step.")


def run_and_checkpoint(given: str, given_as: str) -> tuple[str, str]:
    """Divides RUN[:CHECKPOINT]. The default checkpoint is `best`. RUN may contain colons.

    Raises a UserError that begins with `given_as` if RUN is not the directory of a run.
    """
    path, colon, which = given.rpartition(":")
    if os.path.isdir(given) or not colon:
        path, which = given, "best"
    if not os.path.isfile(os.path.join(path, "status.json")):
        raise UserError(f"{given_as}: {path} is not the directory of a run: give RUN, or RUN:CHECKPOINT.")
    if not _is_checkpoint_name(which):
        raise UserError(f"{given_as}: the checkpoint {which!r} must be best, latest or a step.")
    return path, which


def _is_checkpoint_name(which: str) -> bool:
    return which in ("best", "latest") or (which.isascii() and which.isdigit())


def exists(workdir: str | os.PathLike, config: ConfigDict, extend: bool = False) -> bool:
    """Whether the directory already holds a run with this config. Writes nothing.

    The config may differ from the config of the run in the keys that `keys.resumable` returns.

    Args:
      extend: whether the config may also differ in the keys that --extend may change.

    Raises:
      UserError: the directory holds other files, holds a run with another config, or can't be written.
    """
    path = pathlib.Path(workdir)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:  # TensorStore opens only paths in UTF-8
        raise UserError(f"--workdir={workdir} is not UTF-8: choose a directory with a UTF-8 name.") from error
    if path.exists() and not path.is_dir():
        raise UserError(f"--workdir={workdir} is a file: give a directory.")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise UserError(f"--workdir={workdir} can't be written: choose another directory.")
    names = {entry.name for entry in path.iterdir()} if path.exists() else set()
    if "status.json" not in names:
        if {"config.json", "checkpoints"} <= names:
            raise UserError(f"{path / 'status.json'} is missing, but the directory holds a run: restore it from a copy.")
        # A training that was killed early leaves `lock`, and perhaps other files of FIRST_FILES. All other files belong to the
        # user.
        if names and ("lock" not in names or {name.removesuffix(".new") for name in names} - FIRST_FILES):
            raise UserError(f"--workdir={workdir} is not empty and not the directory of a run: choose another directory.")
        return False
    run = Run(path)
    run.status()
    different = load.differences(load.to_dict(run.config()), load.to_dict(config))
    fixed = {name: values for name, values in different.items() if name not in keys.EXTENDABLE}
    if fixed and extend:
        raise UserError(f"--extend can't change {load.in_words(fixed)} of the run in --workdir={workdir}: leave them as saved.")
    resumable = keys.resumable(run.config_fields())
    refused = {name: values for name, values in different.items() if name not in resumable}
    if refused and not extend:
        advice = "choose another directory" if fixed else "choose another directory, add --extend to change the run"
        raise UserError(
            f"--workdir={workdir} holds a run with another config: {load.in_words(refused)}; {advice}, "
            f"or resume the run with its own config: {cli.command('train')} --workdir={workdir}{run.started_by()}."
        )
    return True


def make(workdir: str | os.PathLike) -> None:
    """Creates the directory of a run. Raises a UserError if this fails."""
    try:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written ({error.strerror}): choose another directory.") from error
