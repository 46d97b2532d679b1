"""Tests the program compare: the values in its tables, its separate tables for different protocols, and damaged runs.

A protocol says how a loss was measured: on which corpus and split, with which state, and on how many characters.
"""

import csv
import io
import json
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, half_slow, slow

from charlm.compare import reading, report, tables
from charlm.compare.plots import readable_on
from charlm.config import load
from charlm.errors import UserError
from charlm.rundir.run import Run

PROTOCOL = {"corpus": "c0ffee00" * 8, "split": "validation", "state": "carried", "chars": 1000}


def make_run(path, overrides=None, nats=(2.0, 1.5, 1.6), state="done", protocol=PROTOCOL, rows=10, test=None, samples=()):
    """Writes a run directory as training does, and returns its path.

    Args:
      nats: the validation losses at steps 100, 200, and so on.
      rows: the number of rows with a training loss before each validation loss.
      test: the loss on the test split; None if the run was not evaluated on this split.
      samples: pairs of a step and the text that was sampled at this step.
    """
    config = load.load(str(ROOT / "configs" / "tiny.py"), overrides or {})
    (path / "samples").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(load.to_dict(config)))
    (path / "environment.json").write_text(json.dumps({"starts": [{"parameters": 1234, "total_steps": 300}]}))
    best = min(nats) if nats else None
    (path / "status.json").write_text(
        json.dumps(
            {
                "state": state,
                "step": 100 * len(nats),
                "best": best and {"step": 0, "nats": best, "split": "validation"},
                "message": "",
            }
        )
    )
    lines, seconds = [], 0.0
    for number, value in enumerate(nats, start=1):
        for part in range(1, rows + 1):
            step, seconds = 100 * (number - 1) + 100 * part // rows, seconds + 0.5
            figures = {"nats": value + 0.1, "bits": 0, "perplexity": 0, "chars": 640}
            times = {"chars_per_second": 1000.0 + part, "seconds": seconds}
            lines.append({"step": step, "epoch": step / 100, "split": "train", **figures, "learning_rate": 1e-3, **times})
        row = {"step": 100 * number, "epoch": float(number)}
        lines.append({**row, "split": "train_mean", "nats": value + 0.2, "chars": 640 * rows, "seconds": seconds})
        lines.append({**row, "split": "validation", "nats": value, "chars": 1000, "protocol": protocol})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if test is not None:
        evaluated = {"nats": test, "protocol": {**PROTOCOL, "split": "test"}}
        (path / "evaluations.jsonl").write_text(
            json.dumps({"nats": 9.9, "protocol": PROTOCOL}) + "\n" + json.dumps(evaluated) + "\n"
        )
    for step, text in samples:
        (path / "samples" / f"{step:08d}.txt").write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path):
    """One run of a small model, three runs of a large model with different seeds, and one run under another protocol."""
    folder = tmp_path / "runs"
    make_run(folder / "small", {"model.hidden": 32}, nats=(2.0, 1.8), test=1.9)
    for seed, best in enumerate((1.5, 1.6, 1.8)):
        make_run(folder / f"large{seed}", {"model.hidden": 64, "seed": seed}, nats=(1.9, best, best + 0.1))
    make_run(
        folder / "chunks", {"batch.framing": "chunks"}, nats=(1.0,), protocol={**PROTOCOL, "state": "zero at every chunk of 32"}
    )
    return folder


def table(script, *flags, **options) -> list[dict]:
    return list(csv.DictReader(io.StringIO(script("compare", *flags, "--csv", **options).stdout)))


def test_runs_that_differ_only_in_seed_are_one_row_with_mean_and_standard_error(script, runs):
    rows = table(script, runs, "--where=batch.framing=stream")
    assert [row["model.hidden"] for row in rows] == ["64", "32"]
    large, small = rows
    nats = statistics.fmean([1.5, 1.6, 1.8])
    assert float(large["nats"]) == pytest.approx(nats)
    assert float(large["perplexity"]) == pytest.approx(math.exp(nats))
    assert float(large["bits"]) == pytest.approx(nats / math.log(2))
    assert (large["n"], small["n"]) == ("3", "1")
    assert float(small["perplexity"]) == pytest.approx(math.exp(1.8))
    assert float(small["test"]) == pytest.approx(math.exp(1.9))
    assert (large["at step"], small["at step"]) == ("200", "200")
    assert float(large["last"]) == pytest.approx(math.exp(nats + 0.1))
    assert float(large["chars/s"]) == pytest.approx(1005.5, abs=1)
    assert (float(large["time"]), large["parameters"], large["state"]) == (15.0, "1234", "done")
    error = statistics.stdev([1.5, 1.6, 1.8]) / math.sqrt(3)
    text = script("compare", runs, "--where=batch.framing=stream", "--markdown").stdout
    assert f"{nats:.4f} ± {error:.4f}" in text
    assert f"{math.exp(nats):.4f} ± {math.exp(nats) * error:.4f}" in text


def test_only_config_keys_that_differ_are_columns(script, runs):
    one = table(script, runs, "--where=batch.framing=stream")[0]
    assert [key for key in one if "." in key] == ["model.hidden"]
    assert "seed" not in one
    each = table(script, runs, "--each", "--where=model.hidden=64", "--where=batch.framing=stream")
    assert [(row["seed"], row["run"]) for row in each] == [("0", "large0"), ("1", "large1"), ("2", "large2")]
    assert "model.hidden" not in each[0]


def test_runs_under_different_protocols_are_never_ranked_together(script, runs):
    output = script("compare", runs).stdout
    assert "These runs were evaluated under different protocols, so they are shown in 2 tables:" in output
    carried, zero = output.index("state carried, 1,000 chars scored"), output.index("state zero at every chunk of 32")
    assert carried < output.index("large0") < zero < output.index("chunks", zero)
    rows = table(script, runs)
    assert len({row["protocol"] for row in rows}) == 2
    for field, value in (("corpus", "0" * 64), ("split", "test"), ("state", "carried in 2 lanes"), ("chars", 999)):
        make_run(runs / f"other_{field}", protocol={**PROTOCOL, field: value})
    assert "6 tables" in script("compare", runs).stdout


def test_every_key_that_differs_is_a_column_of_every_table_and_protocols_name_the_corpus(script, tmp_path):
    for name, overrides, digest in (
        ("a", {"corpus.path": "/texts/alpha.txt", "model.hidden": 8}, "1"),
        ("b", {"corpus.path": "/texts/alpha.txt", "model.hidden": 16}, "1"),
        ("c", {"corpus.path": "/texts/beta.txt", "model.layers": 2}, "2"),
        ("d", {"corpus.path": "/copies/beta2.txt", "model.layers": 2}, "2"),
    ):
        make_run(tmp_path / name, overrides, protocol={**PROTOCOL, "corpus": digest * 64})
    plot = tmp_path / "curves.svg"
    rows = {row["run"]: row for row in table(script, tmp_path, f"--plot={plot}")}
    found = {name: (row["model.hidden"], row["model.layers"], row["corpus.path"]) for name, row in rows.items()}
    assert found == {
        "a": ("8", "1", "/texts/alpha.txt"),
        "b": ("16", "1", "/texts/alpha.txt"),
        "c": ("32", "2", "/texts/beta.txt"),
        "d": ("32", "2", "/copies/beta2.txt"),
    }
    for name, words in (("a", "corpus alpha.txt (11111111)"), ("d", "corpus beta.txt and beta2.txt (22222222)")):
        assert words in rows[name]["protocol"]
        assert words in plot.read_text()
    assert "corpus tiny_shakespeare (c0ffee00)" in tables.protocol_in_words(
        tables.named_protocol(PROTOCOL, reading.read([make_run(tmp_path / "other" / "run")])[0])
    )


def test_the_length_of_a_training_is_said_in_words():
    def words(steps, epochs):
        return [
            tables.config_text({"train.steps": steps, "train.epochs": epochs}, key) for key in ("train.steps", "train.epochs")
        ]

    assert words(0, 2.5) == ["by epochs", "2.5"]
    assert words(100, 2.5) == ["100", "by steps"]


def test_rows_are_ordered_by_metric_or_sort_and_selected_by_where(script, tmp_path):
    make_run(tmp_path / "a", {"model.hidden": 8}, nats=(1.0, 3.0), test=2.0)
    make_run(tmp_path / "b", {"model.hidden": 16}, nats=(2.0, 2.0), test=1.0, state="incomplete")
    make_run(tmp_path / "c", {"model.hidden": 24}, nats=(1.5, 1.6))

    def order(*flags):
        return "".join(row["run"] for row in table(script, tmp_path, *flags))

    assert order() == "acb"
    assert order("--metric=last") == "cba"
    assert order("--metric=test") == "bac"  # run c has no loss on the test split, so run c comes last
    assert order("--metric=train") == "cba"
    assert order("--sort=model.hidden") == "abc"
    assert order("--sort=-model.hidden") == "cba"
    assert order("--sort=run") == "abc"
    assert order("--sort=-hidden") == "cba"
    assert order("--where=hidden>8") == "cb"
    assert order("--where=model.hidden>8", "--where=state!=incomplete") == "c"
    assert order("--where=best<1.2") == "a"


def test_runs_that_recorded_no_bytes_are_compared_with_runs_that_did(script, tmp_path):
    for seed, nats in enumerate([1.0, 2.0]):
        make_run(tmp_path / f"run{seed}", {"seed": seed}, nats=(nats,))
    make_run(tmp_path / "other", {"model.hidden": 24}, nats=(3.0,))
    metrics = tmp_path / "run0" / "metrics.jsonl"  # only run0 has bytes, as if an older version had trained the two other runs
    metrics.write_text(metrics.read_text().replace('"chars": 1000, "protocol"', '"chars": 1000, "bytes": 1250, "protocol"'))
    first, second = table(script, tmp_path)
    # The two runs that differ only in their seed have the same protocol, so both were scored on the same number of bytes.
    assert (first["n"], second["n"]) == ("2", "1")
    assert float(first["bits/byte"]) == pytest.approx(1.5 / np.log(2) / 1.25)
    assert second["bits/byte"] == ""
    assert "unknown" not in first
    records, _ = reading.read(reading.find([str(tmp_path)]))
    page = {run["name"]: run["bits_per_byte"] for run in report.content(records)["runs"]}
    assert page == {"run0": pytest.approx(1.0 / np.log(2) / 1.25), "run1": None, "other": None}


def test_runs_that_are_training_now_can_be_read(tmp_path):
    run = Run(make_run(tmp_path / "run", state="incomplete"))
    with (run.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "split": "validation", "nats": 0.1')  # an incomplete row
    assert reading.read([run.workdir])[0][0].state == "incomplete"
    with run.locked():
        records, problems = reading.read([run.workdir])
    assert (records[0].state, records[0].best, problems) == ("running", 1.5, [])
    make_run(tmp_path / "young", nats=(), state="incomplete")
    records, problems = reading.read(reading.find([os.fspath(tmp_path)]))
    assert {record.name: record.best for record in records} == {"run": 1.5, "young": None}
    assert problems == []


def test_a_run_that_a_search_stopped_early_is_pruned(tmp_path):
    for name, state in (("a", "incomplete"), ("b", "incomplete"), ("c", "done")):
        make_run(tmp_path / name, state=state)
    states = {}
    for content in ('{"trials": {}, "pruned": ["a", "c"]}', '{"trials": {}}', "[3]", '{"pruned": 3}', "{"):
        (tmp_path / "sweep.json").write_text(content)
        states[content] = [record.state for record in reading.read(reading.find([os.fspath(tmp_path)]))[0]]
    assert states.pop('{"trials": {}, "pruned": ["a", "c"]}') == ["pruned", "incomplete", "done"]
    assert set(map(tuple, states.values())) == {("incomplete", "incomplete", "done")}


def test_damaged_runs_are_reported_and_all_other_runs_are_shown(script, tmp_path):
    make_run(tmp_path / "good", nats=(1.0,))
    for name, file, content in (
        ("no_config", "config.json", None),
        ("bad_config", "config.json", b"{"),
        ("bad_status", "status.json", b"\xff\x00"),
        ("no_status", "status.json", None),
        ("odd_status", "status.json", b'{"state": "asleep"}'),
        ("bad_environment", "environment.json", b"[]"),
        ("no_metrics", "metrics.jsonl", None),
        ("empty_metrics", "metrics.jsonl", b""),
    ):
        path = make_run(tmp_path / name, nats=(2.0,)) / file
        path.unlink() if content is None else path.write_bytes(content)
    path = make_run(tmp_path / "bad_rows", nats=(3.0, 2.0)) / "metrics.jsonl"
    junk = [b"junk", b"[1]", b'{"step": 1}', b'{"step": "x", "split": "validation", "nats": 0}', b"[" * 10_000, b"\xff"]
    junk.append(b'{"step": 1, "split": "validation", "nats": "0.1"}')
    path.write_bytes(b"\n".join([*junk, path.read_bytes()]))
    result = script("compare", tmp_path, "--each", "--csv")
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(result.stdout))}
    assert set(rows) == {path.name for path in tmp_path.iterdir()} - {"no_config", "bad_config"}
    assert float(rows["bad_rows"]["nats"]) == 2.0
    assert rows["bad_status"]["state"] == rows["no_status"]["state"] == rows["odd_status"]["state"] == "unknown"
    assert rows["no_metrics"]["nats"] == rows["empty_metrics"]["nats"] == ""
    for name in ("no_config", "bad_config", "bad_status", "no_status", "odd_status", "bad_environment", "bad_rows"):
        assert f"/{name}" in result.stderr
    assert result.stderr.count("is not a row of metrics and is ignored") == len(junk)
    assert all(line.startswith("note: ") for line in result.stderr.splitlines())


def test_infinite_nats_are_read_but_never_count_as_the_best(tmp_path):
    path = make_run(tmp_path / "run", nats=(2.0, 1.0))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps({**row, "nats": None} if row["step"] == 200 else row) + "\n" for row in rows)
    )
    record = reading.read([path])[0][0]
    assert (record.best, record.best_step, record.last) == (2.0, 100, math.inf)


@pytest.mark.parametrize(
    ("flags", "message"),
    half_slow(
        [
            ([], "no runs are given"),
            (["/no/such"], "/no/such is not a directory"),
            (["{empty}"], "contains no runs"),
            (["{runs}", "--where=model.hiden>3"], "unknown config key 'model.hiden': the nearest key is 'model.hidden'"),
            (["{runs}", "--where=hidden"], "is not a condition"),
            (["{runs}", "--where=model.hidden>x"], "model.hidden must be compared with a number, not 'x'."),
            (["{runs}", "--where=model.hidden>1000"], "--where=model.hidden>1000: no run meets this condition"),
            (["{runs}", "--sort=colour"], "--sort=colour is not a column or a config key: the columns are "),
            (["{runs}", "--sort=length"], "'length' is ambiguous: write batch.length, eval.length or sample.length."),
            (["{runs}", "--where=name=x", "--where=length>3"], "config key 'length' is ambiguous"),
            (["{runs}", "--by=model.hiden"], "nearest key is 'model.hidden'"),
            (["{runs}", "--by=hidden", "--by=model.hidden"], "--by=hidden,model.hidden has model.hidden twice"),
            (["{runs}", "--by=seed,hidden", "--by=layers"], "--by=seed,hidden,layers has 3 keys: give one or two"),
            (["{runs}", "--by=seed", "--each"], "--each and --by are given together"),
            (["{runs}", "--csv", "--json"], "--csv and --json are given together: give only one of them"),
            (["{runs}", "--plot=curves.gif"], "must end in .png or .svg"),
            (["{runs}", "--plot=/no/such/folder.png"], "can't be written"),
            (["{runs}", "--html=/no/such/folder.html"], "can't be written"),
            (["{runs}", "--html=."], "--html=. can't be written"),
            (["{runs}", "--metric=beauty"], "--metric"),
        ]
    ),
)
def test_wrong_flags_and_paths_are_refused_in_one_sentence(script, runs, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    flags = [flag.format(runs=runs, empty=tmp_path / "empty") for flag in flags]
    result = script("compare", *flags, status=2)
    assert message in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == result.stderr.splitlines()


def test_run_names_with_markup_are_shown_unchanged(script, tmp_path):
    make_run(tmp_path / "[red]x[/red]|`a`", {"corpus.path": "/x/[bold]\n|y"})
    make_run(tmp_path / "plain")
    assert "[red]x[/red]|`a`" in script("compare", tmp_path).stdout
    markdown = script("compare", tmp_path, "--markdown").stdout
    assert "[red]x[/red]\\|`a`" in markdown
    assert {line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")} == {
        markdown.splitlines()[2].count("|")
    }


def test_curve_points_have_the_chars_and_seconds_of_their_metrics_rows(tmp_path):
    curves = reading.series(reading.read([make_run(tmp_path / "run", nats=(2.0, 1.5), rows=4)])[0][0])
    assert curves["validation"] == {"step": [100, 200], "chars": [2560, 5120], "seconds": [2.0, 4.0], "nats": [2.0, 1.5]}
    assert curves["train"]["step"] == [25, 50, 75, 100, 125, 150, 175, 200]
    assert curves["train"]["chars"] == [640 * number for number in range(1, 9)]
    assert curves["train"]["seconds"] == [0.5 * number for number in range(1, 9)]


@pytest.mark.parametrize("number", [2, slow(60)])
def test_plots_of_curves_and_means_are_written(script, tmp_path, number):
    for place in range(number):
        overrides = {"model.hidden": 8 * (1 + place // 2), "seed": place % 2}
        make_run(tmp_path / "runs" / str(place), overrides, nats=(3.0, 2.0 + place / 100, 1.9 + place / 100))
    curves, means = tmp_path / "curves.png", tmp_path / "means.svg"
    assert f"written: {curves}" in script("compare", tmp_path / "runs", f"--plot={curves}", "--x=seconds").stderr
    assert curves.read_bytes().startswith(b"\x89PNG")
    script("compare", tmp_path / "runs", f"--plot={means}", "--by=model.hidden")
    assert "model.hidden" in means.read_text() or "<svg" in means.read_text()


def test_most_rows_of_the_training_loss_are_not_parsed(tmp_path, monkeypatch):
    """compare must be fast for 500 runs of 2,000 rows. The test counts parsed rows, because measured times vary."""
    path = make_run(tmp_path / "run", nats=(2.0,) * 20, rows=100)
    calls, parsed = [], reading.parsed
    monkeypatch.setattr(reading, "parsed", lambda line: calls.append(1) or parsed(line))
    begin = time.perf_counter()
    record = reading.read([path])[0][0]
    assert record.best == 2.0
    assert len(calls) < 300, f"{len(calls)} of 2,040 rows were parsed, in {time.perf_counter() - begin:.3f} s"


def test_compare_does_not_import_jax(script):
    code = "import sys; from charlm.compare import tables, report, plots; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_conditions_compare_numbers_booleans_texts_and_none():
    def holds(text, value):
        return load.condition(text)[1](value)

    assert holds("a>=2", 2)
    assert not holds("a>2", 2)
    assert holds("a = 2.0", 2)
    assert holds("a!=b", "c")
    assert holds("a=true", True)
    assert holds("a=True", True)
    assert holds("a!=True", False)
    assert not holds("a=true", False)
    with pytest.raises(UserError, match=r"'a=yes': a must be compared with true or false, not 'yes'\."):
        holds("a=yes", True)
    assert holds("a=None", None)
    for value in (["lstm", "gru"], ("lstm", "gru")):  # saved configs have lists
        assert holds('a=("lstm","gru")', value)
        assert not holds('a!=("lstm", "gru")', value)
        assert not holds("a=lstm", value)
    assert not holds('a=("lstm","gru")', "lstm")
    assert not holds("a>1", None)
    with pytest.raises(UserError):
        holds("a<b", 2)


def test_the_seed_is_allowed_in_the_by_flag_and_in_the_sort_flag(script, runs):
    rows = json.loads(script("compare", runs, "--where=batch.framing=stream", "--by=seed", "--json").stdout)
    assert {(row["seed"], row["configs"]) for row in rows} == {(0, 2), (1, 1), (2, 1)}
    assert len(table(script, runs, "--sort=-seed", "--where=model.hidden=64", "--where=batch.framing=stream")) == 3


def test_runs_with_the_same_seed_are_not_averaged(script, tmp_path):
    for name, seed, nats in (("a", 0, 1.0), ("b", 0, 1.0), ("c", 1, 3.0)):
        make_run(tmp_path / name, {"seed": seed}, nats=(nats,))
    rows = table(script, tmp_path)
    assert sorted((row["n"], float(row["nats"])) for row in rows) == [("1", 1.0), ("2", 2.0)]


def test_losses_of_the_test_split_under_different_protocols_are_not_ranked_together(script, tmp_path):
    make_run(tmp_path / "one", test=2.0)
    make_run(tmp_path / "two", {"model.hidden": 8}, test=1.0)
    file = tmp_path / "two" / "evaluations.jsonl"
    file.write_text(file.read_text().replace("carried", "zero at every chunk of 32"))
    assert len({row["protocol"] for row in table(script, tmp_path)}) == 1
    assert len({row["protocol"] for row in table(script, tmp_path, "--metric=test")}) == 2
    row = table(script, tmp_path, "--metric=test", "--where=model.hidden=8")[0]
    assert float(row["best"]) == pytest.approx(math.exp(1.5))  # best is shown too, but only test ranks the rows
    message = script("compare", tmp_path, "--sort=test", status=2).stderr
    assert "--sort=test can't sort these runs, because the metric test was measured under different protocols" in message
    assert ": use --metric=test to show the runs in separate tables." in message
    script("compare", tmp_path, f"--html={tmp_path / 'page.html'}")
    assert '"test":null' in (tmp_path / "page.html").read_text()


def test_runs_that_differ_in_seed_and_protocol_get_no_mean(script, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), {"seed": seed}, test=1.0 + 2 * seed)
    (row,) = table(script, tmp_path)
    assert float(row["test"]) == pytest.approx(math.exp(2.0))
    file = tmp_path / "1" / "evaluations.jsonl"
    file.write_text(file.read_text().replace("carried", "zero at every chunk of 32"))
    (row,) = table(script, tmp_path)
    assert "test" not in row


def test_a_run_without_logged_evaluations_uses_the_loss_in_evaluations_jsonl(script, tmp_path):
    # For a run with a test loss, make_run also writes a validation loss of 9.9 to evaluations.jsonl.
    make_run(tmp_path / "imported", nats=(), test=1.25)
    (row,) = table(script, tmp_path)
    assert float(row["nats"]) == pytest.approx(9.9)
    assert "not evaluated yet" not in row["protocol"]
    for seed in (0, 1):
        make_run(tmp_path / f"trained{seed}", {"seed": seed}, nats=(1.0 + seed,))
    assert sorted((row["n"], float(row["nats"])) for row in table(script, tmp_path)) == [("1", 9.9), ("2", 1.5)]


def test_a_run_saved_before_a_config_key_existed_gets_the_default_of_that_key(script, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / str(seed), {"seed": seed})
    file = tmp_path / "0" / "config.json"
    config = json.loads(file.read_text())
    del config["sample"]["top_k"]
    file.write_text(json.dumps(config))
    (row,) = table(script, tmp_path)
    assert row["n"] == "2"


def test_training_losses_of_different_corpora_or_framings_are_in_separate_tables(script, tmp_path):
    for name, overrides, sha in (
        ("a", {}, "1"),
        ("b", {}, "2"),
        ("c", {"batch.length": 7}, "1"),
        ("d", {"model.hidden": 8}, "1"),
    ):
        path = make_run(tmp_path / name, overrides)
        rows = [line for line in (path / "metrics.jsonl").read_text().splitlines() if '"validation"' not in line]
        (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        (path / "corpus.json").write_text(json.dumps({"sha256": sha * 64, "splits": {}}))
    protocols = [row["protocol"] for row in table(script, tmp_path)]
    assert sorted(map(protocols.count, set(protocols))) == [1, 1, 2]


def test_a_run_given_by_two_paths_is_shown_once(script, tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, {"model.hidden": 8 + len(name)})
    rows = table(script, "a", tmp_path / "a", tmp_path / "b", "--each", cwd=tmp_path)
    assert sorted(row["run"] for row in rows) == ["a", "b"]


def test_flag_sort_accepts_a_column_that_only_one_table_has(script, runs):
    rows = table(script, runs, "--sort=-n")
    assert [row["n"] for row in rows if row["n"]] == ["3", "1"]


def test_json_has_standard_errors_and_no_infinities(script, runs):
    path = runs / "large1" / "metrics.jsonl"
    last = path.read_text().splitlines()[-1]
    path.write_text(path.read_text().replace(last, json.dumps({**json.loads(last), "nats": None})))
    rows = json.loads(script("compare", runs, "--json", "--where=batch.framing=stream").stdout, parse_constant=pytest.fail)
    assert rows[0]["standard error"] == pytest.approx(statistics.stdev([1.5, 1.6, 1.8]) / math.sqrt(3))
    assert script("compare", runs, "--metric=last").stdout.count(" inf ") == 3  # one row has infinite nats, bits and perplexity
    assert [row["run"] for row in table(script, runs, "--where=perplexity<4.7", "--where=batch.framing=stream")] == ["large0"]


def test_points_of_a_diverging_run_are_not_plotted(script, tmp_path):
    make_run(tmp_path / "bad", nats=(2.0, 4000.0))
    make_run(tmp_path / "good", {"model.hidden": 8}, nats=(2.0, 1.0))
    result = script("compare", tmp_path, f"--plot={tmp_path / 'x.png'}", f"--html={tmp_path / 'x.html'}")
    assert result.stderr.count("written") == 2
    assert len(result.stderr.splitlines()) == 2


def test_a_plot_without_curves_is_refused(script, tmp_path):
    make_run(tmp_path / "imported", nats=(), test=1.0)
    message = script("compare", tmp_path, "--metric=test", f"--plot={tmp_path / 'x.png'}", status=2).stderr
    assert "have no curves" in message
    make_run(tmp_path / "trained", test=2.0)
    file = tmp_path / "trained" / "evaluations.jsonl"
    file.write_text(file.read_text().replace("carried", "zero at every chunk of 32"))
    assert "written" in script("compare", tmp_path, "--metric=test", f"--plot={tmp_path / 'x.png'}").stderr


def test_a_heat_map_accepts_a_key_whose_values_are_tuples(script, tmp_path):
    for name, split in (("a", (0.9, 0.1)), ("b", (0.8, 0.2))):
        make_run(tmp_path / name, {"corpus.split": split})
    script("compare", tmp_path, "--by=corpus.split,model.hidden", f"--plot={tmp_path / 'x.svg'}")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_numbers_in_a_heat_map_contrast_with_their_background():
    assert readable_on((0.99, 0.91, 0.14, 1)) == "black"  # the lightest colour of viridis
    assert readable_on((0.27, 0.00, 0.33, 1)) == "white"  # the darkest colour of viridis
