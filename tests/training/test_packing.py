"""Tests trials that are trained as one compiled program: each equals the trial trained alone, and none changes another."""

import fcntl
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_near_rows, final_params, slow
from faults.checks import differences, read_rows

import charlm
from charlm.config import load, packs
from charlm.errors import Broken
from charlm.hardware import devices
from charlm.models import dropout, kernels
from charlm.rundir.run import Run
from charlm.training import judging, packing, setup, state, train
from charlm.training.requests import Begin, Steps

# Every key of packs.ON_DEVICE is above 0, except the key that would replace `optim.weight_decay`.
BASE = {
    "model.layers": 2,
    "optim.weight_decay": 0.02,
    "model.dropout": 0.1,
    "model.dropout_input": 0.1,
    "model.dropout_hidden": 0.2,
    "model.dropout_output": 0.3,
    "model.weight_drop": 0.1,
    "model.embedding_dropout": 0.1,
    "model.recurrent_dropout": 0.1,
    "model.init": "uniform",
    "optim.learning_rate": 0.01,
    "optim.schedule": "constant",
    "train.steps": 12,
    "train.log_every": 3,
    "train.eval_every": 6,
    "train.checkpoint_every": 3,
    "train.steps_per_call": 3,
    "sample.length": 10,
}
# Together, the trials differ in every key in which the trials of a pack may differ.
TRIALS = (
    {
        "optim.schedule": "trapezoid",
        "optim.decay_epochs": 0.03,
        "optim.final_fraction": 0.3,
        "optim.warmup_steps": 2,
        "model.init_scale": 0.3,
    },
    {
        "seed": 5,
        "optim.learning_rate": 0.02,
        "optim.schedule": "step",
        "optim.decay_rate": 0.3,
        "optim.decay_steps": 2,
        "optim.decay_after": 3.0,
        "model.init": "orthogonal",
        "model.head_scale": 0.2,
        "model.forget_bias": 2.0,
        **{key: BASE[key] + 0.15 for key in packs.ON_DEVICE if key in BASE},
    },
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def trials_in(folder, configs):
    folder.mkdir(exist_ok=True)
    return [
        config and packing.Trial(str(place), str(folder / str(place)), str(folder / f"{place}.log"), config)
        for place, config in enumerate(configs)
    ]


def test_a_trial_of_a_pack_equals_the_trial_alone_whatever_key_it_varies(small, tmp_path, capsys):
    tested_below = {"optim.weight_decay_epochs", "optim.weight_rms"}
    assert {key for trial in TRIALS for key in trial} == {*packs.FREE, *packs.ON_DEVICE} - tested_below
    configs = [load.load(TINY, small | BASE | trial) for trial in TRIALS]
    assert packing.train(trials_in(tmp_path / "runs", configs)) == 0
    losses = set()
    for place, config in enumerate(configs):
        packed, alone = tmp_path / "runs" / str(place), tmp_path / "alone" / str(place)
        assert train.train(config, str(alone)) == 0
        assert_near_rows(packed, alone)
        # What remains are differences in the last digits of the losses and of the parameters.
        assert set(differences(packed, alone)) <= {"rows of metrics", "status", "parameters"}
        jax.tree.map(assert_near, final_params(packed), final_params(alone))
        log = (tmp_path / "runs" / f"{place}.log").read_text()
        assert log.count("step 12/12  validation") == log.count("done at step 12") == 1
        losses.add(read_rows(alone)[-1]["nats"])
    assert len(losses) == len(TRIALS)  # otherwise, exchanged trials would not be noticed
    assert "2 trials in a pack on 1 device" in capsys.readouterr().out
    runs = {run["name"]: run for run in charlm.runs(tmp_path)}
    for place in range(len(TRIALS)):
        packed, alone = runs[f"runs/{place}"], runs[f"alone/{place}"]
        assert packed["problems"] == alone["problems"] == []
        different = {name for name in packed if packed[name] != alone[name]}
        assert different <= {"name", "path", "seconds", "chars_per_second", "rows", "best", "last", "train", "bits_per_byte"}


@pytest.mark.parametrize("key", ["optim.learning_rate", "optim.weight_rms"])
def test_trials_of_a_pack_differ_in_the_time_of_weight_decay_and_in_the_rate_to_which_it_is_relative(small, tmp_path, key):
    times = [{"optim.weight_decay_epochs": 0.2, key: 0.01}, {"optim.weight_decay_epochs": 0.3, key: 0.02}]
    configs = [load.load(TINY, small | {"optim.name": "adamw", "train.steps": 3, "sample.length": 0} | each) for each in times]
    assert packing.train(trials_in(tmp_path, configs)) == 0
    found = [final_params(tmp_path / str(place)) for place in range(2)]
    for place, config in enumerate(configs):
        assert train.train(config, str(tmp_path / "alone" / str(place))) == 0
        jax.tree.map(assert_near, found[place], final_params(tmp_path / "alone" / str(place)))
    with pytest.raises(AssertionError):
        jax.tree.map(assert_near, *found)


def assert_near(left, right):
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=3e-4)


# A small pack for the tests of what one trial could change in another. In these tests, trial 1 stays the same.
SMALL = {"batch.size": 4, "batch.length": 16, "model.hidden": 8, "model.dropout": 0.2, "optim.schedule": "constant"}
SMALL |= {"train.steps": 8, "train.eval_every": 2, "train.log_every": 2, "train.patience": 2, "sample.length": 5}
SMALL |= {"train.halvings": 2}
NORMAL = ({"seed": 1}, {"seed": 2}, {"seed": 3, "optim.learning_rate": 0.03})
STALE, WILD = {"optim.learning_rate": 1e-30}, {"optim.learning_rate": 3e38}


@pytest.fixture(scope="module")
def three(corpus_file, tmp_path_factory):
    """Returns a function that trains a pack of three trials. The first call with the same trials trains them."""
    folders = {}

    def run(*trials, status=0):
        name = json.dumps(trials)
        if name not in folders:
            folder = folders[name] = tmp_path_factory.mktemp("pack")
            fixed = SMALL | {"corpus.path": str(corpus_file)}
            configs = [trial and load.load(str(ROOT / TINY), fixed | trial) for trial in trials]
            assert packing.train(trials_in(folder, configs)) == status
        return folders[name]

    return run


@pytest.mark.parametrize(
    ("trials", "status"),
    [
        (({"seed": 7}, NORMAL[1], NORMAL[2]), 0),  # another seed
        ((WILD, NORMAL[1], NORMAL[2]), 1),  # has an infinite loss and NaN gradients, goes back two times, and then ends
        ((NORMAL[0], NORMAL[1], STALE), 0),  # stops early
        slow((None, NORMAL[1], NORMAL[2]), 0),  # has already ended
    ],
    ids=["seed", "nan", "early stop", "ended"],
)
def test_a_trial_gets_the_same_bits_whatever_another_trial_does(three, trials, status):
    folder, normal = three(*trials, status=status), three(*NORMAL)
    assert differences(folder / "1", normal / "1") == []
    (changed,) = [place for place in range(3) if trials[place] != NORMAL[place]]
    if trials[changed] is None:
        assert not (folder / str(changed)).exists()
        return
    ended = Run(folder / str(changed)).status()
    if trials[changed] == WILD:
        assert (ended["state"], ended["step"] <= 2) == ("diverged", True)
        log = (folder / f"{changed}.log").read_text()
        assert (log.count("halving the learning rate"), log.count("is marked diverged")) == (2, 1)
        return
    assert read_rows(folder / str(changed)) != read_rows(normal / str(changed))
    if trials[changed] == STALE:
        assert (ended["state"], ended["step"]) == ("done", 6)  # the best evaluation is the first, at step 2
    assert Run(folder / "1").status()["step"] == 8


@pytest.mark.slow  # sweeps/test_packed.py kills a pack in the default suite, too
def test_a_killed_pack_resumes_to_the_same_bits_although_its_trials_are_at_different_steps(three, tmp_path, monkeypatch):
    configs = [Run(three(*NORMAL) / str(place)).config() for place in range(3)]
    stepped = packing.Pack._stepped

    def killed(pack, requests):
        if requests[0].step == 5:
            raise KeyboardInterrupt
        return stepped(pack, requests)

    monkeypatch.setattr(packing.Pack, "_stepped", killed)
    with pytest.raises(KeyboardInterrupt):
        packing.train(trials_in(tmp_path / "runs", configs))
    saved = [max(int(path.name) for path in (tmp_path / "runs" / str(place) / "checkpoints").iterdir()) for place in range(3)]
    assert saved == [4, 4, 4]
    shutil.copytree(tmp_path / "runs" / "1", tmp_path / "alone")
    shutil.rmtree(tmp_path / "runs" / "0" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "runs" / "2")
    steps = []

    def noted(pack, requests):
        steps.append({place: request.step for place, request in requests.items()})
        return stepped(pack, requests)

    monkeypatch.setattr(packing.Pack, "_stepped", noted)
    assert packing.train(trials_in(tmp_path / "runs", configs)) == 0
    assert steps == [{2: 0}, {2: 1}, {0: 2, 2: 2}, {0: 3, 2: 3}, *({0: step, 1: step, 2: step} for step in range(4, 8))]
    for place in map(str, range(3)):
        assert differences(tmp_path / "runs" / place, three(*NORMAL) / place) == []
    # A trial that was begun in a pack can also go on alone.
    assert train.train(configs[1], str(tmp_path / "alone")) == 0
    assert_near_rows(tmp_path / "alone", three(*NORMAL) / "1")


def test_an_error_of_a_trial_ends_only_this_trial(three, tmp_path, monkeypatch):
    configs = [Run(three(*NORMAL) / str(place)).config() for place in range(3)]
    train_row = judging.train_row

    def without_file(made, progress):
        if made.seed == 3:
            (tmp_path / "runs" / "2" / "metrics.jsonl").mkdir()  # so that no row can be written
        return train_row(made, progress)

    monkeypatch.setattr(judging, "train_row", without_file)
    (tmp_path / "runs" / "0").mkdir(parents=True)
    with (tmp_path / "runs" / "0" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process trains this trial
        with pytest.raises(Broken, match="runs/2 can't be written"):
            packing.train(trials_in(tmp_path / "runs", configs))
    logs = [(tmp_path / "runs" / f"{place}.log").read_text().splitlines()[-1] for place in (0, 2)]
    assert logs[0].startswith(f"error: --workdir={tmp_path / 'runs' / '0'} is in use by another process")
    assert logs[1].startswith(f"error: {tmp_path / 'runs' / '2'} can't be written (Is a directory)")
    assert differences(tmp_path / "runs" / "1", three(*NORMAL) / "1") == []


def test_an_unexpected_error_of_a_trial_is_in_its_log(tmp_path):
    def training():
        yield
        raise ZeroDivisionError("an unexpected error")

    with (tmp_path / "log").open("w") as log:
        member = packing._Member("a", training(), log)
        member.resume(None)
        assert member.resume(None) is None
    assert member.status == 1
    assert (tmp_path / "log").read_text().endswith("ZeroDivisionError: an unexpected error\n\n")


def test_an_error_of_the_program_marks_all_trials_as_failed(three, tmp_path, monkeypatch):
    configs = [Run(three(*NORMAL) / str(place)).config() for place in range(3)]

    def fails(pack, requests):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(packing.Pack, "_stepped", fails)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        packing.train(trials_in(tmp_path / "runs", configs))
    statuses = [Run(tmp_path / "runs" / str(place)).status() for place in range(3)]
    assert [status["state"] for status in statuses] == ["failed"] * 3
    assert all("out of memory" in status["message"] for status in statuses)


def pack_of(overrides):
    """Returns a pack of two trials, and the arguments of its first call."""
    configs = [load.load(TINY, overrides | {"seed": seed}) for seed in (0, 1)]
    setups = [setup.set_up(configs[0], trials=2)]
    setups.append(setup.set_up(configs[1], trials=2, like=setups[0]))
    begins = {place: Begin(made, state.initial_state_maker(made)(np.uint32(place))) for place, made in enumerate(setups)}
    arguments = [(made.batches.batch_at(0), made.rates(0, 1)[0], np.uint32(made.seed)) for made in setups]
    return packing.Pack(configs, begins), arguments


OTHERS = [{"model.cell": name} for name in ("rnn", "gru", "layernorm_lstm", "mogrifier_lstm", "slstm", "mingru", "minlstm")]
OTHERS += [{"optim.name": name} for name in ("sgd", "lion", "adafactor", "adan", "muon", "schedule_free_adamw")]
OTHERS += [{"model.norm": True, "model.mlp": 2, "model.tie": True}, {"optim.average": "nt_asgd"}, {"batch.framing": "windows"}]
OTHERS += [{"model.input": "scalar", "model.dropout_input": 0.0, "model.embedding_dropout": 0.0}, {"model.dtype": "bfloat16"}]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", OTHERS, ids=lambda overrides: next(iter(overrides.values())))
def test_a_step_of_a_pack_equals_a_step_alone_for_every_cell_optimiser_and_option(small, overrides):
    overrides = small | BASE | {"optim.weight_decay": 0.02} | overrides
    pack, arguments = pack_of(overrides)
    answers = pack.answers({place: Steps(0, 1, each) for place, each in enumerate(arguments)})
    for place, each in enumerate(arguments):
        made = setup.set_up(load.load(TINY, overrides | {"seed": place}))
        step = packing.make_train_step(made.functions, made.optimizer, made.mesh, made.pad, made.averaging)
        after, metrics = jax.jit(step)(state.initial_state_maker(made)(np.uint32(place)), *each)
        assert float(answers[place]().nats) == pytest.approx(float(metrics.nats), rel=1e-5)
        got = pack.state_at(place)
        jax.tree.map(assert_near, got.carry, after.carry)
        assert int(got.step) == 1


def test_the_program_of_a_pack_lowers_for_every_platform_without_communication(small, monkeypatch):
    with monkeypatch.context() as patch:  # even if `auto` becomes cuDNN, a pack does not use it
        patch.setattr(kernels, "AUTO", "cudnn")
        patch.setattr(devices, "is_cuda", lambda: True)
        pack, arguments = pack_of(small | BASE)
        assert pack._setup.kernel == "xla"
        values = pack._state, np.ones(2, bool), pack._values, *packing._stacked(arguments)
        traced = pack._one.trace(*values)
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.while" in text
        for operation in ("all_reduce", "all_gather", "all_to_all", "collective_permute", "reduce_scatter"):
            assert f"stablehlo.{operation}" not in text
    # The same check finds the sum over devices in the program of a trial alone.
    made = setup.set_up(load.load(TINY, small | BASE))
    step = packing.make_train_step(made.functions, made.optimizer, made.mesh)
    assert "stablehlo.all_reduce" in jax.jit(step).lower(pack.state_at(0), *arguments[0]).as_text()


@pytest.mark.parametrize("rate", [0.1, 0.33, 0.5, 1e-9, 1 - 1e-9])
def test_an_array_of_rates_drops_the_same_values_as_the_numbers(rate):
    keys_B = jax.random.split(jax.random.key(0), 3)
    x_TBH = jnp.arange(4 * 3 * 8, dtype=jnp.float32).reshape(4, 3, 8) + 1
    array = jnp.float32(dropout.rounded(rate))
    assert float(array) == dropout.rounded(rate) == packing._values(load.load(TINY, {"model.dropout": rate}))["model.dropout"]
    np.testing.assert_array_equal(dropout.dropout(keys_B, x_TBH, rate), dropout.dropout(keys_B, x_TBH, array))
