"""Tests the config keys `model.kernel` and `model.unroll`: cuDNN's LSTM, and loops over time with several steps per iteration.

The tests need no GPU. The fixture `twin` replaces cuDNN by `jax.experimental.rnn.lstm_ref`, which computes the same in pure
JAX. JAX's own tests compare this function with cuDNN on GPUs.
"""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, final_params
from faults.checks import read_rows
from jax.experimental import rnn
from jax.sharding import Mesh

from charlm.config import keys, load
from charlm.data import batches
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import evaluate, restore
from charlm.inference.protocol import Protocol
from charlm.models import cells, kernels, platform, stack
from charlm.models.cells import cudnn, lstm
from charlm.models.initializers import initializers
from charlm.rundir.run import Run
from charlm.training import optim, state, step, train
from configs import base

ONE_DEVICE = Mesh(np.array(jax.devices()[:1]), ("rows",))
FEATURES, HIDDEN, STEPS, ROWS, SYMBOLS = 5, 4, 7, 3, 6
SLOW = pytest.mark.slow
UNROLLED = [name for name in keys.CELLS if "model.unroll" in cells.named(name).keys]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def lstm_in_pure_jax(x, h_0, c_0, weights, lengths, features, hidden, layers, dropout, bidirectional, precision=None):
    """`rnn.lstm` in pure JAX. Reads the array of all weights in the layout that cuDNN reads."""
    assert precision is None
    unpacked = rnn.unpack_lstm_weights(weights, features, hidden, layers, bidirectional)
    return rnn.lstm_ref(x, h_0, c_0, *unpacked, lengths, features, hidden, layers, dropout, bidirectional)


@pytest.fixture
def twin(monkeypatch):
    """Makes charlm believe that JAX uses CUDA, and replaces cuDNN."""
    monkeypatch.setattr(devices, "is_cuda", lambda: True)
    monkeypatch.setattr(rnn, "lstm", lstm_in_pure_jax)


def config_of(**model):
    config = base.get_config()
    config.model.update({"kernel": "cudnn", "hidden": 16, "embedding": 8, "layers": 2} | model)
    return config


def layer(features):
    rng = np.random.default_rng(0)
    shapes = {"input_kernel": (features, 4 * HIDDEN), "recurrent_kernel": (HIDDEN, 4 * HIDDEN), "bias": (4 * HIDDEN,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def weighted_sum(outputs, state):
    """A weighted sum of all results. The weights differ, so that errors in the gradient do not cancel."""
    leaves = [outputs, *state]
    return sum((leaf * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)).sum() for leaf in leaves)


@pytest.mark.parametrize("kind", ["floats", "ids of a table", "one-hot ids"])
def test_a_window_by_cudnn_equals_the_loop_in_value_and_gradient(kind, twin):
    rng, by_cudnn = np.random.default_rng(1), kernels.with_kernel(lstm.CELL, config_of())
    assert by_cudnn.window is not lstm.CELL.window
    arrays = {
        "params": layer(SYMBOLS if kind == "one-hot ids" else FEATURES),
        "state": tuple(jnp.asarray(rng.normal(size=(ROWS, HIDDEN)), jnp.float32) for _ in "ch"),
        "inputs": jnp.asarray(rng.normal(size=(STEPS, ROWS, FEATURES)), jnp.float32),
        "table": jnp.asarray(rng.normal(size=(SYMBOLS, FEATURES)), jnp.float32),
    }
    ids_TB = jnp.asarray(rng.integers(0, SYMBOLS, (STEPS, ROWS)), jnp.int32)

    def value(cell, arrays):
        params = cell.with_table(arrays["params"], arrays["table"]) if kind == "ids of a table" else arrays["params"]
        # `stack.Layer` drops weights after `with_table`. The mask here stands for weight drop.
        params |= {"recurrent_kernel": params["recurrent_kernel"] * (jnp.arange(4 * HIDDEN) % 3)[None, :]}
        inputs = arrays["inputs"] if kind == "floats" else ids_TB
        outputs, end = cell.window(params, inputs, arrays["state"], jnp.dtype(jnp.float32))
        return weighted_sum(outputs, end), (outputs, end)

    @jax.jit
    def both(arrays):
        return [jax.grad(functools.partial(value, cell), has_aux=True)(arrays) for cell in (by_cudnn, lstm.CELL)]

    (gradients, found), (expected_gradients, expected) = both(arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), gradients, expected_gradients)
    used = {"floats": {"inputs"}, "ids of a table": {"table"}, "one-hot ids": set()}[kind]
    assert {name for name in ("inputs", "table") if gradients[name].any()} == used


def torch_arrays(params):
    """The arrays of PyTorch's LSTM, taken out of the array of all weights by the sizes in PyTorch's documentation."""
    shapes = {"weight_ih": (4 * HIDDEN, FEATURES), "weight_hh": (4 * HIDDEN, HIDDEN), "bias_ih": (4 * HIDDEN,)}
    shapes |= {"bias_hh": (4 * HIDDEN,)}
    weights_N, arrays = np.asarray(cudnn.packed(params["input_kernel"], params["recurrent_kernel"], params["bias"])), {}
    for name, shape in shapes.items():
        arrays[name], weights_N = weights_N[: np.prod(shape)].reshape(shape), weights_N[np.prod(shape) :]
    assert len(weights_N) == 0
    return arrays


def test_the_packed_weights_are_the_arrays_of_pytorch():
    params = layer(FEATURES)
    arrays = torch_arrays(params)
    exported = lstm.CELL.to_torch(params)  # tests/exchange compares these arrays with PyTorch
    assert list(exported) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, exported[name])
    jax.tree.map(np.testing.assert_array_equal, lstm.CELL.from_torch(arrays), params)
    # The formulas in the documentation of torch.nn.LSTM, in float64.
    rng = np.random.default_rng(1)
    x_TBI, h, c = (rng.normal(size=shape) for shape in ((STEPS, ROWS, FEATURES), (ROWS, HIDDEN), (ROWS, HIDDEN)))
    expected, (c_end, h_end) = lstm.CELL.window(params, *jax.tree.map(jnp.float32, (x_TBI, (c, h))), jnp.float32)
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    for x, outputs in zip(x_TBI, expected, strict=True):
        z = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        i, f, g, o = np.split(z, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        np.testing.assert_allclose(outputs, h, atol=2e-6)
    np.testing.assert_allclose((c_end, h_end), (c, h), atol=2e-6)


def test_the_lstm_of_pytorch_has_the_values_and_gradients_of_the_packed_weights(twin):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params, rng = layer(FEATURES), np.random.default_rng(1)
    module = torch.nn.LSTM(FEATURES, HIDDEN)
    module.load_state_dict({f"{name}_l0": torch.tensor(array) for name, array in torch_arrays(params).items()})
    x, h, c = (np.float32(rng.normal(size=shape)) for shape in ((STEPS, ROWS, FEATURES), (ROWS, HIDDEN), (ROWS, HIDDEN)))
    outputs, _ = module(torch.tensor(x), (torch.tensor(h[None]), torch.tensor(c[None])))
    (outputs * torch.sin(torch.arange(outputs.numel())).reshape(outputs.shape)).sum().backward()

    def value(params):
        found, _ = cudnn.lstm(params, jnp.asarray(x), (jnp.asarray(c), jnp.asarray(h)))
        return weighted_sum(found, ()), found

    gradient, found = jax.jit(jax.grad(value, has_aux=True))(params)
    np.testing.assert_allclose(found, outputs.detach().numpy(), atol=2e-6)
    for name, expected in lstm.CELL.to_torch(gradient).items():
        if name != "bias_hh":  # charlm has one bias, so the gradient of PyTorch's second bias is not used
            np.testing.assert_allclose(expected, getattr(module, f"{name}_l0").grad.numpy(), rtol=2e-4, atol=2e-5)


def traced_step(config, length=32, rows=4):
    """The training step of a config, traced but not compiled."""
    functions, optimizer = stack.functions(config, 11), optim.optimizer(config, 1)
    start = jax.eval_shape(lambda: state.initial_state(functions, optimizer, rows, 0))
    batch = batches.Stream(np.zeros(1000, np.uint8), rows, length, True, 0).batch_at(0)
    train_step = step.make_train_step(functions, optimizer, ONE_DEVICE)
    return jax.jit(train_step).trace(start, batch, np.float32(1), np.uint32(0))


@pytest.mark.parametrize(("precision", "allow_tf32"), [("tf32", "True"), ("float32", "False")])
def test_the_training_step_calls_cudnn_once_for_each_layer_and_pass(precision, allow_tf32, monkeypatch):
    """Traces the real `rnn.lstm`. To trace it, JAX asks the library only for the sizes of two arrays."""
    monkeypatch.setattr(devices, "is_cuda", lambda: True)
    monkeypatch.setattr(rnn.gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", lambda *sizes: (0, 123), raising=False)
    with platform.lowering_for("cuda"):
        jaxpr = traced_step(config_of(dropout=0.3, weight_drop=0.3, precision=precision)).jaxpr
    calls = re.findall(r"= (rnn_\w+)\[(.*?)\]", str(jaxpr), re.DOTALL)
    assert [name for name, _ in calls] == ["rnn_fwd", "rnn_fwd", "rnn_bwd", "rnn_bwd"]
    for (_, text), features in zip(calls, (8, 16, 16, 8), strict=True):
        options = dict(line.strip().split("=") for line in text.strip().splitlines())
        fixed = {"num_layers": "1", "dropout": "0.0", "bidirectional": "False"}
        assert options == fixed | {"input_size": str(features), "hidden_size": "16", "cudnn_allow_tf32": allow_tf32}


@pytest.mark.slow
def test_a_run_changes_its_kernel_on_resume_and_is_evaluated_without_cuda(small, tmp_path, monkeypatch, capsys, request):
    overrides = small | {"model.dropout": 0.2, "model.weight_drop": 0.2, "train.steps_per_call": 1}
    with_cudnn = load.load(TINY, overrides | {"model.kernel": "cudnn"})
    assert train.train(load.load(TINY, overrides), tmp_path / "xla") == 0
    message = r"^model\.kernel=cudnn: needs JAX for CUDA and a GPU of NVIDIA, but JAX uses cpu here: set model\.kernel=xla\.$"
    with pytest.raises(UserError, match=message):
        train.train(with_cudnn, tmp_path / "both")
    assert [path.name for path in tmp_path.iterdir()] == ["xla"]

    request.getfixturevalue("twin")
    original = train.steps_at_once

    def killed(setup, step):
        if step >= 4:
            raise KeyboardInterrupt
        return original(setup, step)

    monkeypatch.setattr(train, "steps_at_once", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(with_cudnn, tmp_path / "both")
    monkeypatch.undo()  # from here on, there is no CUDA device
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        train.train(with_cudnn, tmp_path / "both")
    of_machine = {"model.kernel": "xla", "model.unroll": 3, "command_buffers": True}
    assert train.train(load.load(TINY, overrides | of_machine), tmp_path / "both") == 0
    assert "note: command_buffers has no effect: it needs a CUDA GPU" in capsys.readouterr().err
    run = Run(tmp_path / "both")
    assert [start["kernel"] for start in run.starts()] == ["cudnn", "xla"]
    # The kernels differ only by rounding. The names and shapes of the parameters are the same.
    rows, expected = read_rows(run.workdir), read_rows(tmp_path / "xla")
    assert [row["nats"] for row in rows] == pytest.approx([row["nats"] for row in expected], abs=1e-5)
    params, of_xla = (final_params(tmp_path / name) for name in ("both", "xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, of_xla)

    trained = restore.load(run.workdir, "latest")
    assert trained.config.model.kernel == "cudnn"
    encoded = encode(trained.vocab, run.splits()["validation"], "validation")
    protocol = Protocol.of(trained.config, Framing.of(trained.config))
    nats, chars = evaluate.evaluator(trained.functions)(trained.params, encoded, protocol)
    logged = [row for row in run.rows() if row["split"] == "validation"][-1]
    assert nats / chars == pytest.approx(logged["nats"], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ({"cell": "gru"}, "model.cell=gru"),
        ({"cell": ("lstm", "layernorm_lstm")}, "model.cell=layernorm_lstm"),
        ({"recurrent_dropout": 0.25}, "model.recurrent_dropout=0.25"),
        ({"zoneout_cell": 0.5}, "model.zoneout_cell=0.5"),
        ({"zoneout_hidden": 0.5}, "model.zoneout_hidden=0.5"),
        ({"dtype": "bfloat16"}, "model.dtype=bfloat16"),
    ],
)
def test_what_cudnn_can_not_run_is_refused_and_runs_by_the_loop_outside_training(model, setting, twin):
    config = config_of(**model)
    with pytest.raises(UserError, match=re.escape(f"model.kernel=cudnn: cuDNN can't run {setting}: set model.kernel=xla.")):
        kernels.check(config)
    cell = cells.named("lstm" if "cell" not in model else keys.cell_names(config)[-1])
    assert kernels.with_kernel(cell, config) is cell
    for kernel in ("auto", "xla"):
        config.model.kernel = kernel
        kernels.check(config)
        assert kernels.with_kernel(lstm.CELL, config) is lstm.CELL
    kernels.check(config_of(dropout=0.5, weight_drop=0.5, dropout_kind="variational"))


@pytest.mark.slow
def test_train_ends_with_exit_status_2_if_there_is_no_cuda_device(script, corpus_file, tmp_path):
    flags = [f"--config={TINY}", f"--config.corpus.path={corpus_file}", f"--workdir={tmp_path / 'run'}"]
    error = script.fails("train", *flags, "--config.model.kernel=cudnn")
    assert error.startswith("error: model.kernel=cudnn: needs JAX for CUDA and a GPU of NVIDIA")
    assert not os.listdir(tmp_path)


def trip_counts(traced):
    """How often each loop of a program for CUDA iterates, in increasing order."""
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    counts = re.findall(r"cond \{\s+%\S+ = stablehlo\.constant dense<(\d+)>", text)
    assert len(counts) == text.count("stablehlo.while")
    return sorted(map(int, counts))


# The noise makes the LSTM train with the loop of `deferred.py`, and the sLSTM with the plain loop of `recurrent_noise.py`.
@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *(("lstm", 0.0), ("lstm", 0.1), ("slstm", 0.1), ("gru", 0.0), ("layernorm_lstm", 0.0)),
        *(pytest.param(name, 0.0, marks=SLOW) for name in ("rnn", "mogrifier_lstm", "slstm")),
    ],
)
def test_the_loops_of_a_training_step_for_cuda_have_fewer_iterations(name, noise):
    """A layer has a loop over 32 steps in the forward pass, and one in the backward pass."""
    plain, unrolled = (
        trip_counts(traced_step(config_of(kernel="xla", cell=name, layers=1, unroll=steps, recurrent_dropout=noise)))
        for steps in (1, 4)
    )
    assert plain.count(32) == 2
    assert unrolled == sorted(8 if count == 32 else count for count in plain)
    assert 8 not in plain


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("lstm", "gru") else SLOW) for name in UNROLLED])
def test_an_unrolled_window_equals_the_window_in_value_and_gradient(name):
    cell, config, rng = cells.named(name), config_of(kernel="xla", unroll=4), np.random.default_rng(0)
    unrolled = kernels.with_kernel(cell, config)
    assert unrolled is not cell
    declared = cell.parameters(FEATURES, HIDDEN, initializers("uniform", HIDDEN, 0.5, 0.0), config)
    params = {each: jnp.asarray(rng.normal(size=shape), jnp.float32) for each, (_, shape) in declared.items()}
    inputs_TBI = jnp.asarray(rng.normal(size=(10, ROWS, FEATURES)), jnp.float32)  # two iterations of 4 steps, and 2 steps

    def value(cell, params):
        outputs, end = cell.window(params, inputs_TBI, cell.zero_state(ROWS, HIDDEN), jnp.dtype(jnp.float32))
        return weighted_sum(outputs, jax.tree.leaves(end)), outputs

    @jax.jit
    def both(params):
        return [jax.grad(functools.partial(value, each), has_aux=True)(params) for each in (unrolled, cell)]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *both(params))


def test_a_cell_without_a_loop_over_time_reports_that_unroll_has_no_effect():
    config = config_of(kernel="xla", cell="mingru", unroll=4)
    assert stack.unread_keys(config) == ["model.kernel", "model.unroll"]
    config.model.update({"cell": "lstm", "kernel": "auto"})
    assert stack.unread_keys(config) == []


def test_a_network_can_be_described_before_jax_starts(monkeypatch):
    """The program `sample` counts the weights before it sets XLA_FLAGS, so this must not start JAX."""
    monkeypatch.setattr(devices, "is_cuda", None)  # a call would fail
    assert stack.layer_operations(config_of()) == stack.layer_operations(config_of(kernel="xla"))
