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


def of_text(nats: float, chars: int, size: int, unknown: int) -> dict[str, float]:
    """Returns the measures of a scored text, in the order that all logs use.

    Models with different vocabularies can be compared by their bits per byte, but not by their losses per character.

    Args:
      nats: the sum of the losses of all scored characters.
      chars: the number of scored characters. An `<eos>` is counted as one character.
      size: the number of bytes that the scored characters have in UTF-8. An `<eos>` has no bytes, so `size` may be 0. The bits
        per byte are then infinite.
      unknown: the number of scored characters that the model reads as `<unk>`. The result has the key `unknown` only if this
        number is not 0.
    """
    per_byte = bits(nats) / size if size else math.inf
    measures = {**of_nats(nats / chars), "chars": chars, "bytes": size, "bits_per_byte": per_byte}
    return measures | ({"unknown": unknown} if unknown else {})


def best_in_words(best: dict) -> str:
    """Describes the best evaluation in words. `best` is the field `best` of status.json."""
    return f"best {best['split']} {best['nats']:.4f} nats/char, perplexity {perplexity(best['nats']):.4f}"


def finite(row: dict) -> dict:
    """Replaces infinity and NaN with None, because JSON has neither infinity nor NaN."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
