"""A loop over time. In its backward pass, the gradients of the kernels are computed after the backward loop.

The gradient of a kernel is a sum over all steps. With JAX's own gradient of `jax.lax.scan`, each step of the backward loop
computes one term of this sum, which is a matrix product with few rows, and adds the term to the sum. Here, each step of the
backward loop only saves the gradient of its products with the kernels. After the loop, one matrix product over all steps
computes the gradient of a kernel. JAX derives all other gradients.
experiments/2026-11-28-cells/against_flax.py measures the speed.

Letters: T time, B batch (rows), I inputs and O outputs of a kernel, N blocks of a block-diagonal kernel, G gate
pre-activations, V rows of a table, with one row for each id, R = T·B, the rows of all steps of a window.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from charlm.models import platform
from charlm.models.cells import is_ids
from charlm.models.products import operand, product, product_with_transpose

Kernels = dict[str, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def scan(
    step: Callable, kernels: Kernels, others: Any, inputs_T: Any, state: Any, dtype: jnp.dtype, unroll: int = 1
) -> tuple[jax.Array, Any]:
    """Calls `step` for each step of a window. Values and gradients equal the values and gradients of `jax.lax.scan`.

    Args:
      step: (times, others, x, state) → (output, state). `times(name, left)` is the product of `left` and the kernel `name`.
        `step` must call `times` exactly once for each kernel.
      kernels: float32 (I, O) for a left operand (B, I), or (N, I, O) for a left operand (N, B, I).
      others: tree of the other parameters that `step` needs, such as gains. JAX derives their gradients.
      inputs_T: the input x of each step, as a tree of arrays (T, …, B, ·). The first array must be floats.
      state: tree of float32 arrays, the state before the first step.
      dtype: dtype of the operands of matrix products.
      unroll: number of steps that XLA compiles as one iteration of the loop.

    Returns:
      (outputs_T, state after the last step).
    """
    kernels = _rounded(kernels, jax.tree.leaves(inputs_T)[0].shape[-2], dtype)

    def one(state, x):
        output, state = step(lambda name, left: product(left, kernels[name], dtype), others, x, state)
        return state, output

    state, outputs_T = jax.lax.scan(one, state, inputs_T, unroll=unroll)
    return outputs_T, state


def _scan_fwd(step, kernels, others, inputs_T, state, dtype, unroll):
    first = jax.tree.leaves(inputs_T)[0]
    steps, rows = first.shape[0], first.shape[-2]
    rounded = _rounded(kernels, rows, dtype)
    transposed = platform.cpu_barrier({name: kernel.swapaxes(-1, -2) for name, kernel in kernels.items()})
    transposed = {name: kernel.astype(dtype) for name, kernel in transposed.items()}

    def run(others, inputs_T, state, probes_T):
        def one(state, x_and_probes):
            x, probes = x_and_probes
            lefts = {}

            def times(name, left):
                lefts[name] = operand(left, dtype, left.size // left.shape[-1])
                return checkpoint_name(_probed(left, rounded[name], transposed[name], probes[name]), "product")

            output, state = step(times, others, x, state)
            return state, (output, lefts)

        # The backward loop computes the activations again from the products. This is faster than to save and read all of them.
        one = jax.checkpoint(one, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names("product"))
        state, (outputs_T, lefts_T) = jax.lax.scan(one, state, (inputs_T, probes_T), unroll=unroll)
        return (outputs_T, state), lefts_T

    # Each kernel has one probe per step, which is an array of zeros. The value of a probe is never used. Only its gradient is
    # used: it equals the gradient of the product with the kernel at this step.
    sums = jnp.promote_types(first.dtype, jnp.float32)
    probes_T = {name: jnp.zeros((steps, *kernel.shape[:-2], rows, kernel.shape[-1]), sums) for name, kernel in kernels.items()}
    results, through, lefts_T = jax.vjp(run, others, inputs_T, state, probes_T, has_aux=True)
    return results, (through, lefts_T)


def _scan_bwd(step, dtype, unroll, saved, cotangents):
    del step, unroll  # the backward loop is unrolled like the forward loop
    through, lefts_T = saved
    d_others, d_inputs_T, d_state, d_products_T = through(cotangents)
    d_kernels = {name: _kernel_gradient(lefts_T[name], d_products_T[name], dtype) for name in lefts_T}
    return d_kernels, d_others, d_inputs_T, d_state


scan.defvjp(_scan_fwd, _scan_bwd)


def _rounded(kernels: Kernels, rows: int, dtype: jnp.dtype) -> Kernels:
    """The kernels, rounded once for all steps.

    Args:
      rows: number of rows of the left operand. For a block-diagonal kernel, the left operand of each block has `rows` rows.
    """
    return {name: operand(kernel, dtype, kernel[..., 0, 0].size * rows) for name, kernel in kernels.items()}


@jax.custom_vjp
def _probed(left: jax.Array, kernel: jax.Array, transposed: jax.Array, probe: jax.Array) -> jax.Array:
    """`left @ kernel`. The gradient of this product becomes the gradient of `probe`, and the kernel gets no gradient.

    `transposed` is the transposed kernel, which gives the gradient of `left`.
    """
    del transposed, probe
    return product(left, kernel, kernel.dtype)


def _probed_fwd(left, kernel, transposed, probe):
    return _probed(left, kernel, transposed, probe), transposed


def _probed_bwd(transposed, d_product):
    return product(d_product, transposed, transposed.dtype), None, None, d_product


_probed.defvjp(_probed_fwd, _probed_bwd)


def _kernel_gradient(left_T: jax.Array, d_product_T: jax.Array, dtype: jnp.dtype) -> jax.Array:
    sums = d_product_T.dtype
    d_product_T = platform.cpu_barrier(d_product_T.astype(dtype))
    letters = "tbi,tbo->io" if left_T.ndim == 3 else "tnbi,tnbo->nio"
    return jnp.einsum(letters, left_T.astype(dtype), d_product_T, preferred_element_type=sums)


def input_products(inputs: jax.Array, kernel_IG: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The products (…, G) of the inputs (…, I) with the input kernel.

    If the inputs are ids (…), the result is the rows of the input kernel that the ids select.
    """
    if is_ids(inputs):
        return look_up(kernel_IG, inputs, dtype)
    if kernel_IG.shape[0] == 1:  # the single feature is an id divided by the number of ids, which needs more bits than bfloat16
        dtype = jnp.promote_types(dtype, jnp.float32)
    return _dense(inputs, kernel_IG, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VG: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The rows (…, G) of a table that the ids select.

    The gradient of the table is computed as a product with one-hot rows. To add up the gradients row by row would be slow.
    """
    del dtype
    return jnp.take(table_VG, ids, axis=0, mode="clip")


def _look_up_fwd(table_VG, ids, dtype):
    return look_up(table_VG, ids, dtype), (ids, table_VG[:, 0])


def _look_up_bwd(dtype, saved, d_rows):
    ids, column_V = saved
    one_hot_VR = (jnp.arange(column_V.shape[0])[:, None] == ids.reshape(-1)[None, :]).astype(dtype)
    return product(one_hot_VR, d_rows.reshape(-1, d_rows.shape[-1]), dtype), None


look_up.defvjp(_look_up_fwd, _look_up_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(inputs: jax.Array, kernel_IG: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Computes `product`. In the gradient, sums are float32, too. JAX's own gradient would be rounded to `dtype`."""
    return product(inputs, kernel_IG, dtype)


def _dense_fwd(inputs, kernel_IG, dtype):
    return _dense(inputs, kernel_IG, dtype), (inputs, kernel_IG)


def _dense_bwd(dtype, saved, d_products):
    inputs, kernel_IG = saved
    rows = d_products.reshape(-1, d_products.shape[-1]).astype(dtype)
    d_kernel_IG = product(inputs.reshape(-1, inputs.shape[-1]).T, rows, dtype)
    return product_with_transpose(d_products, kernel_IG, dtype), d_kernel_IG


_dense.defvjp(_dense_fwd, _dense_bwd)
