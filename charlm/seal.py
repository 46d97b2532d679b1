"""Seals: a digest within each JSON text of a run directory, so that a flipped bit is noticed wherever it is."""

import hashlib
import json

MARK = '"seal": "'


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
