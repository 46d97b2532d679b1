"""Writes the scores of single characters as a table (TSV) or as an HTML page that colours each character by its surprisal."""

import html
import importlib.resources
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from charlm import measures
from charlm.data.vocab import Vocab
from charlm.inference.pieces import Scores
from charlm.progress import counted

ALTERNATIVES = 5
MOST_BITS = 8.0  # characters with this surprisal or more have the strongest colour
SHADES = 20

Scored = tuple[np.ndarray, Scores]  # the ids of a piece of text, and scores; the first id may have no score


class Char(NamedTuple):
    """A character of a text.

    Attributes:
      name: the character, or the name of a special symbol.
      nats: the surprisal; None if nothing predicts the character.
      likeliest: the likeliest symbols at this place and their probabilities. For bytes, these are the likeliest first bytes.
    """

    name: str
    nats: float | None
    likeliest: list[tuple[str, float]]


def chars(ids_N: np.ndarray, scores: Scores, vocab: Vocab) -> Iterator[Char]:
    """The characters of a piece. If the symbols are bytes, the surprisal of a character is the sum over its bytes."""
    names, unscored = vocab.names, len(ids_N) - len(scores.nats_M)
    decode = vocab.decoder()
    nats, likeliest = 0.0, None
    for position, index in enumerate(ids_N):
        row = position - unscored
        if likeliest is None:  # the first byte of a character
            pairs = [] if row < 0 else zip(scores.likeliest_MK[row], scores.probabilities_MK[row], strict=True)
            likeliest = [(names[likely], float(p)) for likely, p in pairs]
        nats = float("nan") if row < 0 else nats + float(scores.nats_M[row])
        name = decode([index], False) if vocab.of_bytes else names[index]
        if name:  # otherwise, more bytes of the character follow
            yield Char(name, None if math.isnan(nats) else nats, likeliest)
            nats, likeliest = 0.0, None


def table(scored: Sequence[Scored], vocab: Vocab) -> Iterator[str]:
    """Yields the lines of a table that has one row for each character. Each line ends with a line break.

    The columns are separated by tabs. `document` and `position` are numbers that start at 1. `nats` and `bits` are the
    surprisal of the character. The columns after them hold the likeliest symbols and their probabilities. Without a start
    symbol, nothing predicts the first character of a text, so the surprisal and the columns after it are empty in its row.
    Tabs, line breaks, backslashes and characters that can't be printed are written as escapes, such as `\\t`.
    """
    count = min(ALTERNATIVES, len(vocab))
    columns = [f"{kind}_{number}" for number in range(1, count + 1) for kind in ("likeliest", "p")]
    yield "\t".join(["document", "position", "char", "nats", "bits", *columns]) + "\n"
    for document, (ids_N, scores) in enumerate(scored, start=1):
        for position, char in enumerate(chars(ids_N, scores, vocab), start=1):
            cells = [str(document), str(position), _escaped(char.name)]
            cells += ["", ""] if char.nats is None else [f"{char.nats:.6f}", f"{measures.bits(char.nats):.6f}"]
            likeliest = [text for name, p in char.likeliest for text in (_escaped(name), f"{p:.6f}")]
            yield "\t".join([*cells, *(likeliest or [""] * 2 * count)]) + "\n"


def page(scored: Sequence[Scored], vocab: Vocab, title: str) -> str:
    """An HTML page with the whole text. The page needs no network. HTML tags in the text are shown as plain text.

    The colour of a character shows its surprisal. When the mouse pointer is on a character, the page shows the surprisal and
    the likeliest characters.
    """
    nats, number = sum(float(scores.nats_M.sum(dtype=np.float64)) for _, scores in scored), _num_scored(scored)
    unit = "byte" if vocab.of_bytes else "character"
    mean = f", {measures.bits(nats / number):.4f} bits per {unit}" if number else ""
    shades = "".join(f".q{shade}{{background:rgba(228,87,46,{shade / SHADES:.2f})}}" for shade in range(SHADES + 1))
    parts = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(f"{counted(number, unit)} scored{mean}"),
        "SHADES": shades,
        "SCALE": "".join(f'<i class="q{shade}"> </i>' for shade in range(SHADES + 1)),
        "MOST": f"{MOST_BITS:g}",
        "TEXT": "\n<hr>\n".join("".join(map(_coloured, chars(ids_N, scores, vocab))) for ids_N, scores in scored),
    }
    template = importlib.resources.files("charlm.inference").joinpath("per_char.html").read_text(encoding="utf-8")
    return re.sub(r"__([A-Z]+)__", lambda match: parts[match[1]], template)


def _num_scored(scored: Sequence[Scored]) -> int:
    return sum(len(scores.nats_M) for _, scores in scored)


def _coloured(char: Char) -> str:
    """The HTML element of a character."""
    name = char.name
    shown = "↵\n" if name == "\n" else html.escape(name if name.isprintable() or name == "\t" else _label(name))
    if char.nats is None:
        return f'<i data-t="nothing predicts the first character">{shown}</i>'
    bits = measures.bits(char.nats)
    lines = [f"{_label(name)}   {bits:.2f} bits, {math.exp(-char.nats):.1%}", ""]
    lines += [f"{_label(likely)}   {p:.1%}" for likely, p in char.likeliest]
    tip = html.escape("\n".join(lines)).replace("\n", "&#10;")
    shade = round(min(bits, MOST_BITS) / MOST_BITS * SHADES)
    return f'<i class="q{shade}" data-t="{tip}">{shown}</i>'


def _label(name: str) -> str:
    return "␣" if name == " " else _escaped(name)


def _escaped(name: str) -> str:
    """The name, with backslashes and characters that can't be printed as escapes, such as `\\n`."""
    return "".join(char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode() for char in name)
