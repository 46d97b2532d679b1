"""Tests of the forms in which files store documents, and of the note about documents that are cut."""

import json

import pytest
from conftest import TINY

import charlm
from charlm.config import load
from charlm.data import corpora, documents
from charlm.errors import UserError
from charlm.training import train
from configs import base

STORIES = ["Once upon\na time.", "A second  \n\tstory", "The end."]


def load_corpus(path, form, **keys):
    config = base.get_config()
    config.corpus.update({"path": str(path), "documents": form, "split": (0.7, 0.3), **keys})
    return corpora.load(config)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("blank", "\n \nOnce upon\na time.\n\nA second  \n\tstory\n \t\n\n\nThe end."),
        ("blank", "Once upon\na time.\n\n\nA second  \n\tstory\n\nThe end.\n\n\n"),
        ("separator:<|end|>", "Once upon\na time.\n<|end|>\nA second  \n\tstory<|end|>The end.\n<|end|>\n"),
        ("separator:\n---\n", "Once upon\na time.\n---\nA second  \n\tstory\n---\nThe end.\n"),
        ("separator:(a|b)*", "Once upon\na time.(a|b)*A second  \n\tstory(a|b)*The end."),
        ("separator:\n\n", "Once upon\na time.\n\nA second  \n\tstory\n\nThe end."),
    ],
)
def test_documents_are_separated_by_blank_lines_or_by_a_text(tmp_path, form, text, line_break):
    (tmp_path / "file").write_bytes(("\ufeff" + text).replace("\n", line_break).encode())
    corpus = load_corpus(tmp_path / "file", form)
    assert corpus.splits == {"train": STORIES[:2], "validation": STORIES[2:]}
    assert corpus.provenance["documents"]["empty"] == 0
    unchanged = load_corpus(tmp_path / "file", form, newlines=False)
    assert unchanged.splits["train"] == [story.replace("\n", line_break) for story in STORIES[:2]]
    assert documents.in_string(text, form) == STORIES  # charlm.load(run).score(text) divides a text in this way


def test_two_separators_in_a_row_enclose_an_empty_document():
    assert documents.separated("a--b----c", "--") == ["a", "b", "", "c"]
    assert documents.separated("", "--") == []
    assert documents.blocks("") == documents.blocks("\n \n") == []
    assert documents.in_string("one\ntwo\n", "csv:title") == documents.in_string("one\ntwo\n", "jsonl:x") == ["one", "two"]


def test_each_file_of_a_folder_is_a_document(tmp_path):
    for name, story in zip("abc", STORIES, strict=True):
        (tmp_path / name).write_text(f"\n{story}\n\n", encoding="utf-8")
    assert load_corpus(tmp_path, "files").splits == {"train": STORIES[:2], "validation": STORIES[2:]}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("blank", "is only one document: it has no blank line between two documents."),
        ("separator:<end>", "is only one document: it does not have the text '<end>' between two documents."),
        ("files", "is only one document: give a folder, in which each file is a document."),
    ],
)
def test_a_corpus_of_one_document_is_refused_but_a_validation_text_may_be_one(tmp_path, form, message):
    (tmp_path / "one").write_text("a document\nof two lines\n<end", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_corpus(tmp_path / "one", form)
    assert str(error.value) == f"corpus.documents={form!r}: {tmp_path / 'one'} {message}"
    (tmp_path / "folder").mkdir()
    for name in ("several", "another"):
        (tmp_path / "folder" / name).write_text("one\n\n<end>\n\ntwo", encoding="utf-8")
    corpus = load_corpus(tmp_path / "folder", form, validation_path=str(tmp_path / "one"))
    assert corpus.splits["validation"] == ["a document\nof two lines\n<end"]


@pytest.mark.parametrize("form", ["separator", "separator:", "blank:2", "files:x", "paragraphs"])
def test_wrong_forms_are_refused(form):
    with pytest.raises(UserError, match="must be empty, lines, blank, files, separator:TEXT, csv:COLUMN or jsonl:FIELD"):
        load.load(TINY, {"corpus.documents": form})


@pytest.mark.slow
def test_training_and_evaluation_name_the_text_that_is_lost(tmp_path, small, script, capsys):
    stories = [f"story {number} " * (1 + number % 4) for number in range(40)]
    (tmp_path / "stories").write_text("\n<|end|>\n".join(stories), encoding="utf-8")
    overrides = small | {
        "corpus.path": str(tmp_path / "stories"),
        "corpus.documents": "separator:<|end|>",
        "batch.framing": "documents",
        "vocab.source": "corpus",
        "sample.length": 0,
    }
    train.train(load.load(TINY, overrides), str(tmp_path / "run"))
    lost, longest = sum(max(0, len(story) - 16) for story in stories), max(map(len, stories))
    share = lost / sum(map(len, stories))
    expected = f"and {share:.0%} of the text is lost: batch.length={longest} keeps all of it."
    assert expected in capsys.readouterr().err
    train.train(load.load(TINY, overrides | {"batch.length": longest}), str(tmp_path / "longer"))
    assert "batch.length" not in capsys.readouterr().err
    # The program evaluate and a call in Python score the same text.
    (tmp_path / "three").write_text("\n<|end|>\n".join(stories[1:4]), encoding="utf-8")
    result = script("evaluate", f"--workdir={tmp_path / 'run'}", f"--text={tmp_path / 'three'}")
    assert "note: batch.length=16 cuts 2 of 3 documents, and 33% of the text is lost" in result.stderr
    scored = charlm.load(tmp_path / "run").score("<|end|>".join(stories[1:4]))
    assert scored["chars"] == json.loads(result.stdout)["chars"] == 3 * (1 + 16)  # each document has a start symbol
    assert scored["nats"] == pytest.approx(json.loads(result.stdout)["nats"], rel=1e-5)
