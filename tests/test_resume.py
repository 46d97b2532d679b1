"""A run that was killed or stopped and then resumed equals an uninterrupted run, bit for bit."""

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest
from conftest import ROOT, assert_same, final_params
from faults.checks import differences, read_rows
from faults.runs import as_flags, harm, saved_step, wait_for_step

from charlm.errors import Failure

STEPS = 360
OVERRIDES = {
    "batch.size": 4,
    "batch.length": 16,
    "model.hidden": 24,
    "model.layers": 2,
    "model.dropout": 0.3,
    "train.steps": STEPS,
    "train.log_every": 7,
    "train.eval_every": 100,
    "train.checkpoint_every": 30,
    "sample.length": 30,
}


def command(script, corpus_file, workdir):
    flags = as_flags(OVERRIDES | {"corpus.path": corpus_file})
    return script.command("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={workdir}", *flags)


@pytest.fixture(scope="module")
def straight(script, corpus_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    subprocess.run(command(script, corpus_file, workdir), check=True, env=script.env(), capture_output=True)
    return workdir


def stop_at(step, number, script, corpus_file, workdir) -> int:
    """Starts the training, sends a signal once its metrics have reached a step, and returns its exit status."""
    with subprocess.Popen(
        command(script, corpus_file, workdir), env=script.env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_for_step(workdir, step, process)
        process.send_signal(number)
        return process.wait()


def test_kill_9_twice_then_the_same_command(script, straight, corpus_file, tmp_path):
    workdir = tmp_path / "run"
    assert stop_at(120, signal.SIGKILL, script, corpus_file, workdir) == -signal.SIGKILL
    # as after a crash in the middle of a write
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9999, "na')
    assert stop_at(250, signal.SIGKILL, script, corpus_file, workdir) == -signal.SIGKILL
    saved = saved_step(workdir)
    assert saved >= 210
    done = subprocess.run(command(script, corpus_file, workdir), env=script.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {saved} of {STEPS}" in done.stdout
    assert differences(workdir, straight) == []
    assert len(json.loads((workdir / "environment.json").read_text())["starts"]) == 3
    assert not list(workdir.rglob("*.new"))
    assert all(file.name.isdigit() for file in (workdir / "checkpoints").iterdir())


def test_sigterm_saves_at_the_next_step_and_the_same_command_resumes(script, straight, corpus_file, tmp_path):
    workdir = tmp_path / "run"
    assert stop_at(100, signal.SIGTERM, script, corpus_file, workdir) == 128 + signal.SIGTERM
    status = json.loads((workdir / "status.json").read_text())
    assert status["state"] == "incomplete"
    steps = [int(name) for name in os.listdir(workdir / "checkpoints")]
    assert status["step"] == max(steps) >= 100
    done = subprocess.run(command(script, corpus_file, workdir), env=script.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {status['step']} of {STEPS}" in done.stdout
    assert differences(workdir, straight) == []


@pytest.mark.slow
def test_the_straight_run_depends_on_its_seed(script, straight, corpus_file, tmp_path):
    """Otherwise the tests above would compare nothing."""
    other = dict(OVERRIDES, seed=1)
    flags = as_flags(other | {"corpus.path": corpus_file, "train.steps": 30})
    script("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *flags)
    assert read_rows(tmp_path / "run")[0]["nats"] != read_rows(straight)[0]["nats"]
    assert np.isfinite(read_rows(straight)[-1]["nats"])


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_noticed_or_changes_nothing(straight, tmp_path):
    """Either the saved arrays are restored, or none are."""
    shutil.copytree(straight / "checkpoints", tmp_path / "checkpoints")
    restored = {path: noticed(path, straight, tmp_path) for path in (tmp_path / "checkpoints" / str(STEPS)).rglob("*")}
    assert {True, False} <= set(restored.values())
    assert any(restored[path] for path in restored if "params" in path.parts and path.parent.name == "d")


def noticed(path, straight, tmp_path) -> bool:
    """Whether a flipped bit in the middle of this file is noticed when params are restored. If not, they must be unchanged."""
    if not path.is_file() or not path.stat().st_size:
        return False
    content = path.read_bytes()
    harm(path, "flipped")
    try:
        params = final_params(straight, tmp_path / "checkpoints")
    except Failure:
        return True
    finally:
        path.write_bytes(content)
    assert_same(params, final_params(straight))
    return False
