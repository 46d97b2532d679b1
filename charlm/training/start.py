"""Starting a training: the machine is set up before JAX starts, for the program `train` and for `charlm.train` alike."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from charlm import progress
from charlm.config import load
from charlm.data.batches import Framing
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.hardware.processes import ProcessSpec
from charlm.rundir.run import Run


def check_rows(config: ConfigDict, processes: int) -> int:
    """The rows of a batch. Raises a UserError if so many processes can't share them evenly."""
    rows = Framing.of(config).rows
    if rows % processes:
        raise UserError(f"batch.size={rows}: must be a multiple of {processes}, the number of processes.")
    return rows


def prepare(config: ConfigDict, spec: ProcessSpec, verbose: bool = False) -> None:
    """Sets up virtual CPU devices and the cache of compiled programs. Call it before JAX is used.

    Args:
      verbose: whether to print what is set for XLA and the C library.
    """
    settings = devices.prepare_cpu(config, check_rows(config, spec.num_processes), spec.num_processes)
    if verbose and spec.process_id == 0:
        for setting in settings:
            progress.tell(setting)
    cache.keep_compiled(cache.folder_of(config))  # imports JAX, which takes a second


def train(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains a config from Python; see `charlm.train`."""
    checked = load.checked(config)
    spec = ProcessSpec(1, 0, None)
    with _environment_restored():
        prepare(checked, spec)
        from charlm.training import train as training

        _note_missing_devices(checked)
        status = training.train(checked, os.fspath(workdir))
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)
    return Run(workdir).status()


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Puts XLA_FLAGS back afterwards: what suits this training need not suit programs that this process starts later."""
    before = os.environ.get("XLA_FLAGS")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = before


def _note_missing_devices(config: ConfigDict) -> None:
    """Prints a note if JAX had started before, with fewer CPU devices than this training would use."""
    import jax

    wanted = devices.cpu_devices(config, Framing.of(config).rows)
    found, is_set_here = len(jax.devices()), f"device_count={wanted}" in os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "cpu" and is_set_here and found < wanted:
        progress.warn(
            f"JAX had started before, with {progress.counted(found, 'CPU device')} instead of {wanted}: "
            "this training is slower; call charlm.train before other JAX code."
        )
