"""The arithmetic of an LSTM layer over time, as pure functions with a hand-written gradient.

Letters: T time, B batch, I input features, H hidden, G = 4H gate pre-activations, K chunks, N steps of a chunk,
R = N·B rows of a chunk.

The cell (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; gate order i, f, g, o):

    z = x W_in + b + h' W_rec          h', c' are the state handed on by the step before
    i, f, o = sigmoid(z_i, z_f, z_o)   g = tanh(z_g)
    c = f c' + i g                     h = o tanh(c)

Backward, with dh and dc the gradients that reach h and c from everything later:

    dc += dh o (1 - tanh(c)^2)
    dz_i = dc g i (1 - i)     dz_f = dc c' f (1 - f)     dz_g = dc i (1 - g^2)     dz_o = dh tanh(c) o (1 - o)
    dc' = dc f                dh' = dz W_rec^T
    dx = dz W_in^T            dW_in = sum_t x^T dz       dW_rec = sum_t h'^T dz    db = sum_t dz

Only dc' and dh' are recurrent. What multiplies dc and dh on the dz lines comes from the forward pass alone and is computed
outside the recurrence; the sums over t are taken as one product for each chunk of time, which is long enough for the matrix
unit and short enough to stay in cache.

Several lines below look roundabout, because of how XLA:CPU compiles them (jaxlib 0.10.2): what most of them gain is written
down in experiments/2026-11-22-speed. What they cost on other platforms has not been measured.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

CHUNK_STEPS = 16  # a chunk of time is at most as long as this, where a divisor of the window allows it,
CHUNK_BYTES = 5 * 2**19  # or as the number of steps whose gates fill this much cache, if that is more
LANES = 16  # float32 numbers in the widest vector of a CPU

Carry = tuple[jax.Array, jax.Array]  # (c_BH, h_BH), float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def lstm(inputs, input_kernel_IG, bias_G, recurrent_kernel_HG, c_BH, h_BH, dtype=jnp.float32):
    """Runs one LSTM layer over a window.

    Args:
      inputs: float (T, B, I), or int (T, B): ids that stand for one-hot rows, so that the input product is a row lookup.
      input_kernel_IG: float32 (I, 4H). bias_G: float32 (4H,). recurrent_kernel_HG: float32 (H, 4H).
      c_BH, h_BH: float32 state before the first step.
      dtype: in which the operands of the matrix products are rounded; sums, state and gradients are float32.

    Returns:
      (hidden_TBH, (c_BH, h_BH)): float32 outputs of every step and the state after the last.
    """
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG)
    (carry, _, _), hidden_TBH = _forward(inputs, weights, (c_BH, h_BH), dtype, residuals=False)
    return hidden_TBH, carry


def _forward(inputs, weights, carry, dtype, residuals):
    input_kernel_IG, bias_G, recurrent_kernel_HG = weights
    hidden = recurrent_kernel_HG.shape[0]
    input_dtype = _input_dtype(input_kernel_IG, dtype)
    input_kernel = input_kernel_IG
    recurrent_kernel = operand(recurrent_kernel_HG, dtype, rows=carry[0].shape[0])

    def step(carry, z_in_BG):
        c_BH, h_BH = carry
        c_BH, h_BH, gates_BG = _cell(z_in_BG + product(h_BH, recurrent_kernel, dtype), c_BH)
        return (c_BH, h_BH), (h_BH, c_BH, gates_BG) if residuals else h_BH

    def chunk(carry, inputs_N):
        if _is_ids(inputs):
            z_in = jnp.take(input_kernel, inputs_N, axis=0, mode="clip") + bias_G[None, None, :]
        else:
            z_in = product(inputs_N, input_kernel, input_dtype) + bias_G[None, None, :]
        return jax.lax.scan(step, carry, z_in)

    carry, outputs = jax.lax.scan(chunk, carry, _chunked(inputs, hidden))
    if not residuals:
        return (carry, None, None), _flat(outputs)
    hidden_KNBH, cells, gates = outputs
    return (carry, cells, gates), hidden_KNBH


def _lstm_fwd(inputs, input_kernel_IG, bias_G, recurrent_kernel_HG, c_BH, h_BH, dtype):
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG)
    (carry, cells_KNBH, gates_KNBG), hidden_KNBH = _forward(inputs, weights, (c_BH, h_BH), dtype, residuals=True)
    saved = (inputs, hidden_KNBH, cells_KNBH, gates_KNBG, input_kernel_IG, recurrent_kernel_HG, c_BH, h_BH)
    return (_flat(hidden_KNBH), carry), saved


def _lstm_bwd(dtype, saved, cotangents):
    inputs, hidden_KNBH, cells_KNBH, gates_KNBG, input_kernel_IG, recurrent_kernel_HG, c_BH, h_BH = saved
    d_hidden_TBH, (d_c_BH, d_h_BH) = cotangents
    num_inputs, hidden = input_kernel_IG.shape[0], recurrent_kernel_HG.shape[0]
    back_through_h = _back_through_h(recurrent_kernel_HG.astype(dtype), rows=c_BH.shape[0])
    input_dtype = _input_dtype(input_kernel_IG, dtype)
    input_kernel = input_kernel_IG.astype(input_dtype)

    def step(carry, factors):
        d_c, d_h = carry
        d_out, through_z, through_h, f = factors
        d_h = d_h + d_out
        d_c = d_c + d_h * through_h
        d_z = jnp.concatenate([d_c, d_c, d_c, d_h], axis=-1) * through_z
        return (d_c * f, back_through_h(d_z.astype(dtype))), d_z

    def chunk(carry, chunk_of):
        state, d_input_kernel, d_bias, d_recurrent_kernel = carry
        features, d_out, out, cells, gates, h_before, c_before = chunk_of
        c_prev = jnp.concatenate([c_before[None], cells[:-1]])
        h_prev = jnp.concatenate([h_before[None], out[:-1]])
        state, d_z = jax.lax.scan(step, state, (d_out, *_factors(gates, cells, c_prev)), reverse=True)
        d_bias = d_bias + d_z.sum((0, 1))
        d_z = jax.lax.optimization_barrier(d_z.astype(dtype))  # rounded once a chunk: at each step it is slow to store
        rows_RG = d_z.reshape(-1, d_z.shape[-1])
        if _is_ids(inputs):
            features_IR = (jnp.arange(num_inputs)[:, None] == features.reshape(-1)[None, :]).astype(dtype)
            d_inputs = None
        else:
            features_IR = _columns(features, input_dtype)
            d_inputs = _product_with_transpose(d_z, input_kernel, input_dtype)
        d_input_kernel = d_input_kernel + product(features_IR, rows_RG, input_dtype)
        d_recurrent_kernel = d_recurrent_kernel + product(_columns(h_prev, dtype), rows_RG, dtype)
        return (state, d_input_kernel, d_bias, d_recurrent_kernel), d_inputs

    # The state handed to each chunk is the last one of the chunk before it.
    c_before_KBH = jnp.concatenate([c_BH[None], cells_KNBH[:-1, -1]])
    h_before_KBH = jnp.concatenate([h_BH[None], hidden_KNBH[:-1, -1]])
    zeros = (jnp.zeros_like(input_kernel_IG), jnp.zeros_like(recurrent_kernel_HG[0]), jnp.zeros_like(recurrent_kernel_HG))
    chunks = (
        _chunked(inputs, hidden),
        _chunked(d_hidden_TBH, hidden),
        hidden_KNBH,
        cells_KNBH,
        gates_KNBG,
        h_before_KBH,
        c_before_KBH,
    )
    ((d_c_BH, d_h_BH), *d_weights), d_inputs = jax.lax.scan(chunk, ((d_c_BH, d_h_BH), *zeros), chunks, reverse=True)
    return (None if d_inputs is None else _flat(d_inputs), *d_weights, d_c_BH, d_h_BH)


lstm.defvjp(_lstm_fwd, _lstm_bwd)


def laid_out(kernels: Sequence[jax.Array], dtype, rows: int) -> tuple[jax.Array, ...]:
    """The (·, 4H) kernels whose products `step` adds up, rounded to dtype and laid out for so many rows, once for all steps.

    For one row they become one (4, ·, H), gate by gate: XLA:CPU reads the shorter rows of such a matrix up to twice as fast
    (kernels of 1 to 4 MB), and one product costs less than two.
    """
    if rows > 1:
        return tuple(operand(kernel, dtype, rows) for kernel in kernels)
    kernel = jnp.concatenate(kernels)
    return (operand(kernel.reshape(kernel.shape[0], 4, -1).swapaxes(0, 1), dtype, rows),)


def step(z_BG, operands: Sequence[jax.Array], kernels: Sequence[jax.Array], c_BH, dtype) -> Carry:
    """One step of one layer without a gradient: the carry after z_BG and the products of operands and kernels `laid_out`."""
    if kernels[0].ndim == 2:
        z_BG = sum((product(x, kernel, dtype) for x, kernel in zip(operands, kernels, strict=True)), z_BG)
    else:
        x_BI, (kernel_4IH,) = operand(jnp.concatenate(operands, axis=-1), dtype, rows=1), kernels
        x_4BI = jnp.broadcast_to(x_BI, (4, *x_BI.shape))  # a factor of all gates at once would have XLA turn the kernel round
        z_4BH = jnp.matmul(x_4BI, kernel_4IH, preferred_element_type=z_BG.dtype)
        z_BG = z_BG + z_4BH.swapaxes(0, 1).reshape(z_BG.shape)
    c_BH, h_BH, _ = _cell(z_BG, c_BH)
    return c_BH, h_BH


def _cell(z_BG, c_BH):
    """(c_BH, h_BH, gates_BG) from the gates' pre-activations and the cell before."""
    # Without the barrier XLA:CPU computes the activation again for each of its consumers.
    gates_BG = jax.lax.optimization_barrier(_activate(z_BG))
    i, f, g, o = jnp.split(gates_BG, 4, axis=-1)
    c_BH = f * c_BH + i * g
    return c_BH, o * jnp.tanh(c_BH), gates_BG


def _activate(z_BG):
    """All four gates by one tanh, since sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one array vectorises, four slices do not."""
    hidden = z_BG.shape[-1] // 4
    scale = jnp.concatenate([jnp.full(2 * hidden, 0.5), jnp.ones(hidden), jnp.full(hidden, 0.5)])[None, :]
    shift = jnp.concatenate([jnp.full(2 * hidden, 0.5), jnp.zeros(hidden), jnp.full(hidden, 0.5)])[None, :]
    scale, shift = scale.astype(z_BG.dtype), shift.astype(z_BG.dtype)
    return jnp.tanh(z_BG * scale) * scale + shift


def _factors(gates, cells, c_prev):
    """What the backward recurrence multiplies dc and dh with: the dz lines of the module's docstring."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    tanh_c = jnp.tanh(cells)
    through_z = jnp.concatenate([g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], axis=-1)
    return through_z, o * (1 - tanh_c * tanh_c), f


def product(a, b, dtype):
    """a @ b with operands rounded to dtype and sums in float32 (float64 where both are)."""
    sums, rows = jnp.promote_types(jnp.result_type(a, b), jnp.float32), a.size // a.shape[-1]
    return jnp.matmul(operand(a, dtype, rows), operand(b, dtype, rows), preferred_element_type=sums)


def operand(x, dtype, rows: int):
    """x rounded to dtype, as a factor of a product of so many rows.

    XLA:CPU multiplies one row by a bfloat16 matrix as float32, and widens the matrix anew at every step of a loop. Rounded
    within float32, which it does once before the loop, the product is the same and four times as fast.
    """
    if dtype == jnp.bfloat16 and rows == 1 and x.dtype == jnp.float32 and jax.default_backend() == "cpu":
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def _product_with_transpose(a, b, dtype):
    """a @ b.T as a contraction of the last axes: XLA:CPU is fast in bfloat16 only where no transpose stands."""
    sums = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    last = ((a.ndim - 1,), (b.ndim - 1,))
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (last, ((), ())), preferred_element_type=sums)


def _back_through_h(recurrent_kernel_HG, rows: int):
    """The function dz → dz W_rec^T, in the form that is fastest for so many rows.

    As W_rec dz^T, turned round afterwards, where the rows fill the lanes of a vector (1.7 times as fast as dz W_rec^T for 16
    rows of 256 in float32, 2.3 times for 64 of 512 in bfloat16); else by a copy of W_rec^T (1.4 times for 25 rows of 128).
    Without the barriers XLA folds the transposes into the product again.
    """
    dtype = recurrent_kernel_HG.dtype
    if rows % LANES == 0:
        return lambda d_z_BG: jax.lax.optimization_barrier(_product_with_transpose(recurrent_kernel_HG, d_z_BG, dtype)).T
    recurrent_kernel_GH = jax.lax.optimization_barrier(recurrent_kernel_HG.T)
    return lambda d_z_BG: product(d_z_BG, recurrent_kernel_GH, dtype)


def _columns(x_NBI, dtype):
    """(I, N·B): the left operand of a weight gradient.

    The layout has XLA:CPU turn it round in memory; it would fold the transpose into the product, which then takes twice as long
    (bfloat16, AVX-512).
    """
    return with_layout_constraint(x_NBI.reshape(-1, x_NBI.shape[-1]).T.astype(dtype), Layout(major_to_minor=(0, 1)))


def _input_dtype(input_kernel_IG, dtype):
    """A single feature is not rounded: its product costs nothing, and an id among 84 needs more than bfloat16's 8 bits."""
    return jnp.promote_types(dtype, jnp.float32) if input_kernel_IG.shape[0] == 1 else dtype


def _is_ids(inputs) -> bool:
    return jnp.issubdtype(inputs.dtype, jnp.integer)


def _chunked(x_T, hidden: int):
    """(K, N, B, …): the steps in chunks as long as they may be, all of one length."""
    steps, rows = x_T.shape[:2]
    longest = max(CHUNK_STEPS, CHUNK_BYTES // (16 * rows * hidden))  # four gates of four bytes
    length = max(n for n in range(1, steps + 1) if steps % n == 0 and n <= longest)
    if length < 8:  # no divisor that makes large products: the whole window is one chunk
        length = steps
    return x_T.reshape(-1, length, *x_T.shape[1:])


def _flat(x_KN):
    return x_KN.reshape(-1, *x_KN.shape[2:])
