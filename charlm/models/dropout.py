"""Dropout of activations.

Letters at the end of a name stand for the axes: B batch (rows), T time, H hidden units, N random words.
"""

import jax
import jax.numpy as jnp


def dropout(keys_B: jax.Array, x_TBH: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout (Srivastava et al. 2014): sets each value of `x_TBH` to 0 with probability `rate`.

    The other values are divided by 1 - `rate`, so that the expected value does not change.

    Each row has its own key. The mask of a row therefore does not depend on the device that holds the row.

    The rate is rounded to a multiple of 2^-16. A value then needs only 16 random bits, so one random 32-bit word is enough
    for two values. This halves the cost of drawing random numbers.
    """
    dropped = min(round(rate * 2**16), 2**16 - 1)
    steps, rows, hidden = x_TBH.shape
    words_BN = jax.vmap(lambda key: jax.random.bits(key, ((steps * hidden + 1) // 2,), jnp.uint32))(keys_B)
    halves_BTH = jax.lax.bitcast_convert_type(words_BN, jnp.uint16).reshape(rows, -1)[:, : steps * hidden]
    halves_TBH = halves_BTH.reshape(rows, steps, hidden).swapaxes(0, 1)
    return jnp.where(halves_TBH >= dropped, x_TBH * (2**16 / (2**16 - dropped)), 0)
