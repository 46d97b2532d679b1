"""Files that are written whole or not at all, and JSON texts with a seal.

A seal is a digest within the text, so that a flipped bit is noticed wherever it is.
"""

import hashlib
import json
import os
import pathlib

MARK = '"seal": "'


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file, or makes it: a temporary one beside it is written, brought to disk and renamed.

    Raises:
      OSError: it can't be written; what stood there stands.
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
    """JSON of these fields and, last of all, `seal`: a digest of the text before it."""
    before, mark, after = json.dumps({**fields, "seal": ""}, indent=indent).rpartition(MARK)
    return before + mark + digest(before) + after


def opened(text: str) -> object:
    """What a JSON text says, without its seal. Texts of older versions have none.

    Raises:
      ValueError: it is no JSON, or not what was sealed.
    """
    fields = json.loads(text)
    if isinstance(fields, dict) and "seal" in fields and fields.pop("seal") != digest(text.rpartition(MARK)[0]):
        raise ValueError("its seal does not fit its contents")
    return fields


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
