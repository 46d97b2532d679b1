"""N-gram models of symbols with interpolated Witten-Bell smoothing. They are a yardstick for the loss of a neural model.

An n-gram of order n predicts a symbol w from the n - 1 symbols before it, the context h. Let h' be h without its first symbol.

    P(w|h) = (c(hw) + N(h) P(w|h')) / (c(h) + N(h))

c(hw) is the number of times that w follows h in the training text, and c(h) is the sum of c(hw) over all w. N(h) is the number
of different symbols that follow h in the training text. P(w|h') is computed in the same way from the shorter context. The empty
context has no shorter context, so the uniform distribution 1/V takes the place of P(w|h'). If nothing follows h in the training
text, P(w|h) is P(w|h'). The smoothing follows Witten & Bell 1991, in the interpolated form of Chen & Goodman 1998.

This module must not import JAX, because inspect.py imports this module before it prepares the devices. Letters in the names of
arrays: N symbols of the training text, M symbols of the scored text, K keys (see `scores`). V is the size of the vocabulary.
"""

import operator
import re
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from charlm import measures
from charlm.data.ids import Encoded, encode
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
    """Raises a UserError if the protocol does not read a text as a stream."""
    if not protocol.framing.carries_state:
        raise UserError(
            f"--ngram reads a text as a stream, but the framing is {protocol.framing.kind!r}: add --framing=stream."
        )


def evaluate(run: Run, scored: ScoredText, encoded: Encoded, orders: list[int]) -> list[dict[str, Any]]:
    """Scores a text with n-grams that count the symbols of the run's train split.

    Args:
      run: the run directory, from which the train split is read. No checkpoint is needed.
      scored: the text.
      encoded: the text as ids of the run's vocabulary.
      orders: the orders.

    Returns:
      One dict for each order, with `order` and the fields of `Model.score` without `step`. The scored characters are those of a
      stream: all except the first. `seconds` is the time of all orders together. The protocol also has `method`, which names
      the n-gram.

    Raises:
      UserError: a text is too short or has unknown symbols, or the corpus of the run can't be read.
    """
    begin = time.perf_counter()
    protocol, vocab = Protocol.of_run(run.config(), "stream"), run.vocab()
    protocol.check(encoded)
    train = encode(vocab, run.splits()["train"], "the train split")
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
    """The nats (-ln P) of each symbol of a text under the n-gram of one order; see `scores`."""
    return scores(train_ids, ids, vocab_size, [order])[order]


def scores(train_ids: Ids, ids: Ids, vocab_size: int, orders: Iterable[int]) -> dict[int, np.ndarray]:
    """The nats (-ln P) of each symbol of a text under n-grams of several orders.

    All orders together take as long as the highest order alone, because its computation passes through all lower orders.

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
    # In each pass of the loop, all contexts have the same length, which is 0 in the first pass. The contexts that occur in both
    # texts are numbered from 0. `scored` has the positions of the text to score at which such a context ends, and `context` has
    # the number of the context at each of these positions. `trained` and `train_context` have the same for the training text.
    # Positions whose context occurs in only one of the two texts are dropped: neither this context nor any longer context that
    # contains it changes a probability.
    scored, context = np.arange(len(text_M)), np.zeros(len(text_M), np.int64)
    trained, train_context = np.arange(len(train_N)), np.zeros(len(train_N), np.int64)
    contexts = 1
    for order in range(1, max(orders, default=0) + 1):
        # A key is a number that stands for a context and the symbol after it. Different pairs of a context and a symbol have
        # different keys. Every key is less than M times V, so it fits into 64 bits.
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
            # `kinds` is 0 if the context occurs only at the end of the training text, because no symbol follows it there.
            probability_M[scored] = np.where(kinds > 0, (hits + kinds * lower) / np.maximum(counts + kinds, 1), lower)
            # A context and the symbol after it together are the context of the next position. It is longer by one symbol.
            in_both = np.unique(keys[in_training])
            contexts = len(in_both)
            scored, context = _next(scored, keys, in_both, len(text_M))
            trained, train_context = _next(trained, train_keys, in_both, len(train_N))
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


def _next(positions: np.ndarray, keys: np.ndarray, in_both: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions and the numbers of the contexts that are longer by one symbol.

    Args:
      positions: positions of a text.
      keys: the key at each position.
      in_both: the keys that occur in both texts, sorted. The index of a key is the number of the longer context.
      length: the length of the text.

    Returns:
      For each position whose key is in `in_both`: the position after it, and the index of the key. The last position of the
      text is left out, because no position comes after it.
    """
    if not len(in_both):
        return positions[:0], keys[:0]
    places = np.minimum(np.searchsorted(in_both, keys), len(in_both) - 1)
    kept = (in_both[places] == keys) & (positions + 1 < length)
    return positions[kept] + 1, places[kept]


def _checked(ids: Ids, vocab_size: int, name: str) -> np.ndarray:
    """The ids as int32. Raises a UserError if there are no ids, or if an id is outside the vocabulary."""
    if not len(ids):
        raise UserError(f"{name} is empty: an n-gram needs at least one symbol.")
    array = ids[np.arange(len(ids))]
    if array.min() < 0 or array.max() >= vocab_size:
        raise UserError(f"{name} has ids from {array.min()} to {array.max()}: ids must be from 0 to {vocab_size - 1}.")
    return array.astype(np.int32)
