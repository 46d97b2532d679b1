"""The cache folder: where it is, and that a second start finds there what the first one compiled."""

import pathlib

import pytest

from charlm import cache, config
from tests.conftest import as_flags, read_rows


@pytest.mark.parametrize(
    ("value", "environment", "expected"),
    [
        (None, {"XDG_CACHE_HOME": "/elsewhere"}, "/elsewhere/charlm"),
        (None, {"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/charlm"),
        ("/a/folder", {"XDG_CACHE_HOME": "/elsewhere"}, "/a/folder"),
        ("", {}, None),
    ],
)
def test_the_folder(value, environment, expected, monkeypatch):
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    overrides = {} if value is None else {"cache_dir": value}
    folder = cache.folder_of(config.load("configs/base.py", overrides))
    assert folder == (None if expected is None else pathlib.Path(expected))


def test_what_was_compiled_is_kept_and_found_again(script, small, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    kept = tmp_path / "cache"

    def programs(workdir: str) -> set[str]:
        flags = as_flags(small | {"cache_dir": kept})
        result = script("train", "--config=configs/tiny.py", f"--workdir={tmp_path / workdir}", *flags)
        assert result.stderr == ""
        return {path.name for path in kept.rglob("*-cache")}

    first = programs("one")
    assert any("train_step" in name for name in first)
    assert programs("two") == first
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "two")
