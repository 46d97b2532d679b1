"""The vocabulary: a mapping between symbols (Unicode characters and a few special symbols) and integer ids.

In names of arrays, N is the number of characters of a text.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from charlm.errors import UserError

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
NUM_CODE_POINTS = 0x110000
HINT = "train with vocab.unknown=true to map them to <unk>, or with vocab.source=corpus to include the symbols of all splits."
BLOCK = 1 << 22  # the number of characters that are processed at a time; this saves memory for a large text


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A fixed mapping between symbols and ids. The special symbols have the first ids. The sorted characters have the next ids.

    Attributes:
      symbols: the distinct characters, sorted by code point.
      specials: the special symbols in the vocabulary, in the order `<pad>`, `<eos>`, `<unk>`; not every corpus needs all three.
    """

    symbols: str
    specials: tuple[str, ...] = ()

    @classmethod
    def of(cls, symbols: Iterable[str], unknown: bool, documents: bool = False) -> "Vocab":
        """Builds the vocabulary of the given characters.

        Args:
          symbols: the characters, in any order; repeats are allowed.
          unknown: whether to add `<unk>`. All characters that are not in `symbols` are then encoded as `<unk>`.
          documents: whether to add `<pad>` and `<eos>`.
        """
        return cls("".join(sorted(set(symbols))), ((PAD, EOS) if documents else ()) + ((UNK,) if unknown else ()))

    def __len__(self) -> int:
        return len(self.specials) + len(self.symbols)

    def id_of(self, name: str) -> int | None:
        """The id of the special symbol `name`, or None if the vocabulary does not have this symbol."""
        return self.specials.index(name) if name in self.specials else None

    @property
    def names(self) -> tuple[str, ...]:
        """A unique name for each symbol, in the order of the ids."""
        return (*self.specials, *self.symbols)

    def never_drawn(self) -> tuple[int, ...]:
        """The ids of all special symbols except `<eos>`. They must not be sampled, because no text contains such symbols."""
        return tuple(index for index, name in enumerate(self.specials) if name != EOS)

    def missing(self, symbols: Iterable[str]) -> list[str]:
        """The distinct characters of `symbols` that are not in the vocabulary, sorted."""
        return sorted(set(symbols) - set(self.symbols))

    def length_of(self, text: str) -> int:
        """The number of ids of a text: the number of its characters."""
        return len(text)

    def encode(self, text: str, where: str = "the text") -> np.ndarray:
        """The (N,) ids of a text of N characters, in the smallest unsigned integer type that holds the vocabulary's size.

        Args:
          text: the text to encode.
          where: the name of the text in error messages.

        Raises:
          UserError: the text has characters outside the vocabulary, and the vocabulary has no `<unk>`.
        """
        dtype = np.min_scalar_type(len(self))
        known = np.zeros(NUM_CODE_POINTS, bool)
        table = np.full(NUM_CODE_POINTS, self.id_of(UNK) or 0, dtype)
        codes = code_points(self.symbols)
        known[codes] = True
        table[codes] = np.arange(len(self.specials), len(self), dtype=dtype)
        ids = np.empty(len(text), dtype)
        for start in range(0, len(text), BLOCK):
            codes = code_points(text[start : start + BLOCK])
            if UNK not in self.specials and not known[codes].all():
                unknown_symbols = shown(self.missing(symbols_of(text)))
                raise UserError(f"{where} has symbols that are not in the vocabulary: {unknown_symbols}; {HINT}")
            ids[start : start + BLOCK] = table[codes]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. A special symbol becomes its name, such as `<unk>`."""
        pieces = (*self.specials, *self.symbols)
        return "".join(pieces[i] for i in ids)

    def to_dict(self) -> dict:
        """The vocabulary as JSON values, as vocab.json stores it."""
        return {"specials": list(self.specials), "symbols": self.symbols}

    @classmethod
    def from_dict(cls, fields: dict) -> "Vocab":
        """Restores a vocabulary from the result of `to_dict`.

        Raises:
          ValueError: a field is missing or of the wrong type, or the symbols are not sorted and distinct.
        """
        if not isinstance(fields.get("symbols"), str):
            raise ValueError("it has no symbols")
        if not isinstance(fields.get("specials"), list):
            raise ValueError("it has no list of specials")
        vocab = cls(fields["symbols"], tuple(fields["specials"]))
        if not vocab.symbols or vocab.symbols != "".join(sorted(set(vocab.symbols))):
            raise ValueError("its symbols are not sorted and distinct")
        return vocab


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text, (N,) uint32. A lone surrogate keeps its code point."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def symbols_of(text: str) -> str:
    """The distinct characters of a text, sorted by code point."""
    seen = np.zeros(NUM_CODE_POINTS, bool)
    for start in range(0, len(text), BLOCK):
        seen[code_points(text[start : start + BLOCK])] = True
    return "".join(map(chr, np.flatnonzero(seen)))


def shown(symbols: Iterable[str], limit: int = 20) -> str:
    """Lists characters in a message. Each character is quoted and followed by its code point, such as `'é' (U+00E9)`.

    Args:
      symbols: the characters.
      limit: the maximum number of characters to list. The text ends with the number of the other characters.
    """
    symbols = list(symbols)
    listed = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in symbols[:limit])
    return listed + (f" and {len(symbols) - limit} more" if len(symbols) > limit else "")
