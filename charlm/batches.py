"""From an encoded corpus to a `Batch` at a step: pure arithmetic on position, so a step number is the whole data state.

Letters: B batch (lanes), T time, S scored positions, N symbols of the corpus.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from charlm.errors import UserError


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


@dataclasses.dataclass(frozen=True)
class Stream:
    """Contiguous lanes for truncated back-propagation through time (as in PyTorch's CharRNN, after Zaremba et al. 2014).

    The text is cut into B lanes, read T characters a step; the state is carried from step to step and reset with each epoch.
    The characters that do not fill a step are left out: at the end, or, with `shift`, at both ends by an offset drawn anew for
    each epoch, so that none is left out for good.
    """

    ids_N: np.ndarray
    lanes: int
    length: int
    shift: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return (len(self.ids_N) - 1) // (self.lanes * self.length)

    @property
    def chars_per_epoch(self) -> int:
        return self.steps_per_epoch * self.lanes * self.length

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        offset = self._offset(epoch) + step_of_epoch * self.length
        starts_B = offset + np.arange(self.lanes) * (self.steps_per_epoch * self.length)
        window_BT = self.ids_N[starts_B[:, None] + np.arange(self.length + 1)[None, :]].astype(np.int32)
        return Batch(
            inputs_BT=window_BT[:, :-1],
            targets_BS=window_BT[:, 1:],
            weights_BS=np.ones((self.lanes, self.length), np.float32),
            reset_B=np.full(self.lanes, step_of_epoch == 0),
        )

    def _offset(self, epoch: int) -> int:
        spare = len(self.ids_N) - 1 - self.chars_per_epoch
        if not self.shift:
            return 0
        # A hash, not a generator of numpy's: its value stays the same over all versions, and so does a resumed run.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % (spare + 1)


def training_batches(config, ids_N: np.ndarray, seed: int) -> Stream:
    """The framing that the config asks for, over the training split.

    Raises:
      UserError: the split is too short for one batch.
    """
    lanes, length, shift = config.batch.size, config.batch.length, config.batch.shift
    needed = lanes * length + 1
    if len(ids_N) < needed:
        raise UserError(
            f"the training split has {len(ids_N):,} chars, but one batch of batch.size={lanes} lanes times "
            f"batch.length={length} needs {needed:,}: give a longer corpus or a smaller batch."
        )
    framings = {"stream": Stream}
    return framings[config.batch.framing](ids_N, lanes, length, shift, seed)


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
            f"eval.burn_in={burn_in} with eval.lanes={lanes} does not fit a split of {len(ids_N):,} chars: "
            f"at most {targets - 1} would, or eval.lanes=1."
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
