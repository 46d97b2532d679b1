"""Does a model recover after one symbol is repeated 24 times? Measures the loss of the text that comes after.

    python experiments/2026-11-29-general-recipe/repeated_symbols.py RUN [RUN ...]

For each run and each of 20 symbols, the script reads 700 characters of the validation text, 24 times the symbol, and the 300
characters that follow in the validation text. It prints the nats per character of the last 200 of these characters: the median,
the largest value, and how many of the 60 values are above FAILURE. The symbols are the 10 rarest ones of the training text, and
10 others from rare to frequent. Each symbol is read at three random places. The state is zero before the first character.
"""

import collections
import sys

import numpy as np

import charlm
from charlm.data import corpora

BEFORE, REPEATED, AFTER, SCORED = 700, 24, 300, 200
RAREST, OTHERS, PLACES = 10, 10, 3
FAILURE = 4.0  # nats per character; a model that knows only the frequencies of the characters has about 3


def losses(run: str) -> np.ndarray:
    """The nats per character for each symbol and place."""
    model = charlm.load(run)
    splits = corpora.load(model.config).splits
    counts = collections.Counter(splits["train"])
    symbols = sorted(counts, key=lambda symbol: (counts[symbol], symbol))
    others = symbols[RAREST:]
    symbols = symbols[:RAREST] + [others[index * len(others) // OTHERS] for index in range(OTHERS)]
    text, rng, found = splits["validation"], np.random.default_rng(0), []
    for symbol in symbols:
        for begin in rng.integers(0, len(text) - BEFORE - AFTER, PLACES):
            middle = begin + BEFORE
            read = text[begin:middle] + symbol * REPEATED + text[middle : middle + AFTER]
            found.append(model.surprisal(read)[-SCORED:].mean())
    return np.array(found)


if __name__ == "__main__":
    for run in sys.argv[1:]:
        nats = losses(run)
        print(f"median {np.median(nats):.2f}  largest {nats.max():6.2f}  above {FAILURE:g}: {(nats > FAILURE).sum()}  {run}")
