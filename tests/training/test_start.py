"""Tests `charlm.train`: a training from Python makes the same run, and the same checks of the config, as scripts/train.py."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.checks import read_rows
from faults.runs import as_flags

import charlm
from charlm.config import keys, load
from charlm.rundir.run import Run
from configs import tiny


def python(code: str, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    """Runs Python code in a new process, so that JAX has not started yet when the code begins."""
    environment = {**os.environ, "JAX_NUMPY_RANK_PROMOTION": "raise", **(env or {})}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True)


TRAIN = """
import json, sys
import charlm
from charlm.config import load
assert "jax" not in sys.modules
status = charlm.train(load.load(sys.argv[1], json.loads(sys.argv[2])), sys.argv[3])
print(json.dumps(status))
"""


@pytest.fixture(scope="module")
def overrides(corpus_file):
    return {
        "corpus.path": os.fspath(corpus_file),
        "batch.size": 32,  # on a machine with two cores, each of two devices gets half of the rows of a batch
        "batch.length": 16,
        "model.hidden": 8,
        "model.dropout": 0.2,
        "train.steps": 6,
        "train.log_every": 2,
        "train.eval_every": 3,
        "sample.length": 10,
    }


@pytest.fixture(scope="module")
def by_script(script, overrides, tmp_path_factory):
    """A run directory made by scripts/train.py, and the standard output of that script."""
    workdir = tmp_path_factory.mktemp("script") / "run"
    result = script("train", f"--config={ROOT / TINY}", *as_flags(overrides), f"--workdir={workdir}")
    return workdir, result.stdout


def test_the_start_of_a_training_imports_no_package_that_only_other_programs_need():
    names = {"tensorflow_datasets", "matplotlib", "optuna"}
    code = f"import sys\nimport charlm.programs.train, charlm.training.train\nprint({names} & set(sys.modules))"
    assert python(code).stdout == "set()\n"


def test_the_output_begins_with_the_data_the_model_and_the_length_of_the_training(by_script):
    data, model, length, first_row, *_ = by_script[1].splitlines()
    assert data.startswith("data: made_up.txt: train 10,800, validation 1,200 chars, vocabulary of ")
    assert model.startswith("model: 1 LSTM layer of 8, embedding input, ")
    assert length.startswith("training: 6 steps, 0.29 epochs of 21 steps; 32 rows on ")
    assert first_row.startswith("step 2/6  epoch 0.10  train ")
    for text in ("GLIBC_TUNABLES=", "XLA_FLAGS=", "lstm_0/recurrent_kernel"):
        assert text not in by_script[1]


@pytest.mark.slow
def test_python_and_script_make_the_same_run(by_script, overrides, tmp_path):
    script_run, _ = by_script
    done = python(TRAIN, ROOT / TINY, json.dumps(overrides), tmp_path / "python")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout.splitlines()[-1])
    rows = [row for row in read_rows(tmp_path / "python") if row["split"] == "validation"]
    assert (status["state"], status["step"]) == ("done", 6)
    assert status["best"]["nats"] == min(row["nats"] for row in rows)
    assert read_rows(tmp_path / "python") == read_rows(script_run)
    assert_same(final_params(tmp_path / "python"), final_params(script_run))
    starts = [Run(workdir).starts()[0] for workdir in (tmp_path / "python", script_run)]
    assert starts[0]["XLA_FLAGS"] == starts[1]["XLA_FLAGS"] != ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.optim.update({"learning_rte": 3}),
            "unknown config key 'optim.learning_rte': the nearest",
        ),
        (lambda config: config.optim.update({"learning_rate": -1.0}), "optim.learning_rate=-1.0: must be positive."),
        (lambda config: config.model.update({"hidden": 0}), "model.hidden=0: must be positive."),
        (lambda config: config.corpus.update({"path": "no/such/text"}), "no/such/text is not a file or folder"),
    ],
)
def test_config_mistakes_are_reported_before_anything_is_written(change, message, tmp_path):
    config = tiny.get_config()
    change(config)
    with pytest.raises(charlm.UserError, match=message):
        charlm.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_train_does_not_change_the_given_config_and_saves_absolute_paths(overrides, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    shutil.copy(overrides["corpus.path"], text)
    monkeypatch.chdir(tmp_path)
    config = keys.defaults()
    for key, value in (overrides | {"corpus.path": "text.txt", "train.steps": 2, "sample.length": 0}).items():
        load.override(config, key, value)
    charlm.train(config, "run")
    assert config.corpus.path == "text.txt"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["corpus"]["path"] == os.fspath(text)
    assert charlm.train(config, "run")["state"] == "done"  # the run is already done


STOPPED = """
import json, os, signal, sys, threading, time
import charlm
from charlm.config import load

workdir = sys.argv[3]
def stop():
    while not os.path.exists(workdir + "/metrics.jsonl"):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=stop).start()
config = load.load(sys.argv[1], json.loads(sys.argv[2]))
try:
    charlm.train(config, workdir)
except KeyboardInterrupt:
    print("stopped", json.load(open(workdir + "/status.json"))["state"])
result = []
thread = threading.Thread(target=lambda: result.append(charlm.train(config, workdir)))
thread.start()
thread.join()
print("resumed", result[0]["state"], os.environ["XLA_FLAGS"])
"""


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_the_run_can_be_resumed_in_a_thread(overrides, tmp_path):
    env = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
    done = python(
        STOPPED,
        ROOT / TINY,
        json.dumps(overrides | {"train.steps": 400, "train.eval_every": 200, "train.log_every": 10}),
        tmp_path / "run",
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped incomplete" in done.stdout
    assert "resuming at step" in done.stdout
    # After training, XLA_FLAGS has the user's value again, because programs that this process starts later may need this value.
    assert done.stdout.splitlines()[-1] == f"resumed done {env['XLA_FLAGS']}"
    flags = [start["XLA_FLAGS"] for start in Run(tmp_path / "run").starts()]
    assert flags[0] == flags[1]  # JAX started once in this process, so both trainings record the same flags
    assert flags[0].startswith("--xla_force_host_platform_device_count=")


@pytest.mark.slow
def test_if_jax_has_already_started_train_keeps_its_settings_and_prints_a_note(overrides, tmp_path):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one core, so JAX always has one device")
    cache = str(tmp_path / "cache")
    code = TRAIN.replace(
        'assert "jax" not in sys.modules',
        f"import jax; jax.devices(); jax.config.update('jax_compilation_cache_dir', {cache!r})",
    )
    env = {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false", "JAX_COMPILATION_CACHE_DIR": ""}
    code += f"assert jax.config.jax_compilation_cache_dir == {cache!r}"
    done = python(code, ROOT / TINY, json.dumps(overrides | {"train.steps": 2}), tmp_path / "run", env=env)
    assert done.returncode == 0, done.stderr
    assert "note: JAX had already started, with 1 CPU device instead of 2" in done.stderr
    (start,) = Run(tmp_path / "run").starts()
    assert start["XLA_FLAGS"] == env["XLA_FLAGS"]  # charlm leaves the flags unchanged, because JAX would not read a new value


def test_a_path_instead_of_a_config_is_an_error(tmp_path):
    with pytest.raises(charlm.UserError) as refused:
        charlm.train("configs/tiny.py", tmp_path / "run")
    assert str(refused.value) == "config is a str: must be a ConfigDict, such as charlm.config.load.load returns."
    assert list(tmp_path.iterdir()) == []
