"""Tests that encodings are recognised, and that binary files are distinguished from texts. Python's codecs make the bytes."""
# ruff: noqa: RUF001

import random

import pytest

from charlm.data import encodings

RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
TEXTS = {
    "latin-1": "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch; die Vögelein schweigen im Walde.\n",
    "cp1252": "\u201cC\u2019est l\u2019été,\u201d dit-il \u2014 et la rivière coulait, très près, là où l\u2019on pêche.\n",
    "iso-8859-2": "Zażółć gęślą jaźń. Litwo! Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie\n",
    "cp1254": "Şu çılgın öküz, iğne ile kuyu kazıyor; bugün ışık güneşin altında değişiyor. Yağmur yağıyor.\n",
    "cp1251": RUSSIAN,
    "koi8-r": RUSSIAN,
    "cp866": RUSSIAN,
    "iso-8859-5": RUSSIAN,
    "cp1253": "Άνδρα μοι έννεπε, Μούσα, πολύτροπον, ος μάλα πολλά πλάγχθη, και είδε πολλές πόλεις των ανθρώπων.\n",
    "cp1255": "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו וחשך על פני תהום\n",
    "cp1256": "في البدء خلق الله السماوات والأرض وكانت الأرض خربة وخالية وعلى وجه الغمر ظلمة\n",
    "euc-kr": "태초에 하나님이 천지를 창조하시니라 땅이 혼돈하고 공허하며 흑암이 깊음 위에 있고\n",
    "shift_jis": JAPANESE,
    "euc-jp": JAPANESE,
    "gb18030": "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。\n",
    "big5": "話說天下大勢，分久必合，合久必分。周末七國分爭，并入於秦。\n",
    "cp874": "ในปฐมกาลพระเจ้าทรงสร้างฟ้าและแผ่นดิน แผ่นดินก็ว่างเปล่า\n",
    "utf-16-be": JAPANESE,
    "utf-16-le": "Plain English text, in which each letter is followed by a NUL, and a word with an é.\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_encoding_of_a_text_is_guessed(encoding):
    content = TEXTS[encoding].encode(encoding)
    with pytest.raises(UnicodeDecodeError):
        content.decode("utf-8")
    assert encodings.guess(content) == encoding
    # The guess may see only a part of a file. This part can begin and end inside a character.
    if not encoding.startswith("utf-16"):
        assert encodings.guess(content[1:] + content[:-1] * 2, is_start=False) == encoding


def test_a_damaged_utf8_text_and_random_bytes_are_not_guessed_as_another_encoding():
    assert encodings.guess("Ein schöner Tag für müde Füße.".encode() + b"\xff") == "utf-8"
    assert encodings.guess(RUSSIAN.encode()[:-20] + b"\xd0 " + RUSSIAN.encode()) == "utf-8"
    assert encodings.guess(random.Random(0).randbytes(5000)) is None
    assert encodings.guess(b"one wrong byte: \xff") is None


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_nuls_of_utf16_and_utf32_are_distinguished_from_nuls_in_a_text(block):
    def likely(content: bytes) -> str | None:
        text, nuls = content.decode("latin-1"), encodings.Nuls()
        for start in range(0, len(text), block):
            nuls.add(text[start : start + block])
        assert nuls.number == content.count(0)
        return nuls.encoding()

    english = "The quick brown fox jumps.\n"
    for encoding in ("utf-16-le", "utf-16-be"):
        assert likely(english.encode(encoding)) == encoding
        # In a Russian text, only the spaces, the line breaks and the punctuation have NULs.
        assert likely((RUSSIAN * 3).encode(encoding)) == encoding
    for encoding in ("utf-32-le", "utf-32-be"):
        assert likely(english.encode(encoding)) == encoding
        assert likely(RUSSIAN.encode(encoding)) == encoding
    assert likely("\0".join(["Anna", "Bo", "Cem", "Dorothea", "Eva"] * 20).encode()) is None  # names separated by NULs
    assert likely(b"a\0b" * 1000) is None
    assert likely(b"a\0" * 3) is None
    assert likely(bytes(100)) is None


def test_binary_files_are_recognised_in_every_encoding():
    noise = random.Random(1).randbytes(3000)
    tar_of_text = b"name.txt".ljust(257, b"\0") + b"ustar\0".ljust(255, b"\0") + b"Readable text. " * 5000
    for encoding in ("utf-8", "latin-1", "gb18030"):
        for binary in (
            noise,
            b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
            b"%PDF-1.4 (Readable)",
            tar_of_text,
            b"\x7fELF" + bytes(99),
        ):
            assert encodings.is_binary(binary, encoding), (encoding, binary[:20])
    for encoding, text in TEXTS.items():
        assert not encodings.is_binary(text.encode(encoding), encoding)
        if text != JAPANESE or not encoding.startswith("utf-16"):
            # This file is refused later, and the error guesses its encoding.
            assert not encodings.is_binary(text.encode(encoding), "utf-8"), encoding
    for text in ("", "A form feed\f\n", "An old end-of-file mark of DOS.\n\x1a", "\x1b[1mbold\x1b[0m", RUSSIAN):
        assert not encodings.is_binary(text.encode(), "utf-8")
    assert not encodings.is_binary("\ufeffText".encode("utf-16"), "utf-8")
