"""Tests of sweeps on this machine: building, trial names, launching, resuming and error messages."""

import itertools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, half_slow, slow
from faults.checks import read_rows

from charlm.config import keys, load
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.rundir import run as run_module
from charlm.rundir.run import Run
from charlm.sweeps import conclusion, launch, naming, slurm, sweep
from charlm.sweeps.display import Display
from charlm.sweeps.status import TrialStatus
from charlm.training import train

CONFIG = """
from charlm.sweeps.sweep import *
from configs import base

def get_config(arg=None):
    config = base.get_config()
    config.corpus.path = {corpus!r}
    config.batch.size = 4
    config.batch.length = 16
    config.model.layers = 1
    config.model.hidden = 8
    config.model.embedding = 6
    config.train.steps = {steps}
    config.train.log_every = 5
    config.train.eval_every = 50
    config.train.checkpoint_every = 20
    config.sample.length = 10
    return config

def sweep():
    return {sweep}
"""
FOUR_TRIALS = 'product({"model.hidden": [8, 12], "optim.learning_rate": [1e-3, 1e-2]})'


@pytest.fixture
def write_config(tmp_path, corpus_file):
    """Returns a function that writes a config file with a sweep and returns the name of the file."""

    def write(expression: str, steps: int = 20) -> str:
        file = tmp_path / "swept.py"
        file.write_text(CONFIG.format(corpus=os.fspath(corpus_file), sweep=expression, steps=steps))
        return os.fspath(file)

    return write


def test_product_zipped_chain_and_repeat_build_the_right_trials():
    grid = sweep.product({"a": [1, 2], "b": [3, 4]})
    assert grid == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert sweep.zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert sweep.chain(sweep.product({"a": [1]}), sweep.product({"b": [2]})) == [{"a": 1}, {"b": 2}]
    assert sweep.repeat({"a": [1, 2]}, seeds=2) == [{"a": a, "seed": seed} for a in (1, 2) for seed in (0, 1)]
    assert sweep.repeat(grid, seeds=[7]) == [overrides | {"seed": 7} for overrides in grid]
    assert sweep.product(sweep.zipped({"a": [1, 2], "b": [3, 4]}), {"c": [5, 6]}) == [
        {"a": a, "b": b, "c": c} for (a, b), c in itertools.product([(1, 3), (2, 4)], [5, 6])
    ]
    assert sweep.product() == [{}]


def test_samples_follow_their_ranges_and_a_larger_n_only_adds_trials():
    ranges = {
        "lr": sweep.log_uniform(1e-4, 1e-1),
        "dropout": sweep.uniform(0.0, 0.5),
        "layers": sweep.integers(1, 4),
        "hidden": sweep.integers(32, 512, log=True),
        "name": sweep.choice("adam", "sgd"),
    }
    samples = sweep.sample(ranges, n=2000, seed=3)
    assert samples[:50] == sweep.sample(ranges, n=50, seed=3)
    assert samples[:50] != sweep.sample(ranges, n=50, seed=4)
    assert all(1e-4 <= each["lr"] <= 1e-1 and 0 <= each["dropout"] <= 0.5 and 32 <= each["hidden"] <= 512 for each in samples)
    # The range of lr has three decades. One third of the trials must be in the first decade.
    assert sum(each["lr"] < 1e-3 for each in samples) / 2000 == pytest.approx(1 / 3, abs=0.05)
    assert sum(each["hidden"] < 128 for each in samples) / 2000 == pytest.approx(1 / 2, abs=0.05)
    assert sum(each["dropout"] for each in samples) / 2000 == pytest.approx(0.25, abs=0.02)
    for layers in (1, 2, 3, 4):
        assert sum(each["layers"] == layers for each in samples) / 2000 == pytest.approx(1 / 4, abs=0.05)
    assert all(type(each["layers"]) is int and type(each["hidden"]) is int for each in samples)
    assert all(each["lr"] == float(f"{each['lr']:.3g}") for each in samples)
    small = sweep.sample({"a": sweep.choice(1, 2, 3)}, n=3)
    assert sorted(each["a"] for each in small) == [1, 2, 3]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sweep.product({"a": 3}), "a sweep with a=3: must be a list of values"),
        (lambda: sweep.product({"a": "xy"}), "a sweep with a='xy': must be a list of values"),
        (lambda: sweep.product({"a": [1]}, {"a": [2]}), "sets a twice in one trial"),
        (lambda: sweep.zipped({"a": [1, 2], "b": [3]}), "a has 2, b has 1"),
        (lambda: sweep.uniform(1, 1), "a range from 1 to 1: must be two numbers, the first below the second."),
        (
            lambda: sweep.log_uniform(0, 1),
            "a range from 0 to 1: must be two numbers, the first below the second, both above 0.",
        ),
        (lambda: sweep.integers(1, 2.5), "a range from 1 to 2.5: must be two integers, the first below the second."),
        (lambda: sweep.choice(), "has no options"),
        (lambda: sweep.sample({"a": sweep.choice(1, 2)}, n=3), "these ranges have only 2 different trials"),
        (lambda: sweep.sample({"a": [1, 2]}, n=1), "a=[1, 2]: must be a range"),
    ],
)
def test_wrong_sweeps_are_refused(build, message):
    with pytest.raises(UserError) as error:
        build()
    assert message in str(error.value)


SWEPT = [file for file in sorted((ROOT / "experiments").glob("*/*.py")) if "\ndef sweep()" in file.read_text()]


@pytest.mark.parametrize(
    "file",  # the sweep of the budgets builds 315 models
    [slow(file) if "budgets" in file.parent.name else file for file in SWEPT],
    ids=lambda file: f"{file.parent.name}/{file.stem}",
)
def test_the_sweeps_of_the_experiments_still_load(file):
    trials = load.call(os.fspath(file), "sweep")
    assert set().union(*trials) <= set(keys.KEYS)
    for overrides in (trials[0], trials[-1]):
        sweep.make_trial(os.fspath(file), {}, overrides)


def test_trial_names_are_short_stable_unique_and_safe_as_file_names():
    name = naming.trial_name
    assert re.fullmatch(r"init_from=seed_1-[0-9a-f]{8}", name({"train.init_from": "/home/me/runs/plays/seed=1"}))
    assert name({"optim.learning_rate": 0.003, "model.hidden": 128, "seed": 1}) == "hidden=128,learning_rate=0.003,seed=1"
    assert name({"seed": 1, "model.hidden": 128}) == name({"model.hidden": 128, "seed": 1})
    # Here the last parts of the keys are equal, so the trial name has the full keys.
    assert name({"optim.name": "sgd", "corpus.name": "alice"}) == "corpus.name=alice,optim.name=sgd"
    assert name({}) == "base"
    assert name({"corpus.split": (0.9, 0.1), "batch.shift": False}) == "split=0.9+0.1,shift=false"
    unusual_values = ["/a/../b", "a/b", "a b", "a\nb", "ü", "$(x)", "x" * 500, "x" * 501, "", ".."]
    names = [name({"corpus.path": value}) for value in unusual_values]
    assert len(set(names)) == len(unusual_values)
    assert name({"corpus.keep": "a,newlines=true"}) != name({"corpus.keep": "a", "corpus.newlines": True})
    for each in names:
        assert len(each) <= naming.MAX_NAME_LENGTH
        assert "/" not in each
        assert each.isascii()
        assert each.isprintable()
        assert each.startswith("path=")  # the name must start with neither `.` nor `-`


def test_cores_and_gpus_are_divided_evenly():
    slots = launch.divide_machine(2, {0, 1, 2, 3, 4}, ["0", "1", "2"])
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3)]
    assert [slot.gpus for slot in slots] == ["0", "1"]
    assert not any(slot.shares_gpu for slot in slots)
    slots = launch.divide_machine(3, {4, 9}, ["7", "8"])
    assert [slot.cores for slot in slots] == [(4,), (9,), (4,)]
    assert [slot.gpus for slot in slots] == ["7", "8", "7"]
    assert all(slot.shares_gpu for slot in slots)
    assert launch.divide_machine(1, {0}, [])[0] == launch.Slot((0,), None, False)


def test_a_training_gets_the_core_and_gpu_of_its_slot_and_huge_pages(tmp_path, monkeypatch):
    """A slot is the part of the machine that one training may use."""
    (tmp_path / "enabled").write_text("always [madvise] never")
    monkeypatch.setattr(devices, "HUGE_PAGES_SETTING", tmp_path / "enabled")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    names = ["CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES"]
    code = f"import os; print(sorted(os.sched_getaffinity(0)), *map(os.environ.get, {names}), os.getsid(0) == os.getpid())"
    core, before = max(launch.available_cores()), launch.available_cores()
    process = launch.start_training([sys.executable, "-c", code], launch.Slot((core,), "3", False), tmp_path / "log")
    assert process.wait() == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"[{core}] 3 {devices.HUGE_PAGES} True"
    assert launch.available_cores() == before


def run_sweep(script, file, root, *flags, **options):
    return script("sweep", f"--config={file}", f"--root={root}", *flags, **options)


@pytest.fixture(scope="module")
def uninterrupted(script, corpus_file, tmp_path_factory):
    """Runs a sweep of four trials without interruption. Returns the folder of swept.py and of the sweep's root."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "swept.py").write_text(CONFIG.format(corpus=os.fspath(corpus_file), sweep=FOUR_TRIALS, steps=160))
    result = run_sweep(script, folder / "swept.py", folder / "root", "--parallel=2")
    assert "4 trials in" in result.stdout
    assert "4 new" in result.stdout
    assert result.stdout.count("done     hidden=") == 4
    assert "4 done of 4 trials." in result.stdout
    assert result.stderr == ""
    return folder


def test_run_directories_are_named_by_their_overrides(uninterrupted):
    names = {f"hidden={hidden},learning_rate={rate}" for hidden in (8, 12) for rate in (0.001, 0.01)}
    assert {path.parent.name for path in (uninterrupted / "root").glob("*/config.json")} == names
    for name in names:
        config = run_module.Run(uninterrupted / "root" / name).config()
        assert name == f"hidden={config.model.hidden},learning_rate={config.optim.learning_rate}"
        assert f"--config.model.hidden={config.model.hidden}" in (uninterrupted / "root" / "logs" / f"{name}.log").read_text()


def test_the_same_command_leaves_finished_trials_unchanged(script, uninterrupted):
    before = {file: file.stat().st_mtime_ns for file in (uninterrupted / "root").glob("*/metrics.jsonl")}
    result = run_sweep(script, uninterrupted / "swept.py", uninterrupted / "root")
    assert "4 trials" in result.stdout
    assert "4 done" in result.stdout
    best = min((json.loads((file.parent / "status.json").read_text())["best"]["nats"], file.parent.name) for file in before)
    assert (
        f"best: {best[1]} (done): best validation {best[0]:.4f} nats/char, perplexity {math.exp(best[0]):.4f}" in result.stdout
    )
    assert before == {file: file.stat().st_mtime_ns for file in (uninterrupted / "root").glob("*/metrics.jsonl")}


def test_the_best_trial_is_named_with_its_state_and_a_stopped_trial_with_its_step():
    def status(state, nats, **more):
        return TrialStatus(state, best=nats and {"step": 5, "nats": nats, "split": "validation"}, **more)

    statuses = {"a": status("done", 2.0), "b": status("stopped", 1.5, step=5, total_steps=60), "c": status("failed", None)}
    words = f"b (stopped): best validation 1.5000 nats/char, perplexity {math.exp(1.5):.4f}"
    assert conclusion.best_in_words(statuses) == words
    assert conclusion.best_in_words({"c": statuses["c"]}) is None
    assert conclusion.ended_in_words("b", statuses["b"]) == "b was stopped at step 5 of 60."
    assert conclusion.ended_in_words("d", status("stopped", None, message="killed by SIGKILL")) == (
        "d was stopped at step 0 (killed by SIGKILL)."
    )
    assert conclusion.ended_in_words("c", status("failed", None, message="no disk")) == "failed: c: no disk"


def wait_for_steps(root, step, trials, process):
    """Waits until `trials` trials have logged step `step` or a later step, or until `process` has ended."""
    while process.poll() is None:
        reached = 0
        for file in root.glob("*/metrics.jsonl"):
            lines = file.read_text().rpartition("\n")[0].splitlines()
            reached += bool(lines) and json.loads(lines[-1])["step"] >= step
        if reached >= trials:
            return
        time.sleep(0.01)


def trainings(root) -> list[int]:
    """Returns the ids of the processes whose --workdir is `root` or is inside `root`."""
    found = []
    for folder in os.listdir("/proc"):
        try:
            arguments = pathlib.Path(f"/proc/{folder}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(argument.startswith(f"--workdir={root}".encode()) for argument in arguments):
            found.append(int(folder))
    return found


@pytest.mark.slow
def test_a_killed_training_and_ctrl_c_do_not_change_the_results(script, uninterrupted, tmp_path):
    root = tmp_path / "root"
    command = script.command("sweep", f"--config={uninterrupted / 'swept.py'}", f"--root={root}", "--parallel=2")
    with subprocess.Popen(command, env=script.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_steps(root, 50, 2, process)
        os.kill(trainings(root)[0], signal.SIGKILL)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "killed by SIGKILL" in output
    assert "The sweep was stopped: the same command resumes it." in output
    assert not any(line.endswith(":") for line in output.splitlines())
    assert trainings(root) == []
    states = [json.loads(file.read_text())["state"] for file in root.glob("*/status.json")]
    assert set(states) <= {"incomplete", "done"}
    assert "incomplete" in states
    result = run_sweep(script, uninterrupted / "swept.py", root, "--parallel=2")
    assert "to resume" in result.stdout
    assert "4 done of 4 trials." in result.stdout
    for file in (uninterrupted / "root").glob("*/metrics.jsonl"):
        assert read_rows(root / file.parent.name) == read_rows(file.parent)


@pytest.mark.slow
def test_the_next_launcher_waits_for_trainings_of_a_killed_launcher(script, uninterrupted, tmp_path):
    root = tmp_path / "root"
    arguments = [f"--config={uninterrupted / 'swept.py'}", f"--root={root}", "--only=optim.learning_rate=0.01", "--parallel=2"]
    with subprocess.Popen(script.command("sweep", *arguments), env=script.env(), stdout=subprocess.DEVNULL) as process:
        wait_for_steps(root, 20, 2, process)
        process.kill()
    assert len(trainings(root)) == 2
    result = script("sweep", *arguments)
    assert "in another process" in result.stdout
    assert "2 done of 2 trials." in result.stdout
    for file in root.glob("*/metrics.jsonl"):
        assert read_rows(file.parent) == read_rows(uninterrupted / "root" / file.parent.name)
        assert "resuming" not in (root / "logs" / f"{file.parent.name}.log").read_text()


def test_failed_and_diverged_trials_are_named_and_other_trials_continue(script, write_config, tmp_path):
    file = write_config(
        'chain([{"optim.learning_rate": 1e-2}, {"optim.learning_rate": 1e30, "optim.name": "sgd", "optim.clip_norm": 0.0}])'
    )
    root = tmp_path / "root"
    result = run_sweep(script, file, root, status=1)
    assert "1 done, 1 diverged of 2 trials." in result.stdout
    assert "nats per character; 25 is the limit" in result.stdout
    again = run_sweep(script, file, root, status=1)  # done and diverged trials must not run again
    assert "1 done, 1 diverged" in again.stdout
    assert "running" not in again.stdout
    name = "learning_rate=0.01"
    Run(root / name).write_status("failed", 4, None, "test error")
    assert f"failed: {name}: test error" in run_sweep(script, file, root, status=1).stdout
    assert "1 done, 1 diverged" in run_sweep(script, file, root, "--retry_failed", status=1).stdout


def test_the_reason_is_shown_if_a_trial_cannot_start(script, write_config, tmp_path):
    (tmp_path / "text").write_bytes(b"to be or not\xff")
    file = write_config(f'product({{"corpus.path": [{str(tmp_path / "text")!r}]}})')
    result = run_sweep(script, file, tmp_path / "root", status=1)
    assert "text is not UTF-8: byte 0xff" in result.stdout
    assert "1 failed of 1 trial." in result.stdout


def test_missing_texts_and_parents_are_refused_before_any_trial(script, write_config, tmp_path):
    root = tmp_path / "root"
    for key, value, message in (
        ("corpus.path", "/no/such/text", "corpus.path=/no/such/text: no such file or folder"),
        ("train.init_from", "/no/such/run", "train.init_from=/no/such/run: /no/such/run is not the directory of a run"),
    ):
        file = write_config(f'product({{"model.hidden": [8, 12], "{key}": [None, "{value}"]}})')
        assert message in script.fails("sweep", f"--config={file}", f"--root={root}")
        assert not root.exists()


@pytest.mark.slow
def test_a_trial_with_the_config_of_an_existing_run_uses_this_run(script, write_config, tmp_path):
    """A key is added to the sweep. The trials with the default of this key have the same configs as the existing runs."""
    root, hidden = tmp_path / "root", {"model.hidden": [8]}
    run_sweep(script, write_config(f"product({hidden})", steps=5), root)
    before = {file: file.read_bytes() for file in root.glob("hidden=*/metrics.jsonl")}
    assert len(before) == 1
    added = write_config(f"product({hidden | {'model.dropout': [0.0, 0.2], 'seed': [0]}})", steps=5)
    result = run_sweep(script, added, root)
    assert "2 trials in" in result.stdout
    assert "1 done, 1 new" in result.stdout
    same = "not new, because existing trials have the same configs: hidden=8,dropout=0.0,seed=0 is hidden=8\n"
    assert same in result.stdout
    assert "2 done of 2 trials." in result.stdout
    assert before == {file: file.read_bytes() for file in before}
    assert {file.parent.name for file in root.glob("*/config.json")} == {"hidden=8", "hidden=8,dropout=0.2,seed=0"}
    config = Run(root / "hidden=8").config()
    config.train.steps = 7
    assert train.train(config, str(root / "hidden=8"), extend=True) == 0  # the trial remains the same trial
    again = run_sweep(script, added, root)
    assert "2 done" in again.stdout
    assert "no longer in the sweep" not in again.stdout


def test_two_trials_never_use_the_same_run(write_config, tmp_path):
    """The two trials differ only in a key that changes no result."""
    file, root = write_config('product({"model.hidden": [8]})'), sweep.Root(tmp_path / "root")
    (trial,) = sweep.load_trials(file, {})
    with root.locked():
        root.record(file, [trial])
    root.run(trial).workdir.mkdir()
    (root.run(trial).workdir / "config.json").write_text(json.dumps(load.to_dict(trial.config)))
    trials = sweep.load_trials(write_config('product({"model.hidden": [8], "train.steps_per_call": [1, 2]})'), {})
    assert [each.name for each in root.matched(trials)] == ["hidden=8", "hidden=8,steps_per_call=2"]
    other = sweep.load_trials(write_config('product({"model.hidden": [8], "model.dropout": [0.1]})'), {})
    assert root.matched(other) == other


def test_of_two_runs_with_the_same_config_the_done_run_is_taken(write_config, tmp_path):
    root, file = sweep.Root(tmp_path / "root"), write_config('product({"model.hidden": [8]})')
    names = ["hidden=8", "hidden=8,dropout=0.0"]
    (trial,) = sweep.load_trials(file, {})
    with root.locked():
        root.record(file, [trial._replace(name=name) for name in names])
    for name, state in zip(names, ["incomplete", "done"], strict=True):
        run = Run(root.path / name)
        run.workdir.mkdir()
        (run.workdir / "config.json").write_text(json.dumps(load.to_dict(trial.config)))
        run.write_status(state, 5, None)
    trials = sweep.load_trials(write_config('product({"model.hidden": [8], "seed": [0]})'), {})
    assert [each.name for each in root.matched(trials)] == ["hidden=8,dropout=0.0"]
    (root.path / names[1] / "config.json").write_text("{")  # a damaged run is never taken
    assert [each.name for each in root.matched(trials)] == ["hidden=8"]


def test_a_slurm_job_that_waits_is_not_submitted_again_under_another_name(write_config, tmp_path):
    """The job has no run directory before it begins, so only sweep.json knows its config."""
    root, file = sweep.Root(tmp_path / "root"), write_config('product({"model.hidden": [8, 12]})')
    trials = sweep.load_trials(file, {})
    with root.locked():
        root.record(file, trials)
        root.record(file, trials[:1], jobs={"hidden=8": "7_0"})
    added = sweep.load_trials(write_config('product({"model.hidden": [8, 12], "seed": [0]})'), {})
    assert [each.name for each in root.matched(added)] == ["hidden=8", "hidden=12,seed=0"]
    record = json.loads((root.path / "sweep.json").read_text())
    del record["configs"]  # a sweep.json of an older charlm has no digests
    (root.path / "sweep.json").write_text(json.dumps(record))
    assert root.matched(added) == added


@pytest.mark.slow
def test_a_changed_sweep_adds_trials_and_names_removed_trials(script, write_config, tmp_path):
    root = tmp_path / "root"
    run_sweep(script, write_config('product({"model.hidden": [8, 12]})', steps=5), root)
    result = run_sweep(script, write_config('product({"model.hidden": [12, 16]})', steps=5), root)
    assert "1 done, 1 new" in result.stdout
    assert "hidden=8 is no longer in the sweep: its run directory is not changed" in result.stdout
    assert (root / "hidden=8" / "status.json").exists()
    changed = write_config('product({"model.hidden": [12, 16]})', steps=6)
    message = script.fails("sweep", f"--config={changed}", f"--root={root}")
    assert "train.steps (5 saved, 6 given); choose another --root" in message


def test_dry_run_prints_commands_and_writes_nothing(script, write_config, tmp_path):
    result = run_sweep(
        script,
        write_config(FOUR_TRIALS),
        tmp_path / "root",
        "--dry_run",
        "--only=hidden=12",
        "--only=optim.learning_rate<5e-3",
    )
    assert "1 trial in" in result.stdout
    assert "--config.model.hidden=12 " in result.stdout
    assert "--config.optim.learning_rate=0.001 " in result.stdout
    assert not (tmp_path / "root").exists()


def test_commands_of_dry_run_can_be_pasted_into_a_shell(script, write_config, tmp_path):
    values = {"corpus.split": (0.8, 0.2), "sample.prompt": 'it\'s $HOME; `b`\n& "c"'}
    result = run_sweep(script, write_config(repr([values])), tmp_path / "a root", "--dry_run")
    _, marker, command = result.stdout.partition("\n           ")
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    pasted = f'set -e; run() {{ {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"; }}; run {command}'
    arguments = json.loads(subprocess.run(["sh", "-c", pasted], check=True, capture_output=True, text=True).stdout)
    assert marker
    workdir = tmp_path / "a root" / naming.trial_name(values)
    assert arguments[:6] == [sys.executable, "-P", "-m", "charlm", "train", f"--workdir={workdir}"]
    assert {f"--config.{key}={value}" for key, value in values.items()} < set(arguments)


@pytest.mark.parametrize(
    ("expression", "flags", "message"),
    half_slow(
        [
            ("[]", [], "sweep() of {file} returns an empty list"),
            ("3", [], "sweep() of {file} must return a list of dicts"),
            ("[1]", [], "sweep() of {file} must return a list of dicts"),
            ("1 / 0", [], "{file} line 21: ZeroDivisionError: division by zero."),
            (
                '[{"model.hiden": 3}]',
                [],
                "trial 1 of {file}: unknown config key 'model.hiden': the nearest key is 'model.hidden'",
            ),
            ('[{"model.hidden": 3}, {"model.hidden": 0}]', [], "trial 2 of {file}: model.hidden=0: must be positive."),
            ('[{"model.hidden": 3}, {"model.hidden": "3"}]', [], "trials 1 and 2 of {file} are the same, hidden=3"),
            ('[{}, {"model.hidden": 8}]', [], "trials 1 and 2 of {file} are the same, hidden=8"),
            ('[{"model.hidden": 3}]', ["--only=model.hiden=3"], "nearest key is 'model.hidden'"),
            ('[{"model.hidden": 3}]', ["--only=model.hidden=4"], "no trial of {file} meets this condition"),
            (
                '[{"model.hidden": 3}]',
                ["--only=hidden=3", "--only=seed=5"],
                "--only=hidden=3 --only=seed=5: no trial of {file} meets all these conditions",
            ),
            ('[{"model.hidden": 3}]', ["--only=name=gru"], "'name' is ambiguous: write corpus.name or optim.name."),
            ('[{"train.init_from": ""}]', [], "train.init_from='': must be None, or at least one character."),
            (
                '[{"model.hidden": 3}]',
                ["--only=length=3"],
                "config key 'length' is ambiguous: write batch.length, eval.length or",
            ),
            ('[{"model.hidden": 3}]', ["--only=hidden"], "'hidden' is not a condition"),
            ('[{"model.hidden": 3}]', ["--config.model.hidden=4"], "--config.model.hidden: the sweep sets this key too"),
            ('[{"model.hidden": 3}]', ["--parallel=0"], "--parallel=0: must be 1 or more."),
            ('[{"model.hidden": 3}]', ["--launcher=cloud"], "--launcher"),
        ]
    ),
)
def test_wrong_input_is_refused_before_any_trial(script, write_config, tmp_path, expression, flags, message):
    file = write_config(expression)
    assert message.format(file=file) in script.fails("sweep", f"--config={file}", f"--root={tmp_path / 'root'}", *flags)
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_editing_the_config_during_a_sweep_changes_no_trial(script, write_config, tmp_path):
    """Every trial uses the config that was checked when the sweep was launched."""
    file, root = write_config('product({"model.hidden": [8, 12]})', steps=10), tmp_path / "root"
    with subprocess.Popen(
        script.command("sweep", f"--config={file}", f"--root={root}"), env=script.env(), stdout=subprocess.PIPE, text=True
    ) as process:
        while not (root / "hidden=8").exists() and process.poll() is None:
            time.sleep(0.01)
        write_config('product({"model.hidden": [8, 12]})', steps=15)
        process.communicate()
    assert process.returncode == 0
    assert [run_module.Run(root / f"hidden={hidden}").config().train.steps for hidden in (8, 12)] == [10, 10]


def test_a_launcher_stops_its_trainings_if_an_exception_is_raised(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(60)"
    trial = sweep.Trial("t", {}, None)
    root = sweep.Root(tmp_path)
    (tmp_path / "logs").mkdir()

    def one_job_then_an_exception():
        yield launch.Job((trial,), [sys.executable, "-c", code, f"--workdir={tmp_path}"], root.log(trial))
        while "up" not in root.log(trial).read_text().split("\n"):
            time.sleep(0.01)
        raise RuntimeError("test error")

    slots = launch.divide_machine(2, launch.available_cores(), [])
    with pytest.raises(RuntimeError, match="test error"):
        launch.run_local(root, one_job_then_an_exception(), slots, Display(2))
    assert trainings(tmp_path) == []


def test_a_missing_slurm_is_reported_in_one_line(script, write_config, tmp_path):
    command = script.command(
        "sweep", f"--config={write_config(FOUR_TRIALS)}", f"--root={tmp_path / 'root'}", "--launcher=slurm"
    )
    result = subprocess.run(command, env={**script.env(), "PATH": os.fspath(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert "this machine has no sbatch" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_slurm_job_fails_if_its_training_fails(tmp_path):
    for status in (1, 2):
        with pytest.raises(SystemExit) as ended:
            slurm.Training(["sh", "-c", f"exit {status}"], os.fspath(tmp_path / "log"))()
        assert ended.value.code == status
    assert slurm.Training(["true"], os.fspath(tmp_path / "log"))() == 0


@pytest.mark.slow
def test_a_damaged_trial_is_named_and_other_trials_continue(script, write_config, tmp_path):
    file, root = write_config('product({"model.hidden": [8, 12]})', steps=5), tmp_path / "root"
    run_sweep(script, file, root)
    (root / "hidden=8" / "status.json").write_text("{")
    result = run_sweep(script, file, root, status=1)
    assert "failed: hidden=8: " in result.stdout
    assert "status.json is damaged" in result.stdout
    assert "1 failed, 1 done of 2 trials." in result.stdout


def test_wrong_root_folders_are_refused(script, write_config, tmp_path):
    file = write_config('[{"model.hidden": 8}]', steps=2)
    run_sweep(script, file, tmp_path / "root")
    (tmp_path / "file").touch()
    assert "is a file" in script.fails("sweep", f"--config={file}", f"--root={tmp_path / 'file'}")
    assert "not empty and not the folder of a sweep" in script.fails("sweep", f"--config={file}", f"--root={tmp_path}")
    (tmp_path / "begun").mkdir()
    # If a launcher is killed during its first write of sweep.json, an empty sweep.json.new can remain. A new launcher must
    # accept such a folder.
    (tmp_path / "begun" / "sweep.json.new").touch()
    assert "hidden=8" in script("sweep", f"--config={file}", f"--root={tmp_path / 'begun'}", "--dry_run").stdout
    other = tmp_path / "other.py"
    other.write_text(pathlib.Path(file).read_text())
    message = script.fails("sweep", f"--config={other}", f"--root={tmp_path / 'root'}")
    assert "holds a sweep of swept.py, not of other.py" in message
    config_without_sweep = f"--config={ROOT / 'configs' / 'quickstart.py'}"
    assert "has no sweep()" in script.fails("sweep", config_without_sweep, f"--root={tmp_path / 'new'}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sweep.json").write_text("{")
    assert "sweep.json is damaged" in script.fails("sweep", f"--config={file}", f"--root={tmp_path / 'broken'}")
    with sweep.Root(tmp_path / "locked").locked():
        (tmp_path / "locked" / "logs" / "launcher.lock").unlink()  # the folder itself is locked too
        assert "is in use by another launcher" in script.fails("sweep", f"--config={file}", f"--root={tmp_path / 'locked'}")
