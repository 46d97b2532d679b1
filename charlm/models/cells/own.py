"""Cells in files of the user: `model.cell=FILE.py:NAME`.

To load such a cell, charlm runs the code in the file. A run directory may come from somebody else, so its use must not run code
unless the user agrees. Therefore nothing is loaded as a side effect: `cells.named` finds only cells that a call of `load` has
loaded before. A program calls `load` in two cases:

- The program begins a new run. In this case, the user has named the file.
- The program uses a run directory, and has called `trusted` without an error. `trusted` raises an error unless the user has
  given `--trust_code` and the file still has the SHA-256 digest that the run directory recorded when the run began.

`load` reads a file only once, and runs exactly the bytes whose digest it has computed. The digest covers only this file.
Therefore the file can import installed packages, but not the other files in its folder.
"""

import hashlib
import importlib.machinery
import os
import pathlib
import sys
import types
from collections.abc import Mapping

from ml_collections import ConfigDict

from charlm.config import keys
from charlm.config import load as config_load
from charlm.errors import UserError
from charlm.models import cells
from charlm.rundir.run import Run

_modules: dict[tuple[str, str], types.ModuleType] = {}  # (file, SHA-256 digest) → the module that the file made
_digests: dict[str, str] = {}  # FILE.py:NAME → SHA-256 digest of the file from which the cell in `cells.loaded` comes


def names(config: ConfigDict) -> list[str]:
    """The values FILE.py:NAME in `model.cell`. Empty if charlm itself has all cells of the config."""
    return keys.own_cells(config)


def load(config: ConfigDict, recorded: Mapping[str, str] | None = None) -> None:
    """Loads the cells of a config that are in files of the user. Runs the code in these files.

    A file that has not changed since an earlier call does not run again.

    Args:
      recorded: the result of `trusted`, if the config belongs to a run directory. None if the user has named the files.

    Raises:
      UserError: a file does not exist, has changed, or raises an exception, or NAME is not a cell in the file.
    """
    for name in names(config):
        file = file_of(name)
        source = _read(name, file)
        digest = hashlib.sha256(source).hexdigest()
        if recorded is not None and digest != recorded[file]:
            raise UserError(f"{file} has changed just now: give the command again.")
        if name in cells.loaded and _digests[name] == digest:
            continue
        if (file, digest) not in _modules:
            _modules[file, digest] = _module(name, file, source, digest)
        cells.loaded[name] = _cell_of(_modules[file, digest], name)
        _digests[name] = digest


def digests(config: ConfigDict) -> dict[str, str]:
    """File → SHA-256 digest of the code that `load` has run, for the user's files that a config names."""
    return {file_of(name): _digests[name] for name in names(config)}


def trusted(run: Run, trust_code: bool, given_as: str) -> dict[str, str]:
    """File → recorded SHA-256 digest, for the user's files that the config of a run names. Runs no code.

    Args:
      trust_code: whether the user trusts the code in these files.
      given_as: the name of the run in messages, such as `--workdir=runs/first`.

    Raises:
      UserError: `trust_code` is False although the config names a file, or a file has changed since the run began.
    """
    found = names(run.config())
    recorded = run.cells() if found else {}
    for name in found:
        file = file_of(name)
        if file not in recorded:
            raise UserError(f"{given_as}: cells.json has no digest of {file}: restore cells.json from a copy.")
        digest = hashlib.sha256(_read(name, file, given_as)).hexdigest()
        if digest != recorded[file]:
            flag = "" if trust_code else " and add --trust_code (in Python trust_code=True)"
            raise UserError(
                f"{given_as}: {file}, which holds the run's cell, has changed since the run began (SHA-256 {recorded[file]} "
                f"then, {digest} now): restore the file{flag}."
            )
        if not trust_code:
            raise UserError(
                f"{given_as}: the run's cell is code in {file}, and charlm would run this file: if you trust it, add "
                "--trust_code (in Python trust_code=True)."
            )
    return {file: recorded[file] for file in map(file_of, found)}


def file_of(name: str) -> str:
    """FILE.py of FILE.py:NAME."""
    return name.rpartition(":")[0]


def _read(name: str, file: str, given_as: str = "") -> bytes:
    try:
        return pathlib.Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError if the path can't be encoded
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise UserError(f"{f'{given_as}: ' if given_as else ''}model.cell={name}: {file} can't be read ({reason}).") from error


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs the bytes in `source`, whose digest is known. It does not read the file again, and uses no bytecode files (.pyc)."""

    def __init__(self, module: str, file: str, source: bytes):
        super().__init__(module, file)
        self._source = source

    def get_code(self, fullname: str) -> types.CodeType:
        del fullname
        return self.source_to_code(self._source, self.path)


def _module(name: str, file: str, source: bytes, digest: str) -> types.ModuleType:
    """The module that a file makes. Raises a UserError if the code in the file raises an exception."""
    module = types.ModuleType(f"charlm_own_cell_{digest}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # some libraries, such as dataclasses, look for the module here
    try:
        _Loader(module.__name__, file, source).exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        message = config_load.error_message(error, pathlib.Path(file), file)
        raise UserError(f"model.cell={name} can't be loaded: {message}") from error
    return module


def _cell_of(module: types.ModuleType, name: str) -> cells.Cell:
    path, _, attribute = name.rpartition(":")
    found = getattr(module, attribute, None)
    if isinstance(found, cells.Cell):
        return found
    if hasattr(module, attribute):
        kind = type(found).__name__
        raise UserError(f"model.cell={name}: {attribute} is of type {kind}, but must be a Cell of charlm.models.cells.")
    others = [key for key, value in vars(module).items() if isinstance(value, cells.Cell)]
    advice = f"its cells are {', '.join(others)}" if others else f"write {attribute} = Cell(...), see configs/README.md"
    raise UserError(f"model.cell={name}: {os.path.basename(path)} has no {attribute}: {advice}.")
