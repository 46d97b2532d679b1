"""From an encoded corpus to a `Batch` at a step: pure arithmetic on position, so a step number is the whole data state.

A framing decides which characters stand together in a row, and from which state the row begins. All of them have the same face:
`rows` (B), `steps_per_epoch`, `batch_at(step, part)` with steps counted from 0 over all epochs; `part` is a slice of the rows,
for one of several processes, which then reads no others.

Letters: B batch (rows), T time, S scored positions, N symbols of the corpus, D documents.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from charlm.data.longtext import LongText
from charlm.data.vocab import EOS, Vocab
from charlm.errors import UserError

ALL = slice(None)  # rows
PAD_ID = 0  # what fills a row beyond its text; in vocabularies of documents it is `<pad>`


class Batch(NamedTuple):
    """What one step sees; every difference between framings is settled in here.

    Attributes:
      inputs_BT: int32 ids.
      targets_BS: int32 ids to predict at the last S positions.
      weights_BS: float32, 0 for padding, else 1.
      reset_B: bool, True where the row starts from the zero state, False where it goes on from the carry.
    """

    inputs_BT: np.ndarray
    targets_BS: np.ndarray
    weights_BS: np.ndarray
    reset_B: np.ndarray


class Encoded(NamedTuple):
    """A split as ids.

    Attributes:
      ids_N: of the running text, or of all documents, one after another, each with `<eos>` at its end.
      starts_D1: int64 (D + 1,), where each document begins and the last one ends; None for a running text.
      name: in messages.
    """

    ids_N: np.ndarray
    starts_D1: np.ndarray | None = None
    name: str = "the text"

    @property
    def lengths_D(self) -> np.ndarray:
        """Characters of each document, its `<eos>` left out."""
        return np.diff(self.starts_D1) - 1


class Framing(NamedTuple):
    """The section `batch` of a config."""

    kind: str
    rows: int
    length: int
    shift: bool
    stride: int
    shuffle: bool
    bucket: int
    padding: str

    @classmethod
    def of(cls, config) -> "Framing":
        return cls(
            kind=config.batch.framing,
            rows=config.batch.size,
            length=config.batch.length,
            shift=config.batch.shift,
            stride=config.batch.stride,
            shuffle=config.batch.shuffle,
            bucket=config.batch.bucket,
            padding=config.batch.padding,
        )

    @property
    def window(self) -> int:
        """Characters that a model so trained sees before each draw, from the zero state; 0: all, since the state is carried."""
        return self.length if self.kind == "windows" else 0


class Batches(Protocol):
    """What every framing offers."""

    @property
    def rows(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def batch_at(self, step: int, part: slice = ALL) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Stream:
    """Contiguous lanes for truncated back-propagation through time (as in PyTorch's CharRNN, after Zaremba et al. 2014).

    The text is cut into B lanes, read T characters a step; the state is carried from step to step and reset with each epoch.
    The characters that do not fill a step are left out: at the end, or, with `shift`, at both ends by an offset drawn anew for
    each epoch, so that none is left out for good.
    """

    ids_N: np.ndarray
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
        return _hashed(self.seed, epoch) % (spare + 1) if self.shift else 0


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Pieces of T characters that do not overlap, each from the zero state (as in MXNet.jl's char-lstm).

    Every character but the first of the text is a target once an epoch; the last piece may be shorter, and the last batch
    may have fewer pieces: what is missing has weight 0.
    """

    ids_N: np.ndarray
    rows: int
    length: int
    order: "Order"

    @property
    def pieces(self) -> int:
        return -(-(len(self.ids_N) - 1) // self.length)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.pieces // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        pieces_B, there_B = self.order.at(step, self.rows, self.pieces, part)
        position_BT = pieces_B[:, None] * self.length + np.arange(self.length)[None, :]
        scored_BT = there_B[:, None] & (position_BT < len(self.ids_N) - 1)
        position_BT = np.minimum(position_BT, len(self.ids_N) - 2)
        return Batch(
            inputs_BT=self.ids_N[position_BT].astype(np.int32),
            targets_BS=self.ids_N[position_BT + 1].astype(np.int32),
            weights_BS=scored_BT.astype(np.float32),
            reset_B=np.ones(len(there_B), bool),
        )


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of T characters, one every `stride` characters, of which only the next character is predicted (as in the Keras
    and Axon notebooks). Each starts from the zero state; the last batch of an epoch may have fewer."""

    ids_N: np.ndarray
    rows: int
    length: int
    stride: int
    order: "Order"

    @property
    def windows(self) -> int:
        return (len(self.ids_N) - self.length - 1) // self.stride + 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.windows // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        windows_B, there_B = self.order.at(step, self.rows, self.windows, part)
        starts_B = windows_B * self.stride
        return Batch(
            inputs_BT=self.ids_N[starts_B[:, None] + np.arange(self.length)[None, :]].astype(np.int32),
            targets_BS=self.ids_N[starts_B + self.length][:, None].astype(np.int32),
            weights_BS=there_B[:, None].astype(np.float32),
            reset_B=np.ones(len(there_B), bool),
        )


@dataclasses.dataclass(frozen=True)
class Documents:
    """One document a row, from the zero state, `<eos>` as its last target; documents beyond T characters are cut.

    A batch is as long as its longest document, rounded up to a multiple of `bucket`, so that few shapes are compiled. Padding
    `masked` stands after the text and has weight 0. `counted` is that of Microsoft's lesson on AG News: before the text, with
    weight 1, so that the network must also predict padding from padding; its first character is then predicted too.
    """

    encoded: Encoded
    rows: int
    length: int
    bucket: int
    padding: str
    order: "Order"

    @property
    def documents(self) -> int:
        return len(self.encoded.starts_D1) - 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.documents // self.rows)

    def batch_at(self, step: int, part: slice = ALL) -> Batch:
        documents_B, there_B = self.order.at(step, self.rows, self.documents)
        starts_B = self.encoded.starts_D1[documents_B]
        lengths_B = np.minimum(self.encoded.starts_D1[documents_B + 1] - starts_B - 1, self.length)
        length = min(
            -(-int(lengths_B.max()) // self.bucket) * self.bucket, self.length
        )  # of all rows, whichever part is wanted
        starts_B, lengths_B, there_B = starts_B[part], lengths_B[part], there_B[part]
        first_B = length - lengths_B if self.padding == "counted" else np.zeros_like(lengths_B)
        of_document_BT = np.arange(length)[None, :] - first_B[:, None]
        inside_BT = (of_document_BT >= 0) & (of_document_BT < lengths_B[:, None])
        ids_N, last = self.encoded.ids_N, len(self.encoded.ids_N) - 1

        def ids_at(offset: int) -> np.ndarray:
            return ids_N[np.clip(starts_B[:, None] + of_document_BT + offset, 0, last)].astype(np.int32)

        inputs_BT = np.where(inside_BT, ids_at(0), PAD_ID)
        targets_BS = np.where(inside_BT | (of_document_BT == -1), ids_at(1), PAD_ID)
        counted_BS = inside_BT if self.padding == "masked" else np.ones_like(inside_BT)
        return Batch(
            inputs_BT=inputs_BT,
            targets_BS=targets_BS,
            weights_BS=(counted_BS & there_B[:, None]).astype(np.float32),
            reset_B=np.ones(len(there_B), bool),
        )


@dataclasses.dataclass(frozen=True)
class Order:
    """In which order the pieces of an epoch are taken: as they stand, or shuffled by a permutation of the seed and the epoch.

    The permutation is a function from position to piece, a Feistel network (Luby & Rackoff 1988) on the smallest square of a
    power of two that holds all pieces, followed until it falls among them; no list of pieces is ever made.
    """

    shuffle: bool
    seed: int = 0

    def at(self, step: int, rows: int, pieces: int, part: slice = ALL) -> tuple[np.ndarray, np.ndarray]:
        """(B,) pieces of a step, and whether each row of it has one; a row that has none repeats the last piece."""
        epoch, step_of_epoch = divmod(step, -(-pieces // rows))
        position_B = step_of_epoch * rows + np.arange(rows)[part]
        there_B = position_B < pieces
        position_B = np.minimum(position_B, pieces - 1)
        return (self._permuted(position_B, epoch, pieces) if self.shuffle else position_B), there_B

    def _permuted(self, position_B: np.ndarray, epoch: int, pieces: int) -> np.ndarray:
        half = np.uint64(max(1, -(-(pieces - 1).bit_length() // 2)))
        mask = np.uint64((1 << int(half)) - 1)
        keys = [np.uint64(_hashed(self.seed, epoch, turn)) for turn in range(8)]
        piece_B, outside_B = position_B.astype(np.uint64), np.ones(len(position_B), bool)
        while outside_B.any():
            left, right = piece_B[outside_B] >> half, piece_B[outside_B] & mask
            for key in keys:
                left, right = right, left ^ (_mixed(right ^ key) & mask)
            piece_B[outside_B] = (left << half) | right
            outside_B = piece_B >= pieces
        return piece_B.astype(np.int64)


def encode(vocab: Vocab, split: str | LongText | list[str], where: str) -> Encoded:
    """A running text, or a list of documents, as ids; `where` names it in messages."""
    if isinstance(split, LongText):
        return Encoded(split.encode(vocab, where), name=where)
    if isinstance(split, str):
        return Encoded(vocab.encode(split, where), name=where)
    starts_D1 = np.cumsum([0, *(len(document) + 1 for document in split)])
    texts_N = vocab.encode("".join(split), where)
    # Each document's last place is free for <eos>: its own characters move up by as many places as documents stand before it.
    ids_N = np.full(starts_D1[-1], vocab.id_of(EOS), texts_N.dtype)
    is_text_N = np.ones(len(ids_N), bool)
    is_text_N[starts_D1[1:] - 1] = False
    ids_N[is_text_N] = texts_N
    return Encoded(ids_N, starts_D1, where)


def training_batches(framing: Framing, encoded: Encoded, seed: int) -> Batches:
    """The framing over the training split.

    Raises:
      UserError: the split is too short for one batch, or is not made of documents where the framing asks for them.
    """
    if framing.kind != "stream":
        return in_pieces(framing, encoded, framing.rows, Order(framing.shuffle, seed))
    needed = framing.rows * framing.length + 1
    if len(encoded.ids_N) < needed:
        raise UserError(
            f"{encoded.name} has {len(encoded.ids_N):,} chars, but one batch of batch.size={framing.rows} lanes times "
            f"batch.length={framing.length} needs {needed:,}: give a longer corpus or a smaller batch."
        )
    return Stream(encoded.ids_N, framing.rows, framing.length, framing.shift, seed)


def in_pieces(framing: Framing, encoded: Encoded, rows: int, order: Order) -> Chunks | Windows | Documents:
    """The framings whose rows all begin at the zero state.

    Raises:
      UserError: a window or chunk is longer than the split, or the corpus is not made of documents.
    """
    ids_N, length = encoded.ids_N, framing.length
    if framing.kind == "documents":
        if encoded.starts_D1 is None:
            raise UserError(
                "the framing 'documents' needs a corpus of documents: set corpus.documents to lines, csv:COLUMN or jsonl:FIELD."
            )
        return Documents(encoded, rows, length, framing.bucket, framing.padding, order)
    if len(ids_N) < length + 1:
        raise UserError(
            f"{encoded.name} has {len(ids_N):,} chars, but {framing.kind} of batch.length={length} need at least "
            f"{length + 1:,}: give a longer text, another corpus.split or a smaller batch.length."
        )
    if framing.kind == "windows":
        return Windows(ids_N, rows, length, framing.stride, order)
    return Chunks(ids_N, rows, length, order)


def evaluation_windows(ids_N: np.ndarray, length: int, lanes: int = 1, burn_in: int = 0) -> Iterator[Batch]:
    """A whole split in order: every character but the first is scored exactly once.

    One lane is the exact protocol: the state is carried from the first character to the last. With more lanes each but the
    first begins at the zero state `burn_in` characters before the first one it scores, which is faster and nearly the same.

    Args:
      ids_N: the encoded split, at least two characters.
      length: T of the windows; it changes the memory needed, not the result.
    """
    targets = len(ids_N) - 1
    burn_in = burn_in if lanes > 1 else 0
    # Lane 0 scores all of its `span` targets, the others all but their first `burn_in`.
    span = -(-(targets + (lanes - 1) * burn_in) // lanes)
    stride = span - burn_in
    if stride < 1:
        raise UserError(
            f"eval.burn_in={burn_in} with {lanes} lanes does not fit a split of {len(ids_N):,} chars: "
            f"at most {targets - 1} would, or one lane, by eval.lanes=1 or evaluate.py's --lanes=1."
        )
    starts_B = np.arange(lanes) * stride
    length = min(length, span)
    for begin in range(0, span, length):
        offsets_T = begin + np.arange(length)
        position_BT = starts_B[:, None] + offsets_T[None, :]
        scored_BT = (position_BT < targets) & (offsets_T < span)[None, :]
        scored_BT[1:] &= (offsets_T >= burn_in)[None, :]
        position_BT = np.minimum(position_BT, targets - 1)
        yield Batch(
            inputs_BT=ids_N[position_BT].astype(np.int32),
            targets_BS=ids_N[position_BT + 1].astype(np.int32),
            weights_BS=scored_BT.astype(np.float32),
            reset_B=np.full(lanes, begin == 0),
        )


def once_through(batches: Batches) -> Iterator[Batch]:
    """The batches of the first epoch."""
    return (batches.batch_at(step) for step in range(batches.steps_per_epoch))


def _hashed(*numbers: int) -> int:
    """64 bits from numbers. A hash, not a generator of numpy's: it is the same in all versions, and so is a resumed run."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8], "big")


def _mixed(bits: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
