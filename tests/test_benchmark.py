"""Compares the calculations of the benchmark with numbers computed by hand, and runs small benchmarks.

S, M and L are the model sizes of the benchmark; see `SHAPES` in `scripts/peers/measuring.py`.
"""

import json
import math
import os
import shlex
import tempfile

import pytest
from peers import measuring
from peers.measuring import Measurement


def measured(task, shape, batch, dtype, implementation, rate):
    return Measurement(task, shape, batch, dtype, implementation, rate, 0.1, 300_000_000)


def test_flop_per_char_equals_the_number_computed_by_hand():
    # Each weight takes 6 floating-point operations. S has a one-hot input kernel of 65 x 512, three kernels of 128 x 512 and a
    # head of 128 x 65.
    assert measuring.SHAPES["S"].flop_per_char() == 6 * (65 * 512 + 128 * 512 + 128 * 512 + 128 * 512 + 128 * 65)
    # M has an embedding of 256, four kernels of 256 x 1024 and a head of 256 x 65.
    assert measuring.SHAPES["M"].flop_per_char() == 6 * (4 * 256 * 1024 + 256 * 65)
    # The kernels of a GRU have three blocks, and those of an RNN have one.
    assert measuring.SHAPES["M"].flop_per_char("gru") == 6 * (4 * 256 * 768 + 256 * 65)
    assert measuring.SHAPES["M"].flop_per_char("rnn") == 6 * (4 * 256 * 256 + 256 * 65)


def test_the_table_has_ratios_to_torch_and_percentages_of_the_limit():
    """The limit is the speed of training if only matrix products took time. It comes from the measured peak speed."""
    rows = [
        measured("train", "S", 50, "float32", "charlm", 150.0),
        measured("train", "S", 50, "bfloat16", "charlm-bf16", 300.0),
        measured("train", "S", 50, "float32", "torch", 100.0),
        measured("train", "S", 50, "bfloat16", "torch-bf16", 200.0),
        measured("train", "S", 50, "float32", "peak", 200.0 * measuring.SHAPES["S"].flop_per_char()),
    ]
    cells = {row[3]: row[4:8] for row in measuring.table(rows)[1:]}
    assert cells["charlm"] == ["150", "10%", "1.50", "75%"]
    assert cells["charlm-bf16"] == ["300", "10%", "1.50", ""]  # the bfloat16 peak was not measured
    assert cells["limit, float32"][0] == "200"


def test_geometric_means_leave_out_implementations_that_were_not_measured_on_every_size():
    rows = [measured("train", shape, 8, "float32", "charlm", rate) for shape, rate in (("S", 200.0), ("M", 80.0))]
    rows += [measured("train", shape, 8, "float32", "torch", rate) for shape, rate in (("S", 100.0), ("M", 10.0))]
    rows += [measured("train", "S", 8, "float32", "flax", 100.0)]  # flax was not measured on M
    assert measuring.means(rows) == ["train, geometric mean over shapes: charlm / torch 4.00"]
    assert math.isnan(measuring.rate(rows, "train", "M", 8, "flax"))


def test_missing_libraries_and_broken_libraries_get_different_messages(tmp_path):
    advice = "has no torch: name another interpreter with --peer_python torch=/path/to/python"
    for name, lines, why in (
        ("none", "ModuleNotFoundError: No module named 'torch'", advice),
        ("broken", "ImportError: libgomp.so.1: cannot open", "can't import torch: ImportError: libgomp.so.1: cannot open"),
    ):
        python = tmp_path / name
        python.write_text(f"#!/bin/sh\necho Traceback >&2\necho {shlex.quote(lines)} >&2\nexit 1\n")
        python.chmod(0o755)
        found, missing = measuring.available(["torch-bf16"], {"torch": os.fspath(python)})
        assert found == []
        assert missing["torch-bf16"].startswith(f"{python} {why}")


def test_temporary_files_of_measured_programs_are_removed(tmp_path, monkeypatch):
    """PyTorch's compiler leaves a cache folder behind. The fake interpreter of this test makes a folder with the same name."""
    python, temporary = tmp_path / "python", tmp_path / "temporary"
    answer = '{"chars_per_second": 1.0, "peak_rss_bytes": 1}'
    python.write_text(
        f"#!/bin/sh\nmkdir $TMPDIR/torchinductor_root || exit 1\n[ $1 = -c ] && exit\necho '{{}}'\nread line\necho '{answer}'\n"
    )
    python.chmod(0o755)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", os.fspath(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # tempfile then reads TMPDIR again
    pythons = {"torch": os.fspath(python)}
    assert measuring.available(["torch"], pythons) == (["torch"], {})
    (row,) = measuring.measure("sample", "S", 1, ["torch"], pythons, 1, 0.1, say=lambda line: None)
    assert row.chars_per_second == 1.0
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "tasks", "rounds"), [(["charlm"], ["train"], 1), (["charlm", "charlm-bf16", "flax"], ["train", "sample"], 2)]
)
def test_a_small_benchmark_measures_each_implementation(script, tmp_path, ours, tasks, rounds):
    file = tmp_path / "figures.json"
    flags = (
        f"--tasks={','.join(tasks)}",
        "--shapes=S",
        "--sample_batches=2",
        f"--rounds={rounds}",
        "--seconds=0.1",
        f"--json={file}",
    )
    python = tmp_path / "no python here"
    result = script("benchmark", f"--implementations={','.join(ours)},torch", f"--peer_python=torch={python}", *flags)
    assert f"skipped torch: {python} can't be run" in result.stdout
    rows = json.loads(file.read_text())
    for task, expected in (("train", [*ours, "peak", "peak"]), ("sample", ours if "sample" in tasks else [])):
        assert [row["implementation"] for row in rows if row["task"] == task] == expected
    for row in rows:
        assert set(row) == set(Measurement._fields)
        assert (row["shape"], row["batch"]) == ("S", 50 if row["task"] == "train" else 2)
        assert (
            row["dtype"] == ("bfloat16" if row["implementation"] == "charlm-bf16" else "float32")
            or row["implementation"] == "peak"
        )
        assert row["chars_per_second"] > 0
        assert row["spread"] >= 0
        assert 50e6 < row["peak_rss_bytes"] < 5e9
    assert result.stdout.count(f"round {rounds} of {rounds} is done") == len(tasks)
    assert f"{rows[0]['chars_per_second']:,.0f}" in result.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--cell=mingru", "--cell=mingru: must be one of lstm, gru, rnn."),
        ("--shapes=XL", "error: --shapes=XL: must be one of S, M, L."),
        ("--tasks=", "--tasks= is empty: give at least one of train, sample."),
        ("--implementations=jax", "--implementations=jax: must be one of charlm, charlm-bf16"),
        ("--rounds=0", "--rounds=0: must be positive."),
        ("--seconds=nan", "--seconds=nan: must be positive."),
        ("--sample_batches=1,x", "--sample_batches=1,x: must be positive integers."),
        ("--peer_python=/usr/bin/python3", "--peer_python=/usr/bin/python3: must be torch=/path/to/python (or keras=, flax=)."),
    ],
)
def test_wrong_flags_are_refused(script, flag, message):
    assert message in script.fails("benchmark", flag)


def test_a_benchmark_without_implementations_fails(script, tmp_path):
    result = script("benchmark", "--implementations=torch", f"--peer_python=torch={tmp_path}/none", status=1)
    assert result.stderr == "error: none of the implementations can be measured.\n"


@pytest.mark.slow
def test_a_failed_program_is_named_and_the_other_programs_are_measured(monkeypatch):
    broken = measuring.IMPLEMENTATIONS["flax"]._replace(dtype="no type", program="charlm_peer.py")
    monkeypatch.setitem(measuring.IMPLEMENTATIONS, "charlm", broken)
    rows = measuring.measure("sample", "S", 1, ["charlm", "flax"], {}, 1, 0.1, say=lambda line: None)
    assert next(rows).implementation == "flax"
    with pytest.raises(measuring.Failure, match=r"sample S, batch 1: charlm ended with status 1: .*no type"):
        next(rows)
