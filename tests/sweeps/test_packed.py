"""Tests the launcher `packed`: how trials are divided into packs, and sweeps that it trains as a user would start them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import assert_near_rows
from faults.checks import differences, read_rows
from faults.runs import logged_step
from test_sweep import CONFIG, run_sweep, wait_for_steps

from charlm.config import load
from charlm.rundir.run import Run
from charlm.sweeps import packed, sweep
from charlm.sweeps.status import failure_message
from charlm.training import train


def trials_of(write, expression):
    return sweep.load_trials(write(expression), {})


@pytest.fixture
def write_config(tmp_path, corpus_file):
    """Returns a function that writes a config file with a sweep and returns the name of the file."""

    def write(expression: str, steps: int = 20) -> str:
        file = tmp_path / "swept.py"
        file.write_text(CONFIG.format(corpus=os.fspath(corpus_file), sweep=expression, steps=steps))
        return os.fspath(file)

    return write


def names(division):
    return [[trial and trial.name for trial in pack.places] for pack in division.packs], [each.name for each in division.alone]


def test_trials_are_packed_by_what_their_program_contains_and_by_their_step(write_config):
    expression = 'chain(product({"model.hidden": [8, 12], "seed": [0, 1, 2]}), [{"model.hidden": 8, "model.dropout": 0.1}])'
    trials = trials_of(write_config, expression)
    steps = dict.fromkeys((trial.name for trial in trials), 0)
    division = packed.divide(trials, steps, [], largest=8)
    eight, twelve = ([f"hidden={hidden},seed={seed}" for seed in range(3)] for hidden in (8, 12))
    assert names(division) == ([eight, twelve], ["hidden=8,dropout=0.1"])
    assert division.sentences() == [
        "2 packs of 3, 3 trials and 1 trial alone",
        "The trials of a pack can't differ in model.dropout (0, above 0), model.hidden (8, 12).",
    ]
    assert names(packed.divide(trials, steps, [], largest=2)) == (
        [eight[:2], twelve[:2]],
        [eight[2], twelve[2], "hidden=8,dropout=0.1"],
    )
    assert names(packed.divide(trials, steps, [], largest=1))[0] == []
    steps |= {eight[0]: 10, eight[2]: 10}
    division = packed.divide(trials[:3], steps, [], largest=8)
    assert names(division) == ([[eight[0], eight[2]]], [eight[1]])
    assert division.sentences()[1:] == ["Trials at different steps (0, 10) can't form a new pack together."]


def test_a_recorded_pack_keeps_its_places(write_config):
    trials = trials_of(write_config, 'product({"seed": [0, 1, 2, 3, 4, 5]})')
    steps = dict.fromkeys((trial.name for trial in trials), 0) | {"seed=2": 10}
    recorded = [["seed=9", "seed=8"], ["seed=0", "seed=1", "seed=2"]]
    left = [trial for trial in trials if trial.name != "seed=1"]  # this trial has ended
    division = packed.divide(left, steps, recorded, largest=8)
    assert names(division) == ([["seed=0", None, "seed=2"], ["seed=3", "seed=4", "seed=5"]], [])
    assert [(pack.number, pack.names) for pack in division.packs] == [
        (1, ["seed=0", "seed=1", "seed=2"]),
        (2, ["seed=3", "seed=4", "seed=5"]),
    ]
    # train.py --extend has changed the length of a trial, so this trial needs another program.
    extended = load.load(write_config('product({"seed": [0]})'), {"seed": 2, "train.steps": 40})
    left = [trial._replace(config=extended) if trial.name == "seed=2" else trial for trial in left]
    expected = [["seed=0", None, None], ["seed=3", "seed=4", "seed=5"]]
    assert names(packed.divide(left, steps, recorded, 8)) == (expected, ["seed=2"])


def test_a_recorded_pack_that_is_too_large_is_divided_anew_if_it_has_no_checkpoint(write_config):
    trials = trials_of(write_config, 'product({"seed": [0, 1, 2, 3]})')
    all_names = [trial.name for trial in trials]
    halves = [all_names[:2], all_names[2:]]
    division = packed.divide(trials, dict.fromkeys(all_names, 0), [all_names], largest=2)
    assert [(pack.number, pack.names) for pack in division.packs] == [(1, halves[0]), (2, halves[1])]
    # From now on, the trials belong to the new packs.
    steps = dict.fromkeys(halves[0], 10) | dict.fromkeys(halves[1], 0)
    division = packed.divide(trials, steps, [all_names, *halves], largest=8)
    assert [(pack.number, pack.names) for pack in division.packs] == [(1, halves[0]), (2, halves[1])]
    # A pack with a checkpoint, and a pack that is not too large, stay together.
    for made, largest in ((steps, 2), (dict.fromkeys(all_names, 0), 4)):
        division = packed.divide(trials, made, [all_names], largest)
        assert [(pack.number, pack.names) for pack in division.packs] == [(0, all_names)]


def test_documents_are_trained_alone(write_config):
    trials = trials_of(write_config, 'product({"batch.framing": ["documents"], "corpus.documents": ["lines"], "seed": [0, 1]})')
    division = packed.divide(trials, dict.fromkeys((trial.name for trial in trials), 0), [], 8)
    assert len(division.alone) == 2
    assert division.sentences()[1].endswith(
        "is trained alone, because of batch.framing=documents: the batches of two trials have different lengths."
    )


def test_a_trial_that_failed_gets_the_message_of_its_own_log_or_else_of_the_pack(tmp_path):
    own, of_pack = tmp_path / "own", tmp_path / "pack"
    assert failure_message(own, of_pack) == ""
    of_pack.write_text("error: no space left\n")
    assert failure_message(own, of_pack) == "no space left"
    own.write_text("step 3\n")
    assert failure_message(own, of_pack) == "no space left"
    own.write_text("step 3\nerror: its own\n")
    assert failure_message(own, of_pack) == "its own"
    assert failure_message(of_pack) == "no space left"
    of_pack.write_text("a\nb\n")
    assert failure_message(of_pack) == "b"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--launcher=packed", "--pack=0"], "--pack=0: must be 1 or more."),
        (["--pack=4"], "--pack=4: needs --launcher=packed"),
        (["--launcher=packed", "--tasks=2"], "needs --launcher=slurm"),
    ],
)
def test_wrong_flags_are_refused(script, write_config, tmp_path, flags, message):
    file = write_config('product({"seed": [0, 1]})')
    assert message in script.fails("sweep", f"--config={file}", f"--root={tmp_path / 'root'}", *flags)


def test_a_damaged_file_of_a_pack_is_refused(tmp_path):
    for text in ("{", '{"places": [null]}', '{"places": [{"name": "a"}]}', "[]"):
        (tmp_path / "pack.json").write_text(text)
        command = [sys.executable, "-m", "charlm", "train_pack", f"--pack={tmp_path / 'pack.json'}"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: --pack={tmp_path / 'pack.json'} can't be read (")


# The first three trials form a pack, and one of them diverges. Two devices share the pack, so it has a spare place. The last
# trial is trained alone.
SWEPT = 'chain([{"optim.learning_rate": 1e30}], product({"seed": [0, 1]}), [{"model.hidden": 12}])'
NAMES = ("learning_rate=1e+30", "seed=0", "seed=1", "hidden=12")
STEPS = 200


@pytest.fixture(scope="module", autouse=True)
def _two_devices():
    """Gives the programs that this module starts two virtual devices on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2")
        yield


@pytest.fixture(scope="module")
def uninterrupted(script, corpus_file, tmp_path_factory):
    """Runs a packed sweep without interruption. Returns the folder of swept.py and of the sweep's root."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "swept.py").write_text(CONFIG.format(corpus=os.fspath(corpus_file), sweep=SWEPT, steps=STEPS))
    result = run_sweep(script, folder / "swept.py", folder / "root", "--launcher=packed", status=1)
    assert "1 diverged, 3 done of 4 trials." in result.stdout
    assert result.stdout.index("done     seed=0") < result.stdout.index("running  hidden=12")
    return folder


def test_a_dry_run_shows_the_packs_and_writes_nothing(script, write_config, tmp_path):
    result = run_sweep(script, write_config(SWEPT), tmp_path / "root", "--launcher=packed", "--dry_run", "--parallel=3")
    assert not (tmp_path / "root").exists()
    assert result.stderr == "note: --parallel=3: a part of the machine is not used, so --parallel=2 is faster.\n"
    lines = result.stdout.splitlines()
    assert lines[1:3] == ["1 pack of 3 trials and 1 trial alone", "The trials of a pack can't differ in model.hidden (8, 12)."]
    assert lines[3].startswith("pack 0: ")
    assert lines[3].endswith(f" train_pack --pack={tmp_path / 'root' / 'logs' / 'pack_0.json'}")
    assert [line.split() for line in lines[4:8]] == [["new", name] for name in NAMES]
    assert " train --workdir=" in lines[8]


def test_a_packed_sweep_has_the_folders_and_rows_of_a_sweep(uninterrupted, tmp_path):
    root = uninterrupted / "root"
    assert {path.name for path in root.iterdir()} == {*NAMES, "logs", "sweep.json"}
    logs = {f"{name}.log" for name in NAMES} | {"pack_0.json", "pack_0.log", "launcher.lock"}
    assert {path.name for path in (root / "logs").iterdir()} == logs
    assert json.loads((root / "sweep.json").read_text())["packs"] == [list(NAMES[:3])]
    assert f"done at step {STEPS}" in (root / "logs" / "seed=1.log").read_text()
    assert Run(root / "learning_rate=1e+30").status()["state"] == "diverged"
    assert "3 trials in a pack on 2 devices" in (root / "logs" / "pack_0.log").read_text()
    # The second device has the last trial and the spare place.
    assert train.train(Run(root / "seed=1").config(), str(tmp_path / "alone")) == 0
    assert_near_rows(root / "seed=1", tmp_path / "alone")


@pytest.mark.slow
def test_a_stopped_and_killed_pack_resumes_to_the_same_bits(script, uninterrupted, tmp_path):
    root = tmp_path / "root"
    flags = ["--launcher=packed", "--only=model.hidden=8"]
    command = script.command("sweep", f"--config={uninterrupted / 'swept.py'}", f"--root={root}", *flags)
    options = {"env": script.env(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as process:
        wait_for_steps(root, 25, 2, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    for seed in (0, 1):
        status = Run(root / f"seed={seed}").status()
        assert status["state"] == "incomplete"
        assert (root / f"seed={seed}" / "checkpoints" / str(status["step"])).is_dir()
    with subprocess.Popen(command, **options) as process:
        wait_for_steps(root, 100, 2, process)
        (holder,) = {int((root / f"seed={seed}" / "lock").read_text().split()[1]) for seed in (0, 1)}
        os.kill(holder, signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output + errors
    assert output.count("killed by SIGKILL") == 2
    assert logged_step(root / "seed=0") < STEPS
    result = run_sweep(script, uninterrupted / "swept.py", root, *flags, status=1)
    assert "2 to resume" in result.stdout
    assert "1 pack of 2 trials\n" in result.stdout
    diverged, *others = NAMES[:3]
    assert read_rows(root / diverged) == read_rows(uninterrupted / "root" / diverged)
    for name in others:
        assert differences(root / name, uninterrupted / "root" / name) == [], name
    assert "resuming at step" in (root / "logs" / "seed=0.log").read_text()
