"""Arranges an encoded corpus into batches. Each training step reads one `Batch`.

The step number alone determines which characters a batch has. A resumed run therefore needs only its step number to continue
at the right place in the data.

A framing decides which characters form a row, and from which recurrent state the model starts to read the row: the zero state,
or the state that was carried over from the previous batch. All framings have the same interface, `Batches`. Steps are counted
from 0 over all epochs.

With several processes, each process builds only its own rows of a batch. The argument `part` is the slice of these rows.

Shape letters: B rows of a batch, T time, S scored positions, N characters of the corpus, D documents.
"""

import bisect
import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from charlm.data.longtext import Ids, LongText, Translated
from charlm.data.vocab import EOS, UNK, Vocab, utf8_sizes
from charlm.errors import UserError
from charlm.progress import counted

ALL = slice(None)  # all rows of a batch
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


class Encoded(NamedTuple):
    """A split of the corpus, encoded as ids.

    Attributes:
      ids_N: the ids of the running text, or the ids of all documents in one array, in which `<eos>` follows each document.
      starts_D1: int64 (D + 1,), the position in `ids_N` at which each document starts. The last item is N. None for a running
        text.
      name: the name of the split in error messages.
      sizes_N: the number of bytes of each character in UTF-8. `<eos>` has no bytes. `<unk>` has the bytes of the character that
        it stands for. None if the bytes are not needed.
    """

    ids_N: Ids
    starts_D1: np.ndarray | None = None
    name: str = "the text"
    sizes_N: Ids | None = None

    @property
    def lengths_D(self) -> np.ndarray:
        """The number of characters of each document, without its `<eos>`. A running text has no lengths."""
        assert self.starts_D1 is not None
        return np.diff(self.starts_D1) - 1


class Framing(NamedTuple):
    """How a text is arranged into rows.

    `kind` is the value of the config key `batch.framing`, and `rows` is the value of `batch.size`. Each of the other fields is
    the value of the key `batch.NAME`, where NAME is the name of the field.
    """

    kind: str
    rows: int
    length: int
    shift: bool
    stride: int
    shuffle: bool
    bucket: int
    padding: str
    start_symbol: bool = False

    @classmethod
    def of(cls, config: ConfigDict) -> "Framing":
        return cls(
            kind=config.batch.framing,
            rows=config.batch.size,
            length=config.batch.length,
            shift=config.batch.shift,
            stride=config.batch.stride,
            shuffle=config.batch.shuffle,
            bucket=config.batch.bucket,
            padding=config.batch.padding,
            # With batch.padding=counted, the padding comes before the text, and the model predicts the first character from it.
            # A start symbol is then not needed.
            start_symbol=config.batch.start_symbol and config.batch.padding == "masked",
        )

    @property
    def carries_state(self) -> bool:
        """Whether each batch of an epoch, except the first, starts from the final state of the previous batch."""
        return self.kind == "stream"

    @property
    def is_of_documents(self) -> bool:
        """Whether each row is a document. The batches of documents have different lengths."""
        return self.kind == "documents"

    def state_in_words(self, lanes: int = 1, burn_in: int = 0) -> str:
        """Says in words from which recurrent state each row starts when a split is scored with this framing.

        Run directories store these words with each result, as a part of the description of how the result was measured (the
        protocol). Results are compared only if their protocols are equal, so a change of these words makes old and new results
        incomparable.

        Args:
          lanes: see `evaluation_windows`. Only a stream has lanes.
          burn_in: see `evaluation_windows`. Only a stream has a burn-in.
        """
        match self.kind:
            case "stream" if lanes == 1:
                return "carried"
            case "stream":
                return f"carried in {lanes} lanes, {burn_in} chars of burn-in"
            case "chunks":
                return f"zero at every chunk of {self.length}"
            case "windows":
                return f"zero at every window of {self.length}, one every {self.stride}, its next char scored"
            case "documents":
                start = ", read after <eos>" if self.start_symbol else ""
                return f"zero at every document{start}, of which the first {self.length} chars"
        raise UserError(f"the framing {self.kind!r} is unknown: it must be stream, chunks, windows or documents.")

    @property
    def window(self) -> int:
        """The number of characters that the model reads, from the zero state, before each prediction. 0 if this number varies.

        The number is fixed only for the framing `windows`. The sampler uses it for models that were trained with this framing:
        before the sampler draws a character, the model reads this many characters.
        """
        return self.length if self.kind == "windows" else 0


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
        return _hash64(self.seed, epoch) % (spare + 1) if self.shift else 0


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks of T characters without overlap, as in MXNet.jl's char-lstm. Each chunk starts from the zero state.

    In each epoch, every character of the text except the first character is a target exactly once. The last chunk may have
    fewer than T characters, and the last batch may have fewer than B chunks. The positions without text have weight 0.
    """

    ids_N: Ids
    rows: int
    length: int
    order: "Order"

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
    order: "Order"

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
    order: "Order"
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


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of the examples (chunks, windows or documents) in an epoch: the order of the text, or a shuffled order.

    A shuffled order is a pseudorandom permutation that depends on the seed and the epoch. A function computes the index of an
    example from its position in the epoch, so no list of all examples is stored. The function is a Feistel network (Luby &
    Rackoff 1988). It permutes the numbers below the smallest power of four (at least 4) that is not less than the number of
    examples. If its result is not the index of an example, the network is applied to this result again, until the result is
    the index of an example (cycle walking).
    """

    shuffle: bool
    seed: int = 0

    def at(self, step: int, rows: int, examples: int, part: slice = ALL) -> tuple[np.ndarray, np.ndarray]:
        """The examples of a step.

        Args:
          step: counted from 0 over all epochs.
          rows: B, the number of rows of the whole batch.
          examples: the number of examples in an epoch.
          part: the rows to return.

        Returns:
          Two arrays with one item for each row of `part`: the index of the row's example, int64, and whether the row is valid,
          bool. The last batch of an epoch may have rows without an example. Such a row is not valid, and its index is the index
          of the last example of the epoch.
        """
        epoch, step_of_epoch = divmod(step, -(-examples // rows))
        positions_B = step_of_epoch * rows + np.arange(rows)[part]
        valid_B = positions_B < examples
        positions_B = np.minimum(positions_B, examples - 1)
        return (self._permuted(positions_B, epoch, examples) if self.shuffle else positions_B), valid_B

    def _permuted(self, positions_B: np.ndarray, epoch: int, examples: int) -> np.ndarray:
        half = np.uint64(max(1, -(-(examples - 1).bit_length() // 2)))
        mask = np.uint64((1 << int(half)) - 1)
        keys = [np.uint64(_hash64(self.seed, epoch, turn)) for turn in range(8)]
        examples_B, outside_B = positions_B.astype(np.uint64), np.ones(len(positions_B), bool)
        while outside_B.any():
            left, right = examples_B[outside_B] >> half, examples_B[outside_B] & mask
            for key in keys:
                left, right = right, left ^ (_splitmix64(right ^ key) & mask)
            examples_B[outside_B] = (left << half) | right
            outside_B = examples_B >= examples
        return examples_B.astype(np.int64)


def encode(vocab: Vocab, split: str | LongText | list[str], where: str, advice: str = "") -> Encoded:
    """Encodes a running text, or a list of documents, as ids.

    Args:
      vocab: the vocabulary. For documents, it must have `<eos>`.
      split: the text or the documents.
      where: the name of the split in error messages.
      advice: what the user can do about unknown symbols, for error messages.

    Raises:
      UserError: the split has characters outside the vocabulary, and the vocabulary has no `<unk>`.
    """
    if isinstance(split, LongText):
        return Encoded(split.encode(vocab, where, advice), None, where, split.sizes_N)
    has_unknown = UNK in vocab.specials  # the id of `<unk>` does not tell how many bytes a character has
    if isinstance(split, str):
        ids_N = vocab.encode(split, where, advice)
        return Encoded(ids_N, None, where, utf8_sizes(split) if has_unknown else Translated(ids_N, vocab.sizes_V))
    starts_D1 = np.cumsum([0, *(vocab.length_of(document) + 1 for document in split)])
    texts_N = vocab.encode("".join(split), where, advice)
    # Fill the array with <eos>. Then write the characters at all positions except the last position of each document.
    ids_N = np.full(starts_D1[-1], vocab.id_of(EOS), texts_N.dtype)
    is_text_N = np.ones(len(ids_N), bool)
    is_text_N[starts_D1[1:] - 1] = False
    ids_N[is_text_N] = texts_N
    if not has_unknown:
        return Encoded(ids_N, starts_D1, where, Translated(ids_N, vocab.sizes_V))
    sizes_N = np.zeros(len(ids_N), np.uint8)
    sizes_N[is_text_N] = utf8_sizes("".join(split))
    return Encoded(ids_N, starts_D1, where, sizes_N)


def start_ids(config: ConfigDict, vocab: Vocab) -> list[int]:
    """The ids that the model reads before the first character of a text: `<eos>` or nothing.

    The model reads `<eos>` if its corpus has documents and `batch.start_symbol` is set. The model then knows how texts begin.
    """
    end = vocab.id_of(EOS)
    return [] if end is None or not Framing.of(config).start_symbol else [end]


def cut_in_words(lengths_D: np.ndarray, limit: int) -> str:
    """Says how much of the text is lost because `batch.length` cuts the documents. Empty if no document is cut.

    Args:
      lengths_D: the number of characters of each document.
      limit: the value of `batch.length`.
    """

    def lost(length: int) -> float:
        """The fraction of the characters that the model does not read with this `batch.length`."""
        return float(np.maximum(lengths_D - length, 0).sum() / lengths_D.sum())

    cut, longest = int((lengths_D > limit).sum()), int(lengths_D.max(initial=0))
    if not cut:
        return ""
    # If one document is very long, keeping all text needs a very large batch.length. The message then also names the smallest
    # batch.length that keeps 99% of the text.
    most = bisect.bisect_left(range(longest), True, key=lambda length: lost(length) <= 0.01)
    nearly = f", and batch.length={most} keeps 99%" if limit < most < longest // 2 else ""
    return (
        f"batch.length={limit} cuts {cut:,} of {counted(len(lengths_D), 'document')}, and {_percent(lost(limit))} of the text "
        f"is lost: batch.length={longest} keeps all of it{nearly}."
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


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
            f"{length + 1:,}: give a longer text, another corpus.split or a smaller batch.length."
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


def _hash64(*numbers: int) -> int:
    """A pseudorandom integer of 64 bits that is computed from the numbers.

    A run that is resumed with another version of NumPy must read the same data as before. A new version of NumPy may change the
    random generators, so this function uses a hash instead of a random generator.
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8], "big")


def _splitmix64(bits: np.ndarray) -> np.ndarray:
    """The last step of the random generator splitmix64, which mixes the bits of each number (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
