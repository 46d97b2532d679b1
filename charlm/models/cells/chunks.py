"""Code that the three fast cells use. It computes a window in chunks of several steps, and it gives the weights a fast layout.

The fast cells are `lstm`, `gru` and `rnn`. Only the products with the recurrent kernel need a loop over time. The products with
the input kernel, and the products for the gradients of the weights, take all steps of a chunk at once. A chunk is long enough
to keep the matrix unit busy and short enough to stay in cache.

`forward` and `backward` run a window of a cell whose state is only its output h, such as the GRU. The LSTM has its own
loops.

Letters: T time, B batch, I input features, H hidden units, G pre-activations of all gates, K chunks, N steps of a chunk,
R = N·B, the rows of all steps of a chunk, V rows of an embedding table, with one row for each id.

Some lines of code are more complicated than necessary, because XLA:CPU makes faster programs from them (jaxlib 0.10.2).
experiments/2026-11-22-speed gives the speed gains. Programs for other platforms have the plain form (`platform.is_cpu`), and
their windows are one chunk.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from charlm.models import platform
from charlm.models.cells import Params, is_ids
from charlm.models.products import operand, product, product_with_transpose

# On a CPU, the gates of a chunk take at most CHUNK_BYTES of memory. Two kinds of chunk may take more: a chunk of CHUNK_STEPS or
# fewer steps, and a chunk that is the whole window.
CHUNK_STEPS = 16
CHUNK_BYTES = 5 * 2**19
LANES = 16  # number of float32 values in the widest vector register of a CPU


def with_table(params: Params, table_VI: jax.Array) -> Params:
    """The params for inputs that are ids: the input kernel is replaced by the product of the table and the input kernel.

    This product is computed for the V rows of the table. Without it, each window would multiply T·B rows by the input kernel.
    """
    kernel_IG = params["input_kernel"]
    # With a single feature, no matrix product is needed, and none is used, because some platforms would round its operands.
    projected_VG = table_VI * kernel_IG if kernel_IG.shape[0] == 1 else table_VI @ kernel_IG
    return {**params, "input_kernel": projected_VG}


def forward(
    step: Callable,
    inputs: jax.Array,
    input_kernel_IG: jax.Array,
    bias_G: jax.Array,
    h_BH: jax.Array,
    dtype: jnp.dtype,
    unroll: int,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Runs a layer over a window. The state of the layer must be only its output h.

    Args:
      step: (h_BH, z_in_BG) → (h_BH, saved). z_in_BG is the input times the input kernel, plus the bias. `saved` is a tree of
        the arrays that the backward pass needs.
      inputs: floats (T, B, I), or ids (T, B) that select rows of the input kernel.
      dtype: dtype of the operands of matrix products.
      unroll: number of steps that XLA compiles as one iteration of the loop over time.

    Returns:
      (h_BH, (hidden_KNBH, saved)): the state after the window, and the outputs and `saved` of all steps, in chunks.
    """

    def one(h_BH, z_in_BG):
        h_BH, saved = step(h_BH, z_in_BG)
        return h_BH, (h_BH, saved)

    def chunk(h_BH, inputs_N):
        z_in_NBG = projected(inputs_N, input_kernel_IG, bias_G, input_dtype(input_kernel_IG, dtype))
        return jax.lax.scan(one, h_BH, z_in_NBG, unroll=unroll)

    return scan_chunks(chunk, h_BH, chunked(inputs, bias_G.shape[0]))


def backward(
    factors: Callable, saved: tuple, cotangents: tuple[jax.Array, jax.Array], dtype: jnp.dtype, unroll: int
) -> tuple[jax.Array | None, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The gradients of a layer whose state is only its output h.

    Let dh be the gradient of a step's output. It is the sum of two gradients: one comes from the output of this step, the other
    from the next step. All gradients of a step are products of dh and factors that depend only on the forward pass. The factors
    are computed before the loop over time.

    Args:
      factors: (hidden, h_prev, saved) → (through_rec, through_h, through_in), for the N steps of a chunk.
        - dh · through_rec (N, B, G) is the gradient of the recurrent product, which is h_prev times the recurrent kernel. dh is
          repeated for each gate.
        - dh · through_h (N, B, H) is the gradient of h_prev, without the part that passes through the recurrent product.
          through_h is None if this gradient is 0.
        - dh · through_in (N, B, H) is the gradient of the last gate's z_in. The other gates have the same gradient for z_in as
          for the recurrent product. through_in is None if the last gate has the same gradient for both, too.
      saved: (inputs, input_kernel_IG, recurrent_kernel_HG, h_BH, outputs), where `outputs` is the second result of `forward`.
      cotangents: (d_hidden_TBH, d_h_BH), the gradients of the outputs and of the state after the window.
      dtype, unroll: as in `forward`.

    Returns:
      The gradients of the inputs (None for ids), the input kernel, the bias, the recurrent kernel, the recurrent product
      (summed over time and rows), and the state before the window. If through_in is None, zeros take the place of the gradient
      of the recurrent product, because this sum would equal the gradient of the bias.
    """
    inputs, input_kernel_IG, recurrent_kernel_HG, h_BH, (hidden_KNBH, saved_KN) = saved
    d_hidden_TBH, d_h_BH = cotangents
    hidden, columns_G = recurrent_kernel_HG.shape
    back_through_h = back_through(recurrent_kernel_HG.astype(dtype), rows=h_BH.shape[0])
    dtype_in = input_dtype(input_kernel_IG, dtype)
    input_kernel = input_kernel_IG.astype(dtype_in)

    def step(d_h_BH, arrays):
        d_out_BH, through_rec_BG, through_h_BH = arrays
        d_h_BH = d_h_BH + d_out_BH
        d_rec_BG = jnp.concatenate([d_h_BH] * (columns_G // hidden), axis=-1) * through_rec_BG
        d_previous_BH = back_through_h(d_rec_BG.astype(dtype))
        return d_previous_BH if through_h_BH is None else d_previous_BH + d_h_BH * through_h_BH, (d_rec_BG, d_h_BH)

    def chunk(carry, arrays_of_chunk):
        d_h_BH, d_input_kernel, d_bias, d_recurrent_kernel, d_recurrent_bias = carry
        features, d_out, out, h_before, saved = arrays_of_chunk
        h_prev = jnp.concatenate([h_before[None], out[:-1]])
        through_rec, through_h, through_in = factors(out, h_prev, saved)
        arrays = (d_out, through_rec, through_h)
        d_h_BH, (d_rec, d_h) = jax.lax.scan(step, d_h_BH, arrays, reverse=True, unroll=unroll)
        # For the matrix products below, gradients are rounded once per chunk, because rounding at each step is slow.
        d_rec_rounded = platform.cpu_barrier(d_rec.astype(dtype))
        if through_in is None:
            d_in, d_in_rounded = d_rec, d_rec_rounded
        else:
            d_in = jnp.concatenate([d_rec[..., :-hidden], d_h * through_in], axis=-1)
            d_in_rounded = platform.cpu_barrier(d_in.astype(dtype))
            d_recurrent_bias = d_recurrent_bias + d_rec.sum((0, 1))
        d_bias = d_bias + d_in.sum((0, 1))
        rows_RG = d_in_rounded.reshape(-1, columns_G)
        kernel_sum, d_inputs = through_inputs(features, d_in_rounded, rows_RG, input_kernel, dtype, dtype_in)
        d_input_kernel = d_input_kernel + kernel_sum
        d_recurrent_kernel = d_recurrent_kernel + product(columns(h_prev, dtype), d_rec_rounded.reshape(-1, columns_G), dtype)
        return (d_h_BH, d_input_kernel, d_bias, d_recurrent_kernel, d_recurrent_bias), d_inputs

    # The state before a chunk is the last state of the previous chunk.
    h_before_KBH = jnp.concatenate([h_BH[None], hidden_KNBH[:-1, -1]])
    zeros_G = jnp.zeros_like(recurrent_kernel_HG[0])
    zeros = (d_h_BH, jnp.zeros_like(input_kernel_IG), zeros_G, jnp.zeros_like(recurrent_kernel_HG), zeros_G)
    chunks = (chunked(inputs, columns_G), chunked(d_hidden_TBH, columns_G), hidden_KNBH, h_before_KBH, saved_KN)
    (d_h_BH, *d_weights), d_inputs = scan_chunks(chunk, zeros, chunks, reverse=True)
    d_input_kernel, d_bias_G, d_recurrent_kernel, d_recurrent_G = d_weights
    d_inputs = None if d_inputs is None else flat(d_inputs)
    return d_inputs, d_input_kernel, d_bias_G, d_recurrent_kernel, d_recurrent_G, d_h_BH


def projected(inputs_N: jax.Array, kernel_IG: jax.Array, bias_G: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inputs of a chunk times the input kernel, plus the bias: (N, B, G)."""
    if is_ids(inputs_N):
        return jnp.take(kernel_IG, inputs_N, axis=0, mode="clip") + bias_G[None, None, :]
    return product(inputs_N, kernel_IG, dtype) + bias_G[None, None, :]


def through_inputs(
    inputs_N: jax.Array,
    d_z_NBG: jax.Array,
    d_z_RG: jax.Array,
    kernel_IG: jax.Array,
    dtype: jnp.dtype,
    dtype_in: jnp.dtype,
) -> tuple[jax.Array, jax.Array | None]:
    """For one chunk, the gradient of the input kernel and the gradient of the inputs, which is None if the inputs are ids.

    Args:
      d_z_NBG, d_z_RG: the gradient of the input product, rounded to `dtype`: the same numbers as (N, B, G) and as (R, G).
      kernel_IG: the input kernel, rounded to `dtype_in`.
      dtype_in: the result of `input_dtype`.
    """
    if is_ids(inputs_N):
        features_IR = (jnp.arange(kernel_IG.shape[0])[:, None] == inputs_N.reshape(-1)[None, :]).astype(dtype)
        d_inputs = None
    else:
        features_IR = columns(inputs_N, dtype_in)
        d_inputs = product_with_transpose(d_z_NBG, kernel_IG, dtype_in)
    return product(features_IR, d_z_RG, dtype_in), d_inputs


def back_through(recurrent_kernel_HG: jax.Array, rows: int) -> Callable[[jax.Array], jax.Array]:
    """The function dz → dz W_rec^T, in the fastest form for this number of rows.

    On a CPU, if the number of rows is a multiple of LANES, the function computes W_rec dz^T and transposes the result.
    Otherwise, it multiplies dz by a transposed copy of W_rec. Without the barriers, XLA:CPU would merge the transposes into the
    product, which is slower (experiments/2026-11-22-speed).
    """
    dtype = recurrent_kernel_HG.dtype
    if not platform.is_cpu():
        return lambda d_z_BG: product_with_transpose(d_z_BG, recurrent_kernel_HG, dtype)
    if rows % LANES == 0:
        return lambda d_z_BG: jax.lax.optimization_barrier(product_with_transpose(recurrent_kernel_HG, d_z_BG, dtype)).T
    recurrent_kernel_GH = jax.lax.optimization_barrier(recurrent_kernel_HG.T)
    return lambda d_z_BG: product(d_z_BG, recurrent_kernel_GH, dtype)


def columns(x_NBI: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The array x_NBI as (I, N·B), the left operand of the product for a weight gradient.

    The layout constraint makes XLA:CPU store the transposed array in memory. Otherwise XLA:CPU merges the transpose into the
    product, and the product is slower (experiments/2026-11-22-speed).
    """
    x_IR = x_NBI.reshape(-1, x_NBI.shape[-1]).T.astype(dtype)
    return with_layout_constraint(x_IR, Layout(major_to_minor=(0, 1))) if platform.is_cpu() else x_IR


def input_dtype(input_kernel_IG: jax.Array, dtype: jnp.dtype) -> jnp.dtype:
    """The dtype for the operands of the input product: float32 or wider for a single feature, otherwise `dtype`.

    The single feature is an id divided by the number of ids. Such a number needs more bits of precision than the 8 bits of
    bfloat16. The product with a single feature is cheap in float32, too.
    """
    return jnp.promote_types(dtype, jnp.float32) if input_kernel_IG.shape[0] == 1 else dtype


def chunked(x_T: jax.Array, width: int) -> jax.Array:
    """The steps (T, B, …) as chunks (K, N, B, …) of equal length N. N is as large as CHUNK_STEPS and CHUNK_BYTES allow.

    On a GPU or TPU, all steps are one chunk.

    Args:
      width: number of values of all gates together, for one row at one step.
    """
    steps, rows = x_T.shape[:2]
    if not platform.is_cpu():
        return x_T[None]
    longest = max(CHUNK_STEPS, CHUNK_BYTES // (4 * rows * width))  # a float32 has 4 bytes
    length = max(n for n in range(1, steps + 1) if steps % n == 0 and n <= longest)
    if length < 8:  # the products of short chunks are slow, so the whole window becomes one chunk
        length = steps
    return x_T.reshape(-1, length, *x_T.shape[1:])


def scan_chunks(chunk: Callable, carry: Any, chunks: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan` over the chunks. On a GPU or TPU, there is one chunk, so the program has no loop over chunks."""
    return jax.lax.scan(chunk, carry, chunks, reverse=reverse, unroll=1 if platform.is_cpu() else 0)


def scan_steps(
    step: Callable, project: Callable, carry: Any, inputs_KN: jax.Array, others_KN: Any, unroll: int
) -> tuple[Any, Any]:
    """A loop over the steps of all chunks. The results of a step are written directly into the arrays of the whole window.

    With a `jax.lax.scan` over the chunks and another over their steps, XLA:CPU would write them twice: first into an array of
    the chunk.

    Args:
      step: (carry, z_in, others) → (carry, results), for one step.
      project: the inputs of a chunk → z_in of its steps.
      others_KN: a tree of arrays.

    Returns:
      (carry, results_KN).
    """
    chunks, steps = (jnp.arange(number) for number in inputs_KN.shape[:2])

    def one(k, z_in_N, carry_and_results, n):
        carry, results_KN = carry_and_results
        carry, results = step(carry, at(z_in_N, n), at(others_KN, k, n))
        return (carry, jax.tree.map(lambda x_KN, x: _written(x_KN, x, k, n), results_KN, results)), None

    def chunk(carry_and_results, k):
        z_in_N = project(at(inputs_KN, k))
        return jax.lax.scan(functools.partial(one, k, z_in_N), carry_and_results, steps, unroll=unroll)

    _, results = jax.eval_shape(lambda: step(carry, at(project(at(inputs_KN, 0)), 0), at(others_KN, 0, 0)))
    zeros_KN = jax.tree.map(lambda x: jnp.zeros((*inputs_KN.shape[:2], *x.shape), x.dtype), results)
    return scan_chunks(chunk, (carry, zeros_KN), chunks)[0]


def _written(x_KN, x, k, n):
    return jax.lax.dynamic_update_slice(x_KN, x[None, None], (k, n, *(0 for _ in x.shape)))


def at(tree_KN: Any, *indices: jax.Array | int) -> Any:
    """The arrays of a chunk k, or of its step n if the indices are k and n."""

    def slice_of(x_KN):
        for index in indices:
            x_KN = jax.lax.dynamic_index_in_dim(x_KN, index, keepdims=False)
        return x_KN

    return jax.tree.map(slice_of, tree_KN)


def flat(x_KN: jax.Array) -> jax.Array:
    """The inverse of `chunked`."""
    return x_KN.reshape(-1, *x_KN.shape[2:])


def as_bits(x: jax.Array) -> jax.Array:
    """On a CPU, the bits of bfloat16 numbers as uint16. All other arrays are returned unchanged.

    A loop writes the result of each step into an array. XLA:CPU has no operation that writes into a bfloat16 array: it would
    convert the whole array to float32 and back at each step.
    """
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 and platform.is_cpu() else x


def from_bits(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The inverse of `as_bits`, for numbers of this dtype."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def laid_out(kernels: Sequence[jax.Array], gates: int, dtype: jnp.dtype, rows: int) -> tuple[jax.Array, ...]:
    """The kernels (·, G), rounded to `dtype`, in the layout that `gate_products` needs for `rows` rows.

    On a CPU, if `rows` is 1, all kernels become one kernel (gates, ·, H) with a separate block for each gate. XLA:CPU reads
    this kernel faster, because its rows are shorter. Moreover, one product costs less than two (experiments/2026-11-22-speed).
    """
    if rows > 1 or not platform.is_cpu():
        return tuple(operand(kernel, dtype, rows) for kernel in kernels)
    kernel = jnp.concatenate(kernels)
    return (operand(kernel.reshape(kernel.shape[0], gates, -1).swapaxes(0, 1), dtype, rows),)


def gate_products(z_BG: jax.Array, operands: Sequence[jax.Array], kernels: Sequence[jax.Array], dtype: jnp.dtype) -> jax.Array:
    """Multiplies each operand (B, ·) by its kernel, and adds the products to z_BG. `laid_out` makes the kernels."""
    if kernels[0].ndim == 2:
        return sum((product(each, kernel, dtype) for each, kernel in zip(operands, kernels, strict=True)), z_BG)
    x_BI, (kernel_gIH,) = operand(jnp.concatenate(operands, axis=-1), dtype, rows=1), kernels
    x_gBI = jnp.broadcast_to(x_BI, (kernel_gIH.shape[0], *x_BI.shape))  # without this broadcast, XLA would transpose the kernel
    z_gBH = jnp.matmul(x_gBI, kernel_gIH, preferred_element_type=z_BG.dtype)
    return z_BG + z_gBH.swapaxes(0, 1).reshape(z_BG.shape)


class Prepared(NamedTuple):
    """The weights of a layer with one bias per gate, in the layout that `pre_activations` needs.

    Attributes:
      table_VG: float32, the input kernel plus the bias, with one row for each id. None if the inputs are floats.
      bias_G: float32.
      kernels: the recurrent kernel. If the inputs are floats, the input kernel comes before it. `laid_out` explains the layout.
    """

    table_VG: jax.Array | None
    bias_G: jax.Array
    kernels: tuple[jax.Array, ...]


def prepared(params: Params, gates: int, rows: int, dtype: jnp.dtype, ids: bool) -> Prepared:
    """Puts the weights of a layer into the layout that `pre_activations` needs for a batch of `rows` rows."""
    input_kernel_IG, bias_G, recurrent_kernel_HG = params["input_kernel"], params["bias"], params["recurrent_kernel"]
    if ids:
        return Prepared(input_kernel_IG + bias_G[None, :], bias_G, laid_out([recurrent_kernel_HG], gates, dtype, rows))
    return Prepared(None, bias_G, laid_out([input_kernel_IG, recurrent_kernel_HG], gates, dtype, rows))


def pre_activations(weights: Prepared, x: jax.Array, h_BH: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The pre-activations (B, G) of all gates for one character x: floats (B, I), or ids (B,)."""
    if weights.table_VG is not None:
        return gate_products(jnp.take(weights.table_VG, x, axis=0, mode="clip"), (h_BH,), weights.kernels, dtype)
    return gate_products(weights.bias_G[None, :], (x, h_BH), weights.kernels, dtype)
