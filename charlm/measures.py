"""Nats, bits and perplexity: one number in three units, and rows of numbers that JSON can hold."""

import math

MOST_NATS = 25.0  # per character; more counts as diverged. A uniform guess among all characters of Unicode has 13.9


def bits(nats: float) -> float:
    """Bits per character from nats per character."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """exp(nats); infinity if it exceeds the largest float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def of_nats(nats: float) -> dict[str, float]:
    """Nats, bits and perplexity per character, in the order of all logs and tables."""
    return {"nats": nats, "bits": bits(nats), "perplexity": perplexity(nats)}


def best_in_words(best: dict) -> str:
    """The `best` of a run's status, in words."""
    return f"best {best['split']} {best['nats']:.4f} nats/char, perplexity {perplexity(best['nats']):.4f}"


def finite(row: dict) -> dict:
    """The row with None instead of infinity and NaN, which JSON lacks."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
