"""The LSTM with peephole connections: its gates also see the cell state c.

Gers and Schmidhuber (2000), "Recurrent nets that time and count", in the notation of Greff et al. (2017), arXiv:1503.04069.

    z = tanh(x W_z + h' R_z + b_z)
    i = sigmoid(x W_i + h' R_i + p_i c' + b_i)      f = sigmoid(x W_f + h' R_f + p_f c' + b_f)
    c = z i + c' f
    o = sigmoid(x W_o + h' R_o + p_o c + b_o)       h = o tanh(c)

c' and h' are the state of the previous step. The peepholes p are vectors. The gates i and f see c', and o sees c.

The package does not have this cell. The tests use this file in the way a user would use a file with a cell of the user's own:
`model.cell=tests/models/cells/peephole.py:PEEPHOLE`.
"""

import jax
import jax.numpy as jnp

from charlm.models.cells import Cell, by_steps, is_ids
from charlm.models.products import product


def parameters(inputs, hidden, initial, config):
    def bias(key, shape):
        return initial.bias(key, shape).at[hidden : 2 * hidden].add(config.model.forget_bias)

    return {
        "input_kernel": (initial.input_kernel(4), (inputs, 4 * hidden)),
        "recurrent_kernel": (initial.recurrent_kernel(4), (hidden, 4 * hidden)),
        "bias": (bias, (4 * hidden,)),
        "peepholes": (jax.nn.initializers.zeros, (3 * hidden,)),
    }


def zero_state(rows, hidden):
    return {"c": jnp.zeros((rows, hidden)), "h": jnp.zeros((rows, hidden))}


def step(params, x, state, dtype):
    c, h = state["c"], state["h"]
    kernel = params["input_kernel"]
    x_BG = kernel[x] if is_ids(x) else product(x, kernel, dtype)
    u_BG = x_BG + product(h, params["recurrent_kernel"], dtype) + params["bias"][None, :]
    u_i, u_f, u_z, u_o = jnp.split(u_BG, 4, axis=-1)
    p_i, p_f, p_o = jnp.split(params["peepholes"][None, :], 3, axis=-1)
    i, f = jax.nn.sigmoid(u_i + p_i * c), jax.nn.sigmoid(u_f + p_f * c)
    c = jnp.tanh(u_z) * i + c * f
    h = jax.nn.sigmoid(u_o + p_o * c) * jnp.tanh(c)
    return h, {"c": c, "h": h}


PEEPHOLE = Cell(
    title="Peephole LSTM",
    state_title="c, h",
    keys=("model.forget_bias",),
    parameters=parameters,
    zero_state=zero_state,
    window=by_steps(step),
    with_table=lambda params, table_VI: {**params, "input_kernel": table_VI @ params["input_kernel"]},
    prepare=lambda params, rows, dtype, ids: params,
    step=step,
    operations=lambda inputs, hidden, config: 4 * hidden * (inputs + hidden),
)
