"""Tests `compare --by=KEY`, which shows a mean for each value of a config key, and the standard error of each mean."""

import json
import math

import pytest
from test_tables import make_run


def test_marginal_means_equal_means_computed_by_hand(script, tmp_path):
    nats = {(32, 1e-2): 2.0, (32, 3e-2): 2.4, (64, 1e-2): 1.6, (64, 3e-2): 2.2}
    for (hidden, rate), value in nats.items():
        make_run(tmp_path / f"{hidden}{rate}", {"model.hidden": hidden, "optim.learning_rate": rate}, nats=(value,))
    by_hidden = json.loads(script("compare", tmp_path, "--by=model.hidden", "--json").stdout)
    assert [(row["model.hidden"], row["configs"]) for row in by_hidden] == [(32, 2), (64, 2)]
    assert [row["nats"] for row in by_hidden] == pytest.approx([2.2, 1.9])
    assert [row["best nats"] for row in by_hidden] == [2.0, 1.6]
    # The two configs differ in their learning rate, so the table shows their spread and no standard error.
    assert by_hidden[0]["spread"] == pytest.approx(0.4 / math.sqrt(2))
    assert by_hidden[0]["standard error"] is None
    # With two flags and short names, the means are for each pair of values, and each pair has a single run.
    both = json.loads(script("compare", tmp_path, "--by=hidden", "--by=learning_rate", "--json").stdout)
    assert {(row["model.hidden"], row["optim.learning_rate"]): row["nats"] for row in both} == nats
    assert {(row["configs"], row["runs"], row["spread"], row["standard error"]) for row in both} == {(1, 1, None, None)}


def test_marginal_means_have_a_standard_error_only_over_seeds_and_count_a_repeated_run_once(script, tmp_path):
    for name, hidden, seed, nats in (
        ("a", 32, 0, 2.0),
        ("b", 32, 1, 2.4),
        ("a_again", 32, 0, 2.1),  # the same config and seed as run a
        ("c", 64, 0, 1.0),
    ):
        make_run(tmp_path / name, {"model.hidden": hidden, "seed": seed}, nats=(nats,))
    plot = tmp_path / "means.svg"
    text = script("compare", tmp_path, "--by=model.hidden", f"--plot={plot}").stdout
    assert "standard error: of the nats, over seeds" in text
    assert "spread" not in text
    rows = json.loads(script("compare", tmp_path, "--by=model.hidden", "--json").stdout)
    assert [(row["configs"], row["runs"]) for row in rows] == [(1, 3), (1, 1)]
    assert rows[0]["nats"] == pytest.approx((2.05 + 2.4) / 2)
    # The standard error of two values is half of their difference.
    assert rows[0]["standard error"] == pytest.approx((2.4 - 2.05) / 2)
    assert (rows[0]["spread"], rows[1]["standard error"]) == (None, None)
    assert "± standard error over seeds" in plot.read_text()  # Matplotlib writes the texts as comments
    assert "standard deviation" not in plot.read_text()
    make_run(tmp_path / "d", {"model.hidden": 32, "model.layers": 2}, nats=(3.0,))
    text = script("compare", tmp_path, "--by=model.hidden", f"--plot={plot}").stdout
    assert "spread: standard deviation of the nats over configs, which differ in model.layers" in text
    assert f"{(3.0 - (2.05 + 2.4) / 2) / math.sqrt(2):.4f}" in text
    assert "± standard deviation over configurations" in plot.read_text()


def test_marginal_means_leave_out_runs_that_are_not_done(script, tmp_path):
    make_run(tmp_path / "done", {"model.hidden": 8}, nats=(2.0,))
    make_run(tmp_path / "stopped", {"model.hidden": 8, "model.layers": 2}, nats=(9.0,), state="incomplete")
    make_run(tmp_path / "not_evaluated", {"model.hidden": 16}, nats=(), state="incomplete")
    result = script("compare", tmp_path, "--by=model.hidden", "--json")
    assert [(row["nats"], row["configs"]) for row in json.loads(result.stdout)] == [(2.0, 1)]
    assert result.stderr == "note: the means leave out 1 of 2 configs, because only configs with a finished run are averaged.\n"
    assert script("compare", tmp_path, "--by=model.hidden").stdout.count("perplexity  ") == 1  # no table without rows
