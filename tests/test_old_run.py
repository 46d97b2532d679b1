"""Tests that a run directory of an older version of charlm still gives the same results as that version gave.

The version of commit 0e34d7a made `tests/data/old_run/run`. The model has two layers and dropout. SIGTERM stopped the run at
step 17 of 30. The same version then resumed, evaluated, sampled and compared the run. `expected.json` has the results of that
version. The tests allow differences of 1e-5, because processors round differently.
"""

import json
import os
import shutil

import pytest
from conftest import ROOT, TINY
from faults.checks import read_rows
from faults.runs import as_flags, make_text

OLD_RUN = ROOT / "tests" / "data" / "old_run"
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
    return json.loads((OLD_RUN / "expected.json").read_text())


@pytest.fixture(scope="module")
def resumed(script, tmp_path_factory):
    """Copies the old run, sets corpus.path to a new file, and trains the copy up to step 30. Returns its run directory."""
    folder = tmp_path_factory.mktemp("old")
    corpus, workdir = folder / "made_up.txt", folder / "run"
    corpus.write_text(make_text(8000), encoding="utf-8")
    shutil.copytree(OLD_RUN / "run", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["corpus"]["path"] = os.fspath(corpus)
    del config["seal"]  # the seal is a checksum of the file, which does not match the changed config
    (workdir / "config.json").write_text(json.dumps(config))
    flags = [f"--config={ROOT / TINY}", *as_flags(OVERRIDES | {"corpus.path": corpus})]
    output = script("train", *flags, f"--workdir={workdir}").stdout
    assert "resuming at step 17 of 30" in output
    return workdir


def assert_close(found, expected) -> None:
    """Asserts that two values are equal. Two floats may have an absolute or relative difference of 1e-5."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)
    else:
        assert found == expected


def test_the_resumed_run_has_the_metrics_of_the_old_version(resumed, expected):
    rows = read_rows(resumed)
    assert len(rows) == len(expected["rows"])
    for row, other in zip(rows, expected["rows"], strict=True):
        # This version wrote the rows after step 17. Their evaluations have two new fields. Each character has one byte.
        new = {"bytes": row["chars"], "bits_per_byte": row["bits"]} if row["split"] == "validation" and row["step"] > 17 else {}
        assert_close(row, other | new)


def test_the_evaluation_equals_the_evaluation_by_the_old_version(script, resumed, expected):
    found = json.loads(script("evaluate", f"--workdir={resumed}").stdout)
    assert_close({key: found[key] for key in expected["evaluation"]}, expected["evaluation"])


def test_the_sample_equals_the_sample_of_the_old_version(script, resumed, expected):
    flags = ("--checkpoint=latest", "--length=60", "--seed=3", "--prompt=ab")
    assert script("sample", f"--workdir={resumed}", *flags).stdout == expected["sample"]


def test_the_comparison_equals_the_comparison_by_the_old_version(script, resumed, expected):
    (found,) = json.loads(script("compare", resumed, "--json").stdout)
    # This version also names the corpus.
    found["protocol"] = found["protocol"].replace("corpus made_up.txt (3499fc56)", "corpus 3499fc56")
    assert_close({key: found[key] for key in expected["compare"]}, expected["compare"])
