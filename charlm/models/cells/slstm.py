"""The sLSTM of xLSTM (Beck et al. 2024): an LSTM with an exponential input gate, a normaliser n and a stabiliser m.

Letters: T time, B batch, I input features, H hidden units, N heads, D = H / N units of a head, G = 4H gate pre-activations in
the order i, f, z, o, O = 4D gate pre-activations of a head.

    u = x W + h' R + b                    c', n', h', m' are the state of the previous step
    s = sigmoid(u_f)   o = sigmoid(u_o)   z = tanh(u_z)   m = max(log s + m', u_i)
    i = exp(u_i - m)                      f = s exp(m' - m)
    c = f c' + i z                        n = f n' + i                              h = o c / n

R is block-diagonal with model.slstm_heads blocks: a unit reads only the h of the units of its own head. In
`recurrent_kernel` (H, 4D), the blocks lie one below the other.

The stabiliser prevents an overflow of exp(u_i). It does not change h, because c and n contain the same factor exp(-m). At the
beginning of a text, c, n, h and m are 0. Later, n is always at least 1. Therefore n' = 0 tells that a step is the first step of
a text. The first step uses m' = -inf instead of 0, which gives m = u_i and n = 1. With m' = 0, a very negative u_i would give
n = 0.

The paper puts a convolution, a normalisation and projections around this cell. They are not part of the cell.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.errors import UserError
from charlm.models.cells import Cell, Inputs, Inside, Params, deferred, is_ids, lstm
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product

GATES = 4

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # (c_BH, n_BH, h_BH, m_BH), float32


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters. Each block of the recurrent kernel is initialised on its own."""
    heads, of_head = _heads(hidden, config), initial.recurrent_kernel(GATES)

    def blocks(key, shape):
        rows, columns = shape
        return jnp.concatenate([of_head(each, (rows // heads, columns)) for each in jax.random.split(key, heads)])

    declared = lstm.parameters(inputs, hidden, initial, config)
    return declared | {"recurrent_kernel": (blocks, (hidden, GATES * hidden // heads))}


def zero_state(rows: int, hidden: int) -> State:
    c, n, h, m = (jnp.zeros((rows, hidden)) for _ in range(4))  # four separate arrays, because evaluation donates each of them
    return c, n, h, m


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
    u_TBG = deferred.input_products(inputs, params["input_kernel"], dtype) + params["bias"][None, None, :]
    kernel_NDO = _blocks(params["recurrent_kernel"])
    heads = kernel_NDO.shape[0]
    state = jax.tree.map(lambda leaf: _by_head(leaf, heads), state)
    kernels, u_TNBO = {"recurrent_kernel": kernel_NDO}, _by_head(u_TBG, heads, GATES)
    outputs_TNBD, state = deferred.scan(_step, kernels, None, u_TNBO, state, dtype, unroll)
    return _joined(outputs_TNBD), jax.tree.map(_joined, state)


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Params:
    """The params with rounded kernels. If the inputs are ids, `table` is the input kernel plus the bias."""
    recurrent = _blocks(params["recurrent_kernel"])
    prepared = {"recurrent_kernel": operand(recurrent, dtype, rows * recurrent.shape[0])}
    if ids:
        return prepared | {"table": params["input_kernel"] + params["bias"][None, :]}
    return prepared | {"input_kernel": operand(params["input_kernel"], dtype, rows), "bias": params["bias"]}


def step(
    weights: Params, x: Inputs, state: State, dtype: jnp.dtype, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """Reads one character x: floats (B, I), or ids (B,). `factor_BH` multiplies the candidate z; see `Cell.step`."""
    heads = weights["recurrent_kernel"].shape[0]
    factor = None if factor_BH is None else _by_head(factor_BH, heads)
    output, state = _step(*_arguments(weights, x, state, dtype), factor)
    return _joined(output), jax.tree.map(_joined, state)


def look(weights: Params, x: Inputs, state: State, dtype: jnp.dtype) -> Inside:
    """The gates i, f and o, and the candidate z. The stabiliser makes i and f at most 1."""
    times, _, u, by_head = _arguments(weights, x, state, dtype)
    i, f, u_z, u_o, _ = map(_joined, _gates(times, u, by_head))
    return Inside({"i": i, "f": f, "o": jax.nn.sigmoid(u_o)}, {"z": jnp.tanh(u_z)})


def _arguments(weights: Params, x: Inputs, state: State, dtype: jnp.dtype) -> tuple[Callable, None, jax.Array, State]:
    """The arguments of `_step` for one character."""
    if is_ids(x):
        u_BG = jnp.take(weights["table"], x, axis=0, mode="clip")
    else:
        u_BG = product(x, weights["input_kernel"], dtype) + weights["bias"][None, :]
    kernel = weights["recurrent_kernel"]
    heads = kernel.shape[0]
    times = lambda _, left: product(left, kernel, dtype)  # noqa: E731
    return times, None, _by_head(u_BG, heads, GATES), jax.tree.map(lambda leaf: _by_head(leaf, heads), state)


def operations(inputs: int, hidden: int, config: FrozenConfigDict) -> int:
    """Multiply-adds of one layer for one character. If the inputs are ids, `inputs` is 0, because ids are looked up."""
    return GATES * hidden * (inputs + hidden // _heads(hidden, config))


def _step(
    times: Callable, others: None, u: jax.Array, state: State, factor: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """One step. u is (N, B, 4D), and the arrays of the state are (N, B, D). `factor` (N, B, D) multiplies tanh(u_z)."""
    del others
    c, n, _, _ = state
    i, f, u_z, u_o, m = _gates(times, u, state)
    c = f * c + i * (jnp.tanh(u_z) if factor is None else jnp.tanh(u_z) * factor)
    n = f * n + i
    h = jax.nn.sigmoid(u_o) * c / n
    return h, (c, n, h, m)


def _gates(times: Callable, u: jax.Array, state: State) -> tuple[jax.Array, ...]:
    """(i, f, u_z, u_o, m) of a step; m is the stabiliser after the step. The shapes are those of `_step`."""
    _, n, h, m = state
    u_i, u_f, u_z, u_o = jnp.split(u + times("recurrent_kernel", h), GATES, axis=-1)
    log_f = jax.nn.log_sigmoid(u_f) + jnp.where(n == 0, -jnp.inf, m)
    m = jnp.maximum(log_f, u_i)
    return jnp.exp(u_i - m), jnp.exp(log_f - m), u_z, u_o, m


def _heads(hidden: int, config: FrozenConfigDict) -> int:
    heads = config.model.slstm_heads
    if hidden % heads:
        raise UserError(
            f"model.slstm_heads={heads}: must divide the number of units of each layer, {hidden} (model.hidden, model.widths)."
        )
    return heads


def _blocks(kernel: jax.Array) -> jax.Array:
    """The recurrent kernel (H, 4D) as its blocks (N, D, 4D)."""
    columns = kernel.shape[1]
    return kernel.reshape(-1, columns // GATES, columns)


def _by_head(x: jax.Array, heads: int, parts: int = 1) -> jax.Array:
    """Splits the units by head: (…, B, parts · H) → (…, N, B, parts · D). The array has `parts` values for each unit."""
    *before, rows, columns = x.shape
    x = x.reshape(*before, rows, parts, heads, columns // parts // heads)
    return jnp.moveaxis(x, -2, -4).reshape(*before, heads, rows, columns // heads)


def _joined(x: jax.Array) -> jax.Array:
    """Joins the units of all heads: (…, N, B, D) → (…, B, H)."""
    return jnp.moveaxis(x, -3, -2).reshape(*x.shape[:-3], x.shape[-2], -1)


CELL = Cell(
    title="sLSTM",
    state_title="c, n, h, m",
    keys=("model.forget_bias", "model.unroll", "model.weight_drop", "model.recurrent_dropout", "model.slstm_heads"),
    parameters=parameters,
    zero_state=zero_state,
    window=window,
    with_table=lstm.with_table,
    prepare=prepare,
    step=step,
    operations=operations,
    look=look,
)
