"""Tests the cells `mingru` and `minlstm`, and the loop and the parallel scan that compute their states.

The expected values are computed with NumPy in float64, from the equations of the paper.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm.data.batches import Batch
from charlm.models import cells, stack
from charlm.models.cells import blend
from charlm.models.initializers import initializers
from configs import base

NAMES = ("mingru", "minlstm")
INPUTS, HIDDEN, ROWS = 5, 6, 3


def layer(name, size=1.0):
    rng, initial = np.random.default_rng(0), initializers("orthogonal", HIDDEN, 0.1, 0.0)
    declared = cells.named(name).parameters(INPUTS, HIDDEN, initial, base.get_config())
    return {each: jnp.asarray(rng.uniform(-size, size, shape), jnp.float32) for each, (_, shape) in declared.items()}


def inputs_of(steps):
    return jnp.asarray(np.random.default_rng(1).normal(size=(steps, ROWS, INPUTS)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def factors(name, params, x):
    """The arrays (keep, add) of all steps in float64. The state of a step is h = keep h' + add."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
    *gates, v = np.split(x @ p["input_kernel"] + p["bias"], len(p["bias"]) // HIDDEN, axis=-1)
    g = np.where(v >= 0, v + 0.5, sigmoid(v))
    if name == "mingru":
        z = sigmoid(gates[0])
        return 1 - z, z * g
    f, i = map(sigmoid, gates)
    return f / (f + i), i / (f + i) * g


def paper(name, params, x, h):
    states = []
    for keep, add in zip(*factors(name, params, x), strict=True):
        h = keep * h + add
        states.append(h)
    return np.stack(states)


def in_log_space(keep, add, h):
    """The states of all steps by the paper's parallel scan, which uses logarithms.

    The arrays of logarithms begin with one more step, which sets the state before the first step.
    """
    log_keep, log_add = jnp.log(jnp.concatenate([jnp.ones_like(h)[None], keep])), jnp.log(jnp.concatenate([h[None], add]))

    def joined(earlier, later):
        return earlier[0] + later[0], jnp.logaddexp(later[0] + earlier[1], later[1])

    return jnp.exp(jax.lax.associative_scan(joined, (log_keep, log_add))[1])[1:]


# With a bias of -6 the state keeps 0.998 of its value at each step, so that the errors of hundreds of steps add up.
@pytest.mark.parametrize("bias", [0.0, -6.0])
@pytest.mark.parametrize("scan", ["window", "parallel"])
@pytest.mark.parametrize("name", NAMES)
def test_2000_steps_in_float32_equal_the_paper_in_float64(name, scan, bias, monkeypatch):
    if scan == "parallel":  # as on a GPU
        monkeypatch.setattr(blend, "_by_loop", blend._in_parallel)
    params, inputs, h = layer(name), inputs_of(2000), jnp.full((ROWS, HIDDEN), 0.25)
    update = slice(-2 * HIDDEN, -HIDDEN)  # the gate z of the minGRU, the gate i of the minLSTM
    params["bias"] = params["bias"].at[update].add(bias)
    outputs, end = cells.named(name).window(params, inputs, h, jnp.float32)
    expected = paper(name, params, inputs, np.asarray(h, np.float64))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    np.testing.assert_array_equal(end, outputs[-1])


# With z = 0.002 on average, the errors of hundreds of steps add up. Errors are relative.
@pytest.mark.parametrize(("z", "largest_error"), [(0.5, 4e-7), (0.002, 4e-6)])
@pytest.mark.parametrize("scan", [blend._by_loop, blend._in_parallel])
def test_our_scan_and_the_scan_of_the_paper_have_small_errors_in_float32(scan, z, largest_error):
    rng = np.random.default_rng(5)
    z_TBH = rng.uniform(0, 2 * z, (2000, ROWS, HIDDEN))
    factors = [np.float32(1 - z_TBH), np.float32(z_TBH * rng.uniform(0, 3, z_TBH.shape))]
    h, exact = np.full((ROWS, HIDDEN), 0.25, np.float32), []
    state = np.float64(h)
    for keep, add in zip(*factors, strict=True):
        state = np.float64(keep) * state + add
        exact.append(state)
    error, error_in_logs = (
        np.abs(np.float64(found) / exact - 1).max()
        for found in (scan(*map(jnp.asarray, (*factors, h)), reverse=False), in_log_space(*map(jnp.asarray, (*factors, h))))
    )
    assert error < largest_error
    assert 1e-7 < error_in_logs < 1e-6


@pytest.mark.parametrize("steps", [1, 7, 64])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_parallel_scan_equals_the_loop(steps, reverse):
    rng = np.random.default_rng(2)
    a, b = jnp.asarray(rng.uniform(size=(2, steps, ROWS, HIDDEN)), jnp.float32)
    h = jnp.asarray(rng.normal(size=(ROWS, HIDDEN)), jnp.float32)
    found, expected = blend._in_parallel(a, b, h, reverse), blend._by_loop(a, b, h, reverse)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("in_parallel", [False, True])
def test_the_gradient_equals_the_gradient_that_jax_derives_from_a_loop(in_parallel, monkeypatch):
    if in_parallel:
        monkeypatch.setattr(blend, "_by_loop", blend._in_parallel)
    rng = np.random.default_rng(3)
    z, candidate, weights = jnp.asarray(rng.uniform(size=(3, 17, ROWS, HIDDEN)), jnp.float32)
    h = jnp.asarray(rng.normal(size=(ROWS, HIDDEN)), jnp.float32)

    def plain(z, candidate, h):
        states = []
        for each_z, each_candidate in zip(z, candidate, strict=True):
            h = (1 - each_z) * h + each_z * each_candidate
            states.append(h)
        return jnp.stack(states)

    found, expected = (
        jax.jit(jax.grad(lambda *args, run=run: (run(*args) * weights).sum(), argnums=(0, 1, 2)))(z, candidate, h)
        for run in (blend.blended, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_and_a_tpu_run_the_parallel_scan_and_a_cpu_runs_the_loop(name):
    params, state = layer(name), jnp.zeros((ROWS, HIDDEN))

    def loss(params):
        return cells.named(name).window(params, inputs_of(32), state, jnp.float32)[0].sum()

    traced = jax.jit(jax.value_and_grad(loss)).trace(params)
    loops = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
        for platform in ("cpu", "cuda", "rocm", "tpu")
    }
    assert loops == {"cpu": 2, "cuda": 0, "rocm": 0, "tpu": 0}


@pytest.mark.parametrize("name", NAMES)
def test_saturated_gates_give_correct_states_and_finite_gradients(name):
    """The pre-activations of the gates are ±500 or ±490. Sigmoids, and therefore f + i, can underflow to 0 there."""
    cell, gates = cells.named(name), {"mingru": 1, "minlstm": 2}[name]
    rows = np.array([[-500.0, -490], [500, 490], [-500, 500], [500, -500], [-500, -500]])[:, :gates]
    params = {"input_kernel": jnp.asarray(np.repeat(rows, HIDDEN, axis=1), jnp.float32), "bias": jnp.zeros(gates * HIDDEN)}
    candidate = jnp.full((len(rows), HIDDEN), 1.5)  # g(1.5) = 2
    params = {
        "input_kernel": jnp.concatenate([params["input_kernel"], candidate], axis=1),
        "bias": jnp.zeros((gates + 1) * HIDDEN),
    }
    ids, h = jnp.arange(len(rows), dtype=jnp.int32)[:, None], jnp.full((1, HIDDEN), 8.0)
    z = {
        "mingru": [0, 1, 0, 1, 0],
        "minlstm": [1, sigmoid(np.exp(-490.0)), 1, 0, 0.5],  # i / (f + i): 1 / (1 + exp(-10)), 1/2, 1, 0, 1/2
    }[name]
    if name == "minlstm":
        z[0] = sigmoid(10.0)
    expected, state = [], 8.0
    for each in z:
        state = (1 - each) * state + each * 2
        expected.append(state)
    value = lambda params: cell.window(params, ids, h, jnp.float32)[0]  # noqa: E731
    np.testing.assert_allclose(value(params)[:, 0, 0], expected, rtol=1e-6)
    gradient = jax.grad(lambda params: value(params).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())


@pytest.mark.parametrize("name", NAMES)
def test_windows_with_carried_states_and_resets_equal_single_steps(name):
    """Two windows of two rows. At the second window, row 0 goes on with its text, and row 1 begins a new text."""
    config = base.get_config()
    config.model.update({"cell": name, "layers": 2, "hidden": HIDDEN, "embedding": INPUTS})
    functions = stack.functions(config, 11)
    params = functions.init(jax.random.key(0))
    ids_BT = np.random.default_rng(4).integers(0, 11, (2, 16)).astype(np.int32)
    carry, logits = functions.zero_carry(2), []
    for start, reset_B in ((0, [True, True]), (8, [False, True])):
        window_BT = ids_BT[:, start : start + 8]
        batch = Batch(window_BT, window_BT, np.ones(window_BT.shape, np.float32), np.array(reset_B))
        logits_BTV, carry = functions.apply(params, batch, carry)
        logits.append(logits_BTV)
    found_BTV = np.concatenate(logits, axis=1)
    weights = functions.stepwise(params, 1)
    for row, texts in ((0, [ids_BT[0]]), (1, [ids_BT[1, :8], ids_BT[1, 8:]])):
        expected = []
        for text in texts:
            carry = functions.zero_carry(1)
            for symbol in text:
                logits_BV, carry = functions.step(weights, np.array([symbol]), carry)
                expected.append(logits_BV[0])
        np.testing.assert_allclose(found_BTV[row], np.stack(expected), atol=2e-5)


def test_the_forget_gate_of_a_minlstm_starts_with_the_forget_bias():
    config = base.get_config()
    config.model.update({"cell": "minlstm", "layers": 1, "hidden": 4, "forget_bias": 2.5})
    bias = stack.functions(config, 3).init(jax.random.key(0))["minlstm_0"]["bias"]
    np.testing.assert_array_equal(bias, [2.5] * 4 + [0] * 8)
