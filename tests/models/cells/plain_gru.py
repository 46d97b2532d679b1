"""A recurrent cell that only the tests use: the GRU of Cho et al. (2014), without optimisations for speed.

The tests add this cell to the package in the way a developer would add a new cell.

    z = sigmoid(x W_z + h' R_z + b_z)     n = tanh(x W_n + b_n + r (h' R_n))
    r = sigmoid(x W_r + h' R_r + b_r)     h = (1 - z) n + z h'

x is the input, h' is the state before the step, and h is the state after the step.

The state is a dict with the key `memory`. The LSTM's state is a tuple (c, h) instead. Code that works only with the LSTM's
state therefore fails with this cell.
"""

import jax
import jax.numpy as jnp

from charlm.models.cells import Cell, by_steps, is_ids


def parameters(inputs, hidden, initial, config):
    del config
    return {
        "input_kernel": (initial.input_kernel(3), (inputs, 3 * hidden)),
        "recurrent_kernel": (initial.recurrent_kernel(3), (hidden, 3 * hidden)),
        "bias": (initial.bias, (3 * hidden,)),
    }


def zero_state(rows, hidden):
    return {"memory": jnp.zeros((rows, hidden))}


def step(params, x, state, dtype):
    h_BH = state["memory"]
    kernel = params["input_kernel"]
    x_BG = kernel[x] if is_ids(x) else x.astype(dtype).astype(kernel.dtype) @ kernel
    x_BG = x_BG + params["bias"][None, :]
    h_BG = h_BH @ params["recurrent_kernel"]
    x_z, x_r, x_n = jnp.split(x_BG, 3, axis=-1)
    h_z, h_r, h_n = jnp.split(h_BG, 3, axis=-1)
    z, r = jax.nn.sigmoid(x_z + h_z), jax.nn.sigmoid(x_r + h_r)
    h_BH = (1 - z) * jnp.tanh(x_n + r * h_n) + z * h_BH
    return h_BH, {"memory": h_BH}


CELL = Cell(
    title="GRU",
    state_title="h",
    keys=(),
    parameters=parameters,
    zero_state=zero_state,
    window=by_steps(step),
    with_table=lambda params, table_VI: {**params, "input_kernel": table_VI @ params["input_kernel"]},
    prepare=lambda params, rows, dtype, ids: params,
    step=step,
    operations=lambda inputs, hidden, config: 3 * hidden * (inputs + hidden),
)
