"""The order in which training reads its examples, shuffled or not, and the pseudorandom numbers for it.

In names of arrays, B is the number of rows of a batch.
"""

import dataclasses
import hashlib

import numpy as np

ALL = slice(None)  # all rows of a batch


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
        keys = [np.uint64(hash64(self.seed, epoch, turn)) for turn in range(8)]
        examples_B, outside_B = positions_B.astype(np.uint64), np.ones(len(positions_B), bool)
        while outside_B.any():
            left, right = examples_B[outside_B] >> half, examples_B[outside_B] & mask
            for key in keys:
                left, right = right, left ^ (_splitmix64(right ^ key) & mask)
            examples_B[outside_B] = (left << half) | right
            outside_B = examples_B >= examples
        return examples_B.astype(np.int64)


def hash64(*numbers: int) -> int:
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
