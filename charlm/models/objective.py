"""The cross-entropy of logits, in nats.

Letters in the names of arrays: B batch (rows), S scored positions, V vocabulary.
"""

import jax
import jax.numpy as jnp


def nats_and_count(logits_BSV: jax.Array, targets_BS: jax.Array, weights_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted cross-entropy of a batch, as a sum and a count.

    For the mean over several batches, add the sums and add the counts of all batches. Then divide once.

    Returns:
      nats: float32 scalar, the sum of -ln p(target) times the weight.
      count: float32 scalar, the sum of the weights.
    """
    log_z_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    target_logits_BS = jnp.take_along_axis(logits_BSV, targets_BS[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.sum(weights_BS * (log_z_BS - target_logits_BS)), jnp.sum(weights_BS)
