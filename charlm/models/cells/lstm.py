"""The LSTM: its parameters, a fast function for a window with a hand-written gradient, and a single step for sampling.

Letters: T time, B batch, I input features, H hidden units, G = 4H gate pre-activations, K chunks, N steps of a chunk,
R = N·B, the rows of all steps of a chunk, V rows of an embedding table, with one row for each id.

The cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000). z is the pre-activations of i, f, g and o,
in this order:

    z = x W_in + b + h' W_rec          h', c' are the state of the previous step
    i, f, o = sigmoid(z_i, z_f, z_o)   g = tanh(z_g)
    c = f c' + i g                     h = o tanh(c)

Backward pass. dX is the gradient of the loss with respect to X. dh is the sum of two gradients: one comes from the output of
this step, the other from the next step. At first, dc is only the gradient that comes from the next step. The first line
below adds the gradient that comes from h of this step.

    dc += dh o (1 - tanh(c)^2)
    dz_i = dc g i (1 - i)     dz_f = dc c' f (1 - f)     dz_g = dc i (1 - g^2)     dz_o = dh tanh(c) o (1 - o)
    dc' = dc f                dh' = dz W_rec^T
    dx = dz W_in^T            dW_in = sum_t x^T dz       dW_rec = sum_t h'^T dz    db = sum_t dz

In these lines, dc and dh are multiplied by factors that depend only on the forward pass. The forward pass computes and stores
the factors, because its arrays are still in cache then. The factors of the dz lines are stored in the dtype of the products,
because dz is rounded to this dtype.

The window is cut into chunks of several steps. Within a chunk, each sum over t is one matrix product. A chunk is long enough to
keep the matrix unit busy and short enough to stay in cache.

Recurrent dropout multiplies g by a factor in the line of c. Zoneout then replaces values of c and h by those of c' and h'; the
gradients of the replaced values go to dc' and dh'. `models/recurrent_noise.py` explains both.

Some lines of code are more complicated than these formulas, because XLA:CPU makes faster programs from them (jaxlib 0.10.2).
experiments/2026-11-22-speed gives the speed gains. Programs for other platforms do not have these lines (`platform.is_cpu`), or
have them because they do no harm there.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.models import platform
from charlm.models.cells import NOISE_KEYS, Cell, Inside, Params, one_bias
from charlm.models.cells.chunks import (
    Prepared,
    as_bits,
    at,
    back_through,
    chunked,
    columns,
    flat,
    from_bits,
    input_dtype,
    pre_activations,
    prepared,
    projected,
    scan_chunks,
    scan_steps,
    through_inputs,
    with_table,
)
from charlm.models.cells.noise import Noise, kept
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product

GATES = 4

State = tuple[jax.Array, jax.Array]  # (c_BH, h_BH), float32


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters. The layer has one bias, although PyTorch's LSTM has two."""
    columns = GATES * hidden
    return {
        "input_kernel": (initial.input_kernel(GATES), (inputs, columns)),
        "recurrent_kernel": (initial.recurrent_kernel(GATES), (hidden, columns)),
        "bias": (_with_forget_bias(initial.bias, config.model.forget_bias), (columns,)),
    }


def zero_state(rows: int, hidden: int) -> State:
    return jnp.zeros((rows, hidden)), jnp.zeros((rows, hidden))


def window(
    params: Params,
    inputs: jax.Array,
    state: State,
    dtype: jnp.dtype,
    noise_keys_B: jax.Array | None = None,
    unroll: int = 1,
) -> tuple[jax.Array, State]:
    """Runs one layer over a window; see `Cell.window`. `noise_keys_B` is ignored, because an LSTM uses no random numbers."""
    del noise_keys_B
    return noisy_window(params, inputs, state, dtype, Noise(), unroll)


def noisy_window(
    params: Params, inputs: jax.Array, state: State, dtype: jnp.dtype, noise_T: Noise, unroll: int = 1
) -> tuple[jax.Array, State]:
    """Runs one layer over a window with noise; see `Cell.noisy_window`."""
    return lstm(inputs, params["input_kernel"], params["bias"], params["recurrent_kernel"], *state, dtype, unroll, noise_T)


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Prepared:
    """Puts the weights into the layout that `step` needs for `rows` rows."""
    return prepared(params, GATES, rows, dtype, ids)


def step(
    weights: Prepared, x: jax.Array, state: State, dtype: jnp.dtype, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """Reads one character x: floats (B, I), or ids (B,). `factor_BH` multiplies the candidate g; see `Cell.step`."""
    c_BH, h_BH = state
    c_BH, _, h_BH = _cell(_gates(pre_activations(weights, x, h_BH, dtype)), c_BH, factor_BH)
    return h_BH, (c_BH, h_BH)


def look(weights: Prepared, x: jax.Array, state: State, dtype: jnp.dtype) -> Inside:
    """The gates i, f and o, and the candidate g."""
    return inside(_gates(pre_activations(weights, x, state[1], dtype)))


def inside(gates_BG: jax.Array) -> Inside:
    """The result of `look`, from the four activated gates."""
    i, f, g, o = jnp.split(gates_BG, GATES, axis=-1)
    return Inside({"i": i, "f": f, "o": o}, {"g": g})


def operations(inputs: int, hidden: int, config: FrozenConfigDict) -> int:
    """Multiply-adds of one layer for one character. If the inputs are ids, `inputs` is 0, because ids are looked up."""
    del config
    return GATES * hidden * (inputs + hidden)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def lstm(
    inputs: jax.Array,
    input_kernel_IG: jax.Array,
    bias_G: jax.Array,
    recurrent_kernel_HG: jax.Array,
    c_BH: jax.Array,
    h_BH: jax.Array,
    dtype: jnp.dtype = jnp.float32,
    unroll: int = 1,
    noise_T: Noise = Noise(),  # noqa: B008 - the tuple is immutable
) -> tuple[jax.Array, State]:
    """Runs one LSTM layer over a window.

    Args:
      inputs: floats (T, B, I), or ids (T, B) that select rows of the input kernel (one-hot inputs).
      input_kernel_IG: float32 (I, 4H).
      bias_G: float32 (4H,).
      recurrent_kernel_HG: float32 (H, 4H).
      c_BH, h_BH: float32 state before the first step.
      dtype: dtype of the operands of matrix products. Sums, state and gradients are float32.
      unroll: number of steps that XLA compiles as one iteration of a loop over the steps of a chunk.
      noise_T: recurrent dropout and zoneout. Its arrays have no gradients.

    Returns:
      (hidden_TBH, (c_BH, h_BH)): the float32 outputs of all steps, and the state after the last step.
    """
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG)
    carry, (hidden_KNBH, _) = _forward(inputs, weights, (c_BH, h_BH), noise_T, dtype, unroll, residuals=False)
    return flat(hidden_KNBH), carry


def _forward(inputs, weights, carry, noise_T, dtype, unroll, residuals):
    input_kernel_IG, bias_G, recurrent_kernel_HG = weights
    columns_G = recurrent_kernel_HG.shape[1]
    dtype_in = input_dtype(input_kernel_IG, dtype)
    recurrent_kernel = operand(recurrent_kernel_HG, dtype, rows=carry[0].shape[0])

    def step(carry, z_in_BG, noise):
        c_BH, h_BH = carry
        gates_BG = _gates(z_in_BG + product(h_BH, recurrent_kernel, dtype))
        new_c_BH, tanh_c_BH, new_h_BH = _cell(gates_BG, c_BH, noise.factor)
        saved = _factors(gates_BG, c_BH, tanh_c_BH, noise.factor, dtype) if residuals else None
        c_BH, h_BH = kept(noise.keeps_cell, c_BH, new_c_BH), kept(noise.keeps_hidden, h_BH, new_h_BH)
        return (c_BH, h_BH), (h_BH, saved)

    def project(inputs_N):
        return projected(inputs_N, input_kernel_IG, bias_G, dtype_in)

    return scan_steps(step, project, carry, chunked(inputs, columns_G), _chunked_noise(noise_T, columns_G), unroll)


def _lstm_fwd(inputs, input_kernel_IG, bias_G, recurrent_kernel_HG, c_BH, h_BH, dtype, unroll, noise_T):
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG)
    carry, (hidden_KNBH, factors_KN) = _forward(inputs, weights, (c_BH, h_BH), noise_T, dtype, unroll, residuals=True)
    return (flat(hidden_KNBH), carry), (inputs, hidden_KNBH, factors_KN, input_kernel_IG, recurrent_kernel_HG, h_BH, noise_T)


def _lstm_bwd(dtype, unroll, saved, cotangents):
    inputs, hidden_KNBH, factors_KN, input_kernel_IG, recurrent_kernel_HG, h_BH, noise_T = saved
    d_hidden_TBH, (d_c_BH, d_h_BH) = cotangents
    columns_G = recurrent_kernel_HG.shape[1]
    back_through_h = back_through(recurrent_kernel_HG.astype(dtype), rows=h_BH.shape[0])
    dtype_in = input_dtype(input_kernel_IG, dtype)
    input_kernel = input_kernel_IG.astype(dtype_in)

    def step(k, carry, n):
        d_c, d_h = carry
        d_out, (through_z, through_h, f), noise = at(arrays_KN, k, n)
        d_h, d_old_h = _divided(noise.keeps_hidden, d_h + d_out)
        d_c, d_old_c = _divided(noise.keeps_cell, d_c)
        d_c = d_c + d_h * through_h
        d_z = (jnp.concatenate([d_c, d_c, d_c, d_h], axis=-1) * from_bits(through_z, dtype)).astype(dtype)
        return (_sum(d_c * f, d_old_c), _sum(back_through_h(d_z), d_old_h)), as_bits(d_z)

    def chunk(carry, k):
        state, d_input_kernel, d_bias, d_recurrent_kernel = carry
        features, out, h_before = at((inputs_KN, hidden_KNBH, h_before_KBH), k)
        h_prev = jnp.concatenate([h_before[None], out[:-1]])
        state, d_z = jax.lax.scan(functools.partial(step, k), state, steps, reverse=True, unroll=unroll)
        d_z = from_bits(d_z, dtype)
        d_bias = d_bias + d_z.sum((0, 1), dtype=d_bias.dtype)
        rows_RG = d_z.reshape(-1, columns_G)
        kernel_sum, d_inputs = through_inputs(features, d_z, rows_RG, input_kernel, dtype, dtype_in)
        d_input_kernel = d_input_kernel + kernel_sum
        d_recurrent_kernel = d_recurrent_kernel + product(columns(h_prev, dtype), rows_RG, dtype)
        return (state, d_input_kernel, d_bias, d_recurrent_kernel), d_inputs

    inputs_KN = chunked(inputs, columns_G)
    arrays_KN = (chunked(d_hidden_TBH, columns_G), factors_KN, _chunked_noise(noise_T, columns_G))
    chunks, steps = jnp.arange(hidden_KNBH.shape[0]), jnp.arange(hidden_KNBH.shape[1])
    # The state before a chunk is the last state of the previous chunk.
    h_before_KBH = jnp.concatenate([h_BH[None], hidden_KNBH[:-1, -1]])
    zeros = (jnp.zeros_like(input_kernel_IG), jnp.zeros_like(recurrent_kernel_HG[0]), jnp.zeros_like(recurrent_kernel_HG))
    ((d_c_BH, d_h_BH), *d_weights), d_inputs = scan_chunks(chunk, ((d_c_BH, d_h_BH), *zeros), chunks, reverse=True)
    return (None if d_inputs is None else flat(d_inputs), *d_weights, d_c_BH, d_h_BH, None)


lstm.defvjp(_lstm_fwd, _lstm_bwd)


def _with_forget_bias(initializer: Callable, forget_bias: float) -> Callable:
    def init(key, shape):
        hidden = shape[0] // GATES
        return initializer(key, shape).at[hidden : 2 * hidden].add(forget_bias)

    return init


def _gates(z_BG):
    """The activated gates. Without the barrier, XLA:CPU computes the activations again for each use."""
    return platform.cpu_barrier(activate(z_BG))


def _cell(gates_BG, c_BH, factor_BH=None):
    """(c_BH, tanh(c)_BH, h_BH) from the activated gates and the previous c. `factor_BH` multiplies g."""
    i, f, g, o = jnp.split(gates_BG, GATES, axis=-1)
    c_BH = f * c_BH + i * (g if factor_BH is None else g * factor_BH)
    tanh_c_BH = jnp.tanh(c_BH)
    return c_BH, tanh_c_BH, o * tanh_c_BH


def activate(z_BG: jax.Array) -> jax.Array:
    """The activations of all four gates by one tanh, because sigmoid(x) = tanh(x / 2) / 2 + 1 / 2.

    XLA:CPU vectorises the tanh of one array, but not the tanh of four slices.
    """
    hidden = z_BG.shape[-1] // GATES
    scale = jnp.concatenate([jnp.full(2 * hidden, 0.5), jnp.ones(hidden), jnp.full(hidden, 0.5)])[None, :]
    shift = jnp.concatenate([jnp.full(2 * hidden, 0.5), jnp.zeros(hidden), jnp.full(hidden, 0.5)])[None, :]
    scale, shift = scale.astype(z_BG.dtype), shift.astype(z_BG.dtype)
    return jnp.tanh(z_BG * scale) * scale + shift


def _factors(gates_BG, c_BH, tanh_c_BH, factor_BH, dtype):
    """The factors by which a step of the backward pass multiplies dc and dh. The module's docstring gives the formulas.

    Args:
      c_BH: c of the previous step.
      tanh_c_BH: the tanh of this step's c.
    """
    i, f, g, o = jnp.split(gates_BG, GATES, axis=-1)
    candidate = g if factor_BH is None else g * factor_BH
    through_z = [candidate * i * (1 - i), c_BH * f * (1 - f), i * (1 - g * g), tanh_c_BH * o * (1 - o)]
    if factor_BH is not None:
        through_z[2] *= factor_BH
    through_z_BG = jnp.concatenate(through_z, axis=-1)
    return as_bits(through_z_BG.astype(dtype)), o * (1 - tanh_c_BH * tanh_c_BH), f


def _divided(keeps, gradient):
    """The parts of the gradient of `kept(keeps, old, new)` that belong to `new` and to `old`. The second is None if it is 0."""
    return (gradient, None) if keeps is None else (jnp.where(keeps, 0, gradient), jnp.where(keeps, gradient, 0))


def _sum(x, y):
    return x if y is None else x + y


def _chunked_noise(noise_T, columns_G):
    return jax.tree.map(lambda x_TBH: chunked(x_TBH, columns_G), noise_T)


CELL = Cell(
    title="LSTM",
    state_title="c, h",
    keys=("model.forget_bias", "model.kernel", "model.unroll", *NOISE_KEYS),
    parameters=parameters,
    zero_state=zero_state,
    window=window,
    with_table=with_table,
    prepare=prepare,
    step=step,
    operations=operations,
    from_torch=one_bias.from_torch,
    from_keras=one_bias.from_keras,
    to_torch=one_bias.to_torch,
    to_keras=one_bias.to_keras,
    keras_layer="LSTM",
    look=look,
    noisy_window=noisy_window,
)
