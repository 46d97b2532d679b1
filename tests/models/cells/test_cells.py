"""Tests every cell: the choices of `model.cell`, and two cells that only the tests define.

The tests add the plain GRU to the modules of charlm, like a cell of the package. They use the peephole LSTM like a cell in a
file of the user, with `model.cell=FILE.py:NAME`.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import plain_gru
import pytest
from conftest import ROOT, TINY, assert_same, final_params, slow
from faults.checks import read_rows
from ml_collections import FrozenConfigDict

from charlm.config import keys, load, rules
from charlm.data import batches
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.inference import evaluate, restore, sample
from charlm.inference.protocol import Protocol
from charlm.models import cells, stack
from charlm.models.cells import chunks, own
from charlm.models.initializers import initializers
from charlm.rundir.run import Run
from charlm.training import opening, train
from configs import base

GRU = "plain_gru"
PEEPHOLE = f"{pathlib.Path(__file__).with_name('peephole.py')}:PEEPHOLE"
IN_PACKAGE = keys.KEYS["model.cell"].rule.options
NAMES = (*IN_PACKAGE, GRU, pytest.param(PEEPHOLE, id="peephole"))
HIDDEN, INPUTS, STEPS = 6, 5, 9
NOISE = {
    "model.dropout_kind": "variational",
    "model.dropout_input": 0.1,
    "model.weight_drop": 0.3,
    "model.embedding_dropout": 0.1,
    "model.recurrent_dropout": 0.1,
    "model.zoneout_cell": 0.4,
    "model.zoneout_hidden": 0.1,
    "model.state_noise": 0.2,
    "model.ar": 2.0,
    "model.tar": 1.0,
}


@pytest.fixture(autouse=True)
def _more_cells(monkeypatch):
    monkeypatch.setitem(sys.modules, f"charlm.models.cells.{GRU}", plain_gru)
    rule = rules.one_of(*IN_PACKAGE, GRU, PEEPHOLE)
    monkeypatch.setitem(keys.KEYS, "model.cell", keys.KEYS["model.cell"]._replace(rule=rule))
    config = base.get_config()
    config.model.cell = PEEPHOLE
    own.load(config)


def layer(cell, inputs=INPUTS, seed=0):
    """Random parameters of one layer. No parameter is zero, so that every parameter has an effect."""
    declared = cell.parameters(inputs, HIDDEN, initializers("uniform", HIDDEN, 0.5, 0.0), base.get_config())
    keys = jax.random.split(jax.random.key(seed), len(declared))
    return {
        name: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
        for key, (name, (_, shape)) in zip(keys, declared.items(), strict=True)
    }


def inputs_of(kind, rows, steps=STEPS):
    rng = np.random.default_rng(1)
    if kind == "ids":
        return jnp.asarray(rng.integers(0, INPUTS, (steps, rows)), jnp.int32)
    return jnp.asarray(rng.normal(size=(steps, rows, INPUTS)), jnp.float32)


def stepped(cell, params, inputs, state, dtype=jnp.float32):
    """Runs a cell over a window one step at a time, as the sampler does."""
    weights = cell.prepare(params, inputs.shape[1], dtype, cells.is_ids(inputs))
    state, outputs = jax.lax.scan(lambda state, x: cell.step(weights, x, state, dtype)[::-1], state, inputs)
    return outputs, state


def weighted_sum(outputs, state):
    """A weighted sum of all results of a window. The weights differ, so that errors in the gradient do not cancel."""
    leaves = [outputs, *jax.tree.leaves(state)]
    return sum((leaf * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)).sum() for leaf in leaves)


def has_products(params, kind) -> bool:
    """Whether the cell multiplies by a matrix. With ids, a cell without a recurrent kernel only looks up rows of a table."""
    return kind == "floats" or sum(leaf.ndim == 2 for leaf in params.values()) > 1


def nonzero_state(cell, rows):
    return jax.tree.map(lambda leaf: leaf + 0.25, cell.zero_state(rows, HIDDEN))


# The fast cells split a window of 32 steps into two chunks, and 16 rows of float32 fill the widest vector of a CPU.
@pytest.mark.parametrize(
    ("rows", "steps", "kind"),
    [
        *((1, STEPS, "ids"), (16, 32, "floats")),
        *(slow(*each) for each in ((1, STEPS, "floats"), (3, STEPS, "floats"), (3, STEPS, "ids"), (16, 32, "ids"))),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_window_equals_single_steps_in_value_and_gradient(name, rows, steps, kind, monkeypatch):  # invariants 7 and 10
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)  # with the usual CHUNK_BYTES, a small window is always one chunk
    cell, inputs = cells.named(name), inputs_of(kind, rows, steps)
    params, state = layer(cell), nonzero_state(cell, rows)

    def value(run, params):
        outputs, end = run(params, inputs, state, jnp.float32)
        return weighted_sum(outputs, end), (outputs, end)

    by_window, by_steps = (
        jax.jit(jax.value_and_grad(run, has_aux=True))
        for run in (lambda p: value(cell.window, p), lambda p: value(lambda *args: stepped(cell, *args), p))
    )
    (_, found), gradient = by_window(params)
    (_, expected), expected_gradient = by_steps(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), gradient, expected_gradient)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences_in_float64(name, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)
    cell, rng = cells.named(name), np.random.default_rng(2)
    with jax.enable_x64(True):
        params, state, inputs = (
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), each)
            for each in (layer(cell), nonzero_state(cell, 2), inputs_of("floats", 2, steps=32))
        )
        arguments, structure = jax.tree.flatten((params, inputs, state))
        value = jax.jit(lambda arguments: weighted_sum(*cell.window(*structure.unflatten(arguments), jnp.float64)))
        directions = [rng.normal(size=leaf.shape) for leaf in arguments]
        gradients = jax.grad(value)(arguments)
        for position, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
            shifted = [
                value([leaf + by * direction if k == position else leaf for k, leaf in enumerate(arguments)])
                for by in (1e-5, -1e-5)
            ]
            assert gradient.dtype == jnp.float64
            difference = (shifted[0] - shifted[1]) / 2e-5
            np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["floats", slow("ids")])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_rounds_products_but_keeps_float32_results(name, kind):
    cell, inputs = cells.named(name), inputs_of(kind, 3, steps=32)
    params, state = layer(cell), nonzero_state(cell, 3)

    def value(dtype, run, params):
        outputs, end = run(params, inputs, state, dtype)
        return weighted_sum(outputs, end), (outputs, end)

    ((_, found), gradient), ((_, expected), expected_gradient) = (
        jax.jit(jax.value_and_grad(lambda params, dtype=dtype: value(dtype, cell.window, params), has_aux=True))(params)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((found, gradient))} == {jnp.dtype(jnp.float32)}
    error = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True))
    # The plain GRU rounds its inputs if they are floats, and rounds nothing else.
    is_exact = (name, kind) == (GRU, "ids") or not has_products(params, kind)
    assert error == 0 if is_exact else 0 < error < 0.05
    # The slope of minGRU's candidate jumps at 0, so rounding can change the gradient of an element by a factor of 4.
    for leaf, expected_leaf in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        assert np.linalg.norm(leaf - expected_leaf) < 0.08 * np.linalg.norm(expected_leaf)
    by_steps = stepped(cell, params, inputs, state, jnp.bfloat16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), found, by_steps)


@pytest.mark.parametrize("rows", [slow(1), 16])
@pytest.mark.parametrize("name", NAMES)
def test_windows_gradients_and_steps_can_be_lowered_for_every_platform(name, rows):
    cell = cells.named(name)
    params, state = layer(cell), cell.zero_state(rows, HIDDEN)
    for dtype, kind in ((jnp.float32, "floats"), (jnp.bfloat16, "ids")):
        inputs = inputs_of(kind, rows, steps=32)

        def window(params, inputs=inputs, dtype=dtype):
            return weighted_sum(*cell.window(params, inputs, state, dtype))

        def step(params, inputs=inputs, dtype=dtype, ids=kind == "ids"):
            return cell.step(cell.prepare(params, rows, dtype, ids), inputs[0], state, dtype)

        traced = [jax.jit(each).trace(params) for each in (jax.value_and_grad(window), step)]
        for platform in ("cpu", "cuda", "rocm", "tpu"):
            for each in traced:
                text = each.lower(lowering_platforms=(platform,)).as_text()
                assert "func.func public @main" in text
                if has_products(params, kind):
                    assert "stablehlo.dot_general" in text


@pytest.mark.parametrize("name", NAMES)
def test_ids_give_the_same_result_as_the_table_rows_that_they_select(name):
    cell, ids = cells.named(name), inputs_of("ids", 3)
    params, state = layer(cell), nonzero_state(cell, 3)
    table_VI = jax.random.normal(jax.random.key(7), (INPUTS, INPUTS))
    found = cell.window(cell.with_table(params, table_VI), ids, state, jnp.float32)
    expected = cell.window(params, table_VI[ids], state, jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_starts_at_zero_and_can_be_carried_to_the_next_window(name):  # invariant 3
    cell, inputs = cells.named(name), inputs_of("floats", 3)
    params, state = layer(cell), cell.zero_state(3, HIDDEN)
    for leaf in jax.tree.leaves(state):
        assert leaf.shape[0] == 3
        assert leaf.dtype == jnp.float32
        assert not leaf.any()
    buffers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
    assert len(buffers) == len(jax.tree.leaves(state))  # evaluation donates the state, and a buffer can be donated only once
    whole, end = cell.window(params, inputs, state, jnp.float32)
    first, between = cell.window(params, inputs[:4], state, jnp.float32)
    second, end_of_second = cell.window(params, inputs[4:], between, jnp.float32)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second]), atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, end_of_second)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_do_not_depend_on_later_inputs(name):  # invariant 5
    cell, inputs = cells.named(name), inputs_of("floats", 2)
    params, state = layer(cell), cell.zero_state(2, HIDDEN)
    outputs, _ = cell.window(params, inputs, state, jnp.float32)
    changed, _ = cell.window(params, inputs.at[5].add(1.0), state, jnp.float32)
    np.testing.assert_array_equal(changed[:5], outputs[:5])
    assert np.abs(changed[5] - outputs[5]).max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_operations_equal_the_number_of_kernel_entries(name):
    cell = cells.named(name)
    params, config = layer(cell), FrozenConfigDict(base.get_config())
    assert cell.operations(INPUTS, HIDDEN, config) == sum(leaf.size for leaf in params.values() if leaf.ndim == 2)


def test_each_layer_and_row_gets_a_different_noise_key(monkeypatch):
    """If `apply` gets no random keys, the cell gets no noise keys. Otherwise, 2 layers and 3 rows get 6 different keys."""
    seen, plain_window = [], plain_gru.CELL.window

    def window(params, inputs, state, dtype, noise_keys_B=None):
        if noise_keys_B is not None:
            seen.append(np.asarray(jax.random.key_data(noise_keys_B)))
        return plain_window(params, inputs, state, dtype)

    monkeypatch.setattr(plain_gru, "CELL", plain_gru.CELL._replace(window=window))
    config = base.get_config()
    config.model.update({"cell": GRU, "layers": 2, "hidden": 6, "embedding": 5})
    functions = stack.functions(config, 11)
    params = functions.init(jax.random.key(0))
    ids_BT = np.zeros((3, 4), np.int32)
    batch = batches.Batch(ids_BT, ids_BT, np.ones((3, 4), np.float32), np.ones(3, bool))
    functions.apply(params, batch, functions.zero_carry(3))
    assert seen == []
    functions.apply(params, batch, functions.zero_carry(3), jax.random.split(jax.random.key(1), 3))
    assert len({row.tobytes() for layer_keys in seen for row in layer_keys}) == 6


def test_config_keys_that_the_chosen_cell_does_not_read_are_listed():
    config = base.get_config()
    config.model.forget_bias = 2.0
    assert stack.unread_keys(config) == []
    config.model.cell = GRU
    assert stack.unread_keys(config) == ["model.forget_bias"]
    config.model.forget_bias = keys.KEYS["model.forget_bias"].default
    assert stack.unread_keys(config) == []


@pytest.mark.parametrize(
    ("name", "regularisers"),
    [slow("lstm", NOISE), *(slow(name, {}) for name in (GRU, *IN_PACKAGE))],
)
def test_a_cell_trains_resumes_evaluates_and_samples(name, regularisers, small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    overrides = small | {"model.cell": name, "model.layers": 2, "model.dropout": 0.2} | regularisers
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    assert train.train(load.load(TINY, overrides), uninterrupted) == 0

    # The exception stops the training between two checkpoints, as `kill -9` could.
    config = load.load(TINY, overrides)
    original = train.steps_at_once

    def killed(setup, step):
        if step >= 4:
            raise KeyboardInterrupt
        return original(setup, step)

    monkeypatch.setattr(train, "steps_at_once", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, interrupted)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, f"charlm.models.cells.{GRU}", plain_gru)
    monkeypatch.setitem(keys.KEYS, "model.cell", keys.KEYS["model.cell"]._replace(rule=rules.one_of(*IN_PACKAGE, GRU)))
    assert train.train(config, interrupted) == 0
    assert read_rows(interrupted) == read_rows(uninterrupted)
    assert_same(final_params(interrupted), final_params(uninterrupted))
    assert f"{name}_1" in final_params(uninterrupted)

    trained = restore.load(uninterrupted, "latest")
    run = Run(uninterrupted)
    encoded = encode(trained.vocab, run.splits()["validation"], "validation")
    protocol = Protocol.of(trained.config, Framing.of(trained.config))
    nats, chars = evaluate.evaluator(trained.functions)(trained.params, encoded, protocol)
    logged = [row for row in run.rows() if row["split"] == "validation"][-1]
    assert nats / chars == pytest.approx(logged["nats"], abs=1e-6)

    generate = sample.sampler(trained.functions, trained.vocab)
    ids_BN = np.concatenate(list(generate(trained.params, trained.vocab.encode("a"), 2, 30, 0.8, jax.random.key(0))), axis=1)
    assert ids_BN.shape == (2, 30)
    windowed = sample.sampler(trained.functions, trained.vocab, window=4)
    assert (
        len(np.concatenate(list(windowed(trained.params, trained.vocab.encode("ab"), 1, 5, 0.0, jax.random.key(0))), 1)[0]) == 5
    )

    assert opening.describe_only(config, str(tmp_path / "net.dot"), 2) == 0
    title = cells.named(name).title
    assert f'label="{title} 2' in (tmp_path / "net.dot").read_text()
    assert "LSTM" in title or "LSTM" not in (tmp_path / "net.dot").read_text()
    assert json.loads((uninterrupted / "config.json").read_text())["model"]["cell"] == name
    capsys.readouterr()
