"""Tests of --extend, which changes the config of a run and trains the run further."""

import json
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest
from conftest import ROOT, assert_same, final_params, slow
from faults.checks import differences, read_rows
from faults.runs import as_flags, wait_for_step

import charlm
from charlm.compare import reading, tables
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.inference import restore
from charlm.rundir.run import Run
from charlm.training import extending, judging, train

TINY = str(ROOT / "configs" / "tiny.py")
CONSTANT = {"optim.schedule": "constant"}


def config_of(small, **more):
    return load.load(TINY, small | more)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_to(config, workdir, extend=False):
    assert train.train(config, str(workdir), extend=extend) == 0


def test_a_lengthened_run_equals_a_run_that_had_this_length_from_the_start(small, tmp_path):
    """With a constant learning rate, no step depends on train.steps. Both runs evaluate at multiples of 4."""
    short, long = (config_of(small, **CONSTANT, **{"train.steps": steps}) for steps in (8, 20))
    train_to(short, tmp_path / "run")
    train_to(long, tmp_path / "run", extend=True)
    train_to(long, tmp_path / "uninterrupted")
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "uninterrupted")
    assert_same(final_params(tmp_path / "run"), final_params(tmp_path / "uninterrupted"))
    status, uninterrupted = (Run(tmp_path / name).status() for name in ("run", "uninterrupted"))
    assert status == uninterrupted
    assert (status["state"], status["step"]) == ("done", 20)
    (entry,) = Run(tmp_path / "run").extensions()
    assert (entry["step"], entry["before"], entry["after"]) == (8, {"train.steps": 8}, {"train.steps": 20})
    (tmp_path / "run/extensions.json").unlink()
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"extensions.json is missing, although the config of the run was changed: restore"):
        train.train(config_of(small, **CONSTANT, **{"train.steps": 30}), str(tmp_path / "run"), extend=True)
    assert contents(tmp_path / "run") == before
    _, problems = reading.read([tmp_path / "run"])
    assert any("extensions.json is missing" in problem for problem in problems)


def test_the_changed_keys_act_from_the_first_step_after_the_change(small, tmp_path, capsys):
    """The learning rates of the cosine schedule are computed by hand.

    The final fraction is 0, so the learning rate at step t of T steps is peak * 0.5 * (1 + cos(pi * t / T)).
    """
    overrides = {"optim.schedule": "cosine", "optim.final_fraction": 0.0, "optim.learning_rate": 0.1, "train.log_every": 1}
    train_to(config_of(small, **overrides, **{"train.steps": 6}), tmp_path / "run")
    capsys.readouterr()
    changes = {"train.steps": 10, "optim.learning_rate": 0.2, "train.eval_every": 3, "sample.length": 7}
    train_to(config_of(small, **overrides | changes), tmp_path / "run", extend=True)
    rows = [row for row in read_rows(tmp_path / "run") if row["split"] == "train"]
    expected = [0.05 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    expected += [0.1 * (1 + np.cos(np.pi * step / 10)) for step in range(6, 10)]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], expected, rtol=1e-5)
    evaluated = [row["step"] for row in read_rows(tmp_path / "run") if row["split"] == "validation"]
    assert evaluated == [4, 6, 9, 10]
    sample = (tmp_path / "run/samples/00000009.txt").read_text()
    assert len(sample) == 8  # the prompt has one character
    said = capsys.readouterr().out
    assert "from step 6 on, to 10 steps: optim.learning_rate 0.1 → 0.2, sample.length 20 → 7, " in said
    assert (
        f"learning rate: {expected[5]:.2e} at step 6, {expected[6]:.2e} at step 7, {expected[9]:.2e} at step 10; it ris" in said
    )


@pytest.mark.slow
def test_compare_shows_the_change_and_does_not_average_extended_runs_with_other_runs(small, tmp_path, script):
    for name, seed, step in (("run0", 0, 4), ("run1", 1, 8)):
        long = config_of(small, **CONSTANT, **{"train.steps": 8, "seed": seed})
        train_to(config_of(small, **CONSTANT, **{"train.steps": step, "seed": seed}), tmp_path / name)
        if step < 8:
            train_to(long, tmp_path / name, extend=True)
    rows = json.loads(script("compare", str(tmp_path), "--json").stdout)
    assert [(row["run"], row["extended"]) for row in sorted(rows, key=lambda row: row["run"])] == [
        ("run0", "at 4: steps 4 → 8"),
        ("run1", None),
    ]
    assert "at 4: steps 4 → 8" in script("compare", str(tmp_path)).stdout
    assert [run["extended"] for run in charlm.runs(tmp_path)] == ["at 4: steps 4 → 8", None]
    records, _ = reading.read([tmp_path / "run0", tmp_path / "run1"])
    assert len(tables.groups_of(records)) == 2


REFUSED = [
    ({"model.hidden": 16, "train.steps": 9}, "--extend can't change model.hidden (8 saved, 16 given) of the run"),
    ({"batch.size": 2, "train.steps": 9}, "--extend can't change batch.size (4 saved, 2 given)"),
    ({"corpus.lowercase": True, "train.steps": 9}, "--extend can't change corpus.lowercase"),
    ({"train.best": "train", "train.steps": 9}, "--extend can't change train.best"),
    ({"optim.name": "sgd", "train.steps": 9}, "--extend can't change optim.name"),
    ({"seed": 1, "train.steps": 9}, "--extend can't change seed"),
    ({"train.steps": 5}, "is at step 6, and this config ends at step 5: set train.steps to more"),
    ({"train.log_every": 3}, "is at step 6, and this config ends at step 6"),
    ({"train.steps": 9, "sample.prompt": "é"}, "sample.prompt"),
]


@pytest.fixture(scope="module")
def done(corpus_file, tmp_path_factory):
    """A run that is done at step 6, and the overrides of its config."""
    small = {"corpus.path": os.fspath(corpus_file), "batch.size": 4, "batch.length": 16, "model.hidden": 8, "model.layers": 1}
    small |= {"model.embedding": 6, "train.steps": 6, "train.eval_every": 4, "eval.length": 128, "sample.length": 20}
    workdir = tmp_path_factory.mktemp("done") / "run"
    train_to(config_of(small), workdir)
    return workdir, small


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_refused_change_changes_no_byte_of_the_run(done, change, message):
    workdir, small = done
    before = contents(workdir)
    with pytest.raises(UserError) as error:
        train.train(config_of(small, **change), str(workdir), extend=True)
    assert message in str(error.value)
    assert contents(workdir) == before


def test_a_change_is_refused_if_the_corpus_has_changed_or_a_process_is_training(done, tmp_path):
    workdir, small = done
    shutil.copytree(workdir, tmp_path / "run")
    with Run(tmp_path / "run").locked():
        before = contents(tmp_path / "run")
        with pytest.raises(UserError, match="a process is training"):
            train.train(config_of(small, **{"train.steps": 9}), str(tmp_path / "run"), extend=True)
        assert contents(tmp_path / "run") == before
    corpus = json.loads((tmp_path / "run/corpus.json").read_text()) | {"sha256": "0" * 64}
    corpus.pop("seal")
    (tmp_path / "run/corpus.json").write_text(json.dumps(corpus))
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="has changed since the run"):
        train.train(config_of(small, **{"train.steps": 9}), str(tmp_path / "run"), extend=True)
    assert contents(tmp_path / "run") == before


def test_without_the_flag_another_length_is_refused_with_a_hint(done, tmp_path, capsys):
    workdir, small = done
    longer = config_of(small, **{"train.steps": 9})
    with pytest.raises(UserError, match=r"train.steps \(6 saved, 9 given\); choose another directory, add --extend"):
        train.train(longer, str(workdir))
    with pytest.raises(UserError, match=r"--extend: --workdir=.* holds no run: leave out --extend"):
        train.train(longer, str(tmp_path / "run"), extend=True)
    assert not (tmp_path / "run").exists()
    before = contents(workdir)
    train_to(config_of(small), workdir, extend=True)
    assert "--extend changes nothing" in capsys.readouterr().err
    assert contents(workdir) == before


@pytest.mark.parametrize("written", [slow(1), 2])
def test_a_change_killed_while_it_is_written_has_no_effect_and_can_be_repeated(done, tmp_path, monkeypatch, written):
    """`Run.extend` writes three files. The process is killed when it has written `written` of these files."""
    workdir, small = done
    shutil.copytree(workdir, tmp_path / "run")
    run, write, calls = Run(tmp_path / "run"), Run._write, []

    def killed(self, name, content):
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(name)
        write(self, name, content)

    longer = config_of(small, **{"train.steps": 9})
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(longer, str(run.workdir), extend=True)
    assert len(calls) == written
    assert run.extensions() == []
    shutil.copytree(run.workdir, tmp_path / "as_before")
    train_to(config_of(small), tmp_path / "as_before")  # the command of the old config still works
    assert Run(tmp_path / "as_before").status() == Run(workdir).status()
    train_to(longer, run.workdir, extend=True)
    assert [entry["step"] for entry in run.extensions()] == [6]
    shutil.copytree(workdir, tmp_path / "uninterrupted")
    train_to(longer, tmp_path / "uninterrupted", extend=True)
    assert differences(run.workdir, tmp_path / "uninterrupted") == []


def test_another_protocol_begins_a_new_best(done, tmp_path, monkeypatch):
    """The change gives the run another protocol. Then only losses under the new protocol can be the best of the run.

    An older loss is not the best of the run, even if it is lower than all new losses.
    """
    workdir, small = done
    shutil.copytree(workdir, tmp_path / "run")
    lanes = config_of(small, **{"train.steps": 16, "eval.lanes": 4, "eval.burn_in": 3})
    real = judging.evaluation_rows

    def worse(setup, progress, *arguments):  # makes each loss under the new protocol higher than all older losses
        made = real(setup, progress, *arguments)
        made[-1]["nats"] += 10
        return made

    monkeypatch.setattr(judging, "evaluation_rows", worse)
    train_to(lanes, tmp_path / "run", extend=True)
    best = Run(tmp_path / "run").status()["best"]
    assert best["step"] in (8, 12, 16)
    assert best["nats"] > 10
    assert restore.load(tmp_path / "run", "best").step == best["step"]
    record = reading.read_run(tmp_path / "run", "run")
    assert (record.best, record.best_step) == (best["nats"], best["step"])
    train_to(lanes, tmp_path / "run", extend=True)  # the run is done, so nothing is trained and the best stays the same
    assert Run(tmp_path / "run").status()["best"] == best


@pytest.mark.slow
def test_a_run_that_train_patience_ended_is_not_extended_with_the_same_train_patience(small, tmp_path):
    overrides = {"optim.learning_rate": 5.0, "train.eval_every": 1, "train.patience": 2, "train.steps": 60, "sample.length": 0}
    train_to(config_of(small, **overrides), tmp_path / "run")
    step = Run(tmp_path / "run").status()["step"]
    assert step < 60
    with pytest.raises(UserError, match=r"train.patience=2 ends .* because its last 2 evaluations had no new best loss"):
        train.train(config_of(small, **overrides | {"train.steps": 80}), str(tmp_path / "run"), extend=True)
    train_to(config_of(small, **overrides | {"train.patience": 0}), tmp_path / "run", extend=True)
    assert Run(tmp_path / "run").status()["step"] == 60


def test_a_resume_from_a_checkpoint_before_the_change_gives_a_warning(done, tmp_path, capsys):
    workdir, small = done
    shutil.copytree(workdir, tmp_path / "run")
    run, longer = Run(tmp_path / "run"), config_of(small, **{"train.steps": 9})
    run.extend(extending.plan(run, longer, train.opening.set_up(longer), True).entry, longer)
    shutil.rmtree(tmp_path / "run/checkpoints/6")
    train_to(longer, tmp_path / "run")
    assert "was extended at step 6, but resumes at step 4: the steps in between" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lengthened_run_that_is_killed_resumes_bit_for_bit(script, small, tmp_path):
    """The run is stopped by SIGTERM, extended, killed by SIGKILL and resumed by the same command."""
    overrides = small | {"train.steps": 3000, "train.checkpoint_every": 100, "train.eval_every": 500, "train.log_every": 25}
    changes = {"train.steps": 3500, "optim.schedule": "step", "optim.decay_epochs": 1, "optim.decay_after": 2}

    def command(name, overrides, *flags):
        return script.command("train", f"--config={TINY}", f"--workdir={tmp_path / name}", *as_flags(overrides), *flags)

    def stopped_by(number, step, *arguments):
        with subprocess.Popen(command("run", *arguments), env=script.env(), stdout=subprocess.PIPE, text=True) as process:
            wait_for_step(tmp_path / "run", step, process)
            process.send_signal(number)
            process.communicate()
        return process.returncode

    assert stopped_by(signal.SIGTERM, 300, overrides) == 128 + signal.SIGTERM
    shutil.copytree(tmp_path / "run", tmp_path / "uninterrupted")
    step = Run(tmp_path / "run").status()["step"]
    extended = overrides | changes
    uninterrupted = subprocess.run(
        command("uninterrupted", extended, "--extend"), check=True, env=script.env(), capture_output=True, text=True
    )
    assert re.search(rf"extends .* from step {step} on, to 3500 steps: optim.decay_after 0.0 → 2.0", uninterrupted.stdout)
    assert stopped_by(signal.SIGKILL, step + 400, extended, "--extend") == -signal.SIGKILL
    resumed = subprocess.run(command("run", extended, "--extend"), check=True, env=script.env(), capture_output=True, text=True)
    assert "resuming at step" in resumed.stdout
    assert "extends" not in resumed.stdout
    assert differences(tmp_path / "run", tmp_path / "uninterrupted") == []
    assert [entry["step"] for entry in Run(tmp_path / "run").extensions()] == [step]


def test_extend_may_change_keys_of_length_learning_rate_evaluation_and_samples():
    refused = {"train.init_from", "train.best"}
    assert {key for key in keys.KEYS if key.startswith(("train.", "eval.", "sample."))} - refused <= keys.EXTENDABLE
    assert {key for key in keys.EXTENDABLE if key.startswith("optim.")} == {
        "optim.learning_rate",
        "optim.weight_rms",
        "optim.schedule",
        "optim.warmup_steps",
        "optim.final_fraction",
        "optim.decay_rate",
        "optim.decay_steps",
        "optim.decay_epochs",
        "optim.decay_after",
    }
    assert {key.partition(".")[0] for key in keys.EXTENDABLE} == {"optim", "train", "eval", "sample"}
