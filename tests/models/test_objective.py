"""Tests the loss and its units against values computed by hand."""

import math

import numpy as np

from charlm import measures
from charlm.models import objective


def test_nats_equal_a_value_computed_by_hand():
    # The probabilities are 1/2, 1/4, 1/4 at the first position, and 1/10, 1/10, 8/10 at the second position.
    # The targets are the symbols 1 and 2, so the expected loss is ln 4 + ln(10/8). The third position is padding.
    logits = np.log(np.array([[[2, 1, 1], [1, 1, 8], [5, 1, 1]]], np.float32))
    nats, count = objective.nats_and_count(logits, np.array([[1, 2, 0]]), np.array([[1, 1, 0]], np.float32))
    assert math.isclose(nats, math.log(4) + math.log(10 / 8), rel_tol=1e-6)
    assert count == 2


def test_large_logits_give_finite_nats():
    logits = np.array([[[1e5, 0.0, -1e5]]], np.float32)
    nats, _ = objective.nats_and_count(logits, np.array([[2]]), np.ones((1, 1), np.float32))
    assert nats == 2e5


def test_bits_and_perplexity():
    assert measures.of_nats(math.log(8)) == {"nats": math.log(8), "bits": 3.0, "perplexity": math.exp(math.log(8))}


def test_perplexity_is_never_clipped():
    assert measures.perplexity(700.0) == math.exp(700)
    assert measures.perplexity(1e4) == math.inf
