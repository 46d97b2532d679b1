"""The cache folder: encodings of long texts, and programs that XLA has compiled. All of it can be deleted at any time."""

import hashlib
import os
import pathlib
import platform
import warnings

from charlm.progress import warn


def folder_of(config) -> pathlib.Path | None:
    """Where it is, or None where the config wants none."""
    path = config.cache_dir
    if path is None:
        return _default_folder()
    return pathlib.Path(path) if path else None


def own_folder(config) -> pathlib.Path | None:
    """The user's own, for programs that read a run which may come from elsewhere: compiled code is loaded from none that a run
    names. None where its config wants none."""
    return _default_folder() if folder_of(config) else None


def _default_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "charlm"


def keep_compiled(folder: pathlib.Path | None) -> None:
    """Has JAX keep what it compiles there, so that the next start of the same program does not wait for the compiler.

    What is compiled for one processor may not run on another one that shares the folder: each kind has a folder of its own. A
    JAX_COMPILATION_CACHE_DIR of the user's stands. On a full disk nothing is kept, without a word.
    """
    import jax

    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")

    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    compiled = folder / "compiled" / _processor()
    try:
        compiled.mkdir(parents=True, exist_ok=True)
        usable = os.access(compiled, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        warn(f"the cache folder {folder} can't be written, so that nothing compiled is kept: cache_dir names another, or none.")
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _processor() -> str:
    try:
        about = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        lines = [line for line in about.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        lines = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *lines]).encode()).hexdigest()[:16]
