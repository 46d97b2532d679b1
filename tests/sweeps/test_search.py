"""Tests `sweep --search`: its trials, pruning (stopping poor trials early), interrupted searches and error messages."""

import json
import os
import signal
import subprocess

import pytest
from test_sweep import CONFIG, trainings, wait_for_steps

from charlm.compare import reading
from charlm.sweeps import search, sweep

pytest.importorskip("optuna", reason="optuna is not installed. Run pip install -e '.[search]'")

SPACE = """

def space():
    return {
        "optim.learning_rate": log_uniform(1e-4, 1e-1),
        "model.hidden": integers(4, 16),
        "optim.name": choice("adam", "sgd"),
    }
"""


@pytest.fixture
def write_config(tmp_path, corpus_file):
    """Returns a function that writes a config file with a search space and returns the name of the file."""

    def write(steps: int = 40, space: str = SPACE) -> str:
        file = tmp_path / "searched.py"
        text = CONFIG.format(corpus=os.fspath(corpus_file), sweep="[{}]", steps=steps).replace(
            "eval_every = 50", "eval_every = 10"
        )
        file.write_text(text + space)
        return os.fspath(file)

    return write


def overrides_of(root) -> dict[str, dict]:
    return json.loads((root / "sweep.json").read_text())["trials"]


def validation_losses(path) -> list[float]:
    rows = map(json.loads, path.read_text().splitlines())
    return [row["nats"] for row in rows if row["split"] == "validation"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["asha", "tpe"])
def test_overrides_are_in_the_space_and_a_larger_number_of_trials_adds_trials(script, write_config, tmp_path, method):
    root = tmp_path / "root"
    flags = [f"--config={write_config()}", f"--root={root}", f"--search={method}", "--parallel=2"]
    result = script("sweep", *flags, "--trials=2")
    assert "of 2 trials." in result.stdout
    first_trials = overrides_of(root)
    assert len(first_trials) == 2
    for name, overrides in first_trials.items():
        assert 1e-4 <= overrides["optim.learning_rate"] <= 1e-1
        assert overrides["model.hidden"] in range(4, 17)
        assert overrides["optim.name"] in ("adam", "sgd")
        config = json.loads((root / name / "config.json").read_text())
        assert config["optim"]["learning_rate"] == overrides["optim.learning_rate"]
    result = script("sweep", *flags, "--trials=3")
    assert len(overrides_of(root)) == 3
    assert set(first_trials) < set(overrides_of(root))
    assert script("sweep", *flags, "--trials=3").stdout.count("running") == 0


@pytest.mark.slow
def test_asha_prunes_the_worse_trials(script, write_config, tmp_path):
    """The trials run one after another. ASHA prunes a trial if its first loss is not among the lowest third so far."""
    root = tmp_path / "root"
    script("sweep", f"--config={write_config(steps=400)}", f"--root={root}", "--search=asha", "--trials=6")
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in root.glob("*/status.json")}
    assert len(states) == 6
    done = [name for name, state in states.items() if state == "done"]
    pruned = [name for name, state in states.items() if state == "incomplete"]
    assert done
    assert pruned
    assert all(len(validation_losses(root / name / "metrics.jsonl")) == 40 for name in done)
    assert all(len(validation_losses(root / name / "metrics.jsonl")) < 40 for name in pruned)
    best = min(min(validation_losses(root / name / "metrics.jsonl")) for name in states)
    assert best == min(min(validation_losses(root / name / "metrics.jsonl")) for name in done)
    shown = {record.name: record.state for record in reading.read(reading.find([str(root)]))[0]}
    assert shown == dict.fromkeys(done, "done") | dict.fromkeys(pruned, "pruned")


@pytest.mark.slow
def test_an_interrupted_search_continues_with_the_same_trials(script, write_config, tmp_path):
    root = tmp_path / "root"
    flags = [f"--config={write_config(steps=600)}", f"--root={root}", "--search=tpe", "--trials=2", "--parallel=2"]
    with subprocess.Popen(script.command("sweep", *flags), env=script.env(), stdout=subprocess.PIPE, text=True) as process:
        wait_for_steps(root, 20, 2, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert trainings(root) == []
    before = overrides_of(root)
    result = script("sweep", *flags)
    assert "2 done of 2 trials." in result.stdout
    assert overrides_of(root) == before
    assert "resuming at step" in "".join(path.read_text() for path in (root / "logs").glob("*.log"))


@pytest.mark.parametrize(
    ("space", "flags", "message"),
    [
        ("", [], "has no space()"),
        ("\ndef space():\n    return 3\n", [], "must return a dict of key → range"),
        ('\ndef space():\n    return {"model.hidden": [1, 2]}\n', [], "model.hidden=[1, 2]: must be a range"),
        ('\ndef space():\n    return {"model.hiden": integers(1, 2)}\n', [], "nearest key is 'model.hidden'"),
        ('\ndef space():\n    return {"model.hidden": uniform(1, 2)}\n', [], "model.hidden"),
        (
            '\ndef space():\n    return {"model.dropout": uniform(0, 1)}\n',
            [],
            "model.dropout=1.0: must be at least 0 and below 1.",
        ),
        (
            '\ndef space():\n    return {"optim.name": choice("adam", "sdg")}\n',
            [],
            "optim.name='sdg': must be one of adam, adamw, rmsprop, sgd, lion, ",
        ),
        (SPACE, ["--trials=0"], "--trials=0: must be 1 or more."),
        (SPACE, ["--search=grid"], "--search"),
        (SPACE, ["--only=model.hidden=3"], "--only is only for sweeps: leave out --only or --search."),
        (SPACE, ["--config.model.hidden=3"], "--config.model.hidden: the sweep sets this key too"),
    ],
)
def test_wrong_input_is_refused_before_any_trial(script, write_config, tmp_path, space, flags, message):
    root = tmp_path / "root"
    error = script.fails("sweep", f"--config={write_config(space=space)}", f"--root={root}", "--search=tpe", *flags)
    assert message in error
    assert not root.exists()


@pytest.mark.slow
def test_a_search_ends_when_all_trials_of_a_small_space_were_tried(script, write_config, tmp_path):
    root = tmp_path / "root"
    space = '\n\ndef space():\n    return {"model.hidden": choice(8, 12)}\n'
    flags = [f"--config={write_config(steps=5, space=space)}", f"--root={root}", "--search=tpe", "--parallel=2"]
    assert "2 done of 2 trials." in script("sweep", *flags, "--trials=5").stdout
    again = script("sweep", *flags, "--trials=5").stdout
    assert "2 done of 2 trials." in again
    assert "best: hidden=" in again
    message = script.fails("sweep", *flags, "--trials=5", "--config.train.steps=6")
    assert "another config: train.steps (5 saved, 6 given)" in message


def test_a_search_over_tuples_goes_on_in_another_process(write_config, tmp_path):
    root = sweep.Root(tmp_path)
    space = '\n\ndef space():\n    return {"model.widths": choice((), (12,)), "model.cell": choice("gru", ("lstm",))}\n'
    file, names = write_config(space=space), []
    for total in (1, 2, 3):  # every search opens the study anew, and also gets the unfinished trials of the searches before
        opened = search.Search(root, file, {}, "asha", total)
        opened.open()
        trials = list(opened.trials())
        assert len(trials) == total
        names.append({trial.name for trial in trials})
        for trial in trials:
            assert trial.config.model.widths in ((), (12,))
            assert trial.config.model.cell in ("gru", ("lstm",))
    assert names[0] < names[1] < names[2]


@pytest.mark.slow
def test_another_search_or_sweep_needs_another_folder(script, write_config, tmp_path):
    root = tmp_path / "root"
    flags = [f"--config={write_config(steps=5)}", f"--root={root}"]
    script("sweep", *flags, "--search=asha", "--trials=1")
    assert "holds a search" in script.fails("sweep", *flags)
    assert "another method or space" in script.fails("sweep", *flags, "--search=tpe")
    other = [f"--config={write_config(steps=5)}", f"--root={tmp_path / 'swept'}"]
    script("sweep", *other)
    assert "holds a sweep" in script.fails("sweep", *other, "--search=tpe")
