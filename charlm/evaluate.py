"""Perplexity of a whole split: in order, state carried, every character but the first scored once, divided once at the end.

Letters: N symbols of the split.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from charlm import objective
from charlm.batches import evaluation_windows
from charlm.model import Functions


class Protocol(NamedTuple):
    """How a split is read; two figures compare only where all of this is the same.

    Attributes:
      length: chars a window, which changes the memory needed and not the result.
      lanes, burn_in: see `batches.evaluation_windows`; one lane is exact.
    """

    length: int
    lanes: int
    burn_in: int

    @classmethod
    def of(cls, config) -> "Protocol":
        return cls(config.eval.length, config.eval.lanes, config.eval.burn_in)

    def named(self, corpus_sha256: str, split: str, chars: int) -> dict:
        """The protocol as it stands in logs beside each figure."""
        burn_in = self.burn_in if self.lanes > 1 else 0
        return {
            "corpus": corpus_sha256,
            "split": split,
            "state": "carried" if self.lanes == 1 else f"carried in {self.lanes} lanes, {burn_in} chars of burn-in",
            "chars": chars,
        }


def evaluator(model: Functions) -> Callable:
    """A function (params, ids_N, protocol) → (nats, chars): the sum of nats over all scored characters, and their number.

    Compile once, use for every evaluation of a run. Training state is neither read nor written.
    """

    @functools.partial(jax.jit, donate_argnums=2)
    def window(params, batch, carry):
        logits_BSV, carry = model.apply(params, batch, carry)
        return objective.nats_and_count(logits_BSV, batch.targets_BS, batch.weights_BS), carry

    def evaluate(params, ids_N: np.ndarray, protocol: Protocol) -> tuple[float, int]:
        carry, sums = model.zero_carry(protocol.lanes), []
        for batch in evaluation_windows(ids_N, protocol.length, protocol.lanes, protocol.burn_in):
            window_sums, carry = window(params, batch, carry)
            sums.append(window_sums)
        nats, chars = np.asarray(jax.device_get(sums), np.float64).sum(0)
        return float(nats), int(chars)

    return evaluate
