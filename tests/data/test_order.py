"""Tests of the order of the examples in an epoch."""

import numpy as np
import pytest

from charlm.data.order import Order


@pytest.mark.parametrize("examples", [1, 2, 3, 64, 1000, 4097])
def test_shuffling_is_a_permutation_that_depends_on_seed_and_epoch(examples):
    def epoch(order, number):
        steps = -(-examples // 7)
        taken = [order.at(step, 7, examples) for step in range(number * steps, (number + 1) * steps)]
        return np.concatenate([examples_B[valid_B] for examples_B, valid_B in taken]).tolist()

    in_order = epoch(Order(shuffle=False), 3)
    assert in_order == list(range(examples))
    orders = [epoch(Order(True, seed), number) for seed in (0, 1) for number in (0, 1)]
    for order in orders:
        assert sorted(order) == in_order
    if examples > 60:
        assert len(set(map(tuple, orders))) == 4
        # Of the pairs of consecutive examples, less than a tenth are neighbours in the text. The shuffled order also does not
        # correlate with the order of the text: for a random order, the absolute correlation exceeds 4 / sqrt(examples) in only
        # one of 16,000 cases.
        assert np.mean(np.abs(np.diff(orders[0])) == 1) < 0.1
        assert abs(np.corrcoef(orders[0], in_order)[0, 1]) < 4 / np.sqrt(examples)
