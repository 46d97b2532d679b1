"""Tests that a file of any bytes is read as Python reads it, or refused with one sentence. Hypothesis makes the inputs."""

import codecs
import contextlib
import os
from encodings.aliases import aliases

import numpy as np
import pytest
from conftest import slow
from hypothesis import example, given, settings, strategies

from charlm.config import keys
from charlm.data import corpora, encodings, textfiles
from charlm.data.ids import encode
from charlm.data.textfiles import Reading
from charlm.errors import UserError


def is_allowed(encoding: str) -> bool:
    return keys.KEYS["corpus.encoding"].rule.is_right(encoding)


# All codecs of this Python, including codecs that are not for text.
CODECS = sorted(
    {
        *aliases.values(),
        "utf-8",
        "utf-8-sig",
        "utf-16",
        "utf-32",
        "idna",
        "punycode",
        "undefined",
        "unicode_escape",
        "raw_unicode_escape",
    }
)
ENCODINGS = [name for name in CODECS if is_allowed(name)]
SYMBOLS = strategies.sampled_from("ab \n\r\0\t+-~\\ux\x1b\x85\ufeff\u2028éß中あ한\U0001f600")
MARKS = strategies.sampled_from(encodings.MARKS)
CONTENTS = strategies.one_of(
    strategies.binary(max_size=60),
    strategies.tuples(strategies.text(SYMBOLS, max_size=30), strategies.sampled_from(ENCODINGS)).map(
        lambda pair: pair[0].encode(pair[1], "ignore")
    ),
    strategies.tuples(strategies.sampled_from([mark for mark, _ in encodings.MARKS]), strategies.binary(max_size=30)).map(
        b"".join
    ),
    strategies.lists(strategies.sampled_from([b"\x1b$B", b"\x1b(J", b"\\u", b"+", b"~{", b"12", b"d8", b"\n"])).map(b"".join),
)
NORMALISE = corpora.Normalisation(newlines=False, lowercase=False, keep="")


def read(file, encoding: str, folder=None, is_long: bool = False, block: int = 1 << 22) -> corpora.Split:
    """Reads a file as a text in memory, or as a text on disk whose bytes arrive in blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "LONG_TEXT_BYTES", 0 if is_long else 10**9)
        patch.setattr(textfiles, "BLOCK", block)
        return corpora.read(os.fspath(file), NORMALISE, "", folder, Reading(encoding))[0]


def test_only_codecs_that_read_files_are_allowed():
    assert len(ENCODINGS) > 80
    refused = {
        "base64_codec",
        "bz2_codec",
        "hex_codec",
        "rot_13",
        "zlib_codec",
        "idna",
        "punycode",
        "undefined",
        "unicode_escape",
    }
    assert refused <= set(CODECS) - set(ENCODINGS)


@pytest.mark.parametrize("examples", [100, slow(3000)])
def test_any_bytes_in_any_encoding_are_read_or_refused_with_one_sentence(examples, tmp_path):
    """The text in memory and the text on disk must equal the text that Python decodes from the whole file."""

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(content=CONTENTS, encoding=strategies.sampled_from(ENCODINGS), block=strategies.integers(1, 7))
    @example(content=b"plain", encoding="utf-16", block=2)
    @example(content=b"plain", encoding="utf-32", block=5)
    @example(content=b"\x1b$$$$$$$$$$$$$$$", encoding="iso2022_kr", block=1)
    def check(content, encoding, block):
        (tmp_path / "text").write_bytes(content)
        results = [text_or_none(tmp_path / "text", encoding, tmp_path / "cache", is_long, block) for is_long in (False, True)]
        assert results[0] == results[1]
        used = encodings.marked(content[:4]) or encoding
        if results[0] is not None:
            assert results[0] == content.decode(used).removeprefix("\ufeff")
        elif codecs.lookup(used).name not in textfiles.NEED_A_MARK:
            with contextlib.suppress(UnicodeError):  # charlm may refuse bytes that Python accepts
                text = content.decode(used)
                assert text.count("\0") >= 8 or any("\ud800" <= symbol <= "\udfff" for symbol in text)

    check()


def text_or_none(file, *arguments) -> str | None:
    """The text that `read` returns, or None if `read` refuses the file with one sentence."""
    try:
        return str(read(file, *arguments))
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{file} ")
    assert message.endswith(".")
    assert "\n" not in message
    return None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    text=strategies.text(SYMBOLS | strategies.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    encoding=strategies.sampled_from(ENCODINGS),
    mark=strategies.none() | MARKS,
    block=strategies.integers(1, 7),
)
def test_a_text_is_read_back_from_every_encoding_with_and_without_a_byte_order_mark(
    text, encoding, mark, block, tmp_path_factory
):
    """A text in memory and a text on disk have the same characters, the same vocabulary and the same ids."""
    folder = tmp_path_factory.getbasetemp() / "round_trip"
    folder.mkdir(exist_ok=True)
    if mark:
        content = mark[0] + text.encode(mark[1])
    else:
        # An encoding may lack some symbols or read them back as other symbols. The test expects the text that Python reads.
        try:
            content = text.encode(encoding, "ignore")
            text = content.decode(encoding)
        except UnicodeError:  # the codec can't read what it wrote
            return
    if text.count("\0") >= 8 or encodings.marked(content[:4]) != (mark and mark[1]):
        return  # charlm may take the bytes for UTF-16, or the bytes begin by chance with a byte-order mark
    (folder / "text").write_bytes(content)
    expected = text if mark else text.removeprefix("\ufeff")
    short = read(folder / "text", encoding)
    long = read(folder / "text", encoding, folder / "cache", True, block)
    assert short == str(long) == expected
    if expected:
        vocab = corpora.Vocab.of(corpora.symbols_in(long), unknown=False)
        assert vocab.symbols == "".join(sorted(set(expected)))
        ids = [encode(vocab, split, "the text").ids_N for split in (short, long)]
        np.testing.assert_array_equal(ids[1][np.arange(len(expected))], ids[0])
        assert [vocab.symbols[index] for index in ids[0]] == list(expected)
