"""Dropout of activations, of weights and of embeddings.

All three kinds are inverted dropout: a value is set to 0 with the probability `rate`, and the other values are scaled. The
expected value of the result is therefore the original value. `rate` is rounded to a multiple of 2^-16, so that 16 random bits
are enough for a value. One random 32-bit word is then enough for two values, which halves the cost of drawing random numbers.
In the program of a pack (charlm/training/packing.py), `rate` is an array, which must already be such a multiple; see `rounded`.

Letters: B rows of a batch, T time, H hidden units or other features, N random words for each row, V symbols, I inputs and O
outputs of a kernel.
"""

import jax
import jax.numpy as jnp

Rate = float | jax.Array  # a scalar


def dropout(keys_B: jax.Array, x_TBH: jax.Array, rate: Rate, per_window: bool = False) -> jax.Array:
    """Dropout of activations (Srivastava et al. 2014).

    Args:
      keys_B: a random key for each row. The key alone determines which values of the row are set to 0, so the result does not
        depend on the device that holds the row.
      x_TBH: the activations.
      rate: the probability that a value is set to 0.
      per_window: whether all steps of a row have the same mask (variational dropout, Gal & Ghahramani 2016). Otherwise each
        step has its own mask.
    """
    steps, _, hidden = x_TBH.shape
    kept_TBH = kept(keys_B, 1 if per_window else steps, hidden, rate)
    return jnp.where(kept_TBH, x_TBH * _scale(rate), 0)


def fold_in(keys_B: jax.Array, number: int) -> jax.Array:
    """The random keys of the rows, with a number folded into each of them."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)


def kept(keys_B: jax.Array, steps: int, hidden: int, rate: Rate) -> jax.Array:
    """A bool array (steps, B, hidden) whose values are independent and True with the probability 1 - rate."""
    rows = len(keys_B)
    words_BN = jax.vmap(lambda key: jax.random.bits(key, ((steps * hidden + 1) // 2,), jnp.uint32))(keys_B)
    halves_BTH = jax.lax.bitcast_convert_type(words_BN, jnp.uint16).reshape(rows, -1)[:, : steps * hidden]
    halves_TBH = halves_BTH.reshape(rows, steps, hidden).swapaxes(0, 1)
    return halves_TBH >= _dropped(rate)


def weight_dropout(key: jax.Array, kernel_IO: jax.Array, rate: Rate) -> jax.Array:
    """Dropout of the single values of a kernel (DropConnect, Wan et al. 2013; weight drop, Merity et al. 2018).

    Args:
      key: one key for all rows and steps of a window. All rows and steps therefore use the same kernel.
    """
    return dropout(key[None], kernel_IO[:, None, :], rate)[:, 0, :]


def embedding_dropout(key: jax.Array, table_VI: jax.Array, rate: Rate) -> jax.Array:
    """Dropout of whole symbols: some rows of the table are set to 0, the others are scaled (Gal & Ghahramani 2016).

    Args:
      key: one key for all rows and steps of a window. A dropped symbol has the embedding 0 wherever it occurs.
    """
    kept_V1 = kept(key[None], 1, len(table_VI), rate)[0].T
    return jnp.where(kept_V1, table_VI * _scale(rate), 0)


def rounded(rate: float) -> float:
    """The multiple of 2^-16 to which a rate is rounded. It is exact in float32, so arrays can hold it."""
    return min(round(rate * 2**16), 2**16 - 1) / 2**16


def _dropped(rate: Rate) -> int | jax.Array:
    """How many of the 2^16 values of 16 random bits stand for a dropped value."""
    return (rate * 2**16).astype(jnp.uint16) if isinstance(rate, jax.Array) else int(rounded(rate) * 2**16)


def _scale(rate: Rate) -> Rate:
    return 1 / (1 - rate) if isinstance(rate, jax.Array) else 1 / (1 - rounded(rate))
