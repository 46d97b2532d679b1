"""Recognises the encoding of a text file: by its byte-order mark, by its NUL characters, or by a guess from its letters.

No function in this module reads a file. Each function gets bytes or text of a file.
"""

import codecs
import unicodedata
from collections.abc import Callable

# The marks of UTF-32 come first, because the mark of UTF-32 (little-endian) begins with the mark of UTF-16 (little-endian).
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK_BYTES = max(len(mark) for mark, _ in MARKS)
CONTROLS_OF_TEXT = "\b\t\n\v\f\r\x1b"  # control characters that text files have: white space, and the codes of terminals
TAR, PDF = b"ustar", b"%PDF-"  # the signatures of two binary formats that can consist of readable characters only
# In the comments below, "beyond ASCII" describes a byte or a character of at least 0x80. Each of these numbers is a fraction.
UTF16_NULS = 0.05  # a text can be wrongly decoded UTF-16 or UTF-32 if at least this fraction of its characters are NULs
SAME_PARITY = 0.95  # a text is UTF-16 if at least this fraction of the NULs are at odd positions, or at even positions
MOSTLY_NULS = 0.5  # a file is no text if at least this fraction of its characters are NULs
BINARY_CONTROLS = 0.1  # a file that can be decoded is binary if more than this fraction are control characters
BINARY_CONTROLS_UNDECODED = 0.01  # the same fraction, for a file that can't be decoded
LIKELY = 0.8  # an encoding is guessed if at least this fraction of the characters beyond ASCII are common in its languages
DAMAGED = 0.75  # a text is damaged UTF-8 if more than this fraction of the characters beyond ASCII are valid UTF-8
LATIN = ("latin-1", "cp1252", "iso-8859-2", "cp1250", "cp1254")  # encodings of languages that use mostly the letters of ASCII
FEWEST_BYTES = 4  # to guess any other encoding, at least this number of bytes beyond ASCII is needed
FEWEST_NULS = 8  # a text with fewer NULs is never taken for UTF-16 or UTF-32


def marked(head: bytes) -> str | None:
    """The encoding of a file according to the byte-order mark at its start. None if the file has no mark.

    Args:
      head: the first bytes of the file, at least `MARK_BYTES` bytes unless the file is shorter.
    """
    return next((encoding for mark, encoding in MARKS if head.startswith(mark)), None)


class Nuls:
    """Counts the NUL characters of a text, separately at the positions 0, 1, 2 and 3 modulo 4. The text is added in blocks.

    If UTF-16 is read as UTF-8 or Latin-1, each Latin letter and each space is followed or preceded by a NUL, so that all NULs
    are at odd positions or all are at even positions. If UTF-32 is read in this way, two of the four positions have only NULs.
    """

    def __init__(self) -> None:
        self.chars, self.at = 0, [0, 0, 0, 0]

    def add(self, text: str) -> None:
        if "\0" in text:
            for position in range(4):
                self.at[(self.chars + position) % 4] += text[position::4].count("\0")
        self.chars += len(text)

    @property
    def number(self) -> int:
        return sum(self.at)

    def are_most(self) -> bool:
        """Whether most characters are NULs."""
        return self.number >= max(FEWEST_NULS, MOSTLY_NULS * self.chars)

    def encoding(self) -> str | None:
        """The true encoding of a text that was read in a wrong encoding, such as `utf-16-le`.

        The positions of the NULs show this encoding. The result is None if they show no other encoding.
        """
        if self.number < max(FEWEST_NULS, UTF16_NULS * self.chars):
            return None
        odd, even = self.at[1] + self.at[3], self.at[0] + self.at[2]
        if max(odd, even) >= SAME_PARITY * self.number:
            return "utf-16-le" if odd > even else "utf-16-be"
        only_nuls = [self.at[position] == len(range(position, self.chars, 4)) for position in range(4)]
        if only_nuls[2] and only_nuls[3] and not only_nuls[0]:
            return "utf-32-le"
        return "utf-32-be" if only_nuls[0] and only_nuls[1] and not only_nuls[3] else None


def is_binary(head: bytes, encoding: str) -> bool:
    """Whether a file is not a text.

    The result is also False for a text that is not in `encoding`. Such a text is then read, and its wrong encoding is reported
    to the user. If it were called binary, it would be skipped.

    Args:
      head: the first bytes of the file, several ten thousand bytes.
      encoding: the encoding that a text without a byte-order mark should have.
    """
    if marked(head):
        return False
    if head[257:262] == TAR or head.startswith(PDF):
        return True
    text = _decoded(head, encoding)
    if text is None:  # bytes from 0x80 to 0x9F are control characters in Latin-1, but letters in many other encodings
        text = head.decode("latin-1")
        controls, limit = sum(symbol < " " and symbol not in CONTROLS_OF_TEXT for symbol in text), BINARY_CONTROLS_UNDECODED
    else:
        controls = sum(unicodedata.category(symbol) == "Cc" and symbol not in CONTROLS_OF_TEXT for symbol in text)
        limit = BINARY_CONTROLS
    nuls = Nuls()
    nuls.add(text)
    return nuls.encoding() is None and controls > limit * len(text)


def guess(window: bytes, is_start: bool = True) -> str | None:
    """The likely encoding of a text whose encoding is not known. None if no encoding is likely.

    The result `utf-8` means that the text is UTF-8 in which a few bytes are damaged.

    Each candidate is tried. The score of a candidate is the fraction of the characters beyond ASCII that are common in the
    languages for which the encoding is used.

    Args:
      window: a part of the file.
      is_start: whether `window` is the start of the file. Otherwise, the first line of the window is left out, because the
        window may begin in the middle of a character.
    """
    nuls = Nuls()
    nuls.add(window.decode("latin-1"))
    if nuls.encoding():
        return nuls.encoding()
    sample = window if is_start else window.partition(b"\n")[2] or window
    if _is_damaged_utf8(sample):
        return "utf-8"
    beyond_ascii, letters = sum(byte >= 0x80 for byte in sample), sum(byte < 0x80 and chr(byte).isalpha() for byte in sample)
    candidates = {
        encoding: is_common
        for encoding, is_common in _candidates().items()
        if (beyond_ascii <= letters if encoding in LATIN else beyond_ascii >= FEWEST_BYTES)
    }
    scores = {encoding: _score(sample, encoding, is_common) for encoding, is_common in candidates.items()}
    best = max(scores, key=lambda encoding: scores[encoding], default="")  # the first candidate with the highest score
    return best if best and scores[best] >= LIKELY else None


def _is_damaged_utf8(sample: bytes) -> bool:
    decoded = sample.decode("utf-8", "replace")
    wrong, beyond_ascii = decoded.count("\ufffd"), sum(symbol > "\x7f" for symbol in decoded)
    return beyond_ascii - wrong > DAMAGED * beyond_ascii


def _score(sample: bytes, encoding: str, is_common: Callable[[str], bool]) -> float:
    text = _decoded(sample, encoding)
    beyond_ascii = [symbol for symbol in text or "" if symbol > "\x7f"]
    return sum(map(is_common, beyond_ascii)) / len(beyond_ascii) if beyond_ascii else 0.0


def _decoded(sample: bytes, encoding: str) -> str | None:
    """The decoded sample, or None if it can't be decoded. A character that is cut at the end is left out."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeError:
        return None


def _candidates() -> dict[str, Callable[[str], bool]]:
    """Encoding → a function that says whether a character is common in the languages for which this encoding is used.

    If two encodings have the same score in `guess`, the encoding that comes first in this dict is chosen.
    """
    western = set("àáâãäåæçèéêëìíîïñòóôõöøùúûüßÀÁÂÄÅÇÈÉÊÍÑÓÔÖØÚÛÜ«»¿¡°§·º")
    central = set("ąćęłńóśźżáčďéěíňřšťúůýžőűöüäôľĺŕăâîşţŁŚŻŹČŘŠŽ")
    cyrillic = set("оеаинтсрвлкмдпуяыьгзбі")
    punctuation = set("“”‘’—–…€•")  # noqa: RUF001
    chinese = set("，。、；：？！“”‘’（）《》「」—…·\u3000")  # noqa: RUF001
    japanese = set(map(chr, range(0x3041, 0x30FF))) | chinese | _characters("euc-jp", range(0xB0, 0xD0))
    simplified = chinese | _characters("gb2312", range(0xB0, 0xD8))
    traditional = chinese | _characters("big5", range(0xA4, 0xC7), range(0x40, 0xFF))
    korean = set(map(chr, range(0xAC00, 0xD7A4))) | chinese
    common = {
        "latin-1": western,
        "cp1252": western | punctuation,
        "iso-8859-2": central,
        "cp1250": central | punctuation,
        "cp1254": western | set("ğışİŞĞ") | punctuation,
        "cp1251": cyrillic | set("«»№") | punctuation,
        "koi8-r": cyrillic,
        "cp866": cyrillic,
        "iso-8859-5": cyrillic,
        "cp1253": set("αοιετσνηυρπκμλςγδωθχάίόέήύώ«»") | punctuation,
        "cp1255": set("יוהלארמתשבנדםפקחעגטצכסזךןףץ") | punctuation,
        "cp1256": set("اليمنرتوبعدسهفقحكةجىأشصخ،") | punctuation,
        "euc-kr": korean,
        "shift_jis": japanese,
        "euc-jp": japanese,
        "gb18030": simplified,
        "big5": traditional,
        "cp874": set("กขคงจชดตถทธนบปผพภมยรลวศสหอะาำิีึืุูเแโใไ็่้์ั") | punctuation,
        "utf-16-le": simplified | japanese | korean,
        "utf-16-be": simplified | japanese | korean,
    }
    return {encoding: symbols.__contains__ for encoding, symbols in common.items()}


def _characters(encoding: str, first_bytes: range, second_bytes: range = range(0xA1, 0xFF)) -> set[str]:
    """The characters that a two-byte encoding writes as a byte of `first_bytes` and then a byte of `second_bytes`.

    The ranges in `_candidates` give the more common Chinese characters.
    """
    return {symbol for a in first_bytes for b in second_bytes for symbol in bytes((a, b)).decode(encoding, "ignore")}
