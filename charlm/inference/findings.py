"""Finds the units of a model whose activation tells a property of the text, such as whether a symbol is inside quotes.

The score of a unit is the correlation of its activation after a symbol with the property of this symbol. The units with the
best scores on the first half of the text are chosen. Their scores are then computed again on the second half, and only this
second score is shown. A model has so many units that the best score on the first half is too high by chance.

Letters in the names of arrays: P symbols of the text, K properties, J units of all series. A series is one quantity of a layer,
such as a gate; see `activations`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from charlm.inference.activations import Moments, Series, correlations, named

BEST = 3  # the number of units that are found for each property
FEWEST = 20  # units are searched only if each half of the text has at least this number of symbols

PROPERTIES = {
    "inside quotes": "1 from an opening double quote to the symbol before the closing quote, else 0",
    "position in line": "number of symbols since the line break",
    "indentation": "number of spaces and tabs at the beginning of the line, up to this symbol",
    "inside brackets": "1 from an opening (, [ or { to the symbol before the closing bracket, else 0",
    "upper case": "1 for a capital letter, else 0",
    "after a blank line": "1 in the first line after a blank line, else 0",
}
QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“"}  # opening quote → closing quote
BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Found(NamedTuple):
    """A unit that tells a property.

    Attributes:
      series: the quantity of a layer to which the unit belongs.
      unit: the number of the unit, from 0.
      correlation: the correlation on the second half of the text, from -1 to 1.
    """

    series: Series
    unit: int
    correlation: float


def properties(symbols: Sequence[str], first_P: np.ndarray) -> np.ndarray:
    """The properties of each symbol, float64 (P, K), in the order of PROPERTIES.

    A property of a symbol depends on this symbol and on the symbols before it. A blank line ends quotes and the brackets ( and
    [, because a text may forget to close them. A brace { stays open, because programs have blank lines between braces.

    Args:
      symbols: the names of the symbols.
      first_P: bool, whether a symbol is the first one of a text.
    """
    rows = np.zeros((len(symbols), len(PROPERTIES)))
    quote, position, indentation, at_start, after_blank = "", 0, 0, True, False
    brackets: list[str] = []
    for row, symbol, is_first in zip(rows, symbols, first_P, strict=True):
        if is_first:
            quote, brackets, position, indentation, at_start, after_blank = "", [], 0, 0, True, False
        if symbol == "\n":
            if at_start:  # the line is blank: it has nothing but spaces
                quote, brackets = "", [each for each in brackets if each == "{"]
            after_blank, position, indentation, at_start = at_start, 0, 0, True
        else:
            position += 1
            if at_start and symbol in " \t":
                indentation += 1
            else:
                at_start = False
        if not quote:
            quote = QUOTES.get(symbol, "")
        elif symbol == quote:
            quote = ""
        if symbol in BRACKETS:
            brackets.append(symbol)
        elif brackets and symbol == BRACKETS[brackets[-1]]:
            brackets.pop()
        row[:] = bool(quote), position, indentation, bool(brackets), symbol.isupper() and len(symbol) == 1, after_blank
    return rows


def find(halves: Sequence[Moments], series: Sequence[Series]) -> dict[str, list[Found]]:
    """The units that tell each property best, the best unit first.

    The list of a property is empty if the property is constant in one of the halves, or if a half is too short (see FEWEST).
    A unit is listed only once for a property. If several of its quantities tell the property, such as its c and its h, the
    quantity with the strongest correlation is taken.
    """
    if min(half.symbols for half in halves) < FEWEST:
        return {name: [] for name in PROPERTIES}
    chosen_KJ, tested_KJ = (correlations(half) for half in halves)
    found: dict[str, list[Found]] = {}
    for name, chosen_J, tested_J in zip(PROPERTIES, chosen_KJ, tested_KJ, strict=True):
        found[name], taken = [], set()
        if np.isnan(tested_J).all():
            continue
        strength_J = np.nan_to_num(np.abs(chosen_J))
        for column in np.argsort(-strength_J, kind="stable"):
            if strength_J[column] == 0 or len(found[name]) == BEST:
                break
            quantity, unit = named(series, int(column))
            if (quantity.layer, unit) not in taken:
                taken.add((quantity.layer, unit))
                found[name].append(Found(quantity, unit, float(np.nan_to_num(tested_J[column]))))
    return found
