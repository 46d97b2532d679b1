"""Scores each character of many pieces of text: lines, documents or one whole text. Each piece starts from the zero state.

Pieces of similar length are read together as the rows of a batch. A long piece is read in several windows.

Letters in names of arrays: B rows, T time, V vocabulary, K alternatives, N ids of a piece, M = N - 1 predictions.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from charlm.data.batches import Array, Batch
from charlm.data.vocab import EOS, Vocab
from charlm.inference.evaluate import AHEAD, placement
from charlm.models.stack import Functions

LENGTHS = (32, 64, 128, 256)  # the lengths of windows; one program is compiled for each length
ALIKE = 1024  # a piece of at most this number of ids can be in one batch with any shorter piece
FEWER_ROWS = (1, 8)  # the numbers of rows of batches of a few long pieces; one program is compiled for each number


class Scores(NamedTuple):
    """The scores of a piece. Row m belongs to the prediction of id m + 1, because nothing predicts the first id.

    The first id may be the start symbol `<eos>`. All characters of the piece then have scores.

    Attributes:
      nats_M: float32, -ln p(id).
      likeliest_MK: the ids with the highest probabilities, in descending order.
      probabilities_MK: float32, the probabilities of these ids.
    """

    nats_M: Array
    likeliest_MK: Array
    probabilities_MK: Array


def encoded(vocab: Vocab, texts: Sequence[str], where: str, start: Sequence[int] = ()) -> list[np.ndarray]:
    """The ids of each text. If the vocabulary has `<eos>`, it follows each text, as in training.

    Args:
      start: the ids that come before each text; see `framing.start_ids`.

    Raises:
      UserError: a text has characters outside the vocabulary, and the vocabulary has no `<unk>`.
    """
    ids_N = vocab.encode("".join(texts), where)  # one call, because each call prepares a table of all characters
    pieces = np.split(ids_N, np.cumsum([vocab.length_of(text) for text in texts])[:-1])
    end = [] if vocab.id_of(EOS) is None else [vocab.id_of(EOS)]
    return [np.concatenate([np.array(start, ids.dtype), ids, np.array(end, ids.dtype)]) for ids in pieces]


def score(
    model: Functions, params: Any, pieces: Sequence[np.ndarray], rows: int, mesh: Mesh | None = None, alternatives: int = 0
) -> Iterator[tuple[int, Scores]]:
    """Yields the index of each piece in `pieces`, and its scores. Short pieces come first.

    Args:
      model: the model as pure functions.
      pieces: the ids of each piece.
      rows: the largest number of pieces that are read together. It changes only the speed and the memory, not the scores.
      mesh: the devices among which the rows are divided.
      alternatives: K, the number of likeliest ids to find. If the vocabulary is smaller, K is its size.
    """

    def window(params, ids_BT1, carry):
        inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
        batch = Batch(inputs_BT, targets_BT, jnp.ones(targets_BT.shape), jnp.zeros(len(ids_BT1), bool))
        logits_BTV, carry = model.apply(params, batch, carry)
        log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        nats_BT = log_z_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        likeliest_BTK, ids_BTK = jax.lax.top_k(logits_BTV, min(alternatives, logits_BTV.shape[-1]))
        return Scores(nats_BT, ids_BTK, jnp.exp(likeliest_BTK - log_z_BT[..., None])), carry

    compiled = jax.jit(window, donate_argnums=2)
    rows = min(rows, len(pieces))
    for members in _batches([len(piece) for piece in pieces], rows):
        # A batch of a few long pieces has fewer rows, because empty rows cost as much time and memory as the other rows.
        is_long = len(pieces[members[-1]]) > ALIKE
        count = next(number for number in (*FEWER_ROWS, rows) if number >= len(members)) if is_long else rows
        place, placed = placement(mesh, count, params)
        carry, results = place(model.zero_carry(count)), []
        for ids_BT1 in _windows([pieces[index] for index in members], count):
            result, carry = compiled(placed, place(ids_BT1), carry)
            results.append(result)
            if len(results) > AHEAD:
                jax.block_until_ready(results[-AHEAD])
        joined = Scores(*(np.concatenate(parts, axis=1) for parts in zip(*jax.device_get(results), strict=True)))
        for row, index in enumerate(members):
            scored = max(0, len(pieces[index]) - 1)
            yield index, Scores(*(leaf[row, :scored] for leaf in joined))


def _batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """The indices of the pieces in batches of at most `rows` pieces of similar length. Short pieces come first.

    All rows of a batch are padded to the longest one. A batch therefore ends before a piece that is longer than ALIKE and more
    than twice as long as the first piece of the batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) == rows or lengths[index] > max(ALIKE, 2 * lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _windows(pieces: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """Cuts the pieces into windows: int32 (rows, T + 1) ids, padded with zeros.

    The last id of a window is also the first id of the next window.
    """
    predictions = max(map(len, pieces)) - 1
    lengths: list[int] = []
    while not lengths or sum(lengths) < predictions:
        lengths.append(next((length for length in LENGTHS if length >= predictions - sum(lengths)), LENGTHS[-1]))
    ids = np.zeros((rows, sum(lengths) + 1), np.int32)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = piece
    ends = np.cumsum(lengths)
    return [ids[:, end - length : end + 1] for end, length in zip(ends, lengths, strict=True)]
