"""Tests the cells `layernorm_lstm`, `mogrifier_lstm` and `slstm`.

The expected values are computed with NumPy in float64, from the equations of the papers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, slow
from ml_collections import FrozenConfigDict

from charlm.config import load
from charlm.errors import UserError
from charlm.models import cells, stack
from charlm.models.cells import lstm
from charlm.models.initializers import initializers
from charlm.training import train
from configs import base

HIDDEN, INPUTS, STEPS, ROWS = 6, 5, 9, 3


def configured(options):
    config = base.get_config()
    config.model.update(options)
    return FrozenConfigDict(config)


def layer(cell, options, size=0.5, dtype=np.float32):
    """Random parameters of one layer."""
    rng, initial = np.random.default_rng(0), initializers("orthogonal", HIDDEN, 0.1, 0.0)
    declared = cell.parameters(INPUTS, HIDDEN, initial, configured(options))
    return {name: jnp.asarray(rng.uniform(-size, size, shape), dtype) for name, (_, shape) in declared.items()}


def inputs_of(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(STEPS, ROWS, INPUTS)), dtype)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_gates(z):
    i, f, g, o = np.split(z, 4, axis=-1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def layernorm_step(p, x, state):
    def normalised(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    c, h = state
    recurrent = normalised(h @ p["recurrent_kernel"]) * p["recurrent_gain"]
    i, f, g, o = lstm_gates(recurrent + normalised(x @ p["input_kernel"]) * p["input_gain"] + p["bias"])
    c = f * c + i * g
    h = o * np.tanh(normalised(c) * p["cell_gain"] + p["cell_bias"])
    return h, (c, h)


def mogrifier_step(p, x, state):
    c, h = state
    # The paper numbers the rounds from 1: Q of the odd rounds scales x, and R of the even rounds scales h.
    for number in range(1, 1 + sum(name.startswith("round_bias") for name in p)):
        k = number - 1
        kernel = p[f"round_left_{k}"] @ p[f"round_right_{k}"] if f"round_left_{k}" in p else p[f"round_kernel_{k}"]
        if number % 2 == 1:
            x = 2 * sigmoid(h @ kernel + p[f"round_bias_{k}"]) * x
        else:
            h = 2 * sigmoid(x @ kernel + p[f"round_bias_{k}"]) * h
    i, f, g, o = lstm_gates(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"])
    c = f * c + i * g
    h = o * np.tanh(c)
    return h, (c, h)


def slstm_step(p, x, state):
    """The cell without a stabiliser, so its state is (c, n, h)."""
    c, n, h = state
    units, width = p["recurrent_kernel"].shape[1] // 4, p["recurrent_kernel"].shape[1]
    full = np.zeros((HIDDEN, 4, HIDDEN))
    for start in range(0, HIDDEN, units):
        block = p["recurrent_kernel"][start : start + units].reshape(units, 4, width // 4)
        full[start : start + units, :, start : start + units] = block
    i, f, z, o = np.split(x @ p["input_kernel"] + h @ full.reshape(HIDDEN, 4 * HIDDEN) + p["bias"], 4, axis=-1)
    c = sigmoid(f) * c + np.exp(i) * np.tanh(z)
    n = sigmoid(f) * n + np.exp(i)
    h = sigmoid(o) * c / n
    return h, (c, n, h)


def unstabilised(state):
    """Converts a state (c, n, h, m) of the cell `slstm` to the state (c, n, h) of `slstm_step`, in float64."""
    c, n, h, m = (np.asarray(leaf, np.float64) for leaf in state)
    return np.exp(m) * c, np.exp(m) * n, h


def by_numpy(step, params, inputs, state):
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    outputs, state = [], tuple(np.asarray(leaf, np.float64) for leaf in state)
    for x in np.asarray(inputs, np.float64):
        output, state = step(params, x, state)
        outputs.append(output)
    return np.stack(outputs), state


VARIANTS = (
    ("layernorm_lstm", {}, layernorm_step),
    ("mogrifier_lstm", {"mogrifier_rounds": 1}, mogrifier_step),
    ("mogrifier_lstm", {"mogrifier_rounds": 5}, mogrifier_step),
    ("mogrifier_lstm", {"mogrifier_rounds": 4, "mogrifier_rank": 2}, mogrifier_step),
    ("slstm", {"slstm_heads": 1}, slstm_step),
    ("slstm", {"slstm_heads": 2}, slstm_step),
)
NAMES = ("layernorm", "mogrifier_1", "mogrifier_5", "mogrifier_thin", "slstm", "slstm_heads")
each_variant = pytest.mark.parametrize(("name", "options", "step"), VARIANTS, ids=NAMES)


@each_variant
def test_a_cell_equals_the_equations_of_its_paper_with_a_carried_state(name, options, step):
    cell, inputs = cells.named(name), inputs_of()
    params, state = layer(cell, options), cell.zero_state(ROWS, HIDDEN)
    start = unstabilised(state) if name == "slstm" else state
    for _ in range(2):  # the second window goes on from the state of the first one
        outputs, state = cell.window(params, inputs, state, jnp.float32)
        expected, start = by_numpy(step, params, inputs, start)
        np.testing.assert_allclose(outputs, expected, atol=2e-6)
        for leaf, expected_leaf in zip(unstabilised(state) if name == "slstm" else state, start, strict=True):
            np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-5, atol=2e-6)


@each_variant
def test_gradients_equal_finite_differences_in_float64(name, options, step):
    del step
    with jax.enable_x64(True):
        cell, inputs = cells.named(name), inputs_of(np.float64)
        state = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.25, cell.zero_state(ROWS, HIDDEN))
        args = layer(cell, options, dtype=np.float64), inputs, state

        @jax.jit
        def value(params, inputs, state):
            leaves = jax.tree.leaves(cell.window(params, inputs, state, jnp.float64))
            return sum((leaf * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)).sum() for leaf in leaves)

        leaves, tree = jax.tree.flatten(args)
        gradients = jax.tree.leaves(jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*args))
        rng = np.random.default_rng(2)
        for position, gradient in enumerate(gradients):
            direction = rng.normal(size=gradient.shape)
            up, down = (
                value(*tree.unflatten([*leaves[:position], leaves[position] + by * direction, *leaves[position + 1 :]]))
                for by in (1e-5, -1e-5)
            )
            np.testing.assert_allclose((gradient * direction).sum(), (up - down) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "step"),
    [slow(*case) if number % 2 else case for number, case in enumerate(VARIANTS)],  # by default, one variant of each cell
    ids=NAMES,
)
@pytest.mark.parametrize("rows", [slow(1), ROWS])
def test_bfloat16_rounds_only_the_operands_of_products(name, options, step, rows):
    """Single steps equal the window, because both round the same operands. Gradients are float32, not rounded to bfloat16."""
    del step
    cell, inputs = cells.named(name), inputs_of()[:, :rows]
    params, state = layer(cell, options), cell.zero_state(rows, HIDDEN)
    window = jax.jit(cell.window, static_argnums=3)
    outputs, end = window(params, inputs, state, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, end))} == {jnp.dtype(jnp.float32)}
    weights, jitted_step, stepped = cell.prepare(params, rows, jnp.bfloat16, False), jax.jit(cell.step, static_argnums=3), []
    for x in inputs:
        output, state = jitted_step(weights, x, state, jnp.bfloat16)
        stepped.append(output)
    exact, _ = window(params, inputs, cell.zero_state(rows, HIDDEN), jnp.float32)
    assert np.abs(outputs - exact).max() > 1e-4
    np.testing.assert_allclose(outputs, exact, atol=0.05)
    np.testing.assert_allclose(outputs, jnp.stack(stepped), atol=1e-5)

    def value(params, dtype):
        outputs, _ = window(params, inputs, cell.zero_state(rows, HIDDEN), dtype)
        return (outputs * jnp.sin(jnp.arange(outputs.size)).reshape(outputs.shape)).sum()

    gradients, expected = (jax.grad(value)(params, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    for key, gradient in gradients.items():
        assert gradient.dtype == jnp.float32
        assert not np.array_equal(gradient, gradient.astype(jnp.bfloat16).astype(jnp.float32))
        cosine = (gradient * expected[key]).sum() / jnp.linalg.norm(gradient) / jnp.linalg.norm(expected[key])
        assert cosine > 0.99


def test_a_mogrifier_without_rounds_is_the_lstm_bit_for_bit():
    mogrifier, options = cells.named("mogrifier_lstm"), {"mogrifier_rounds": 0}
    params, state = layer(mogrifier, options), lstm.zero_state(ROWS, HIDDEN)
    assert params.keys() == {"input_kernel", "recurrent_kernel", "bias"}
    table_VI = jax.random.normal(jax.random.key(0), (INPUTS, INPUTS))
    ids = jnp.asarray(np.random.default_rng(1).integers(0, INPUTS, (STEPS, ROWS)), jnp.int32)
    results = []
    for cell in (mogrifier, lstm.CELL):

        def run(params, cell=cell):
            outputs, end = cell.window(cell.with_table(params, table_VI), ids, state, jnp.float32)
            prepared = cell.prepare(params, ROWS, jnp.float32, False)
            return (outputs**2).sum(), (end, cell.step(prepared, inputs_of()[0], state, jnp.float32))

        results.append(jax.jit(jax.value_and_grad(run, has_aux=True))(params))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert mogrifier.operations(INPUTS, HIDDEN, configured(options)) == lstm.CELL.operations(INPUTS, HIDDEN, configured({}))


@each_variant
def test_operations_equal_the_number_of_kernel_entries_for_every_option(name, options, step):
    del step
    cell = cells.named(name)
    entries = sum(leaf.size for leaf in layer(cell, options).values() if leaf.ndim == 2)
    assert cell.operations(INPUTS, HIDDEN, configured(options)) == entries


@pytest.mark.parametrize("size", [-300.0, 300.0])
def test_the_slstm_stays_exact_where_the_input_gate_would_leave_the_range_of_float32(size):
    """exp(300) is larger, and exp(-300) is smaller, than all positive float32 numbers. Both numbers fit in float64.

    The states begin at zero.
    """
    cell, inputs = cells.named("slstm"), inputs_of()
    params = layer(cell, {})
    params["bias"] = params["bias"].at[:HIDDEN].add(size)
    outputs, state = cell.window(params, inputs, cell.zero_state(ROWS, HIDDEN), jnp.float32)
    expected, _ = by_numpy(slstm_step, params, inputs, [np.zeros((ROWS, HIDDEN))] * 3)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)  # near 300, neighbouring float32 numbers differ by 3e-5
    assert np.abs(expected).max() > 0.1
    assert np.min(state[1]) >= 1
    gradient = jax.grad(lambda params: (cell.window(params, inputs, cell.zero_state(ROWS, HIDDEN), jnp.float32)[0] ** 2).sum())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(params)))


def test_a_head_of_the_slstm_does_not_read_the_other_heads():
    cell, inputs = cells.named("slstm"), inputs_of()
    params, zero = layer(cell, {"slstm_heads": 3}), cell.zero_state(ROWS, HIDDEN)
    outputs, _ = cell.window(params, inputs, zero, jnp.float32)
    changed = params | {"recurrent_kernel": params["recurrent_kernel"].at[2:4].add(0.5)}  # the rows of the second head
    difference = np.abs(cell.window(changed, inputs, zero, jnp.float32)[0] - outputs).max((0, 1))
    np.testing.assert_array_equal(difference > 0, [False, False, True, True, False, False])


def test_each_head_of_the_slstm_starts_with_orthogonal_kernels():
    initial = initializers("orthogonal", HIDDEN, 0.1, 0.0)
    initializer, shape = cells.named("slstm").parameters(INPUTS, HIDDEN, initial, configured({"slstm_heads": 2}))[
        "recurrent_kernel"
    ]
    blocks = np.asarray(initializer(jax.random.key(0), shape)).reshape(2, 3, 4, 3).swapaxes(1, 2).reshape(8, 3, 3)
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(3), atol=1e-5)
    assert len({block.tobytes() for block in blocks}) == 8


def test_heads_that_do_not_divide_the_units_are_refused_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load.load(TINY, small | {"model.cell": "slstm", "model.hidden": 10, "model.slstm_heads": 4})
    with pytest.raises(UserError, match=r"model\.slstm_heads=4: must divide the number of units of each layer, 10"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.model.slstm_heads = 5
    assert stack.functions(config, 11).operations == 4 * 10 * 2 + (config.model.layers - 1) * 4 * 10 * 12 + 110
