"""Dropout of activations.

Shape letters: B rows of a batch, T time, H hidden units, N random words for each row.
"""

import jax
import jax.numpy as jnp


def dropout(keys_B: jax.Array, x_TBH: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout (Srivastava et al. 2014).

    Sets each value of `x_TBH` to 0 with the probability `rate`, and scales the other values so that the expected values of the
    result are the values of `x_TBH`.

    Args:
      keys_B: a random key for each row. The key alone determines which values of the row are set to 0, so the result does not
        depend on which device holds the row.
      x_TBH: the activations.
      rate: the probability. It is rounded to a multiple of 2^-16, so that 16 random bits are enough for a value. One random
        32-bit word is then enough for two values, which halves the cost of drawing random numbers.
    """
    dropped = min(round(rate * 2**16), 2**16 - 1)
    steps, rows, hidden = x_TBH.shape
    words_BN = jax.vmap(lambda key: jax.random.bits(key, ((steps * hidden + 1) // 2,), jnp.uint32))(keys_B)
    halves_BTH = jax.lax.bitcast_convert_type(words_BN, jnp.uint16).reshape(rows, -1)[:, : steps * hidden]
    halves_TBH = halves_BTH.reshape(rows, steps, hidden).swapaxes(0, 1)
    return jnp.where(halves_TBH >= dropped, x_TBH * (2**16 / (2**16 - dropped)), 0)
