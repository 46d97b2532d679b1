"""Tests `charlm.load`, the methods of the model that it returns, and `charlm.runs`.

The tests compare the results of the methods with the output of the scripts. They also compare these results with the results of
the network's functions, `charlm.models.stack.Functions`.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY
from faults.runs import as_flags, make_text

import charlm
from charlm.config import load
from charlm.data.batches import Batch

README_EXAMPLE = """\
import charlm
model = charlm.load("runs/quickstart")            # best checkpoint; imports JAX only now
model.surprisal("ROMEO:\\nBut soft!")              # nats of each character given those before it, float32 (N,)
model.sample("ROMEO:", length=200, temperature=0.8, seed=1)
charlm.runs("runs")                               # what compare sees: config, best, rows; goes into pandas as it is
"""
TEXT = "".join(f"ROMEO:\nBut soft! {make_text(60, seed)}\n" for seed in range(150))
OVERRIDES = {
    "model.hidden": 10,
    "model.layers": 2,
    "model.embedding": 6,
    "batch.size": 8,
    "train.steps": 30,
    "train.eval_every": 15,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for the corpus and the trained runs. The runs are in the subfolder runs/."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "corpus.txt").write_text(TEXT, encoding="utf-8")
    return folder


def trained(script, folder, name, **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    flags = as_flags(OVERRIDES | {"corpus.path": folder / "corpus.txt"} | overrides)
    script("train", f"--config={ROOT / TINY}", f"--workdir={folder / 'runs' / name}", *flags)
    return folder / "runs" / name


@pytest.fixture(scope="module")
def run(script, folder):
    return trained(script, folder, "quickstart", sample__top_k=7)


@pytest.fixture(scope="module")
def model(run):
    return charlm.load(run)


def evaluated(script, run, text, folder, *flags):
    """Evaluates this text with scripts/evaluate.py. Returns the script's result and the path of the text's file."""
    file = folder / "scored.txt"
    file.write_bytes(text.encode())
    return json.loads(script("evaluate", f"--workdir={run}", f"--text={file}", *flags).stdout), file


def assert_same_evaluation(found, expected, file):
    assert found["nats"] == pytest.approx(expected["nats"], rel=1e-6)
    assert found["bits"] == pytest.approx(found["nats"] / np.log(2))
    assert found["perplexity"] == pytest.approx(np.exp(found["nats"]))
    assert expected["protocol"].pop("split") == f"text {file}"
    assert found["protocol"].pop("split") == "text"
    assert {key: found[key] for key in ("chars", "step", "protocol")} == {
        key: expected[key] for key in ("chars", "step", "protocol")
    }
    assert found.keys() == expected.keys()


def nats_by_hand(logits, ids):
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids)), ids]


def test_importing_charlm_is_fast_and_imports_no_large_package():
    code = "import sys, charlm; print(sorted({'jax', 'numpy', 'ml_collections', 'rich', 'absl'} & set(sys.modules)))"
    command = [sys.executable, "-X", "importtime", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.stdout == "[]\n"
    (microseconds,) = re.findall(r"\| +(\d+) \| charlm$", result.stderr, re.MULTILINE)
    assert int(microseconds) < 100_000


def test_python_example_in_the_readme_works(folder, run, model, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "charlm.load" in block)
    assert block == README_EXAMPLE
    monkeypatch.chdir(folder)
    results, names = [], {}
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            results.append(eval(ast.unparse(statement), names))
        else:
            exec(ast.unparse(statement), names)
    surprisal, text, runs = results
    assert (surprisal.shape, surprisal.dtype) == ((16,), np.float32)
    assert text == model.sample("ROMEO:", length=200, temperature=0.8, seed=1)
    assert text.startswith("ROMEO:")
    assert len(text) == 6 + 200
    assert "quickstart" in [row["name"] for row in runs]


def test_load_options_and_model_attributes(model, run):
    assert model.vocab.decode(model.vocab.encode("soft!")) == "soft!"
    assert model.config.model.hidden == 10
    assert model.params["head_kernel"].shape == (10, len(model.vocab))
    status = json.loads((run / "status.json").read_text())
    assert model.step == status["best"]["step"]
    assert repr(model).startswith(f"<charlm model of {run}, step {model.step}, ")
    assert charlm.load(os.fspath(run), checkpoint=15).step == 15
    bfloat16_logits = charlm.load(run, dtype="bfloat16").logits("soft!")
    np.testing.assert_allclose(bfloat16_logits, model.logits("soft!"), atol=0.1)
    assert not np.array_equal(bfloat16_logits, model.logits("soft!"))


@pytest.mark.parametrize("length", [1, 2, 64, 65, 130, 1024, 1025, 2200])
def test_logits_equal_the_logits_of_one_pass_over_the_text(model, length):
    text = TEXT[:length]
    ids = model.vocab.encode(text)[None].astype(np.int32)
    functions = model.trained.functions
    batch = Batch(ids, ids, np.ones(ids.shape, np.float32), np.ones(1, bool))
    expected, _ = jax.jit(functions.apply)(model.params, batch, functions.zero_carry(1))
    logits = model.logits(text)
    assert (logits.shape, logits.dtype) == ((length, len(model.vocab)), np.float32)
    np.testing.assert_allclose(logits, expected[0], atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 64, 65, 1025, 1100])
def test_surprisal_equals_the_negative_log_softmax_of_the_previous_logits(model, length):
    text = TEXT[:length]
    surprisal = model.surprisal(text)
    assert (surprisal.shape, surprisal.dtype) == ((length,), np.float32)
    assert np.isnan(surprisal[0])  # no character comes before the first character
    np.testing.assert_allclose(surprisal[1:], nats_by_hand(model.logits(text)[:-1], model.vocab.encode(text)[1:]), atol=1e-5)


@pytest.mark.parametrize("length", [1, 64, 70, 1090])
def test_states_equal_the_carries_of_single_steps(model, length):
    functions = model.trained.functions
    weights, step = functions.stepwise(model.params, 1), jax.jit(functions.step)
    carry, expected = functions.zero_carry(1), []
    for id_ in model.vocab.encode(TEXT[:length]):
        _, carry = step(weights, np.asarray([id_], np.int32), carry)
        expected.append(carry)
    states = model.states(TEXT[:length])
    assert len(states) == 2
    expected = jax.tree.map(lambda *leaves: np.concatenate(leaves), *expected)
    assert jax.tree.structure(states) == jax.tree.structure(expected)
    for found, leaf in zip(jax.tree.leaves(states), jax.tree.leaves(expected), strict=True):
        assert (found.shape, found.dtype) == ((length, 10), np.float32)
        np.testing.assert_allclose(found, leaf, atol=1e-6)


@pytest.mark.slow
def test_score_and_surprisal_agree_with_the_evaluate_script(script, model, run, folder):
    text = TEXT[:300] + "\r\n" + TEXT[300:700]  # normalisation replaces \r\n with \n
    expected, file = evaluated(script, run, text, folder)
    assert expected["chars"] == 700
    surprisal = model.surprisal(text)
    assert len(surprisal) == len(model.normalise(text)) == 701
    assert np.nanmean(surprisal, dtype=np.float64) == pytest.approx(expected["nats"], rel=1e-6)
    assert_same_evaluation(model.score(text), expected, file)
    expected, file = evaluated(script, run, text, folder, "--framing=chunks")
    assert_same_evaluation(model.score(text, framing="chunks"), expected, file)
    expected, file = evaluated(script, run, text, folder, "--framing=windows", "--length=9")
    assert_same_evaluation(model.score(text, framing="windows", length=9), expected, file)
    assert json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["nats"] == expected["nats"]


@pytest.mark.parametrize("length", [1, 9, 40])
def test_each_chunk_of_the_given_length_starts_from_the_zero_state(model, length):
    text = TEXT[: 3 * length + 1]
    alone = [model.surprisal(text[start : start + length + 1])[1:] for start in range(0, 3 * length, length)]
    found = model.score(text, framing="chunks", length=length)
    assert found["chars"] == 3 * length
    assert found["nats"] == pytest.approx(np.mean(alone, dtype=np.float64), rel=1e-6)
    assert found["protocol"]["state"] == f"zero at every chunk of {length}"


def test_each_window_of_the_given_length_starts_from_the_zero_state(model):
    alone = [model.surprisal(TEXT[start : start + 10])[-1] for start in range(0, 30, model.config.batch.stride)]
    found = model.score(TEXT[:39], framing="windows", length=9)
    assert found["chars"] == len(alone)
    assert found["nats"] == pytest.approx(np.mean(alone, dtype=np.float64), rel=1e-6)


def compiled(caplog):
    return [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


def test_new_text_lengths_compile_nothing(model, caplog):
    def use(length):
        for method in (model.surprisal, model.logits, model.states, model.score):
            method(TEXT[:length])
        model.sample(TEXT[: length % 50 + 1], length=length, temperature=length / 1000, seed=length)

    for length in (5, 100, 1500):
        use(length)
    with jax.log_compiles():
        for length in (2, 7, 64, 65, 66, 129, 300, 511, 512, 513, 600, 1025, 1026, 3000):
            use(length)
    assert compiled(caplog) == []
    with jax.log_compiles():
        # A program is compiled for each new number of rows. This call shows that the test can detect a compilation.
        model.sample("a", length=5, num=3)
    assert len([message for message in compiled(caplog) if "carried_chunk" in message]) == 1


@pytest.mark.slow
def test_samples_equal_the_output_of_the_sample_script(script, model, run):
    flags = [f"--workdir={run}", "--prompt=But", "--length=90", "--temperature=0.8", "--seed=5"]
    single = model.sample("But", length=90, temperature=0.8, seed=5)
    several = model.sample("But", 90, 0.8, 5, num=3, top_k=5, top_p=0.9)
    printed = script("sample", *flags, "--num=3", "--top_k=5", "--top_p=0.9").stdout
    assert "".join(f"--- sample {number} ---\n{text}\n" for number, text in enumerate(several, start=1)) == printed
    assert model.sample("But", length=90, temperature=0.8, seed=5, num=1) == [single]
    # The config of this run sets top_k to 7. The calls above without top_k use this value. top_k=0 turns it off.
    assert model.sample("But", length=90, temperature=0.8, seed=5, top_k=0) != single
    assert script("sample", f"--workdir={run}").stdout == model.sample() + "\n"
    assert (
        model.sample("But", length=30, window=12) + "\n"
        == script("sample", f"--workdir={run}", "--prompt=But", "--length=30", "--window=12").stdout
    )
    assert model.sample("But", length=0, num=2) == ["But", "But"]


def trained_in_process(folder, name, **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    config = load.load(os.fspath(ROOT / TINY), OVERRIDES | {"corpus.path": os.fspath(folder / "corpus.txt")} | overrides)
    config.train.steps_per_call = 1
    charlm.train(config, folder / "runs" / name)
    return folder / "runs" / name


@pytest.mark.slow
def test_model_trained_on_windows_agrees_with_the_scripts(script, folder):
    framing = {"batch__framing": "windows", "batch__length": 9, "batch__stride": 3}
    run = trained_in_process(folder, "windows", corpus__lowercase=True, **framing)
    model = charlm.load(run)
    text = TEXT[:400]
    expected, file = evaluated(script, run, text, folder)
    assert_same_evaluation(model.score(text), expected, file)
    streamed, file = evaluated(script, run, text, folder, "--framing=stream")
    assert np.nanmean(model.surprisal(text), dtype=np.float64) == pytest.approx(streamed["nats"], rel=1e-6)
    np.testing.assert_array_equal(model.surprisal("ROMEO"), model.surprisal("romeo"))
    assert (
        script("sample", f"--workdir={run}", "--prompt=ROMEO", "--length=30").stdout == model.sample("ROMEO", length=30) + "\n"
    )


@pytest.mark.slow
def test_model_trained_on_documents_agrees_with_the_scripts(script, folder):
    framing = {"batch__framing": "documents", "batch__length": 20}
    run = trained_in_process(folder, "documents", corpus__documents="lines", vocab__unknown=True, **framing)
    model = charlm.load(run)
    text = "ROMEO:\n\nBut soft Q!\nwhat light through yonder window breaks"
    expected, file = evaluated(script, run, text, folder)
    # The empty second line is left out. In the first and the third line, all characters are scored, and so is <eos> after the
    # line. The last line is longer than batch.length, so only the start symbol and 20 characters are read.
    assert expected["chars"] == 6 + 1 + 11 + 1 + 21
    assert_same_evaluation(model.score(text), expected, file)
    assert model.score(["ROMEO:", "", *text.split("\n")[2:]])["nats"] == model.score(text)["nats"]
    # `score` includes the nats of <eos>, which ends the document. `surprisal` has no value for <eos>.
    surprisal, logits = model.surprisal("ROMEO:"), model.logits("ROMEO:")
    end = nats_by_hand(logits[-1:], [model.vocab.id_of("<eos>")])
    assert (surprisal.sum() + end[0]) / 7 == pytest.approx(model.score("ROMEO:")["nats"], rel=1e-5)
    unknown = nats_by_hand(model.logits("a"), [model.vocab.id_of("<unk>")])
    np.testing.assert_allclose(model.surprisal("aQ")[1:], unknown, atol=1e-5)
    assert script("sample", f"--workdir={run}", "--prompt=Bu", "--num=2").stdout == "".join(
        f"--- sample {number} ---\n{drawn}\n" for number, drawn in enumerate(model.sample("Bu", num=2), start=1)
    )


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        (lambda model: model.sample("aQb"), ["sample", "--prompt=aQb"]),
        (lambda model: model.sample("a", seed=-1), ["sample", "--prompt=a", "--seed=-1"]),
        (lambda model: model.sample("a", unknown="drop"), ["sample", "--prompt=a", "--unknown=drop"]),
        (lambda model: charlm.load(model.run.workdir, dtype="float16"), ["sample", "--dtype=float16"]),
        (lambda model: model.score(TEXT, framing="tiles"), ["evaluate", "--framing=tiles"]),
    ],
)
def test_errors_have_the_same_messages_as_in_the_scripts(script, model, run, call, flags):
    name, *flags = flags
    with pytest.raises(charlm.UserError) as error:
        call(model)
    assert script.fails(name, f"--workdir={run}", *flags) == f"error: {error.value}"


# tests/test_scripts.py tests that the scripts print the same messages for the same mistakes.
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.sample(""), "the prompt is empty"),
        (lambda model: model.sample("a", length=-1), "--length=-1: must be from 0 to 2147483647"),
        (lambda model: model.sample("a", temperature=-0.5), "--temperature=-0.5: must be from 0 to "),
        (lambda model: model.sample("a", top_p=1.5), "--top_p=1.5: must be above 0 and at most 1."),
        (lambda model: model.sample("a", num=0), "--num=0: must be from 1 to 2147483647."),
        (lambda model: charlm.load(model.run.workdir, "beast"), "--checkpoint=beast: must be best, latest or a step"),
        (
            lambda model: charlm.load(model.run.workdir, 7),
            "--checkpoint=7: no such checkpoint; must be best, latest or one of the run's steps",
        ),
        (lambda model: model.score(TEXT, framing="documents"), "needs a corpus of documents"),
        (lambda model: model.score(TEXT, length=9), "--length=9 has no effect with the framing 'stream'"),
        (lambda model: model.score(TEXT, framing="chunks", length=0), "--length=0: must be an integer, 1 or more."),
        (lambda model: model.score(TEXT, framing="chunks", length=2.5), "--length=2.5: must be an integer, 1 or more."),
    ],
)
def test_python_errors_name_the_flags_of_the_scripts(model, call, message):
    with pytest.raises(charlm.UserError, match=re.escape(message)):
        call(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.surprisal(""), "the text is empty: give at least one character of the run's vocabulary."),
        (lambda model: model.logits("\ufeff"), "the text is empty: give at least one character of the run's vocabulary."),
        (lambda model: model.states("aQ"), "the text has symbols that are not in the vocabulary: 'Q' (U+0051)."),
        (lambda model: model.surprisal("aQ"), "the text has symbols that are not in the vocabulary: 'Q' (U+0051)."),
        (lambda model: model.score(""), "the text has 0 chars, but scoring needs at least 2."),
        (lambda model: model.score("a"), "the text has 1 char, but scoring needs at least 2."),
        (lambda model: model.score("ab\ud83d"), "the text has half a character (\\ud83d): remove it."),
        (lambda model: model.score(["ab", "c"]), "text: must be a string, not a list of documents, because the run's corpus"),
        (lambda model: model.sample("a", length=2.5), "--length=2.5: must be an integer."),
        (
            lambda model: model.sample("a", temperature="hot"),
            "--temperature='hot': must be a number.",
        ),
        (
            lambda model: charlm.load("/no/such/run"),
            "/no/such/run/config.json does not exist: --workdir must be the directory of",
        ),
        (
            lambda model: charlm.runs("/no/such/runs"),
            "/no/such/runs is not a directory: give run directories, or folders that contain",
        ),
        (lambda model: charlm.runs(), "no runs are given: call charlm.runs(RUN_OR_FOLDER, ...)."),
    ],
)
def test_error_messages_of_python_calls(model, call, message):
    with pytest.raises(charlm.UserError, match=re.escape(message)):
        call(model)


def test_load_fails_if_all_checkpoints_are_damaged(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    for file in (tmp_path / "copy" / "checkpoints").rglob("manifest*"):
        file.write_bytes(b"")
    with pytest.raises(charlm.Failure, match="can be read"):
        charlm.load(tmp_path / "copy")


def test_sample_can_drop_unknown_symbols_from_the_prompt(model, capsys):
    assert model.sample("BuQt", length=20, unknown="skip") == model.sample("But", length=20)
    assert capsys.readouterr().err == "note: dropped from the prompt: 'Q' (U+0051)\n"


def test_runs_returns_plain_dicts_with_the_same_keys(script, run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "new")
    shutil.copytree(ROOT / "tests" / "data" / "old_run" / "run", tmp_path / "runs" / "old")
    script("evaluate", f"--workdir={tmp_path / 'runs' / 'new'}", "--split=train")
    new, old = found = charlm.runs(tmp_path / "runs")
    assert json.loads(json.dumps(found)) == found  # the dicts contain only JSON types
    assert list(new) == list(old)
    assert (new["name"], old["name"]) == ("new", "old")
    assert (new["path"], new["state"], new["steps"]) == (os.fspath(tmp_path / "runs" / "new"), "done", 30)
    assert (new["model.hidden"], new["seed"], new["sample.top_k"]) == (10, 0, 7)
    assert old["state"] == "incomplete"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(new["rows"]) == len(lines)
    validation = [row["nats"] for row in new["rows"] if row["split"] == "validation"]
    assert new["best"] == min(validation) == json.loads((run / "status.json").read_text())["best"]["nats"]
    assert new["last"] == validation[-1]
    assert new["test"] is None
    assert new["protocol"].startswith("validation split, corpus ")
    assert new["test_protocol"] == "not evaluated yet"
    (single,) = charlm.runs(os.fspath(tmp_path / "runs" / "new"))
    assert single == new
    assert [row["name"] for row in charlm.runs(tmp_path / "runs" / "old", tmp_path / "runs" / "new")] == ["old", "new"]


def test_runs_skips_an_unreadable_run_and_prints_a_note(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "good")
    shutil.copytree(run, tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text("{")
    assert [row["name"] for row in charlm.runs(tmp_path)] == ["good"]
    assert "bad/config.json is damaged" in capsys.readouterr().err
    with pytest.raises(charlm.UserError, match="none of these runs can be read"):
        charlm.runs(tmp_path / "bad")
