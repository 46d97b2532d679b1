"""Tests the command `charlm`, which starts the same programs as the scripts."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, slow
from faults.runs import as_flags

PROGRAMS = ["train", "evaluate", "sample", "sweep", "compare", "inspect", "import_torch", "import_keras", "export"]


def charlm(*arguments: str, cwd=None, status: int = 0) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-m", "charlm", *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result


def test_without_a_program_it_lists_the_programs():
    lines = charlm().stdout.splitlines()
    assert lines[0] == "usage: charlm PROGRAM [flags]"
    assert lines[1] == f"programs: {', '.join(PROGRAMS)}"
    assert charlm("--help").stdout.splitlines() == lines


def test_an_unknown_program_is_an_error_that_names_the_nearest_program():
    assert charlm("trian", status=2).stderr == "error: charlm has no program 'trian': the nearest name is 'train'.\n"


@pytest.mark.parametrize("program", [name if name in ("train", "sample") else slow(name) for name in PROGRAMS])
def test_help_shows_the_commands_that_work_where_it_was_started(program, script, tmp_path):
    """In a checkout, examples name scripts and config files. For the command `charlm`, they name programs and recipes."""
    of_script, of_command = script(program, "--help").stdout, charlm(program, "--help", cwd=tmp_path).stdout
    assert f"scripts/{program}.py " in of_script
    assert f"charlm {program} " in of_command
    assert "scripts/" not in of_command
    assert "configs/" not in of_command
    if "--config=configs/quickstart.py" in of_script:
        assert "--config=quickstart " in of_command


@pytest.mark.slow
def test_it_trains_a_recipe_in_any_folder(small, tmp_path):
    flags = as_flags(small | {"sample.length": 0})
    assert "done at step 6" in charlm("train", "--config=tiny", "--workdir=run", *flags, cwd=tmp_path).stdout


def test_a_mistake_is_one_sentence_with_exit_status_2(tmp_path):
    message = charlm("train", "--config=tiny", "--workdir=run", "--config.model=3", cwd=tmp_path, status=2).stderr
    assert message == "error: config key 'model' is a section: set its keys, such as model.cell.\n"
