"""Reads pipes, writes files atomically, locks folders, adds seals to JSON texts, and puts JSON into HTML pages.

The last field of a sealed JSON object is `seal`, a digest of the text before this field. If a bit of the text flips later, the
seal no longer matches the text.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import select
import stat
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from charlm.errors import UserError
from charlm.progress import warn

MARK = '"seal": "'
RETRY_SECONDS = 0.05
PIPE_SECONDS = 10.0  # how long to wait for the program that writes to a pipe


def is_address(path: str) -> bool:
    """Whether the text is an internet address, such as https://example.com/text.txt, and not the path of a file."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def is_pipe(path: str) -> bool:
    """Whether the path is a pipe: a named one (FIFO), or one that the shell makes for `<(COMMAND)`."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read(path: str) -> bytes:
    """The bytes of a file or of a pipe.

    Raises:
      OSError: the file can't be read. Or the path is a named pipe, and no program opens it for writing within PIPE_SECONDS. An
        ordinary `open` would wait for this program forever.
    """
    if not is_pipe(path):
        return pathlib.Path(path).read_bytes()
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        ready = poll.poll(1000 * PIPE_SECONDS)  # also ends when a program has closed the pipe without writing
        beginning = pipe.read(1)  # None: a program has opened the pipe, but has not written yet
        if not ready and beginning == b"":
            raise TimeoutError(errno.ETIMEDOUT, "it is a pipe that no program writes to")
        os.set_blocking(pipe.fileno(), True)
        return (beginning or b"") + pipe.read()


def check_output(flag: str, file: str, suffixes: Sequence[str]) -> pathlib.Path:
    """Checks that a file for output can be written, before the output is computed. Returns its path.

    Raises:
      UserError: the name has another suffix, or the file can't be written. The message names the flag.
    """
    path = pathlib.Path(file)
    if path.suffix not in suffixes:
        raise UserError(f"--{flag}={file}: the name must end in {' or '.join(suffixes)}.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--{flag}={file} can't be written: give a file in a folder that exists and that you can write to.")
    return path


def write_output(flag: str, path: pathlib.Path, content: str | bytes) -> None:
    """Like `write`, but raises a UserError that names the flag if the file can't be written."""
    try:
        write(path, content)
    except OSError as error:
        raise UserError(f"--{flag}={path} can't be written ({error.strerror}): choose another file.") from error


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Creates or replaces a file atomically.

    Writes a temporary file in the same folder, syncs the temporary file to disk, and renames the temporary file to `path`.

    Raises:
      OSError: the file can't be written. An old file at `path` is unchanged.
    """
    temporary = path.parent / f"{path.name}.new"
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(file: pathlib.Path, attempts: int = 1) -> Iterator[TextIO]:
    """Locks a folder for one process. Yields the lock file, which may hold a text about this process.

    Both the folder itself and the lock file are locked with `flock`. The lock of the folder still holds if somebody deletes the
    lock file. The lock of the file holds between the machines of a network file system, where a folder can't be locked. The
    kernel releases both locks when the process ends, even if the process is killed. If the file system can lock neither, a note
    says so.

    Args:
      file: the lock file. Its folder must exist. The file is made if it does not exist.
      attempts: how many times to try. `is_locked` in another process may hold the locks for a moment.

    Raises:
      BlockingIOError: another process holds a lock.
      OSError: the lock file can't be written.
    """
    with contextlib.ExitStack() as stack:
        folder = os.open(file.parent, os.O_RDONLY)
        stack.callback(os.close, folder)
        folder_is_locked = lock(folder, attempts)
        opened_file = stack.enter_context(file.open("a+", encoding="utf-8"))
        if not lock(opened_file.fileno(), attempts) and not folder_is_locked:
            warn(f"{file.parent} is on a file system without locks: make sure that no other process writes to this folder.")
        yield opened_file


def lock(descriptor: int, attempts: int) -> bool:
    """Locks an open file or folder. Returns False if the file system can't lock it.

    Raises:
      BlockingIOError: another process still holds the lock at the last of the attempts.
    """
    for attempt in range(attempts):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt == attempts - 1:
                raise
            time.sleep(RETRY_SECONDS)
        except OSError:
            return False
    return True


def is_locked(file: pathlib.Path) -> bool:
    """Whether a process holds a lock of `locked(file)` now."""
    for path in (file.parent, file):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return False


def sealed(fields: dict, indent: int | None = None) -> str:
    """The fields as JSON, with a last field `seal`. The seal is a digest of the text before this field."""
    before, mark, after = json.dumps({**fields, "seal": ""}, indent=indent).rpartition(MARK)
    return before + mark + digest(before) + after


def opened(text: str) -> object:
    """The value of a JSON text, without the seal. A text without a seal is accepted, because older versions wrote no seals.

    Raises:
      ValueError: the text is not JSON, or the seal does not match the text.
    """
    fields = json.loads(text)
    if isinstance(fields, dict) and "seal" in fields and fields.pop("seal") != digest(text.rpartition(MARK)[0]):
        raise ValueError("its seal does not match its contents")
    return fields


def digest(text: str) -> str:
    """A short digest of a text. The text may contain unpaired surrogates."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def embedded(values: object) -> str:
    """The values as JSON that can stand inside an HTML script element, even if strings in the values contain HTML."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
