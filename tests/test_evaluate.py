"""Invariants 4 and 8, and the whole-split figure against a float64 NumPy forward pass over the text in one go."""

import itertools

import jax
import numpy as np
import pytest

from charlm import evaluate, model
from charlm.evaluate import Protocol
from configs import base

VOCAB = 9
IDS = np.random.default_rng(0).integers(0, VOCAB, 3001).astype(np.uint8)


@pytest.fixture(scope="module")
def trained():
    config = base.get_config()
    config.model.update({"hidden": 12, "layers": 2, "embedding": 5})
    functions = model.functions(config, VOCAB)
    params = jax.tree.map(lambda leaf: leaf * 0.8, jax.jit(functions.init)(jax.random.key(0)))
    return params, evaluate.evaluator(functions)


def numpy_nats(params, ids):
    """Sum of nats of ids[1:], in float64, with the cell written out."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    state = [(np.zeros(12), np.zeros(12)) for _ in range(2)]
    nats = 0.0
    for this, following in itertools.pairwise(ids):
        x = params["embedding"][this]
        for index in range(2):
            layer, (c, h) = params[f"lstm_{index}"], state[index]
            i, f, g, o = np.split(x @ layer["input_kernel"] + h @ layer["recurrent_kernel"] + layer["bias"], 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            state[index] = (c, x)
        logits = x @ params["head_kernel"] + params["head_bias"]
        nats += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
    return nats


def test_whole_split_equals_numpy_in_float64(trained):
    params, evaluator = trained
    nats, chars = evaluator(params, IDS, Protocol(length=256, lanes=1, burn_in=0))
    assert chars == 3000
    assert nats / chars == pytest.approx(numpy_nats(params, IDS) / 3000, abs=1e-6)


@pytest.mark.parametrize("length", [1, 17, 1000, 3000, 9999])
def test_same_number_for_every_window_length(trained, length):  # invariant 4
    params, evaluator = trained
    expected, _ = evaluator(params, IDS, Protocol(length=64, lanes=1, burn_in=0))
    nats, chars = evaluator(params, IDS, Protocol(length, lanes=1, burn_in=0))
    assert chars == 3000
    assert nats == pytest.approx(expected, rel=1e-6)


def test_lanes_with_burn_in_come_near_and_lanes_without_are_another_protocol(trained):
    params, evaluator = trained
    exact, _ = evaluator(params, IDS, Protocol(256, lanes=1, burn_in=0))
    warmed, chars = evaluator(params, IDS, Protocol(256, lanes=8, burn_in=100))
    assert chars == 3000
    assert warmed == pytest.approx(exact, rel=1e-5)
    cold, _ = evaluator(params, IDS, Protocol(256, lanes=8, burn_in=0))
    assert abs(cold - exact) > 10 * abs(warmed - exact)
    names = [
        Protocol(256, lanes, burn_in).named("hash", "test", 3000)["state"] for lanes, burn_in in ((1, 9), (8, 100), (8, 0))
    ]
    assert len(set(names)) == 3


def test_sum_over_windows_is_divided_once(trained):  # invariant 8
    # One full window and one of 99 characters: an average of the two averages would weigh the short one like the long one.
    params, evaluator = trained
    nats, chars = evaluator(params, IDS, Protocol(2901, lanes=1, burn_in=0))
    parts = [numpy_nats(params, IDS[:2902]), numpy_nats(params, IDS)]
    assert nats / chars == pytest.approx(parts[1] / 3000, abs=1e-6)
    assert nats / chars != pytest.approx((parts[0] / 2901 + (parts[1] - parts[0]) / 99) / 2, abs=1e-5)


def test_bits_of_a_model_that_knows_nothing_are_those_of_a_uniform_guess(trained):
    params, evaluator = trained
    zeros = jax.tree.map(lambda leaf: leaf * 0, params)
    nats, chars = evaluator(zeros, IDS, Protocol(100, lanes=1, burn_in=0))
    assert nats / chars == pytest.approx(np.log(VOCAB), rel=1e-6)
