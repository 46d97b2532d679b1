"""Describes one start of a training: its command, the code, the packages and the machine."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

PACKAGES = ("charlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def entry(device: str, parameters: int, total_steps: int, kernel: str | None, extensions: int) -> dict[str, Any]:
    """An entry of environment.json for a start of the training in this process.

    Args:
      device: description of the devices that train.
      parameters: number of parameters.
      total_steps: number of steps of the whole training.
      kernel: the program that runs the layers. None: nothing is trained.
      extensions: number of changes in extensions.json.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.orig_argv,
        "directory": os.getcwd(),
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": device,
        "kernel": kernel,
        "machine": f"{platform.node()} {platform.machine()} {os.cpu_count()} cores",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "parameters": parameters,
        "total_steps": total_steps,
        "extensions": extensions,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this Git checkout, with a final `+` if tracked files have changed. None if this is not a checkout."""
    git = ["git", "-C", os.fspath(pathlib.Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
        return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
