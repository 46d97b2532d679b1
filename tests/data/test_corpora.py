"""Tests that corpora are read, normalised and split, and that wrong corpora are refused.

A corpus comes from files, from a name such as `alice`, or from TensorFlow Datasets (TFDS).
"""

import dataclasses
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHARED_CORPORA
from faults.runs import HARMS, harm

from charlm.data import corpora, sources
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
def test_splits_are_contiguous_and_have_the_published_sizes(split, counts):
    text = "".join(chr(65 + k % 50) for k in range(1_115_394))
    splits = corpora.cut(text, split)
    assert list(splits) == ["train", "validation", "test"][: len(split)]
    assert [len(part) for part in splits.values()] == counts
    assert "".join(splits.values()) == text


def test_the_files_of_a_folder_are_sorted_decompressed_and_joined(tmp_path):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"second\n", mtime=0))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress("third é".encode()))
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / ".hidden").write_text("never", encoding="utf-8")
    corpus = corpora.load(config_of(tmp_path, split=(0.5, 0.5)))
    assert "".join(corpus.splits.values()) == "first\nsecond\nthird é"
    assert [os.path.basename(file) for file in corpus.provenance["files"]] == ["a.txt", "b.txt.gz", "c.txt.xz"]
    assert corpus.provenance["sha256"] == hashlib.sha256("first\nsecond\nthird é".encode()).hexdigest()
    assert corpus.provenance["chars"] == 20
    assert corpus.provenance["symbols"] == len(set("first\nsecond\nthird é"))


def test_each_split_may_come_from_a_separate_file(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).write_text(f"text for {name}", encoding="utf-8")
    config = config_of(
        tmp_path / "train", validation_path=os.fspath(tmp_path / "validation"), test_path=os.fspath(tmp_path / "test")
    )
    assert corpora.load(config).splits == {name: f"text for {name}" for name in ("train", "validation", "test")}


def test_normalisation_of_line_breaks_case_and_characters(tmp_path):
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
        (b"ab", "the train split has 1 char but needs at least 2: give a longer corpus"),
    ],
)
def test_files_that_are_empty_too_short_or_not_utf8_are_refused(tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        corpora.load(config_of(file, split=(0.5, 0.5)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("damaged.gz", b"not packed at all"),
        ("damaged.xz", b"not packed at all"),
        ("damaged.gz", gzip.compress(b"a b c d e f g" * 99, mtime=0)[:12] + b"damage"),
        ("damaged.xz", lzma.compress(b"a b c d e f g" * 99)[:-20]),
    ],
)
def test_damaged_archives_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="can't be read"):
        corpora.load(config_of(tmp_path / name))


def test_missing_file_empty_folder_and_unknown_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing is not a file or folder: give the path"):
        corpora.load(config_of(tmp_path / "missing"))
    with pytest.raises(UserError, match="has no text files"):
        corpora.load(config_of(tmp_path))
    config = base.get_config()
    config.corpus.name = "shakespear"
    with pytest.raises(UserError, match=r"corpus\.name='shakespear' is not one of tiny_shakespeare, sonnets"):
        corpora.load(config)


def named_config(data_dir):
    config = base.get_config()
    config.corpus.data_dir = os.fspath(data_dir)
    return config


def test_a_manual_file_is_copied_to_the_tfds_cache_and_is_no_longer_needed(tmp_path, monkeypatch):
    source = SHARED_CORPORA / "tiny_shakespeare.txt"
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    manual = tmp_path / "downloads" / "manual" / "tiny_shakespeare.txt"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(source.read_bytes())
    first = corpora.load(named_config(tmp_path))
    assert first.provenance["source"] == str(manual)
    manual.unlink()
    monkeypatch.setattr(sources, "_fetch_text", lambda *_: pytest.fail("the text was fetched, although the cache contains it"))
    again = corpora.load(named_config(tmp_path))
    assert again.splits == first.splits
    assert again.provenance["source"] == f"TFDS cache {tmp_path}"
    assert again.provenance["sha256"] == SHA256
    assert again.provenance["splits"] == {"train": 1_003_854, "validation": 111_540}
    assert "tensorflow" not in sys.modules


def test_a_named_corpus_is_cached_by_its_hash_and_a_damaged_cache_is_refused(tmp_path, monkeypatch):
    for text in ("first edition, é\n", "second edition\n"):
        source = dataclasses.replace(
            sources.SOURCES["tiny_shakespeare"], sha256=hashlib.sha256(text.encode()).hexdigest(), package="none"
        )
        monkeypatch.setitem(sources.SOURCES, "pamphlet", source)
        monkeypatch.setattr(sources, "_from_package", lambda _, text=text: text.encode())
        sources._builder_class.cache_clear()
        config = named_config(tmp_path)
        config.corpus.name = "pamphlet"
        for origin in ("none", f"TFDS cache {tmp_path}"):
            corpus = corpora.load(config)
            assert "".join(corpus.splits.values()) == text
            assert corpus.provenance["source"] == origin
    (copy,) = (tmp_path / "pamphlet").glob(f"{source.sha256[:8]}.txt")
    copy.write_text("first edition, é\n", encoding="utf-8")  # a copy that is not the published text is replaced
    assert "".join(corpora.load(config).splits.values()) == copy.read_text(encoding="utf-8") == text
    for file in tmp_path.rglob("*array_record-*"):
        file.write_bytes(b"damaged")
    assert "".join(corpora.load(config).splits.values()) == text  # from the copy
    copy.write_bytes(b"damaged")
    with pytest.raises(UserError, match="does not hold the published text of pamphlet: remove that folder"):
        corpora.load(config)


def test_a_manual_file_with_another_text_is_refused(tmp_path):
    manual = tmp_path / "downloads" / "manual" / "tiny_shakespeare.txt"
    manual.parent.mkdir(parents=True)
    manual.write_text("something else", encoding="utf-8")
    with pytest.raises(UserError, match=f"is not the published text of tiny_shakespeare: its sha256 is .* not {SHA256}"):
        corpora.load(named_config(tmp_path))


def test_if_no_source_has_the_text_the_error_names_the_path_for_a_manual_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise subprocess.TimeoutExpired("pip", 60)

    monkeypatch.setattr(sources, "_from_package", refuse)
    monkeypatch.setattr(sources, "_from_address", lambda _: b"a page of advertisements")
    with pytest.raises(UserError, match=r"TimeoutExpired.*wrong sha256.*put its text at .*manual/tiny_shakespeare\.txt"):
        corpora.load(named_config(tmp_path))


@pytest.mark.parametrize(
    ("name", "sha256"),
    [("tiny_shakespeare", SHA256), ("sonnets", "34f94f3c687a865fd90251bcc064f9666019dda3780bf5ee095c65f9608f29b3")],
)
def test_the_package_index_has_the_published_text(name, sha256):
    try:
        raw = sources._from_package(sources.SOURCES[name])
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the package index cannot be reached: {type(error).__name__}")
    assert hashlib.sha256(raw).hexdigest() == sha256


def documents_of(path, form, **keys):
    return corpora.load(config_of(path, documents=form, **{"split": (0.75, 0.25), **keys}))


CSV = 'class,title,text\n1,"One, two",x\n2,Three,y\n3,"",z\n4,"She said ""four""\nand five",w\n5,Six,v\n'
TITLES = ["One, two", "Three", "", 'She said "four"\nand five', "Six"]
JSONL = "\n\n".join(json.dumps({"title": title, "n": 1}) for title in TITLES) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [("c.csv", CSV, "csv:title"), ("n.csv", CSV.split("\n", 1)[1], "csv:1"), ("j.jsonl", JSONL, "jsonl:title")],
)
def test_documents_are_read_from_a_csv_column_or_a_json_field(tmp_path, name, text, form):
    (tmp_path / name).write_text(text, encoding="utf-8")
    corpus = documents_of(tmp_path / name, form)
    assert corpus.splits == {"train": ["One, two", "Three", 'She said "four"\nand five'], "validation": ["Six"]}
    assert not corpus.is_text
    assert corpus.provenance["documents"] == {"splits": {"train": 3, "validation": 1}, "empty": 1}
    assert corpus.provenance["splits"] == {"train": 8 + 5 + 24, "validation": 3}
    assert corpus.provenance["chars"] == 40


def test_each_line_is_a_document_and_is_normalised(tmp_path):
    (tmp_path / "lines").write_bytes("\ufeffOne\r\ntwo!\r\n\r\n...\nÄb\n".encode())
    corpus = documents_of(tmp_path / "lines", "lines", lowercase=True, keep="abcdefghijklmnopqrstuvwxyzä")
    assert corpus.splits == {"train": ["one", "two"], "validation": ["äb"]}
    assert corpus.provenance["documents"]["empty"] == 2  # the empty line, and the line "...", whose dots are not in `keep`


def test_documents_may_come_from_separate_validation_and_test_files(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"{name}1\n{name}22\n", encoding="utf-8")
    corpus = documents_of(
        tmp_path / "a", "lines", validation_path=os.fspath(tmp_path / "b"), test_path=os.fspath(tmp_path / "c")
    )
    assert corpus.splits == {"train": ["a1", "a22"], "validation": ["b1", "b22"], "test": ["c1", "c22"]}


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        (CSV, "csv:tilte", r"no column 'tilte': its first row has 'class', 'title', 'text'"),
        ("", "csv:title", r"no column 'title': its first row has nothing; for a file without column names, give"),
        ("a,b\nc,d,e\n", "csv:2", r"row 1 has no column 2: it has 2 columns, counted from 0"),
        ("a,b\nc,d\n", "csv:7", r"row 1 has no column 7: it has 2 columns, counted from 0"),
        (JSONL, "jsonl:name", r"line 1 has no field 'name': it has 'title', 'n'"),
        ('{"title": "a"}\n{"title": 3}\n', "jsonl:title", r"line 2: field 'title' is 3, but must be a string"),
        ('{"title": "a"}\nno json\n', "jsonl:title", r"line 2 is not JSON .*: each line must be one JSON object"),
        ('["title"]\n', "jsonl:title", r"line 1 has no field 'title': it is not a JSON object"),
        ("a\nb\n\n\nc\n", "lines", r"has no document of at least 2 chars \(3 shorter, 2 empty\)"),
        ("\n\n", "lines", r"has no document of at least 2 chars \(0 shorter"),
        ("one long document\n", "lines", r"the train split has 0 chars"),
    ],
)
def test_files_without_the_requested_documents_are_refused(tmp_path, text, form, message):
    (tmp_path / "file").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        documents_of(tmp_path / "file", form)


def test_corpus_documents_without_corpus_path_is_refused(tmp_path):
    config = named_config(tmp_path)
    config.corpus.documents = "lines"
    with pytest.raises(UserError, match=r"corpus.documents='lines' is set, but corpus.path is not: set it to the file"):
        corpora.load(config)


@pytest.fixture
def dataset(tmp_path):
    """A TFDS folder with a made-up dataset. TFDS finds the dataset by name, without a registered builder."""
    import tensorflow_datasets as tfds

    texts = {"train": ["one", "two", "", "three"], "test": ["four"]}

    class MadeUpTitles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"title": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {
                split: [(k, {"title": text, "label": k}) for k, text in enumerate(of_split)]
                for split, of_split in texts.items()
            }

        def _generate_examples(self):
            raise AssertionError

    MadeUpTitles.name = "made_up_titles"
    MadeUpTitles(data_dir=os.fspath(tmp_path), file_format="array_record").download_and_prepare()
    return tmp_path


def test_documents_are_read_from_a_tfds_dataset(dataset):
    config = named_config(dataset)
    config.corpus.tfds = "made_up_titles:title"
    config.corpus.split = (0.67, 0.33)
    corpus = corpora.load(config)
    assert corpus.splits == {"train": ["one", "two"], "validation": ["three"], "test": ["four"]}
    assert corpus.provenance["source"].startswith("TFDS made_up_titles/1.0.0")
    assert "tensorflow" not in sys.modules
    config.corpus.split = (0.5, 0.25, 0.25)
    with pytest.raises(
        UserError,
        match=r"has a third fraction for a test split, but made_up_titles:title comes with its own splits \(train, test\)",
    ):
        corpora.load(config)
    config.corpus.tfds = "made_up_titles:label"
    with pytest.raises(UserError, match=r"made_up_titles has no text feature 'label': it has title"):
        corpora.load(config)
    config.corpus.tfds = "no_such_titles:title"
    with pytest.raises(UserError, match=r"TFDS has no dataset 'no_such_titles'"):
        corpora.load(config)


def test_an_unknown_feature_is_refused_before_anything_is_fetched(tmp_path, capsys):
    config = named_config(tmp_path)
    config.corpus.tfds = "ag_news_subset:titel"
    with pytest.raises(UserError, match=r"ag_news_subset has no text feature 'titel': it has title, description"):
        corpora.load(config)
    assert "fetching" not in capsys.readouterr().err


def test_a_damaged_tfds_dataset_is_reported_with_its_folder(dataset):
    for file in dataset.rglob("*array_record*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = named_config(dataset)
    config.corpus.tfds = "made_up_titles:title"
    with pytest.raises(UserError, match=r"made_up_titles.* can't be read as made_up_titles:title \(.*remove that folder"):
        corpora.load(config)


@pytest.mark.parametrize("how", HARMS)
def test_damage_to_any_file_of_a_tfds_dataset_is_reported_after_the_first_read(dataset, how):
    config = named_config(dataset)
    config.corpus.tfds = "made_up_titles:title"
    first = corpora.load(config)
    assert corpora.load(config) == first
    (folder,) = {path.parent for path in dataset.rglob("dataset_info.json")}
    names = [path.name for path in folder.iterdir()]
    assert {"dataset_info.json", "features.json", sources.DIGESTS} < set(names)
    assert sum("array_record" in name for name in names) == 2
    for name in names:
        for place in (0.0, 0.1, 0.5, 0.99):
            written = (folder / name).read_bytes()
            harm(folder / name, how, place)
            if name == sources.DIGESTS and how == "deleted":  # like a dataset that charlm has never read
                assert corpora.load(config) == first
            else:
                with pytest.raises(UserError, match=rf"made_up_titles.* remove (that folder|the folder {folder})"):
                    corpora.load(config)
            (folder / name).write_bytes(written)
    assert corpora.load(config) == first


def test_a_tfds_dataset_in_a_folder_that_cannot_be_written_is_read(dataset, monkeypatch):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.files, "write", refuse)
    config = named_config(dataset)
    config.corpus.tfds = "made_up_titles:title"
    assert corpora.load(config).splits["train"]
    assert not list(dataset.rglob(sources.DIGESTS))


def test_a_split_with_three_fractions_is_refused_if_a_validation_file_is_given(tmp_path):
    (tmp_path / "a").write_text("some text of its own")
    config = named_config(tmp_path)
    config.corpus.update({"path": str(tmp_path / "a"), "validation_path": str(tmp_path / "a"), "split": (0.8, 0.1, 0.1)})
    with pytest.raises(UserError, match=r"a comes with its own splits \(train, validation\): give two fractions"):
        corpora.load(config)


def test_header_and_licence_of_a_gutenberg_file_are_removed():
    raw = "\ufeffHeader\n*** START OF THE PROJECT GUTENBERG EBOOK 11 ***\n\nThe\nbook.\n\n*** END OF THE PROJECT\nLicence"
    assert sources._cleaned(raw.replace("\n", "\r\n").encode()) == b"The\nbook."
    assert sources._cleaned(b"Any other\r\ntext.\r\n") == b"Any other\ntext.\n"


@pytest.mark.parametrize(("name", "chars", "symbols"), [("anna", 1_985_223, 83), ("alice", 137_079, 29)])
def test_named_corpora_from_the_manual_folder_have_the_published_numbers_of_chars_and_symbols(tmp_path, name, chars, symbols):
    source = SHARED_CORPORA / f"{name}.txt"
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    manual = tmp_path / "downloads" / "manual" / f"{name}.txt"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    config = named_config(tmp_path)
    config.corpus.name = name
    if name == "alice":  # the filter of the recipe alice_axon
        config.corpus.lowercase, config.corpus.keep = True, "abcdefghijklmnopqrstuvwxyz .\n"
    provenance = corpora.load(config).provenance
    assert (provenance["chars"], provenance["symbols"]) == (chars, symbols)


def test_an_excerpt_is_any_part_of_a_text_or_the_start_of_a_document():
    text = "".join(chr(200 + k) for k in range(500))
    seen = {corpora.excerpt(text, 100, seed) for seed in range(50)}
    assert all(len(excerpt) == 100 and excerpt in text for excerpt in seen)
    assert len(seen) > 40
    assert corpora.excerpt("short", 100, 3) == "short"
    # An excerpt has at most half the length of its document, rounded up.
    assert {corpora.excerpt(["one", "fourteen"], 3, seed) for seed in range(20)} == {"on", "fou"}
    assert {corpora.excerpt(["one", "fourteen"], 9, seed) for seed in range(20)} == {"on", "four"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_final_line_break_adds_no_empty_document(tmp_path, end):
    for last, empty in (("", 0), (end, 0), (2 * end, 1)):
        (tmp_path / "lines").write_bytes(f"one{end}two{last}".encode())
        config = named_config(tmp_path)
        config.corpus.update({"path": str(tmp_path / "lines"), "documents": "lines", "split": (1.0,)})
        provenance = corpora.load(config).provenance
        assert provenance["documents"] == {"splits": {"train": 2}, "empty": empty}


def test_tfds_prepares_ag_news_without_tensorflow(tmp_path, monkeypatch):
    """Uses the AG News builder of TFDS and replaces only its download."""
    import tensorflow_datasets as tfds

    extracted = tmp_path / "extracted"
    (extracted / "ag_news_csv").mkdir(parents=True)
    for split, titles in (("train", ["Wall St. Bears", "Oil, again", "Third"]), ("test", ["Fears for T N"])):
        rows = "".join(f'"3","{title}","A description."\n' for title in titles)
        (extracted / "ag_news_csv" / f"{split}.csv").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda *_: {"ag_news_csv": extracted})
    config = named_config(tmp_path / "data")
    config.corpus.tfds = "ag_news_subset:title"
    config.corpus.split = (0.67, 0.33)
    splits = corpora.load(config).splits
    assert sorted(splits["train"] + splits["validation"]) == ["Oil, again", "Third", "Wall St. Bears"]
    assert splits["test"] == ["Fears for T N"]
    assert "tensorflow" not in sys.modules
