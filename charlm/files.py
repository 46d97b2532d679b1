"""Writes files atomically, adds seals to JSON texts, and puts JSON into HTML pages.

The last field of a sealed JSON object is `seal`, a digest of the text before this field. If a bit of the text flips later, the
seal no longer matches the text.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence

from charlm.errors import UserError

MARK = '"seal": "'


def is_address(path: str) -> bool:
    """Whether the text is an internet address, such as https://example.com/text.txt, and not the path of a file."""
    return re.match("[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


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
