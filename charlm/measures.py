"""Nats, bits and perplexity: the three names of one number, and rows of them as JSON can say it."""

import math

MOST_NATS = 25.0  # of a run that has not diverged; to guess among all characters of Unicode costs 13.9


def bits(nats: float) -> float:
    """Bits per character from nats per character."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that exceeds the largest float, never clipped."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def of_nats(nats: float) -> dict[str, float]:
    """The three names of one number, in the order in which every log and table gives them."""
    return {"nats": nats, "bits": bits(nats), "perplexity": perplexity(nats)}


def best_in_words(best: dict) -> str:
    """What a run's status says is its best, for people."""
    return f"best {best['split']} {best['nats']:.4f} nats/char, perplexity {perplexity(best['nats']):.4f}"


def finite(row: dict) -> dict:
    """A row as JSON can say it: infinite values and those that are no numbers become None."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
