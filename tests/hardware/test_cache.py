"""The cache folder: its path, and the compiled programs that later runs reuse from it."""

import fcntl
import os
import pathlib
import zlib

import jax
import pytest
from conftest import assert_same, final_params
from faults.checks import read_rows
from faults.runs import HARMS, as_flags, harm

from charlm.config import load as config
from charlm.hardware import cache, devices


class FilesOnly:
    """Like JAX's own cache: never replaces an entry, and may be killed during a write."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.ends_by = folder, None

    def get(self, key):
        path = self.folder / f"{key}-cache"
        return path.read_bytes() if path.exists() else None

    def put(self, key, value):
        (self.folder / f"{key}-cache").write_bytes(value[: len(value) // 2] if self.ends_by else value)
        if self.ends_by:
            raise self.ends_by


@pytest.fixture
def entries(tmp_path):
    return cache.Checked(FilesOnly(tmp_path), tmp_path, zlib.decompress)


@pytest.mark.parametrize(
    ("value", "environment", "expected"),
    [
        (None, {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/charlm"),
        (None, {"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/charlm"),
        ("/a/folder", {"XDG_CACHE_HOME": "/elsewhere"}, "/a/folder"),
        ("", {}, None),
    ],
)
def test_config_and_environment_determine_the_cache_folder(value, environment, expected, monkeypatch):
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    overrides = {} if value is None else {"cache_dir": value}
    folder = cache.folder_of(config.load("configs/base.py", overrides))
    assert folder == (None if expected is None else pathlib.Path(expected))


PROGRAM = zlib.compress(bytes(range(256)) * 20)


@pytest.mark.parametrize("file", ["key-cache", "key-sha256"])
@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_compiled_program_is_removed_with_a_note_and_then_replaced(entries, tmp_path, capsys, file, how):
    assert entries.get("key") is None
    entries.put("key", PROGRAM)
    entries.put("other", PROGRAM[::-1])
    assert entries.get("key") == PROGRAM
    harm(tmp_path / file, how)
    if file == "key-sha256" and how == "deleted":  # like a program that charlm did not write
        assert entries.get("key") == PROGRAM
        return
    assert entries.get("key") is None
    assert capsys.readouterr().err.count(f"a compiled program in {tmp_path} is damaged") == (how != "deleted")
    entries.put("key", PROGRAM)
    assert entries.get("key") == PROGRAM
    assert entries.get("other") == PROGRAM[::-1]
    assert capsys.readouterr().err == ""


def test_a_compiled_program_that_was_written_in_part_is_not_used(entries, tmp_path, capsys):
    entries._cache.ends_by = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        entries.put("key", PROGRAM)
    assert not (tmp_path / "key-cache").exists()
    entries._cache.ends_by = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        entries.put("key", PROGRAM)
    assert (tmp_path / "key-cache").exists()
    assert entries.get("key") is None
    # A part of a program without a digest: another JAX program, which does not use charlm, was killed.
    (tmp_path / "alien-cache").write_bytes(PROGRAM[:-3])
    assert entries.get("alien") is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_compiled_program_that_another_process_writes_now_is_not_damaged(entries, tmp_path, monkeypatch, capsys):
    entries.put("key", PROGRAM)
    (tmp_path / "key-cache").write_bytes(PROGRAM[:-3])

    def finish_writing(seconds):
        (tmp_path / "key-cache").write_bytes(PROGRAM)
        os.close(lock)

    monkeypatch.setattr("time.sleep", finish_writing)  # get sleeps while it waits for the lock
    lock = os.open(tmp_path / cache.LOCK, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert entries.get("key") == PROGRAM
    assert capsys.readouterr().err == ""


def test_compiled_programs_are_read_from_a_folder_that_cannot_be_written(entries, tmp_path, monkeypatch):
    entries.put("key", PROGRAM)
    (tmp_path / "alien-cache").write_bytes(PROGRAM[:-3])

    def refuse(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    for name in ("open", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert entries.get("key") == PROGRAM
    assert entries.get("alien") is None


def test_jax_keeps_compiled_programs_in_the_checked_cache():
    """If this fails, JAX has changed, and damaged programs are no longer noticed: see `cache._check_entries`."""

    def only_in_this_test(x):
        return x * os.getpid()

    jax.jit(only_in_this_test)(jax.numpy.ones(5)).block_until_ready()
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    programs = [path.name.removesuffix("-cache") for path in folder.glob("jit_only_in_this_test-*-cache")]
    assert programs
    assert all((folder / f"{name}-sha256").exists() for name in programs)


@pytest.mark.slow
@pytest.mark.parametrize("how", HARMS)
def test_training_replaces_damaged_compiled_programs(script, small, tmp_path, monkeypatch, how):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    flags = ["--config=configs/tiny.py", *as_flags(small | {"cache_dir": tmp_path / "cache"})]
    script("train", *flags, f"--workdir={tmp_path / 'whole'}")
    programs = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*-cache")}
    assert any("train_step" in path.name for path in programs)
    for path in programs:
        harm(path, how)
    result = script("train", *flags, f"--workdir={tmp_path / 'again'}")
    notes = result.stderr.splitlines()
    assert len(notes) == (0 if how == "deleted" else len(programs))
    assert all(note.startswith("note: a compiled program in") for note in notes)
    assert read_rows(tmp_path / "again") == read_rows(tmp_path / "whole")
    assert_same(final_params(tmp_path / "again"), final_params(tmp_path / "whole"))
    # JAX keeps a small program only if its compilation took some time, which varies.
    assert set((tmp_path / "cache").rglob("*train_step*-cache")) == {path for path in programs if "train_step" in path.name}
    assert script("train", *flags, f"--workdir={tmp_path / 'third'}").stderr == ""


@pytest.mark.slow
def test_evaluate_and_sample_ignore_the_cache_folder_in_the_config_of_a_run(script, small, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    flags = as_flags(small | {"cache_dir": tmp_path / "named"})
    run = f"--workdir={tmp_path / 'run'}"
    script("train", "--config=configs/tiny.py", run, *flags)
    (tmp_path / "named").rename(tmp_path / "moved")
    script("evaluate", run)
    script("sample", run, "--prompt=a", "--length=3")
    assert not (tmp_path / "named").exists()
    assert (tmp_path / "user" / "charlm" / "compiled").is_dir()


@pytest.mark.slow
def test_compiled_programs_are_cached_and_reused(script, small, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    monkeypatch.delenv("GLIBC_TUNABLES")  # without this variable, the script restarts itself to use huge pages
    cache_folder = tmp_path / "cache"

    def programs(workdir: str, **overrides) -> set[str]:
        calls = {"train.steps_per_call": 2, "train.steps": 5, "train.log_every": 4, "train.eval_every": 4}
        flags = as_flags(small | calls | {"train.checkpoint_every": 0, "cache_dir": cache_folder} | overrides)
        result = script("train", "--config=configs/tiny.py", f"--workdir={tmp_path / workdir}", "--verbose", *flags)
        assert result.stderr == ""
        on_request = devices.HUGE_PAGES_SETTING.exists() and "[madvise]" in devices.HUGE_PAGES_SETTING.read_text()
        assert ("GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in result.stdout) == on_request
        # JAX may not keep programs that compile in a few milliseconds. It keeps the programs in slow_to_compile,
        # because these take longer to compile.
        return {path.name for path in cache_folder.rglob("*-cache") if any(name in path.name for name in slow_to_compile)}

    slow_to_compile = ("initial_state", "train_step", "jit_steps", "chunk")
    first = programs("one")
    assert all(any(name in program for program in first) for name in slow_to_compile)
    # A change of these keys needs no new compilation. If a sweep varies these keys, all its trials use the cached programs.
    changed = {"seed": 7, "optim.learning_rate": 0.5, "optim.schedule": "exponential", "train.steps": 7}
    assert programs("two", **changed) == first


@pytest.mark.slow
def test_a_run_accepts_a_new_cache_folder_and_warns_if_the_folder_cannot_be_written(script, small, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    command = ("train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", *as_flags(small))
    script(*command, f"--config.cache_dir={tmp_path / 'one'}")
    assert "is done" in script(*command, f"--config.cache_dir={tmp_path / 'two'}").stdout
    (tmp_path / "file").write_text("no folder")
    config_file = tmp_path / "run" / "config.json"
    written = config_file.read_text()
    config_file.write_text(written.replace(f"{tmp_path / 'one'}", f"{tmp_path / 'file'}"))
    assert "or delete the field 'seal' if you edited the file yourself" in script.fails(
        "evaluate", f"--workdir={tmp_path / 'run'}"
    )
    result = script(*command, f"--config.cache_dir={tmp_path / 'file'}", f"--workdir={tmp_path / 'other'}")
    assert f"note: the cache folder {tmp_path / 'file'} can't be written" in result.stderr
