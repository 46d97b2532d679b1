"""The vocabulary: which symbols there are, and which integer stands for which.

Letters: N symbols of a text.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from charlm.errors import UserError

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
NUM_CODE_POINTS = 0x110000
HINT = "training with vocab.unknown=true maps such symbols to <unk>, with vocab.source=corpus takes in all splits."
BLOCK = 1 << 22  # symbols looked at together, so that a large text costs little beyond itself


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Ids 0, 1, … stand for the specials and then for the symbols, in sorted order.

    Attributes:
      symbols: distinct characters, sorted by code point.
      specials: `<pad>`, `<eos>` and `<unk>`, those that the corpus needs, in this order; they stand for no single character.
    """

    symbols: str
    specials: tuple[str, ...] = ()

    @classmethod
    def of(cls, symbols: Iterable[str], unknown: bool, documents: bool = False) -> "Vocab":
        """The vocabulary of the given characters, with `<unk>` where `unknown` is set, `<pad>` and `<eos>` for documents."""
        return cls("".join(sorted(set(symbols))), ((PAD, EOS) if documents else ()) + ((UNK,) if unknown else ()))

    def __len__(self) -> int:
        return len(self.specials) + len(self.symbols)

    def id_of(self, name: str) -> int | None:
        """The id of a special, or None where the vocabulary has it not."""
        return self.specials.index(name) if name in self.specials else None

    def never_drawn(self) -> tuple[int, ...]:
        """Ids that a sample must not contain, since no text has them: all specials but the end of a document."""
        return tuple(index for index, name in enumerate(self.specials) if name != EOS)

    def missing(self, symbols: Iterable[str]) -> list[str]:
        """Those of the given characters that are not in the vocabulary, sorted, each once."""
        return sorted(set(symbols) - set(self.symbols))

    def encode(self, text: str, where: str = "the text") -> np.ndarray:
        """Turns (N,) characters into (N,) ids of the smallest unsigned type that holds them.

        Raises:
          UserError: the text has symbols outside a vocabulary without `<unk>`. `where` names the text in the message.
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
                strangers = shown(self.missing(symbols_of(text)))
                raise UserError(f"{where} has symbols the vocabulary has not: {strangers}; " + HINT)
            ids[start : start + BLOCK] = table[codes]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Turns ids into text; a special becomes its name."""
        pieces = (*self.specials, *self.symbols)
        return "".join(pieces[i] for i in ids)

    def to_dict(self) -> dict:
        return {"specials": list(self.specials), "symbols": self.symbols}

    @classmethod
    def from_dict(cls, fields: dict) -> "Vocab":
        """Reads what `to_dict` gave.

        Raises:
          ValueError: this is not such a vocabulary.
        """
        if not isinstance(fields.get("symbols"), str):
            raise ValueError("no symbols in it")
        if not isinstance(fields.get("specials"), list):
            raise ValueError("no list of specials in it")
        vocab = cls(fields["symbols"], tuple(fields["specials"]))
        if not vocab.symbols or vocab.symbols != "".join(sorted(set(vocab.symbols))):
            raise ValueError("its symbols are not sorted and distinct")
        return vocab


def code_points(text: str) -> np.ndarray:
    """(N,) uint32 Unicode code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def symbols_of(text: str) -> str:
    """The distinct characters of a text, sorted by code point."""
    seen = np.zeros(NUM_CODE_POINTS, bool)
    for start in range(0, len(text), BLOCK):
        seen[code_points(text[start : start + BLOCK])] = True
    return "".join(map(chr, np.flatnonzero(seen)))


def shown(symbols: Iterable[str], most: int = 20) -> str:
    """Characters as a person can read them in a message: quoted, with code point, the first `most` of them."""
    symbols = list(symbols)
    listed = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in symbols[:most])
    return listed + (f" and {len(symbols) - most} more" if len(symbols) > most else "")
