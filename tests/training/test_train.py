"""The step and the loop: what is learned, logged, kept, stopped, and left alone."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.checks import read_rows
from jax.sharding import Mesh

from charlm.config import load
from charlm.data import batches
from charlm.errors import Failure, UserError
from charlm.inference import evaluate
from charlm.models import objective, stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import feeding, judging, optim, setup, signals, train
from charlm.training import state as state_module
from charlm.training import step as step_module
from configs import base

ONE = Mesh(np.array(jax.devices()[:1]), ("rows",))
RATE, SEED = np.float32(1), np.uint32(0)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("encoding", "rows", "together"), [("embedding", 4, 1), ("onehot", 16, 2), ("scalar", 1, 1)])
def test_training_evaluation_and_sampling_lower_for_every_platform(dtype, encoding, rows, together):
    config = base.get_config()
    config.model.update({"hidden": 16, "dropout": 0.3, "dtype": dtype, "input": encoding})
    functions, optimizer = stack.functions(config, 11), optim.optimizer(config)
    state = jax.eval_shape(lambda: state_module.initial_state(functions, optimizer, rows, 0))
    batch = batches.Stream(np.zeros(1000, np.uint8), rows, 32, True, 0).batch_at(0)
    step, of_calls = step_module.make_train_step(functions, optimizer, ONE), (batch, RATE)
    if together > 1:
        step, of_calls = step_module.several(step), jax.tree.map(lambda leaf: np.stack([leaf] * together), of_calls)
    weights = jax.eval_shape(lambda params: functions.stepwise(params, rows), state.params)
    traced = {
        "train": jax.jit(step, donate_argnums=0).trace(state, *of_calls, SEED),
        "evaluate": jax.jit(evaluate.make_window(functions)).trace(state.params, batch, state.carry),
        "lay out": jax.jit(functions.stepwise, static_argnums=1).trace(state.params, rows),
        "sample": jax.jit(functions.step).trace(weights, np.zeros(rows, np.int32), state.carry),
    }
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = {name: each.lower(lowering_platforms=(platform,)).as_text() for name, each in traced.items()}
        assert "stablehlo.while" in text["train"]
        assert "stablehlo.while" in text["evaluate"]
        assert "stablehlo.dot_general" in text["sample"]
        assert text["lay out"]


def framing_of(kind):
    """A batch of each framing over the same made-up ids below 7, in which 0 is padding and 1 the end of a document."""
    ids_N = np.random.default_rng(0).integers(2, 7, 60).astype(np.uint8)
    order = batches.Order(shuffle=True)
    ids_N[[9, 15, 36, 59]] = 1
    documents = batches.Encoded(ids_N, np.array([0, 10, 16, 37, 60]))
    return {
        "stream": batches.Stream(ids_N, 2, 10, False, 0).batch_at(1),
        "chunks": batches.Chunks(ids_N, 2, 10, order).batch_at(2),
        "windows": batches.Windows(ids_N, 3, 10, 1, order).batch_at(0),
        "documents": batches.Documents(documents, 3, 12, 4, "masked", order).batch_at(0),
        "counted": batches.Documents(documents, 3, 12, 1, "counted", order).batch_at(0),
    }[kind]


@pytest.mark.parametrize("encoding", ["embedding", "onehot", "scalar"])
@pytest.mark.parametrize("kind", ["stream", "chunks", "windows", "documents", "counted"])
def test_gradient_of_the_step_against_finite_differences_in_float64(encoding, kind):
    """Through the step itself: with plain SGD at rate 1 the update is the gradient."""
    config = base.get_config()
    config.model.update({"hidden": 5, "embedding": 3, "dtype": "float64", "input": encoding, "init": "uniform"})
    config.model.layers = 2 if kind in ("stream", "windows") else 1
    config.optim.update({"name": "sgd", "clip_norm": 0.0})
    batch = framing_of(kind)
    rows = len(batch.reset_B)
    with jax.enable_x64(True):
        functions, optimizer = stack.functions(config, 7), optim.optimizer(config)
        state = state_module.initial_state(functions, optimizer, rows, 0)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5), state.params)
        carry = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), state.carry)
        state = state._replace(params=params, carry=carry)
        after, _ = jax.jit(step_module.make_train_step(functions, optimizer, ONE, pad=0))(state, batch, RATE, SEED)
        gradients = jax.tree.map(lambda before, then: before - then, state.params, after.params)

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


@pytest.mark.parametrize(
    "rule", ["rmsprop", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "adamw", "sgd"))]
)
def test_the_rate_of_a_call_scales_the_update_and_is_halved_for_each_divergence(small, rule):
    config = load.load(TINY, small | {"optim.name": rule, "optim.weight_decay": 0.1, "seed": 5})
    made = setup.set_up(config)
    state = state_module.initial_state(made.functions, made.optimizer, made.batches.rows, 0)
    step = jax.jit(step_module.make_train_step(made.functions, made.optimizer, ONE))
    whole, part = (step(state, made.batches.batch_at(0), np.float32(rate), SEED)[0].params for rate in (0.1, 0.025))
    quarter = jax.tree.map(lambda before, after: before + 0.25 * (after - before), state.params, whole)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), part, quarter)
    assert feeding.arguments_maker(made)(state_module.Progress(), 1, [])[2] == 5
    never, twice = (feeding.learning_rates(made, state_module.Progress(halvings=number), 3, 2) for number in (0, 2))
    np.testing.assert_array_equal(twice, never / 4)
    assert (never > 0).all()


def test_nats_of_padding_are_counted_in_the_loss_alone():
    config = base.get_config()
    config.model.update({"hidden": 6, "layers": 1, "input": "onehot"})
    functions, optimizer = stack.functions(config, 7), optim.optimizer(config)
    state = state_module.initial_state(functions, optimizer, 3, 0)
    batch = framing_of("counted")
    logits, _ = functions.apply(state.params, batch, state.carry)
    nats_BS = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch.targets_BS[..., None], -1)[..., 0]
    _, metrics = jax.jit(step_module.make_train_step(functions, optimizer, ONE, pad=0))(state, batch, RATE, SEED)
    text_BS = batch.inputs_BT != 0
    assert (float(metrics.chars), float(metrics.loss_weight)) == (text_BS.sum(), text_BS.size)
    assert text_BS.sum() < text_BS.size
    assert float(metrics.nats) == pytest.approx(nats_BS[text_BS].sum(), rel=1e-5)
    assert float(metrics.loss_nats) == pytest.approx(nats_BS.sum(), rel=1e-5)


def test_padded_nats_are_the_number_that_keras_prints():
    # Two steps: 6 of 8 cells are text in the first, 2 of 4 in the second.
    sums = state_module.Sums()
    sums.add(nats=12.0, chars=6, loss_nats=12.8, loss_weight=8, grad_norm=1.0)
    sums.add(nats=5.0, chars=2, loss_nats=6.0, loss_weight=4, grad_norm=1.0)
    assert sums.measures()["nats"] == 17 / 8
    assert sums.measures()["padded_nats"] == (12.8 / 8 + 6 / 4) / 2
    assert sums.measures()["chars"] == 8
    unpadded = state_module.Sums()
    unpadded.add(nats=12.0, chars=6, loss_nats=12.0, loss_weight=6, grad_norm=1.0)
    assert "padded_nats" not in unpadded.measures()


def test_dropout_is_a_function_of_seed_and_step():  # invariant 2
    config = base.get_config()
    config.model.update({"hidden": 8, "dropout": 0.5})
    functions, optimizer = stack.functions(config, 5), optim.optimizer(config)
    batch = batches.Stream(np.arange(200, dtype=np.uint8) % 5, 2, 8, False, 0).batch_at(0)

    state = jax.jit(lambda: state_module.initial_state(functions, optimizer, 2, 0))()
    train_step = jax.jit(step_module.make_train_step(functions, optimizer, ONE))

    def nats(seed, step):
        return float(train_step(state._replace(step=jnp.asarray(step, jnp.int32)), batch, RATE, seed)[1].nats)

    assert nats(0, 3) == nats(0, 3)
    assert len({nats(seed, step) for seed in (0, 1) for step in (3, 4)}) == 4
    keys = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert not keys  # no key is ever stored


def test_learns_more_than_the_frequencies_of_symbols(small, corpus_file, tmp_path, capsys):
    overrides = small | {"train.steps": 120, "model.hidden": 32, "train.log_every": 30, "train.eval_every": 60}
    overrides |= {"train.checkpoint_every": 0}
    assert train.train(load.load(TINY, overrides), tmp_path / "run") == 0
    rows = read_rows(tmp_path / "run")
    _, counts = np.unique(list(corpus_file.read_text()), return_counts=True)
    shares = counts / counts.sum()
    entropy = -(shares * np.log(shares)).sum()
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation[-1]["nats"] < 0.9 * entropy
    assert [row["step"] for row in rows if row["split"] == "train"] == [30, 60, 90, 120]
    for row in rows:
        assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
        assert row["bits"] == pytest.approx(row["nats"] / np.log(2))
        assert row["chars"] == {"train": 30 * 4 * 16, "train_mean": 60 * 4 * 16, "validation": 1199}[row["split"]]
        assert row["epoch"] == pytest.approx(row["step"] / (10_799 // 64))
    # The mean since the evaluation before is that of the rows between, which are of equal length.
    losses = [row["nats"] for row in rows if row["split"] == "train"]
    means = [row["nats"] for row in rows if row["split"] == "train_mean"]
    assert means == pytest.approx([np.mean(losses[:2]), np.mean(losses[2:])], rel=1e-6)
    assert validation[-1]["protocol"] == {
        "corpus": Run(tmp_path / "run").corpus()["sha256"],
        "split": "validation",
        "state": "carried",
        "chars": 1199,
    }
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"], status["best"]["nats"]) == ("done", 120, validation[-1]["nats"])
    samples = sorted((tmp_path / "run" / "samples").iterdir())
    assert [file.name for file in samples] == ["00000060.txt", "00000120.txt"]
    assert all(len(file.read_text()) == 1 + 20 for file in samples)
    # Again: says so, changes nothing.
    capsys.readouterr()
    before = (tmp_path / "run" / "metrics.jsonl").stat()
    assert train.train(load.load(TINY, overrides), tmp_path / "run") == 0
    assert "is done at step 120: best validation" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").stat() == before


def test_evaluation_does_not_touch_training(small, tmp_path):  # invariant 4, second half
    small = small | {"model.dropout": 0.3, "sample.length": 5}
    train.train(load.load(TINY, small | {"train.eval_every": 1}), tmp_path / "often")
    train.train(load.load(TINY, small | {"train.eval_every": 0, "train.checkpoint_every": 0}), tmp_path / "once")
    assert_same(final_params(tmp_path / "often"), final_params(tmp_path / "once"))
    rows = [[row for row in read_rows(tmp_path / name) if row["split"] == "train"] for name in ("often", "once")]
    assert rows[0] == rows[1]


def test_best_and_two_latest_checkpoints_are_kept(small, tmp_path):
    rates = {"optim.learning_rate": 0.05, "optim.schedule": "constant", "train.steps": 40, "train.eval_every": 4, "seed": 3}
    train.train(load.load(TINY, small | rates | {"train.checkpoint_every": 6}), tmp_path / "run")
    run = Run(tmp_path / "run")
    nats = {row["step"]: row["nats"] for row in run.rows() if row["split"] == "validation"}
    best = min(nats, key=nats.get)
    assert run.status()["best"] == {"step": best, "nats": nats[best], "split": "validation"}
    assert Checkpoints(run.checkpoints, read_only=True).steps() == sorted({best, 36, 40})


def test_best_by_training_loss_where_there_is_no_validation_text(small, tmp_path):
    windows = {"batch.framing": "windows", "model.input": "scalar", "corpus.split": (1.0,), "batch.length": 12, "batch.size": 8}
    rates = {"optim.learning_rate": 0.05, "optim.schedule": "constant", "train.steps": 30, "train.eval_every": 5}
    overrides = small | windows | rates | {"train.checkpoint_every": 0}
    with pytest.raises(UserError, match=r"train.best=validation: corpus.split leaves no validation text, so it must be train."):
        train.train(load.load(TINY, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.train(load.load(TINY, overrides | {"train.best": "train"}), tmp_path / "run") == 0
    rows = Run(tmp_path / "run").rows()
    assert {row["split"] for row in rows} == {"train", "train_mean"}
    nats = {row["step"]: row["nats"] for row in rows if row["split"] == "train_mean"}
    best = min(nats, key=nats.get)
    assert Run(tmp_path / "run").status()["best"] == {"step": best, "nats": nats[best], "split": "train"}
    sample = (tmp_path / "run" / "samples" / "00000030.txt").read_text()
    assert len(sample) == 12 + 20  # a window of the corpus, and what the model adds


def test_devices_share_a_batch_with_the_same_result(small, corpus_file, tmp_path):
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    code = (
        "import sys; from charlm.config import load as config; from charlm.training import train; "
        "small = dict(pair.split('=', 1) for pair in sys.argv[2:]); "
        "configs = {n: config.load('configs/tiny.py', small | {'devices': n}) for n in '143'}; "
        "[train.train(configs[n], f'{sys.argv[1]}/{n}') for n in configs]"
    )
    more = {"model.dropout": 0.3, "train.steps": 12, "train.checkpoint_every": 0, "sample.length": 0}
    pairs = [f"{key}={value}" for key, value in (small | more).items()]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *pairs], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared = [int(number) for number in re.findall(r"4 rows on (\d) cpu devices", done.stdout)]
    assert shared == [4, 2]
    assert done.stdout.count("note: devices=3: only 2 of those available can share batch.size=4 evenly.") == 1
    assert_near = functools.partial(np.testing.assert_allclose, atol=1e-4)
    for number in ("4", "3"):
        for mine, others in zip(read_rows(tmp_path / number), read_rows(tmp_path / "1"), strict=True):
            assert mine["nats"] == pytest.approx(others["nats"], rel=1e-4)
        jax.tree.map(assert_near, final_params(tmp_path / number), final_params(tmp_path / "1"))


def test_a_step_has_one_sum_over_devices_and_an_evaluation_none(tmp_path):
    """With two of them in one program the two threads of a small machine can wait for each other for ever."""
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
functions, optimizer = stack.functions(config, 5), optim.optimizer(config)
mesh = Mesh(np.array(jax.devices()), ("rows",))
state = state_module.placed(state_module.initial_state(functions, optimizer, 4, 0), mesh)
stream = batches.Stream(np.arange(200, dtype=np.uint8) % 5, 4, 8, False, 0)
step = jax.jit(step_module.make_train_step(functions, optimizer, mesh))
print(step.lower(state, stream.batch_at(0), 1.0, 0).compile().as_text().count(" all-reduce("))
shared = jax.device_put(stream.batch_at(0), jax.tree.leaves(state.carry)[0].sharding)
window = jax.jit(evaluate.make_window(functions))
print(window.lower(state.params, shared, state.carry).compile().as_text().count("all-reduce"))
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "0"]


def test_divergence_is_noticed_at_its_step_and_the_last_good_checkpoint_kept(small, tmp_path):
    # Each step multiplies the weights by -1.5.
    overrides = small | {"optim.name": "sgd", "optim.learning_rate": 1.0, "optim.weight_decay": 2.5, "optim.clip_norm": 0.0}
    overrides |= {"optim.schedule": "constant", "train.steps": 40}
    config = load.load(TINY, overrides)
    message = (
        r"step \d+ is (not finite|[\d,.]+ nats per character).*: "
        r".* is marked diverged, and its last good checkpoint is kept"
    )
    with pytest.raises(Failure, match=message):
        train.train(config, tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert status["state"] == "diverged"
    rows = (tmp_path / "run" / "metrics.jsonl").read_text() if (tmp_path / "run" / "metrics.jsonl").exists() else ""
    assert "NaN" not in rows
    assert all(json.loads(line)["nats"] is not None for line in rows.splitlines())
    checkpoints = Checkpoints(Run(tmp_path / "run").checkpoints, read_only=True)
    saved = [step for step in range(1, status["step"]) if step % 3 == 0 or step % 4 == 0]
    assert checkpoints.steps() == sorted({status["best"]["step"], *saved[-2:]})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_params(tmp_path / "run")))
    with pytest.raises(Failure, match=r"has diverged \(.* step \d+ is .*\)"):
        train.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "optimizer", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adamw", "rmsprop"))]
)
def test_a_rate_of_a_thousand_has_diverged_within_a_log_interval(small, tmp_path, optimizer):
    """Bounded steps of 1,000 stay finite, but teach nothing."""
    wild = {
        "optim.name": optimizer,
        "optim.learning_rate": 1e3,
        "train.steps": 40,
        "train.log_every": 5,
        "train.eval_every": 20,
    }
    with pytest.raises(Failure, match=r"is marked diverged, and its last good checkpoint is kept"):
        train.train(load.load(TINY, small | wild), tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert status["state"] == "diverged"
    assert status["step"] <= 5


@pytest.mark.parametrize(("rows", "together"), [(8, 10), (500, 5), (800, 2), (2000, 1)])
def test_a_call_has_no_more_work_than_a_signal_can_wait_for(small, rows, together):
    config = load.load(TINY, small | {"model.hidden": 64, "model.layers": 2, "batch.size": rows, "batch.length": 1000})
    functions = stack.functions(config, 20)
    parameters = stack.parameter_count(jax.eval_shape(functions.init, jax.random.key(0)))
    assert setup.steps_per_call(0, batches.Framing.of(config), functions) == together
    assert together * 6 * parameters * rows * 1000 <= 1e12 or together == 1


def test_a_signal_is_followed_after_the_calls_that_are_under_way(small, tmp_path, monkeypatch):
    config = load.load(TINY, small | {"train.steps": 400, "train.log_every": 400, "train.steps_per_call": 10})
    config = load.load(TINY, load.flatten(config) | {"train.eval_every": 400, "train.checkpoint_every": 0})
    seen, add = [], judging.add_metrics

    def added(done, metrics):
        seen.append(done.step)  # of calls that have been begun
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(done, metrics)

    monkeypatch.setattr(judging, "add_metrics", added)
    assert train.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert Run(tmp_path / "run").status()["step"] <= seen[2] + 10


def test_a_stop_amid_an_evaluation_leaves_it_to_the_next_start(small, tmp_path, monkeypatch):
    config = load.load(TINY, small | {"train.steps": 8, "train.eval_every": 4})
    train.train(config, tmp_path / "straight")
    evaluator = evaluate.evaluator

    def stopped_at_once(*arguments):
        evaluate_split = evaluator(*arguments)

        def stopped(params, encoded, protocol, asked_to_stop):
            signal.raise_signal(signal.SIGTERM)
            return evaluate_split(params, encoded, protocol, asked_to_stop)

        return stopped

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluator", stopped_at_once)
        assert train.train(config, tmp_path / "run") == 128 + signal.SIGTERM
    assert [(row["step"], row["split"]) for row in read_rows(tmp_path / "run")] == [(2, "train"), (4, "train")]
    assert Run(tmp_path / "run").status()["state"] == "incomplete"
    assert train.train(config, tmp_path / "run") == 0
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "straight")
    assert_same(final_params(tmp_path / "run"), final_params(tmp_path / "straight"))


def test_patience_ends_a_run_that_gets_no_better(small, tmp_path):
    stale = {
        "optim.learning_rate": 1e-30,
        "train.eval_every": 1,
        "train.steps": 30,
        "train.patience": 3,
        "train.log_every": 100,
    }
    assert train.train(load.load(TINY, small | stale), tmp_path / "run") == 0
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"], status["best"]["step"]) == ("done", 4, 1)


def test_damaged_checkpoint_falls_back_to_the_one_before(small, tmp_path, capsys):
    config = load.load(TINY, small | {"model.dropout": 0.2})
    train.train(config, tmp_path / "straight")
    train.train(config, tmp_path / "damaged")
    run = Run(tmp_path / "damaged")
    for file in (run.checkpoints / "6").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"")
    run.write_status("incomplete", 6, None)
    capsys.readouterr()
    assert train.train(config, tmp_path / "damaged") == 0
    captured = capsys.readouterr()
    assert "checkpoints/6 can't be read" in captured.err
    assert "going back to the checkpoint before it" in captured.err
    assert "resuming at step 4 of 6" in captured.out
    assert_same(final_params(tmp_path / "damaged"), final_params(tmp_path / "straight"))
    assert read_rows(tmp_path / "damaged") == read_rows(tmp_path / "straight")


def test_killed_between_the_last_checkpoint_and_its_status_a_run_is_done(small, tmp_path):
    for name, extra in (
        ("steps", {}),
        ("patience", {"train.patience": 1, "optim.learning_rate": 1e-30, "train.eval_every": 1}),
    ):
        config = load.load(TINY, small | extra)
        train.train(config, tmp_path / name)
        run = Run(tmp_path / name)
        ended, rows, params = run.status(), read_rows(tmp_path / name), final_params(tmp_path / name)
        run.write_status("incomplete", ended["step"], ended["best"])
        assert train.train(config, tmp_path / name) == 0
        assert (run.status(), read_rows(tmp_path / name)) == (ended, rows)
        assert_same(final_params(tmp_path / name), params)


def test_no_readable_checkpoint_is_a_failure_that_touches_nothing(small, tmp_path):
    config = load.load(TINY, small)
    train.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    for file in run.checkpoints.rglob("manifest*"):
        file.write_bytes(b"")
    run.write_status("incomplete", 6, None)
    rows, steps = read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())
    with pytest.raises(Failure, match=r"no checkpoint of .* can be read: restore one from a copy"):
        train.train(config, tmp_path / "run")
    assert (read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())) == (rows, steps)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.lanes": 64, "eval.burn_in": 1300}, "eval.burn_in=1300 with 64 lanes does not fit a split of 1,200 chars"),
        ({"sample.prompt": "Q"}, r"sample.prompt has .*'Q' \(U\+0051\)"),
    ],
)
def test_what_only_an_evaluation_would_find_is_found_before_training(small, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train.train(load.load(TINY, small | overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_short_a_corpus_says_how_many_chars_it_needs(small, tmp_path):
    config = load.load(TINY, small | {"batch.size": 200, "batch.length": 100})
    with pytest.raises(UserError, match=r"has 10,800 chars, but one batch .* needs 20,001"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_symbols_unseen_in_training_are_an_error_unless_mapped(small, corpus_file, tmp_path):
    text = tmp_path / "text"
    text.write_text(corpus_file.read_text() + "Q?", encoding="utf-8")
    overrides = small | {"corpus.path": str(text)}
    with pytest.raises(UserError, match=r"the validation split has symbols .* '\?' \(U\+003F\), 'Q' \(U\+0051\)"):
        train.train(load.load(TINY, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.train(load.load(TINY, overrides | {"vocab.unknown": True}), tmp_path / "unk") == 0
    assert train.train(load.load(TINY, overrides | {"vocab.source": "corpus"}), tmp_path / "corpus") == 0


def test_tensorboard_mirrors_the_metrics(small, tmp_path):
    train.train(load.load(TINY, small), tmp_path / "run")
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    raw, events = file.read_bytes(), []
    while raw:  # TFRecord: 8 bytes of length, 4 of checksum, the event, 4 of checksum
        size = int.from_bytes(raw[:8], "little")
        events.append(Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    seen = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    for row in Run(tmp_path / "run").rows():
        assert seen[f"{row['split']}/nats", row["step"]] == pytest.approx(row["nats"], rel=1e-6)
    assert any(tag.startswith("_hparams_") for tag, _ in seen)


def test_signals_are_heard_once():
    before = signal.getsignal(signal.SIGTERM)
    with signals.caught() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("framing", ["stream", pytest.param("windows", marks=pytest.mark.slow)])
def test_several_steps_in_one_call_are_the_same_steps(small, tmp_path, framing):
    """Bit for bit, and whatever is logged, evaluated and saved between them."""
    every = {"train.log_every": 7, "train.eval_every": 16, "train.checkpoint_every": 11}
    more = {"train.steps": 33, "batch.framing": framing, **every}
    for together in (1, 4):
        checked = load.load(TINY, small | more | {"train.steps_per_call": together, "model.dropout": 0.3})
        assert train.train(checked, tmp_path / str(together)) == 0
    assert read_rows(tmp_path / "4") == read_rows(tmp_path / "1")
    assert_same(final_params(tmp_path / "4"), final_params(tmp_path / "1"))


def test_each_step_has_the_rate_of_its_place_in_the_schedule(small, tmp_path):
    """From the fourth step on the rate is next to nothing, so that the parameters stay as three steps have made them."""
    falling = {"optim.schedule": "step", "optim.decay_steps": 3, "optim.decay_rate": 1e-30, "optim.warmup_steps": 0}
    events = {"train.log_every": 10, "train.eval_every": 10, "train.checkpoint_every": 2}
    params = {}
    for steps, together in ((2, 1), (3, 1), (4, 2)):
        more = {"train.steps": steps, "train.steps_per_call": together}
        assert train.train(load.load(TINY, small | falling | events | more), tmp_path / str(steps)) == 0
        params[steps] = final_params(tmp_path / str(steps))
    assert_same(params[4], params[3])
    assert (params[2]["head_kernel"] != params[3]["head_kernel"]).any()


def test_calls_of_several_steps_end_before_anything_is_logged_and_begin_alike_after_a_resume(small):
    made = setup.set_up(load.load(TINY, small | {"train.steps": 100, "train.log_every": 14, "train.steps_per_call": 4}))
    made = dataclasses.replace(made, eval_every=30, checkpoint_every=0, steps_per_call=4)
    step, calls = 0, []
    while step < 100:
        count = feeding.steps_at_once(made, step)
        calls.append((step, step + count))
        step += count
    assert step == 100
    ends = {end for _, end in calls}
    assert ends >= set(range(14, 100, 14)) | {30, 60, 90, 100}
    assert {end - begin for begin, end in calls} == {1, 4}
    assert sum(end - begin == 4 for begin, end in calls) > 10
