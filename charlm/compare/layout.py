"""Lays out a table as lines of text, either at its full width or so that it fits into a terminal.

A cell is always on one line. If a table is too wide for the terminal, the names of its columns and the paths in its cells are
shortened. If the table is still too wide, columns are left out. The least important column is left out first.
"""

import pathlib
import textwrap
from collections.abc import Collection, Sequence

from rich.cells import cell_len, set_cell_size

from charlm.config import keys as config_keys

GAP = 2  # spaces between two columns
LEFT_JUSTIFIED = ("state", "run")


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table at full width. The first line is the header. A cell in a file of the user is `FILE.py:NAME`."""
    cells = [header, *_with_file_names(header, rows, {"model.cell"})]
    widths = _widths(cells)
    is_left = [name in LEFT_JUSTIFIED for name in header]
    return [(" " * GAP).join(map(_justified, row, widths, is_left)).rstrip() for row in cells]


def fitted(
    header: Sequence[str], rows: Sequence[Sequence[str]], importance: Sequence[str], width: int
) -> tuple[list[str], list[str]]:
    """The lines of a table that fits into a terminal, and the names of the columns that are left out.

    Args:
      header: the names of the columns.
      rows: the texts of the cells.
      importance: the names of all columns. The name of the most important column comes first. That column is never left out.
      width: the width of the terminal in characters.
    """
    if _total(_widths([header, *_with_file_names(header, rows, {"model.cell"})])) <= width:
        return lines(header, rows), []
    cells = [_short_names(header), *_with_file_names(header, rows, config_keys.SHOWN_BY_LAST_PART)]
    widths = _widths(cells)
    kept: list[int] = []
    for name in importance:
        index = header.index(name)
        if not kept or _total([widths[other] for other in [*kept, index]]) <= width:
            kept.append(index)
    kept.sort()
    shown = [[row[index] for index in kept] for row in cells]
    return lines(shown[0], shown[1:]), [name for index, name in enumerate(header) if index not in kept]


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most this width, broken only at spaces."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _short_names(header: Sequence[str]) -> list[str]:
    """The header with short names instead of the full names of config keys.

    A key keeps its full name if its short name is the name of another column.
    """
    short = [config_keys.short(name) for name in header]
    return [name if brief in header else brief for name, brief in zip(header, short, strict=True)]


def _with_file_names(header: Sequence[str], rows: Sequence[Sequence[str]], names: Collection[str]) -> list[list[str]]:
    """The rows, in which these columns of paths show file names instead of paths.

    A column keeps its full paths if two different paths in it have the same file name.
    """
    columns = []
    for name, texts in zip(header, zip(*rows, strict=True), strict=True):
        files = [pathlib.PurePath(text).name for text in texts]
        columns.append(files if name in names and len(set(files)) == len(set(texts)) else list(texts))
    return [list(row) for row in zip(*columns, strict=True)]


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column in a terminal, where a Chinese character is as wide as two Latin letters."""
    return [max(map(cell_len, column)) for column in zip(*cells, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _justified(text: str, width: int, is_left: bool) -> str:
    return set_cell_size(text, width) if is_left else " " * (width - cell_len(text)) + text
