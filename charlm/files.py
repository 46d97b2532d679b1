"""Files that are written whole or not at all, and JSON texts with a seal.

A seal is a digest inside the text. It reveals a flipped bit anywhere in the text.
"""

import hashlib
import json
import os
import pathlib

MARK = '"seal": "'


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file, or replaces it: a temporary file beside it is written, synced to disk and renamed.

    Raises:
      OSError: it can't be written; an old file stays as it is.
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
    """The fields as JSON, with one more field at the end: `seal`, a digest of the text before it."""
    before, mark, after = json.dumps({**fields, "seal": ""}, indent=indent).rpartition(MARK)
    return before + mark + digest(before) + after


def opened(text: str) -> object:
    """The value of a JSON text, without its seal. Texts of older versions have no seal.

    Raises:
      ValueError: the text is not JSON, or does not match its seal.
    """
    fields = json.loads(text)
    if isinstance(fields, dict) and "seal" in fields and fields.pop("seal") != digest(text.rpartition(MARK)[0]):
        raise ValueError("its seal does not match its contents")
    return fields


def digest(text: str) -> str:
    """A short digest of a text, which may hold unpaired surrogates."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
