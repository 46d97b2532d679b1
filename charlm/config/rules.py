"""Rules for the values of config keys: which values are allowed, and how messages describe the allowed values.

Rules with the names of cells, optimisers and the like are in `keys`, next to the table of keys.
"""

import codecs
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from charlm.files import is_address

MOST = 3e38  # just below the largest float32
# These codecs of Python are not for text files. The codecs idna and punycode encode names of internet hosts, and unicode-escape
# encodes string literals. Their decoders can't decode a file block by block.
NO_ENCODINGS_OF_FILES = ("idna", "punycode", "unicode-escape")


class Rule(NamedTuple):
    """The rule for the values of a key.

    Attributes:
      is_right: function that returns whether a value of the key's type is allowed.
      words: description of the allowed values; messages print it after "must be".
      options: the names that are allowed values, if the rule lists names.
    """

    is_right: Callable[..., bool]
    words: str
    options: tuple[str, ...] = ()


def one_of(*options: str) -> Rule:
    return Rule(lambda value: value in options, f"one of {', '.join(options)}", options)


def _are_fractions(value: tuple) -> bool:
    numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in value)
    return numbers and len(value) in (1, 2, 3) and min(value) > 0 and math.isclose(sum(value), 1)


def _are_widths(value: tuple) -> bool:
    return all(isinstance(width, int) and not isinstance(width, bool) and 0 < width < 2**31 for width in value)


def _is_document_form(value: str) -> bool:
    form, _, argument = value.partition(":")
    return value in ("", "lines", "blank", "files") or (form in ("separator", "csv", "jsonl") and argument != "")


def _is_text_encoding(value: str) -> bool:
    try:
        "a".encode(value)  # raises a LookupError for an unknown codec and for a codec that is not for text
        return codecs.lookup(value).name not in NO_ENCODINGS_OF_FILES
    except (LookupError, ValueError):
        return False


def own_cell(value: object) -> tuple[str, str] | None:
    """Splits FILE.py:NAME, a value of `model.cell` that names a cell in the user's own file, into the file and the name.

    Returns None for any other value.
    """
    match = re.fullmatch(r"([^\0]*[^\0/]\.py):([A-Za-z_][A-Za-z0-9_]*)", value, re.DOTALL) if isinstance(value, str) else None
    return None if match is None or is_address(match[0]) else (match[1], match[2])


ANY = Rule(lambda value: True, "")
POSITIVE = Rule(lambda value: value > 0, "positive")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "0 or more")
FRACTION = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
NOT_EMPTY = Rule(lambda value: value != "", "at least one character")
LOCAL = Rule(
    lambda value: value != "" and not is_address(value),
    "a file or folder on this machine, not an internet address: download the text first, for example with curl -LO ADDRESS, or "
    "set corpus.name to a corpus that charlm can fetch, such as tiny_shakespeare",
)
SEED = Rule(lambda value: 0 <= value < 2**32, "from 0 to 4294967295")
FROM_0_TO_1 = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
INSIDE_0_AND_1 = Rule(lambda value: 0 < value < 1, "above 0 and below 1")
FACTOR = Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")
SPLIT = Rule(_are_fractions, "one to three positive fractions that sum to 1, such as (0.9,0.1)")
WIDTHS = Rule(_are_widths, "a tuple of positive integers, such as (256,128), or () for model.hidden units in every layer")
DATASET = Rule(lambda value: value.count(":") == 1, "DATASET:FEATURE, such as ag_news_subset:title")
ENCODING = Rule(_is_text_encoding, "a text encoding of Python, such as utf-8, utf-16-le, latin-1 or gb18030")
DOCUMENTS = Rule(_is_document_form, "empty, lines, blank, files, separator:TEXT, csv:COLUMN or jsonl:FIELD")
