"""Tests `Cell.look`, which gives the gates of a cell and the other values inside it.

The outputs of each cell are computed again from these values, with NumPy in float64, and compared with the outputs of the
cell's `window`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from ml_collections import FrozenConfigDict

from charlm.config import keys
from charlm.models import cells
from charlm.models.initializers import initializers
from configs import base

HIDDEN, INPUTS, STEPS, ROWS = 6, 5, 9, 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_output(params, state, gates, others):
    c = gates["f"] * state["c"] + gates["i"] * others["g"]
    return gates["o"] * np.tanh(c)


def layernorm_output(params, state, gates, others):
    c = gates["f"] * state["c"] + gates["i"] * others["g"]
    normalised = (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + 1e-5)
    return gates["o"] * np.tanh(normalised * params["cell_gain"] + params["cell_bias"])


def gru_output(params, state, gates, others):
    return (1 - gates["z"]) * others["n"] + gates["z"] * state["h"]


def slstm_output(params, state, gates, others):
    c, n = (gates["f"] * state[name] + gates["i"] * new for name, new in (("c", others["z"]), ("n", 1)))
    return gates["o"] * c / n


def blended_output(params, state, gates, others):
    return (1 - gates["z"]) * state["h"] + gates["z"] * others["g"]


CASES = (
    ("lstm", {}, lstm_output),
    ("gru", {}, gru_output),
    ("layernorm_lstm", {}, layernorm_output),
    ("mogrifier_lstm", {"mogrifier_rounds": 0}, lstm_output),
    ("mogrifier_lstm", {"mogrifier_rounds": 3}, lstm_output),
    ("mogrifier_lstm", {"mogrifier_rounds": 4, "mogrifier_rank": 2}, lstm_output),
    ("slstm", {"slstm_heads": 2}, slstm_output),
    ("mingru", {}, blended_output),
    ("minlstm", {}, blended_output),
)


def watched(cell, options, kind):
    """Runs a cell with random params over random inputs.

    Returns:
      (params, inputs, states, outputs, inside). `states` has the states before each step: name → array. `outputs` are the
      outputs of the cell's `window`. `inside` is the result of `look` for each step.
    """
    config, rng = base.get_config(), np.random.default_rng(0)
    config.model.update(options)
    declared = cell.parameters(INPUTS, HIDDEN, initializers("uniform", HIDDEN, 0.5, 0.0), FrozenConfigDict(config))
    params = {name: jnp.asarray(rng.uniform(-0.9, 0.9, shape), jnp.float32) for name, (_, shape) in declared.items()}
    shape = (STEPS, ROWS) if kind == "ids" else (STEPS, ROWS, INPUTS)
    inputs = jnp.asarray(rng.integers(0, INPUTS, shape) if kind == "ids" else rng.normal(size=shape))
    inputs = inputs.astype(jnp.int32 if kind == "ids" else jnp.float32)
    state = jax.tree.map(lambda leaf: leaf + 0.25, cell.zero_state(ROWS, HIDDEN))
    outputs_TBH, _ = jax.jit(cell.window, static_argnums=3)(params, inputs, state, jnp.float32)
    weights = cell.prepare(params, ROWS, jnp.float32, kind == "ids")

    def step(state, x):
        _, after = cell.step(weights, x, state, jnp.float32)
        return after, (state, cell.look(weights, x, state, jnp.float32))

    _, (states, inside) = jax.jit(lambda state: jax.lax.scan(step, state, inputs))(state)
    in_float64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, inputs, states, outputs_TBH, inside))
    params, inputs, states, outputs_TBH, inside = in_float64
    by_name = dict(zip(cell.state_title.split(", "), jax.tree.leaves(states), strict=True))
    return params, np.eye(INPUTS)[inputs.astype(int)] if kind == "ids" else inputs, by_name, outputs_TBH, inside


@pytest.mark.parametrize("kind", [slow("floats"), "ids"])
@pytest.mark.parametrize(("name", "options", "output"), CASES, ids=[f"{name}{i}" for i, (name, _, _) in enumerate(CASES)])
def test_the_outputs_of_a_cell_follow_from_its_gates(name, options, output, kind):
    params, _, states, outputs_TBH, inside = watched(cells.named(name), options, kind)
    np.testing.assert_allclose(output(params, states, inside.gates, inside.others), outputs_TBH, atol=2e-6)
    for gate in inside.gates.values():
        assert gate.min() >= 0
        assert gate.max() <= 1


def test_the_gates_of_an_lstm_equal_its_equations():
    params, inputs, states, _, inside = watched(cells.named("lstm"), {}, "floats")
    z = inputs @ params["input_kernel"] + states["h"] @ params["recurrent_kernel"] + params["bias"]
    i, f, g, o = np.split(z, 4, axis=-1)
    for found, expected in zip((inside.gates["i"], inside.gates["f"], inside.gates["o"]), (i, f, o), strict=True):
        np.testing.assert_allclose(found, sigmoid(expected), atol=1e-6)
    np.testing.assert_allclose(inside.others["g"], np.tanh(g), atol=1e-6)


def test_the_gates_of_a_gru_equal_its_equations():
    params, inputs, states, _, inside = watched(cells.named("gru"), {}, "floats")
    z_in = inputs @ params["input_kernel"] + params["bias"]
    z_rec = states["h"] @ params["recurrent_kernel"]
    (r_in, z_in, n_in), (r_rec, z_rec, n_rec) = np.split(z_in, 3, axis=-1), np.split(z_rec, 3, axis=-1)
    r = sigmoid(r_in + r_rec)
    np.testing.assert_allclose(inside.gates["r"], r, atol=1e-6)
    np.testing.assert_allclose(inside.gates["z"], sigmoid(z_in + z_rec), atol=1e-6)
    np.testing.assert_allclose(inside.others["n"], np.tanh(n_in + r * (n_rec + params["recurrent_bias"])), atol=1e-6)


def test_the_rounds_of_a_mogrifier_scale_the_input_and_the_state_of_an_lstm():
    params, inputs, states, _, inside = watched(cells.named("mogrifier_lstm"), {"mogrifier_rounds": 3}, "floats")
    assert set(inside.gates) == {"i", "f", "o", "q0", "r1", "q2"}
    x, h = 4 * inside.gates["q0"] * inside.gates["q2"] * inputs, 2 * inside.gates["r1"] * states["h"]
    i, _, g, _ = np.split(x @ params["input_kernel"] + h @ params["recurrent_kernel"] + params["bias"], 4, axis=-1)
    np.testing.assert_allclose(inside.gates["i"], sigmoid(i), atol=1e-6)
    np.testing.assert_allclose(inside.others["g"], np.tanh(g), atol=1e-6)


def test_every_cell_except_the_rnn_has_look():
    without = {name for name in keys.KEYS["model.cell"].rule.options if cells.named(name).look is None}
    assert without == {"rnn"}
