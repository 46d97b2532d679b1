"""Tests signals, full disks, damaged files and diverged runs. scripts/torture.py tests more faults."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params, slow
from faults.checks import read_rows
from faults.disk import limit_file_size
from faults.runs import HARMS, TEXTS, as_flags, harm, make_text, metrics_bytes, wait_for_step

from charlm import files
from charlm.config import load
from charlm.errors import Broken, Failure
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import train
from charlm.training.state import Progress

# Each step multiplies the weights by -2. At half the learning rate, each step multiplies the weights by -0.5.
DIVERGING = {
    "optim.name": "sgd",
    "optim.learning_rate": 1.0,
    "optim.weight_decay": 3.0,
    "optim.clip_norm": 0.0,
    "optim.schedule": "constant",
    "train.steps": 24,
    "train.checkpoint_every": 6,
}


@pytest.fixture(scope="module")
def stopped(corpus_file, tmp_path_factory):
    """The overrides of a config, a run that was stopped at step 40 of 60, and a run that was never stopped.

    In the tests, `straight` is the run that was never stopped.
    """
    folder = tmp_path_factory.mktemp("faults")
    overrides = {
        "corpus.path": os.fspath(corpus_file),
        "model.dropout": 0.2,
        "train.log_every": 5,
        "train.eval_every": 20,
        "train.checkpoint_every": 10,
        "sample.length": 20,
    }
    config = load.load(TINY, overrides)
    assert train.train(config, folder / "straight") == 0
    stop = threading.Thread(target=stop_at, args=(folder / "stopped", 40))
    stop.start()
    assert train.train(config, folder / "stopped") == 128 + signal.SIGTERM
    stop.join()
    return overrides, folder / "stopped", folder / "straight"


def stop_at(workdir, step: int) -> None:
    wait_for_step(workdir, step)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", ["flipped", *(slow(how) for how in HARMS if how != "flipped")])
@pytest.mark.parametrize(
    "name", [slow(name) if name in ("vocab.json", "corpus.json", "environment.json") else name for name in TEXTS]
)
def test_training_names_a_damaged_file_in_a_note_or_an_error(script, stopped, tmp_path, name, how):
    """HARMS lists the kinds of damage. TEXTS lists the text files of a run."""
    overrides, run, straight = stopped
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    harm(workdir / name, how)
    command = script.command("train", f"--config={TINY}", f"--workdir={workdir}", *as_flags(overrides))
    result = subprocess.run(command, capture_output=True, text=True, env=script.env())
    lines = result.stderr.strip().splitlines()
    if result.returncode:
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: ")
        assert name in lines[0]
        return
    assert name in ("environment.json", "metrics.jsonl")
    assert any(line.startswith("note: ") and name in line for line in lines), result.stderr
    assert_same(final_params(workdir), final_params(straight))
    kept = read_rows(workdir)
    assert all(row in read_rows(straight) for row in kept)


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", ["config.json", "status.json", "environment.json", "metrics.jsonl", "evaluations.jsonl"])
def test_compare_names_the_files_that_it_could_not_read(stopped, tmp_path, name, how):
    from charlm.compare import reading

    _, _, straight = stopped
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    Run(workdir).note_evaluation({"nats": 2.5, "protocol": {"split": "test"}})
    (before,), problems = reading.read([workdir])
    assert problems == []
    harm(workdir / name, how)
    records, problems = reading.read([workdir])
    if how in ("deleted", "emptied") and name == "evaluations.jsonl":  # like a run that was never evaluated
        assert records[0].test is None
        return
    assert records == [before] or any(name in problem for problem in problems)


def test_a_flipped_bit_in_a_sealed_text_is_noticed_or_changes_no_field():
    """A sealed text contains a digest of its own contents, the seal. Reading the text checks the seal."""
    fields = {"step": 120, "nats": 1.25, "of": {"é\udcff": [1, None, True]}, "text": 'a "seal": "b'}
    text = files.sealed(fields, indent=1)
    assert files.opened(text) == fields
    content, noticed = text.encode(), 0
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            try:
                found = files.opened(flipped.decode())
            except ValueError:
                noticed += 1
                continue
            assert {key: found[key] for key in fields} == fields
    assert noticed > 7 * len(content)


def test_a_checkpoint_with_changed_progress_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"w": np.ones(2, np.float32)}, {"c": np.ones(1)}, {"evaluated": 1.25, "best": None})
    checkpoints.wait()
    (file,) = [file for file in (tmp_path / "3" / "progress").iterdir() if b"1.25" in file.read_bytes()]
    assert checkpoints.progress(3) == {"evaluated": 1.25, "best": None}
    file.write_bytes(file.read_bytes().replace(b"1.25", b"1.24"))
    with pytest.raises(Failure, match="3 can't be read"):
        checkpoints.progress(3)
    with pytest.raises(Failure, match="3 can't be read"):
        checkpoints.restore_params(3, {"w": jax.ShapeDtypeStruct((2,), np.float32)})


LONG_EVALUATION = {
    "corpus.split": (0.3, 0.7),
    "eval.length": 8,
    "train.steps": 30,
    "train.log_every": 10,
    "train.eval_every": 10,
    "train.checkpoint_every": 4,
    "sample.length": 20,
}


@pytest.mark.slow
def test_an_evaluation_that_a_signal_stopped_is_repeated_on_resume(script, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(make_text(40_000))
    flags = [f"--config={TINY}", *as_flags(LONG_EVALUATION | {"corpus.path": text})]
    script("train", *flags, f"--workdir={tmp_path / 'straight'}")
    workdir = tmp_path / "run"
    with subprocess.Popen(
        script.command("train", *flags, f"--workdir={workdir}"), env=script.env(), stdout=subprocess.DEVNULL
    ) as process:
        wait_for_step(workdir, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert [(row["step"], row["split"]) for row in read_rows(workdir)][-1] == (20, "train")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    assert checkpoints.progress(20)["evaluated"] is None
    checkpoints.close()
    script("train", *flags, f"--workdir={workdir}")
    assert read_rows(workdir) == read_rows(tmp_path / "straight")
    assert_same(final_params(workdir), final_params(tmp_path / "straight"))
    resumed = Checkpoints(workdir / "checkpoints", read_only=True)
    straight = Checkpoints(tmp_path / "straight" / "checkpoints", read_only=True)
    assert resumed.steps() == straight.steps()
    for step in resumed.steps():
        assert without_seconds(resumed.progress(step)) == without_seconds(straight.progress(step))


def without_seconds(progress: dict) -> dict:
    return {key: value for key, value in progress.items() if "seconds" not in key}


@contextlib.contextmanager
def training(script, flags, workdir, step: int):
    """Starts a training and yields its process when the run has reached a step.

    The standard error of the process is a pipe, so a test can read it.
    """
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(script.command("train", *flags), env=script.env(), **pipes) as process:
        wait_for_step(workdir, step)
        yield process


@pytest.mark.slow
def test_a_second_signal_ends_the_training_without_damage(script, stopped, tmp_path):
    overrides, _, straight = stopped
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(overrides)]
    with training(script, flags, tmp_path / "run", 1) as process:
        process.send_signal(signal.SIGSTOP)  # a stopped process handles SIGTERM only after SIGCONT
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.stderr.readline() == "stopping at the next step; a second signal ends the program at once.\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (-signal.SIGINT, 128 + signal.SIGTERM)  # SIGTERM may already have ended the process
    script("train", *flags)
    assert read_rows(tmp_path / "run") == read_rows(straight)
    assert_same(final_params(tmp_path / "run"), final_params(straight))


@pytest.mark.slow
@pytest.mark.parametrize("room", [40, 4000])
def test_a_file_size_limit_gives_one_error_and_loses_no_data(script, stopped, tmp_path, room):
    """The file size limit is `room` bytes above the present size of the metrics file.

    With `room` 40, the next row of metrics exceeds the limit. With `room` 4000, an array of a checkpoint exceeds the limit.
    """
    overrides, _, straight = stopped
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(overrides)]
    with training(script, flags, tmp_path / "run", 15) as process:
        limit = metrics_bytes(tmp_path / "run") + room
        limit_file_size(process, limit)
        assert process.wait() == 1
        errors = process.stderr.read().strip().splitlines()
    assert len(errors) == 1, errors
    assert re.match(r"error: .*/run can't be written \(File too large\): fix this, and the same command resumes", errors[0])
    script("train", *flags)
    assert read_rows(tmp_path / "run") == read_rows(straight)
    assert_same(final_params(tmp_path / "run"), final_params(straight))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".new") or "tmp" in path.name]


def test_a_full_disk_raises_broken(small, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "append", full)
    with pytest.raises(Broken, match=r"run can't be written \(No space left on device\)"):
        train.train(load.load(TINY, small), tmp_path / "run")


@pytest.mark.slow
def test_a_diverged_run_halves_its_learning_rate_at_most_train_halvings_times(small, tmp_path, capsys):
    overrides = small | DIVERGING
    assert train.train(load.load(TINY, overrides | {"train.halvings": 3}), tmp_path / "run") == 0
    assert "going back to the last checkpoint and halving the learning rate." in capsys.readouterr().err
    rows = [row for row in Run(tmp_path / "run").rows() if row["split"] == "train"]
    rates = [row["learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] == 2.0 ** -round(-np.log2(rates[-1]))
    assert all(row["nats"] is not None for row in rows)
    with pytest.raises(Failure, match="is marked diverged"):
        train.train(load.load(TINY, overrides | {"train.halvings": 1, "optim.weight_decay": 99.0}), tmp_path / "few")
    assert capsys.readouterr().err.count("going back to the last checkpoint") == 1
    assert Run(tmp_path / "few").status()["state"] == "diverged"


def test_a_parameter_that_is_nan_is_not_saved(small, tmp_path, monkeypatch):
    """If a parameter becomes NaN, the run is marked diverged and saves no checkpoint."""
    config = load.load(TINY, small | {"train.steps": 12})
    resumed = train.resumed

    def corrupted(*arguments):
        state, progress = resumed(*arguments)
        state.params["head_bias"] = state.params["head_bias"].at[0].set(np.nan)
        return state, progress

    monkeypatch.setattr(train, "resumed", corrupted)
    with pytest.raises(Failure, match="not finite"):
        train.train(config, tmp_path / "run")
    status = Run(tmp_path / "run").status()
    assert status["state"] == "diverged"
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_lock_left_by_a_dead_process_is_ignored(script, stopped, tmp_path):
    overrides, run, straight = stopped
    shutil.copytree(run, tmp_path / "run")
    # After a restart of the machine, a new process may have the same number as the dead process that is named in the lock.
    (tmp_path / "run" / "lock").write_text(f"process {os.getpid()} on this machine\n")
    script("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(overrides))
    assert read_rows(tmp_path / "run") == read_rows(straight)


@pytest.mark.slow
def test_a_checkpoint_can_be_read_at_any_time_during_training(script, stopped, tmp_path):
    """Training deletes old checkpoints while this test reads the run. A deleted checkpoint must not be reported as damaged."""
    overrides, _, _ = stopped
    often = overrides | {"train.steps": 120, "train.checkpoint_every": 2, "train.eval_every": 40}
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(often)]
    code = (
        "import sys, contextlib; from charlm.inference import restore; from charlm.rundir.run import Run\n"
        "run = Run(sys.argv[1]); n = 0\n"
        "while run.is_training() or not n:\n"
        "    restore.load(sys.argv[1], ['latest', 'best'][n % 2]); n += 1\n"
        "print(n)"
    )
    with subprocess.Popen(script.command("train", *flags), env=script.env(), stdout=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("run/checkpoints/[0-9]")):
            time.sleep(0.01)
        reader = [sys.executable, "-c", code, os.fspath(tmp_path / "run")]
        result = subprocess.run(reader, env=script.env() | {"PYTHONPATH": os.fspath(ROOT)}, capture_output=True, text=True)
        assert process.wait() == 0
    assert result.returncode == 0, result.stderr
    assert "can't be read" not in result.stderr
    assert int(result.stdout) > 3


@pytest.mark.slow
def test_a_note_names_the_checkpoint_that_replaces_a_missing_or_damaged_checkpoint(script, stopped, tmp_path):
    _, before, _ = stopped
    shutil.copytree(before, tmp_path / "run")
    run, best = f"--workdir={tmp_path / 'run'}", Run(before).status()["best"]["step"]
    steps = sorted(int(path.name) for path in (before / "checkpoints").iterdir())
    assert script("evaluate", run).stderr.count("note") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(best))
    remaining = [step for step in steps if step != best]
    for name, *flags in (("evaluate",), ("sample", "--prompt=a", "--length=3")):
        errors = script(name, run, *flags).stderr
        assert re.search(
            rf"note: --checkpoint=best: using step ({'|'.join(map(str, remaining))}), because step {best} does not exist\.",
            errors,
        )
        assert "no checkpoint has been evaluated yet" not in errors
    for path in (tmp_path / "run" / "checkpoints" / str(remaining[-1])).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    errors = script("evaluate", run, "--checkpoint=latest").stderr if remaining[:-1] else ""
    assert not remaining[:-1] or f"using step {remaining[-2]}, because step {remaining[-1]} can't be read." in errors


def test_compare_keeps_the_old_page_if_the_new_page_cannot_be_written(script, stopped, tmp_path):
    _, _, run = stopped
    page = tmp_path / "page.html"
    script("compare", run, f"--html={page}")
    before = page.read_bytes()
    limited = ["sh", "-c", 'ulimit -f 2; exec "$@"', "sh", *script.command("compare", run, f"--html={page}")]
    result = subprocess.run(limited, capture_output=True, text=True, env=script.env())
    assert result.returncode == 2
    assert "can't be written" in result.stderr
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html"]


def test_progress_that_an_older_version_saved_can_be_read():
    """Fields that the older version did not save get their default values.

    `loss_nats`, the sum of the losses of all positions, is converted to `loss_means`, the sum of the mean losses of all steps.
    """
    sums = {"nats": 30.0, "chars": 20, "loss_nats": 30.0, "loss_weight": 20, "grad_norm": 5.0, "steps": 2}
    begun = {"nats": 0.0, "chars": 0, "loss_nats": 0.0, "loss_weight": 0, "grad_norm": 0.0, "steps": 0}
    read = Progress.from_dict({"step": 3, "interval": sums, "epoch": begun})
    assert read.halvings == 0
    assert (read.interval.loss_means, read.interval.loss_weight, read.epoch.loss_means) == (3.0, 20, 0.0)
    saved = {"step": 3, "interval": {"nats": 1.0, "chars": 2}, "epoch": {}}
    assert Progress.from_dict(saved).halvings == 0


@pytest.mark.slow
def test_a_closed_pipe_does_not_end_a_training(script, stopped, tmp_path):
    """The program that reads the output may end early. `head -1` ends after one line, and `tee` ends at Ctrl-C."""
    overrides, _, straight = stopped
    flags = [f"--config={TINY}", *as_flags(overrides)]
    for name, number, status in (("read_to_the_end", None, 0), ("stopped", signal.SIGINT, 128 + signal.SIGINT)):
        command = script.command("train", *flags, f"--workdir={tmp_path / name}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=script.env(), **pipes) as process:
            process.stdout.readline()
            process.stdout.close()
            if number:
                wait_for_step(tmp_path / name, 1)
                process.send_signal(number)
            assert process.wait(timeout=60) == status
        assert Run(tmp_path / name).status()["state"] == ("incomplete" if number else "done")
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())
    assert read_rows(tmp_path / "read_to_the_end") == read_rows(straight)


@pytest.mark.slow
def test_old_best_checkpoints_are_deleted(small, tmp_path, monkeypatch):
    often = {"train.eval_every": 1, "train.checkpoint_every": 0, "train.steps": 12, "train.best": "train"}
    kept, save = [], Checkpoints.save

    def counted(self, *arguments):
        save(self, *arguments)
        self.wait()
        kept.append(self.steps())

    monkeypatch.setattr(Checkpoints, "save", counted)
    assert train.train(load.load(TINY, small | often), tmp_path / "run") == 0
    assert len(kept) == 12
    assert max(map(len, kept)) <= 4  # the new best, the old best, the latest and the previous checkpoint


def test_temporary_folders_are_removed_and_a_half_replaced_checkpoint_is_restored(tmp_path):
    """A process that replaces a checkpoint first renames the old checkpoint, and then writes the new checkpoint.

    If the process is killed between these two steps, the old checkpoint must get its name back.
    """

    def saved(step: int) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, {"w": np.full(2, step, np.float32)}, {"c": np.ones(1)}, {"evaluated": None})
        checkpoints.wait()
        checkpoints.close()

    saved(3)
    saved(6)
    saved(6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6"]
    (tmp_path / "6").rename(tmp_path / "6.replaced.orbax-checkpoint-tmp")
    for name in ("9.orbax-checkpoint-tmp", "2.dropped.orbax-checkpoint-tmp"):
        shutil.copytree(tmp_path / "3", tmp_path / name)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3, 6]
    assert checkpoints.restore_params(6, {"w": jax.ShapeDtypeStruct((2,), np.float32)})["w"].tolist() == [6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6"]


def test_a_note_says_that_a_run_without_checkpoints_starts_again(stopped, tmp_path, capsys):
    overrides, run, straight = stopped
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert train.train(load.load(TINY, overrides), tmp_path / "run") == 0
    assert re.search(r"has no checkpoint, although it had reached step 4\d: it starts again\.", capsys.readouterr().err)
    assert read_rows(tmp_path / "run") == read_rows(straight)
