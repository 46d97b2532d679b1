"""Tests the training step: its gradient, metrics and random numbers."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, slow
from jax.sharding import Mesh

from charlm.config import load
from charlm.data import batches
from charlm.data.ids import Encoded
from charlm.data.order import Order
from charlm.models import objective, stack
from charlm.training import feeding, optim, setup
from charlm.training import state as state_module
from charlm.training import step as step_module
from configs import base

ONE_DEVICE = Mesh(np.array(jax.devices()[:1]), ("rows",))
RATE, SEED = np.float32(1), np.uint32(0)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def batch_with(kind):
    """A batch that is made with this framing. All framings cut the same text of 60 ids.

    The vocabulary has 7 ids. Id 0 is padding, and id 1 ends a document. The kind "counted" means documents whose padding is
    part of the loss.
    """
    ids_N = np.random.default_rng(0).integers(2, 7, 60).astype(np.uint8)
    order = Order(shuffle=True)
    ids_N[[9, 15, 36, 59]] = 1
    documents = Encoded(ids_N, np.array([0, 10, 16, 37, 60]))
    return {
        "stream": batches.Stream(ids_N, 2, 10, False, 0).batch_at(1),
        "chunks": batches.Chunks(ids_N, 2, 10, order).batch_at(2),
        "windows": batches.Windows(ids_N, 3, 10, 1, order).batch_at(0),
        "documents": batches.Documents(documents, 3, 12, 4, "masked", order).batch_at(0),
        "counted": batches.Documents(documents, 3, 12, 1, "counted", order).batch_at(0),
    }[kind]


@pytest.mark.parametrize("encoding", ["embedding", slow("onehot"), slow("scalar")])
@pytest.mark.parametrize("kind", ["stream", "chunks", "windows", "documents", "counted"])
def test_the_gradient_of_a_step_equals_finite_differences_in_float64(encoding, kind):
    """Plain SGD with a learning rate of 1 subtracts exactly the gradient. The test computes it from the new parameters."""
    config = base.get_config()
    config.model.update({"hidden": 5, "embedding": 3, "dtype": "float64", "input": encoding, "init": "uniform"})
    config.model.layers = 2 if kind in ("stream", "windows") else 1
    config.optim.update({"name": "sgd", "clip_norm": 0.0})
    batch = batch_with(kind)
    rows = len(batch.reset_B)
    with jax.enable_x64(True):
        functions, optimizer = stack.functions(config, 7), optim.optimizer(config, 1)
        state = state_module.initial_state(functions, optimizer, rows, 0)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5), state.params)
        carry = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), state.carry)
        state = state._replace(params=params, carry=carry)
        after, _ = jax.jit(step_module.make_train_step(functions, optimizer, ONE_DEVICE, pad=0))(state, batch, RATE, SEED)
        gradients = jax.tree.map(lambda before, after: before - after, state.params, after.params)

        @jax.jit
        def loss(params):
            logits, _ = functions.apply(params, batch, state.carry)
            nats, weight = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS.astype(np.float64))
            return nats / weight

        leaves, structure = jax.tree.flatten(state.params)
        for position, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = rng.normal(size=gradient.shape)

            def shifted(by, position=position, direction=direction):
                return loss(structure.unflatten([a + by * direction if k == position else a for k, a in enumerate(leaves)]))

            difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
            np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["rmsprop", *(slow(name) for name in ("adam", "adamw", "sgd"))])
def test_the_learning_rate_scales_the_update_and_is_halved_for_each_divergence(small, rule):
    config = load.load(TINY, small | {"optim.name": rule, "optim.weight_decay": 0.1, "seed": 5})
    made = setup.set_up(config)
    state = state_module.initial_state(made.functions, made.optimizer, made.batches.rows, 0)
    step = jax.jit(step_module.make_train_step(made.functions, made.optimizer, ONE_DEVICE))
    at_full_rate, at_quarter_rate = (
        step(state, made.batches.batch_at(0), np.float32(rate), SEED)[0].params for rate in (0.1, 0.025)
    )
    expected = jax.tree.map(lambda before, after: before + 0.25 * (after - before), state.params, at_full_rate)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), at_quarter_rate, expected)
    assert feeding.arguments_maker(made)(state_module.Progress(), 1, [])[2] == 5
    unhalved, halved_twice = (feeding.learning_rates(made, state_module.Progress(halvings=number), 3, 2) for number in (0, 2))
    np.testing.assert_array_equal(halved_twice, unhalved / 4)
    assert (unhalved > 0).all()


def test_padding_is_part_of_the_loss_but_not_of_the_reported_nats():
    config = base.get_config()
    config.model.update({"hidden": 6, "layers": 1, "input": "onehot"})
    functions, optimizer = stack.functions(config, 7), optim.optimizer(config, 1)
    state = state_module.initial_state(functions, optimizer, 3, 0)
    batch = batch_with("counted")
    logits, _ = functions.apply(state.params, batch, state.carry)
    nats_BS = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch.targets_BS[..., None], -1)[..., 0]
    _, metrics = jax.jit(step_module.make_train_step(functions, optimizer, ONE_DEVICE, pad=0))(state, batch, RATE, SEED)
    text_BS = batch.inputs_BT != 0
    assert (float(metrics.chars), float(metrics.loss_weight)) == (text_BS.sum(), text_BS.size)
    assert text_BS.sum() < text_BS.size
    assert float(metrics.nats) == pytest.approx(nats_BS[text_BS].sum(), rel=1e-5)
    assert float(metrics.loss_nats) == pytest.approx(nats_BS.sum(), rel=1e-5)


def test_padded_nats_equal_the_loss_that_keras_prints():
    # Keras prints the mean over steps of the mean loss of each step. Padding is part of this loss. In the first step, 6 of 8
    # positions are text. In the second step, 2 of 4 positions are text.
    sums = state_module.Sums()
    sums.add(nats=12.0, chars=6, loss_nats=12.8, loss_weight=8, grad_norm=1.0)
    sums.add(nats=5.0, chars=2, loss_nats=6.0, loss_weight=4, grad_norm=1.0)
    assert sums.measures()["nats"] == 17 / 8
    assert sums.measures()["padded_nats"] == (12.8 / 8 + 6 / 4) / 2
    assert sums.measures()["chars"] == 8
    unpadded = state_module.Sums()
    unpadded.add(nats=12.0, chars=6, loss_nats=12.0, loss_weight=6, grad_norm=1.0)
    assert "padded_nats" not in unpadded.measures()


def test_dropout_depends_only_on_seed_and_step():  # invariant 2
    config = base.get_config()
    config.model.update({"hidden": 8, "dropout": 0.5})
    functions, optimizer = stack.functions(config, 5), optim.optimizer(config, 1)
    batch = batches.Stream(np.arange(200, dtype=np.uint8) % 5, 2, 8, False, 0).batch_at(0)

    state = jax.jit(lambda: state_module.initial_state(functions, optimizer, 2, 0))()
    train_step = jax.jit(step_module.make_train_step(functions, optimizer, ONE_DEVICE))

    def nats(seed, step):
        return float(train_step(state._replace(step=jnp.asarray(step, jnp.int32)), batch, RATE, seed)[1].nats)

    assert nats(0, 3) == nats(0, 3)
    assert len({nats(seed, step) for seed in (0, 1) for step in (3, 4)}) == 4
    keys = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert not keys  # the state stores no random key


def test_a_step_sums_over_devices_once_and_an_evaluation_never(tmp_path):
    """A sum over devices is an all-reduce. Two all-reduces in one program can deadlock on a CPU with two threads."""
    code = """
import jax, numpy as np
from jax.sharding import Mesh
from charlm.data import batches
from charlm.inference import evaluate
from charlm.models import stack
from charlm.training import optim
from charlm.training import step as step_module
from charlm.training import state as state_module
from configs import base
config = base.get_config()
config.model.update({"hidden": 8, "dropout": 0.5})
functions, optimizer = stack.functions(config, 5), optim.optimizer(config, 1)
mesh = Mesh(np.array(jax.devices()), ("rows",))
state = state_module.placed(state_module.initial_state(functions, optimizer, 4, 0), mesh)
stream = batches.Stream(np.arange(200, dtype=np.uint8) % 5, 4, 8, False, 0)
step = jax.jit(step_module.make_train_step(functions, optimizer, mesh))
print(step.lower(state, stream.batch_at(0), 1.0, 0).compile().as_text().count(" all-reduce("))
shared = jax.device_put(stream.batch_at(0), jax.tree.leaves(state.carry)[0].sharding)
window = jax.jit(evaluate.make_window(functions))
print(window.lower(state.params, shared, state.carry).compile().as_text().count("all-reduce"))
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0"]
