"""The vocabulary: a mapping between symbols and integer ids. The symbols are Unicode characters and a few special symbols.

A vocabulary can instead have the 256 bytes as symbols. A text is then encoded as the bytes of its UTF-8 form, so every text can
be encoded. Such a vocabulary has no `<unk>`.

In names of arrays, N is the number of symbols of a text: its characters, or its bytes.
"""

import codecs
import dataclasses
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from charlm.errors import UserError

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
NUM_CODE_POINTS = 0x110000
ADVICE = "train with vocab.unknown=true to map them to <unk>, or with vocab.source=corpus to include the symbols of all splits."
# The Unicode categories of odd characters: controls, invisible marks, undefined, private use, surrogates, and spaces.
ODD_CATEGORIES = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")
ORDINARY = " \t\n\u3000"  # characters in ODD_CATEGORIES that are common in texts; U+3000 is the space of Chinese
BYTES = "".join(map(chr, range(256)))  # the symbols of a vocabulary of bytes; the character U+00XX stands for the byte XX
BLOCK = 1 << 22  # the number of characters that are processed at a time; this saves memory for a large text


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A fixed mapping between symbols and ids. The special symbols have the first ids. The sorted characters have the next ids.

    Attributes:
      symbols: the distinct characters, sorted by code point. For a vocabulary of bytes, this is `BYTES`.
      specials: the special symbols in the vocabulary, in the order `<pad>`, `<eos>`, `<unk>`; not every corpus needs all three.
      of_bytes: whether the symbols are the 256 bytes.
    """

    symbols: str
    specials: tuple[str, ...] = ()
    of_bytes: bool = False

    @classmethod
    def of(cls, symbols: Iterable[str], unknown: bool, documents: bool = False) -> "Vocab":
        """Builds the vocabulary of the given characters.

        Args:
          symbols: the characters, in any order; repeats are allowed.
          unknown: whether to add `<unk>`. All characters that are not in `symbols` are then encoded as `<unk>`.
          documents: whether to add `<pad>` and `<eos>`.
        """
        return cls("".join(sorted(set(symbols))), ((PAD, EOS) if documents else ()) + ((UNK,) if unknown else ()))

    @classmethod
    def all_bytes(cls, documents: bool = False) -> "Vocab":
        """The vocabulary of the 256 bytes. `documents` says whether to add `<pad>` and `<eos>`."""
        return cls(BYTES, (PAD, EOS) if documents else (), of_bytes=True)

    def __len__(self) -> int:
        return len(self.specials) + len(self.symbols)

    def id_of(self, name: str) -> int | None:
        """The id of the special symbol `name`, or None if the vocabulary does not have this symbol."""
        return self.specials.index(name) if name in self.specials else None

    @property
    def names(self) -> tuple[str, ...]:
        """A unique name for each symbol, in the order of the ids.

        The name of a character is the character. The name of a byte below 0x80 is its ASCII character. The name of another byte
        is its number, such as `<0xC3>`, because such a byte is only a part of a character.
        """
        if not self.of_bytes:
            return (*self.specials, *self.symbols)
        return (*self.specials, *(chr(byte) if byte < 0x80 else f"<0x{byte:02X}>" for byte in range(256)))

    def never_drawn(self) -> tuple[int, ...]:
        """The ids of all special symbols except `<eos>`. They must not be sampled, because no text contains such symbols."""
        return tuple(index for index, name in enumerate(self.specials) if name != EOS)

    def missing(self, symbols: Iterable[str]) -> list[str]:
        """The distinct characters of `symbols` that can't be encoded, sorted.

        These are the characters that are not in the vocabulary. Bytes can encode every character except lone surrogates, which
        are halves of characters.
        """
        if self.of_bytes:
            return sorted(symbol for symbol in set(symbols) if "\ud800" <= symbol <= "\udfff")
        return sorted(set(symbols) - set(self.symbols))

    def length_of(self, text: str) -> int:
        """The number of ids of a text: the number of its characters, or of its bytes in UTF-8."""
        return len(text.encode("utf-8", "surrogatepass")) if self.of_bytes else len(text)

    def encode(self, text: str, where: str = "the text", advice: str = "") -> np.ndarray:
        """The (N,) ids of a text of N symbols, in a small unsigned integer type.

        Args:
          text: the text to encode.
          where: the name of the text in error messages.
          advice: what the user can do about unknown symbols, for error messages.

        Raises:
          UserError: the text has characters outside the vocabulary, and the vocabulary has no `<unk>`.
        """
        if self.of_bytes:
            return self._encode_bytes(text, where)
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
                advised = f"; {advice}" if advice else "."
                raise UserError(f"{where} has symbols that are not in the vocabulary: {unknown_symbols}{advised}")
            ids[start : start + BLOCK] = table[codes]
        return ids

    @property
    def sizes_V(self) -> np.ndarray:
        """(V,) uint8, the number of bytes of each symbol in UTF-8. A special symbol has no bytes."""
        sizes = np.ones(256, np.uint8) if self.of_bytes else utf8_sizes(self.symbols)
        return np.concatenate([np.zeros(len(self.specials), np.uint8), sizes])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids. A special symbol becomes its name, such as `<unk>`.

        Bytes that are not valid UTF-8 become U+FFFD.
        """
        return self.decoder()(ids, True)

    def decoder(self) -> Callable[[Iterable[int], bool], str]:
        """Returns a function that decodes a text piece by piece: (ids, is_last) → the text of these ids.

        If a piece ends in the middle of a character, the function keeps the first bytes of this character until the next piece.
        If `is_last` is true, no further piece follows, and these bytes become U+FFFD.
        """
        if not self.of_bytes:
            pieces = self.names
            return lambda ids, is_last: "".join(pieces[i] for i in ids)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")

        def decode(ids: Iterable[int], is_last: bool) -> str:
            texts = []
            for index in ids:
                byte = int(index) - len(self.specials)
                if byte < 0:  # a special symbol also ends an incomplete character
                    texts += [utf8.decode(b"", True), self.specials[index]]
                else:
                    texts.append(utf8.decode(bytes([byte])))
            return "".join([*texts, utf8.decode(b"", True) if is_last else ""])

        return decode

    def _encode_bytes(self, text: str, where: str) -> np.ndarray:
        try:
            bytes_N = np.frombuffer(text.encode("utf-8"), np.uint8)
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise UserError(f"{where} has half a character ({half}), which has no bytes in UTF-8: remove it.") from error
        dtype = np.min_scalar_type(len(self) - 1)
        return np.arange(len(self.specials), len(self), dtype=dtype)[bytes_N]

    def to_dict(self) -> dict:
        """The vocabulary as JSON values, as vocab.json stores it."""
        return {"specials": list(self.specials), "symbols": self.symbols} | ({"bytes": True} if self.of_bytes else {})

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
        vocab = cls(fields["symbols"], tuple(fields["specials"]), fields.get("bytes", False))
        if vocab.of_bytes not in (True, False) or (vocab.of_bytes and vocab.symbols != BYTES):
            raise ValueError("its symbols are not the 256 bytes")
        if not vocab.symbols or vocab.symbols != "".join(sorted(set(vocab.symbols))):
            raise ValueError("its symbols are not sorted and distinct")
        return vocab


def code_points(text: str) -> np.ndarray:
    """The Unicode code points of a text, (N,) uint32. A lone surrogate keeps its code point."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def utf8_sizes(text: str) -> np.ndarray:
    """The number of bytes of each character in UTF-8, (N,) uint8."""
    sizes_N = np.empty(len(text), np.uint8)
    for start in range(0, len(text), BLOCK):
        codes = code_points(text[start : start + BLOCK])
        sizes_N[start : start + BLOCK] = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return sizes_N


def symbols_of(text: str) -> str:
    """The distinct characters of a text, sorted by code point."""
    seen = np.zeros(NUM_CODE_POINTS, bool)
    for start in range(0, len(text), BLOCK):
        seen[code_points(text[start : start + BLOCK])] = True
    return "".join(map(chr, np.flatnonzero(seen)))


def counts_of(text: str, symbols: Iterable[str]) -> dict[str, int]:
    """Symbol → how often this symbol occurs in the text."""
    symbols = list(symbols)
    if not symbols:
        return {}
    codes = code_points("".join(symbols))
    counts = np.zeros(len(codes), np.int64)
    for start in range(0, len(text), BLOCK):
        counts += np.bincount(code_points(text[start : start + BLOCK]), minlength=NUM_CODE_POINTS)[codes]
    return dict(zip(symbols, counts.tolist(), strict=True))


def is_odd(symbol: str) -> bool:
    """Whether a character in a text is likely to be a mistake, because a reader does not see it or does not know its meaning.

    Such characters are control characters (except tab and line feed), marks such as U+FEFF, rare spaces such as U+00A0,
    characters for private use, characters that Unicode does not define, and U+FFFD, which replaces wrong bytes.
    """
    return symbol == "\ufffd" or (unicodedata.category(symbol) in ODD_CATEGORIES and symbol not in ORDINARY)


def shown(symbols: Iterable[str], limit: int = 20) -> str:
    """Lists characters in a message. Each character is quoted and followed by its code point, such as `'é' (U+00E9)`.

    Args:
      symbols: the characters.
      limit: the maximum number of characters to list. The text ends with the number of the other characters.
    """
    symbols = list(symbols)
    listed = ", ".join(f"{symbol!r} (U+{ord(symbol):04X})" for symbol in symbols[:limit])
    return listed + (f" and {len(symbols) - limit} more" if len(symbols) > limit else "")
