"""Converts nats to bits and perplexity, and prepares numbers for messages and JSON."""

import math

# The highest loss in nats per character. A run with a higher loss has diverged. For comparison, a uniform guess among all
# Unicode characters has a loss of 13.9.
MOST_NATS = 25.0


def bits(nats: float) -> float:
    """Converts nats per character to bits per character."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """Returns exp(nats), or infinity if exp(nats) exceeds the largest float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def of_nats(nats: float) -> dict[str, float]:
    """Returns a dict with nats, bits and perplexity per character, in the order that all logs and tables use."""
    return {"nats": nats, "bits": bits(nats), "perplexity": perplexity(nats)}


def best_in_words(best: dict) -> str:
    """Describes the best evaluation in words. `best` is the field `best` of status.json."""
    return f"best {best['split']} {best['nats']:.4f} nats/char, perplexity {perplexity(best['nats']):.4f}"


def finite(row: dict) -> dict:
    """Replaces infinity and NaN with None, because JSON has neither infinity nor NaN."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
