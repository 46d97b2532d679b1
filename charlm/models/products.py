"""Matrix products whose operands are rounded to `dtype` and whose sums are float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from charlm.models import platform

# JAX's names for the values of `model.precision`. On a GPU, "high" is TF32, or float32 if the GPU has no TF32, and "highest" is
# float32. On a TPU, "high" is three products of bfloat16 operands, and "highest" is six.
PRECISIONS = {"tf32": "high", "float32": "highest"}


def in_precision(precision: str, function: Callable) -> Callable:
    """The same function, but on a GPU or TPU, all its products of float32 operands have this precision.

    Args:
      precision: a value of `model.precision`. On a CPU, it has no effect, because a CPU multiplies in float32.
      function: any function that JAX can trace.
    """

    @functools.wraps(function)
    def precise(*args, **kwargs):
        if platform.is_cpu():
            return function(*args, **kwargs)
        with jax.default_matmul_precision(PRECISIONS[precision]):
            return function(*args, **kwargs)

    return precise


def product(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b` with operands rounded to `dtype` and sums in float32. If `a` or `b` is float64, sums are in float64."""
    sums, rows = jnp.promote_types(jnp.result_type(a, b), jnp.float32), a.size // a.shape[-1]
    return jnp.matmul(operand(a, dtype, rows), operand(b, dtype, rows), preferred_element_type=sums)


def operand(x: jax.Array, dtype: jnp.dtype, rows: int) -> jax.Array:
    """`x` rounded to `dtype`, for a product whose left operand has `rows` rows.

    For a single row and bfloat16, XLA:CPU multiplies in float32 and converts the matrix to float32 at every step of a loop.
    In this case, and only on a CPU, `x` is rounded to bfloat16 precision but stays float32. The product is the same as with
    bfloat16 operands, and no step converts the matrix (experiments/2026-11-22-speed).
    """
    if dtype == jnp.bfloat16 and rows == 1 and x.dtype == jnp.float32 and platform.is_cpu():
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def product_with_transpose(a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`a @ b.T` as a contraction of the last axes. For bfloat16 on XLA:CPU, an explicit transpose would be slow."""
    sums = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    last = ((a.ndim - 1,), (b.ndim - 1,))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (last, ((), ())), preferred_element_type=sums)
