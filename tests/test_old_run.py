"""Invariant 9: a run directory of an older version resumes, evaluates, samples and compares as that version would have done.

`tests/data/old_run/run` was made by commit 0e34d7a, stopped by SIGTERM at step 17 of 30, with two layers and dropout.
`expected.json` is what 0e34d7a made of the same run: rows of metrics after the resume, evaluation, sample, comparison. Figures
are compared within 1e-5, since processors differ.
"""

import json
import os
import shutil

import pytest
from conftest import ROOT, TINY
from faults.checks import read_rows
from faults.runs import as_flags, make_text

OLD = ROOT / "tests" / "data" / "old_run"
OVERRIDES = {
    "model.layers": 2,
    "model.hidden": 8,
    "model.embedding": 6,
    "model.dropout": 0.2,
    "batch.size": 4,
    "batch.length": 16,
    "train.steps": 30,
    "train.log_every": 5,
    "train.eval_every": 10,
    "train.checkpoint_every": 10,
    "sample.length": 40,
}


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((OLD / "expected.json").read_text())


@pytest.fixture(scope="module")
def resumed(script, tmp_path_factory):
    """The run, with its corpus where this test has put it, gone on with to its end."""
    folder = tmp_path_factory.mktemp("old")
    corpus, workdir = folder / "made_up.txt", folder / "run"
    corpus.write_text(make_text(8000), encoding="utf-8")
    shutil.copytree(OLD / "run", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["corpus"]["path"] = os.fspath(corpus)
    del config["seal"]  # as whoever edits a file by hand does
    (workdir / "config.json").write_text(json.dumps(config))
    flags = [f"--config={ROOT / TINY}", *as_flags(OVERRIDES | {"corpus.path": corpus})]
    output = script("train", *flags, f"--workdir={workdir}").stdout
    assert "resuming at step 17 of 30" in output
    return workdir


def assert_close(found, expected) -> None:
    """Equal, but for numbers that are not whole: these within 1e-5."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    else:
        assert found == expected


def test_resumes_to_the_same_rows(resumed, expected):
    rows = read_rows(resumed)
    assert len(rows) == len(expected["rows"])
    for row, other in zip(rows, expected["rows"], strict=True):
        assert_close(row, other)


def test_evaluates_to_the_same_figure(script, resumed, expected):
    found = json.loads(script("evaluate", f"--workdir={resumed}").stdout)
    assert_close({key: found[key] for key in expected["evaluation"]}, expected["evaluation"])


def test_samples_the_same_text(script, resumed, expected):
    flags = ("--checkpoint=latest", "--length=60", "--seed=3", "--prompt=ab")
    assert script("sample", f"--workdir={resumed}", *flags).stdout == expected["sample"]


def test_compares_with_the_same_figures(script, resumed, expected):
    (found,) = json.loads(script("compare", resumed, "--json").stdout)
    assert_close({key: found[key] for key in expected["compare"]}, expected["compare"])
