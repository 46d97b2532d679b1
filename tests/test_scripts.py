"""Runs the scripts as a user does.

The tests check the output, the error messages and the exit status.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, half_slow
from faults.runs import as_flags

from charlm.hardware import accelerators

TINY = f"--config={ROOT / 'configs' / 'tiny.py'}"


@pytest.fixture(scope="module")
def run(script, corpus_file, tmp_path_factory):
    """A small finished run. train.py was started in the folder of the corpus file, not in the repository."""
    workdir = tmp_path_factory.mktemp("scripts") / "run"
    flags = as_flags({"corpus.path": corpus_file.name, "model.hidden": 16, "train.steps": 30, "train.eval_every": 10})
    result = script("train", TINY, f"--workdir={workdir}", *flags, cwd=corpus_file.parent)
    # The first three lines describe the data, the model and the length of the training. Settings of XLA or of the C library are
    # printed only with --verbose.
    first_lines = result.stdout.splitlines()[:3]
    assert first_lines[0] == "data: made_up.txt: train 10,800, validation 1,200 chars, vocabulary of 14"
    # The embedding has 14 x 16 parameters. The LSTM has 64 x (16 + 16 + 1) parameters. The head has 16 x 14 + 14 parameters.
    assert first_lines[1] == "model: 1 LSTM layer of 16, embedding input, 2,574 parameters"
    assert first_lines[2].startswith("training: 30 steps, 1.43 epochs of 21 steps; 16 rows on 1 ")
    assert "XLA_FLAGS" not in result.stdout
    assert "done at step 30" in result.stdout
    assert result.stderr == ""
    return workdir


def test_train_with_verbose_prints_every_array_and_the_xla_flags(script, corpus_file, tmp_path):
    flags = [TINY, "--verbose", *as_flags({"corpus.path": corpus_file, "train.steps": 2, "sample.length": 0})]
    output = script("train", *flags, f"--workdir={tmp_path / 'run'}").stdout
    assert "GLIBC_TUNABLES=" in output
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=" in output
    assert "lstm_0/recurrent_kernel" in output
    assert "with two biases a layer" in output
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"][0]
    assert f"XLA_FLAGS={recorded['XLA_FLAGS']}" in output


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def rows(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def evaluated(result) -> dict:
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_evaluate_and_train_give_the_same_validation_loss(script, run):
    for checkpoint, step in (("best", None), ("20", 20)):
        result = evaluated(script("evaluate", f"--workdir={run}", "--split=validation", f"--checkpoint={checkpoint}"))
        logged = {row["step"]: row for row in rows(run, "validation")}
        if step is None:
            step = min(logged, key=lambda step: logged[step]["nats"])
        assert result["step"] == step
        assert result["nats"] == pytest.approx(logged[step]["nats"], rel=1e-6)
        assert result["perplexity"] == pytest.approx(2 ** result["bits"])
        assert (result["chars"], result["protocol"]) == (1199, logged[step]["protocol"])


def test_evaluate_scores_a_text_file(script, run, corpus_file, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(corpus_file.read_text()[-1200:])  # the text of the validation split
    result = evaluated(script("evaluate", f"--workdir={run}", f"--text={text}"))
    assert result["nats"] == pytest.approx(min(row["nats"] for row in rows(run, "validation")), rel=1e-6)
    assert result["protocol"]["split"] == f"text {text}"
    text.write_text("aQb")
    assert "'Q' (U+0051)" in script.fails("evaluate", f"--workdir={run}", f"--text={text}", status=2)


def test_samples_with_the_same_seed_are_equal(script, run):
    flags = [f"--workdir={run}", "--prompt=abc", "--length=100"]
    outputs = [script("sample", *flags, "--temperature=1,0", *seed).stdout for seed in ([], ["--seed=7"])]
    (random, greedy), (random_seed_7, greedy_seed_7) = (output.split("--- temperature ")[1:] for output in outputs)
    assert random != random_seed_7
    assert greedy == greedy_seed_7
    single = script("sample", *flags, "--temperature=1", "--seed=7").stdout
    assert single.startswith("abc")
    assert len(single) == 3 + 100 + 1
    assert random_seed_7 == f"1 ---\n{single}"
    several = script("sample", *flags, "--num=3", "--top_k=5", "--top_p=0.9").stdout
    texts = several.split("--- sample ")[1:]
    assert [len(text) for text in texts] == [len("1 ---\n") + 103 + 1] * 3
    assert len({text[2:] for text in texts}) == 3
    assert all(text.startswith(f"{number} ---\nabc") for number, text in enumerate(texts, start=1))


@pytest.mark.slow
def test_prompts_from_the_corpus_or_the_config_may_have_unknown_symbols(script, tmp_path):
    """The user's own prompts, in --prompt and --prompt_file, must not have unknown symbols."""
    text = tmp_path / "text"
    text.write_text("abcd" * 225 + "Q" + "abcd" * 25)  # the validation split begins with Q
    overrides = {
        "corpus.path": text,
        "corpus.newlines": False,
        "vocab.source": "train",
        "vocab.unknown": True,
        "batch.size": 4,
        "train.steps": 2,
    }
    overrides |= {"sample.prompt": "Qa"}
    script("train", TINY, f"--workdir={tmp_path / 'run'}", *as_flags(overrides))
    flags = [f"--workdir={tmp_path / 'run'}", "--length=5"]
    assert script("sample", *flags).stdout.startswith("Qa")
    assert script("sample", *flags, "--prompt_from=validation", "--prompt_length=101").stdout.startswith("Qabcd")
    assert "'Q' (U+0051)" in script.fails("sample", *flags, "--prompt=Q")
    (tmp_path / "prompt").write_bytes(b"a\r\nb")
    assert "'\\r' (U+000D)" in script.fails("sample", *flags, f"--prompt_file={tmp_path / 'prompt'}")
    assert "--text=: must be a file or folder" in script.fails("evaluate", f"--workdir={tmp_path / 'run'}", "--text=")


@pytest.mark.slow
def test_default_prompt_is_the_first_validation_character(script, run, corpus_file):
    first = corpus_file.read_text()[10_800]
    flags = [f"--workdir={run}", "--length=30"]
    assert script("sample", *flags).stdout == script("sample", *flags, f"--prompt={first}").stdout
    assert all(file.read_text().startswith(first) for file in (run / "samples").iterdir())


def test_unknown_symbols_of_a_prompt_file_are_an_error_unless_unknown_is_skip(script, run, tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    prompt = tmp_path / "prompt"
    prompt.write_text("abc déf", encoding="utf-8")
    message = script.fails("sample", f"--workdir={run}", f"--prompt_file={prompt}")
    assert "'é' (U+00E9)" in message
    assert "--unknown=skip" in message
    skipped = script("sample", f"--workdir={run}", f"--prompt_file={prompt}", "--unknown=skip", "--length=5")
    assert skipped.stdout.startswith("abc df")
    note = "note: dropped from the prompt: 'é' (U+00E9)\n"
    assert skipped.stderr == note
    verbose = script("sample", f"--workdir={run}", f"--prompt_file={prompt}", "--unknown=skip", "--length=5", "--verbose")
    assert verbose.stderr == f"{note}XLA_FLAGS=--xla_force_host_platform_device_count=1\n"
    assert verbose.stdout == skipped.stdout
    assert "the prompt is empty" in script.fails("sample", f"--workdir={run}", "--prompt=É", "--unknown=skip")


def test_sample_reads_standard_input_and_writes_utf_8_whatever_the_locale(script, run, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # the encoding of standard input and output
    flags = [f"--workdir={run}", "--length=50", "--unknown=skip"]
    from_pipe = script("sample", *flags, "--prompt_file=-", "--stop=e", input="abç d\n")
    assert from_pipe.stderr == "note: dropped from the prompt: 'ç' (U+00E7)\n"
    drawn = script("sample", *flags, "--prompt=ab d\n").stdout.removeprefix("ab d\n")
    assert "e" in drawn
    assert from_pipe.stdout == f"ab d\n{drawn.partition('e')[0]}\n"


def test_interactive_sample_answers_each_line_of_standard_input(script, run):
    flags = [f"--workdir={run}", "--temperature=0"]
    result = script("sample", *flags, "--length=20", "--interactive", input="abc\n/continue\nQ\n")
    assert result.stdout.replace("\n", "") == script("sample", *flags, "--length=40", "--prompt=abc").stdout.replace("\n", "")
    assert result.stderr == (
        "error: the prompt has 'Q' (U+0051), outside the run's vocabulary: --unknown=skip drops such symbols.\n"
    )


def test_train_reports_a_finished_run_and_refuses_another_config(script, run, corpus_file):
    flags = as_flags({"corpus.path": corpus_file, "model.hidden": 16, "train.steps": 30, "train.eval_every": 10})
    assert "is done at step 30" in script("train", TINY, f"--workdir={run}", *flags).stdout
    before = sorted((file, file.stat().st_mtime_ns) for file in run.rglob("*"))
    message = script.fails("train", TINY, f"--workdir={run}", *flags, "--config.model.layers=2", "--config.optim.beta1=0.8")
    assert "model.layers (1 saved, 2 given), optim.beta1 (0.9 saved, 0.8 given)" in message
    assert sorted((file, file.stat().st_mtime_ns) for file in run.rglob("*")) == before


def test_a_flag_file_may_set_config_keys(script, tmp_path):
    (tmp_path / "inner").write_text("--config.batch.size=7\n")
    (tmp_path / "flags").write_text(f"# a comment\n{TINY}\n--config.train.steps=1e3\n--flagfile={tmp_path / 'inner'}\n")
    command = script("sweep", f"--flagfile={tmp_path / 'flags'}", f"--root={tmp_path / 'root'}", "--dry_run").stdout
    assert "--config.train.steps=1000\n" in command
    assert "--config.batch.size=7 " in command
    (tmp_path / "wrong").write_text("--config.model.hiden=3\n")
    assert "'model.hiden'" in script.fails("train", TINY, f"--flagfile={tmp_path / 'wrong'}")
    (tmp_path / "binary").write_bytes(b"\xff\n")
    assert "--flagfile names is not text" in script.fails("train", TINY, f"--flagfile={tmp_path / 'binary'}")
    message = script.fails("train", TINY, "--flagfile", f"{tmp_path / 'missing'}")
    assert message == f"error: --flagfile: No such file or directory: '{tmp_path / 'missing'}'."


@pytest.mark.parametrize("name", ["train", "evaluate", "sample", "import_torch", "import_keras"])
def test_help_describes_the_script_and_its_flags(script, name):
    result = script(name, "--help")
    assert f"scripts/{name}.py --" in result.stdout
    assert "--workdir: run directory" in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.model.hiden=3"], "unknown config key 'model.hiden': the nearest key is 'model.hidden'"),
        (["--config.model.hidden=x"], "model.hidden='x': must be an integer."),
        (["--config.model.hidden", "-3"], "model.hidden=-3: must be positive."),
        (["--config.model.dropout=1"], "model.dropout=1.0: must be at least 0 and below 1."),
        (["--config.corpus.path=/no/such/file"], "/no/such/file is not a file or folder"),
        (["--config.corpus.name=hamlet"], "corpus.name='hamlet' is not one of tiny_shakespeare"),
        (["--config.model.hidden"], "--config.model.hidden has no value"),
        ([f"{TINY}:large"], "large: this config takes no argument"),
        (["--wokdir=x"], "Unknown command line flag 'wokdir'. Did you mean: workdir ?"),
        (["stray"], "'stray' is not a flag"),
    ],
)
def test_train_refuses_wrong_flags_and_writes_nothing(script, tmp_path, flags, message):
    assert message in script.fails("train", TINY, f"--workdir={tmp_path / 'run'}", *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text left: the file is empty"),
        (b"to be or not\xff", "not UTF-8: byte 0xff at offset 12"),
        (
            b"short " * 20,
            "the train split has 108 chars, but one batch of batch.size=16 lanes times batch.length=32 needs 513: "
            "give a longer corpus or set batch.size=3.",
        ),
    ],
)
def test_train_refuses_unusable_texts(script, tmp_path, content, message):
    text = tmp_path / "text"
    text.write_bytes(content)
    flags = [f"--config.corpus.path={text}", f"--workdir={tmp_path / 'run'}"]
    assert message in script.fails("train", TINY, *flags)
    assert not (tmp_path / "run").exists()


def test_train_refuses_wrong_paths(script, tmp_path, corpus_file):
    flag = f"--config.corpus.path={corpus_file}"
    (tmp_path / "file").touch()
    assert "is a file" in script.fails("train", TINY, flag, f"--workdir={tmp_path / 'file'}")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    assert "not the directory of a run" in script.fails("train", TINY, flag, f"--workdir={tmp_path / 'letters'}")
    assert "can't be written" in script.fails("train", TINY, flag, "--workdir=/proc/run")
    assert "no such file in" in script.fails("train", "--config=configs/none.py", f"--workdir={tmp_path / 'run'}")
    assert "holds no run to resume: give --config to begin one" in script.fails("train", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    half_slow(
        [
            ("evaluate", ["--split=holdout"], "--split=holdout is not one of this run's splits: train, validation"),
            ("evaluate", ["--split=test"], "--split=test is not one of this run's splits"),
            ("evaluate", ["--text=/no/such"], "/no/such is not a file or folder"),
            (
                "evaluate",
                ["--text=http://a.b/c"],
                "--text=http://a.b/c: must be a file or folder on this machine: download the text",
            ),
            (
                "evaluate",
                ["--checkpoint=7"],
                "--checkpoint=7: no such checkpoint; must be best, latest or one of the run's steps",
            ),
            ("evaluate", ["--config.model.hidden=3"], "this program takes no config"),
            ("evaluate", ["--split=train", "--text=x"], "--split and --text are given together: give only one of them."),
            ("evaluate", ["--dynamic", "--dynamic_lambda=-1"], "--dynamic_lambda=-1: must be 0 or more."),
            ("evaluate", ["--dynamic", "--framing=windows"], "but the framing is 'windows': add --framing=stream."),
            ("evaluate", ["--dynamic", "--per_line"], "--dynamic and --per_line are given together: give only one of them."),
            ("evaluate", ["--dynamic", "--lanes=4"], "--lanes=4 has no effect with --dynamic: leave it out."),
            ("evaluate", ["--length=9"], "--length=9 has no effect with the framing 'stream': add --framing=chunks or "),
            ("evaluate", ["--dynamic", "--length=9"], "--length=9 has no effect with --dynamic: leave it out."),
            ("evaluate", ["--ngram=2", "--length=9"], "--length=9 has no effect with --ngram: leave it out."),
            ("evaluate", ["--framing=chunks", "--length=0"], "--length=0: must be an integer, 1 or more."),
            ("evaluate", ["--dynamic_grid"], "--dynamic_grid is given without --dynamic: add --dynamic."),
            ("evaluate", ["--ngram=0"], "--ngram=0: must be an order from 1 to 20, or a range of orders such as 2..10."),
            ("evaluate", ["--ngram=5", "--framing=chunks"], "but the framing is 'chunks': add --framing=stream."),
            ("evaluate", ["--ngram=5", "--per_line"], "--ngram and --per_line are given together: give only one of them."),
            ("evaluate", ["--ngram=5", "--checkpoint=best"], "--checkpoint=best has no effect with --ngram: leave it out."),
            ("evaluate", ["stray"], "'stray' is not a flag: flags begin with --, and only --ensemble takes run directories."),
            ("evaluate", ["stray", "--ensemble"], "--ensemble has 1 argument: give at least two run directories."),
            ("evaluate", ["a", "./a", "--ensemble"], "--ensemble: a and ./a are the same run directory: give each run once."),
            ("sample", ["--prompt=a", "--length=-1"], "--length=-1: must be from 0 to 2147483647"),
            ("sample", ["--prompt=a", "--temperature=-0.5"], "--temperature=-0.5: must be from 0 to "),
            ("sample", ["--prompt=a", "--top_p=0"], "--top_p=0.0: must be above 0 and at most 1"),
            ("sample", ["--prompt=a", "--top_p=1.5"], "--top_p=1.5: must be above 0 and at most 1."),
            ("sample", ["--prompt=a", "--top_k=-1"], "--top_k=-1: must be from 0 to 2147483647."),
            ("sample", ["--prompt=a", "--num=0"], "--num=0: must be from 1 to 2147483647."),
            ("sample", ["--prompt="], "the prompt is empty"),
            ("sample", ["--prompt_file=/no/such"], "--prompt_file=/no/such can't be read"),
            ("sample", ["--prompt=a", "--length=many"], "--length"),
            ("sample", ["--prompt=a", "--temperature=0.5,"], "--temperature=0.5,: must be numbers separated by commas."),
            (
                "sample",
                ["--prompt=a", "--prompt_from=train"],
                "--prompt, --prompt_file and --prompt_from: give only one of them.",
            ),
            ("sample", ["--prompt_from=test"], "--prompt_from=test is not one of this run's splits: train, validation"),
            ("sample", ["--prompt=a", "--stop=Q"], "--stop='Q' has 'Q' (U+0051), outside the run's vocabulary"),
            ("sample", ["--prompt=a\\nb"], "write $'A:\\nB' in the shell"),
            ("sample", ["--prompt_file=-", "--num=2", "--interactive"], "leave out --prompt_file and --num"),
            ("sample", ["--prompt=a", "--window=-1"], "--window=-1: must be from 0 to 2147483647"),
            ("sample", ["--prompt=a", "--checkpoint=beast"], "--checkpoint=beast: must be best, latest or a step"),
            ("evaluate", ["--framing=tiles"], "flag --framing=tiles: value should be one of <stream|chunks|windows|documents>"),
            ("evaluate", ["--framing=documents"], "needs a corpus of documents"),
        ]
    ),
)
def test_evaluate_and_sample_refuse_wrong_flags(script, run, name, flags, message):
    assert message in script.fails(name, f"--workdir={run}", *flags)


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_evaluate_and_sample_refuse_a_directory_without_a_run(script, tmp_path, name):
    flags = ["--prompt=a"] if name == "sample" else []
    assert "does not exist: --workdir must be the directory of a run" in script.fails(name, f"--workdir={tmp_path}", *flags)


def test_evaluate_skips_a_damaged_latest_checkpoint(script, copy):
    for file in (copy / "checkpoints" / "30").rglob("manifest*"):
        file.write_bytes(b"")
    result = script("evaluate", f"--workdir={copy}", "--checkpoint=latest")
    assert "checkpoints/30 can't be read" in result.stderr
    assert evaluated(result)["step"] == 20
    assert "can be read" in script("evaluate", f"--workdir={copy}", "--checkpoint=30", status=1).stderr


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_shell_scripts_refuse_an_old_or_missing_python(tmp_path, name):
    shutil.copytree(ROOT / "scripts", tmp_path / "repo" / "scripts")
    old_python = tmp_path / "python3.9"
    old_python.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old_python.chmod(0o755)
    command = ["bash", os.fspath(tmp_path / "repo" / "scripts" / f"{name}.sh")]
    for python, message in (
        (
            os.fspath(old_python),
            f"error: {old_python} is Python 3.9, but charlm needs 3.11 or newer: set e.g. PYTHON=python3.13.\n",
        ),
        ("python9", "error: PYTHON=python9 was not found: install Python 3.11 or newer, or set e.g. PYTHON=python3.13.\n"),
    ):
        result = subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True, cwd=tmp_path)
        assert (result.returncode, result.stderr, result.stdout) == (2, message, "")
    assert not (tmp_path / "repo" / ".venv").exists()


@pytest.fixture
def checkout(tmp_path):
    """A function that runs a shell script of a copy of scripts/, and returns its result and the commands given to Python.

    The Python of the copy's .venv only writes these commands to a file. It really runs commands that ask for its version.
    """
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python, commands = tmp_path / ".venv" / "bin" / "python", tmp_path / "commands"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "$*" >> "{commands}"\n')
    python.chmod(0o755)

    def run(name, **environment):
        commands.write_text("")
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "ACCELERATOR")} | environment
        result = subprocess.run(["bash", tmp_path / "scripts" / f"{name}.sh"], env=env, capture_output=True, text=True)
        return result, commands.read_text().splitlines()

    return run


def installed(commands) -> list[str]:
    """The packages that pip was asked to install."""
    return [command.split("--editable ")[1] for command in commands if command.startswith("-m pip install")]


def test_an_accelerator_is_installed_once_for_each_script_and_is_then_used(checkout):
    for name, extra in (("quickstart", "[cuda12]"), ("test", "[test,cuda12]")):
        result, commands = checkout(name, ACCELERATOR="cuda12")
        assert (result.returncode, result.stderr) == (0, "")
        assert installed(commands) == [f".{extra}"]
        assert f"installing charlm{extra} (several minutes, because the packages for cuda12 are large) …\n" in result.stdout
        again, commands = checkout(name, ACCELERATOR="cuda12")
        assert (again.returncode, installed(commands)) == (0, [])
    _, commands = checkout("quickstart")
    assert installed(commands) == ["."]
    # The script trains with the Python into which JAX was installed.
    assert any(command.startswith("scripts/train.py --config=configs/quickstart.py") for command in commands)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ("rocm", "error: ACCELERATOR=rocm: must be cuda12, cuda13 or tpu; leave it out for the CPU.\n"),
        ("cuda13", "error: ACCELERATOR=cuda13: .venv already has JAX for tpu: remove .venv to make a new one.\n"),
    ],
)
def test_an_unknown_or_a_second_accelerator_is_refused(checkout, accelerator, message):
    assert installed(checkout("test", ACCELERATOR="tpu")[1]) == [".[test,tpu]"]
    for name in ("quickstart", "test"):
        result, commands = checkout(name, ACCELERATOR=accelerator)
        assert (result.returncode, result.stdout, result.stderr, commands) == (2, "", message, [])


def test_each_accelerator_is_an_extra_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in accelerators.ACCELERATORS:
        assert project["optional-dependencies"][name] == [f"jax[{name}]"]
        needed = [line for line in importlib.metadata.requires("jax") if f'extra == "{name}"' in line]
        assert any(line.startswith(accelerators.ACCELERATORS[name].package) for line in needed), needed


@pytest.mark.slow
def test_a_text_in_another_encoding_is_trained_on_and_scored(script, tmp_path):
    (tmp_path / "text").write_bytes("\u6625\u6765\u96e8\u843d\uff0c\u98ce\u843d\u6c34\u591c\u3002\n".encode("gb18030") * 60)
    flags = ["--config=tiny", f"--config.corpus.path={tmp_path / 'text'}", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.batch.size=4", "--config.train.steps=2", "--config.sample.length=0"]
    message = script.fails("train", *flags)
    assert message.startswith(f"error: {tmp_path / 'text'} is not UTF-8: byte 0xb4 at offset 0; the file looks like gb18030: ")
    assert not (tmp_path / "run").exists()
    printed = script("train", *flags, "--config.corpus.encoding=gb18030").stdout
    assert "data: text: train 594, validation 66 chars, vocabulary of 10" in printed
    score = json.loads(script("evaluate", f"--workdir={tmp_path / 'run'}", f"--text={tmp_path / 'text'}").stdout)
    assert score["chars"] == 659
