"""Matrix products whose operands are rounded to `dtype` and whose sums are float32."""

import jax
import jax.numpy as jnp


def product(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b` with operands rounded to `dtype` and sums in float32. If `a` or `b` is float64, sums are in float64."""
    sums, rows = jnp.promote_types(jnp.result_type(a, b), jnp.float32), a.size // a.shape[-1]
    return jnp.matmul(operand(a, dtype, rows), operand(b, dtype, rows), preferred_element_type=sums)


def operand(x: jax.Array, dtype: jnp.dtype, rows: int) -> jax.Array:
    """`x` rounded to `dtype`, for a product whose left operand has `rows` rows.

    For a single row and bfloat16, XLA:CPU multiplies in float32 and converts the matrix to float32 at every step of a loop.
    In this case `x` is rounded to bfloat16 precision but stays float32. The product is the same as with bfloat16 operands, and
    no step converts the matrix (experiments/2026-11-22-speed).
    """
    if dtype == jnp.bfloat16 and rows == 1 and x.dtype == jnp.float32 and jax.default_backend() == "cpu":
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def product_with_transpose(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b.T` as a contraction of the last axes. For bfloat16 on XLA:CPU, an explicit transpose would be slow."""
    sums = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    last = ((a.ndim - 1,), (b.ndim - 1,))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (last, ((), ())), preferred_element_type=sums)
