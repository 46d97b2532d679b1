"""Tests of `vocab.source=bytes`. The expected bytes and texts come from Python's own UTF-8 encoder and decoder."""

import itertools
import json

import numpy as np
import pytest
from conftest import TINY, slow
from faults.checks import read_rows
from faults.runs import make_text
from hypothesis import given, settings, strategies

import charlm
from charlm.compare import reading
from charlm.config import load
from charlm.data import corpora
from charlm.data.ids import encode
from charlm.data.textfiles import Reading
from charlm.data.vocab import BYTES, EOS, PAD, Vocab
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.training import train
from configs import base

TEXT = "aé€😀\n" * 40 + "Grüße, 世界! " * 30
DOCUMENTS = Vocab.all_bytes(documents=True)


def config_of(path, **corpus_keys):
    config = base.get_config()
    config.corpus.update({"path": str(path), **corpus_keys})
    config.vocab.source = "bytes"
    return config


def test_ids_are_the_bytes_of_the_text():
    vocab = Vocab.all_bytes()
    assert len(vocab) == 256
    assert vocab.encode(TEXT).tolist() == list(TEXT.encode())
    assert DOCUMENTS.encode(TEXT).tolist() == [byte + 2 for byte in TEXT.encode()]
    for each in (vocab, DOCUMENTS):
        assert each.decode(each.encode(TEXT)) == TEXT
        assert each.length_of(TEXT) == len(TEXT.encode())
        assert each.missing(TEXT) == []
        assert Vocab.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    assert vocab.sizes_V.tolist() == [1] * 256
    assert DOCUMENTS.sizes_V.tolist() == [0, 0] + [1] * 256
    assert len(set(DOCUMENTS.names)) == 258
    assert [DOCUMENTS.names[index] for index in (0, 2 + 0x41, 2 + 0xC3)] == [PAD, "A", "<0xC3>"]


@pytest.mark.parametrize("raw", [b"a\xc3", b"\xc3a", b"\xa9\xa9b", b"\xe2\x82", b"\xf0\x9f\x98\x80\xff", bytes(range(256))])
def test_broken_sequences_become_the_replacement_character_for_pieces_of_any_size(raw):
    expected = raw.decode("utf-8", "replace")
    vocab = Vocab.all_bytes()
    assert vocab.decode(raw) == expected
    for size in (1, 2, 3):
        decode = vocab.decoder()
        pieces = [decode(raw[start : start + size], False) for start in range(0, len(raw), size)]
        assert "".join([*pieces, decode((), True)]) == expected
    assert DOCUMENTS.decode([2 + 0xC3, 1, 2 + 0xA9]) == f"\ufffd{EOS}\ufffd"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(raw=strategies.binary(max_size=40), cuts=strategies.lists(strategies.integers(0, 40), max_size=5))
def test_any_bytes_in_any_pieces_are_decoded_as_by_python(raw, cuts):
    decode = Vocab.all_bytes().decoder()
    pieces = [decode(raw[start:end], False) for start, end in itertools.pairwise([0, *sorted(cuts), len(raw)])]
    assert "".join([*pieces, decode((), True)]) == raw.decode("utf-8", "replace")


def test_surrogates_have_no_bytes_in_utf8_and_are_refused():
    assert Vocab.all_bytes().missing("a\ud83db") == ["\ud83d"]
    with pytest.raises(UserError, match=r"^the text has half a character \(\\ud83d\), which has no bytes in UTF-8: remove it"):
        Vocab.all_bytes().encode("a\ud83d")


@pytest.mark.parametrize("damage", [{"bytes": "yes"}, {"symbols": "abc"}, {"symbols": BYTES[1:]}])
def test_a_damaged_vocabulary_of_bytes_is_refused(damage):
    with pytest.raises(ValueError, match="its symbols are not the 256 bytes"):
        Vocab.from_dict(Vocab.all_bytes().to_dict() | damage)


@pytest.mark.parametrize("limit", [10**9, 1])
def test_files_in_another_encoding_become_the_bytes_of_their_text_in_utf8(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", limit)
    (tmp_path / "text" / "folder").mkdir(parents=True)
    (tmp_path / "text" / "2.txt").write_bytes("straße".encode("latin-1"))
    (tmp_path / "text" / "folder" / "10.txt").write_bytes("blé".encode("utf-16"))
    text, _ = corpora.read(
        str(tmp_path / "text"),
        corpora.Normalisation(newlines=True, lowercase=False, keep=""),
        folder=tmp_path / "cache",
        reading=Reading("latin-1", "tree"),
        is_bytes=True,
    )
    read = text.codes_N.tobytes() if limit == 1 else text.encode()
    assert read == b"stra\xc3\x9fe\nbl\xc3\xa9"


@pytest.mark.parametrize("separate", [False, True])
def test_long_and_short_texts_give_the_same_bytes_and_are_cut_between_characters(tmp_path, monkeypatch, separate):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    raw = TEXT.encode()
    keys = {"split": (0.5, 0.3, 0.2)}
    if separate:
        (tmp_path / "validation").write_text("ß世" * 9, encoding="utf-8")
        keys |= {"validation_path": str(tmp_path / "validation"), "split": (0.9, 0.1)}
    results = []
    for limit in (10**9, 10):
        monkeypatch.setattr(corpora, "LONG_TEXT_BYTES", limit)
        config = config_of(tmp_path / "text", **keys)
        config.cache_dir = str(tmp_path / "cache")
        corpus = corpora.load(config)
        vocab = corpora.vocabulary(config, corpus)
        encoded = {name: encode(vocab, split, name) for name, split in corpus.splits.items()}
        ids = {name: np.asarray(each.ids_N[np.arange(len(each.ids_N))]) for name, each in encoded.items()}
        sizes = {name: each.sizes_N[np.arange(len(each.ids_N))].tolist() for name, each in encoded.items()}
        prompts = corpora.sample_prompt(config, lambda corpus=corpus: corpus.splits)
        excerpts = [corpora.excerpt(corpus.splits["train"], 3, seed) for seed in range(50)]
        results.append((corpus.provenance, {name: each.tolist() for name, each in ids.items()}, sizes, prompts, excerpts))
        assert (len(list((tmp_path / "cache").rglob("codes"))) > 0) == (limit == 10)
    assert results[0] == results[1]
    provenance, ids, sizes, prompt, excerpts = results[0]
    assert provenance["odd_symbols"] == {}  # the byte 0x9f of "ß" is not the control character U+009F
    if separate:
        assert bytes(ids["train"]) == raw
        assert bytes(ids["validation"]).decode() == "ß世" * 9
        assert prompt == "ß"
    else:
        # The text is cut at 50% and at 80% of its bytes. If this place is inside a character, the cut is before the character.
        assert bytes(ids["train"] + ids["validation"] + ids["test"]) == raw
        for end, share in ((len(ids["train"]), 0.5), (len(ids["train"]) + len(ids["validation"]), 0.8)):
            assert end == len(raw[: int(share * len(raw))].decode("utf-8", "ignore").encode())
    assert provenance["splits"] == {name: len(each) for name, each in ids.items()}
    assert provenance["symbols"] == len(set(b"".join(map(bytes, ids.values()))))
    assert all(set(each) == {1} for each in sizes.values())
    assert all(excerpt in TEXT and len(excerpt) == 3 for excerpt in excerpts)
    # The hash of the text does not depend on the vocabulary, so that compare sees the same corpus.
    config.vocab.source = "corpus"
    assert provenance["sha256"] == corpora.load(config).provenance["sha256"]


def test_documents_are_counted_and_framed_in_bytes(tmp_path):
    documents = ["é", "a€b", "😀" * 20, "世界"]
    (tmp_path / "lines").write_text("\n".join(documents), encoding="utf-8")
    config = config_of(tmp_path / "lines", documents="lines", split=(1.0,))
    corpus = corpora.load(config)
    assert corpus.provenance["splits"] == {"train": len("".join(documents).encode())}
    encoded = encode(corpora.vocabulary(config, corpus), corpus.splits["train"], "train")
    assert encoded.lengths_D.tolist() == [len(document.encode()) for document in documents]
    assert DOCUMENTS.decode(encoded.ids_N) == "".join(f"{document}{EOS}" for document in documents)


def test_vocab_unknown_is_refused_with_a_vocabulary_of_bytes(tmp_path):
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    config = config_of(tmp_path / "text")
    config.vocab.unknown = True
    with pytest.raises(
        UserError, match=r"^vocab.unknown=True: must be False with vocab.source=bytes, because no byte is unknown"
    ):
        corpora.vocabulary(config, corpora.load(config))


@pytest.fixture
def byte_overrides(small, tmp_path):
    (tmp_path / "text").write_text(make_text(3000).replace("e", "é").replace("t", "世") + "😀😀 end", encoding="utf-8")
    return small | {"corpus.path": str(tmp_path / "text"), "vocab.source": "bytes"}


@pytest.mark.parametrize("framing", [slow("stream"), slow("windows"), "documents"])
def test_a_model_of_bytes_trains_scores_and_samples_any_text(byte_overrides, tmp_path, script, capsys, framing):
    overrides = byte_overrides | {"batch.framing": framing, "batch.stride": 9}
    if framing == "documents":
        text = (tmp_path / "text").read_text(encoding="utf-8")
        (tmp_path / "text").write_text("\n".join(text[start : start + 12] for start in range(0, 3000, 12)), encoding="utf-8")
        overrides |= {"corpus.documents": "lines"}
    train.train(load.load(TINY, overrides), str(tmp_path / "run"))
    assert "bytes, vocabulary of 25" in capsys.readouterr().out
    rows = [row for row in read_rows(tmp_path / "run") if row["split"] == "validation"]
    model, never_seen = charlm.load(tmp_path / "run"), "Ж ≠ 💡\nnever seen"
    if framing == "documents":
        assert rows[-1]["bytes"] < rows[-1]["chars"]  # <eos> is scored but has no bytes
    else:
        assert rows[-1]["bytes"] == rows[-1]["chars"]
        assert rows[-1]["bits_per_byte"] == pytest.approx(rows[-1]["bits"])
    if framing == "stream":
        assert rows[-1]["chars"] == Run(tmp_path / "run").corpus()["splits"]["validation"] - 1
        surprisal = model.surprisal(never_seen)
        assert surprisal.shape == (len(never_seen.encode()),)
        (tmp_path / "scored").write_text(never_seen, encoding="utf-8")
        scored = json.loads(script("evaluate", f"--workdir={tmp_path / 'run'}", f"--text={tmp_path / 'scored'}").stdout)
        assert scored["chars"] == scored["bytes"] == len(never_seen.encode()) - 1
        assert scored["nats"] == pytest.approx(float(np.nanmean(surprisal)), rel=1e-5)
        assert "unknown" not in scored
        sample = ("sample", f"--workdir={tmp_path / 'run'}", f"--prompt={never_seen}", "--length=150")
        written = script(*sample, "--temperature=3").stdout
        assert written.startswith(never_seen)
        assert "\ufffd" in written  # a model that has learned nothing, at a high temperature, draws broken sequences
        assert model.sample(never_seen, 150, 3.0) + "\n" == written
        assert "half" not in written
        (record,), problems = reading.read([tmp_path / "run"])
        assert (problems, record.chars_per_byte["best"]) == ([], 1.0)
    else:
        assert model.sample("💡", 30).startswith("💡")
    samples = sorted((tmp_path / "run" / "samples").glob("*.txt"))
    assert len(samples) == 2
    assert all(sample.read_bytes().decode("utf-8") for sample in samples)


@pytest.mark.slow
def test_a_character_drawn_in_two_chunks_is_one_character(small, tmp_path):
    (tmp_path / "text").write_text("é" * 3000, encoding="utf-8")
    overrides = small | {"corpus.path": str(tmp_path / "text"), "vocab.source": "bytes", "sample.length": 0}
    overrides |= {"train.steps": 80, "train.eval_every": 80, "train.log_every": 80, "optim.learning_rate": 0.05}
    train.train(load.load(TINY, overrides), str(tmp_path / "run"))
    model = charlm.load(tmp_path / "run")
    # The sampler draws 63 bytes in its first chunk, because one step reads the prompt. Each é has two bytes. The last byte of
    # the 129 bytes begins a character that is not complete.
    assert model.sample("é", 129, 0.0) == "é" * 65 + "\ufffd"
    assert model.sample("é", 128, 0.0, num=2) == ["é" * 65] * 2
