"""The cache folder: its path, and the compiled programs that later runs reuse from it."""

import pathlib

import pytest
from faults.runs import as_flags

from charlm.config import load as config
from charlm.hardware import cache, devices


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
