"""Texts from files and from the tiny Shakespeare builder: cut, normalised, refused."""

import dataclasses
import gzip
import hashlib
import lzma
import os
import subprocess
import sys

import pytest
from conftest import SHARED_CORPORA

from charlm import corpora
from charlm.errors import UserError
from configs import base

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def config_of(path, **keys):
    config = base.get_config()
    config.corpus.path = os.fspath(path)
    for key, value in keys.items():
        config.corpus[key] = value
    return config


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ((0.9, 0.1), [1_003_854, 111_540]),
        ((0.9, 0.05, 0.05), [1_003_854, 55_770, 55_770]),
        ((0.8, 0.1, 0.1), [892_315, 111_539, 111_540]),
    ],
)
def test_cuts_are_contiguous_with_the_counts_of_the_literature(split, counts):
    text = "".join(chr(65 + k % 50) for k in range(1_115_394))
    splits = corpora.cut(text, split)
    assert list(splits) == ["train", "validation", "test"][: len(split)]
    assert [len(part) for part in splits.values()] == counts
    assert "".join(splits.values()) == text


def test_a_folder_of_plain_and_packed_files_is_sorted_and_joined(tmp_path):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"second "))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress("third é".encode()))
    (tmp_path / "a.txt").write_text("first ", encoding="utf-8")
    (tmp_path / ".hidden").write_text("never", encoding="utf-8")
    corpus = corpora.load(config_of(tmp_path, split=(0.5, 0.5)))
    assert "".join(corpus.splits.values()) == "first second third é"
    assert [os.path.basename(file) for file in corpus.provenance["files"]] == ["a.txt", "b.txt.gz", "c.txt.xz"]
    assert corpus.provenance["sha256"] == hashlib.sha256("first second third é".encode()).hexdigest()
    assert corpus.provenance["chars"] == 20
    assert corpus.provenance["symbols"] == len(set("first second third é"))


def test_one_file_per_split(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).write_text(f"text for {name}", encoding="utf-8")
    config = config_of(
        tmp_path / "train", validation_path=os.fspath(tmp_path / "validation"), test_path=os.fspath(tmp_path / "test")
    )
    assert corpora.load(config).splits == {name: f"text for {name}" for name in ("train", "validation", "test")}


def test_normalisation(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\ufeffOne\r\nTwo\rThree-[x]^\n".encode())
    read = lambda **keys: "".join(corpora.load(config_of(file, split=(0.5, 0.5), **keys)).splits.values())  # noqa: E731
    assert read() == "One\nTwo\nThree-[x]^\n"
    assert read(newlines=False) == "One\r\nTwo\rThree-[x]^\n"
    assert read(lowercase=True) == "one\ntwo\nthree-[x]^\n"
    assert read(keep="Toe]^-\n") == "e\nTo\nTee-]^\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text left: the file is empty"),
        (b"abc\xff\xfe", r"not UTF-8: byte 0xff at offset 3"),
        (b"ab", "the train split has 1 chars but needs at least 2"),
    ],
)
def test_unfit_files_are_refused_in_a_sentence(tmp_path, content, message):
    file = tmp_path / "unfit.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        corpora.load(config_of(file, split=(0.5, 0.5)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("damaged.gz", b"not packed at all"),
        ("damaged.xz", b"not packed at all"),
        ("damaged.gz", gzip.compress(b"a b c d e f g" * 99)[:12] + b"damage"),
        ("damaged.xz", lzma.compress(b"a b c d e f g" * 99)[:-20]),
    ],
)
def test_damaged_archives_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        corpora.load(config_of(tmp_path / name))


def test_missing_file_empty_folder_and_unknown_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        corpora.load(config_of(tmp_path / "missing"))
    with pytest.raises(UserError, match="has no files"):
        corpora.load(config_of(tmp_path))
    config = base.get_config()
    config.corpus.name = "shakespear"
    with pytest.raises(UserError, match="none of: tiny_shakespeare"):
        corpora.load(config)


def named_config(data_dir):
    config = base.get_config()
    config.corpus.data_dir = os.fspath(data_dir)
    return config


def test_manual_file_fills_the_tfds_cache_which_then_needs_no_source(tmp_path, monkeypatch):
    source = SHARED_CORPORA / "tiny_shakespeare.txt"
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    manual = tmp_path / "downloads" / "manual" / "tiny_shakespeare.txt"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(source.read_bytes())
    first = corpora.load(named_config(tmp_path))
    assert first.provenance["source"] == str(manual)
    manual.unlink()
    monkeypatch.setattr(corpora, "_fetched", lambda *_: pytest.fail("the cache was passed over"))
    again = corpora.load(named_config(tmp_path))
    assert again.splits == first.splits
    assert again.provenance["source"] == f"TFDS cache {tmp_path}"
    assert again.provenance["sha256"] == SHA256
    assert again.provenance["splits"] == {"train": 1_003_854, "validation": 111_540}
    assert "tensorflow" not in sys.modules


def test_any_named_corpus_is_cached_by_its_hash(tmp_path, monkeypatch):
    for text in ("first edition, é\n", "second edition\n"):
        source = dataclasses.replace(
            corpora.SOURCES["tiny_shakespeare"], sha256=hashlib.sha256(text.encode()).hexdigest(), package="none"
        )
        monkeypatch.setitem(corpora.SOURCES, "pamphlet", source)
        monkeypatch.setattr(corpora, "_from_package", lambda _, text=text: text.encode())
        corpora._builder_class.cache_clear()
        config = named_config(tmp_path)
        config.corpus.name = "pamphlet"
        for origin in ("none", f"TFDS cache {tmp_path}"):
            corpus = corpora.load(config)
            assert "".join(corpus.splits.values()) == text
            assert corpus.provenance["source"] == origin
    for file in tmp_path.rglob("*array_record-*"):
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="does not hold pamphlet as published: remove that folder"):
        corpora.load(config)


def test_manual_file_with_another_text_is_refused(tmp_path):
    manual = tmp_path / "downloads" / "manual" / "tiny_shakespeare.txt"
    manual.parent.mkdir(parents=True)
    manual.write_text("something else", encoding="utf-8")
    with pytest.raises(UserError, match=f"is not tiny_shakespeare as published: its sha256 is .* not {SHA256}"):
        corpora.load(named_config(tmp_path))


def test_no_source_at_all_says_where_to_put_the_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise subprocess.TimeoutExpired("pip", 60)

    monkeypatch.setattr(corpora, "_from_package", refuse)
    monkeypatch.setattr(corpora, "_from_address", lambda _: b"a page of an advertiser")
    with pytest.raises(UserError, match=r"TimeoutExpired.*wrong sha256.*put its text at .*manual/tiny_shakespeare\.txt"):
        corpora.load(named_config(tmp_path))


def test_package_index_has_the_text_as_published():
    try:
        raw = corpora._from_package(corpora.SOURCES["tiny_shakespeare"])
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no package index here: {type(error).__name__}")
    assert hashlib.sha256(raw).hexdigest() == SHA256
