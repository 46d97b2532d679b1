"""Tests the distribution, the place and the scale of each regulariser."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, slow
from jax.sharding import Mesh

from charlm.config import checking, keys, load
from charlm.data.batches import Batch
from charlm.errors import UserError
from charlm.exchange import torch, weights
from charlm.models import cells, drawing, dropout, objective, recurrent_noise, regularisers, stack
from charlm.models.initializers import initializers
from charlm.training import optim, setup
from charlm.training import state as state_module
from charlm.training import step as step_module
from configs import base

VOCAB, HIDDEN, EMBEDDING, ROWS, STEPS = 7, 5, 3, 3, 6
SEED, STEP = 4, 11
ALL = {
    "dropout_input": 0.2,
    "dropout_hidden": 0.3,
    "dropout_output": 0.4,
    "dropout_kind": "variational",
    "weight_drop": 0.3,
    "embedding_dropout": 0.25,
    "recurrent_dropout": 0.15,
    "zoneout_cell": 0.45,
    "zoneout_hidden": 0.2,
    "state_noise": 0.15,
    "ar": 2.0,
    "tar": 3.0,
}
SHARES = [name for name, value in ALL.items() if isinstance(value, float) and name not in ("ar", "tar")]


def config_of(**values):
    config = base.get_config()
    config.model.update({"hidden": HIDDEN, "embedding": EMBEDDING, "init": "uniform", "init_scale": 0.8, **values})
    return config


def batch_of(rows=ROWS, steps=STEPS):
    ids_BT = np.random.default_rng(0).integers(0, VOCAB, (rows, steps)).astype(np.int32)
    weights_BS = np.ones((rows, steps), np.float32)
    weights_BS[0, -2:] = 0  # padding
    return Batch(ids_BT, np.roll(ids_BT, -1, axis=1), weights_BS, np.zeros(rows, bool))


def row_keys(rows=ROWS):
    step_key = jax.random.fold_in(jax.random.key(SEED), STEP)
    return step_key, jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(rows))


def assert_share(dropped: np.ndarray, share: float):
    """The number of dropped values is within five standard deviations of a binomial distribution."""
    assert math.isclose(dropped.mean(), share, abs_tol=5 * math.sqrt(share * (1 - share) / dropped.size))


def test_variational_dropout_has_one_mask_for_each_row_and_window():
    masks = []
    for number in range(40):
        keys_B = jax.random.split(jax.random.key(number), 5)
        x_TBH = np.asarray(dropout.dropout(keys_B, jnp.full((4, 5, 99), 3.0), 0.3, per_window=True))
        assert (x_TBH == x_TBH[:1]).all()
        np.testing.assert_allclose(x_TBH[x_TBH != 0], 3 / 0.7, rtol=1e-4)
        masks.append(x_TBH[0] == 0)
        again = dropout.dropout(keys_B[2:3], jnp.full((4, 1, 99), 3.0), 0.3, per_window=True)
        np.testing.assert_array_equal(again[:, 0], x_TBH[:, 2])  # the key of a row alone determines its mask
    assert_share(np.stack(masks), 0.3)
    assert len({mask.tobytes() for mask in np.concatenate(masks)}) == 200
    by_unit = np.concatenate(masks).sum(0)  # 200 draws of each unit
    assert_share(np.abs(by_unit - 60) > 2 * math.sqrt(200 * 0.21), 0.04)  # the two tails of the binomial beyond 2 deviations


def test_weight_drop_drops_single_weights_and_keeps_their_mean():
    kernel = jax.random.normal(jax.random.key(0), (30, 40))
    drawn = np.stack([dropout.weight_dropout(jax.random.key(number), kernel, 0.25) for number in range(100)])
    assert_share(drawn == 0, 0.25)
    np.testing.assert_allclose(drawn[drawn != 0], np.broadcast_to(kernel, drawn.shape)[drawn != 0] / 0.75, rtol=1e-4)
    for axis in (1, 2):  # a mask of whole rows or columns would vary between them far more than a binomial does
        shares = (drawn == 0).mean(axis)
        assert shares.std() == pytest.approx(math.sqrt(0.1875 / drawn.shape[axis]), rel=0.1)
    assert len({each.tobytes() for each in drawn}) == 100


def test_embedding_dropout_drops_whole_symbols():
    table = jax.random.normal(jax.random.key(0), (50, 8))
    drawn = np.stack([dropout.embedding_dropout(jax.random.key(number), table, 0.1) for number in range(200)])
    is_zero = drawn == 0
    assert (is_zero.all(2) == is_zero.any(2)).all()
    assert_share(is_zero.all(2), 0.1)
    np.testing.assert_allclose(drawn[~is_zero], np.broadcast_to(table, drawn.shape)[~is_zero] / 0.9, rtol=1e-4)


def test_the_shares_inside_the_recurrence_and_that_their_masks_are_independent():
    shares = recurrent_noise.Rates(recurrent_dropout=0.1, zoneout_cell=0.5, zoneout_hidden=0.05)
    noise = recurrent_noise._noise(jax.random.split(jax.random.key(0), 9), shares, 20, 101, jnp.float32)
    factor, keeps_cell, keeps_hidden = (np.asarray(each) for each in noise)
    assert_share(factor == 0, 0.1)
    np.testing.assert_allclose(factor[factor != 0], 1 / 0.9, rtol=1e-4)
    assert_share(keeps_cell, 0.5)
    assert_share(keeps_hidden, 0.05)
    assert_share((factor == 0) & keeps_cell, 0.05)
    assert_share(keeps_cell & keeps_hidden, 0.025)
    assert_share(keeps_cell[1:] & keeps_cell[:-1], 0.25)  # each step draws anew
    assert_share(keeps_cell[:, 1:] & keeps_cell[:, :-1], 0.25)  # each row too


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class NumpyNetwork:
    """Two LSTM layers with the regularisers in ALL, written out in NumPy for given masks. Masks hold 0 or 1."""

    def __init__(self, params):
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def layer(self, index, x_TBI, state, kernel_mask, factor_TBH, old_c_TBH, old_h_TBH):
        params, outputs = self.params[f"lstm_{index}"], []
        kernel, (c, h) = params["recurrent_kernel"] * kernel_mask / 0.7, state
        for x, factor, old_c, old_h in zip(x_TBI, factor_TBH, old_c_TBH, old_h_TBH, strict=True):
            i, f, g, o = np.split(x @ params["input_kernel"] + h @ kernel + params["bias"], 4, axis=-1)
            new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g) * factor / 0.85
            new_h = sigmoid(o) * np.tanh(new_c)
            c, h = old_c * c + (1 - old_c) * new_c, old_h * h + (1 - old_h) * new_h
            outputs.append(h)
        return np.stack(outputs), (c, h)


def drawn(step_key, keys_B):
    """The masks that the model must use. Only the random bits come from charlm."""

    def kept(keys_B, number, steps, rate):
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)
        return lambda width: np.asarray(dropout.kept(folded, steps, width, rate), np.float64)

    shared = jax.random.fold_in(step_key, 2**32 - 1)
    masks = {
        "input": kept(keys_B, 131072, 1, 0.2)(EMBEDDING),
        "embedding": kept(shared[None], 131072, 1, 0.25)(VOCAB)[0].T,
        0: kept(keys_B, 0, 1, 0.3)(HIDDEN),
        1: kept(keys_B, 1, 1, 0.4)(HIDDEN),
    }
    for index in (0, 1):
        of_cell = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, 65536 + index)
        kernel = kept(shared[None], index, HIDDEN, 0.3)(4 * HIDDEN)[:, 0]
        factor, new_c, new_h = (kept(of_cell, number, STEPS, rate)(HIDDEN) for number, rate in enumerate((0.15, 0.45, 0.2)))
        masks["cell", index] = kernel, factor, 1 - new_c, 1 - new_h
    return masks


def with_drawn_states(keys_B, carry):
    """The carry that the model must use, with random states in some rows. Only the random numbers come from JAX."""

    def folded(*numbers):
        keys = keys_B
        for number in (262144, *numbers):
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        return keys

    chosen_B1 = np.asarray(jax.vmap(jax.random.uniform)(folded(65536)))[:, None] < 0.15
    assert 0 < chosen_B1.sum() < ROWS
    new_carry = []
    for index, (c, h) in enumerate(carry):
        new_c = 4 * np.stack([jax.random.normal(key, (HIDDEN,)) for key in folded(index, 1)])
        o = np.stack([jax.random.uniform(key, (HIDDEN,)) for key in folded(index, 2)])
        new_carry.append((np.where(chosen_B1, new_c, c), np.where(chosen_B1, o * np.tanh(new_c), h)))
    return new_carry


@functools.cache
def trained_step(cell):
    """A training step in float64 whose update is exactly the gradient: (functions, state before, state after, metrics)."""
    config = config_of(**ALL, dtype="float64", cell=cell)
    config.optim.update({"name": "sgd", "clip_norm": 0.0})
    functions, optimizer = stack.functions(config, VOCAB), optim.optimizer(config, 1)
    state = state_module.initial_state(functions, optimizer, ROWS, 0)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5), state.params)
    carry = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5), state.carry)
    state = state._replace(params=params, carry=carry, step=jnp.asarray(STEP, jnp.int32))
    step = step_module.make_train_step(functions, optimizer, Mesh(np.array(jax.devices()[:1]), ("rows",)))
    after, metrics = jax.jit(step)(state, batch_of(), np.float64(1), np.uint32(SEED))
    return functions, state, after, metrics


def test_a_training_step_equals_numpy_with_the_drawn_masks():
    batch = batch_of()
    with jax.enable_x64(True):
        functions, state, after, metrics = trained_step("lstm")
        step_key, keys_B = row_keys()
        masks, network = drawn(step_key, keys_B), NumpyNetwork(state.params)
        carry = with_drawn_states(keys_B, state.carry)
        shared = jax.random.fold_in(step_key, 2**32 - 1)
        logits, _, penalty = jax.jit(functions.penalised)(state.params, batch, state.carry, keys_B, shared)
    params = network.params
    x_TBH = (params["embedding"] * masks["embedding"] / 0.75)[batch.inputs_BT.T] * masks["input"] / 0.8
    for index, scale in ((0, 0.7), (1, 0.6)):
        outputs_TBH, end = network.layer(index, x_TBH, carry[index], *masks["cell", index])
        x_TBH = outputs_TBH * masks[index] / scale
        for found, expected in zip(after.carry[index], end, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)  # rates are multiples of 2^-16
    expected_BTV = (x_TBH @ params["head_kernel"] + params["head_bias"]).swapaxes(0, 1)
    np.testing.assert_allclose(logits, expected_BTV, rtol=1e-4, atol=1e-5)
    log_p = expected_BTV - np.log(np.exp(expected_BTV).sum(-1, keepdims=True))
    nats_BT = -np.take_along_axis(log_p, batch.targets_BS[..., None], -1)[..., 0]
    # The reported nats do not include the penalties.
    assert float(metrics.nats) == pytest.approx((nats_BT * batch.weights_BS).sum(), rel=1e-4)
    assert float(metrics.loss_nats) == float(metrics.nats)
    weights_TB = batch.weights_BS.T
    ar = 2 * ((x_TBH**2).mean(-1) * weights_TB).sum()
    tar = 3 * (((outputs_TBH[1:] - outputs_TBH[:-1]) ** 2).mean(-1) * weights_TB[1:]).sum() * STEPS / (STEPS - 1)
    assert float(penalty) == pytest.approx(ar + tar, rel=1e-4)


@pytest.mark.parametrize("cell", ["lstm", slow("gru")])
def test_the_gradient_of_a_step_with_all_regularisers_equals_finite_differences(cell):
    batch, rng = batch_of(), np.random.default_rng(2)
    with jax.enable_x64(True):
        functions, state, after, _ = trained_step(cell)
        step_key, keys_B = row_keys()

        @jax.jit
        def loss(params):
            shared = jax.random.fold_in(step_key, 2**32 - 1)
            logits, _, penalty = functions.penalised(params, batch, state.carry, keys_B, shared)
            nats, weight = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS.astype(np.float64))
            return (nats + penalty) / weight

        gradients = jax.tree.map(lambda before, after: before - after, state.params, after.params)
        leaves, structure = jax.tree.flatten(state.params)
        for position, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = rng.normal(size=gradient.shape)
            shifted = [
                loss(structure.unflatten([a + by * direction if k == position else a for k, a in enumerate(leaves)]))
                for by in (1e-5, -1e-5)
            ]
            expected = (shifted[0] - shifted[1]) / 2e-5
            assert abs(expected) > 1e-5
            np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=2e-5, atol=1e-8)


def test_state_noise_gives_some_rows_large_random_states():
    rows, hidden = 2000, 20
    keys_B = jax.random.split(jax.random.key(0), rows)
    of_layers = [cells.named(name) for name in ("lstm", "mingru", "gru")]
    carry = tuple(
        jax.tree.map(lambda leaf, at=at: leaf + 0.1 + at, cell.zero_state(rows, hidden)) for at, cell in enumerate(of_layers)
    )
    carried_B = jnp.arange(rows) % 4 > 0
    found = recurrent_noise.with_random_states(keys_B, carry, of_layers, 0.3, carried_B)
    (c_BH, h_BH), kept_BH, gru_BH = jax.tree.map(np.asarray, found)
    np.testing.assert_array_equal(kept_BH, carry[1])  # the cell does not read the key
    is_random = (c_BH != carry[0][0]).all(1)
    for leaf_BH, old_BH in ((c_BH, carry[0][0]), (h_BH, carry[0][1]), (gru_BH, carry[2])):  # all layers of the same rows
        np.testing.assert_array_equal((leaf_BH != old_BH).all(1), is_random)
        np.testing.assert_array_equal((leaf_BH != old_BH).any(1), is_random)
    assert not is_random[::4].any()
    assert_share(is_random[np.asarray(carried_B)], 0.3)
    c_BH, h_BH, gru_BH = c_BH[is_random], h_BH[is_random], gru_BH[is_random]
    assert c_BH.std() == pytest.approx(4, rel=0.05)
    assert c_BH.mean() == pytest.approx(0, abs=0.2)
    o_BH = h_BH / np.tanh(c_BH)
    assert 0 <= o_BH.min() < 0.01 < 0.99 < o_BH.max() <= 1
    assert o_BH.mean() == pytest.approx(0.5, abs=0.02)
    for other_BH in (gru_BH, o_BH):
        assert abs(np.corrcoef(other_BH.ravel(), c_BH.ravel())[0, 1]) < 0.05
    assert np.abs(gru_BH).max() < 1 < 5 * np.abs(gru_BH).mean()
    # The key of a row alone determines its state.
    alone = recurrent_noise.with_random_states(
        keys_B[5:9], jax.tree.map(lambda leaf: leaf[5:9], carry), of_layers, 0.3, carried_B[5:9]
    )
    jax.tree.map(lambda part, whole: np.testing.assert_array_equal(part, whole[5:9]), alone, found)


def test_with_state_noise_a_row_that_begins_anew_keeps_the_zero_state():
    functions = stack.functions(config_of(state_noise=0.999), VOCAB)
    params, (_, keys_B) = functions.init(jax.random.key(0)), row_keys()
    batch = batch_of()._replace(reset_B=np.array([True, False, True]))
    carry = jax.tree.map(lambda leaf: leaf + 0.5, functions.zero_carry(ROWS))
    noisy_BTV, _ = functions.apply(params, batch, carry, keys_B)
    from_zero_BTV, _ = functions.apply(params, batch, functions.zero_carry(ROWS))
    np.testing.assert_allclose(noisy_BTV[::2], from_zero_BTV[::2], rtol=1e-6)
    assert not np.allclose(noisy_BTV[1], from_zero_BTV[1], rtol=1e-2)
    carried_BTV, _ = functions.apply(params, batch, carry)
    assert not np.allclose(noisy_BTV[1], carried_BTV[1], rtol=1e-2)  # the row that goes on has a random state


def test_penalties_worked_out_by_hand():
    used = regularisers.of(config_of(ar=2.0, tar=10.0), "embedding")
    outputs_TBH = jnp.array([[[1.0, 3.0]], [[2.0, 3.0]], [[2.0, 7.0]]])
    weights_BS = np.ones((1, 3), np.float32)
    # Mean squares: 5, 6.5, 26.5. Mean squared differences: 0.5, 8. The two means are multiplied by the sum of the weights, 3.
    expected = 2 * (5 + 6.5 + 26.5) + 10 * 3 * (0.5 + 8) / 2
    assert float(regularisers.penalty(used, outputs_TBH, outputs_TBH, weights_BS)) == pytest.approx(expected)
    # With the framing `windows`, only the last position is scored. AR reads this position only, and TAR all differences.
    expected = 2 * 26.5 + 10 * 1 * (0.5 + 8) / 2
    assert float(regularisers.penalty(used, outputs_TBH, outputs_TBH[-1:], weights_BS[:, -1:])) == pytest.approx(expected)
    # The last position is padding.
    weights_BS = np.array([[1, 1, 0]], np.float32)
    expected = 2 * (5 + 6.5) + 10 * 3 * 0.5 / 2
    assert float(regularisers.penalty(used, outputs_TBH, outputs_TBH, weights_BS)) == pytest.approx(expected)
    # A window of one character has no differences.
    assert float(regularisers.penalty(used, outputs_TBH[:1], outputs_TBH[:1], weights_BS[:, :1])) == pytest.approx(10)
    assert regularisers.penalty(regularisers.of(config_of(), "embedding"), outputs_TBH, outputs_TBH, weights_BS) is None


def test_nothing_is_random_in_an_evaluation_and_only_zoneout_changes_it():
    batch = batch_of()
    plain = stack.functions(config_of(), VOCAB)
    params, carry = jax.jit(plain.init)(jax.random.key(0)), plain.zero_carry(ROWS)
    expected, _ = plain.apply(params, batch, carry)
    noisy = stack.functions(config_of(**ALL | {"zoneout_cell": 0.0, "zoneout_hidden": 0.0}), VOCAB)
    found, _, penalty = noisy.penalised(params, batch, carry)
    np.testing.assert_array_equal(found, expected)
    assert penalty is None
    with_zoneout, _ = stack.functions(config_of(**ALL), VOCAB).apply(params, batch, carry)
    assert np.abs(with_zoneout - expected).max() > 1e-3
    with pytest.raises(ValueError, match="shared_key"):
        noisy.apply(params, batch, carry, row_keys()[1])


def layer(cell, seed=0):
    declared = cell.parameters(EMBEDDING, HIDDEN, initializers("uniform", HIDDEN, 0.5, 0.0), base.get_config())
    keys_of = jax.random.split(jax.random.key(seed), len(declared))
    return {name: jax.random.normal(key, shape) for key, (name, (_, shape)) in zip(keys_of, declared.items(), strict=True)}


NAMES = keys.KEYS["model.cell"].rule.options


def with_key(key):
    """The cells that read the key. By default, only the LSTM and the GRU are tested."""
    return [name if name in ("lstm", "gru") else slow(name) for name in NAMES if key in cells.named(name).keys]


@pytest.mark.parametrize("name", with_key("model.zoneout_hidden"))
def test_zoneout_in_evaluations_and_samples_takes_the_expected_value(name):
    cell, config = cells.named(name), config_of(zoneout_cell=0.5, zoneout_hidden=0.2)
    noisy, params = recurrent_noise.with_noise(cell, config), layer(cell)
    inputs_TBI = jax.random.normal(jax.random.key(1), (STEPS, ROWS, EMBEDDING))
    state = jax.tree.map(lambda leaf: leaf + 0.3, cell.zero_state(ROWS, HIDDEN))
    outputs_TBH, end = noisy.window(params, inputs_TBI, state, jnp.float32)
    prepared = noisy.prepare(params, ROWS, jnp.float32, False)
    by_step, expected = state, state
    for x_BI, output_BH in zip(inputs_TBI, outputs_TBH, strict=True):
        new = cell.step(cell.prepare(params, ROWS, jnp.float32, False), x_BI, expected, jnp.float32)[1]
        old_leaves, new_leaves = jax.tree.leaves(expected), jax.tree.leaves(new)
        shares = {1: [0.2], 2: [0.5, 0.2]}[len(new_leaves)]
        mixed = [share * a + (1 - share) * b for share, a, b in zip(shares, old_leaves, new_leaves, strict=True)]
        expected = jax.tree.unflatten(jax.tree.structure(state), mixed)
        np.testing.assert_allclose(output_BH, mixed[-1], atol=2e-6)
        output, by_step = noisy.step(prepared, x_BI, by_step, jnp.float32)
        np.testing.assert_allclose(output, mixed[-1], atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), end, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if cells.named(name).noisy_window is not None])
@pytest.mark.parametrize("ids", [True, slow(False)], ids=["ids", "floats"])
def test_the_fast_window_with_noise_equals_the_plain_loop_over_steps(name, ids):
    cell, keys_B = cells.named(name), row_keys()[1]
    config = config_of(recurrent_dropout=0.3, zoneout_cell=0.4, zoneout_hidden=0.2)

    def loss(cell, params, inputs, state):
        outputs, end = recurrent_noise.with_noise(cell, config).window(params, inputs, state, jnp.float64, keys_B)
        return sum((jnp.sin(3 * leaf) * leaf).sum() for leaf in jax.tree.leaves((outputs, end))), outputs

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), layer(cell))
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) + 0.3, cell.zero_state(ROWS, HIDDEN))
        inputs = jax.random.randint(jax.random.key(1), (STEPS, ROWS), 0, EMBEDDING)
        if not ids:
            inputs = jax.random.normal(jax.random.key(1), (STEPS, ROWS, EMBEDDING), jnp.float64)
        by_steps = cell._replace(noisy_window=None)
        asked = (0, 2) if ids else (0, 1, 2)
        both = [
            jax.jit(jax.value_and_grad(functools.partial(loss, form), asked, has_aux=True))(params, inputs, state)
            for form in (cell, by_steps)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), *both)
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(both[0][1]))


@pytest.mark.parametrize("name", with_key("model.recurrent_dropout"))
def test_recurrent_dropout_multiplies_the_candidate_and_never_the_state(name):
    cell = cells.named(name)
    params, x_BI = layer(cell), jax.random.normal(jax.random.key(1), (ROWS, EMBEDDING))
    prepared, factor = cell.prepare(params, ROWS, jnp.float32, False), jax.random.normal(jax.random.key(2), (ROWS, HIDDEN))

    def memory(state, *factors):
        return np.asarray(jax.tree.leaves(cell.step(prepared, x_BI, state, jnp.float32, *factors)[1])[0])

    empty, full = cell.zero_state(ROWS, HIDDEN), jax.tree.map(lambda leaf: leaf + 0.5, cell.zero_state(ROWS, HIDDEN))
    np.testing.assert_allclose(memory(empty, factor), factor * memory(empty), atol=1e-6)  # only the candidate enters it
    without, with_candidate = memory(full, jnp.zeros_like(factor)), memory(full)
    assert (without > 0).all()  # what is left of a positive state
    np.testing.assert_allclose(memory(full, factor), without + factor * (with_candidate - without), atol=1e-6)
    # In training, the noise is drawn for each row. In an evaluation, the cell's own window runs.
    noisy = recurrent_noise.with_noise(cell, config_of(recurrent_dropout=0.5))
    inputs_TBI, keys_B = jnp.broadcast_to(x_BI, (4, *x_BI.shape)), row_keys()[1]
    outputs, _ = noisy.window(params, inputs_TBI, full, jnp.float32, keys_B)
    assert np.abs(outputs - cell.window(params, inputs_TBI, full, jnp.float32)[0]).max() > 1e-3
    np.testing.assert_array_equal(*(each.window(params, inputs_TBI, full, jnp.float32)[0] for each in (noisy, cell)))
    one_row = jax.tree.map(lambda leaf: leaf[1:2], full)
    alone, _ = noisy.window(params, inputs_TBI[:, 1:2], one_row, jnp.float32, keys_B[1:2])
    np.testing.assert_allclose(alone[:, 0], outputs[:, 1], atol=1e-6)


def test_without_noise_inside_the_cell_stays_the_same_object():
    for name in NAMES:
        cell = cells.named(name)
        assert recurrent_noise.with_noise(cell, config_of(weight_drop=0.5, dropout=0.5)) is cell


def test_dropout_everywhere_is_the_default_of_the_shares_between_layers_and_before_the_head():
    assert regularisers.of(config_of(dropout=0.4), "onehot").dropout(3) == (0.0, 0.4, 0.4, 0.4)
    mixed = config_of(dropout_input=0.1, dropout_output=0.4)
    assert regularisers.of(mixed, "embedding").dropout(3) == (0.1, 0.0, 0.0, 0.4)
    assert regularisers.of(config_of(dropout=0.4, dropout_hidden=0.3), "embedding").dropout(2) == (0.0, 0.3, 0.4)
    assert regularisers.of(config_of(dropout=0.4, dropout_output=0.2), "embedding").dropout(1) == (0.0, 0.2)
    drawn = drawing.unrolled(stack.functions(mixed, VOCAB).shape, steps=1)
    assert "-> input_1 -> dropout_0_1 -> layer_1_1 -> layer_2_1 -> dropout_2_1 -> head_1" in drawn
    assert [label in drawn for label in ('"dropout 0.1"', '"dropout 0.4"')] == [True, True]


@pytest.mark.parametrize("name", SHARES)
def test_a_share_outside_its_range_is_refused(name):
    for value in (1.0, -0.1):
        with pytest.raises(UserError, match=rf"^model\.{name}={value}: must be at least 0 and below 1\.$"):
            checking.checked(f"model.{name}", value)
    with pytest.raises(UserError, match=rf"^model\.{name}='a': must be a number\.$"):
        checking.checked(f"model.{name}", "a")


def test_values_that_do_not_fit_together_are_refused_or_told():
    for name in ("dropout_input", "embedding_dropout"):
        with pytest.raises(UserError, match=rf"^model\.{name}=0\.1: needs an embedding, but model\.input=onehot\.$"):
            stack.functions(config_of(**{name: 0.1}, input="onehot"), VOCAB)
    for name in ("ar", "tar"):
        with pytest.raises(UserError, match=rf"^model\.{name}=-1\.0: must be 0 or more\.$"):
            checking.checked(f"model.{name}", -1.0)
    told = {name: stack.unread_keys(config_of(**ALL, cell=name)) for name in NAMES}
    for name in ("lstm", "layernorm_lstm", "mogrifier_lstm"):
        assert told[name] == []
    assert told["gru"] == ["model.zoneout_cell"]
    assert told["rnn"] == ["model.recurrent_dropout", "model.zoneout_cell"]
    assert told["slstm"] == ["model.state_noise", "model.zoneout_cell", "model.zoneout_hidden"]
    assert told["mingru"] == told["minlstm"] == ["model.state_noise", "model.weight_drop", "model.zoneout_cell"]
    assert regularisers.keys_without_effect(config_of(**ALL), 2, carries_state=True) == []
    assert regularisers.keys_without_effect(config_of(**ALL), 2, carries_state=False) == [
        "model.state_noise has no effect: every window begins with the zero state."
    ]
    for values, layers, expected in (
        (
            {"dropout_hidden": 0.1},
            1,
            "model.dropout_hidden has no effect: it acts between layers, and the model has one layer.",
        ),
        (
            {"dropout": 0.1, "dropout_hidden": 0.1, "dropout_output": 0.1},
            2,
            "model.dropout has no effect: model.dropout_hidden and model.dropout_output replace it.",
        ),
        ({"dropout_kind": "variational"}, 2, "model.dropout_kind=variational has no effect: the model has no dropout."),
    ):
        assert regularisers.keys_without_effect(config_of(**values), layers, carries_state=True) == [expected]


def test_a_training_tells_which_keys_have_no_effect(small, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    overrides = {"model.cell": "mingru", "model.weight_drop": 0.1, "model.dropout_hidden": 0.1}
    setup.set_up(load.load(TINY, small | overrides))
    assert capsys.readouterr().err.splitlines() == [
        "note: model.weight_drop has no effect: model.cell=mingru does not read it.",
        "note: model.dropout_hidden has no effect: it acts between layers, and the model has one layer.",
    ]


def test_a_model_with_zoneout_is_not_exported():
    config = config_of(zoneout_hidden=0.05)
    params = jax.jit(stack.functions(config, VOCAB).init)(jax.random.key(0))
    with pytest.raises(UserError, match=r"^model\.zoneout_cell=0\.0, model\.zoneout_hidden=0\.05: .* PyTorch has no zoneout"):
        weights.of_params(params, config, None, torch.LAYOUT, "x.pt")
