"""The cache folder. The folder contains encoded long texts and compiled XLA programs. It can be deleted at any time."""

import hashlib
import os
import pathlib
import platform
import warnings

from ml_collections import ConfigDict

from charlm.progress import warn


def folder_of(config: ConfigDict) -> pathlib.Path | None:
    """Returns the cache folder that a config sets, or by default the user's cache folder. Returns None if caching is off."""
    path = config.cache_dir
    if path is None:
        return _default_folder()
    return pathlib.Path(path) if path else None


def user_folder(config: ConfigDict) -> pathlib.Path | None:
    """Returns the user's default cache folder, or None if the config turns caching off.

    Programs that read a run use this folder. The run may come from another person, so the programs do not load compiled code
    from the folder in the run's config.
    """
    return _default_folder() if folder_of(config) else None


def keep_compiled(folder: pathlib.Path | None) -> None:
    """Lets JAX keep compiled programs in the cache folder, so that later starts do not compile the programs again.

    Code compiled for one kind of processor may not run on another kind, so each kind of processor has its own subfolder.
    If the user or an earlier call has already set the cache folder of JAX, this function does not change that setting.
    If the disk is full, JAX keeps no programs and prints no warning.

    Args:
      folder: the cache folder, or None to turn caching off.
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
            "set cache_dir to another folder, or use an empty cache_dir to turn caching off."
        )
        return
    jax.config.update("jax_compilation_cache_dir", os.fspath(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def _default_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "charlm"


def _processor() -> str:
    """Returns a text that is different for each kind of processor."""
    try:
        description = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        lines = [line for line in description.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        lines = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *lines]).encode()).hexdigest()[:16]
