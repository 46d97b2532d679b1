"""Runs that are resumed with keys that change no parameter, or without --config."""

import json
import os
import shutil
import signal

import pytest
from conftest import ROOT, assert_same, final_params
from faults.checks import read_rows

from charlm.compare import reading, tables
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.training import judging, train

TINY = str(ROOT / "configs" / "tiny.py")
STOPPED_AT = 3
OTHER = {"train.log_every": 2, "train.eval_every": 5, "train.checkpoint_every": 0, "sample.length": 3}


@pytest.fixture(scope="module")
def small(corpus_file):
    shapes = {"batch.size": 4, "batch.length": 16, "model.hidden": 8, "model.layers": 1, "model.embedding": 6}
    lengths = {"train.steps": 8, "train.steps_per_call": 1, "train.log_every": 1, "train.eval_every": 4, "sample.length": 9}
    return {"corpus.path": os.fspath(corpus_file), "eval.length": 128} | shapes | lengths


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    """A run that was never stopped."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train.train(load.load(TINY, small), str(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory):
    """A run that a signal stopped at step 3."""
    workdir, real = tmp_path_factory.mktemp("stopped") / "run", judging.add_metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "add_metrics", lambda progress, metrics: real(progress, metrics) or progress.step >= STOPPED_AT)
        assert train.train(load.load(TINY, small), str(workdir)) == 128 + signal.SIGTERM
    assert Run(workdir).status()["step"] == STOPPED_AT
    return workdir


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_other_intervals_and_samples_on_resume_change_no_parameter(small, uninterrupted, copy, capsys):
    """The expected steps are worked out by hand.

    Up to step 3, where the run was stopped, each step has a training row. Then every second step has a training row. With the
    new eval_every, which is 5, the evaluations are at step 5 and at the last step, 8.
    """
    assert train.train(load.load(TINY, small | OTHER), str(copy)) == 0
    assert_same(final_params(copy), final_params(uninterrupted))
    rows = read_rows(copy)
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 6, 8]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [5, 8]
    assert len((copy / "samples/00000008.txt").read_text()) == 1 + OTHER["sample.length"]
    out = capsys.readouterr().out
    assert f"changes {copy} from step 3 on: sample.length 9 → 3, train.checkpoint_every 500 → 0, " in out
    (entry,) = Run(copy).extensions()
    assert (entry["step"], entry["after"], entry["resets_best"]) == (STOPPED_AT, OTHER, False)
    assert Run(copy).config().train.log_every == 2
    before = contents(copy)
    assert train.train(load.load(TINY, small), str(copy)) == 0  # the run is done, and stays as it is
    assert contents(copy) == before
    said = capsys.readouterr()
    assert "train.log_every (2 saved, 1 given): nothing changes, because the run is done" in said.err
    assert f"{copy} is done at step 8" in said.out


def test_another_protocol_on_resume_gives_the_best_of_the_new_evaluations(small, uninterrupted, copy):
    """The resumed run has the same parameters as the run that was never stopped, but a slightly different loss.

    The reason is the protocol: the resumed run evaluates with eval.lanes=3, and the other run with one lane.
    """
    changed = {"eval.lanes": 3, "eval.burn_in": 5}
    assert train.train(load.load(TINY, small | changed), str(copy)) == 0
    assert_same(final_params(copy), final_params(uninterrupted))
    best, other = Run(copy).status()["best"], Run(uninterrupted).status()["best"]
    assert best["step"] == other["step"] == 8
    assert best["nats"] == pytest.approx(other["nats"], abs=0.05)
    assert best["nats"] != other["nats"]


def test_a_run_killed_before_its_first_checkpoint_resumes_with_the_new_keys(small, uninterrupted, tmp_path):
    """The test makes the killed run itself: it writes the first files of a run and trains no step."""
    run, config = Run(tmp_path / "run"), load.load(TINY, small)
    setup = train.opening.set_up(config)
    run.workdir.mkdir()
    with run.locked():
        run.begin(config, setup.vocab, setup.provenance)
    assert train.train(load.load(TINY, small | OTHER), str(run.workdir)) == 0
    assert_same(final_params(run.workdir), final_params(uninterrupted))
    assert [(entry["step"], entry["after"]) for entry in run.extensions()] == [(0, OTHER)]


@pytest.mark.slow
def test_compare_averages_a_run_resumed_with_other_keys_with_runs_of_other_seeds(small, copy, tmp_path):
    """A change of keys on resume does not separate a run from runs of other seeds. A change with --extend does."""
    assert train.train(load.load(TINY, small | {"sample.length": 3}), str(copy)) == 0
    assert train.train(load.load(TINY, small | {"sample.length": 3, "seed": 1}), str(tmp_path / "other_seed")) == 0
    records = [reading.read_run(tmp_path / name, name) for name in ("run", "other_seed")]
    assert len(records[0].extensions) == 1
    assert records[0].extensions_in_words() is None
    (group,) = tables.groups_of(records)
    assert len(group.records) == 2


def test_a_key_that_changes_parameters_is_refused_with_the_recorded_command(small, copy, tmp_path):
    environment = json.loads((copy / "environment.json").read_text())
    environment["starts"][-1]["command"] = ["python", "scripts/train.py", "--config=tiny", "--workdir=my runs/a"]
    environment.pop("seal")
    (copy / "environment.json").write_text(json.dumps(environment))
    before = contents(copy)
    with pytest.raises(UserError) as error:
        train.train(load.load(TINY, small | {"model.hidden": 9, "train.log_every": 2}), str(copy))
    message = str(error.value)
    assert "holds a run with another config: model.hidden (8 saved, 9 given); choose another directory, or resume" in message
    assert f"--workdir={copy} (started by: python scripts/train.py --config=tiny '--workdir=my runs/a')" in message
    assert contents(copy) == before


def test_without_config_the_command_takes_the_config_of_the_run(script, uninterrupted, tmp_path):
    before = contents(uninterrupted)
    assert "is done at step 8" in script("train", f"--workdir={uninterrupted}").stdout
    refused = script("train", f"--workdir={uninterrupted}", "--config.model.hidden=9", status=2).stderr
    assert "holds a run with another config: model.hidden (8 saved, 9 given)" in refused
    nothing = script("train", f"--workdir={tmp_path / 'new'}", status=2).stderr
    assert f"--config is not given, and --workdir={tmp_path / 'new'} holds no run to resume" in nothing
    assert "--config is not given: give --config, or --workdir" in script("train", status=2).stderr
    assert contents(uninterrupted) == before
    assert not (tmp_path / "new").exists()


def test_keys_that_decide_when_the_training_ends_or_where_it_goes_back_may_not_differ(small, copy):
    config = {name: keys.KEYS[name].default for name in keys.KEYS}
    evaluations = {name for name in keys.RESUMABLE if name.startswith("eval.")} | {"train.eval_every"}
    assert keys.resumable(config) == keys.RESUMABLE
    assert keys.RESUMABLE - keys.resumable(config | {"train.patience": 1}) == evaluations
    assert keys.RESUMABLE - keys.resumable(config | {"train.halvings": 1}) == {"train.eval_every", "train.checkpoint_every"}
    fields = json.loads((copy / "config.json").read_text())
    fields["train"]["patience"] = 3
    fields.pop("seal", None)
    (copy / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"another config: train\.eval_every \(4 saved, 5 given\); choose"):
        train.train(load.load(TINY, small | {"train.patience": 3, "train.eval_every": 5, "train.log_every": 2}), str(copy))


def test_only_keys_that_change_no_parameter_may_differ_on_resume():
    """Other keys of `train` and `optim` affect the parameters, the length of the run or the choice of the best checkpoint."""
    assert {key for key in keys.RESUMABLE if key.startswith("train.")} == {
        "train.log_every",
        "train.eval_every",
        "train.checkpoint_every",
    }
    assert {key.partition(".")[0] for key in keys.RESUMABLE} == {"eval", "sample", "train"}
    assert keys.RESUMABLE < keys.EXTENDABLE
