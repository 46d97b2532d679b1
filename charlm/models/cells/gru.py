"""The gated recurrent unit (Cho et al. 2014), in the form of PyTorch, cuDNN and Keras.

    z_in = x W_in + b                   z_rec = h' W_rec
    r = sigmoid(z_in_r + z_rec_r)       z = sigmoid(z_in_z + z_rec_z)
    n = tanh(z_in_n + r m)              m = z_rec_n + b_rec
    h = (1 - z) n + z h'

h' is the state of the previous step. r is the reset gate, z the update gate, and n the candidate. z_in and z_rec are the
pre-activations of all three, in the order r, z, n. For example, z_in_n is the part of z_in for n.

The reset gate r multiplies m, which includes the recurrent product. In the paper, r multiplies h' before the product. b_rec is
a separate parameter, because r multiplies b_rec but not b.

Backward pass. dX is the gradient of the loss with respect to X. dh is the sum of two gradients: one comes from the output of
this step, the other from the next step.

    dz_in_n = dh (1 - z) (1 - n^2)          dz_rec_n = dz_in_n r          db_rec = sum_t dz_rec_n
    dz_r = dz_in_n m r (1 - r)              dz_z = dh (h' - n) z (1 - z)
    dh' = dh z + dz_rec W_rec^T

dz_r is the gradient of z_in_r and also of z_rec_r, because r depends only on the sum of both. The same holds for dz_z.

Letters: T time, B batch, I input features, H hidden units, G = 3H columns of the kernels, N steps of a chunk, V rows of an
embedding table.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from charlm.errors import UserError
from charlm.models import platform
from charlm.models.cells import Cell, Inside, Params, deferred, noise
from charlm.models.cells.chunks import backward, flat, forward, gate_products, laid_out, with_table
from charlm.models.cells.noise import Noise
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product

GATES = 3


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters.

    PyTorch and Keras have two biases for each gate. Here, r and z have one bias each, which is the sum of the two biases. n has
    two biases: its part of `bias`, and `recurrent_bias`.
    """
    del config
    columns_G = GATES * hidden
    return {
        "input_kernel": (initial.input_kernel(GATES), (inputs, columns_G)),
        "recurrent_kernel": (initial.recurrent_kernel(GATES), (hidden, columns_G)),
        "bias": (_bias(initial), (columns_G,)),
        "recurrent_bias": (initial.one_bias, (hidden,)),
    }


def zero_state(rows: int, hidden: int) -> jax.Array:
    return jnp.zeros((rows, hidden))


def window(
    params: Params,
    inputs: jax.Array,
    state: jax.Array,
    dtype: jnp.dtype,
    noise_keys_B: jax.Array | None = None,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Runs one layer over a window; see `Cell.window`. `noise_keys_B` is ignored, because a GRU uses no random numbers."""
    del noise_keys_B
    weights = (params[name] for name in ("input_kernel", "bias", "recurrent_kernel", "recurrent_bias"))
    return gru(inputs, *weights, state, dtype, unroll)


class Prepared(NamedTuple):
    """One layer's weights, in the layout that `step` needs to read one character at a time.

    Attributes:
      table_VG: float32, the input kernel plus the bias, with one row for each id. None if the inputs are floats.
      bias_G: float32.
      recurrent_bias_H: float32.
      input_kernel: the input kernel. Empty if the inputs are ids.
      recurrent_kernel: the recurrent kernel. `chunks.laid_out` explains the layout of the two kernels.
    """

    table_VG: jax.Array | None
    bias_G: jax.Array
    recurrent_bias_H: jax.Array
    input_kernel: tuple[jax.Array, ...]
    recurrent_kernel: tuple[jax.Array, ...]


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Prepared:
    """Puts the weights into the layout that `step` needs for `rows` rows."""
    input_kernel_IG, bias_G = params["input_kernel"], params["bias"]
    return Prepared(
        table_VG=input_kernel_IG + bias_G[None, :] if ids else None,
        bias_G=bias_G,
        recurrent_bias_H=params["recurrent_bias"],
        input_kernel=() if ids else laid_out([input_kernel_IG], GATES, dtype, rows),
        recurrent_kernel=laid_out([params["recurrent_kernel"]], GATES, dtype, rows),
    )


def step(
    weights: Prepared, x: jax.Array, h_BH: jax.Array, dtype: jnp.dtype, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Reads one character x: floats (B, I), or ids (B,). `factor_BH` multiplies the candidate n; see `Cell.step`.

    Training without recurrent dropout and zoneout uses `gru` instead, which is faster and has a hand-written gradient.
    """
    h_BH, _ = _stepped(weights, x, h_BH, dtype, factor_BH)
    return h_BH, h_BH


def noisy_window(
    params: Params, inputs: jax.Array, state: jax.Array, dtype: jnp.dtype, noise_T: Noise, unroll: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Runs one layer over a window with noise; see `Cell.noisy_window`."""
    return noise.scan(_recurrence(params, inputs, state, dtype), noise_T, unroll)


def _recurrence(params: Params, inputs: jax.Array, state: jax.Array, dtype: jnp.dtype) -> tuple:
    """The arguments of `deferred.scan` for one layer."""
    z_in_TBG = deferred.input_products(inputs, params["input_kernel"], dtype) + params["bias"][None, None, :]
    kernels = {"recurrent_kernel": params["recurrent_kernel"]}
    return _recurrent_step, kernels, params["recurrent_bias"], z_in_TBG, state, dtype


def _recurrent_step(
    times: Callable,
    recurrent_bias_H: jax.Array,
    z_in_BG: jax.Array,
    h_BH: jax.Array,
    factor_BH: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    h_BH, _ = _cell(z_in_BG, times("recurrent_kernel", h_BH), recurrent_bias_H, h_BH, factor_BH)
    return h_BH, h_BH


def look(weights: Prepared, x: jax.Array, h_BH: jax.Array, dtype: jnp.dtype) -> Inside:
    """The gates r and z, and the candidate n."""
    _, (rz, n, _) = _stepped(weights, x, h_BH, dtype)
    r, z = jnp.split(rz, 2, axis=-1)
    return Inside({"r": r, "z": z}, {"n": n})


def _stepped(weights, x, h_BH, dtype, factor_BH=None):
    if weights.table_VG is not None:
        z_in_BG = jnp.take(weights.table_VG, x, axis=0, mode="clip")
    else:
        z_in_BG = gate_products(weights.bias_G[None, :], (x,), weights.input_kernel, dtype)
    z_rec_BG = gate_products(jnp.zeros_like(weights.bias_G)[None, :], (h_BH,), weights.recurrent_kernel, dtype)
    return _cell(z_in_BG, z_rec_BG, weights.recurrent_bias_H, h_BH, factor_BH)


def operations(inputs: int, hidden: int, config: FrozenConfigDict) -> int:
    """Multiply-adds of one layer for one character. If the inputs are ids, `inputs` is 0, because ids are looked up."""
    del config
    return GATES * hidden * (inputs + hidden)


def from_torch(arrays: dict[str, np.ndarray]) -> Params:
    """Params from `weight_ih` (3H, I), `weight_hh` (3H, H), `bias_ih` (3H,) and `bias_hh` (3H,).

    PyTorch's order of the gates is the order of this file.
    """
    bias, recurrent_bias = _biases(arrays["bias_ih"], arrays["bias_hh"], hidden=arrays["weight_hh"].shape[1])
    return {
        "input_kernel": arrays["weight_ih"].T,
        "recurrent_kernel": arrays["weight_hh"].T,
        "bias": bias,
        "recurrent_bias": recurrent_bias,
    }


def from_keras(arrays: dict[str, np.ndarray]) -> Params:
    """Params from `kernel` (I, 3H), `recurrent_kernel` (H, 3H) and `bias` (2, 3H).

    Keras's order of the gates is z, r, n. The first row of `bias` is added to the input product, the second row to the
    recurrent product.

    Raises:
      UserError: the layer has only one bias for each gate, like a GRU with reset_after=False.
    """
    if arrays["bias"].ndim != 2:
        raise UserError("its recurrent layers must be layers of Keras's GRU with reset_after=True, which have two biases.")
    first_G, second_G = _swapped(arrays["bias"])
    bias, recurrent_bias = _biases(first_G, second_G, hidden=arrays["recurrent_kernel"].shape[0])
    return {
        "input_kernel": _swapped(arrays["kernel"]),
        "recurrent_kernel": _swapped(arrays["recurrent_kernel"]),
        "bias": bias,
        "recurrent_bias": recurrent_bias,
    }


def to_torch(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`.

    `from_torch` adds the two biases of r and z. Here the second of these two biases is set to -0.0, because x + (-0.0) equals x
    bit for bit for every number x. With 0.0 as the second bias, a first bias of -0.0 would become 0.0 in `from_torch`.
    """
    return {
        "weight_ih": params["input_kernel"].T,
        "weight_hh": params["recurrent_kernel"].T,
        "bias_ih": params["bias"],
        "bias_hh": _second_bias(params),
    }


def to_keras(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_keras`."""
    return {
        "kernel": _swapped(params["input_kernel"]),
        "recurrent_kernel": _swapped(params["recurrent_kernel"]),
        "bias": _swapped(np.stack([params["bias"], _second_bias(params)])),
    }


def _biases(first_G, second_G, hidden):
    """(bias, recurrent_bias) from the two biases of another framework."""
    rz_columns = 2 * hidden
    return np.concatenate([first_G[:rz_columns] + second_G[:rz_columns], first_G[rz_columns:]]), second_G[rz_columns:]


def _second_bias(params):
    recurrent_bias = params["recurrent_bias"]
    return np.concatenate([np.full(2 * len(recurrent_bias), -0.0, recurrent_bias.dtype), recurrent_bias])


def _swapped(array):
    """The array with its first two gates exchanged. This turns the order r, z, n into Keras's order z, r, n, and back."""
    first, second, third = np.split(array, GATES, axis=-1)
    return np.concatenate([second, first, third], axis=-1)


def _bias(initial: Initializers) -> Callable:
    """The initializer of the parameter `bias`.

    n has a second bias, the parameter `recurrent_bias`. Therefore `initial.one_bias` initialises the part of n, and
    `initial.bias` the parts of r and z.
    """

    def init(key, shape):
        hidden = shape[0] // GATES
        of_gates, of_n = jax.random.split(key)
        return jnp.concatenate([initial.bias(of_gates, (2 * hidden,)), initial.one_bias(of_n, (hidden,))])

    return init


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def gru(
    inputs: jax.Array,
    input_kernel_IG: jax.Array,
    bias_G: jax.Array,
    recurrent_kernel_HG: jax.Array,
    recurrent_bias_H: jax.Array,
    h_BH: jax.Array,
    dtype: jnp.dtype = jnp.float32,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Runs one GRU layer over a window.

    Args:
      inputs: floats (T, B, I), or ids (T, B) that select rows of the input kernel (one-hot inputs).
      input_kernel_IG: float32 (I, 3H).
      bias_G: float32 (3H,).
      recurrent_kernel_HG: float32 (H, 3H).
      recurrent_bias_H: float32 (H,), b_rec, which the reset gate multiplies.
      h_BH: float32 state before the first step.
      dtype: dtype of the operands of matrix products. Sums, state and gradients are float32.
      unroll: number of steps that XLA compiles as one iteration of a loop over the steps of a chunk.

    Returns:
      (hidden_TBH, h_BH): the float32 outputs of all steps, and the state after the last step.
    """
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG, recurrent_bias_H)
    h_BH, (hidden_KNBH, _) = _forward(inputs, weights, h_BH, dtype, unroll, residuals=False)
    return flat(hidden_KNBH), h_BH


def _forward(inputs, weights, h_BH, dtype, unroll, residuals):
    input_kernel_IG, bias_G, recurrent_kernel_HG, recurrent_bias_H = weights
    recurrent_kernel = operand(recurrent_kernel_HG, dtype, rows=h_BH.shape[0])

    def step(h_BH, z_in_BG):
        h_BH, gates = _cell(z_in_BG, product(h_BH, recurrent_kernel, dtype), recurrent_bias_H, h_BH)
        return h_BH, gates if residuals else None

    return forward(step, inputs, input_kernel_IG, bias_G, h_BH, dtype, unroll)


def _gru_fwd(inputs, input_kernel_IG, bias_G, recurrent_kernel_HG, recurrent_bias_H, h_BH, dtype, unroll):
    weights = (input_kernel_IG, bias_G, recurrent_kernel_HG, recurrent_bias_H)
    end_BH, outputs = _forward(inputs, weights, h_BH, dtype, unroll, residuals=True)
    return (flat(outputs[0]), end_BH), (inputs, input_kernel_IG, recurrent_kernel_HG, h_BH, outputs)


def _gru_bwd(dtype, unroll, saved, cotangents):
    *d_weights, d_recurrent_G, d_h_BH = backward(_factors, saved, cotangents, dtype, unroll)
    return *d_weights, d_recurrent_G[-d_h_BH.shape[-1] :], d_h_BH


gru.defvjp(_gru_fwd, _gru_bwd)


def _cell(z_in_BG, z_rec_BG, recurrent_bias_H, h_BH, factor_BH=None):
    """(h_BH, (rz, n, m)) from the two pre-activations and the previous h. rz (B, 2H) has r and z. `factor_BH` multiplies n."""
    rz_columns = 2 * h_BH.shape[-1]
    # One tanh computes both gates, because sigmoid(x) = tanh(x / 2) / 2 + 1 / 2. XLA:CPU vectorises the tanh of one array, but
    # not the tanh of two slices. Without the barrier, XLA:CPU computes the activations again for each use.
    rz = platform.cpu_barrier(jnp.tanh((z_in_BG[:, :rz_columns] + z_rec_BG[:, :rz_columns]) * 0.5) * 0.5 + 0.5)
    r, z = jnp.split(rz, 2, axis=-1)
    m = z_rec_BG[:, rz_columns:] + recurrent_bias_H[None, :]
    n = platform.cpu_barrier(jnp.tanh(z_in_BG[:, rz_columns:] + r * m))
    if factor_BH is not None:
        n = n * factor_BH
    return n + z * (h_BH - n), (rz, n, m)


def _factors(hidden_NBH, h_prev, gates):
    """The factors by which the backward loop over time multiplies dh. The module's docstring gives the formulas."""
    del hidden_NBH
    rz, n, m = gates
    r, z = jnp.split(rz, 2, axis=-1)
    through_in_n = (1 - z) * (1 - n * n)
    through_m = through_in_n * r
    return jnp.concatenate([through_m * m * (1 - r), (h_prev - n) * z * (1 - z), through_m], axis=-1), z, through_in_n


CELL = Cell(
    title="GRU",
    state_title="h",
    keys=("model.unroll", "model.weight_drop", "model.recurrent_dropout", "model.zoneout_hidden", "model.state_noise"),
    parameters=parameters,
    zero_state=zero_state,
    window=window,
    with_table=with_table,
    prepare=prepare,
    step=step,
    operations=operations,
    from_torch=from_torch,
    from_keras=from_keras,
    to_torch=to_torch,
    to_keras=to_keras,
    keras_layer="GRU",
    look=look,
    noisy_window=noisy_window,
)
