"""Tests of long texts, which charlm encodes on disk. The batches must be the same as for the same text in memory."""

import dataclasses
import gzip
import os

import numpy as np
import pytest
from faults.runs import make_text

from charlm.config import load as config
from charlm.data import batches, corpora, longtext, textfiles
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.data.vocab import Vocab
from charlm.errors import UserError

# A text whose normalisation could go wrong at the border of two blocks, such as inside "\r\n" or inside a character.
AWKWARD = (
    "\ufeffWord \u03a3\u0391\u03a3 \u0130stanbul\r\nabc\rdef\r\n\r\n" + make_text(900) + "caf\u00e9 \U0001f600 \ufeff " * 3
)


def load_both_ways(path, tmp_path, monkeypatch, block=7, **keys):
    """Loads the corpus twice: first as strings in memory, then as an encoding on disk.

    Args:
      block: the number of bytes that are read and encoded at a time.
      keys: values of config keys in the section `corpus`.

    Returns:
      The corpus in memory, and the corpus on disk.
    """
    overrides = {f"corpus.{key}": value for key, value in keys.items()}
    loaded = config.load("configs/base.py", {"corpus.path": os.fspath(path), "cache_dir": f"{tmp_path}/cache"} | overrides)
    in_memory = corpora.load(loaded)
    monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", 0)
    monkeypatch.setattr(longtext, "BLOCK", block)
    monkeypatch.setattr(textfiles, "BLOCK", block)
    return in_memory, corpora.load(loaded)


@pytest.mark.parametrize("keys", [{}, {"lowercase": True}, {"newlines": False}, {"keep": "abcdeß\n\ufeff "}], ids=str)
@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_text_and_provenance_are_the_same_as_in_memory(tmp_path, monkeypatch, keys, block):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(AWKWARD.encode() + b"\x07\x07")
    (folder / "b.txt.gz").write_bytes(gzip.compress(AWKWARD[::-1].encode(), mtime=0))
    in_memory, on_disk = load_both_ways(folder, tmp_path, monkeypatch, block, split=(0.7, 0.2, 0.1), **keys)
    assert {name: str(split) for name, split in on_disk.splits.items()} == in_memory.splits
    assert on_disk.provenance == in_memory.provenance
    if keys == {}:
        assert on_disk.provenance["odd_symbols"] == {"\x07": 2, "\ufeff": 7}  # without the byte-order mark of a.txt
    assert all(isinstance(split, longtext.LongText) for split in on_disk.splits.values())


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("keys", [{}, {"newlines": False}, {"lowercase": True}, {"keep": "abcdeß\n\ufeff "}], ids=str)
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le", "shift_jis"])
def test_texts_in_other_encodings_are_the_same_as_in_memory(tmp_path, monkeypatch, encoding, keys, block):
    text = "Größe, \u4e2d\u6587\r\nstra\u03a3\ufeffe\rabc \ufeff" * 30
    file = tmp_path / "text"
    file.write_bytes(text.encode(encoding, "ignore"))
    in_memory, on_disk = load_both_ways(file, tmp_path, monkeypatch, block, encoding=encoding, **keys)
    assert {name: str(split) for name, split in on_disk.splits.items()} == in_memory.splits
    assert on_disk.provenance == in_memory.provenance
    if keys == {"newlines": False}:
        assert "".join(in_memory.splits.values()) == text.encode(encoding, "ignore").decode(encoding).removeprefix("\ufeff")


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("keys", [{}, {"newlines": False}, {"keep": "abcdeß "}, {"folder": "flat"}], ids=str)
def test_folders_are_the_same_as_in_memory(tmp_path, monkeypatch, capsys, keys, block):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    contents = {
        "10.txt": "ten\r",
        "2.txt": "two",
        "3.txt": "",
        "4.txt": "\ufeff",
        "5.txt": "\n",
        "6.txt": "\ufeff\ufeffsix \u2028",
        "more/1": "é",
        "z": "last",
    }
    for name, text in contents.items():
        (folder / name).write_bytes(text.encode())
    if "folder" not in keys:
        (folder / "more/0").write_bytes(b"\xff\xfec\0a\0f\0\xe9\0")  # UTF-16 with a byte-order mark
        (folder / "more/picture").write_bytes(bytes(range(256)))
    in_memory, on_disk = load_both_ways(folder, tmp_path, monkeypatch, block, split=(0.5, 0.5), **keys)
    assert {name: str(split) for name, split in on_disk.splits.items()} == in_memory.splits
    assert on_disk.provenance == in_memory.provenance
    notes = [line for line in capsys.readouterr().err.splitlines() if "encoding" not in line]
    assert len(notes) == (0 if "folder" in keys else 2)
    assert len(set(notes)) <= 1
    if not keys:
        text = "".join(in_memory.splits.values())
        assert text == "two\n\n\ufeffsix \u2028\nten\ncafé\né\nlast"


def test_another_encoding_or_another_way_to_join_files_is_another_entry_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / name).write_bytes(b"\xc3\xa4" * 20)
    texts = set()
    for keys in ({"encoding": "utf-8"}, {"encoding": "latin-1"}, {"encoding": "latin-1", "folder": "flat"}):
        in_memory, on_disk = load_both_ways(tmp_path / "texts", tmp_path, monkeypatch, **keys)
        assert "".join(map(str, on_disk.splits.values())) == "".join(map(str, in_memory.splits.values()))
        texts.add("".join(map(str, on_disk.splits.values())))
    assert texts == {"ä" * 20 + "\n" + "ä" * 20, "Ã¤" * 20 + "\n" + "Ã¤" * 20, "Ã¤" * 40}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Grüße aus Köln\n".encode("latin-1"), "is not UTF-8: byte 0xfc at offset 2; the file looks like latin-1"),
        ("plain text\n".encode("utf-16-le") * 20, r"is full of NULs \(220 of 440 characters\), like UTF-16"),
        ("x" * 25 + "a\0b\0" * 30, "is full of NULs"),
    ],
)
def test_wrong_encodings_give_the_same_error_as_in_memory(tmp_path, monkeypatch, content, message):
    file = tmp_path / "text"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    loaded = config.load("configs/base.py", {"corpus.path": str(file), "cache_dir": f"{tmp_path}/cache"})
    messages = set()
    for long_text_bytes in (corpora.LONG_TEXT_BYTES, 0):
        for block in (1, 7, 10_000):
            monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", long_text_bytes)
            monkeypatch.setattr(textfiles, "BLOCK", block)
            with pytest.raises(UserError, match=message) as error:
                corpora.load(loaded)
            messages.add(str(error.value))
    assert len(messages) == 1


def test_a_text_with_700_symbols_is_the_same_as_in_memory(tmp_path, monkeypatch):
    file = tmp_path / "symbols.txt"
    file.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 700))) * 2, encoding="utf-8")
    in_memory, on_disk = load_both_ways(file, tmp_path, monkeypatch, split=(0.5, 0.5))
    assert on_disk.splits["train"].codes_N.dtype == np.uint16
    assert {name: str(split) for name, split in on_disk.splits.items()} == in_memory.splits


@pytest.mark.parametrize("unknown", [False, True])
def test_batches_are_the_same_as_in_memory(tmp_path, monkeypatch, unknown):
    file = tmp_path / "text.txt"
    file.write_text(make_text(4000) + "ZZ" * unknown, encoding="utf-8")  # Z occurs only in the validation split
    in_memory, on_disk = load_both_ways(file, tmp_path, monkeypatch)
    vocab = Vocab.of(corpora.symbols_in(on_disk.splits["train"]), unknown)
    assert vocab == Vocab.of(corpora.symbols_in(in_memory.splits["train"]), unknown)
    framing = Framing("stream", 4, 16, True, 1, True, 16, "masked")
    for split in ("train", "validation"):
        expected, encoded = (encode(vocab, corpus.splits[split], split) for corpus in (in_memory, on_disk))
        assert np.array_equal(encoded.ids_N[np.arange(len(encoded.ids_N))], expected.ids_N)
        for actual, wanted in zip(
            (batches.training_batches(framing, encoded, 3).batch_at(step) for step in range(9)),
            (batches.training_batches(framing, expected, 3).batch_at(step) for step in range(9)),
            strict=True,
        ):
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(actual, wanted, strict=True))
        for actual, wanted in zip(
            batches.evaluation_windows(encoded.ids_N, 50, 3, 10),
            batches.evaluation_windows(expected.ids_N, 50, 3, 10),
            strict=True,
        ):
            assert all(np.array_equal(a, b) for a, b in zip(actual, wanted, strict=True))


def test_symbols_outside_the_vocabulary_give_the_same_error(tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(make_text(1000) + "Z", encoding="utf-8")
    messages = set()
    for corpus in load_both_ways(file, tmp_path, monkeypatch):
        vocab = Vocab.of(corpora.symbols_in(corpus.splits["train"]), unknown=False)
        with pytest.raises(UserError, match="Z") as error:
            encode(vocab, corpus.splits["validation"], "the validation split")
        messages.add(str(error.value))
    assert len(messages) == 1


def test_a_text_is_encoded_again_only_after_a_change_or_damage(tmp_path, monkeypatch, capsys):
    file = tmp_path / "text.txt"
    file.write_text("One text.\n" * 20, encoding="utf-8")
    encodings = lambda: [path for path in sorted((tmp_path / "cache/corpora").iterdir()) if path.is_dir()]  # noqa: E731
    _, first = load_both_ways(file, tmp_path, monkeypatch)
    assert "encoding" in capsys.readouterr().err
    (encoding,) = encodings()
    _, reused = load_both_ways(file, tmp_path, monkeypatch)
    assert capsys.readouterr().err == ""
    assert reused.provenance == first.provenance
    load_both_ways(file, tmp_path, monkeypatch, lowercase=True)
    assert len(encodings()) == 2
    file.write_text("One toxt.\n" * 20, encoding="utf-8")
    _, other = load_both_ways(file, tmp_path, monkeypatch)
    assert len(encodings()) == 3
    assert str(other.splits["train"]).startswith("One toxt.")
    file.write_text("One text.\n" * 20, encoding="utf-8")
    codes = (encoding / "codes").read_bytes()
    for damage in (
        lambda: (encoding / "about.json").unlink(),
        lambda: (encoding / "codes").write_bytes(b"\0\1"),
        lambda: (encoding / "codes").write_bytes(codes[:9] + bytes([codes[9] ^ 1]) + codes[10:]),
    ):
        damage()
        capsys.readouterr()
        _, repaired = load_both_ways(file, tmp_path, monkeypatch)
        assert "is damaged or of an older version: encoding the text again." in capsys.readouterr().err
        assert repaired.provenance == first.provenance
        assert str(repaired.splits["train"]) == str(first.splits["train"])


@pytest.mark.parametrize("raw", [b"good text \xff bad", b"cut inside a character \xe2\x82", b"x" * 30 + b"\xc3\x28"])
def test_a_byte_that_is_not_utf8_is_reported_with_its_offset(tmp_path, monkeypatch, raw):
    file = tmp_path / "bad.txt"
    file.write_bytes(raw)
    loaded = config.load("configs/base.py", {"corpus.path": str(file), "cache_dir": f"{tmp_path}/cache"})
    messages = set()
    for long_text_bytes, block in ((corpora.LONG_TEXT_BYTES, 7), (0, 1), (0, 4), (0, 1000)):
        monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", long_text_bytes)
        monkeypatch.setattr(longtext, "BLOCK", block)
        monkeypatch.setattr(textfiles, "BLOCK", block)
        with pytest.raises(UserError, match="not UTF-8") as error:
            corpora.load(loaded)
        messages.add(str(error.value))
    assert len(messages) == 1
    assert not [path for path in (tmp_path / "cache/corpora").glob("*") if path.is_dir()]  # no incomplete encoding remains


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "growing.txt"
    file.write_text("One text.\n" * 20, encoding="utf-8")
    loaded = config.load("configs/base.py", {"corpus.path": str(file), "cache_dir": f"{tmp_path}/cache"})
    monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", 0)
    reads, original_raw = [], textfiles.raw

    def raw_of_a_growing_file(path):
        reads.append(path)
        if len(reads) == 3:  # the first read makes the hash, the second finds the symbols, and the third writes the codes
            path.write_text("One text.\n" * 20 + "Z", encoding="utf-8")
        return original_raw(path)

    monkeypatch.setattr(textfiles, "raw", raw_of_a_growing_file)
    with pytest.raises(UserError, match=r"growing\.txt changed while it was read: start again once it is complete"):
        corpora.load(loaded)
    assert not [path for path in (tmp_path / "cache/corpora").iterdir() if path.is_dir()]


def test_two_files_and_one_file_with_a_null_character_have_different_hashes(tmp_path, monkeypatch):
    texts = {"one": ["x" * 30 + "\0" + "y" * 30], "two": ["x" * 30, "y" * 30]}
    hashes = set()
    for name, contents in texts.items():
        (tmp_path / name).mkdir()
        for number, content in enumerate(contents):
            (tmp_path / name / f"{number}.txt").write_text(content, encoding="utf-8")
        in_memory, on_disk = load_both_ways(tmp_path / name, tmp_path, monkeypatch)
        assert on_disk.provenance["sha256"] == in_memory.provenance["sha256"]
        hashes.add(on_disk.provenance["sha256"])
        monkeypatch.undo()
    assert len(hashes) == 2


def test_a_cache_that_cannot_be_written_is_reported_with_its_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file, not a folder")
    text = tmp_path / "text.txt"
    text.write_text("One text.\n" * 20, encoding="utf-8")
    monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", 0)
    loaded = config.load("configs/base.py", {"corpus.path": str(text), "cache_dir": f"{tmp_path}/file"})
    with pytest.raises(UserError, match=f"can't be written to {tmp_path}/file/corpora .*: set cache_dir to another folder"):
        corpora.load(loaded)


def test_without_a_cache_folder_long_texts_are_held_in_memory(tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text("One text.\n" * 20, encoding="utf-8")
    monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", 0)
    corpus = corpora.load(config.load("configs/base.py", {"corpus.path": str(file), "cache_dir": ""}))
    assert isinstance(corpus.splits["train"], str)


def test_excerpts_are_the_same_as_in_memory(tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(make_text(2000), encoding="utf-8")
    in_memory, on_disk = load_both_ways(file, tmp_path, monkeypatch)
    for seed in range(5):
        texts = [corpora.excerpt(corpus.splits["train"], 40, seed) for corpus in (in_memory, on_disk)]
        assert texts[0] == texts[1]
        assert isinstance(texts[1], str)


def test_a_split_of_a_long_text_does_not_have_the_hash_of_the_whole_text(tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(make_text(500), encoding="utf-8")
    _, on_disk = load_both_ways(file, tmp_path, monkeypatch)
    assert all(split.sha256 is None for split in on_disk.splits.values())
    assert dataclasses.replace(on_disk.splits["train"], sha256="x").sha256 == "x"
