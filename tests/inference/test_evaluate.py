"""Tests of evaluation. scripts/README.md lists the invariants.

The loss of a text is the same for every window length (invariant 4). The sum of the losses of all windows is divided once, by
the number of all scored characters (invariant 8). The loss of a whole split equals the loss of a NumPy forward pass in float64.
"""

import itertools

import jax
import numpy as np
import pytest
from conftest import slow

from charlm.data.framing import Framing
from charlm.data.ids import Encoded
from charlm.inference import evaluate
from charlm.inference.protocol import Protocol
from charlm.models import stack
from configs import base

VOCAB = 9
IDS = np.random.default_rng(0).integers(0, VOCAB, 3001).astype(np.uint8)


def make_model(encoding="embedding"):
    config = base.get_config()
    config.model.update({"hidden": 12, "layers": 2, "embedding": 5, "input": encoding})
    functions = stack.functions(config, VOCAB)
    params = jax.tree.map(lambda leaf: leaf * 0.8, jax.jit(functions.init)(jax.random.key(0)))
    return params, evaluate.evaluator(functions)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module", params=["embedding", "onehot", "scalar"])
def model_per_encoding(request):
    return make_model(request.param)


def stream(length, lanes, burn_in):
    return protocol("stream", 20, eval_length=length, lanes=lanes, burn_in=burn_in)


def protocol(kind, length, rows=5, eval_length=64, lanes=1, burn_in=0, stride=1):
    framing = Framing(kind, 3, length, shift=True, stride=stride, shuffle=True, bucket=4, padding="masked")
    return Protocol(framing, rows, eval_length, lanes, burn_in)


def numpy_nats(params, ids):
    """The loss in nats, summed over ids[1:], in float64. This function implements the LSTM in NumPy."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    state = [(np.zeros(12), np.zeros(12)) for _ in range(2)]
    nats = 0.0
    for this, following in itertools.pairwise(ids):
        x = params["embedding"][this] if "embedding" in params else np.eye(VOCAB)[this]
        if len(params["lstm_0"]["input_kernel"]) == 1:
            x = np.array([this / VOCAB])
        for index in range(2):
            layer, (c, h) = params[f"lstm_{index}"], state[index]
            i, f, g, o = np.split(x @ layer["input_kernel"] + h @ layer["recurrent_kernel"] + layer["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            state[index] = (c, x)
        logits = x @ params["head_kernel"] + params["head_bias"]
        nats += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
    return nats


def test_the_loss_of_a_whole_split_equals_numpy_in_float64(model_per_encoding):
    params, evaluator = model_per_encoding
    nats, chars = evaluator(params, Encoded(IDS), stream(length=256, lanes=1, burn_in=0))
    assert chars == 3000
    assert nats / chars == pytest.approx(numpy_nats(params, IDS) / 3000, abs=1e-6)


@pytest.mark.parametrize("length", [1, 17, 1000, 3000, 9999])
def test_the_loss_is_the_same_for_every_window_length(model, length):  # invariant 4
    params, evaluator = model
    expected, _ = evaluator(params, Encoded(IDS), stream(length=64, lanes=1, burn_in=0))
    nats, chars = evaluator(params, Encoded(IDS), stream(length, lanes=1, burn_in=0))
    assert chars == 3000
    assert nats == pytest.approx(expected, rel=1e-6)


def test_padding_of_a_short_text_does_not_change_the_loss(model):
    config = base.get_config()
    config.model.update({"hidden": 12, "layers": 2, "embedding": 5})
    params, evaluator = model
    padding = evaluate.evaluator(stack.functions(config, VOCAB), lengths=(512, 64))
    for number in (2, 64, 66, 513, 700):  # 700 is longer than every length, so no padding is added
        expected, _ = evaluator(params, Encoded(IDS[:number]), stream(length=1000, lanes=1, burn_in=0))
        nats, chars = padding(params, Encoded(IDS[:number]), stream(length=1000, lanes=1, burn_in=0))
        assert chars == number - 1
        assert nats == pytest.approx(expected, rel=1e-6)


def test_several_lanes_approximate_one_lane_but_have_another_protocol(model):
    """Lanes are parts of a text that are read in parallel.

    Each lane except the first reads `burn_in` characters before the characters that it scores. With a burn-in
    of 100 characters, the loss of eight lanes is closer to the loss of one lane than without a burn-in.
    """
    params, evaluator = model
    exact, _ = evaluator(params, Encoded(IDS), stream(256, lanes=1, burn_in=0))
    warmed, chars = evaluator(params, Encoded(IDS), stream(256, lanes=8, burn_in=100))
    assert chars == 3000
    assert warmed == pytest.approx(exact, rel=1e-5)
    cold, _ = evaluator(params, Encoded(IDS), stream(256, lanes=8, burn_in=0))
    assert abs(cold - exact) > 10 * abs(warmed - exact)
    names = [stream(256, lanes, burn_in).named("hash", "test", 3000)["state"] for lanes, burn_in in ((1, 9), (8, 100), (8, 0))]
    assert len(set(names)) == 3


def test_the_loss_is_the_sum_over_all_windows_divided_once_by_all_chars(model):  # invariant 8
    # The first window has 2,901 chars, the second 99. The average of the two mean losses would be wrong, because it
    # gives both windows the same weight.
    params, evaluator = model
    nats, chars = evaluator(params, Encoded(IDS), stream(2901, lanes=1, burn_in=0))
    parts = [numpy_nats(params, IDS[:2902]), numpy_nats(params, IDS)]
    assert nats / chars == pytest.approx(parts[1] / 3000, abs=1e-6)
    assert nats / chars != pytest.approx((parts[0] / 2901 + (parts[1] - parts[0]) / 99) / 2, abs=1e-5)


def test_a_model_with_zero_weights_has_the_loss_of_a_uniform_distribution(model):
    params, evaluator = model
    zeros = jax.tree.map(lambda leaf: leaf * 0, params)
    nats, chars = evaluator(zeros, Encoded(IDS), stream(100, lanes=1, burn_in=0))
    assert nats / chars == pytest.approx(np.log(VOCAB), rel=1e-6)


@pytest.mark.parametrize("rows", [5, *(slow(rows) for rows in (1, 64))])
def test_every_chunk_window_and_document_starts_with_the_zero_state(model_per_encoding, rows):
    params, evaluator = model_per_encoding
    ids = IDS[:203]
    pieces = {
        "chunks": [ids[start : start + 21] for start in range(0, 202, 20)],
        "windows": [ids[start : start + 21] for start in range(0, 203 - 20, 7)],
    }
    for kind, texts in pieces.items():
        nats, chars = evaluator(params, Encoded(ids), protocol(kind, 20, rows, stride=7))
        if kind == "chunks":
            expected, count = sum(numpy_nats(params, piece) for piece in texts), 202
        else:  # only the last char of a window is scored: the nats of the whole window minus the nats without its last char
            expected, count = sum(numpy_nats(params, piece) - numpy_nats(params, piece[:-1]) for piece in texts), len(texts)
        assert chars == count
        assert nats / chars == pytest.approx(expected / count, abs=5e-6)
    starts = np.array([0, 5, 7, 60, 203])
    nats, chars = evaluator(params, Encoded(ids, starts), protocol("documents", 30, rows))
    cut = [ids[begin:end][:31] for begin, end in itertools.pairwise(starts)]
    assert chars == sum(len(document) - 1 for document in cut) == 4 + 1 + 30 + 30
    assert nats / chars == pytest.approx(sum(numpy_nats(params, document) for document in cut) / chars, abs=5e-6)


def test_the_protocol_describes_the_state_differently_for_each_framing():
    config = base.get_config()
    names = set()
    for kind in ("stream", "chunks", "windows", "documents"):
        config.eval.framing = kind
        names.add(Protocol.of(config, Framing.of(config)).named("c0ffee", "validation", 3)["state"])
    assert len(names) == 4
    assert "zero at every chunk of 64" in names
    config.eval.framing = None
    assert Protocol.of(config, Framing.of(config)).framing.kind == config.batch.framing
