"""The cache folder: encodings of long texts, and programs that XLA has compiled. It can be deleted at any time."""

import hashlib
import os
import pathlib
import platform
import warnings

from ml_collections import ConfigDict

from charlm.progress import warn


def folder_of(config: ConfigDict) -> pathlib.Path | None:
    """The cache folder that the config names, by default that of the user; None if the config says to use none."""
    path = config.cache_dir
    if path is None:
        return _default_folder()
    return pathlib.Path(path) if path else None


def user_folder(config: ConfigDict) -> pathlib.Path | None:
    """The user's default cache folder; None if the config says to use none.

    For programs that read a run. A run may come from someone else, so they load no compiled code from a folder that it names.
    """
    return _default_folder() if folder_of(config) else None


def keep_compiled(folder: pathlib.Path | None) -> None:
    """Lets JAX keep compiled programs in a folder, so that the next start does not wait for the compiler.

    Code compiled for one processor may not run on another one that uses the same folder, so each kind of processor has its own
    subfolder. If JAX has a folder already, which the user or an earlier call has set, nothing is changed. If the disk is full,
    programs are silently not kept.

    Args:
      folder: the cache folder; None for no cache.
    """
    import jax

    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")

    if folder is None or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    compiled = folder / "compiled" / _processor()
    try:
        compiled.mkdir(parents=True, exist_ok=True)
        usable = os.access(compiled, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        warn(
            f"the cache folder {folder} can't be written, so compiled programs are not kept: "
            "set cache_dir to another folder, or to nothing for no cache."
        )
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _default_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "charlm"


def _processor() -> str:
    """A hash that differs between kinds of processors."""
    try:
        description = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        lines = [line for line in description.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        lines = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *lines]).encode()).hexdigest()[:16]
