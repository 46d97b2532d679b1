"""Tests every cell: the choices of `model.cell`, and a plain GRU that only the tests define."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import plain_gru
import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.checks import read_rows
from ml_collections import FrozenConfigDict

from charlm.config import keys, load
from charlm.data import batches
from charlm.inference import evaluate, restore, sample
from charlm.inference.protocol import Protocol
from charlm.models import cells, stack
from charlm.models.initializers import initializers
from charlm.rundir.run import Run
from charlm.training import opening, train
from configs import base

GRU = "plain_gru"
NAMES = (*keys.KEYS["model.cell"].rule.options, GRU)
HIDDEN, INPUTS, STEPS = 6, 5, 9


@pytest.fixture(autouse=True)
def _gru_is_a_cell(monkeypatch):
    monkeypatch.setitem(sys.modules, f"charlm.models.cells.{GRU}", plain_gru)
    monkeypatch.setitem(keys.KEYS, "model.cell", keys.KEYS["model.cell"]._replace(rule=keys.one_of(*NAMES)))


def layer(cell, inputs=INPUTS, seed=0):
    """Random parameters of one layer. No parameter is zero, so that every parameter has an effect."""
    declared = cell.parameters(inputs, HIDDEN, initializers("uniform", HIDDEN, 0.5, 0.0), base.get_config())
    keys = jax.random.split(jax.random.key(seed), len(declared))
    return {
        name: jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
        for key, (name, (_, shape)) in zip(keys, declared.items(), strict=True)
    }


def inputs_of(kind, rows):
    rng = np.random.default_rng(1)
    if kind == "ids":
        return jnp.asarray(rng.integers(0, INPUTS, (STEPS, rows)), jnp.int32)
    return jnp.asarray(rng.normal(size=(STEPS, rows, INPUTS)), jnp.float32)


def stepped(cell, params, inputs, state, dtype=jnp.float32):
    """Runs a cell over a window one step at a time, as the sampler does."""
    weights = cell.prepare(params, inputs.shape[1], dtype, cells.is_ids(inputs))
    outputs = []
    for x in inputs:
        output_BH, state = cell.step(weights, x, state, dtype)
        outputs.append(output_BH)
    return jnp.stack(outputs), state


def nonzero_state(cell, rows):
    return jax.tree.map(lambda leaf: leaf + 0.25, cell.zero_state(rows, HIDDEN))


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_window_equals_single_steps_in_value_and_gradient(name, rows, kind):  # invariants 7 and 10
    cell, inputs = cells.named(name), inputs_of(kind, rows)
    params, state = layer(cell), nonzero_state(cell, rows)

    def value(run, params):
        outputs, end = run(params, inputs, state, jnp.float32)
        leaves = [outputs, *jax.tree.leaves(end)]
        return sum((leaf * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)).sum() for leaf in leaves), (outputs, end)

    by_window, by_steps = (
        jax.jit(jax.value_and_grad(run, has_aux=True))
        for run in (lambda p: value(cell.window, p), lambda p: value(lambda *args: stepped(cell, *args), p))
    )
    (_, found), gradient = by_window(params)
    (_, expected), expected_gradient = by_steps(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, expected_gradient)


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


def test_a_new_cell_trains_resumes_evaluates_and_samples(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    overrides = small | {"model.cell": GRU, "model.layers": 2, "model.dropout": 0.2}
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
    monkeypatch.setitem(keys.KEYS, "model.cell", keys.KEYS["model.cell"]._replace(rule=keys.one_of(*NAMES)))
    assert train.train(config, interrupted) == 0
    assert read_rows(interrupted) == read_rows(uninterrupted)
    assert_same(final_params(interrupted), final_params(uninterrupted))
    assert "plain_gru_1" in final_params(uninterrupted)

    trained = restore.load(uninterrupted, "latest")
    run = Run(uninterrupted)
    encoded = batches.encode(trained.vocab, run.splits()["validation"], "validation")
    protocol = Protocol.of(trained.config, batches.Framing.of(trained.config))
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
    assert 'label="GRU 2' in (tmp_path / "net.dot").read_text()
    assert "LSTM" not in (tmp_path / "net.dot").read_text()
    assert json.loads((uninterrupted / "config.json").read_text())["model"]["cell"] == GRU
    capsys.readouterr()
