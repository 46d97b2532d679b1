"""Tests of the run directory: its files, the repair of a damaged last line, and the errors for wrong or damaged content."""

import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys

import pytest
from conftest import ROOT

from charlm.config import load
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.rundir.run import Run

TINY = os.fspath(ROOT / "configs" / "tiny.py")
CORPUS = {"name": "made up", "sha256": "0", "splits": {"train": 3}}


def begin_run(workdir, **overrides) -> Run:
    """Creates a run directory for configs/tiny.py.

    Args:
      overrides: values that replace values of the config.
    """
    run = Run(workdir)
    workdir.mkdir()
    run.begin(load.load(TINY, overrides), Vocab.of("abc", unknown=False), CORPUS)
    return run


def test_files_of_a_new_run_are_read_back_unchanged(tmp_path):
    run = begin_run(tmp_path / "run", **{"model.hidden": 5, "corpus.path": "a/text"})
    assert load.to_dict(run.config()) == load.to_dict(load.load(TINY, {"model.hidden": 5, "corpus.path": "a/text"}))
    assert run.vocab() == Vocab("abc")
    assert run.corpus() == CORPUS
    assert run.status() == {"state": "incomplete", "step": 0, "best": None, "message": "", "rows": 0}
    assert not list((tmp_path / "run").glob("*.new"))


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "corpus.json", "status.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"model": 3}', "\udcff"])
def test_the_error_for_a_damaged_file_names_the_file(tmp_path, name, content):
    run = begin_run(tmp_path / "run")
    (run.workdir / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    read = {"config.json": run.config, "vocab.json": run.vocab, "corpus.json": run.corpus, "status.json": run.status}[name]
    with pytest.raises(UserError, match=str(run.workdir / name)):
        read()


def test_a_changed_corpus_is_refused(tmp_path):
    run = begin_run(tmp_path / "run")
    run.check_data(Vocab("abc"), CORPUS)
    with pytest.raises(UserError, match="has changed since"):
        run.check_data(Vocab("abc"), CORPUS | {"sha256": "1"})
    with pytest.raises(UserError, match="has changed since"):
        run.check_data(Vocab("abc"), CORPUS | {"documents": {"splits": {"train": 2}, "empty": 0}})
    with pytest.raises(UserError, match=r"vocab.json is not the vocabulary of this run's corpus: restore it from a copy"):
        run.check_data(Vocab("abd"), CORPUS)


def test_a_damaged_last_line_is_skipped_and_repaired(tmp_path):
    run = begin_run(tmp_path / "run")
    for step in (1, 2, 3):
        run.append({"step": step, "nats": 0.1 + step, "perplexity": float("inf")})
    metrics = run.workdir / "metrics.jsonl"
    original = metrics.read_bytes()
    metrics.write_bytes(original[:-9])
    assert [row["step"] for row in run.rows()] == [1, 2]
    assert run.rows()[0] == {"step": 1, "nats": 1.1, "perplexity": None}
    assert run.rewind(3, evaluated=True) == (2, 1)
    assert metrics.read_bytes() == b"".join(original.splitlines(keepends=True)[:2])
    # If only the last line break is missing, rewind adds the line break. The next row then starts on a new line.
    metrics.write_bytes(original[:-1])
    assert run.rewind(3, evaluated=True) == (3, 0)
    assert metrics.read_bytes() == original
    assert run.rewind(1, evaluated=True) == (1, 2)
    assert run.rewind(0, evaluated=False) == (0, 1)


def test_the_error_for_a_damaged_line_in_the_middle_gives_the_number_of_the_line(tmp_path):
    run = begin_run(tmp_path / "run")
    (run.workdir / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not a row of metrics"):
        run.rows()


@contextlib.contextmanager
def holder(run):
    """Another process that holds the lock of a run, until the context ends."""
    code = (
        "import sys; from charlm.rundir.run import Run\n"
        "with Run(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, os.fspath(run.workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_cannot_lock_a_run_until_the_first_process_has_ended(tmp_path):
    run = begin_run(tmp_path / "run")
    assert not run.is_training()
    with holder(run) as process:
        with pytest.raises(UserError, match=f"is in use by process {process.pid} on "), run.locked():
            pass
        # Somebody deletes the file, and perhaps makes a new one. The folder itself is still locked.
        (run.workdir / "lock").unlink()
        for _ in range(2):
            assert run.is_training()
            with pytest.raises(UserError, match="is in use by another process: wait for it"), run.locked():
                pass
            (run.workdir / "lock").touch()
    assert not run.is_training()
    with run.locked():
        assert str(os.getpid()) in (run.workdir / "lock").read_text()


def test_a_run_is_locked_where_folders_cannot_be_locked(tmp_path, monkeypatch):
    """On a network file system, a folder can't be locked, so only the file `lock` protects the run."""
    run, flock = begin_run(tmp_path / "run"), fcntl.flock

    def flock_of_files(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_files)
    with run.locked():
        pass
    with holder(run) as process:
        assert run.is_training()
        with pytest.raises(UserError, match=f"is in use by process {process.pid} on "), run.locked():
            pass


def test_a_run_is_trained_with_a_note_where_nothing_can_be_locked(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    run = begin_run(tmp_path / "run")
    with run.locked():
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(fcntl, "flock", refuse)
    with run.locked():
        assert f"note: {run.workdir} is on a file system without locks" in capsys.readouterr().err
        assert not run.is_training()


def test_each_start_of_a_run_is_recorded(tmp_path):
    run = begin_run(tmp_path / "run")
    run.note_start("cpu: made up", 10, 20)
    run.note_start("cpu: made up", 10, 20)
    starts = json.loads((run.workdir / "environment.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["versions"]["jax"]
    assert starts[1]["command"] == sys.orig_argv
