"""Writes the scores of single characters as a table (TSV) or as an HTML page that colours each character by its surprisal."""

import html
import importlib.resources
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from charlm import measures
from charlm.data.vocab import Vocab
from charlm.inference.pieces import Scores

ALTERNATIVES = 5
MOST_BITS = 8.0  # characters with this surprisal or more have the strongest colour
SHADES = 20

Scored = tuple[np.ndarray, Scores]  # the ids of a piece of text, and scores; the first id may have no score


def table(scored: Sequence[Scored], vocab: Vocab) -> Iterator[str]:
    """Yields the lines of a table that has one row for each character. Each line ends with a line break.

    The columns are separated by tabs. `document` and `position` are numbers that start at 1. `nats` and `bits` are the
    surprisal of the character. The columns after them hold the likeliest characters and their probabilities. Without a start
    symbol, nothing predicts the first character of a text, so the surprisal and the columns after it are empty in its row.
    Tabs, line breaks, backslashes and characters that can't be printed are written as escapes, such as `\\t`.
    """
    names = [_escaped(name) for name in vocab.names]
    count = min(ALTERNATIVES, len(vocab))
    columns = [f"{kind}_{number}" for number in range(1, count + 1) for kind in ("likeliest", "p")]
    yield "\t".join(["document", "position", "char", "nats", "bits", *columns]) + "\n"
    for document, (ids_N, scores) in enumerate(scored, start=1):
        unscored = len(ids_N) - len(scores.nats_M)
        for position, index in enumerate(ids_N, start=1):
            cells, row = [str(document), str(position), names[index]], position - 1 - unscored
            if row < 0:
                cells += ["", "", *([""] * 2 * count)]
            else:
                nats = float(scores.nats_M[row])
                cells += [f"{nats:.6f}", f"{measures.bits(nats):.6f}"]
                for likely, p in zip(scores.likeliest_MK[row], scores.probabilities_MK[row], strict=True):
                    cells += [names[likely], f"{p:.6f}"]
            yield "\t".join(cells) + "\n"


def page(scored: Sequence[Scored], vocab: Vocab, title: str) -> str:
    """An HTML page with the whole text. The page needs no network. HTML tags in the text are shown as plain text.

    The colour of a character shows its surprisal. When the mouse pointer is on a character, the page shows the surprisal and
    the likeliest characters.
    """
    names = vocab.names
    labels = ["␣" if name == " " else _escaped(name) for name in names]
    nats, chars = sum(float(scores.nats_M.sum(dtype=np.float64)) for _, scores in scored), _scored_chars(scored)
    mean = f", {measures.bits(nats / chars):.4f} bits per character" if chars else ""
    shades = "".join(f".q{shade}{{background:rgba(228,87,46,{shade / SHADES:.2f})}}" for shade in range(SHADES + 1))
    parts = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(f"{chars:,} characters scored{mean}"),
        "SHADES": shades,
        "SCALE": "".join(f'<i class="q{shade}"> </i>' for shade in range(SHADES + 1)),
        "MOST": f"{MOST_BITS:g}",
        "TEXT": "\n<hr>\n".join("".join(_characters(ids_N, scores, names, labels)) for ids_N, scores in scored),
    }
    template = importlib.resources.files("charlm.inference").joinpath("per_char.html").read_text(encoding="utf-8")
    return re.sub(r"__([A-Z]+)__", lambda match: parts[match[1]], template)


def _scored_chars(scored: Sequence[Scored]) -> int:
    return sum(len(scores.nats_M) for _, scores in scored)


def _characters(ids_N: np.ndarray, scores: Scores, names: Sequence[str], labels: Sequence[str]) -> Iterator[str]:
    for row, index in enumerate(ids_N, start=len(scores.nats_M) - len(ids_N)):
        name = names[index]
        shown = "↵\n" if name == "\n" else html.escape(name if name.isprintable() or name == "\t" else labels[index])
        if row < 0:
            yield f'<i data-t="nothing predicts the first character">{shown}</i>'
            continue
        nats = float(scores.nats_M[row])
        bits = measures.bits(nats)
        lines = [f"{labels[index]}   {bits:.2f} bits, {math.exp(-nats):.1%}", ""]
        for likely, p in zip(scores.likeliest_MK[row], scores.probabilities_MK[row], strict=True):
            lines.append(f"{labels[likely]}   {p:.1%}")
        tip = html.escape("\n".join(lines)).replace("\n", "&#10;")
        shade = round(min(bits, MOST_BITS) / MOST_BITS * SHADES)
        yield f'<i class="q{shade}" data-t="{tip}">{shown}</i>'


def _escaped(name: str) -> str:
    """The name, with backslashes and characters that can't be printed as escapes, such as `\\n`."""
    return "".join(char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode() for char in name)
