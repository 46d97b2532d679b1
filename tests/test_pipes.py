"""Reading pipes: texts and prompts from other programs, and pipes to which no program writes."""

import json
import os
import pathlib
import shlex
import subprocess
import threading
import time

import pytest
from faults.runs import as_flags

from charlm import files
from charlm.data import textfiles
from charlm.errors import UserError


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return str(path)


@pytest.fixture(scope="module")
def trained(script, corpus_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pipes") / "run"
    overrides = {"corpus.path": corpus_file, "train.steps": 4, "train.eval_every": 4, "train.log_every": 2}
    script("train", "--config=configs/tiny.py", f"--workdir={workdir}", *as_flags(overrides))
    return workdir


def write(pipe: str | int, parts: list[bytes], seconds: float) -> None:
    """In a thread: opens a path or descriptor, and writes the parts to it with a pause before each part."""

    def run():
        with open(pipe, "wb", buffering=0) as opened:
            for part in parts:
                time.sleep(seconds)
                opened.write(part)

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("parts", [[b"abc"], [b"abc", b"d" * 300_000, b"e"], []])
def test_a_pipe_is_read_to_its_end(pipe, parts, monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 120)  # the machine may be busy
    write(pipe, parts, 0.01)
    assert files.read(pipe) == b"".join(parts)


@pytest.mark.parametrize("parts", [[b"abc", b"d"], []])
def test_a_program_that_has_opened_the_pipe_may_take_its_time(parts, monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.01)
    reading, writing = os.pipe()  # like `<(COMMAND)` of the shell
    write(writing, parts, 0.2)
    assert files.read(f"/dev/fd/{reading}") == b"".join(parts)
    os.close(reading)


def test_a_pipe_to_which_no_program_writes_is_an_error(pipe, monkeypatch):
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.1)
    with pytest.raises(TimeoutError) as error:
        files.read(pipe)
    assert error.value.strerror == "it is a pipe that no program writes to"


def test_a_corpus_cannot_be_a_pipe(pipe):
    with pytest.raises(UserError, match=r"pipe is a pipe, which can be read only once: write its text to a file"):
        textfiles.listed(pathlib.Path(pipe), textfiles.DEFAULT)


@pytest.mark.slow
def test_sample_and_evaluate_read_the_output_of_a_command(script, trained, tmp_path):
    def in_bash(name: str, *flags: str) -> str:
        command = f"{shlex.join(script.command(name, f'--workdir={trained}'))} {' '.join(flags)}"
        return subprocess.run(["bash", "-c", command], env=script.env(), check=True, capture_output=True, text=True).stdout

    assert in_bash("sample", "--prompt_file=<(sleep 1; printf abc)", "--length=3").startswith("abc")
    text = tmp_path / "text"
    text.write_text("abc abd")
    from_pipe, from_file = (json.loads(in_bash("evaluate", f"--text={given}")) for given in (f"<(cat {text})", str(text)))
    assert [from_pipe[key] for key in ("nats", "chars")] == [from_file[key] for key in ("nats", "chars")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flag"), [("sample", "prompt_file"), ("evaluate", "text")])
def test_scripts_end_if_no_program_writes_to_a_pipe(script, trained, tmp_path, name, flag):
    os.mkfifo(tmp_path / "pipe")
    sentence = f"--{flag}={tmp_path / 'pipe'} can't be read: it is a pipe that no program writes to"
    assert sentence in script.fails(name, f"--workdir={trained}", f"--{flag}={tmp_path / 'pipe'}", timeout=600)
