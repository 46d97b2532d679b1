"""Tests of the n-gram models with Witten-Bell smoothing.

The expected values come from a recursion over dictionaries of strings, from values worked out by hand, and from the rules of
probability.
"""

import collections
import json
import math
import re

import numpy as np
import pytest
from conftest import ROOT, TINY
from faults.runs import make_text

from charlm.compare import reading
from charlm.config import load
from charlm.data import corpora
from charlm.data.longtext import Translated
from charlm.errors import UserError
from charlm.inference import inputs, ngram
from charlm.inference.protocol import Protocol
from charlm.rundir.run import Run


def followers(train):
    """Context → how often each symbol follows it, for contexts of every length."""
    found = collections.defaultdict(collections.Counter)
    for position, symbol in enumerate(train):
        for length in range(min(position, ngram.MOST_ORDER - 1) + 1):
            found[train[position - length : position]][symbol] += 1
    return found


def probability(after, context, symbol, vocab_size):
    """P(symbol | context) by the recursion of the formula."""
    lower = probability(after, context[1:], symbol, vocab_size) if context else 1 / vocab_size
    if not (counts := after.get(context)):
        return lower
    return (counts[symbol] + len(counts) * lower) / (counts.total() + len(counts))


def brute_force(train, text, vocab_size, order):
    """The nats of each symbol of a text, by the recursion above."""
    train, text = tuple(map(int, train)), tuple(map(int, text))
    after = followers(train)
    return [
        -math.log(probability(after, text[max(0, position - order + 1) : position], symbol, vocab_size))
        for position, symbol in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("vocab_size", "used", "train_length", "length"),
    [(2, 2, 300, 200), (5, 4, 250, 120), (70_000, 3, 150, 90), (256, 256, 400, 80), (3, 3, 1, 40), (4, 2, 40, 1)],
)
def test_every_order_equals_a_recursion_over_dictionaries(vocab_size, used, train_length, length):
    """The vocabulary may have more symbols than the texts use, and the text may have symbols that training does not have."""
    random = np.random.default_rng(vocab_size + length)
    symbols = np.sort(random.permutation(vocab_size)[:used])
    train, text = (symbols[random.integers(0, used, size)] for size in (train_length, length))
    text[:: max(length // 7, 1)] = vocab_size - 1
    # The second half of the text is copied from the training text, so that long contexts occur in both texts.
    text[length // 2 :] = np.resize(train, 2 * length)[-(length - length // 2) :]
    found = ngram.scores(train, text, vocab_size, range(1, 11))
    assert list(found) == list(range(1, 11))
    for order, nats in found.items():
        assert nats.dtype == np.float64
        np.testing.assert_allclose(nats, brute_force(train, text, vocab_size, order), rtol=1e-12)
        np.testing.assert_array_equal(ngram.score(train, text, vocab_size, order), nats)


def test_the_end_of_the_training_text_has_no_successor():
    """The training text is aab. Nothing follows b, ab or aab in it, so P(a|aab) is the probability without a context."""
    np.testing.assert_allclose(
        ngram.score(np.array([0, 0, 1]), np.array([0, 0, 1, 0]), 2, 4), brute_force([0, 0, 1], [0, 0, 1, 0], 2, 4)
    )
    assert ngram.score(np.array([0, 0, 1]), np.array([0, 0, 1, 0]), 2, 4)[3] == pytest.approx(-math.log(3 / 5))


def test_values_worked_out_by_hand():
    """The training text is abracadabra, and V = 6: a, b, c, d, r and z.

    The training text has 11 symbols of 5 kinds, and 5 of the symbols are a: P(a) = (5 + 5/6) / 16 = 35/96,
    P(b) = P(r) = (2 + 5/6) / 16 = 17/96, and P(z) = (5/6) / 16 = 5/96. The symbols b, c, d and b follow a, which are 4 symbols
    of 3 kinds: P(b|a) = (2 + 3 · 17/96) / 7 = 81/224, and P(z|a) = (3 · 5/96) / 7 = 5/224. r follows b twice:
    P(r|b) = (2 + 17/96) / 3 = 209/288. r also follows ab twice: P(r|ab) = (2 + 209/288) / 3 = 785/864. Nothing follows z:
    P(a|rz) = P(a|z) = P(a).
    """
    letters = "abcdrz"
    train, text = (np.array([letters.index(letter) for letter in word], np.uint8) for word in ("abracadabra", "abrzaz"))
    found = ngram.scores(train, text, 6, [3, 2])
    bigram = [35 / 96, 81 / 224, 209 / 288, np.nan, 35 / 96, 5 / 224]
    trigram = [35 / 96, 81 / 224, 785 / 864, np.nan, 35 / 96, 5 / 224]
    # a follows r twice: P(z|r) = (5/96) / 3. a also follows br twice: P(z|br) = (5/288) / 3.
    bigram[3], trigram[3] = 5 / 288, 5 / 864
    np.testing.assert_allclose(np.exp(-found[2]), bigram)
    np.testing.assert_allclose(np.exp(-found[3]), trigram)


def test_probabilities_of_all_symbols_sum_to_one():
    random = np.random.default_rng(3)
    train, vocab_size = random.integers(0, 4, 200), 6
    for number in range(25):
        context = random.integers(0, 5, number % 9) if number % 2 else train[number : number + number % 9]
        texts = [np.append(context, symbol) for symbol in range(vocab_size)]
        nats = [ngram.scores(train, text, vocab_size, (1, 2, 4, 10)) for text in texts]
        for order in (1, 2, 4, 10):
            assert sum(math.exp(-each[order][-1]) for each in nats) == pytest.approx(1, abs=1e-12)


def test_ids_may_be_read_from_disk():
    codes, table = np.array([0, 1, 2, 1, 0, 1], np.uint8), np.array([3, 1, 0], np.uint8)
    mapped = Translated(codes, table)
    np.testing.assert_array_equal(ngram.score(mapped, mapped, 4, 3), ngram.score(table[codes], table[codes], 4, 3))


@pytest.mark.parametrize(
    ("train", "text", "order", "message"),
    [
        ([0, 1], [0, 1], 0, "n-gram order 0: must be an integer from 1 to 20."),
        ([0, 1], [0, 1], 21, "n-gram order 21: must be an integer from 1 to 20."),
        ([0, 1], [0, 1], 2.5, "n-gram order 2.5: must be an integer from 1 to 20."),
        ([], [0, 1], 2, "the training text is empty: an n-gram needs at least one symbol."),
        ([0, 1], [], 2, "the text to score is empty: an n-gram needs at least one symbol."),
        ([0, 1], [0, 2], 2, "the text to score has ids from 0 to 2: ids must be from 0 to 1."),
        ([-1, 1], [0, 1], 2, "the training text has ids from -1 to 1: ids must be from 0 to 1."),
    ],
)
def test_wrong_arguments_are_refused(train, text, order, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        ngram.score(np.array(train, int), np.array(text, int), 2, order)


def make_run(folder, text, **keys):
    """A run directory without a checkpoint."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = load.load(str(ROOT / TINY), {"corpus.path": str(folder / "text.txt")} | keys)
    corpus, run = corpora.load(config), Run(folder / "run")
    run.workdir.mkdir()
    run.begin(config, corpora.vocabulary(config, corpus), corpus.provenance)
    return run


def evaluated(run, orders):
    scored = inputs.split_to_score(run, "validation")
    return ngram.evaluate(run, scored, scored.encoded(run.vocab()), orders)


def test_evaluate_scores_the_characters_of_a_stream_and_compare_ignores_the_results(script, tmp_path):
    text = make_text(3000)
    run = make_run(tmp_path, text)
    result = script("evaluate", f"--workdir={run.workdir}", "--ngram=2..3")
    assert result.stderr == "evaluating --ngram=2..3 on 300 chars …\n"
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    train, validation = (list(map(ord, part)) for part in (text[:2700], text[2700:]))
    for order, row in zip((2, 3), printed, strict=True):
        nats = np.mean(brute_force(train, validation, len(set(text)), order)[1:])
        assert [row["nats"], row["bits"], row["perplexity"]] == pytest.approx([nats, nats / math.log(2), math.exp(nats)])
        assert (row["order"], row["chars"], row["bytes"]) == (order, 299, 299)
        of_model = Protocol.of_run(run.config()).named(run.corpus()["sha256"], "validation", 299)
        method = f"{order}-gram with interpolated Witten-Bell smoothing, counts of the train split"
        assert row["protocol"] == of_model | {"method": method}
    problems: list[str] = []
    assert reading._evaluations(run.workdir / "evaluations.jsonl", problems) == {}
    assert len((run.workdir / "evaluations.jsonl").read_text().splitlines()) == 2
    assert not problems


def test_an_ngram_of_bytes_predicts_the_bytes_of_the_text(tmp_path):
    text = "aé€😀b\n" * 50 + "ab€é" * 20
    run = make_run(tmp_path, text, **{"vocab.source": "bytes", "batch.size": 2})
    raw = text.encode()
    split = len(raw) - run.corpus()["splits"]["validation"]
    (row,) = evaluated(run, [4])
    assert row["nats"] == pytest.approx(np.mean(brute_force(raw[:split], raw[split:], 256, 4)[1:]))
    assert row["chars"] == row["bytes"] == len(raw) - split - 1


def test_an_ngram_reads_documents_as_a_stream_with_the_special_symbols_of_the_vocabulary(tmp_path):
    lines = [line for line in make_text(4000).splitlines() if line]
    lines[-1] += "é"
    keys = {"corpus.documents": "lines", "batch.framing": "documents", "vocab.source": "train", "vocab.unknown": True}
    run = make_run(tmp_path, "\n".join(lines), **keys)
    splits, vocab = run.splits(), run.vocab()
    train, validation = ([id for line in splits[name] for id in (*vocab.encode(line), 1)] for name in ("train", "validation"))
    assert vocab.names[1] == "<eos>"
    (row,) = evaluated(run, [3])
    assert row["nats"] == pytest.approx(np.mean(brute_force(train, validation, len(vocab), 3)[1:]))
    assert (row["chars"], row["unknown"]) == (len(validation) - 1, 1)
    message = "--ngram reads a text as a stream, but the framing is 'documents': add --framing=stream."
    with pytest.raises(UserError, match=f"^{message}$"):
        ngram.check(Protocol.of_run(run.config()))
    ngram.check(Protocol.of_run(run.config(), "stream"))


def test_the_flag_names_one_order_or_a_range():
    assert ngram.orders_of("5") == [5]
    assert ngram.orders_of("2..10") == list(range(2, 11))
    assert ngram.orders_of("20..20") == [20]
    for wrong in ("", "0", "21", "2..21", "0..3", "3..2", "2..", "..2", "2-4", "2.5", "-1", " 5", "x", "٣", "9" * 5000):
        with pytest.raises(UserError, match=r"must be an order from 1 to 20, or a range of orders such as 2\.\.10\.$"):
            ngram.orders_of(wrong)
