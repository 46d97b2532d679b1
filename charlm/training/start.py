"""Starts a training, and before that sets up the machine for JAX. The program `train` and `charlm.train` use this module."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from charlm import progress
from charlm.config import load
from charlm.data.framing import Framing
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.hardware.processes import ProcessSpec
from charlm.rundir.run import Run


def check_rows(config: ConfigDict, processes: int) -> int:
    """The number of rows in a batch. Raises a UserError if this number is not a multiple of `processes`."""
    rows = Framing.of(config).rows
    if rows % processes:
        raise UserError(f"batch.size={rows}: must be a multiple of {processes}, the number of processes.")
    return rows


def prepare(config: ConfigDict, spec: ProcessSpec, verbose: bool = False) -> None:
    """Sets options of XLA and the C library, and the cache of compiled programs.

    If JAX has already started, its devices stay as they are.

    Args:
      verbose: whether to print the settings for XLA and the C library.
    """
    rows = check_rows(config, spec.num_processes)
    settings = [] if devices.jax_has_started() else devices.prepare(config, rows, spec.num_processes)
    if verbose and spec.process_id == 0:
        for setting in settings:
            progress.tell(setting)
    cache.keep_compiled(cache.folder_of(config))  # imports JAX, which takes a second


def prepare_pack(config: ConfigDict, trials: int) -> None:
    """Sets options of XLA, and the cache of compiled programs, for a pack of trials; see `packing`."""
    devices.prepare_gpu(config)
    devices.prepare_cpu_for_trials(config, trials)
    cache.keep_compiled(cache.folder_of(config))


def train(config: ConfigDict, workdir: str | os.PathLike, extend: bool = False, trust_code: bool = False) -> dict[str, Any]:
    """Trains a config from Python; see `charlm.train`."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"config is a {type(config).__name__}: must be a ConfigDict, such as charlm.config.load.load returns.")
    checked = load.checked(config)
    spec = ProcessSpec(1, 0, None)
    if devices.jax_has_started():
        _note_missing_devices(checked)
    with _xla_flags_restored():
        prepare(checked, spec)
        _flags_in_effect.append(os.environ.get("XLA_FLAGS", ""))
        from charlm.training import train as training

        status = training.train(checked, os.fspath(workdir), extend=extend, trust_code=trust_code)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise SystemExit(status)
    return Run(workdir).status()


_flags_in_effect: list[str] = []  # XLA_FLAGS of each call of `train`; XLA keeps the flags of the first call


@contextlib.contextmanager
def _xla_flags_restored() -> Iterator[None]:
    """Restores XLA_FLAGS after a training, because programs that this process starts later may need other flags.

    JAX starts in the first training and keeps the flags of that training. Every later training therefore sets the same flags
    again, so that environment.json records the flags that JAX uses.
    """
    before = os.environ.get("XLA_FLAGS")
    if _flags_in_effect:
        os.environ["XLA_FLAGS"] = _flags_in_effect[0]
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = before


def _note_missing_devices(config: ConfigDict) -> None:
    """Prints a warning if JAX has started with fewer CPU devices than this training would use.

    Prints no warning if the user has set the number of devices in XLA_FLAGS.
    """
    import jax

    wanted, found = devices.cpu_devices(config, Framing.of(config).rows), len(jax.devices())
    by_user = "device_count=" in os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "cpu" and not by_user and found < wanted:
        progress.warn(
            f"JAX had already started, with {progress.counted(found, 'CPU device')} instead of {wanted}: "
            "this training is slower; call charlm.train before other JAX code."
        )
