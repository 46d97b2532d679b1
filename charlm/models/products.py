"""Matrix products with rounded operands: the operands in `dtype`, the sums in float32."""

import jax
import jax.numpy as jnp


def product(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b` with operands rounded to `dtype` and sums in float32 (float64 if both operands are)."""
    sums, rows = jnp.promote_types(jnp.result_type(a, b), jnp.float32), a.size // a.shape[-1]
    return jnp.matmul(operand(a, dtype, rows), operand(b, dtype, rows), preferred_element_type=sums)


def operand(x: jax.Array, dtype: jnp.dtype, rows: int) -> jax.Array:
    """`x` rounded to `dtype`, ready to be a factor in a product of `rows` rows.

    XLA:CPU multiplies a single row by a bfloat16 matrix in float32, and widens the matrix again at every step of a loop.
    Rounding within float32 happens once before the loop and gives the same product (experiments/2026-11-22-speed).
    """
    if dtype == jnp.bfloat16 and rows == 1 and x.dtype == jnp.float32 and jax.default_backend() == "cpu":
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def product_with_transpose(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b.T` as a contraction of the last axes. In bfloat16, XLA:CPU is fast only without an explicit transpose."""
    sums = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    last = ((a.ndim - 1,), (b.ndim - 1,))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (last, ((), ())), preferred_element_type=sums)
