"""Nats and counts from logits.

Letters: B batch, S scored positions, V vocabulary.
"""

import jax
import jax.numpy as jnp


def nats_and_count(logits_BSV: jax.Array, targets_BS: jax.Array, weights_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy as a sum and a count. Add up all sums and counts first, and divide once at the end.

    Returns:
      (nats, count): float32 scalars, the sum of weights times -ln p(target), and the sum of weights.
    """
    log_z_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    target_logits_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.sum(weights_BS * (log_z_BS - target_logits_BS)), jnp.sum(weights_BS)
