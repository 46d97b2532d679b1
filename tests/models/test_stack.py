"""Tests that the network equals a network of Flax's LSTM cells, and that a carried state does not change the results."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from charlm.data.batches import Batch
from charlm.models import stack
from charlm.models.dropout import dropout
from configs import base

VOCAB = 11


def build(**keys):
    config = base.get_config()
    config.model.update({"hidden": 16, "layers": 2, "embedding": 7, **keys})
    functions = stack.functions(config, VOCAB)
    return functions, jax.jit(functions.init)(jax.random.key(1))


def batch_of(ids_BT, reset=False, scored=None):
    targets_BS = np.roll(ids_BT, -1, axis=1)[:, -(scored or ids_BT.shape[1]) :]
    return Batch(ids_BT, targets_BS, np.ones(targets_BS.shape, np.float32), np.full(len(ids_BT), reset))


def ids(rows, steps, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, steps)).astype(np.int32)


class FlaxStack(nn.Module):
    """The same network, built from Flax's modules."""

    @nn.compact
    def __call__(self, inputs_BT):
        x = nn.Embed(VOCAB, 7, name="embedding")(inputs_BT)
        for index in range(2):
            x = nn.RNN(nn.OptimizedLSTMCell(16, name=f"cell_{index}"))(x)
        return nn.Dense(VOCAB, name="head")(x)


def as_flax(params):
    """The parameters of charlm with the names that Flax uses. A Flax cell has separate kernels for the gates i, f, g, o."""
    tree = {
        "embedding": {"embedding": params["embedding"]},
        "head": {"kernel": params["head_kernel"], "bias": params["head_bias"]},
    }
    for index in range(2):
        layer = params[f"lstm_{index}"]
        cell = {}
        for gate, part in zip("ifgo", range(4), strict=True):
            columns = slice(16 * part, 16 * (part + 1))
            cell[f"i{gate}"] = {"kernel": layer["input_kernel"][:, columns]}
            cell[f"h{gate}"] = {"kernel": layer["recurrent_kernel"][:, columns], "bias": layer["bias"][columns]}
        tree[f"cell_{index}"] = cell
    return {"params": tree}


def test_logits_equal_the_logits_of_a_flax_lstm_with_the_same_weights():
    functions, params = build()
    inputs_BT = ids(3, 20)
    logits, _ = functions.apply(params, batch_of(inputs_BT, reset=True), functions.zero_carry(3))
    np.testing.assert_allclose(logits, FlaxStack().apply(as_flax(params), inputs_BT), atol=2e-6)


def test_a_model_with_parameters_traces_no_initializer_and_refuses_another_shape(monkeypatch):
    functions, params = build(norm=True, tie=True, cell="rnn")  # the LSTM uses eval_shape, as Flax does for an initializer
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("an initializer was traced"))
    arguments = (batch_of(ids(3, 4)), functions.zero_carry(3))
    functions.apply(params, *arguments)
    with pytest.raises(ValueError, match=r"head_bias has the shape \(12,\): must be \(11,\)"):
        functions.apply(params | {"head_bias": np.zeros(12, np.float32)}, *arguments)


@pytest.mark.parametrize("encoding", ["embedding", "onehot", "scalar"])
def test_one_pass_equals_two_passes_with_carried_state(encoding):  # invariant 3
    functions, params = build(input=encoding)
    inputs_BT = ids(2, 40)
    whole, end = functions.apply(params, batch_of(inputs_BT), functions.zero_carry(2))
    first, carry = functions.apply(params, batch_of(inputs_BT[:, :20]), functions.zero_carry(2))
    second, end_of_second = functions.apply(params, batch_of(inputs_BT[:, 20:]), carry)
    np.testing.assert_allclose(whole, np.concatenate([first, second], axis=1), atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, end_of_second)


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (3, "bfloat16"), slow(1, "bfloat16"), slow(3, "float32")])
@pytest.mark.parametrize("encoding", ["embedding", "onehot", "scalar"])
def test_single_character_steps_equal_a_pass_over_the_window(encoding, dtype, rows):
    functions, params = build(input=encoding, dtype=dtype)
    inputs_BT = ids(rows, 12)
    logits, end = jax.jit(functions.apply)(params, batch_of(inputs_BT), functions.zero_carry(rows))
    weights, carry, step = functions.stepwise(params, rows), functions.zero_carry(rows), jax.jit(functions.step)
    for position in range(12):
        logits_BV, carry = step(weights, inputs_BT[:, position], carry)
        # In bfloat16, the same value may be rounded up in one computation and down in the other. The states of the two
        # computations then differ by 2^-9 of their size.
        np.testing.assert_allclose(logits_BV, logits[:, position], atol=2e-6 if dtype == "float32" else 4e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 if dtype == "float32" else 4e-3), carry, end)


def test_reset_rows_start_from_zero_and_other_rows_keep_their_state():
    functions, params = build()
    inputs_BT = ids(2, 10)
    carry = jax.tree.map(lambda leaf: leaf + 0.5, functions.zero_carry(2))
    mixed = batch_of(inputs_BT)._replace(reset_B=np.array([True, False]))
    logits, _ = functions.apply(params, mixed, carry)
    fresh, _ = functions.apply(params, batch_of(inputs_BT), functions.zero_carry(2))
    continued, _ = functions.apply(params, batch_of(inputs_BT), carry)
    np.testing.assert_allclose(logits[0], fresh[0], atol=1e-6)
    np.testing.assert_allclose(logits[1], continued[1], atol=1e-6)
    assert np.abs(fresh[1] - continued[1]).max() > 1e-3


def test_logits_do_not_depend_on_later_inputs():  # invariant 5
    functions, params = build()
    inputs_BT = ids(1, 24)
    logits, _ = functions.apply(params, batch_of(inputs_BT), functions.zero_carry(1))
    for position in (0, 9, 23):
        changed_BT = inputs_BT.copy()
        changed_BT[:, position] = (changed_BT[:, position] + 1) % VOCAB
        changed, _ = functions.apply(params, batch_of(changed_BT), functions.zero_carry(1))
        np.testing.assert_array_equal(changed[:, :position], logits[:, :position])
        assert np.abs(changed[:, position] - logits[:, position]).max() > 1e-6


def test_with_fewer_targets_than_inputs_only_the_last_positions_are_scored():
    functions, params = build()
    whole, _ = functions.apply(params, batch_of(ids(2, 12)), functions.zero_carry(2))
    last, _ = functions.apply(params, batch_of(ids(2, 12), scored=1), functions.zero_carry(2))
    np.testing.assert_allclose(last, whole[:, -1:], atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "vocab", "count"),
    [
        # With H units, I inputs and V symbols, a layer has 4H(I + H + 1) parameters and the head has HV + V parameters.
        # The published count of the second case includes two biases per layer, as in PyTorch. We subtract one bias per layer.
        ({"input": "onehot", "layers": 1, "hidden": 128}, 84, 119_892),
        ({"input": "onehot", "layers": 2, "hidden": 512}, 83, 3_366_483 - 2 * 2048),
        ({"input": "scalar", "layers": 4, "hidden": 256}, 48, 1_852_464),
    ],
)
def test_parameter_counts_equal_the_counts_of_the_published_systems(keys, vocab, count):
    config = base.get_config()
    config.model.update(keys)
    shapes = jax.eval_shape(stack.functions(config, vocab).init, jax.random.key(0))
    assert sum(size for _, _, size in stack.parameter_table(shapes)) == count
    single, doubled = stack.parameter_lines(shapes)[-2:]
    assert single.split()[-1] == f"{count:,}"
    assert doubled.split()[-1] == f"{count + keys['layers'] * 4 * keys['hidden']:,}"


def test_dropout_needs_a_random_key_and_does_not_change_the_mean_of_its_input():
    functions, params = build(dropout=0.4)
    plain, params_plain = build(dropout=0.0)
    batch = batch_of(ids(2, 8))
    without, _ = functions.apply(params, batch, functions.zero_carry(2))
    expected, _ = plain.apply(params_plain, batch, plain.zero_carry(2))
    np.testing.assert_array_equal(without, expected)
    keys = jax.random.split(jax.random.key(0), 2)
    with_key, _ = functions.apply(params, batch, functions.zero_carry(2), keys)
    assert np.abs(with_key - without).max() > 1e-3
    x = dropout(jax.random.split(jax.random.key(3), 5), jnp.ones((21, 5, 999)), 0.3)
    assert len({row.tobytes() for row in np.asarray(x).swapaxes(0, 1)}) == 5
    kept = np.asarray(x[x > 0])
    np.testing.assert_allclose(kept, 1 / 0.7, rtol=1e-4)
    assert math.isclose(kept.size / x.size, 0.7, abs_tol=5 * math.sqrt(0.21 / x.size))


def test_initial_weights_of_flax_and_mxnet():
    _, params = build(init="orthogonal", forget_bias=2.0)
    for gate in range(4):
        block = params["lstm_1"]["recurrent_kernel"][:, 16 * gate : 16 * (gate + 1)]
        np.testing.assert_allclose(block @ block.T, np.eye(16), atol=1e-5)
    np.testing.assert_array_equal(params["lstm_0"]["bias"], [0] * 16 + [2] * 16 + [0] * 32)
    # The variance of LeCun normal weights is 1 / inputs. A scalar input, as in the recipe for sonnets, is one input.
    assert np.std(params["lstm_1"]["input_kernel"]) == pytest.approx(1 / 4, rel=0.1)
    _, params = build(init="orthogonal", input="scalar", hidden=64)
    assert np.std(params["lstm_0"]["input_kernel"]) == pytest.approx(1, rel=0.2)
    _, params = build(init="uniform", init_scale=0.2, forget_bias=0.0)
    for leaf in (params["embedding"], params["head_kernel"], params["lstm_0"]["recurrent_kernel"]):
        assert 0.15 < np.abs(leaf).max() <= 0.2
    assert not params["lstm_0"]["bias"].any()
    assert not params["head_bias"].any()


def test_initial_weights_of_pytorch_keras_and_axon():
    # PyTorch draws weights uniformly between -0.25 and 0.25. This bound is 1 / sqrt(16) for 16 hidden units. A layer's bias is
    # the sum of PyTorch's two biases, so the bound of this sum is 0.5.
    _, params = build(init="pytorch", forget_bias=0.0)
    for leaf in (
        params["head_kernel"],
        params["head_bias"],
        params["lstm_1"]["input_kernel"],
        params["lstm_1"]["recurrent_kernel"],
    ):
        assert 0.2 < np.abs(leaf).max() <= 0.25
    assert 0.25 < np.abs(params["lstm_1"]["bias"]).max() <= 0.5
    # One uniform number in ±0.25 has the variance 0.25² / 3. The sum of two such numbers has twice this variance.
    assert np.std(params["lstm_1"]["bias"]) == pytest.approx(0.25 * np.sqrt(2 / 3), rel=0.25)
    assert np.std(params["embedding"]) == pytest.approx(1, rel=0.25)
    _, params = build(init="pytorch", head_scale=1.0)
    assert 0.9 < np.abs(params["head_kernel"]).max() <= 1
    assert not params["head_bias"].any()
    assert np.abs(params["lstm_1"]["input_kernel"]).max() <= 0.25
    _, params = build(init="glorot", forget_bias=1.0)
    recurrent = params["lstm_1"]["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(16), atol=1e-5)
    bound = np.sqrt(6 / (16 + 64))
    assert 0.9 * bound < np.abs(params["lstm_1"]["input_kernel"]).max() <= bound
    np.testing.assert_array_equal(params["lstm_0"]["bias"], [0] * 16 + [1] * 16 + [0] * 32)
    _, params = build(init="axon", input="scalar", forget_bias=0.0)
    for leaf, inputs in (
        (params["lstm_0"]["input_kernel"], 1),
        (params["lstm_1"]["input_kernel"], 16),
        (params["lstm_1"]["recurrent_kernel"], 16),
    ):
        bound = np.sqrt(6 / (inputs + 16))  # Glorot's bound for a matrix with the 16 columns of one gate
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    assert not params["lstm_0"]["bias"].any()


def test_a_scalar_input_is_the_id_divided_by_the_vocabulary_size():
    functions, params = build(input="scalar", layers=1)
    logits, _ = functions.apply(params, batch_of(np.array([[5]], np.int32), reset=True), functions.zero_carry(1))
    z = 5 / VOCAB * params["lstm_0"]["input_kernel"][0] + params["lstm_0"]["bias"]
    i, _, g, o = np.split(np.asarray(z, np.float64), 4)
    h = np.tanh(np.tanh(g) / (1 + np.exp(-i))) / (1 + np.exp(-o))
    np.testing.assert_allclose(logits[0, 0], h @ params["head_kernel"] + params["head_bias"], atol=1e-6)


@pytest.mark.parametrize("encoding", ["embedding", "onehot", "scalar"])
def test_bfloat16_does_not_round_the_inputs_of_the_first_layer(encoding):
    functions, params = build(input=encoding, layers=1, dtype="bfloat16")
    exact, _ = build(input=encoding, layers=1)
    params = params | {"lstm_0": params["lstm_0"] | {"recurrent_kernel": params["lstm_0"]["recurrent_kernel"] * 0}}
    batch = batch_of(ids(2, 6))
    _, (carry,) = functions.apply(params, batch, functions.zero_carry(2))
    _, (expected,) = exact.apply(params, batch, exact.zero_carry(2))
    np.testing.assert_allclose(carry[0], expected[0], atol=1e-6)


def test_with_bfloat16_products_the_logits_state_and_parameters_stay_float32():
    functions, params = build(dtype="bfloat16")
    exact, _ = build(dtype="float32")
    batch = batch_of(ids(2, 16))
    logits, carry = functions.apply(params, batch, functions.zero_carry(2))
    expected, _ = exact.apply(params, batch, exact.zero_carry(2))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, carry, params))} == {jnp.dtype(jnp.float32)}
    assert 0 < np.abs(logits - expected).max() < 0.05
