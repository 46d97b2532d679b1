"""The step and the loop: what is learned, logged, kept, stopped, and left alone."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_rows

from charlm import batches, model, objective, optim, train
from charlm import config as config_module
from charlm.checkpoint import Checkpoints
from charlm.errors import Failure, UserError
from charlm.run import Run
from configs import base

TINY = "configs/tiny.py"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)


def final_params(workdir):
    checkpoints = Checkpoints(Run(workdir).checkpoints, read_only=True)
    config = Run(workdir).config()
    functions = model.functions(config, len(Run(workdir).vocab()))
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    return jax.tree.map(np.asarray, checkpoints.restore_params(checkpoints.steps()[-1], abstract))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_step_lowers_for_every_platform(platform, dtype):
    config = base.get_config()
    config.model.update({"hidden": 16, "dropout": 0.3, "dtype": dtype})
    functions, optimizer = model.functions(config, 11), optim.optimizer(config, 10)
    state = jax.eval_shape(lambda: train.initial_state(functions, optimizer, 4, 0))
    batch = batches.Stream(np.zeros(1000, np.uint8), 4, 32, True, 0).batch_at(0)
    step = jax.jit(train.make_train_step(functions, optimizer, 0), donate_argnums=0)
    lowered = step.trace(state, batch).lower(lowering_platforms=(platform,))
    assert "stablehlo.while" in lowered.as_text()


@pytest.mark.parametrize("encoding", ["embedding", "onehot"])
def test_gradient_of_the_loss_against_finite_differences_in_float64(encoding):
    config = base.get_config()
    config.model.update({"hidden": 5, "embedding": 3, "dtype": "float64", "input": encoding})
    with jax.enable_x64(True):
        functions = model.functions(config, 7)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), functions.init(jax.random.key(0)))
        ids_BT = np.random.default_rng(0).integers(0, 7, (2, 10)).astype(np.int32)
        batch = batches.Batch(ids_BT, ids_BT[::-1], np.ones((2, 10)), np.zeros(2, bool))

        @jax.jit
        def loss(params):
            logits, _ = functions.apply(params, batch, functions.zero_carry(2))
            return objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS)[0]

        gradients = jax.grad(loss)(params)
        rng = np.random.default_rng(1)
        leaves, structure = jax.tree.flatten(params)
        for position, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = rng.normal(size=gradient.shape)

            def shifted(by, position=position, direction=direction):
                return loss(structure.unflatten([a + by * direction if k == position else a for k, a in enumerate(leaves)]))

            difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
            np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-6)


def test_dropout_is_a_function_of_seed_and_step():  # invariant 2
    config = base.get_config()
    config.model.update({"hidden": 8, "dropout": 0.5})
    functions, optimizer = model.functions(config, 5), optim.optimizer(config, 10)
    batch = batches.Stream(np.arange(200, dtype=np.uint8) % 5, 2, 8, False, 0).batch_at(0)

    state = jax.jit(lambda: train.initial_state(functions, optimizer, 2, 0))()
    steps = [jax.jit(train.make_train_step(functions, optimizer, seed)) for seed in (0, 1)]

    def nats(seed, step):
        return float(steps[seed](state._replace(step=jnp.asarray(step, jnp.int32)), batch)[1].nats)

    assert nats(0, 3) == nats(0, 3)
    assert len({nats(seed, step) for seed in (0, 1) for step in (3, 4)}) == 4
    keys = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    assert not keys  # no key is ever stored


def test_learns_more_than_the_frequencies_of_symbols(small, corpus_file, tmp_path, capsys):
    overrides = small | {"train.steps": 120, "model.hidden": 32, "train.log_every": 30, "train.eval_every": 60}
    assert train.train(config_module.load(TINY, overrides), tmp_path / "run") == 0
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
        assert row["chars"] == (30 * 4 * 16 if row["split"] == "train" else 1199)
        assert row["epoch"] == pytest.approx(row["step"] / (10_799 // 64))
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
    assert train.train(config_module.load(TINY, overrides), tmp_path / "run") == 0
    assert "is done at step 120: best validation" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").stat() == before


def test_evaluation_does_not_touch_training(small, tmp_path):  # invariant 4, second half
    small = small | {"model.dropout": 0.3, "sample.length": 5}
    train.train(config_module.load(TINY, small | {"train.eval_every": 1}), tmp_path / "often")
    train.train(config_module.load(TINY, small | {"train.eval_every": 0, "train.checkpoint_every": 0}), tmp_path / "once")
    assert_same(final_params(tmp_path / "often"), final_params(tmp_path / "once"))
    rows = [[row for row in read_rows(tmp_path / name) if row["split"] == "train"] for name in ("often", "once")]
    assert rows[0] == rows[1]


def test_best_and_two_latest_checkpoints_are_kept(small, tmp_path):
    rates = {"optim.learning_rate": 0.05, "optim.schedule": "constant", "train.steps": 40, "train.eval_every": 4, "seed": 3}
    train.train(config_module.load(TINY, small | rates | {"train.checkpoint_every": 6}), tmp_path / "run")
    run = Run(tmp_path / "run")
    nats = {row["step"]: row["nats"] for row in run.rows() if row["split"] == "validation"}
    best = min(nats, key=nats.get)
    assert run.status()["best"] == {"step": best, "nats": nats[best]}
    assert Checkpoints(run.checkpoints, read_only=True).steps() == sorted({best, 36, 40})


def test_divergence_is_noticed_at_its_step_and_the_last_good_checkpoint_kept(small, tmp_path):
    # Each step multiplies the weights by -999, so that after a dozen they exceed the largest float.
    overrides = small | {"optim.name": "sgd", "optim.learning_rate": 1.0, "optim.weight_decay": 1e3, "optim.clip_norm": 0.0}
    overrides |= {"optim.schedule": "constant", "train.steps": 40}
    config = config_module.load(TINY, overrides)
    with pytest.raises(Failure, match=r"step \d+ is not finite: .* is marked diverged and its last good checkpoint kept"):
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
    with pytest.raises(Failure, match=r"has diverged \(.* step \d+ is not finite\)"):
        train.train(config, tmp_path / "run")


def test_patience_ends_a_run_that_gets_no_better(small, tmp_path):
    stale = {
        "optim.learning_rate": 1e-30,
        "train.eval_every": 1,
        "train.steps": 30,
        "train.patience": 3,
        "train.log_every": 100,
    }
    assert train.train(config_module.load(TINY, small | stale), tmp_path / "run") == 0
    status = Run(tmp_path / "run").status()
    assert (status["state"], status["step"], status["best"]["step"]) == ("done", 4, 1)


def test_damaged_checkpoint_falls_back_to_the_one_before(small, tmp_path, capsys):
    config = config_module.load(TINY, small | {"model.dropout": 0.2})
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
        config = config_module.load(TINY, small | extra)
        train.train(config, tmp_path / name)
        run = Run(tmp_path / name)
        ended, rows, params = run.status(), read_rows(tmp_path / name), final_params(tmp_path / name)
        run.write_status("incomplete", ended["step"], ended["best"])
        assert train.train(config, tmp_path / name) == 0
        assert (run.status(), read_rows(tmp_path / name)) == (ended, rows)
        assert_same(final_params(tmp_path / name), params)


def test_no_readable_checkpoint_is_a_failure_that_touches_nothing(small, tmp_path):
    config = config_module.load(TINY, small)
    train.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    for file in run.checkpoints.rglob("manifest*"):
        file.write_bytes(b"")
    run.write_status("incomplete", 6, None)
    rows, steps = read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())
    with pytest.raises(Failure, match=r"no checkpoint of .* can be read: restore one from a copy"):
        train.train(config, tmp_path / "run")
    assert (read_rows(tmp_path / "run"), sorted(run.checkpoints.iterdir())) == (rows, steps)


@pytest.mark.parametrize("overrides", [{"eval.lanes": 64, "eval.burn_in": 1300}, {"sample.prompt": "Q"}])
def test_what_only_an_evaluation_would_find_is_found_before_training(small, tmp_path, overrides):
    with pytest.raises(UserError):
        train.train(config_module.load(TINY, small | overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_short_a_corpus_says_how_many_chars_it_needs(small, tmp_path):
    config = config_module.load(TINY, small | {"batch.size": 200, "batch.length": 100})
    with pytest.raises(UserError, match=r"has 10,800 chars, but one batch .* needs 20,001"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_symbols_unseen_in_training_are_an_error_unless_mapped(small, corpus_file, tmp_path):
    text = tmp_path / "text"
    text.write_text(corpus_file.read_text() + "Q?", encoding="utf-8")
    overrides = small | {"corpus.path": str(text)}
    with pytest.raises(UserError, match=r"the validation split has symbols .* '\?' \(U\+003F\), 'Q' \(U\+0051\)"):
        train.train(config_module.load(TINY, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train.train(config_module.load(TINY, overrides | {"vocab.unknown": True}), tmp_path / "unk") == 0
    assert train.train(config_module.load(TINY, overrides | {"vocab.source": "corpus"}), tmp_path / "corpus") == 0


def test_tensorboard_mirrors_the_metrics(small, tmp_path):
    train.train(config_module.load(TINY, small), tmp_path / "run")
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
    with train._signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == before
