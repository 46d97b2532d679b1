"""Tests of the check whether a directory holds a run."""

import os

import pytest
from test_run import TINY, begin_run

from charlm.config import load
from charlm.errors import UserError
from charlm.rundir.directory import exists


def test_the_error_for_a_different_config_lists_the_keys_that_differ(tmp_path):
    begin_run(tmp_path / "run")
    assert exists(tmp_path / "run", load.load(TINY))
    with pytest.raises(
        UserError, match=r"model\.hidden \(32 saved, 64 given\), optim\.name \('adam' saved, 'sgd' given\); choose"
    ):
        exists(tmp_path / "run", load.load(TINY, {"model.hidden": 64, "optim.name": "sgd"}))


def test_files_and_directories_with_other_content_are_refused(tmp_path):
    config = load.load(TINY)
    assert not exists(tmp_path / "new" / "deeper", config)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        exists(tmp_path / "file", config)
    with pytest.raises(UserError, match="can't be written"):
        exists(tmp_path / "file" / "below", config)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and not the directory of a run"):
        exists(tmp_path / "thesis", config)
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]


def test_a_directory_with_only_a_lock_and_a_temporary_file_is_not_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "vocab.json.new").write_text("{")
    assert not exists(tmp_path / "run", load.load(TINY))
