"""Tests that `gru` and `rnn` equal the layers of PyTorch and Keras, and PyTorch's formulas in NumPy with float64."""

import os
import re
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same

from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.exchange import keras as keras_weights
from charlm.exchange import torch as torch_weights
from charlm.exchange import weights as weights_module
from charlm.models import cells, stack
from charlm.models.cells import chunks
from charlm.models.initializers import initializers
from configs import base

INPUTS, HIDDEN = 5, 6
GATES = {"gru": 3, "rnn": 1}
TORCH_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def torch_arrays(name, seed=0):
    """Random arrays of one layer with PyTorch's names. All biases are random."""
    rng, rows = np.random.default_rng(seed), GATES[name] * HIDDEN
    shapes = ((rows, INPUTS), (rows, HIDDEN), (rows,), (rows,))
    return {array: rng.normal(size=shape).astype(np.float32) for array, shape in zip(TORCH_NAMES, shapes, strict=True)}


def documented(name, arrays, inputs_TBI, h_BH):
    """The outputs in float64, by the formulas in the documentation of torch.nn.GRU and torch.nn.RNN."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    weight_ih, weight_hh, bias_ih, bias_hh = (arrays[array].astype(np.float64) for array in TORCH_NAMES)
    outputs = []
    for x in inputs_TBI.astype(np.float64):
        from_x, from_h = x @ weight_ih.T + bias_ih, h_BH @ weight_hh.T + bias_hh
        if name == "rnn":
            h_BH = np.tanh(from_x + from_h)
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(from_x, 3, axis=-1), np.split(from_h, 3, axis=-1)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            h_BH = (1 - z) * np.tanh(x_n + r * h_n) + z * h_BH
        outputs.append(h_BH)
    return np.array(outputs)


def example(name, rows=3, steps=32):
    rng = np.random.default_rng(1)
    inputs, h = rng.normal(size=(steps, rows, INPUTS)), rng.normal(size=(rows, HIDDEN))
    return torch_arrays(name), inputs.astype(np.float32), h.astype(np.float32)


@pytest.mark.parametrize("name", GATES)
def test_outputs_equal_the_formulas_of_pytorch_in_float64(name):
    arrays, inputs, h = example(name)
    cell = cells.named(name)
    params = jax.tree.map(jnp.asarray, cell.from_torch(arrays))
    outputs, end = cell.window(params, jnp.asarray(inputs), jnp.asarray(h), jnp.float32)
    expected = documented(name, arrays, inputs, h)
    np.testing.assert_allclose(outputs, expected, atol=5e-6)
    np.testing.assert_array_equal(end, outputs[-1])


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("name", GATES)
def test_outputs_and_gradients_equal_the_outputs_and_gradients_of_pytorch(name, rows, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)
    arrays, inputs, h = example(name, rows)
    cell = cells.named(name)
    module = getattr(torch.nn, name.upper())(INPUTS, HIDDEN)
    module.load_state_dict({f"{array}_l0": torch.tensor(value) for array, value in arrays.items()})
    inputs_torch, h_torch = torch.tensor(inputs, requires_grad=True), torch.tensor(h, requires_grad=True)
    expected, end = module(inputs_torch, h_torch[None])
    weights = np.sin(np.arange(expected.numel(), dtype=np.float32)).reshape(expected.shape)
    ((expected * torch.tensor(weights)).sum() + 2 * end.sum()).backward()

    def value(params, inputs, h):
        outputs, end = cell.window(params, inputs, h, jnp.float32)
        return (outputs * weights).sum() + 2 * end.sum(), outputs

    arguments = (jax.tree.map(jnp.asarray, cell.from_torch(arrays)), jnp.asarray(inputs), jnp.asarray(h))
    (_, outputs), (gradients, d_inputs, d_h) = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(*arguments)
    np.testing.assert_allclose(outputs, expected.detach().numpy(), atol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-3, atol=1e-4)  # noqa: E731
    close(d_inputs, inputs_torch)
    close(d_h, h_torch)
    close(gradients["input_kernel"].T, module.weight_ih_l0)
    close(gradients["recurrent_kernel"].T, module.weight_hh_l0)
    close(gradients["bias"], module.bias_ih_l0)
    if name == "gru":
        np.testing.assert_allclose(
            gradients["recurrent_bias"], module.bias_hh_l0.grad.numpy()[2 * HIDDEN :], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", GATES)
def test_outputs_equal_the_outputs_of_keras(name, monkeypatch):
    if "keras" not in sys.modules:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    arrays, inputs, h = example(name)
    cell = cells.named(name)
    params = cell.from_torch(arrays)
    with jax.numpy_rank_promotion("allow"):
        layer = getattr(keras.layers, cell.keras_layer)(HIDDEN, return_sequences=True)
        layer.build((None, None, INPUTS))
        layer.set_weights(list(cell.to_keras(params).values()))
        expected = layer(inputs.swapaxes(0, 1), initial_state=[h])
    outputs, _ = cell.window(jax.tree.map(jnp.asarray, params), jnp.asarray(inputs), jnp.asarray(h), jnp.float32)
    np.testing.assert_allclose(outputs.swapaxes(0, 1), np.asarray(expected), atol=1e-5)
    of_keras = [np.asarray(variable.value) for variable in layer.weights]
    assert_same(cell.from_keras(dict(zip(keras_weights.ARRAYS, of_keras, strict=True))), params)


def model_of(name):
    """A config, a vocabulary and random parameters. One number of a bias is -0.0, to test that its sign is kept."""
    config, vocab, rng = base.get_config(), Vocab("abcde"), np.random.default_rng(0)
    config.model.update({"cell": name, "hidden": HIDDEN, "layers": 2, "embedding": 4})
    abstract = jax.eval_shape(stack.functions(config, len(vocab)).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)
    params[f"{name}_0"]["bias"][1] = -0.0
    return config, vocab, params


@pytest.mark.parametrize("kind", ["npz", "safetensors", "keras"])
@pytest.mark.parametrize("name", GATES)
def test_export_and_import_change_no_bit(name, kind, tmp_path):
    config, vocab, params = model_of(name)
    module = keras_weights if kind == "keras" else torch_weights
    file = tmp_path / f"model.{kind}"
    weights = weights_module.of_params(params, config, vocab, module.LAYOUT, os.fspath(file))
    file.write_bytes(module.encoded(weights, config))
    again = module.read(os.fspath(file))
    assert again.symbols == list("abcde")
    assert_same(weights_module.params_of(again, config), params)
    assert_same(*(jax.tree.map(np.signbit, each) for each in (weights_module.params_of(again, config), params)))
    if kind == "npz":
        assert np.load(file)["rnn.bias_hh_l1"].shape == (GATES[name] * HIDDEN,)


@pytest.mark.parametrize("name", GATES)
def test_keras_loads_an_exported_model(name, tmp_path, monkeypatch):
    if "keras" not in sys.modules:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    config, vocab, params = model_of(name)
    weights = weights_module.of_params(params, config, vocab, keras_weights.LAYOUT, "model.keras")
    (tmp_path / "model.keras").write_bytes(keras_weights.encoded(weights, config))
    ids_T = np.array([0, 3, 1, 4, 2], np.int32)
    with jax.numpy_rank_promotion("allow"):
        expected = keras.saving.load_model(tmp_path / "model.keras").predict(ids_T[None], verbose=0)
    functions = stack.functions(config, len(vocab))
    stepwise, carry, logits = functions.stepwise(jax.tree.map(jnp.asarray, params), 1), functions.zero_carry(1), []
    for char in ids_T:
        logits_BV, carry = functions.step(stepwise, jnp.asarray([char]), carry)
        logits.append(logits_BV[0])
    np.testing.assert_allclose(np.array(logits), expected[0], atol=1e-5)


def test_a_keras_gru_with_the_reset_before_the_product_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as h5:
        for place, shape in enumerate(((5, 18), (6, 18), (18,))):
            h5[f"layers/gru/cell/vars/{place}"] = np.zeros(shape)
        h5["layers/dense/vars/0"], h5["layers/dense/vars/1"] = np.zeros((6, 5)), np.zeros(5)
    config = base.get_config()
    config.model.update({"cell": "gru", "input": "onehot", "hidden": HIDDEN, "layers": 1})
    message = (
        "a.weights.h5 can't be used for model.cell='gru': its recurrent layers must be layers of Keras's GRU with reset_after"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        weights_module.params_of(keras_weights.read(os.fspath(tmp_path / "a.weights.h5")), config)


def test_initial_biases_have_the_ranges_of_the_initial_biases_of_pytorch():
    """PyTorch draws each bias from ±1/sqrt(H). The bias of r and z is a sum of two biases, so its bound is twice as high."""
    hidden = 400
    declared = cells.named("gru").parameters(INPUTS, hidden, initializers("pytorch", hidden, 0.1, 0.0), base.get_config())
    biases = {
        name: declared[name][0](jax.random.key(0), declared[name][1]) * np.sqrt(hidden) for name in ("bias", "recurrent_bias")
    }
    of_gates, of_candidate = np.split(np.abs(biases["bias"]), [2 * hidden])
    assert 1.5 < of_gates.max() < 2
    assert 0.9 < of_candidate.max() < 1
    assert 0.9 < np.abs(biases["recurrent_bias"]).max() < 1


def test_the_reported_number_of_gru_parameters_includes_both_biases_as_in_pytorch():
    _, _, params = model_of("gru")
    of_torch = 3 * HIDDEN * (4 + 3 * HIDDEN) + 2 * 2 * 3 * HIDDEN  # 2 layers: kernels, and 2 biases per layer
    assert stack.parameter_lines(params)[-1].split()[-1] == str(of_torch + 5 * 4 + HIDDEN * 5 + 5)
