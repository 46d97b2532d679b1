"""Tests the recipes in configs/: those of the five published systems, and charlm's own.

The tests train, resume, evaluate and sample a small version of each recipe. For the full recipes, the numbers of parameters
and steps must equal numbers that are published or computed by hand.
"""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, SHARED_CORPORA, assert_same, final_params
from faults.checks import read_rows
from faults.runs import as_flags, make_text

from charlm.config import load
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.training import setup, train

SMALL = {"model.hidden": 12, "train.steps": 6, "train.log_every": 2, "train.eval_every": 4, "train.checkpoint_every": 3}
SMALL |= {"sample.length": 8}
# Changes to each recipe for the small made-up texts below.
CHANGES = {
    "shakespeare_mxnet": {"batch.size": 6},
    "anna_pytorch": {"batch.size": 4, "batch.length": 20, "sample.prompt": "a", "eval.lanes": 2, "eval.burn_in": 20},
    "alice_axon": {"batch.size": 8, "batch.length": 15, "sample.prompt": "a"},
    "sonnets_keras": {"batch.size": 8, "batch.length": 15},
    "ag_news_keras": {"batch.size": 4, "batch.length": 24, "sample.prompt": "a"},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with two made-up corpora: `text`, one continuous text, and `titles.csv`, a title in each row."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text").write_text(make_text(3000), encoding="utf-8")
    titles = [line for line in make_text(3000, seed=1).replace(",", "").split("\n") if line]
    (folder / "titles.csv").write_text("".join(f'"1","{title}","x"\n' for title in [*titles, ""]), encoding="utf-8")
    return folder


def flags_of(name, texts, **overrides):
    """Returns the flags for a small version of a recipe."""
    file = texts / ("titles.csv" if name == "ag_news_keras" else "text")
    argument = f":{file}" if name == "ag_news_keras" else ""
    path = {} if argument else {"corpus.path": file}
    config = f"--config={ROOT / 'configs' / name}.py{argument}"
    return [config, *as_flags(SMALL | CHANGES[name] | path | overrides)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_is_trained_resumed_evaluated_and_sampled(script, texts, tmp_path, capsys, name):
    flags, workdir = flags_of(name, texts), tmp_path / "run"
    assert "done at step 6" in script("train", *flags, f"--workdir={workdir}").stdout
    rows, params = read_rows(workdir), final_params(workdir)
    assert {row["split"] for row in rows} >= {"train", "train_mean"}
    # Make the run look as if it had stopped after step 4. Then resume the run. The resumed run must write the same rows and
    # parameters as the run without a stop, bit for bit.
    shutil.rmtree(workdir / "checkpoints" / "6")
    Run(workdir).write_status("incomplete", 4, None)
    assert train.train(loaded(flags), workdir) == 0
    assert "resuming at step 4 of 6" in capsys.readouterr().out
    assert read_rows(workdir) == rows
    assert_same(final_params(workdir), params)
    splits = Run(workdir).corpus()["splits"]
    split = "validation" if "validation" in splits else "train"
    result = json.loads(script("evaluate", f"--workdir={workdir}", f"--split={split}").stdout.splitlines()[-1])
    assert 0 < result["nats"] < 2 * np.log(len(Run(workdir).vocab()))
    if split == "validation" and name != "anna_pytorch":
        logged = {row["step"]: row["nats"] for row in rows if row["split"] == "validation"}
        assert result["nats"] == pytest.approx(logged[result["step"]], rel=1e-5)
    if name == "shakespeare_mxnet":
        carried = script("evaluate", f"--workdir={workdir}", f"--split={split}", "--framing=stream").stdout
        carried = json.loads(carried.splitlines()[-1])
        assert carried["protocol"]["state"] == "carried"
        assert carried["nats"] != result["nats"]
    prompt = ["--prompt_from=train", "--prompt_length=10"]
    sample = script("sample", f"--workdir={workdir}", *prompt, "--length=12", "--temperature=0").stdout.removesuffix("\n")
    source = Run(workdir).splits()["train"]
    assert any(sample[:10] in document for document in ([source] if isinstance(source, str) else source))
    assert len(sample) <= 22
    assert "<" not in sample


def loaded(flags):
    """Returns the config that a script makes from these flags."""
    overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags[1:])
    return load.load(flags[0].removeprefix("--config="), overrides)


def test_sample_uses_each_prompt_with_each_temperature(script, texts, tmp_path):
    assert train.train(loaded(flags_of("ag_news_keras", texts)), tmp_path / "run") == 0
    prompts = ["--prompt=a", "--prompt=b", "--num=2", "--length=200"]
    grid = script("sample", f"--workdir={tmp_path / 'run'}", *prompts, "--temperature=0.3,0.8,1.3").stdout
    headers = [line for line in grid.splitlines() if line.startswith("---")]
    expected = [(t, p, n) for t in ("0.3", "0.8", "1.3") for p in "ab" for n in (1, 2)]
    assert headers == [f"--- sample {n}, temperature {t}, prompt '{p}' ---" for t, p, n in expected]
    for part in grid.split("---\n")[1:]:
        assert "<pad>" not in part
        assert "<eos>" not in part
    excerpts = {part[2:12] for part in grid.split("---\n")[1:]}  # the sampled texts differ
    assert len(excerpts) > 6
    sampled_texts = [part.split("\n---")[0].strip("\n") for part in grid.split("---\n")[1:]]
    assert min(map(len, sampled_texts)) < 201  # at least one text ends before 200 chars
    assert "--temperature=0.3,hot: must be numbers separated by commas." in script.fails(
        "sample", f"--workdir={tmp_path / 'run'}", "--temperature=0.3,hot"
    )


LSTMS_OF_512 = (128 + 512 + 1) * 2048 + (512 + 512 + 1) * 2048
ROUNDS_OF_RANK_40 = 5 * (640 + 1024) * 40 + 3 * 128 + 2 * 512 + 5 * 512


@pytest.mark.parametrize(
    ("name", "symbols", "count", "count_of_torch"),
    [
        ("shakespeare_mxnet", 66, 66 * 256 + 2 * (512 + 1) * 1024 + 257 * 66, None),
        ("anna_pytorch", 83, 3_366_483 - 4096, 3_366_483),  # only PyTorch has a second bias in each layer
        ("sonnets_keras", 48, 1_852_464, None),
        ("ag_news_keras", 84, 119_892, None),
        ("alice_axon", 29, (1 + 256 + 1) * 1024 + 257 * 29, None),
        # The head of awd_lstm is the embedding, so that only its bias is added.
        ("awd_lstm", 65, 65 * 200 + (200 + 512 + 1) * 2048 + (512 + 512 + 1) * 2048 + (512 + 200 + 1) * 800 + 65, None),
        ("strong", 65, 65 * 128 + LSTMS_OF_512 + 513 * 65, None),
        ("tiny_shakespeare_best", 65, 65 * 128 + (128 + 1024 + 1) * 4096 + (1024 + 1024 + 1) * 4096 + 1025 * 65, None),
        ("mogrifier", 65, 65 * 128 + LSTMS_OF_512 + ROUNDS_OF_RANK_40 + 513 * 65, None),
        ("mingru", 65, 65 * 256 + 6 * (257 * 512 + 257 * 1024 + 1025 * 256 + 2 * 256) + 256 + 257 * 65, None),
    ],
)
def test_recipes_have_the_expected_number_of_parameters(name, symbols, count, count_of_torch):
    import jax

    from charlm.models import stack

    config = load.load(str(ROOT / "configs" / f"{name}.py"))
    lines = stack.parameter_lines(jax.eval_shape(stack.functions(config, symbols).init, jax.random.key(0)))
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[-2:]]
    assert counts[0] == count
    assert count_of_torch in (None, counts[1])


def test_the_general_recipe_reads_a_small_text_in_more_epochs():
    config = load.load("strong")
    assert [setup.length(config, epoch) for epoch in (82, 333, 334, 9000)] == [2000, 2000, 2004, 54_000]
    assert setup.length(load.load("strong", {"train.steps": 40}), 82) == 40


def test_awd_lstm_divides_its_learning_rate_by_10_after_60_and_80_percent_of_the_training():
    config, epoch = load.load("awd_lstm"), 100
    assert setup.length(config, epoch) == 40 * epoch
    rates = setup.learning_rates(config, epoch)(0, 40 * epoch)
    for start, end, rate in ((0, 24, 2e-3), (24, 32, 2e-4), (32, 40, 2e-5)):
        np.testing.assert_allclose(rates[start * epoch : end * epoch], rate, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "file", "symbols", "steps"),
    [
        # `steps` is the number of steps in an epoch.
        # shakespeare_mxnet: 1,003,853 targets in batches of 32 chunks of 32 targets are 980.3 batches, rounded up.
        # anna_pytorch: 1,786,700 chars in batches of 12,800 chars are 139.6 batches, rounded down.
        # sonnets_keras has batches of 64 windows. alice_axon has batches of 128 windows.
        ("shakespeare_mxnet", "tiny_shakespeare.txt", 66, 981),
        ("anna_pytorch", "anna.txt", 83, 139),
        ("sonnets_keras", "sonnets.txt", 48, 1477),
        ("alice_axon", "alice.txt", 29, 1071),
    ],
)
def test_recipes_have_the_expected_numbers_of_symbols_and_steps(name, file, symbols, steps):
    source = SHARED_CORPORA / file
    if not source.exists():
        pytest.skip(f"{source} is not on this machine")
    overrides = {"corpus.path": str(source), "sample.length": 0}
    training = setup.set_up(load.load(str(ROOT / "configs" / f"{name}.py"), overrides))
    assert (len(training.vocab), training.batches.steps_per_epoch) == (symbols, steps)


def test_describe_prints_the_parameters_and_draws_the_network(script, texts, tmp_path):
    flags = [*flags_of("anna_pytorch", texts), "--describe", f"--graph={tmp_path / 'net.dot'}", "--graph_steps=4"]
    printed = script("train", *flags).stdout
    assert "with two biases a layer" in printed
    dot = (tmp_path / "net.dot").read_text()
    assert dot.startswith("digraph")
    for layer in (1, 2):
        for step in (1, 2, 3, 4):
            assert f'layer_{layer}_{step} [label="LSTM {layer}' in dot
        assert f'layer_{layer}_3 -> layer_{layer}_4 [label="c, h"' in dot
    assert "layer_3_1" not in dot
    assert "layer_1_5" not in dot
    assert (tmp_path / "net.svg").exists() == (shutil.which("dot") is not None)
    assert "--graph=/no/such/net.dot can't be written" in script("train", *flags, "--graph=/no/such/net.dot", status=2).stderr
    assert script.fails("train", *flags_of("anna_pytorch", texts)) == "error: --workdir is not given: see --help."
    assert not list(tmp_path.glob("run*"))


@pytest.mark.slow
def test_the_graph_of_a_model_with_framing_windows_has_one_prediction_and_can_be_an_svg(script, texts, tmp_path):
    tool = tmp_path / "bin" / "dot"  # this script replaces Graphviz
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\ncp "$3" "${2#-o}"\n')
    tool.chmod(0o755)
    env = script.env() | {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    command = script.command("train", *flags_of("sonnets_keras", texts), "--describe", f"--graph={tmp_path / 'net.svg'}")
    drawn = subprocess.run(command, capture_output=True, text=True, env=env)
    assert f"written: {tmp_path / 'net.dot'}, {tmp_path / 'net.svg'}" in drawn.stdout
    dot = (tmp_path / "net.dot").read_text()
    assert dot == (tmp_path / "net.svg").read_text()
    assert re.findall(r"head_\d|next_\d|dropout_4_\d", dot.split("rank=same")[0]).count("head_3") == 2
    assert not re.search(r"head_[12]|next_[12]|dropout_4_[12]", dot)
    assert "dropout_3_1 [" in dot
    tool.write_text("#!/bin/sh\necho 'no picture today' >&2; exit 3\n")
    failed = subprocess.run(command, capture_output=True, text=True, env=env)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].endswith(f"could not make {tmp_path / 'net.svg'} from it (no picture today).")
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_sample_and_evaluate_take_missing_flags_from_the_config_of_the_run(script, texts, tmp_path):
    decoding = {
        "sample.prompt": "Ab",
        "sample.length": 30,
        "sample.temperature": 0.7,
        "sample.top_k": 2,
        "corpus.split": "1.0,",
    }
    decoding |= {"corpus.lowercase": True, "train.best": "train"}
    script("train", *flags_of("anna_pytorch", texts, **decoding), f"--workdir={tmp_path / 'run'}")
    run = f"--workdir={tmp_path / 'run'}"
    by_default = script("sample", run).stdout
    assert by_default.startswith("ab")
    assert by_default == script("sample", run, "--prompt=ab", "--length=30", "--temperature=0.7", "--top_k=2").stdout
    with_flags = script("sample", run, "--top_k=0", "--length=12").stdout
    assert len(with_flags) == 2 + 12 + 1
    assert with_flags[:14] != by_default[:14]
    train = json.loads(script("evaluate", run).stdout.splitlines()[-1])
    assert train["protocol"]["split"] == "train"


@pytest.mark.slow
def test_the_number_of_documents_that_are_cut_is_reported(script, texts, tmp_path):
    describe = [*flags_of("ag_news_keras", texts), "--describe", f"--graph={tmp_path / 'net.dot'}"]
    printed = script("train", *describe).stdout
    titles = [line.split('"')[3] for line in (texts / "titles.csv").read_text().splitlines()]
    too_long = sum(len(title) > 24 for title in titles[:-1])
    assert too_long > 0
    assert f"1 empty skipped, {too_long} cut to batch.length=24" in printed
    # Documents are cut only in a split that is read as documents.
    only_training = {"eval.framing": "stream"}
    only_evaluation = {"batch.framing": "stream", "eval.framing": "documents"}
    counts = []
    for framings in (only_training, only_evaluation):
        lines = setup._data_lines(setup.set_up(loaded(flags_of("ag_news_keras", texts, **framings))))
        counts.append(int(re.search(r"(\d+) cut to", lines[-1])[1]))
    assert sum(counts) == too_long
    assert min(counts) > 0
    assert train.train(loaded(flags_of("ag_news_keras", texts)), tmp_path / "run") == 0
    (tmp_path / "own.csv").write_text(f'"1","{titles[0]}","x"\n"1","","x"\n"1","{30 * titles[0][0]}","x"\n')
    printed = script("evaluate", f"--workdir={tmp_path / 'run'}", f"--text={tmp_path / 'own.csv'}").stderr
    assert f"chars of 2 documents (1 empty skipped, {1 + (len(titles[0]) > 24)} cut to batch.length=24)" in printed


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("alice_axon", {"batch.length": 5000}, "chars, but windows of batch.length=5000 need at least 5,001"),
        ("shakespeare_mxnet", {"batch.length": 5000}, "but chunks of batch.length=5000 need at least 5,001"),
        ("shakespeare_mxnet", {"batch.framing": "documents"}, "needs a corpus of documents: set corpus.documents"),
        ("ag_news_keras", {"corpus.documents": "csv:title"}, "has no column 'title'"),
        (
            "ag_news_keras",
            {"corpus.documents": "xml"},
            "corpus.documents='xml': must be empty, lines, blank, files, separator:TEXT, csv:COLUMN or jsonl:FIELD.",
        ),
        ("alice_axon", {"train.best": "validation"}, "train.best=validation: corpus.split leaves no validation text"),
        ("anna_pytorch", {"eval.framing": "documents"}, "needs a corpus of documents"),
    ],
)
def test_config_values_that_do_not_fit_a_recipe_are_refused(texts, tmp_path, name, extra, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train.train(loaded(flags_of(name, texts, **extra)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
