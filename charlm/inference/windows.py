"""Cuts a text into windows of two lengths, so that programs are compiled for only two lengths.

A text is read in long windows. The rest, which is shorter than a long window, is read in short windows.
"""

from collections.abc import Iterator

import numpy as np

SHORT, LONG = 64, 1024  # the numbers of ids in a short and in a long window


def windows(ids_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts the ids into long windows, and the rest into short windows. Yields the number of ids of a window, and ids_T1.

    ids_T1 is an int32 array of T + 1 ids, because it includes the id after the window. Positions after the end of the text are
    filled with zeros.
    """
    start, total = 0, len(ids_N)
    while start < total:
        length = LONG if total - start >= LONG else SHORT
        ids_T1 = np.zeros(length + 1, np.int32)
        piece = ids_N[start : start + length + 1]
        ids_T1[: len(piece)] = piece
        yield min(length, total - start), ids_T1
        start += length
