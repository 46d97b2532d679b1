"""Arranges an encoded corpus into batches. Each training step reads one `Batch`.

The step number alone determines which characters a batch has. A resumed run therefore needs only its step number to continue
at the right place in the data.

A framing decides which characters form a row, and from which recurrent state the model starts to read the row: the zero state,
or the state that was carried over from the previous batch. All framings have the same interface, `Batches`. Steps are counted
from 0 over all epochs.

With several processes, each process builds only its own rows of a batch. The argument `part` is the slice of these rows.

Shape letters: B rows of a batch, T time, S scored positions, N characters of the corpus, D documents.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from charlm.data.framing import Framing
from charlm.data.ids import Encoded
from charlm.data.longtext import Ids
from charlm.data.order import ALL, Order, hash64
from charlm.errors import UserError
from charlm.progress import counted

PAD_ID = 0  # the id at positions without text; a vocabulary for documents has `<pad>` at this id


Array = Any  # a NumPy array, or a JAX array inside a jitted function


class Batch(NamedTuple):
    """The input of one step. The batches of all framings have these four arrays.

    Attributes:
      inputs_BT: int32 ids.
      targets_BS: int32 ids that the model has to predict at the last S positions of the inputs.
      weights_BS: float32, 1 if the prediction at this position is scored, else 0.
      reset_B: bool, True if the row starts from the zero state, False if the row starts from the final state of the same row
        in the previous batch.
    """

    inputs_BT: Array
    targets_BS: Array
    weights_BS: Array
    reset_B: Array


class Batches(Protocol):
    """The interface of all framings."""

    @property
    def rows(self) -> int:
        """B, the number of rows of a batch."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        """The rows `part` of the batch of a step. Steps are counted from 0 over all epochs."""
        ...


@dataclasses.dataclass(frozen=True)
class Stream:
    """Contiguous lanes for truncated back-propagation through time, as in PyTorch's CharRNN (after Zaremba et al. 2014).

    The text is cut into B contiguous parts of equal length, called lanes. Row b of every batch belongs to lane b. Each step
    reads the next T characters of every lane. The state is carried from step to step and reset at the start of each epoch.

    In each epoch, the characters that do not fill a whole step are left out. Without `shift`, these are the last characters of
    the text. With `shift`, each epoch starts at a pseudorandom offset in the text, so characters at both ends are left out. The
    offset changes from epoch to epoch, so other characters are left out in other epochs.
    """

    ids_N: Ids
    rows: int
    length: int
    shift: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return (len(self.ids_N) - 1) // (self.rows * self.length)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        offset = self._offset(epoch) + step_of_epoch * self.length
        starts_B = offset + np.arange(self.rows)[part] * (self.steps_per_epoch * self.length)
        window_BT = self.ids_N[starts_B[:, None] + np.arange(self.length + 1)[None, :]].astype(np.int32)
        return Batch(
            inputs_BT=window_BT[:, :-1],
            targets_BS=window_BT[:, 1:],
            weights_BS=np.ones((len(starts_B), self.length), np.float32),
            reset_B=np.full(len(starts_B), step_of_epoch == 0),
        )

    def _offset(self, epoch: int) -> int:
        spare = len(self.ids_N) - 1 - self.steps_per_epoch * self.rows * self.length
        return hash64(self.seed, epoch) % (spare + 1) if self.shift else 0


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks of T characters without overlap, as in MXNet.jl's char-lstm. Each chunk starts from the zero state.

    In each epoch, every character of the text except the first character is a target exactly once. The last chunk may have
    fewer than T characters, and the last batch may have fewer than B chunks. The positions without text have weight 0.
    """

    ids_N: Ids
    rows: int
    length: int
    order: Order

    @property
    def num_chunks(self) -> int:
        return -(-(len(self.ids_N) - 1) // self.length)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_chunks // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        chunks_B, valid_B = self.order.at(step, self.rows, self.num_chunks, part)
        positions_BT = chunks_B[:, None] * self.length + np.arange(self.length)[None, :]
        scored_BT = valid_B[:, None] & (positions_BT < len(self.ids_N) - 1)
        positions_BT = np.minimum(positions_BT, len(self.ids_N) - 2)
        return Batch(
            inputs_BT=self.ids_N[positions_BT].astype(np.int32),
            targets_BS=self.ids_N[positions_BT + 1].astype(np.int32),
            weights_BS=scored_BT.astype(np.float32),
            reset_B=np.ones(len(valid_B), bool),
        )


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of T characters, as in the Keras and Axon notebooks. A new window begins every `stride` characters.

    The model reads each window from the zero state, and predicts only the character after the window (S = 1). The last batch of
    an epoch may have fewer than B windows. The rows without a window have weight 0.
    """

    ids_N: Ids
    rows: int
    length: int
    stride: int
    order: Order

    @property
    def num_windows(self) -> int:
        return (len(self.ids_N) - self.length - 1) // self.stride + 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_windows // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        windows_B, valid_B = self.order.at(step, self.rows, self.num_windows, part)
        starts_B = windows_B * self.stride
        return Batch(
            inputs_BT=self.ids_N[starts_B[:, None] + np.arange(self.length)[None, :]].astype(np.int32),
            targets_BS=self.ids_N[starts_B + self.length][:, None].astype(np.int32),
            weights_BS=valid_B[:, None].astype(np.float32),
            reset_B=np.ones(len(valid_B), bool),
        )


@dataclasses.dataclass(frozen=True)
class Documents:
    """One document per row. Each row starts from the zero state, and the last target of a document is `<eos>`.

    With `start_symbol`, the first input of a row is also `<eos>`, and its target is the first character of the document.
    Otherwise, the first character is only an input.

    Of a document with more than `length` characters, the model reads only the first `length` characters. From the last of these
    characters, it predicts one more character. The length of a batch is the number of inputs of its longest document, rounded
    up to a multiple of `bucket`. This length is at most `length`, or `length` + 1 with `start_symbol`. XLA compiles a program
    for each length, so the rounding reduces the number of programs. `padding` is one of:

    - `masked`: padding follows the text and has weight 0.
    - `counted`: padding precedes the text and has weight 1, as in Microsoft's Keras lesson on AG News. The network then reads
      padding first. From this padding, the network must predict more padding, and at last the first character of the document.
    """

    encoded: Encoded
    rows: int
    length: int
    bucket: int
    padding: str
    order: Order
    start_symbol: bool = False

    @property
    def starts_D1(self) -> np.ndarray:
        assert self.encoded.starts_D1 is not None
        return self.encoded.starts_D1

    @property
    def num_documents(self) -> int:
        return len(self.starts_D1) - 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_documents // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        documents_B, valid_B = self.order.at(step, self.rows, self.num_documents)
        starts_B = self.starts_D1[documents_B]
        lengths_B = np.minimum(self.starts_D1[documents_B + 1] - starts_B - 1, self.length)
        first = -1 if self.start_symbol else 0  # the index of the first input within the document
        # The length is computed from all rows of the batch, not only from the rows in `part`, because all processes need the
        # same length.
        length = min(-(-int(lengths_B.max() - first) // self.bucket) * self.bucket, self.length - first)
        starts_B, lengths_B, valid_B = starts_B[part], lengths_B[part], valid_B[part]
        padding_before_B = length - lengths_B if self.padding == "counted" else np.zeros_like(lengths_B)
        char_BT = first + np.arange(length)[None, :] - padding_before_B[:, None]  # index in the document; negative before it
        inside_BT = (char_BT >= first) & (char_BT < lengths_B[:, None])
        ids_N, last = self.encoded.ids_N, len(self.encoded.ids_N) - 1
        positions_BT = starts_B[:, None] + char_BT
        # The index -1 in a document stands for the start symbol `<eos>`. The last id of the split is always `<eos>`.
        inputs_BT = ids_N[np.where(char_BT == -1, last, np.clip(positions_BT, 0, last))].astype(np.int32)
        targets_BS = ids_N[np.clip(positions_BT + 1, 0, last)].astype(np.int32)
        inputs_BT = np.where(inside_BT, inputs_BT, PAD_ID)
        targets_BS = np.where(inside_BT | (char_BT == -1), targets_BS, PAD_ID)
        scored_BS = inside_BT if self.padding == "masked" else np.ones_like(inside_BT)
        return Batch(
            inputs_BT=inputs_BT,
            targets_BS=targets_BS,
            weights_BS=(scored_BS & valid_B[:, None]).astype(np.float32),
            reset_B=np.ones(len(valid_B), bool),
        )


def training_batches(framing: Framing, encoded: Encoded, seed: int) -> Batches:
    """The batches of the training split.

    Raises:
      UserError: the split is too short for one batch, or the framing needs documents and the split is a running text.
    """
    if not framing.carries_state:
        return in_pieces(framing, encoded, framing.rows, Order(framing.shuffle, seed))
    needed = framing.rows * framing.length + 1
    if (chars := len(encoded.ids_N)) < needed:
        rows = (chars - 1) // framing.length
        smaller = f"batch.size={rows}" if rows > 0 else f"batch.size=1 and batch.length={max(chars - 1, 1)}"
        raise UserError(
            f"{encoded.name} has {counted(chars, 'char')}, but one batch of batch.size={framing.rows} lanes times "
            f"batch.length={framing.length} needs {needed:,}: give a longer corpus or set {smaller}."
        )
    return Stream(encoded.ids_N, framing.rows, framing.length, framing.shift, seed)


def in_pieces(framing: Framing, encoded: Encoded, rows: int, order: Order) -> Chunks | Windows | Documents:
    """The batches of chunks, windows or documents. With these framings, every row starts from the zero state.

    Raises:
      UserError: a chunk or window is longer than the split, or the framing needs documents and the split is a running text.
    """
    ids_N, length = encoded.ids_N, framing.length
    if framing.is_of_documents:
        if encoded.starts_D1 is None:
            raise UserError(
                "the framing 'documents' needs a corpus of documents: set corpus.documents, for example to lines or blank."
            )
        return Documents(encoded, rows, length, framing.bucket, framing.padding, order, framing.start_symbol)
    if len(ids_N) < length + 1:
        raise UserError(
            f"{encoded.name} has {counted(len(ids_N), 'char')}, but {framing.kind} of batch.length={length} need at least "
            f"{length + 1:,}: give a longer text, another corpus.split or a smaller batch.length (evaluate: --length)."
        )
    if framing.kind == "windows":
        return Windows(ids_N, rows, length, framing.stride, order)
    return Chunks(ids_N, rows, length, order)


def evaluation_batches(framing: Framing, encoded: Encoded, rows: int, length: int, lanes: int, burn_in: int) -> Iterator[Batch]:
    """The batches for scoring a split, in the order of the text. No character is scored twice.

    Args:
      framing: how the split is arranged. Its `rows`, `shuffle` and `shift` are ignored, and a stream ignores its `length`.
      encoded: the split.
      rows: B for chunks, windows or documents. B changes how much memory is needed, but not the result.
      length: T for a stream; see `evaluation_windows`.
      lanes: B for a stream; see `evaluation_windows`.
      burn_in: used only for a stream; see `evaluation_windows`.

    Raises:
      UserError: the split does not fit the framing.
    """
    if framing.carries_state:
        return evaluation_windows(encoded.ids_N, length, lanes, burn_in)
    return once_through(in_pieces(framing, encoded, rows, Order(shuffle=False)))


def evaluation_windows(ids_N: Ids, length: int, lanes: int = 1, burn_in: int = 0) -> Iterator[Batch]:
    """The batches for scoring a split as a stream. Every character except the first is scored exactly once.

    The split is cut into lanes, which are read in parallel. Every lane starts from the zero state, and its state is carried
    from batch to batch.

    With one lane, the result is exact: the state is carried from the first character to the last, so each prediction uses all
    characters before it. With more lanes, scoring is faster, and the result is nearly the same as with one lane. Each lane
    except the first then begins `burn_in` characters before the first character that the lane scores. These characters are only
    read, so that the state is no longer zero when the scoring begins.

    Args:
      ids_N: the encoded split, at least two characters.
      length: T, the number of characters of each lane in a batch. T changes how much memory is needed, but not the result.
      lanes: B, the number of lanes.
      burn_in: the number of characters that each lane except the first reads before it scores.

    Raises:
      UserError: the split is so short that a lane would have at most `burn_in` targets.
    """
    targets = len(ids_N) - 1
    burn_in = burn_in if lanes > 1 else 0
    # Each lane has `span` targets. Lane 0 scores all of them. Every other lane scores all except its first `burn_in` targets.
    span = -(-(targets + (lanes - 1) * burn_in) // lanes)
    stride = span - burn_in
    if stride < 1:
        raise UserError(
            f"eval.burn_in={burn_in} with {lanes} lanes does not fit a split of {counted(len(ids_N), 'char')}: "
            f"use a burn-in of at most {targets - 1}, or one lane (eval.lanes=1, or --lanes=1 of evaluate.py)."
        )
    starts_B = np.arange(lanes) * stride
    length = min(length, span)
    for begin in range(0, span, length):
        offsets_T = begin + np.arange(length)
        positions_BT = starts_B[:, None] + offsets_T[None, :]
        scored_BT = (positions_BT < targets) & (offsets_T < span)[None, :]
        scored_BT[1:] &= (offsets_T >= burn_in)[None, :]
        positions_BT = np.minimum(positions_BT, targets - 1)
        yield Batch(
            inputs_BT=ids_N[positions_BT].astype(np.int32),
            targets_BS=ids_N[positions_BT + 1].astype(np.int32),
            weights_BS=scored_BT.astype(np.float32),
            reset_B=np.full(lanes, begin == 0),
        )


def once_through(batches: Batches) -> Iterator[Batch]:
    """The batches of the first epoch, in order."""
    return (batches.batch_at(step) for step in range(batches.steps_per_epoch))
