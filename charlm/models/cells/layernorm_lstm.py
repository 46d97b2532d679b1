"""The LSTM with layer normalisation inside (Ba et al. 2016).

Letters: T time, B batch, I input features, H hidden units, G = 4H gate pre-activations in the order i, f, g, o.

    z = LN(x W) a_x + LN(h' R) a_h + b                LN(v) = (v - mean(v)) / sqrt(variance(v) + EPSILON)
    i, f, o = sigmoid(z_i, z_f, z_o)   g = tanh(z_g)
    c = f c' + i g                     h = o tanh(LN(c) a_c + b_c)

c' and h' are the state of the previous step. a_x, a_h and a_c are gains, and b and b_c are biases.

LN(x W) and LN(h' R) normalise all 4H values of a row together, not each gate separately. The state keeps c as it is: only the
copy of c inside the tanh is normalised. LN(x W) does not depend on the state, so it is computed for the whole window before the
loop over time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import FrozenConfigDict

from charlm.models.cells import NOISE_KEYS, Cell, Inputs, Inside, Params, deferred, is_ids, lstm, noise
from charlm.models.cells.lstm import State
from charlm.models.cells.noise import Noise
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product

EPSILON = 1e-5  # as in the code of Ba et al.
GATES = 4


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters: the parameters of the LSTM, three gains, and a second bias."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    return lstm.parameters(inputs, hidden, initial, config) | {
        "input_gain": (ones, (GATES * hidden,)),
        "recurrent_gain": (ones, (GATES * hidden,)),
        "cell_gain": (ones, (hidden,)),
        "cell_bias": (zeros, (hidden,)),
    }


def window(
    params: Params,
    inputs: Inputs,
    state: State,
    dtype: jnp.dtype,
    noise_keys_B: jax.Array | None = None,
    unroll: int = 1,
) -> tuple[jax.Array, State]:
    """Runs one layer over a window; see `Cell.window`. `noise_keys_B` is ignored, because the cell uses no random numbers."""
    del noise_keys_B
    return deferred.scan(*_recurrence(params, inputs, state, dtype), unroll)


def noisy_window(
    params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_T: Noise, unroll: int = 1
) -> tuple[jax.Array, State]:
    """Runs one layer over a window with noise; see `Cell.noisy_window`."""
    return noise.scan(_recurrence(params, inputs, state, dtype), noise_T, unroll)


def _recurrence(params: Params, inputs: Inputs, state: State, dtype: jnp.dtype) -> tuple:
    """The arguments of `deferred.scan` for one layer."""
    if is_ids(inputs):
        z_in_TBG = deferred.look_up(_input_part(params["input_kernel"], params), inputs, dtype)
    else:
        z_in_TBG = _input_part(deferred.input_products(inputs, params["input_kernel"], dtype), params)
    return _step, {"recurrent_kernel": params["recurrent_kernel"]}, _gains(params), z_in_TBG, state, dtype


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Params:
    """The params with rounded kernels. If the inputs are ids, `table` has the result of `_input_part` for each id."""
    kernel_IG = params["input_kernel"]
    prepared = {"table": _input_part(kernel_IG, params)} if ids else {"input_kernel": operand(kernel_IG, dtype, rows)}
    return params | {"recurrent_kernel": operand(params["recurrent_kernel"], dtype, rows)} | prepared


def step(
    weights: Params, x: Inputs, state: State, dtype: jnp.dtype, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """Reads one character x: floats (B, I), or ids (B,). `factor_BH` multiplies the candidate g; see `Cell.step`."""
    return _step(*_arguments(weights, x, dtype), state, factor_BH)


def look(weights: Params, x: Inputs, state: State, dtype: jnp.dtype) -> Inside:
    """The gates i, f and o, and the candidate g."""
    return lstm.inside(_gates(*_arguments(weights, x, dtype), state))


def _arguments(weights: Params, x: Inputs, dtype: jnp.dtype) -> tuple[Callable, dict[str, jax.Array], jax.Array]:
    """The arguments of `_step` for one character, without the state."""
    if "table" in weights:
        z_in_BG = jnp.take(weights["table"], x, axis=0, mode="clip")
    else:
        z_in_BG = _input_part(product(x, weights["input_kernel"], dtype), weights)
    return lambda name, left: product(left, weights[name], dtype), _gains(weights), z_in_BG


def _gates(times: Callable, gains: dict[str, jax.Array], z_in_BG: jax.Array, state: State) -> jax.Array:
    z_BG = z_in_BG + _normalised(times("recurrent_kernel", state[1])) * gains["recurrent_gain"][None, :]
    return lstm.activate(z_BG)


def _step(
    times: Callable, gains: dict[str, jax.Array], z_in_BG: jax.Array, state: State, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, State]:
    c_BH, _ = state
    i, f, g, o = jnp.split(_gates(times, gains, z_in_BG, state), GATES, axis=-1)
    c_BH = f * c_BH + i * (g if factor_BH is None else g * factor_BH)
    h_BH = o * jnp.tanh(_normalised(c_BH) * gains["cell_gain"][None, :] + gains["cell_bias"][None, :])
    return h_BH, (c_BH, h_BH)


def _gains(params: Params) -> dict[str, jax.Array]:
    return {name: params[name] for name in ("recurrent_gain", "cell_gain", "cell_bias")}


def _input_part(products: jax.Array, params: Params) -> jax.Array:
    """The part of z (…, G) that does not depend on the state, from the products (…, G) of the inputs and the input kernel."""
    gain, bias = (params[name].reshape((1,) * (products.ndim - 1) + (-1,)) for name in ("input_gain", "bias"))
    return _normalised(products) * gain + bias


def _normalised(x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + EPSILON)


CELL = Cell(
    title="LSTM with layer norm",
    state_title="c, h",
    keys=("model.forget_bias", "model.unroll", *NOISE_KEYS),
    parameters=parameters,
    zero_state=lstm.zero_state,
    window=window,
    with_table=lstm.with_table,
    prepare=prepare,
    step=step,
    operations=lstm.operations,
    look=look,
    noisy_window=noisy_window,
)
