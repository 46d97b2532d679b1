"""Elman's recurrent network (1990) with tanh. PyTorch calls it RNN, and Keras calls it SimpleRNN.

    h = tanh(x W_in + b + h' W_rec)        h' is the state of the previous step

Backward pass. dX is the gradient of the loss with respect to X. dh is the sum of two gradients: one comes from the output of
this step, the other from the next step.

    dz = dh (1 - h^2)                      dh' = dz W_rec^T

Letters: T time, B batch, I input features, H hidden units, N steps of a chunk, V rows of an embedding table.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.models.cells import Cell, Params, deferred, noise, one_bias
from charlm.models.cells.chunks import Prepared, backward, flat, forward, pre_activations, prepared, with_table
from charlm.models.cells.noise import Noise
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters. The layer has one bias, although PyTorch's RNN has two."""
    del config
    return {
        "input_kernel": (initial.input_kernel(1), (inputs, hidden)),
        "recurrent_kernel": (initial.recurrent_kernel(1), (hidden, hidden)),
        "bias": (initial.bias, (hidden,)),
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
    """Runs one layer over a window; see `Cell.window`. `noise_keys_B` is ignored, because an RNN uses no random numbers."""
    del noise_keys_B
    return rnn(inputs, params["input_kernel"], params["bias"], params["recurrent_kernel"], state, dtype, unroll)


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Prepared:
    """Puts the weights into the layout that `step` needs for `rows` rows."""
    return prepared(params, 1, rows, dtype, ids)


def step(weights: Prepared, x: jax.Array, h_BH: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Reads one character x: floats (B, I), or ids (B,). Training without zoneout uses `rnn` instead, which is faster."""
    h_BH = jnp.tanh(pre_activations(weights, x, h_BH, dtype))
    return h_BH, h_BH


def noisy_window(
    params: Params, inputs: jax.Array, state: jax.Array, dtype: jnp.dtype, noise_T: Noise, unroll: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Runs one layer over a window with noise; see `Cell.noisy_window`."""
    return noise.scan(_recurrence(params, inputs, state, dtype), noise_T, unroll)


def _recurrence(params: Params, inputs: jax.Array, state: jax.Array, dtype: jnp.dtype) -> tuple:
    """The arguments of `deferred.scan` for one layer."""
    z_in_TBH = deferred.input_products(inputs, params["input_kernel"], dtype) + params["bias"][None, None, :]
    return _recurrent_step, {"recurrent_kernel": params["recurrent_kernel"]}, None, z_in_TBH, state, dtype


def _recurrent_step(times: Callable, others: None, z_in_BH: jax.Array, h_BH: jax.Array) -> tuple[jax.Array, jax.Array]:
    del others
    h_BH = jnp.tanh(z_in_BH + times("recurrent_kernel", h_BH))
    return h_BH, h_BH


def operations(inputs: int, hidden: int, config: FrozenConfigDict) -> int:
    """Multiply-adds of one layer for one character. If the inputs are ids, `inputs` is 0, because ids are looked up."""
    del config
    return hidden * (inputs + hidden)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def rnn(
    inputs: jax.Array,
    input_kernel_IH: jax.Array,
    bias_H: jax.Array,
    recurrent_kernel_HH: jax.Array,
    h_BH: jax.Array,
    dtype: jnp.dtype = jnp.float32,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Runs one layer over a window.

    Args:
      inputs: floats (T, B, I), or ids (T, B) that select rows of the input kernel (one-hot inputs).
      input_kernel_IH: float32 (I, H).
      bias_H: float32 (H,).
      recurrent_kernel_HH: float32 (H, H).
      h_BH: float32 state before the first step.
      dtype: dtype of the operands of matrix products. Sums, state and gradients are float32.
      unroll: number of steps that XLA compiles as one iteration of a loop over the steps of a chunk.

    Returns:
      (hidden_TBH, h_BH): the float32 outputs of all steps, and the state after the last step.
    """
    h_BH, hidden_KNBH = _forward(inputs, input_kernel_IH, bias_H, recurrent_kernel_HH, h_BH, dtype, unroll)
    return flat(hidden_KNBH), h_BH


def _forward(inputs, input_kernel_IH, bias_H, recurrent_kernel_HH, h_BH, dtype, unroll):
    recurrent_kernel = operand(recurrent_kernel_HH, dtype, rows=h_BH.shape[0])

    def step(h_BH, z_in_BH):
        return jnp.tanh(z_in_BH + product(h_BH, recurrent_kernel, dtype)), None

    h_BH, (hidden_KNBH, _) = forward(step, inputs, input_kernel_IH, bias_H, h_BH, dtype, unroll)
    return h_BH, hidden_KNBH


def _rnn_fwd(inputs, input_kernel_IH, bias_H, recurrent_kernel_HH, h_BH, dtype, unroll):
    end_BH, hidden_KNBH = _forward(inputs, input_kernel_IH, bias_H, recurrent_kernel_HH, h_BH, dtype, unroll)
    return (flat(hidden_KNBH), end_BH), (inputs, input_kernel_IH, recurrent_kernel_HH, h_BH, (hidden_KNBH, None))


def _rnn_bwd(dtype, unroll, saved, cotangents):
    *d_weights, _, d_h_BH = backward(_factors, saved, cotangents, dtype, unroll)
    return *d_weights, d_h_BH


def _factors(hidden_NBH, h_prev_NBH, saved):
    del h_prev_NBH, saved
    return 1 - hidden_NBH * hidden_NBH, None, None


rnn.defvjp(_rnn_fwd, _rnn_bwd)

CELL = Cell(
    title="RNN",
    state_title="h",
    keys=("model.unroll", "model.weight_drop", "model.zoneout_hidden", "model.state_noise"),
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
    keras_layer="SimpleRNN",
    noisy_window=noisy_window,
)
