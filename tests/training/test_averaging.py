"""Tests averages of the weights: against NumPy in float64, in the files of a run, and when a run is stopped and resumed."""

import contextlib
import functools
import os
import signal

import jax
import numpy as np
import optax
import pytest
from conftest import ROOT, assert_same, slow
from faults.checks import read_rows
from jax.sharding import Mesh

import charlm
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.inference.sample import sampler
from charlm.models import objective
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import averaging, judging, setup, state, train
from charlm.training import step as step_module

TINY = str(ROOT / "configs" / "tiny.py")
ONE_DEVICE = Mesh(np.array(jax.devices()[:1]), ("rows",))
SEED = np.uint32(0)
RATES = (0.0, 0.01, 0.03, 0.02, 0.03, 0.03)
EMA = {"optim.average": "ema", "optim.average_decay": 0.8}
TAIL = {"optim.average": "tail", "optim.average_last": 0.5}
# With this learning rate, the validation loss gets worse at the fourth step.
NT_ASGD = {"optim.average": "nt_asgd", "optim.average_patience": 0, "optim.schedule": "constant", "optim.learning_rate": 1.0}
SCHEDULE_FREE = {"optim.name": "schedule_free_adamw", "optim.schedule": "constant"}


def config_of(small, **more):
    return load.load(TINY, small | more)


def as_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def assert_close(found, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def steps_of(config, begins=None):
    """The states before the first step and after each of six steps. With nt_asgd, the average begins after `begins` steps."""
    made = setup.set_up(config)
    states = [state.initial_state_maker(made)(SEED)]
    step = jax.jit(step_module.make_train_step(made.functions, made.optimizer, ONE_DEVICE, averaging=made.averaging))
    for number, rate in enumerate(RATES, start=1):
        states.append(step(states[-1], made.batches.batch_at(number - 1), np.float32(rate), SEED)[0])
        if begins == number:
            states[-1] = state.with_begun_average(states[-1])
    return states


@pytest.fixture
def plain(small):
    """The parameters before the first step and after each step of a run without an average."""
    return [each.params for each in steps_of(config_of(small))]


def means_over(values, shares):
    """The running mean after each value: mean += share * (value - mean). A share of None restarts at the value."""
    mean, means = values[0], [values[0]]
    for value, share in zip(values[1:], shares, strict=True):
        mean = jax.tree.map(lambda old, new, share=share: new if share is None else old + share * (new - old), mean, value)
        means.append(mean)
    return means


def test_ema_is_the_bias_corrected_exponential_mean(small, plain):
    """The mean begins at 0, and is then divided by 1 - decay^step, as the moments of Adam."""
    states = steps_of(config_of(small, **EMA))
    moment = jax.tree.map(np.zeros_like, as_float64(plain[0]))
    for number, (raw, each) in enumerate(zip(plain[1:], states[1:], strict=True), start=1):
        assert_same(each.params, raw)  # the average does not change the training
        moment = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * new, moment, as_float64(raw))
        assert_close(each.average.params, jax.tree.map(lambda leaf, n=number: leaf / (1 - 0.8**n), moment))


def test_tail_is_the_mean_over_the_last_share_of_the_steps(small, plain):
    states = steps_of(config_of(small, **TAIL))  # train.steps is 6, so the tail begins after 3 steps
    for number in range(4):
        assert_same(states[number].average.params, plain[number])
    for number in (4, 5, 6):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *as_float64(plain[4 : number + 1]))
        assert_close(states[number].average.params, mean)
        assert_same(states[number].params, plain[number])


def test_nt_asgd_is_the_mean_of_the_weights_from_its_beginning_on(small, plain):
    states = steps_of(config_of(small, **{"optim.average": "nt_asgd", "optim.schedule": "constant"}), begins=2)
    for number in range(3):
        assert_same(states[number].average.params, plain[number])
    for number in (3, 4, 5, 6):
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *as_float64(plain[2 : number + 1]))
        assert_close(states[number].average.params, mean)


def test_the_trigger_of_nt_asgd_equals_algorithm_1_of_its_paper():
    """The expected numbers are worked out by hand: n = 2, and a loss is compared with all losses but the two before it."""
    losses = [3.0, 2.0, 2.5, 2.9, 2.1, 2.2]
    triggers = [averaging.stops_improving(loss, losses[:number], 2) for number, loss in enumerate(losses)]
    assert triggers == [False, False, False, False, True, True]  # 2.1 > min(3, 2); before, 2.9 is not above 3
    assert [averaging.stops_improving(2.5, [2.0] * count, 0) for count in (0, 1)] == [False, True]
    assert not averaging.stops_improving(2.0, [2.0, 5.0], 1)  # equal is not worse


def test_schedule_free_averages_by_the_squares_of_the_largest_rate(small):
    states = steps_of(config_of(small, **SCHEDULE_FREE))
    largest = np.maximum.accumulate(np.float64(RATES))
    shares = [None, *(largest[1:] ** 2 / np.cumsum(largest**2)[1:])]
    means = means_over(as_float64([each.params for each in states]), shares)
    for each, mean in zip(states, means, strict=True):
        assert_close(each.average.params, mean)


def test_schedule_free_adamw_equals_optax(small):
    """Optax keeps the weights at which the gradient is taken. Here they are made of the raw weights and the average."""
    config = config_of(small, **SCHEDULE_FREE, **{"optim.beta1": 0.7, "optim.weight_decay": 0.1, "optim.decay_biases": True})
    made, rate = setup.set_up(config), np.float32(0.02)
    step = jax.jit(step_module.make_train_step(made.functions, made.optimizer, ONE_DEVICE, averaging=made.averaging))
    ours = state.initial_state_maker(made)(SEED)
    peer = optax.chain(
        optax.clip_by_global_norm(config.optim.clip_norm),
        optax.contrib.schedule_free_adamw(float(rate), b1=0.7, b2=config.optim.beta2, weight_decay=0.1),
    )
    point = ours.params
    peer_state, carry, update = peer.init(point), ours.carry, jax.jit(peer.update)

    @jax.jit
    def gradient(params, batch, carry):
        def loss(params):
            logits, new_carry = made.functions.apply(params, batch, carry)
            nats, weight = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS)
            return nats / weight, new_carry

        return jax.grad(loss, has_aux=True)(params)

    for number in range(5):
        batch = made.batches.batch_at(number)
        ours, _ = step(ours, batch, rate, SEED)
        grads, carry = gradient(point, batch, carry)
        updates, peer_state = update(grads, peer_state, point)
        point = optax.apply_updates(point, updates)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-5),
        ours.average.params,
        optax.contrib.schedule_free_eval_params(peer_state[1], point),
    )
    moved = jax.tree.map(lambda raw, mean: float(abs(raw - mean).max()), ours.params, ours.average.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def saved(workdir, config):
    """The raw weights and the average in the latest checkpoint, and its progress without times."""
    with contextlib.closing(Checkpoints(Run(workdir).checkpoints, read_only=True)) as checkpoints:
        latest = state.latest_checkpoint(setup.set_up(config), checkpoints)
    found = state.from_checkpoint(latest.step, latest.params, latest.rest)
    return found, {name: value for name, value in latest.progress.items() if name not in ("seconds", "interval_seconds")}


KINDS = {
    "ema": EMA | {"optim.name": "muon"},
    "tail": TAIL | {"optim.name": "adan"},
    "nt_asgd": NT_ASGD,
    "schedule_free": SCHEDULE_FREE,
    "adafactor": {"optim.name": "adafactor"},
    "lion": {"optim.name": "lion"},
}


SLOW = ("ema", "tail", "adafactor", "lion", "nt_asgd")


@pytest.mark.parametrize("kind", [slow(kind) if kind in SLOW else kind for kind in KINDS])
def test_a_run_stopped_between_evaluations_resumes_bit_by_bit(kind, small, tmp_path, monkeypatch):
    lengths = {"train.steps": 10, "train.eval_every": 2, "train.log_every": 1, "train.steps_per_call": 1}
    config = config_of(small, **lengths, **KINDS[kind])
    assert train.train(config, str(tmp_path / "whole")) == 0
    real, stop_at = judging.add_metrics, 7
    with monkeypatch.context() as patch:
        patch.setattr(judging, "add_metrics", lambda progress, metrics: real(progress, metrics) or progress.step >= stop_at)
        assert train.train(config, str(tmp_path / "run")) == 128 + signal.SIGTERM
    assert Run(tmp_path / "run").status()["step"] == stop_at
    assert train.train(config, str(tmp_path / "run")) == 0
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "whole")
    found, expected = saved(tmp_path / "run", config), saved(tmp_path / "whole", config)
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]
    averaged = [row["step"] for row in read_rows(tmp_path / "run") if row.get("weights") == "average"]
    if kind == "nt_asgd":
        began_at = found[1]["began_at"]
        losses = [
            row["nats"] for row in read_rows(tmp_path / "run") if row["split"] == "validation" and row["step"] <= began_at
        ]
        assert found[1]["losses"] == losses
        assert losses[-1] > min(losses[:-1])
        assert began_at < stop_at
        assert averaged == list(range(began_at + 2, 11, 2))
        assert found[0].average.number == 10 - began_at + 1
    else:
        assert averaged == {"ema": [2, 4, 6, 8, 10], "tail": [8, 10], "schedule_free": [2, 4, 6, 8, 10]}.get(kind, [])
        assert not {"losses", "began_at"} & found[1].keys()


def test_the_average_is_evaluated_loaded_exported_and_inherited(script, small, plain, tmp_path):
    config = config_of(small, **EMA, **{"train.eval_every": 6, "optim.schedule": "constant"})
    assert train.train(config, str(tmp_path / "run")) == 0
    found, _ = saved(tmp_path / "run", config)
    model = charlm.load(tmp_path / "run")
    assert_same(model.params, found.average.params)
    assert max(jax.tree.leaves(jax.tree.map(lambda raw, mean: float(abs(raw - mean).max()), found.params, model.params))) > 1e-3
    (row,) = (row for row in read_rows(tmp_path / "run") if row["split"] == "validation")
    assert row["weights"] == "average"
    text = Run(tmp_path / "run").splits()["validation"]
    assert model.score(str(text))["nats"] == pytest.approx(row["nats"], abs=1e-5)
    generate, noise = sampler(setup.set_up(config).functions, model.vocab), jax.random.fold_in(jax.random.key(0), 0)
    drawn = [
        np.concatenate(list(generate(params, model.vocab.encode("ab"), 1, 200, 1.0, noise)), axis=1)[0]
        for params in (found.average.params, found.params)
    ]
    assert model.sample("ab", 200, 1.0, top_k=0, window=0) == "ab" + model.vocab.decode(drawn[0])
    assert not np.array_equal(*drawn)
    script("export", f"--workdir={tmp_path / 'run'}", "--format=npz", f"--output={tmp_path / 'run.npz'}")
    with np.load(tmp_path / "run.npz") as exported:
        np.testing.assert_array_equal(exported["head.bias"], model.params["head_bias"])
    child = config_of(small, **EMA, **{"train.init_from": os.fspath(tmp_path / "run"), "train.steps": 2})
    made = setup.set_up(child)
    inherited = train.inheriting.read(child, made).state
    assert_same(inherited.params, model.params)
    assert_same(inherited.average.params, model.params)
    assert int(inherited.average.number) == 0
    assert train.train(child, str(tmp_path / "child")) == 0


@pytest.mark.slow
def test_a_longer_tail_run_averages_over_the_end_of_the_longer_run(small, tmp_path):
    overrides = TAIL | {"optim.schedule": "constant"}
    short, long = (config_of(small, **overrides, **{"train.steps": steps}) for steps in (6, 14))
    assert train.train(short, str(tmp_path / "run")) == 0
    assert train.train(long, str(tmp_path / "run"), extend=True) == 0
    assert train.train(long, str(tmp_path / "whole")) == 0
    assert_same(saved(tmp_path / "run", long)[0], saved(tmp_path / "whole", long)[0])
    with pytest.raises(UserError, match=r"optim\.average_last"):
        train.train(config_of(small, **overrides | {"train.steps": 20, "optim.average_last": 0.1}), str(tmp_path / "run"), True)


@pytest.mark.slow
def test_losses_of_another_protocol_do_not_decide_when_nt_asgd_begins(small, tmp_path):
    config = config_of(small, **NT_ASGD | {"optim.average_patience": 50})
    assert train.train(config, str(tmp_path / "run")) == 0
    assert len(saved(tmp_path / "run", config)[1]["losses"]) == 2
    longer = config_of(small, **NT_ASGD | {"optim.average_patience": 50, "train.steps": 8, "eval.lanes": 2})
    assert train.train(longer, str(tmp_path / "run"), extend=True) == 0
    assert len(saved(tmp_path / "run", longer)[1]["losses"]) == 1
    values = load.flatten(config)
    assert {"train.eval_every", "eval.lanes"} <= keys.RESUMABLE - keys.resumable(values)


def test_without_an_average_a_checkpoint_has_the_same_parts_as_before(small):
    made = setup.set_up(config_of(small))
    params, rest = state.to_checkpoint(jax.eval_shape(state.initial_state_maker(made), SEED))
    assert params.keys() == {"embedding", "head_bias", "head_kernel", "lstm_0"}
    assert len(rest) == 2  # the state of the optimiser and the carry
    before = {"step", "interval", "epoch", "interval_seconds", "seconds", "best", "since_best", "evaluated", "rows", "halvings"}
    assert state.Progress().to_dict().keys() == before
    with_average = state.Progress(losses=[2.0, 1.5], began_at=4)
    assert state.Progress.from_dict(with_average.to_dict()) == with_average


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"optim.average": "ema", "optim.name": "schedule_free_adamw"},
            r"^optim\.average=ema and optim\.name=schedule_free_adamw: .* leave out optim\.average\.$",
        ),
        (
            {"optim.average": "nt_asgd", "corpus.split": (1.0,), "train.best": "train"},
            r"^optim\.average=nt_asgd: corpus\.split leaves no validation text, .* choose ema or tail\.$",
        ),
        ({"optim.average": "swa"}, r"^optim\.average='swa': must be empty, ema, tail or nt_asgd"),
        ({"optim.average_decay": 1.0}, r"^optim\.average_decay=1\.0: must be above 0 and below 1\.$"),
        ({"optim.average_last": 0.0}, r"^optim\.average_last=0\.0: must be above 0 and at most 1\.$"),
        ({"optim.average_patience": -1}, r"^optim\.average_patience=-1: must be 0 or more\.$"),
    ],
)
def test_averages_that_make_no_sense_are_refused_before_anything_is_written(overrides, message, small, tmp_path):
    with pytest.raises(UserError, match=message):
        train.train(config_of(small, **overrides), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_keys_without_effect_and_rates_that_fall_are_told(small, capsys):
    setup.set_up(config_of(small, **{"optim.average": "tail", "optim.average_decay": 0.5}))
    assert "optim.average_decay has no effect: optim.average=tail does not read it." in capsys.readouterr().err
    setup.set_up(config_of(small, **{"optim.average_patience": 3}))
    assert "optim.average_patience has no effect: optim.average=(empty) does not read it." in capsys.readouterr().err
    for overrides in ({"optim.average": "nt_asgd"}, {"optim.name": "schedule_free_adamw"}):
        (setting,) = (f"{key}={value}" for key, value in overrides.items())
        setup.set_up(config_of(small, **overrides))
        warning = f"{setting} is meant for a learning rate that does not fall: set optim.schedule=constant."
        assert warning in capsys.readouterr().err
        setup.set_up(config_of(small, **overrides, **{"optim.schedule": "constant"}))
        assert capsys.readouterr().err == ""
    setup.set_up(config_of(small, **{"optim.average": "tail", "train.patience": 2, "train.best": "train"}))
    told = capsys.readouterr().err
    assert "optim.average=tail and train.patience: if the training ends before the tail begins, there is no average" in told
    assert "train.best=train and optim.average=tail: the training loss of the raw weights selects the best" in told
