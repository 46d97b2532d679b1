"""Tests of bits per byte and of the number of scored `<unk>`.

The expected numbers of bytes come from Python's UTF-8 encoder, applied to the scored characters of the text.
"""

import io
import json
import math
from contextlib import redirect_stdout

import pytest
from conftest import ROOT, TINY
from faults.checks import read_rows
from faults.runs import make_text

import charlm
from charlm import measures
from charlm.compare import reading, tables
from charlm.config import load
from charlm.data import longtext, textfiles
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.data.vocab import Vocab
from charlm.inference.protocol import Protocol
from charlm.training import train

TEXT = "aé€😀" * 9 + "bcd€é" * 5 + "😀ab" * 7  # characters of 1, 2, 3 and 4 bytes
STORY = make_text(4000).replace("e", "é") + make_text(400, seed=1).replace("a", "€") + "😀z😀"


def scored_pieces(kind, text):
    """The characters of `text` that are scored with batch.length=8 and batch.stride=3."""
    return {
        "stream": [text[1:]],
        "chunks": [text[1:]],
        "windows": [text[start + 8] for start in range(0, len(text) - 8, 3)],
    }[kind]


def protocol(kind, lanes=1, burn_in=0):
    framing = Framing(kind, 3, 8, shift=True, stride=3, shuffle=True, bucket=4, padding="masked")
    return Protocol(framing, 5, 16, lanes, burn_in)


@pytest.mark.parametrize(
    ("kind", "lanes", "burn_in"), [("stream", 1, 0), ("stream", 3, 4), ("chunks", 1, 0), ("windows", 1, 0)]
)
@pytest.mark.parametrize("symbols", ["abcdé€😀", "abcé"])
@pytest.mark.parametrize("is_long", [False, True])
def test_exactly_the_bytes_and_unknown_symbols_of_the_scored_characters_are_counted(
    kind, lanes, burn_in, symbols, is_long, tmp_path
):
    text = TEXT
    if is_long:
        (tmp_path / "text").write_text(TEXT, encoding="utf-8")
        text = longtext.load([tmp_path / "text"], textfiles.DEFAULT, lambda block: block, {}, tmp_path)
    vocab = Vocab.of(symbols, unknown=True)
    encoded = encode(vocab, text, "the text")
    scored = "".join(scored_pieces(kind, TEXT))
    assert protocol(kind, lanes, burn_in).counts(encoded, vocab) == (
        len(scored.encode()),
        sum(symbol not in symbols for symbol in scored),
    )


@pytest.mark.parametrize("unknown", [False, True])
def test_the_end_of_a_document_has_no_bytes_and_cut_characters_are_not_counted(unknown):
    documents = ["é", "a€b", "😀" * 20, "ab"]
    vocab = Vocab.of("aé😀" if unknown else "abé€😀", unknown, documents=True)
    counts = protocol("documents").counts(encode(vocab, documents, "the text"), vocab)
    # The first character of a document is not scored. The third document is cut: the model reads its first 8 characters, so
    # the characters from the second to the ninth are scored.
    assert counts == (0 + len("€b".encode()) + 8 * 4 + 1, 3 if unknown else 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run. Its validation text has characters of several bytes, some of which are not in the training text."""
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "corpus.txt").write_text(STORY, encoding="utf-8")
    overrides = {
        "corpus.path": str(folder / "corpus.txt"),
        "corpus.split": (0.8, 0.1, 0.1),
        "vocab.source": "train",
        "vocab.unknown": True,
        "batch.size": 4,
        "batch.length": 16,
        "model.hidden": 8,
        "model.layers": 1,
        "train.steps": 4,
        "train.eval_every": 2,
    }
    with redirect_stdout(io.StringIO()) as printed:
        train.train(load.load(str(ROOT / TINY), overrides), str(folder / "run"))
    (folder / "printed").write_text(printed.getvalue(), encoding="utf-8")
    return folder / "run"


def test_every_evaluation_of_a_run_has_bits_per_byte_and_the_number_of_unknown_symbols(run, script):
    validation, test = STORY[int(0.8 * len(STORY)) : int(0.9 * len(STORY))][1:], STORY[int(0.9 * len(STORY)) :][1:]
    symbols = set(STORY[: int(0.8 * len(STORY))])
    rows = [row for row in read_rows(run) if row["split"] == "validation"]
    assert len(rows) == 2
    for row in rows:
        assert row["chars"] == len(validation)
        assert row["bytes"] == len(validation.encode()) > len(validation)
        assert row["bits_per_byte"] == pytest.approx(row["nats"] * row["chars"] / math.log(2) / row["bytes"], rel=1e-12)
        assert "unknown" not in row  # all symbols of the validation text are in the training text
    result = script("evaluate", f"--workdir={run}", "--split=test")
    row = json.loads(result.stdout)
    unknown = sum(symbol not in symbols for symbol in test)
    assert (row["bytes"], row["unknown"]) == (len(test.encode()), unknown)
    assert unknown > 20
    assert f"{unknown} of the {len(test)} scored chars are outside the vocabulary: <unk>." in result.stderr
    assert charlm.load(run).score(STORY[int(0.9 * len(STORY)) :])["bits_per_byte"] == pytest.approx(row["bits_per_byte"])

    record = reading.read_run(run, "run")
    (group,) = tables.groups_of([record])
    for metric, expected in (("best", rows[-1]), ("test", row)):
        values = {column.name: column.value(group) for column in tables.columns_of([group], metric, [])}
        assert values["bits/byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-9)
        assert values.get("unknown") == expected.get("unknown")
    (listed,) = charlm.runs(run)
    assert listed["bits_per_byte"] == pytest.approx(rows[-1]["bits_per_byte"], rel=1e-9)
    assert tables.filtered([record], [f"bits_per_byte<{rows[-1]['bits_per_byte'] + 0.001}"]) == [record]
    assert tables.filtered([record], [f"bits_per_byte<{rows[-1]['bits_per_byte'] - 0.001}"]) == []


def test_a_text_without_a_scored_byte_has_null_bits_per_byte():
    found = measures.of_text(2.0, 4, 0, 0)
    assert found["nats"] == 0.5
    assert measures.finite(found)["bits_per_byte"] is None
