"""Nats and counts from logits, and what is made of them.

Letters: B batch, S scored positions, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp


def nats_and_count(logits_BSV, targets_BS, weights_BS):
    """Weighted cross-entropy as a sum and a count; divide once, at the very end.

    Returns:
      (nats, count): float32 scalars, the sum of weights times -ln p(target), and the sum of weights.
    """
    log_z_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    target_logits_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.sum(weights_BS * (log_z_BS - target_logits_BS)), jnp.sum(weights_BS)


def bits(nats: float) -> float:
    """Bits per character from nats per character."""
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    """exp(nats); infinite where that exceeds the largest float, never clipped."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def finite(row: dict) -> dict:
    """A row as JSON can say it: infinite values and those that are no numbers become None."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def measures(nats: float) -> dict[str, float]:
    """The three names of one number, in the order in which every log and table gives them."""
    return {"nats": nats, "bits": bits(nats), "perplexity": perplexity(nats)}
