"""Compares the calculations of the benchmark with numbers computed by hand, and runs small benchmarks.

S, M and L are the model sizes of the benchmark; see `SHAPES` in `scripts/peers/measuring.py`.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT
from peers import chart, measuring, results
from peers.measuring import Measurement

from charlm.data.batches import Batch
from charlm.errors import UserError
from charlm.models import stack


def measured(task, shape, batch, dtype, implementation, rate, cell="lstm", rounds=()):
    return Measurement(task, shape, batch, dtype, implementation, rate, 0.1, 300_000_000, cell, rounds)


def made_up(measurements, cores=2):
    machine = {"processor": "a processor", "cores": cores}
    return results.Results(machine, "abc", "2026-01-01", {"charlm": {"jax": "1"}}, 2.0, measurements)


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
    cells = {row[4]: row[5:9] for row in measuring.table(rows)[1:]}
    assert cells["charlm"] == ["150", "10%", "1.50", "75%"]
    assert cells["charlm-bf16"] == ["300", "10%", "1.50", ""]  # the bfloat16 peak was not measured
    assert cells["limit, float32"][0] == "200"


def test_geometric_means_leave_out_implementations_that_were_not_measured_on_every_size():
    rows = [measured("train", shape, 8, "float32", "charlm", rate) for shape, rate in (("S", 200.0), ("M", 80.0))]
    rows += [measured("train", shape, 8, "float32", "torch", rate) for shape, rate in (("S", 100.0), ("M", 10.0))]
    rows += [measured("train", "S", 8, "float32", "flax", 100.0)]  # flax was not measured on M
    assert measuring.means(rows) == ["train lstm, geometric mean over shapes: charlm / torch 4.00"]
    assert measuring.find(rows, ("train", "lstm", "M", 8), "flax") is None


def test_each_cell_and_each_batch_size_of_an_evaluation_has_its_own_mean():
    rows = []
    for cell, batch, ours, other in (("lstm", 1, 30.0, 10.0), ("gru", 1, 40.0, 10.0), ("gru", 64, 50.0, 10.0)):
        rows.append(measured("evaluate", "S", batch, "float32", "charlm", ours, cell))
        rows.append(measured("evaluate", "S", batch, "float32", "keras", other, cell))
    assert measuring.means(rows) == [
        "evaluate lstm, batch 1, geometric mean over shapes: charlm / keras 3.00",
        "evaluate gru, batch 1, geometric mean over shapes: charlm / keras 4.00",
        "evaluate gru, batch 64, geometric mean over shapes: charlm / keras 5.00",
    ]


def test_the_spread_of_a_ratio_comes_from_the_ratios_of_single_rounds():
    rows = [
        measured("sample", "S", 1, "float32", "charlm", 20.0, rounds=[10.0, 20.0, 40.0]),
        measured("sample", "S", 1, "float32", "torch", 10.0, rounds=[10.0, 8.0, 20.0]),
    ]
    assert measuring.ratio(rows, rows[0].group, "charlm", "torch") == (2.0, 1.0, 2.5)
    assert measuring.ratio(rows, rows[0].group, "charlm", "flax") is None


def test_the_number_of_cores_is_the_number_that_this_process_may_use():
    described = measuring.machine()
    assert described["cores"] == int(subprocess.run(["nproc"], capture_output=True, text=True, check=True).stdout)
    assert described["processor"]
    json.dumps(described)


def test_files_of_results_are_joined_and_the_later_file_replaces_a_whole_group(tmp_path):
    parts = [
        [measured("train", "S", 8, "float32", "charlm", 1.0), measured("train", "S", 8, "float32", "torch", 1.0)],
        [measured("train", "M", 8, "float32", "charlm", 2.0)],
        [measured("train", "S", 8, "float32", "charlm", 3.0)],  # the first file's speed of torch must not remain
    ]
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, rows in zip(files, parts, strict=True):
        file.write_text(results.as_json(made_up(rows)))
    joined = results.joined(list(map(os.fspath, files)))
    assert [(row.shape, row.implementation, row.chars_per_second) for row in joined.measurements] == [
        ("S", "charlm", 3.0),
        ("M", "charlm", 2.0),
    ]
    files[1].write_text(results.as_json(made_up(parts[1], cores=4)))
    with pytest.raises(UserError, match=r"1\.json: measured on another machine than .*0\.json"):
        results.joined(list(map(os.fspath, files)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a file that scripts/benchmark.py --json has written"),
        ("{", "is not a file that"),
        ('{"machine": {}}', "is not a file that"),
        (results.as_json(made_up([])), "has no measurements"),
        (None, "can't be read: No such file or directory"),
    ],
)
def test_files_without_results_are_refused(tmp_path, content, message):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        results.joined([os.fspath(file)])


@pytest.fixture
def results_file(tmp_path):
    """Results in which charlm is 1.5 times as fast as PyTorch on S, and 3 times on M."""
    rows = []
    for shape, ours in (("S", 150.0), ("M", 300.0)):
        rows.append(measured("train", shape, 8, "float32", "charlm", ours, "gru", [0.9 * ours, ours, 1.1 * ours]))
        rows.append(measured("train", shape, 8, "float32", "torch", 100.0, "gru", [100.0] * 3))
    rows.append(measured("sample", "S", 1, "float32", "torch", 1.0))  # has no ratio, so no panel
    file = tmp_path / "results.json"
    file.write_text(results.as_json(made_up(rows)))
    return file


def test_the_chart_of_a_file_of_results_has_bars_of_the_right_heights(script, tmp_path, results_file):
    charts = [tmp_path / "first.svg", tmp_path / "second.svg"]
    result = script("benchmark", f"--from={results_file}", f"--plot={charts[0]}")
    assert "machine: 2 cores, a processor\n" in result.stdout
    assert re.search(r"train +gru +M +8 +charlm +300 +10% +3\.00", result.stdout)
    assert "train gru, geometric mean over shapes: charlm / torch 2.12\n" in result.stdout
    chart.write(os.fspath(charts[1]), results.joined([os.fspath(results_file)]))
    drawn = charts[0].read_text()
    assert drawn == charts[1].read_text()  # no time and no random names
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: #0072b2', drawn)
    heights = []
    for path in paths:
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        heights.append(max(ys) - min(ys))
    assert heights[1] / heights[0] == pytest.approx(2.0, rel=1e-3)


def test_the_background_of_the_chart_is_white_in_every_theme(tmp_path, results_file):
    file = tmp_path / "chart.png"
    chart.write(os.fspath(file), results.joined([os.fspath(results_file)]))
    pixels = matplotlib.image.imread(file)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()  # red, green, blue and alpha of the corners
    assert (pixels[..., 3] == 1).all()
    with pytest.raises(UserError, match="charlm and another library must be measured on the same task"):
        chart.write(os.fspath(file), made_up([measured("sample", "S", 1, "float32", "torch", 1.0)]))


@pytest.fixture
def peer(monkeypatch):
    """Imports a program of scripts/peers as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "peers")
    return importlib.import_module


SMALL_GRU = {"cell": "gru", "layers": 2, "hidden": 8, "embedding": 5, "batch": 3, "length": 7, "dtype": "float32", "vocab": 11}


def charlm_gru(peer):
    """charlm's functions and parameters, ids (3, 7), and the logits."""
    functions = stack.functions(peer("charlm_peer").config_of(SMALL_GRU), SMALL_GRU["vocab"])
    params = jax.jit(functions.init)(jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    ids_BT = np.random.default_rng(0).integers(0, SMALL_GRU["vocab"], (3, 7)).astype(np.int32)
    batch = Batch(ids_BT, ids_BT, np.ones((3, 7), np.float32), np.ones(3, bool))
    return params, ids_BT, jax.jit(functions.apply)(params, batch, functions.zero_carry(3))[0]


def test_the_gru_of_flax_has_the_parameters_and_the_logits_of_charlms_gru(peer):
    params, ids_BT, logits_BTV = charlm_gru(peer)
    model = peer("flax_peer").Stack("gru", SMALL_GRU["vocab"], 2, 8, 5)
    carry = [jnp.zeros((3, 8))] * 2
    cells = []
    for layer in (params["gru_0"], params["gru_1"]):
        cell = {}
        for number, name in enumerate("rzn"):
            of_gate = slice(8 * number, 8 * (number + 1))
            cell[f"i{name}"] = {"kernel": layer["input_kernel"][:, of_gate], "bias": layer["bias"][of_gate]}
            cell[f"h{name}"] = {"kernel": layer["recurrent_kernel"][:, of_gate]}
        cell["hn"]["bias"] = layer["recurrent_bias"]
        cells.append(cell)
    theirs = {
        "embed": {"embedding": params["embedding"]},
        "cells_0": cells[0],
        "cells_1": cells[1],
        "head": {"kernel": params["head_kernel"], "bias": params["head_bias"]},
    }
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BT, carry)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, theirs)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == stack.parameter_count(params)
    logits, _ = jax.jit(model.apply)({"params": theirs}, ids_BT, carry)
    np.testing.assert_allclose(logits, logits_BTV, rtol=1e-5, atol=1e-6)


def test_every_form_of_pytorchs_gru_has_the_logits_of_charlms_gru(peer):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params, ids_BT, logits_BTV = charlm_gru(peer)
    torch_peer = peer("torch_peer")
    from charlm.models.cells import gru

    model = torch_peer.CharRNN(SMALL_GRU).eval()
    weights = {"embed.weight": params["embedding"], "head.weight": params["head_kernel"].T, "head.bias": params["head_bias"]}
    for layer in range(2):
        arrays = gru.to_torch({name: np.asarray(array) for name, array in params[f"gru_{layer}"].items()})
        weights |= {f"rnn.{name}_l{layer}": array for name, array in arrays.items()}
    model.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in weights.items()})
    # PyTorch has two biases for each of the three gates. charlm has a second bias only for the candidate n.
    assert torch_peer.parameter_count(model) == stack.parameter_count(params) + 2 * 2 * 8
    ids = torch.from_numpy(ids_BT.astype(np.int64))
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_BTV[:, :-1])), ids_BT[:, 1:, None], 2).sum()
    with torch.inference_mode():
        for next_logits in (torch_peer.stepped(model), torch_peer.by_cells(model), torch_peer.packed(model, 3)):
            state = None
            for position in range(7):
                logits_BV, state = next_logits(ids[:, position], state)
                np.testing.assert_allclose(logits_BV.numpy(), logits_BTV[:, position], rtol=1e-4, atol=1e-5)
        for read in (torch_peer.by_window(model, 4), torch_peer.char_by_char(torch_peer.packed(model, 3))):
            assert read(ids, None)[0].item() == pytest.approx(nats, rel=1e-5)


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
        assert found == {}
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
    assert measuring.available(["torch"], pythons) == ({"torch": {}}, {})
    (row,) = measuring.measure("sample", "S", 1, ["torch"], pythons, 1, 0.1, say=lambda line: None)
    assert row.chars_per_second == 1.0
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "tasks", "rounds"),
    [(["charlm"], ["train"], 1), (["charlm", "charlm-bf16", "flax"], ["train:gru", "evaluate", "sample"], 2)],
)
def test_a_small_benchmark_measures_each_implementation(script, tmp_path, ours, tasks, rounds):
    file = tmp_path / "figures.json"
    flags = (
        f"--tasks={','.join(tasks)}",
        "--shapes=S",
        "--sample_batches=2",
        "--lanes=2",
        f"--rounds={rounds}",
        "--seconds=0.1",
        f"--json={file}",
    )
    python = tmp_path / "no python here"
    result = script("benchmark", f"--implementations={','.join(ours)},torch", f"--peer_python=torch={python}", *flags)
    assert f"skipped torch: {python} can't be run" in result.stdout
    written = json.loads(file.read_text())
    assert set(written) == set(results.Results._fields)
    assert written["machine"] == measuring.machine()
    assert set(written["versions"]) == set(ours)
    assert written["versions"]["charlm"]["jax"] == jax.__version__
    rows = written["measurements"]
    others = ours if len(tasks) > 1 else []
    for task, expected in (("train", [*ours, "peak", "peak"]), ("evaluate", others), ("sample", others)):
        assert [row["implementation"] for row in rows if row["task"] == task] == expected
    for row in rows:
        assert set(row) == set(Measurement._fields)
        assert row["cell"] == ("gru" if row["task"] == "train" and len(tasks) > 1 else "lstm")
        assert len(row["rounds"]) == rounds
        assert row["parameters"] > 0 or row["implementation"] == "peak"
        assert (row["shape"], row["batch"]) == ("S", 50 if row["task"] == "train" else 2)
        assert (
            row["dtype"] == ("bfloat16" if row["implementation"] == "charlm-bf16" else "float32")
            or row["implementation"] == "peak"
        )
        assert min(row["rounds"]) > 0
        assert row["chars_per_second"] == pytest.approx(np.median(row["rounds"]))
        assert row["spread"] == pytest.approx(np.ptp(row["rounds"]) / np.median(row["rounds"]))
        assert 50e6 < row["peak_rss_bytes"] < 5e9
    assert result.stdout.count(f"round {rounds} of {rounds} is done") == len(tasks)
    assert f"{rows[0]['chars_per_second']:,.0f}" in result.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--tasks=train:mingru", "--tasks=train:mingru: the cell after the colon must be one of lstm, gru, rnn."),
        ("--tasks=test:gru", "--tasks=test:gru: must be one of train, evaluate, sample."),
        ("--lanes=0", "--lanes=0: must be positive integers."),
        ("--plot=chart.pdf", "--plot=chart.pdf: the name must end in .png or .svg."),
        ("--shapes=XL", "error: --shapes=XL: must be one of S, M, L."),
        ("--tasks=", "--tasks= is empty: give at least one of train, evaluate, sample."),
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
    with pytest.raises(measuring.Failure, match=r"sample lstm S, batch 1: charlm ended with status 1: .*no type"):
        next(rows)
