"""N-gram models of symbols with interpolated Witten-Bell smoothing, a yardstick for the loss of a neural model.

An n-gram of order n predicts a symbol w from the n - 1 symbols before it, the context h. Let h' be h without its first symbol.

    P(w|h) = (c(hw) + N(h) P(w|h')) / (c(h) + N(h))

c(hw) is the number of times that w follows h in the training text, and c(h) is the sum of c(hw) over all w. N(h) is the number
of different symbols that follow h in the training text. P(w|h') is computed in the same way from the shorter context. Below
the empty context is the uniform distribution 1/V. If nothing follows h in the training text, P(w|h) is P(w|h'). The smoothing
follows Witten & Bell 1991, in the interpolated form of Chen & Goodman 1998.

This module must not import JAX. Letters: N symbols of the training text, M symbols of the scored text, K keys, V vocabulary.
"""

import operator
import re
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from charlm import measures
from charlm.data import batches
from charlm.data.longtext import Ids
from charlm.errors import UserError
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.rundir.run import Run

MOST_ORDER = 20


def orders_of(text: str) -> list[int]:
    """The orders that the flag --ngram names: one order such as 5, or a range such as 2..10. Both ends belong to the range.

    Raises:
      UserError: the text has another form, or an order is not from 1 to MOST_ORDER.
    """
    if match := re.fullmatch(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?", text):
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= MOST_ORDER:
            return list(range(first, last + 1))
    raise UserError(f"--ngram={text}: must be an order from 1 to {MOST_ORDER}, or a range of orders such as 2..10.")


def check(protocol: Protocol) -> None:
    """Raises a UserError if the protocol is not that of a stream."""
    if not protocol.framing.carries_state:
        raise UserError(
            f"--ngram reads a text as a stream, but the framing is {protocol.framing.kind!r}: add --framing=stream."
        )


def evaluate(run: Run, scored: ScoredText, encoded: batches.Encoded, orders: list[int]) -> list[dict[str, Any]]:
    """Scores a text with n-grams that count the symbols of the run's train split.

    Args:
      run: the run directory, from which the train split is read. No checkpoint is needed.
      scored: the text.
      encoded: the text as ids of the run's vocabulary.
      orders: the orders.

    Returns:
      One dict for each order, with `order` and the fields of `Model.score` without `step`. The scored characters are those of a
      stream: all except the first. `seconds` is the time of all orders together. The protocol also has `method`.

    Raises:
      UserError: a text does not fit, or the corpus of the run can't be read.
    """
    begin = time.perf_counter()
    protocol, vocab = Protocol.of_run(run.config(), "stream"), run.vocab()
    protocol.check(encoded)
    train = batches.encode(vocab, run.splits()["train"], "the train split")
    found = scores(train.ids_N, encoded.ids_N, len(vocab), orders)
    counts, seconds = protocol.counts(encoded, vocab), round(time.perf_counter() - begin, 3)
    results = []
    for order in orders:
        nats_M = found[order][1:]
        named = protocol.named(scored.sha256, scored.split, len(nats_M))
        named["method"] = f"{order}-gram with interpolated Witten-Bell smoothing, counts of the train split"
        measured = measures.of_text(float(nats_M.sum()), len(nats_M), *counts)
        results.append({"order": order, **measured, "seconds": seconds, "protocol": named})
    return results


def score(train_ids: Ids, ids: Ids, vocab_size: int, order: int) -> np.ndarray:
    """The nats of each symbol of a text under the n-gram of one order; see `scores`."""
    return scores(train_ids, ids, vocab_size, [order])[order]


def scores(train_ids: Ids, ids: Ids, vocab_size: int, orders: Iterable[int]) -> dict[int, np.ndarray]:
    """The nats of each symbol of a text under n-grams of several orders. All orders take as long as the highest order alone.

    Args:
      train_ids: (N,) the ids of the training text.
      ids: (M,) the ids of the text. Every symbol is predicted from up to `order` - 1 symbols before it in this text. The first
        symbols have fewer symbols before them; the very first symbol is predicted from the empty context.
      vocab_size: V. All ids must be from 0 to V - 1.
      orders: the orders, integers from 1 to MOST_ORDER.

    Returns:
      A dict from each order to float64 (M,): -ln P of each symbol, all of them finite.

    Raises:
      UserError: an order is wrong, a text is empty, or an id is outside the vocabulary.
    """
    orders = [checked_order(order) for order in orders]
    train_N = _checked(train_ids, vocab_size, "the training text")
    text_M = _checked(ids, vocab_size, "the text to score")
    found = {}
    probability_M = np.full(len(text_M), 1 / vocab_size)
    # The contexts of one length that the text and the training text share are numbered from 0. `scored` and `trained` are the
    # positions in the two texts whose context has a number, and `context` and `train_context` are these numbers. At first, the
    # context is empty at every position. Positions whose context only one of the texts has are dropped, because these contexts
    # and all longer ones do not change any probability.
    scored, context = np.arange(len(text_M)), np.zeros(len(text_M), np.int64)
    trained, train_context = np.arange(len(train_N)), np.zeros(len(train_N), np.int64)
    contexts = 1
    for order in range(1, max(orders, default=0) + 1):
        # A key stands for a context and the symbol after it. Different pairs have different keys. Keys are less than M V,
        # so they fit into 64 bits.
        keys = context * vocab_size + text_M[scored]
        train_keys = train_context * vocab_size + train_N[trained]
        unique_K, counts_K = np.unique(train_keys, return_counts=True)
        if len(unique_K):
            counts = np.bincount(unique_K // vocab_size, counts_K, contexts)[context]
            kinds = np.bincount(unique_K // vocab_size, minlength=contexts)[context]
            places = np.minimum(np.searchsorted(unique_K, keys), len(unique_K) - 1)
            in_training = unique_K[places] == keys
            hits = np.where(in_training, counts_K[places], 0)
            lower = probability_M[scored]
            # kinds is 0 if the context is only at the end of the training text
            probability_M[scored] = np.where(kinds > 0, (hits + kinds * lower) / np.maximum(counts + kinds, 1), lower)
            # A context with the symbol after it is the context, longer by one, of the next position.
            shared = np.unique(keys[in_training])
            contexts = len(shared)
            scored, context = _next(scored, keys, shared, len(text_M))
            trained, train_context = _next(trained, train_keys, shared, len(train_N))
        if order in orders:
            found[order] = -np.log(probability_M)
    return found


def checked_order(order: int) -> int:
    """Returns the order, or raises a UserError if it is not an integer from 1 to MOST_ORDER."""
    try:
        number = operator.index(order)
    except TypeError:
        number = 0
    if not 1 <= number <= MOST_ORDER:
        raise UserError(f"n-gram order {order}: must be an integer from 1 to {MOST_ORDER}.")
    return number


def _next(positions: np.ndarray, keys: np.ndarray, shared: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions after those whose key is among the sorted `shared` keys, and the index of that key for each of them."""
    if not len(shared):
        return positions[:0], keys[:0]
    places = np.minimum(np.searchsorted(shared, keys), len(shared) - 1)
    kept = (shared[places] == keys) & (positions + 1 < length)
    return positions[kept] + 1, places[kept]


def _checked(ids: Ids, vocab_size: int, name: str) -> np.ndarray:
    """The ids as int32. Raises a UserError if there are none, or if one is outside the vocabulary."""
    if not len(ids):
        raise UserError(f"{name} is empty: an n-gram needs at least one symbol.")
    array = ids[np.arange(len(ids))]
    if array.min() < 0 or array.max() >= vocab_size:
        raise UserError(f"{name} has ids from {array.min()} to {array.max()}: ids must be from 0 to {vocab_size - 1}.")
    return array.astype(np.int32)
