"""The cache folder. The folder contains encoded long texts and compiled XLA programs. It can be deleted at any time.

JAX reads and writes the compiled programs. JAX itself does not notice every kind of damage: whether it does depends on the
library that compresses the programs, and a damaged program that JAX loads may compute wrong values. JAX also never replaces a
damaged program, so each later start compiles it again. `Checked` therefore keeps the SHA-256 of each program in a file beside
the program.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from charlm import files
from charlm.progress import warn

ENTRY, DIGEST = "-cache", "-sha256"  # the ends of file names: a compiled program (named by JAX), and its digest
LOCK = ".charlm-lock"
LOCK_TRIES = 40  # about two seconds: a process that holds the lock may be stopped, so the others do not wait for longer


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
    If the disk is full, JAX keeps no programs and prints no warning. A damaged program is compiled again, with a note.

    Args:
      folder: the cache folder, or None to turn caching off.
    """
    import jax

    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    _check_entries()
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


def _check_entries() -> None:
    """Makes JAX use its cache through `Checked`. The cache that JAX already uses, if any, is not changed.

    JAX has no public function for this. If a later version of JAX has changed, its cache is used without these checks.
    """
    from jax._src import compilation_cache

    make = getattr(compilation_cache, "get_file_cache", None)
    decompress = getattr(compilation_cache, "decompress_executable", None)
    if make is None or decompress is None or getattr(make, "is_checked", False):
        return

    def make_checked(path: str) -> Any:
        made = make(path)
        if made is None or "://" in path:  # a path like gs://bucket is not on this machine
            return made
        return Checked(made[0], pathlib.Path(path), decompress), made[1]

    make_checked.is_checked = True  # type: ignore[attr-defined]
    compilation_cache.get_file_cache = make_checked


class Checked:
    """JAX's cache of compiled programs, with a check of every program that is read. Has the methods of JAX's `CacheInterface`.

    The file KEY-sha256 has the digest of the file KEY-cache. A program without a digest was written by another program than
    charlm. It is only checked by decompressing it.
    """

    def __init__(self, cache: Any, folder: pathlib.Path, decompress: Callable[[bytes], bytes]):
        """Wraps a cache.

        Args:
          cache: JAX's own cache.
          folder: its folder.
          decompress: the function with which JAX decompresses a program. It raises an exception if bytes are missing.
        """
        self._cache, self._path, self._decompress = cache, folder, decompress

    def get(self, key: str) -> bytes | None:
        """The compressed program. None if the cache does not have the program, or only a damaged one, which is removed."""
        value: bytes | None = self._cache.get(key)
        if value is None or self._is_right(key, value):
            return value
        with self._locked():
            value = self._cache.get(key)  # another process may have just written it
            if value is None or self._is_right(key, value):
                return value
            warn(f"a compiled program in {self._path} is damaged: compiling it again.")
            with contextlib.suppress(OSError):
                self._file(key, ENTRY).unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Adds a program, unless the cache already has one with this key."""
        with self._locked():
            if not self._file(key, ENTRY).exists():
                # The digest comes first: if the process is killed in between, there is no program without its digest.
                self._file(key, DIGEST).write_text(hashlib.sha256(value).hexdigest(), encoding="ascii")
                try:
                    self._cache.put(key, value)
                except OSError:  # such as a full disk, which leaves a part of the program
                    self._file(key, ENTRY).unlink(missing_ok=True)
                    raise

    def _is_right(self, key: str, value: bytes) -> bool:
        try:
            digest = self._file(key, DIGEST).read_bytes()
        except FileNotFoundError:
            try:
                self._decompress(value)
            except Exception:  # which exception depends on the library that compresses
                return False
            return True
        return digest == hashlib.sha256(value).hexdigest().encode()

    def _file(self, key: str, end: str) -> pathlib.Path:
        return self._path / f"{key}{end}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes from seeing a program without its digest. Goes on without a lock if there is none in time.

        Without the lock, the worst that can happen is that a program is compiled once more.
        """
        try:
            lock = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # the folder can't be written
            yield
            return
        try:
            with contextlib.suppress(BlockingIOError):
                files.lock(lock, LOCK_TRIES)
            yield
        finally:
            os.close(lock)


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
