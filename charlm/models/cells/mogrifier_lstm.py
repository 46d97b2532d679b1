"""The Mogrifier LSTM (Melis et al. 2020): before each step of an LSTM, the input and the state scale each other in turn.

Letters: T time, B batch, I input features, H hidden units, K rank, V rows of a table.

The rounds k = 0, 1, … model.mogrifier_rounds - 1 replace x and h in turn. x is the input, and h is the h of the previous step:

    k even: x = 2 sigmoid(h Q_k + b_k) x              k odd: h = 2 sigmoid(x R_k + b_k) h

Then a step of the LSTM of `lstm.py` reads x and h. The paper numbers the rounds from 1. The paper has no bias b_k, but the code
of its authors has this bias. Q_k and R_k are full matrices if model.mogrifier_rank is 0. Otherwise each of them is the product
of two thin matrices. Without rounds, the cell is exactly the LSTM.

The scaled x depends on the state. So this cell can't multiply the inputs of all steps by the input kernel before the loop over
time. If the inputs are ids, each step therefore needs the features of the id. `with_table` adds the features of all ids to the
params, as `table`.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.models.cells import NOISE_KEYS, Cell, Inputs, Inside, Params, deferred, is_ids, lstm, noise
from charlm.models.cells.chunks import input_dtype
from charlm.models.cells.lstm import State
from charlm.models.cells.noise import Noise
from charlm.models.initializers import Initializers
from charlm.models.products import operand, product

GATES = 4


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters.

    Round k has `round_bias_k` and, if model.mogrifier_rank is 0, `round_kernel_k`. Otherwise the kernel of round k is the
    product of `round_left_k` and `round_right_k`.
    """
    declared = lstm.parameters(inputs, hidden, initial, config)
    rounds, rank = _rounds_and_rank(config)
    kernel = initial.input_kernel(1)
    for k in range(rounds):
        rows, columns = (hidden, inputs) if k % 2 == 0 else (inputs, hidden)
        if rank:
            declared |= {f"round_left_{k}": (kernel, (rows, rank)), f"round_right_{k}": (kernel, (rank, columns))}
        else:
            declared[f"round_kernel_{k}"] = (kernel, (rows, columns))
        declared[f"round_bias_{k}"] = (initial.bias, (columns,))
    return declared


def window(
    params: Params,
    inputs: Inputs,
    state: State,
    dtype: jnp.dtype,
    noise_keys_B: jax.Array | None = None,
    unroll: int = 1,
) -> tuple[jax.Array, State]:
    """Runs one layer over a window; see `Cell.window`. `noise_keys_B` is ignored, because the cell uses no random numbers."""
    if not _round_biases(params):
        return lstm.window(params, inputs, state, dtype, noise_keys_B, unroll)
    return deferred.scan(*_recurrence(params, inputs, state, dtype), unroll)


def noisy_window(
    params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_T: Noise, unroll: int = 1
) -> tuple[jax.Array, State]:
    """Runs one layer over a window with noise; see `Cell.noisy_window`."""
    if not _round_biases(params):
        return lstm.noisy_window(params, inputs, state, dtype, noise_T, unroll)
    return noise.scan(_recurrence(params, inputs, state, dtype), noise_T, unroll)


def _recurrence(params: Params, inputs: Inputs, state: State, dtype: jnp.dtype) -> tuple:
    """The arguments of `deferred.scan` for one layer."""
    dtype = input_dtype(params["input_kernel"], dtype)
    step_of_layer = functools.partial(_step, _is_thin(params))
    return step_of_layer, _kernels(params), _biases(params), _features(params, inputs, dtype), state, dtype


def with_table(params: Params, table_VI: jax.Array) -> Params:
    """The params for inputs that are ids: `table` holds the features of each id."""
    return {**params, "table": table_VI} if _round_biases(params) else lstm.with_table(params, table_VI)


def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Params | lstm.Prepared:
    """The params with rounded kernels. If the cell has no rounds, the result of `lstm.prepare` instead."""
    if not _round_biases(params):
        return lstm.prepare(params, rows, dtype, ids)
    dtype = input_dtype(params["input_kernel"], dtype)
    return params | {name: operand(kernel, dtype, rows) for name, kernel in _kernels(params).items()}


def step(
    weights: Params | lstm.Prepared, x: Inputs, state: State, dtype: jnp.dtype, factor_BH: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """Reads one character x: floats (B, I), or ids (B,). `factor_BH` multiplies the candidate g; see `Cell.step`."""
    if isinstance(weights, lstm.Prepared):
        return lstm.step(weights, x, state, dtype, factor_BH)
    return _step(*_arguments(weights, x, dtype), state, factor_BH)


def look(weights: Params | lstm.Prepared, x: Inputs, state: State, dtype: jnp.dtype) -> Inside:
    """The gates i, f and o, the candidate g, and the sigmoid of each round, which is half of the factor of x or h.

    `q0` is the sigmoid of round 0, which scales x. `r1` is the sigmoid of round 1, which scales h. The other rounds are named
    in the same way.
    """
    if isinstance(weights, lstm.Prepared):
        return lstm.look(weights, x, state, dtype)
    gates_BG, factors = _gates(*_arguments(weights, x, dtype), state)
    found = lstm.inside(gates_BG)
    return found._replace(gates=found.gates | {f"{'qr'[k % 2]}{k}": each / 2 for k, each in enumerate(factors)})


def _arguments(weights: Params, x: Inputs, dtype: jnp.dtype) -> tuple[bool, Callable, dict[str, Any], jax.Array]:
    """The arguments of `_step` for one character, without the state."""
    dtype = input_dtype(weights["input_kernel"], dtype)
    times = lambda name, left: product(left, weights[name], dtype)  # noqa: E731
    return _is_thin(weights), times, _biases(weights), _features(weights, x, dtype)


def operations(inputs: int, hidden: int, config: FrozenConfigDict) -> int:
    """Multiply-adds of one layer for one character.

    If the inputs are ids, `inputs` is 0. The kernels still multiply the features of the id at every step. This function does
    not know the number of these features, so it uses `hidden` instead.
    """
    rounds, rank = _rounds_and_rank(config)
    if rounds == 0:
        return lstm.operations(inputs, hidden, config)
    inputs = inputs or hidden
    return lstm.operations(inputs, hidden, config) + rounds * (rank * (inputs + hidden) if rank else inputs * hidden)


def _step(
    is_thin: bool,
    times: Callable,
    biases: dict[str, Any],
    x_BI: jax.Array,
    state: State,
    factor_BH: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    gates_BG, _ = _gates(is_thin, times, biases, x_BI, state)
    i, f, g, o = jnp.split(gates_BG, GATES, axis=-1)
    c_BH = f * state[0] + i * (g if factor_BH is None else g * factor_BH)
    h_BH = o * jnp.tanh(c_BH)
    return h_BH, (c_BH, h_BH)


def _gates(
    is_thin: bool, times: Callable, biases: dict[str, Any], x_BI: jax.Array, state: State
) -> tuple[jax.Array, list[jax.Array]]:
    """The four activated gates, and the factors of each round."""

    def scale(k, source):  # the factors of round k, from the one of x and h that is not scaled
        if is_thin:
            product_of_round = times(f"round_right_{k}", times(f"round_left_{k}", source))
        else:
            product_of_round = times(f"round_kernel_{k}", source)
        return 2 * jax.nn.sigmoid(product_of_round + biases["rounds"][k][None, :])

    (_, h_BH), factors = state, []
    for k in range(len(biases["rounds"])):
        factors.append(scale(k, h_BH if k % 2 == 0 else x_BI))
        if k % 2 == 0:
            x_BI = factors[k] * x_BI
        else:
            h_BH = factors[k] * h_BH
    z_BG = times("kernel", jnp.concatenate([x_BI, h_BH], axis=-1)) + biases["bias"][None, :]
    return lstm.activate(z_BG), factors


def _rounds_and_rank(config: FrozenConfigDict) -> tuple[int, int]:
    return config.model.mogrifier_rounds, config.model.mogrifier_rank


def _is_thin(params: Params) -> bool:
    return "round_left_0" in params


def _kernels(params: Params) -> Params:
    """The kernels that a step uses. The input kernel and the recurrent kernel are joined to one kernel (I + H, 4H)."""
    of_rounds = {name: array for name, array in params.items() if name.startswith("round") and array.ndim == 2}
    return of_rounds | {"kernel": jnp.concatenate([params["input_kernel"], params["recurrent_kernel"]])}


def _round_biases(params: Params) -> list[jax.Array]:
    """The bias of each round. The number of these biases tells the number of rounds."""
    names = (f"round_bias_{k}" for k in itertools.count())
    return [params[name] for name in itertools.takewhile(params.__contains__, names)]


def _biases(params: Params) -> dict[str, Any]:
    return {"bias": params["bias"], "rounds": _round_biases(params)}


def _features(params: Params, inputs: Inputs, dtype: jnp.dtype) -> jax.Array:
    """The features (…, I) of the inputs. Inputs that are floats are returned as they are.

    The features of ids are rows of `table`. If the params have no `table`, they are one-hot vectors.
    """
    if not is_ids(inputs):
        return inputs
    if "table" in params:
        return deferred.look_up(params["table"], inputs, dtype)
    return jax.nn.one_hot(inputs, params["input_kernel"].shape[0])


CELL = Cell(
    title="Mogrifier LSTM",
    state_title="c, h",
    keys=("model.forget_bias", "model.unroll", *NOISE_KEYS, "model.mogrifier_rounds", "model.mogrifier_rank"),
    parameters=parameters,
    zero_state=lstm.zero_state,
    window=window,
    with_table=with_table,
    prepare=prepare,
    step=step,
    operations=operations,
    look=look,
    noisy_window=noisy_window,
)
