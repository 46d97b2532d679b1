"""Training in several processes gives the same losses as one process, and resumes after one process has died."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import on_devices
import pytest
from conftest import ROOT, assert_same, final_params, slow
from faults.checks import read_rows
from faults.runs import as_flags, free_port, make_text, wait_for_step

from charlm.data import batches
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.hardware import processes
from charlm.rundir.run import Run

OVERRIDES = {
    "batch.size": 8,
    "batch.length": 16,
    "model.hidden": 16,
    "model.layers": 2,
    "model.dropout": 0.2,
    "train.steps": 60,
    "train.log_every": 7,
    "train.eval_every": 20,
    "train.checkpoint_every": 10,
    "sample.length": 20,
}


def start(script, corpus_file, workdir, number, *more_flags, **overrides) -> list[subprocess.Popen]:
    """Starts `number` processes that train one model together. Each process has one device."""
    port = free_port()
    flags = [f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={workdir}", *more_flags]
    flags += as_flags(OVERRIDES | {"corpus.path": corpus_file} | overrides)
    joining = [[f"--coordinator=127.0.0.1:{port}", f"--num_processes={number}", f"--process_id={i}"] for i in range(number)]
    return [
        subprocess.Popen(
            script.command("train", *flags, *more), env=script.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for more in (joining if number > 1 else [[]])
    ]


def finish(started, status=0) -> list[tuple[str, str]]:
    outputs = [process.communicate(timeout=120) for process in started]
    wrong = [
        (process.returncode, output) for process, output in zip(started, outputs, strict=True) if process.returncode != status
    ]
    assert not wrong, "\n".join(map(str, wrong))
    return outputs


@pytest.fixture(scope="module")
def run_of_two(script, corpus_file, tmp_path_factory):
    """An uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("processes") / "two"
    (output, errors), (other, _) = finish(start(script, corpus_file, workdir, 2))
    assert "8 rows on 2 cpu devices of 2 processes" in output
    assert "done at step 60" in output
    assert errors == ""
    assert "step" not in other  # only the first process prints
    return workdir


def assert_close(workdir, other, rtol=2e-6):
    """Asserts that two runs have the same metrics rows. Losses may differ by rounding errors."""
    rows, other_rows = read_rows(workdir), read_rows(other)
    assert [(row["step"], row["split"], row["chars"]) for row in rows] == [
        (row["step"], row["split"], row["chars"]) for row in other_rows
    ]
    np.testing.assert_allclose([row["nats"] for row in rows], [row["nats"] for row in other_rows], rtol=rtol)


def test_two_processes_give_the_same_losses_as_one_process(script, corpus_file, run_of_two, tmp_path):
    finish(start(script, corpus_file, tmp_path / "one", 1))
    assert_close(run_of_two, tmp_path / "one")
    assert sorted(path.name for path in (run_of_two / "samples").iterdir()) == ["00000020.txt", "00000040.txt", "00000060.txt"]
    # The names of event files contain times.
    names = [sorted(path.name.split(".out.")[0] for path in run.iterdir()) for run in (run_of_two, tmp_path / "one")]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["stream", "chunks", "windows", "documents"])
def test_four_processes_give_the_same_losses_as_one_process_in_every_framing(script, tmp_path, framing):
    text = tmp_path / "lines"
    text.write_text(make_text(12_000))
    overrides = {"batch.framing": framing, "model.dropout": 0.2 if framing == "stream" else 0.0, "batch.length": 15}
    overrides |= {"corpus.documents": "lines"} if framing == "documents" else {}
    finish(start(script, text, tmp_path / "one", 1, **overrides))
    finish(start(script, text, tmp_path / "four", 4, **overrides))
    assert_close(tmp_path / "four", tmp_path / "one")


# Skip connections let the gradient reach the first layer.
STACK = {"model.cell": on_devices.CELLS, "model.layers": len(on_devices.CELLS), "model.embedding": 8, "model.residual": True}
# on_devices.py says why layernorm_lstm enlarges rounding errors, and tests it with all regularisers.
STEADY = tuple(cell for cell in on_devices.CELLS if cell != "layernorm_lstm")
NOISY_STACK = on_devices.NOISE | STACK | {"model.cell": STEADY, "model.layers": len(STEADY)}
CASES = {"all cells": STACK, "cells with all regularisers": NOISY_STACK} | on_devices.OPTIONS


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_and_four_processes_give_the_losses_of_one_process_with_every_cell_and_option(script, corpus_file, tmp_path, name):
    overrides = on_devices.BASE | {"train.steps": 12, "train.log_every": 4, "train.eval_every": 6} | CASES[name]
    for number in (1, 2, 4):
        finish(start(script, corpus_file, tmp_path / str(number), number, **overrides))
    for number in (2, 4):
        assert_close(tmp_path / str(number), tmp_path / "1", 5e-3 if name == "bfloat16" else 2e-5)


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_same_losses_as_one_process(script, corpus_file, tmp_path, monkeypatch):
    finish(start(script, corpus_file, tmp_path / "one", 1))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    (output, _), _ = finish(start(script, corpus_file, tmp_path / "two", 2))
    assert "8 rows on 4 cpu devices of 2 processes" in output
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_that_were_stopped_begin_the_average_of_nt_asgd_at_the_same_step(script, corpus_file, tmp_path):
    """With this learning rate, the validation loss soon gets worse. If the processes did not agree, their losses would differ,
    because each process has half of the rows.
    """
    overrides = {"optim.average": "nt_asgd", "optim.average_patience": 0, "optim.learning_rate": 0.3}
    overrides |= {"optim.schedule": "constant", "train.eval_every": 4}
    finish(start(script, corpus_file, tmp_path / "whole", 2, **overrides))
    for stop_at in (8, 40):
        started = start(script, corpus_file, tmp_path / "run", 2, **overrides)
        wait_for_step(tmp_path / "run", stop_at)
        started[1].send_signal(signal.SIGTERM)
        finish(started, status=143)
    finish(start(script, corpus_file, tmp_path / "run", 2, **overrides))
    rows = read_rows(tmp_path / "run")
    assert rows == read_rows(tmp_path / "whole")
    assert 8 < next(row["step"] for row in rows if "weights" in row) < 40
    assert_same(final_params(tmp_path / "run"), final_params(tmp_path / "whole"))


@pytest.mark.slow
def test_if_one_process_is_killed_the_other_process_ends_and_the_run_can_be_resumed(script, corpus_file, run_of_two, tmp_path):
    """The resumed run must equal the uninterrupted run bit for bit."""
    workdir = tmp_path / "run"
    for victim, step in ((1, 14), (0, 35)):
        started = start(script, corpus_file, workdir, 2)
        wait_for_step(workdir, step)
        begin = time.monotonic()
        started[victim].kill()
        (output, errors), status = started[1 - victim].communicate(timeout=60), started[1 - victim].returncode
        started[victim].communicate()
        # If process 0 is killed, JAX may end process 1 before charlm does. JAX then reports that a task died.
        if victim == 0 and status != 1:
            assert "another task died" in errors
        else:
            assert status == 1, output + errors
            assert errors.splitlines()[-1].startswith("error: another process of this training has gone")
        assert time.monotonic() - begin < 60
        assert json.loads((workdir / "status.json").read_text())["state"] == "incomplete"
    (output, _), _ = finish(start(script, corpus_file, workdir, 2))
    assert "resuming at step" in output
    assert read_rows(workdir) == read_rows(run_of_two)
    assert_same(final_params(workdir), final_params(run_of_two))


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 1])
def test_a_signal_to_one_process_stops_both_processes_and_one_or_four_processes_can_resume(
    script, corpus_file, run_of_two, tmp_path, every
):
    workdir, overrides = tmp_path / "run", {"train.checkpoint_every": every}
    started = start(script, corpus_file, workdir, 2, **overrides)
    wait_for_step(workdir, 14)
    started[1].send_signal(signal.SIGTERM)
    (output, _), _ = finish(started, status=143)
    assert "stopped at step" in output
    shutil.copytree(workdir, tmp_path / "four")
    finish(start(script, corpus_file, workdir, 1, **overrides))
    assert_close(workdir, run_of_two)
    finish(start(script, corpus_file, tmp_path / "four", 4, **overrides))
    assert_close(tmp_path / "four", run_of_two)


@pytest.mark.slow
def test_init_from_and_extend_with_two_processes_give_the_same_run_as_with_one_process(
    script, corpus_file, run_of_two, tmp_path
):
    """The child begins with the parameters of a run of two processes, and has other symbols."""
    text = tmp_path / "text"
    text.write_text(corpus_file.read_text().translate(str.maketrans("ab", "ÄB")))
    child = {"train.init_from": run_of_two, "optim.schedule": "constant", "train.steps": 30}
    longer = child | {"train.steps": 50, "optim.learning_rate": 0.003}
    for name, number in (("one", 1), ("two", 2)):
        finish(start(script, text, tmp_path / name, number, **child))
    assert_close(tmp_path / "two", tmp_path / "one")
    assert Run(tmp_path / "one").parent() == Run(tmp_path / "two").parent()
    for name, number in (("one", 1), ("two", 2)):
        results = finish(start(script, text, tmp_path / name, number, "--extend", **longer))
        assert "from step 30 on, to 50 steps" in results[0][0]
        assert all("extends" not in output for output, _ in results[1:])
    assert_close(tmp_path / "two", tmp_path / "one")
    assert Run(tmp_path / "one").extensions() == Run(tmp_path / "two").extensions()
    before = {path: path.read_bytes() for path in (tmp_path / "two").rglob("*") if path.is_file()}
    for _, errors in finish(start(script, text, tmp_path / "two", 2, "--extend", **longer, **{"seed": 3}), status=2):
        assert "--extend can't change seed (0 saved, 3 given)" in errors
        assert len(errors.splitlines()) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "two").rglob("*") if path.is_file()} == before


def test_wrong_values_end_every_process_with_an_error_of_one_sentence(script, corpus_file, tmp_path):
    for _, errors in finish(start(script, corpus_file, tmp_path / "run", 2, **{"batch.size": 5}), status=2):
        assert errors == "error: batch.size=5: must be a multiple of 2, the number of processes.\n"
    (tmp_path / "file").touch()
    for _, errors in finish(start(script, corpus_file, tmp_path / "file", 2), status=2):
        assert "is a file: give a directory" in errors
        assert len(errors.splitlines()) == 1


JOIN = """
import sys, time
from charlm.hardware import processes
processes.JOIN_TIMEOUT_SECONDS, processes.HEARTBEAT_TIMEOUT_SECONDS, processes.HEARTBEAT_SECONDS = 4, 4, 0.5
processes.join(processes.ProcessSpec(2, int(sys.argv[1]), "127.0.0.1:" + sys.argv[2]))
print("joined", flush=True)
time.sleep(60)
"""


def start_joining(index, port) -> subprocess.Popen:
    """Starts process `index` of two processes. The process joins the other process and then sleeps."""
    command = [sys.executable, "-c", JOIN, str(index), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("index", [0, slow(1)])
def test_a_process_that_no_other_process_joins_ends_with_an_error(index):
    waiting = start_joining(index, free_port())
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert errors == "error: not all 2 processes joined within 4 s: start all of them with the same --coordinator.\n"


@pytest.mark.slow
def test_if_a_process_dies_before_the_first_step_the_other_process_ends():
    port = free_port()
    first, second = start_joining(0, port), start_joining(1, port)
    assert [process.stdout.readline() for process in (first, second)] == ["joined\n", "joined\n"]
    time.sleep(1)
    for process in (first, second):
        # The threads that NumPy starts when it is imported keep the default policy.
        policies = [os.sched_getscheduler(int(path.name)) for path in pathlib.Path(f"/proc/{process.pid}/task").iterdir()]
        assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
        assert policies.count(os.SCHED_BATCH) > len(policies) / 2 > 3
    second.kill()
    _, errors = first.communicate(timeout=30)
    assert first.returncode == 1
    assert "error: another process of this training has gone (process 1)" in errors
    second.communicate()


@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_are_refused(script, corpus_file, tmp_path):
    port, started = free_port(), []
    for index in range(2):
        flags = as_flags(OVERRIDES | {"corpus.path": corpus_file, "batch.size": 12})
        flags += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
        command = script.command("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *flags)
        env = script.env() | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={index + 1}"}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for _, errors in finish(started, status=2):
        assert "error: the 2 processes have 1, 2 devices: all processes must have the same number of devices" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((False, "h:1", None, 0), "--num_processes is not given"),
        ((False, None, 2, 0), "--coordinator is not given"),
        ((False, "h:1", 0, 0), "--num_processes=0: must be 1 or more"),
        ((False, "h:1", 2, 2), "--process_id=2: must be from 0 to 1 with --num_processes=2"),
        ((False, "h", 2, 1), "--coordinator=h: must be HOST:PORT"),
        ((True, "h:1", 2, 1), "takes these values from SLURM"),
        ((True, None, None, None), "is for tasks started by srun"),
    ],
)
def test_missing_wrong_or_contradictory_flags_are_refused(monkeypatch, arguments, message):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UserError) as error:
        processes.spec_from_flags(*arguments)
    assert message in str(error.value)


def test_process_specs_are_read_from_flags_and_from_slurm(monkeypatch):
    assert processes.spec_from_flags(False, None, None, None) == (1, 0, None)
    assert processes.spec_from_flags(False, "node:80", 3, 2) == (3, 2, "node:80")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert processes.spec_from_flags(True, None, None, None) == (4, 3, None)


def test_a_process_builds_only_its_rows_of_a_batch():
    text = make_text(3000)
    documents = [line for line in text.split("\n") if len(line) > 1]
    vocab = Vocab.of(sorted(set(text)), False, documents=True)
    encoded_text, encoded_documents = encode(vocab, text, "the text"), encode(vocab, documents, "the documents")
    for kind in ("stream", "chunks", "windows", "documents"):
        framing = Framing(kind, 6, 20, True, 3, True, 8, "masked")
        training = batches.training_batches(framing, encoded_documents if kind == "documents" else encoded_text, seed=1)
        for step in (0, 3, training.steps_per_epoch - 1, training.steps_per_epoch + 2):
            batch = training.batch_at(step)
            for part in (slice(0, 3), slice(3, 6)):
                for local_rows, all_rows in zip(training.batch_at(step, part), batch, strict=True):
                    np.testing.assert_array_equal(local_rows, all_rows[part])
    ids_N = np.arange(601) % 250
    local = batches.Stream(ids_N, 6, 20, False, 0).batch_at(2, slice(0, 3))
    changed_N = np.where(np.arange(601) > 300, 255, ids_N)  # changes only ids in rows 3 to 5
    for changed_rows, rows in zip(batches.Stream(changed_N, 6, 20, False, 0).batch_at(2, slice(0, 3)), local, strict=True):
        np.testing.assert_array_equal(changed_rows, rows)


def test_a_single_process_does_not_communicate():
    assert processes.run_on_first_process(lambda a, b: a + b, 2, 3) == 5
    tree = {"a": np.ones(2)}
    assert processes.broadcast_from_first(tree) is tree
    assert processes.gather_rows(tree) is tree


def test_processes_with_different_corpora_are_refused(script, corpus_file, tmp_path):
    """The corpora have the same length. If charlm accepted them, the processes would train different parameters."""
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text()[::-1])
    port, started = free_port(), []
    for index, text in enumerate((corpus_file, other)):
        flags = as_flags(OVERRIDES | {"corpus.path": text})
        joining = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}"]
        command = script.command("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={tmp_path / 'run'}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, *flags, *joining], env=script.env(), **pipes))
    for _, errors in finish(started, status=2):
        assert "process 1 has another config or corpus than process 0" in errors
    assert not (tmp_path / "run").exists()
