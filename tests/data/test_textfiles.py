"""Tests that the files of a folder are read in order and decoded. Python's own `open` decodes the files for comparison."""
# ruff: noqa: RUF001

import gzip
import os
import pathlib

import pytest

from charlm.config import load
from charlm.data import corpora, textfiles
from charlm.data.textfiles import Reading
from charlm.errors import UserError

BASE = "configs/base.py"


def text_of(path, **keys) -> str:
    """The text of a file or folder. `keys` has values for config keys of the section `corpus`."""
    overrides = {f"corpus.{key}": value for key, value in keys.items()}
    corpus = corpora.load(load.load(BASE, {"corpus.path": os.fspath(path), "corpus.split": (0.5, 0.5)} | overrides))
    return "".join(corpus.splits.values())


@pytest.fixture
def folder(tmp_path):
    """A typical folder of texts. It has subfolders, hidden files, a binary file, and texts without a final line break."""
    tree = tmp_path / "book"
    for name, content in {
        "10.txt": b"ten",
        "2.txt": b"two\n",
        "chapter 1/b.txt": b"one b\r\n",
        "chapter 1/a.txt": b"one a",
        "chapter 10/a.txt": b"ten a\r",
        "chapter 2/empty.txt": b"",
        "chapter 2/mark.txt": b"\xef\xbb\xbf",
        "zuletzt.txt.gz": gzip.compress(b"last", mtime=0),
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    return tree


def test_a_folder_is_read_with_its_subfolders_in_natural_order(folder, capsys):
    assert text_of(folder) == "two\nten\none a\none b\nten a\nlast"
    (note,) = capsys.readouterr().err.splitlines()
    assert note == (
        f"note: folder {folder}: read 8 files in natural order: 2.txt, 10.txt, chapter 1/a.txt, chapter 1/b.txt, "
        "chapter 2/empty.txt, chapter 2/mark.txt, chapter 10/a.txt, zuletzt.txt.gz; "
        "skipped .git (hidden), .hidden (hidden), picture.png (not text)."
    )
    # `keep` also removes the line breaks that charlm adds between files.
    assert text_of(folder, keep="abcdefghijklmnopqrstuvwxyz ") == "twotenone aone bten alast"
    assert text_of(folder, newlines=False) == "two\nten\none a\none b\r\nten a\rlast"


def test_with_folder_flat_a_folder_is_read_as_by_older_versions(folder, capsys):
    with pytest.raises(UserError, match=r"picture\.png is not UTF-8: byte 0x89 at offset 0"):
        text_of(folder, folder="flat")
    (folder / "picture.png").unlink()
    assert text_of(folder, folder="flat") == "ten" + "two\n" + "last"
    assert capsys.readouterr().err == ""


def test_documents_in_a_folder_are_read_in_natural_order(folder):
    corpus = corpora.load(
        load.load(
            BASE, {"corpus.path": str(folder), "corpus.documents": "lines", "corpus.split": (1.0,), "vocab.source": "corpus"}
        )
    )
    assert corpus.splits["train"] == ["two", "ten", "one a", "one b", "ten a", "last"]


def test_a_text_in_another_encoding_is_refused_and_not_skipped(folder):
    (folder / "deutsch.txt").write_bytes("Grüße aus Köln\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"deutsch\.txt is not UTF-8: .*looks like latin-1: set corpus\.encoding=latin-1"):
        text_of(folder)
    (folder / "deutsch.txt").write_bytes("A long text without umlauts.\n".encode("utf-16-be"))
    with pytest.raises(UserError, match=r"deutsch\.txt is full of NULs .*set corpus\.encoding=utf-16-be"):
        text_of(folder)


def test_links_to_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.txt").write_text("more")
    (folder / "a link").symlink_to(tmp_path / "elsewhere")
    (folder / "chapter 1" / "back").symlink_to(folder)  # this link inside the folder leads back to the folder
    assert text_of(folder) == "two\nten\nmore\none a\none b\nten a\nlast"


def test_a_folder_without_texts_is_refused_and_what_was_skipped_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(bytes(range(200)))
    for number in range(12):
        (tmp_path / f".{number}").write_text("x")
    with pytest.raises(UserError, match=r"has no text files .*skipped \.0 \(hidden\), .*\.9 \(hidden\) and 3 more\.$"):
        text_of(tmp_path)


def test_natural_order_compares_numbers_by_value():
    names = ["1.txt", "1a.txt", "2.txt", "10.txt", "10/1", "10/2", "10/10", "a1b2", "a1b10", "a02", "a2", "b"]
    paths = list(map(pathlib.PurePath, names))
    assert sorted(paths, key=textfiles.natural_order) == [
        pathlib.PurePath(name)
        for name in ["1.txt", "1a.txt", "2.txt", "10/1", "10/2", "10/10", "10.txt", "a1b2", "a1b10", "a02", "a2", "b"]
    ]


TEXT = "Łódź, größer, 中文。\n日本語 テスト\r\nПривет, мир 1\rnaïve €\n" * 3
ENCODINGS = ["utf-8", "utf-8-sig", "utf-7", "utf-16", "utf-16-be", "utf-32-le", "gb18030", "raw_unicode_escape"]


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 22])
@pytest.mark.parametrize("encoding", [*ENCODINGS, "latin-1", "shift_jis", "iso2022_jp", "big5", "cp037", "koi8-r"])
def test_every_encoding_is_read_as_python_reads_it(tmp_path, monkeypatch, encoding, block):
    text = TEXT.encode(encoding, "ignore").decode(encoding) if encoding not in ENCODINGS else TEXT
    (tmp_path / "text").write_bytes(text.encode(encoding))
    monkeypatch.setattr(textfiles, "BLOCK", block)
    with open(tmp_path / "text", encoding=encoding, newline=None) as file:
        assert text_of(tmp_path / "text", encoding=encoding) == file.read().removeprefix("\ufeff")


@pytest.mark.parametrize("configured", ["utf-8", "gb18030", "utf-16-be"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding, configured):
    (tmp_path / "text").write_bytes("Ünïcode \ufeff inside\n".encode(encoding))  # these codecs write a byte-order mark
    assert text_of(tmp_path / "text", encoding=configured) == "Ünïcode \ufeff inside\n"
    other = "\ufeffÜ 中\n".encode("utf-32-be"), "\ufeffÜ 中\n".encode("utf-16-be")
    for content in other:
        (tmp_path / "text").write_bytes(content)
        assert text_of(tmp_path / "text", encoding=configured) == "Ü 中\n"


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (
            "Größe und Übermut\n".encode("latin-1"),
            "utf-8",
            "byte 0xf6 at offset 2; the file looks like latin-1: set corpus.enc",
        ),
        ("春来雨落风落水夜\n".encode("gb18030") * 3, "utf-8", "byte 0xb4 at offset 0; the file looks like gb18030: set corpus"),
        (
            "Größe, Übermut, süß\n".encode() + b"\xff",
            "utf-8",
            "byte 0xff at offset 25, but the text near this byte is UTF-8: the file is",
        ),
        (b"abc\xff", "utf-8", "is not UTF-8: byte 0xff at offset 3: set corpus.encoding to the encoding of the file, or"),
        (
            "Größe und Übermut\n".encode("latin-1"),
            "ascii",
            "is not ascii: .* set corpus.encoding=latin-1, or convert the file to ascii",
        ),
        (
            "Größe und Übermut, süß\n".encode(),
            "euc-kr",
            "looks like utf-8: set corpus.encoding=utf-8, or convert the file to euc-",
        ),
        (
            "odd number of bytes".encode("utf-16") + b"!",
            "utf-8",
            "is not utf-16-le: .*although the byte-order mark at the start",
        ),
        ("plain text, twice\n".encode("utf-16-le"), "utf-8", r"NULs \(18 of 36 characters\), like UTF-16 .*encoding=utf-16-le"),
        ("plain text, twice\n".encode("utf-16-be"), "latin-1", r"corpus.encoding=utf-16-be instead of latin-1"),
        (b"padded" + bytes(90), "utf-8", "text is no text: 90 of 96 characters are NULs"),
        ("plain text, twice\n".encode("utf-16-be"), "utf-16", r"has no byte-order mark, .*utf-16 needs: set .*=utf-16-be\."),
        (b"plain text", "utf-32", r"=utf-32 needs: set corpus.encoding=utf-32-le, utf-32-be or the encoding of the file\."),
        (b"ab\x1b$$$$$$$$$$$$$", "iso2022_kr", r"is not iso2022_kr \(pending buffer overflow\): set corpus.encoding to"),
        (b"half: \\ud83d\n", "raw_unicode_escape", r"has half a character \(\\ud83d\): correct the file"),
    ],
)
def test_a_wrong_encoding_is_refused_with_a_hint(tmp_path, monkeypatch, content, encoding, message):
    file = tmp_path / "text"
    file.write_bytes(content)
    messages = set()
    for block in (1 << 22, 5, 1):
        monkeypatch.setattr(textfiles, "BLOCK", block)
        with pytest.raises(UserError, match=message) as error:
            textfiles.text_of(file, Reading(encoding))
        messages.add(str(error.value))
    assert len(messages) == 1


def test_the_encoding_is_guessed_from_the_text_near_the_wrong_byte(tmp_path):
    (tmp_path / "text").write_bytes(b"Only ASCII at first.\n" * 10_000 + "für Größe, später schön\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"byte 0xfc at offset 210,001; the file looks like latin-1"):
        text_of(tmp_path / "text")


@pytest.mark.parametrize("encoding", ["utf8", "Latin1", "cp1252", "GB18030", "utf_16_le"])
def test_names_of_text_encodings_are_accepted(encoding):
    assert load.load(BASE, {"corpus.encoding": encoding}).corpus.encoding == encoding


@pytest.mark.parametrize(
    "encoding", ["utf-88", "", "rot13", "hex", "base64", "zip", "idna", "punycode", "undefined", "a\0b", "é"]
)
def test_other_codecs_are_refused(encoding):
    with pytest.raises(UserError, match=r"^corpus\.encoding=.*: must be a text encoding of Python, such as utf-8"):
        load.load(BASE, {"corpus.encoding": encoding})


def test_old_mac_line_breaks_and_an_inner_byte_order_mark_are_kept(tmp_path):
    (tmp_path / "cr").write_bytes(b"one\rtwo\rthree")
    assert text_of(tmp_path / "cr") == "one\ntwo\nthree"
    (tmp_path / "mark").write_bytes("\ufeffone \ufeff two".encode())
    assert text_of(tmp_path / "mark") == "one \ufeff two"
