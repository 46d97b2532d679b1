"""Tests of the batches of all framings, for training and for scoring.

The expected batches are written by hand, or follow from the text: in most tests, each id equals its position in the text.
"""

import math

import numpy as np
import pytest
from conftest import ROOT

from charlm.config import load
from charlm.data import batches
from charlm.data.batches import Chunks, Documents, Stream, Windows, evaluation_windows, once_through, training_batches
from charlm.data.framing import Framing
from charlm.data.ids import Encoded, encode
from charlm.data.order import Order
from charlm.data.vocab import Vocab
from charlm.errors import UserError

TINY = str(ROOT / "configs" / "tiny.py")
IDS = np.arange(1000, dtype=np.uint16)  # each id equals its position, so a batch shows the positions of its characters


def test_the_lanes_of_a_stream_are_contiguous_and_reset_at_the_start_of_each_epoch():
    stream = Stream(IDS, rows=3, length=7, shift=False, seed=0)
    assert stream.steps_per_epoch == 999 // 21
    seen = [[] for _ in range(3)]
    for step in range(stream.steps_per_epoch):
        batch = stream.batch_at(step)
        assert batch.reset_B.tolist() == [step == 0] * 3
        np.testing.assert_array_equal(batch.targets_BS, batch.inputs_BT + 1)
        np.testing.assert_array_equal(batch.weights_BS, 1)
        assert (batch.inputs_BT.dtype, batch.weights_BS.dtype) == (np.int32, np.float32)
        for lane, row in zip(seen, batch.inputs_BT, strict=True):
            lane.extend(row)
    # The lanes, one after the other, are the text without its last characters.
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(stream.steps_per_epoch * 21))
    assert stream.batch_at(stream.steps_per_epoch).reset_B.all()


def test_a_stream_batch_depends_only_on_the_step():
    stream = Stream(IDS, rows=2, length=9, shift=True, seed=5)
    in_order = [stream.batch_at(step) for step in range(120)]
    for step in (119, 3, 60, 3):
        for actual, expected in zip(stream.batch_at(step), in_order[step], strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_shift_takes_every_possible_offset_and_depends_on_seed_and_epoch():
    stream = Stream(IDS[:100], rows=3, length=11, shift=True, seed=1)  # 99 targets fill 3 steps of 3 * 11 = 33 targets
    assert stream.steps_per_epoch == 3
    stream = Stream(IDS[:95], rows=3, length=11, shift=True, seed=1)  # 94 targets: 2 steps of 33, and 28 remain
    firsts = [int(stream.batch_at(epoch * stream.steps_per_epoch).inputs_BT[0, 0]) for epoch in range(200)]
    assert (min(firsts), max(firsts)) == (0, 28)
    assert len(set(firsts)) == 29
    other_seed = Stream(IDS[:95], rows=3, length=11, shift=True, seed=2)
    assert firsts != [int(other_seed.batch_at(epoch * stream.steps_per_epoch).inputs_BT[0, 0]) for epoch in range(200)]


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
@pytest.mark.parametrize(("lanes", "burn_in"), [(1, 0), (1, 50), (4, 0), (4, 50), (7, 13)])
def test_evaluation_scores_every_char_except_the_first_exactly_once(length, lanes, burn_in):
    scored, last_inputs_B = [], None
    for number, batch in enumerate(evaluation_windows(IDS, length, lanes, burn_in)):
        assert batch.inputs_BT.shape[0] == lanes
        assert batch.reset_B.tolist() == [number == 0] * lanes
        np.testing.assert_array_equal(batch.targets_BS, batch.inputs_BT + 1)
        mask = batch.weights_BS > 0
        scored.extend(batch.targets_BS[mask])
        if last_inputs_B is not None:  # each lane continues where its previous window ended
            continues_B = mask[:, 0]
            np.testing.assert_array_equal(batch.inputs_BT[continues_B, 0], last_inputs_B[continues_B] + 1)
        last_inputs_B = batch.inputs_BT[:, -1]
    assert sorted(scored) == list(range(1, 1000))


def test_all_lanes_except_the_first_start_with_an_unscored_burn_in():
    (batch,) = evaluation_windows(IDS, 5000, lanes=4, burn_in=50)
    unscored = [np.argmax(row > 0) for row in batch.weights_BS]
    assert unscored == [0, 50, 50, 50]
    assert [int(row[0]) for row in batch.inputs_BT] == [0, 238, 476, 714]


def batches_of_epoch(framing, epoch=0):
    first = epoch * framing.steps_per_epoch
    return [framing.batch_at(step) for step in range(first, first + framing.steps_per_epoch)]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("length", [10, 37, 999])
def test_chunks_score_every_char_except_the_first_once_per_epoch(shuffle, length):
    chunks = Chunks(IDS, rows=4, length=length, order=Order(shuffle, seed=3))
    assert chunks.steps_per_epoch == math.ceil(math.ceil(999 / length) / 4)
    for epoch in (0, 5):
        scored = []
        for batch in batches_of_epoch(chunks, epoch):
            assert batch.reset_B.all()
            assert batch.inputs_BT.shape == (4, length)
            mask = batch.weights_BS > 0
            np.testing.assert_array_equal(batch.targets_BS[mask], batch.inputs_BT[mask] + 1)
            np.testing.assert_array_equal(batch.inputs_BT[mask[:, 0], 0] % length, 0)  # chunks start at multiples of length
            scored.extend(batch.targets_BS[mask])
        assert sorted(scored) == list(range(1, 1000))
        assert (scored == sorted(scored)) is not shuffle or length == 999


@pytest.mark.parametrize(("length", "stride", "rows"), [(100, 1, 64), (7, 3, 8), (30, 30, 5), (999, 1, 4)])
def test_each_window_predicts_the_char_after_it(length, stride, rows):
    windows = Windows(IDS, rows, length, stride, Order(shuffle=True, seed=1))
    targets = []
    for batch in batches_of_epoch(windows):
        valid_B = batch.weights_BS[:, 0] > 0
        np.testing.assert_array_equal(batch.inputs_BT, batch.inputs_BT[:, :1] + np.arange(length))
        np.testing.assert_array_equal(batch.targets_BS[:, 0], batch.inputs_BT[:, -1] + 1)
        assert batch.reset_B.all()
        targets.extend(batch.targets_BS[valid_B, 0])
    assert sorted(targets) == list(range(length, 1000, stride))


def test_the_sonnets_give_the_published_numbers_of_windows_and_steps():
    # The sonnets have 94,630 chars, so they give 94,530 windows of 100 chars. These windows fill 1,478 batches of at most 64
    # windows. The last batch has only 2 windows.
    windows = Windows(np.zeros(94_630, np.uint8), 64, 100, 1, Order(shuffle=True))
    assert (windows.num_windows, windows.steps_per_epoch) == (94_530, 1478)
    assert windows.batch_at(1477).weights_BS.sum() == 2


DOCUMENTS = ["abc", "d", "efghijkl", "", "mn"]
VOCAB = Vocab.of("abcdefghijklmn", unknown=False, documents=True)
ENCODED = encode(VOCAB, [document for document in DOCUMENTS if document], "the documents")


def as_text(ids):
    """Decodes ids to text. $ means `<eos>`, and _ means `<pad>`."""
    return VOCAB.decode(ids).replace("<eos>", "$").replace("<pad>", "_")


def test_documents_are_padded_and_end_in_eos():
    framing = Documents(ENCODED, rows=3, length=6, bucket=4, padding="masked", order=Order(shuffle=False))
    assert (framing.num_documents, framing.steps_per_epoch) == (4, 2)
    first, second = batches_of_epoch(framing)
    # The third document has 8 chars and is cut to the length 6.
    assert [as_text(row) for row in first.inputs_BT] == ["abc___", "d_____", "efghij"]
    assert [as_text(row) for row in first.targets_BS] == ["bc$___", "$_____", "fghijk"]
    assert first.weights_BS.tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1] * 6]
    assert second.inputs_BT.shape == (3, 4)  # the length of "mn" is rounded up to the bucket size, 4
    assert [as_text(row) for row in second.targets_BS[:1]] == ["n$__"]
    assert second.weights_BS.tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4]
    assert first.reset_B.all()


def test_with_a_start_symbol_eos_comes_before_each_document_and_predicts_its_first_character():
    framing = Documents(ENCODED, 3, length=6, bucket=4, padding="masked", order=Order(shuffle=False), start_symbol=True)
    first, second = batches_of_epoch(framing)
    # The third document has 8 chars. Its first 6 chars are read, and the start symbol comes on top of these 6.
    assert [as_text(row) for row in first.inputs_BT] == ["$abc___", "$d_____", "$efghij"]
    assert [as_text(row) for row in first.targets_BS] == ["abc$___", "d$_____", "efghijk"]
    assert first.weights_BS.tolist() == [[1] * 4 + [0] * 3, [1] * 2 + [0] * 5, [1] * 7]
    assert [as_text(row) for row in second.inputs_BT[:1]] == ["$mn_"]  # 3 ids, rounded up to the bucket size, 4
    assert [as_text(row) for row in second.targets_BS[:1]] == ["mn$_"]
    assert second.weights_BS.tolist() == [[1, 1, 1, 0], [0] * 4, [0] * 4]


def test_with_counted_padding_documents_have_no_start_symbol():
    config = load.load(TINY, {"corpus.documents": "lines", "batch.framing": "documents"})
    assert Framing.of(config).start_symbol
    config.batch.padding = "counted"
    assert not Framing.of(config).start_symbol


def test_counted_padding_precedes_the_text_and_is_scored():
    # The batches are as in Microsoft's Keras lesson on AG News. The padding consists of zeros before the text. The targets are
    # the inputs without the first id, followed by <eos>. Every position is scored.
    framing = Documents(ENCODED, rows=3, length=99, bucket=1, padding="counted", order=Order(shuffle=False))
    first, _ = batches_of_epoch(framing)
    assert [as_text(row) for row in first.inputs_BT] == ["_____abc", "_______d", "efghijkl"]
    assert [as_text(row) for row in first.targets_BS] == ["____abc$", "______d$", "fghijkl$"]
    assert first.weights_BS.tolist() == [[1] * 8] * 3


def test_document_batches_have_only_multiples_of_the_bucket_as_lengths():
    lengths = np.random.default_rng(0).integers(1, 200, 500)
    starts = np.cumsum([0, *(lengths + 1)])
    encoded = Encoded(np.zeros(starts[-1], np.uint8), starts)
    framing = Documents(encoded, 8, 128, 16, "masked", Order(shuffle=True))
    shapes = {batch.inputs_BT.shape[1] for batch in batches_of_epoch(framing)}
    assert shapes <= set(range(16, 129, 16))
    assert sum(batch.weights_BS.sum() for batch in batches_of_epoch(framing)) == np.minimum(lengths, 128).sum()


def test_chunk_window_and_document_batches_depend_only_on_the_step():
    framings = [
        Chunks(IDS, 4, 10, Order(True, 1)),
        Windows(IDS, 4, 10, 1, Order(True, 1)),
        Documents(ENCODED, 3, 6, 4, "masked", Order(True, 1)),
    ]
    for framing in framings:
        in_order = [framing.batch_at(step) for step in range(3 * framing.steps_per_epoch)]
        for step in (len(in_order) - 1, 0, len(in_order) // 2):
            for actual, expected in zip(framing.batch_at(step), in_order[step], strict=True):
                np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("kind", "lanes", "rows_of_batch", "scored", "state"),
    [
        ("stream", 1, 1, 999, "carried"),
        ("stream", 2, 2, 999, "carried in 2 lanes, 5 chars of burn-in"),
        ("chunks", 2, 3, 999, "zero at every chunk of 10"),
        ("windows", 2, 3, 198, "zero at every window of 10, one every 5, its next char scored"),
        ("documents", 2, 3, 3 + 1 + 8 + 2, "zero at every document, of which the first 10 chars"),
        ("documents with start", 2, 3, 4 + 2 + 9 + 3, "zero at every document, read after <eos>, of which the first 10 chars"),
    ],
)
def test_evaluation_batches_and_the_description_of_the_state_follow_the_framing(kind, lanes, rows_of_batch, scored, state):
    kind, _, start = kind.partition(" ")
    framing = Framing(kind, 7, 10, shift=True, stride=5, shuffle=True, bucket=1, padding="masked", start_symbol=bool(start))
    encoded = ENCODED if kind == "documents" else Encoded(IDS)
    found = list(batches.evaluation_batches(framing, encoded, rows=3, length=64, lanes=lanes, burn_in=5))
    assert {len(batch.reset_B) for batch in found} == {rows_of_batch}
    assert sum(batch.weights_BS.sum() for batch in found) == scored
    assert found[0].reset_B.all()
    assert all(batch.reset_B.any() for batch in found) is not framing.carries_state
    assert framing.state_in_words(lanes, burn_in=5) == state
    assert framing.is_of_documents is (kind == "documents")


def test_once_through_yields_exactly_one_epoch():
    chunks = Chunks(IDS, 4, 10, Order(shuffle=False))
    assert sum(batch.weights_BS.sum() for batch in once_through(chunks)) == 999


@pytest.mark.parametrize(
    ("kind", "length", "message"),
    [
        ("windows", 1000, r"the text has 1,000 chars, but windows of batch.length=1000 need at least 1,001"),
        ("chunks", 2000, r"the text has 1,000 chars, but chunks of batch.length=2000 need at least 2,001"),
        ("documents", 10, r"needs a corpus of documents: set corpus.documents"),
        ("stream", 500, r"the text has 1,000 chars, but one batch .* needs 1,001"),
    ],
)
def test_a_corpus_that_is_too_short_or_has_no_documents_is_refused(kind, length, message):
    framing = Framing(kind, rows=2, length=length, shift=True, stride=1, shuffle=True, bucket=16, padding="masked")
    with pytest.raises(UserError, match=message):
        training_batches(framing, Encoded(IDS), seed=0)


@pytest.mark.parametrize(
    ("chars", "advice"), [(108, "batch.size=3"), (33, "batch.size=1"), (20, "batch.size=1 and batch.length=19")]
)
def test_the_smaller_batch_that_a_short_text_needs_is_named_and_works(chars, advice):
    framing = Framing("stream", rows=16, length=32, shift=True, stride=1, shuffle=True, bucket=1, padding="masked")
    text = Encoded(np.zeros(chars, np.uint8), None, "the text", np.ones(chars, np.uint8))
    with pytest.raises(UserError, match=f"or set {advice}\\.$"):
        batches.training_batches(framing, text, 0)
    values = dict(part.split("=") for part in advice.replace("batch.", "").split(" and "))
    smaller = framing._replace(rows=int(values["size"]), length=int(values.get("length", 32)))
    assert batches.training_batches(smaller, text, 0).steps_per_epoch == 1
