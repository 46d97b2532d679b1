"""Tests that a run that was killed or stopped, and then resumed, equals an uninterrupted run bit for bit."""

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
def uninterrupted(script, corpus_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    subprocess.run(command(script, corpus_file, workdir), check=True, env=script.env(), capture_output=True)
    return workdir


def stop_at(step, signal_number, script, corpus_file, workdir) -> int:
    """Starts a training, and sends it a signal when its metrics reach `step`. Returns the exit status of the training."""
    with subprocess.Popen(
        command(script, corpus_file, workdir), env=script.env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_for_step(workdir, step, process)
        process.send_signal(signal_number)
        return process.wait()


def test_a_run_killed_twice_resumes_to_the_same_result(script, uninterrupted, corpus_file, tmp_path):
    workdir = tmp_path / "run"
    assert stop_at(120, signal.SIGKILL, script, corpus_file, workdir) == -signal.SIGKILL
    # A crash during a write can leave an incomplete line at the end of the file.
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9999, "na')
    assert stop_at(250, signal.SIGKILL, script, corpus_file, workdir) == -signal.SIGKILL
    saved = saved_step(workdir)
    assert saved >= 210
    resumed = subprocess.run(command(script, corpus_file, workdir), env=script.env(), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming at step {saved} of {STEPS}" in resumed.stdout
    assert differences(workdir, uninterrupted) == []
    assert len(json.loads((workdir / "environment.json").read_text())["starts"]) == 3
    assert not list(workdir.rglob("*.new"))
    assert all(file.name.isdigit() for file in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_resumes_to_the_same_result(script, uninterrupted, corpus_file, tmp_path):
    workdir = tmp_path / "run"
    assert stop_at(100, signal.SIGTERM, script, corpus_file, workdir) == 128 + signal.SIGTERM
    status = json.loads((workdir / "status.json").read_text())
    assert status["state"] == "incomplete"
    steps = [int(name) for name in os.listdir(workdir / "checkpoints")]
    assert status["step"] == max(steps) >= 100
    resumed = script("train", f"--workdir={workdir}")  # without --config, the run's own config is used
    assert f"resuming at step {status['step']} of {STEPS}" in resumed.stdout
    assert differences(workdir, uninterrupted) == []


@pytest.mark.slow
def test_another_seed_gives_other_losses(script, uninterrupted, corpus_file, tmp_path):
    """If all seeds gave the same losses, the tests above could pass although resume is wrong."""
    other = dict(OVERRIDES, seed=1)
    flags = as_flags(other | {"corpus.path": corpus_file, "train.steps": 30})
    script("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *flags)
    assert read_rows(tmp_path / "run")[0]["nats"] != read_rows(uninterrupted)[0]["nats"]
    assert np.isfinite(read_rows(uninterrupted)[-1]["nats"])


@pytest.mark.slow
def test_a_flipped_bit_in_a_checkpoint_never_changes_restored_parameters(uninterrupted, tmp_path):
    """After a bit was flipped in a file, restoring the checkpoint must either give the saved parameters or raise Failure."""
    shutil.copytree(uninterrupted / "checkpoints", tmp_path / "checkpoints")
    restore_failed = {
        path: restore_fails(path, uninterrupted, tmp_path) for path in (tmp_path / "checkpoints" / str(STEPS)).rglob("*")
    }
    assert {True, False} <= set(restore_failed.values())
    assert any(restore_failed[path] for path in restore_failed if "params" in path.parts and path.parent.name == "d")


def restore_fails(path, uninterrupted, tmp_path) -> bool:
    """Returns whether restoring the parameters fails after a bit in the middle of a file was flipped.

    If restoring succeeds, the function checks that the parameters are unchanged. The file is repaired at the end.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    content = path.read_bytes()
    harm(path, "flipped")
    try:
        params = final_params(uninterrupted, tmp_path / "checkpoints")
    except Failure:
        return True
    finally:
        path.write_bytes(content)
    assert_same(params, final_params(uninterrupted))
    return False
