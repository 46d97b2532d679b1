"""Tests scripts/check_device.py: its textbook, and that it finds mistakes and keeps its figures if a part hangs."""

import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT
from device import accuracy, parts, results, running, speed, textbook
from device.autodiff import gradients

from charlm.config import keys
from charlm.data.batches import Batch
from charlm.models.cells import rnn

SMALL = accuracy.Sizes(layers=1, hidden=8, embedding=4, rows=2, length=4, drawn=5)
DEVICE = {"platform": "cpu", "kind": "cpu", "count": 1, "is_cuda": False, "versions": {"jaxlib": "0"}}


def figures_of(name, code, seconds=30.0):
    """The outcome of a part whose process runs this code instead of the part."""
    return running.run(name, [sys.executable, "-c", code], seconds, os.environ)


def test_the_textbook_has_every_cell():
    assert set(textbook.CELLS) == set(keys.CELLS)


def network_of(cell, hidden=4, embedding=3, vocab=5):
    """A small network of two layers, with random parameters, and a batch."""
    rng, gates = np.random.default_rng(0), {"rnn": 1, "gru": 3, "mingru": 2, "minlstm": 3}.get(cell, 4)
    shapes = {"embedding": (vocab, embedding), "head_kernel": (hidden, vocab), "head_bias": (vocab,)}
    for layer, inputs in enumerate((embedding, hidden)):
        of_layer = {"input_kernel": (inputs, gates * hidden), "bias": (gates * hidden,)}
        if cell not in ("mingru", "minlstm"):
            of_layer["recurrent_kernel"] = (hidden, gates * hidden // (2 if cell == "slstm" else 1))  # two heads
        if cell == "gru":
            of_layer["recurrent_bias"] = (hidden,)
        if cell == "layernorm_lstm":
            of_layer |= {"input_gain": (16,), "recurrent_gain": (16,), "cell_gain": (hidden,), "cell_bias": (hidden,)}
        if cell == "mogrifier_lstm":
            of_layer |= {"round_kernel_0": (hidden, inputs), "round_bias_0": (inputs,)}
            of_layer |= {"round_kernel_1": (inputs, hidden), "round_bias_1": (hidden,)}
        shapes |= {f"{cell}_{layer}/{name}": shape for name, shape in of_layer.items()}
    ids_BT = rng.integers(0, vocab, (3, 6))
    batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], (rng.uniform(size=(3, 5)) < 0.8).astype(float), np.zeros(3, bool))
    return textbook.Network(cell, 2, hidden), {name: rng.normal(size=shape) for name, shape in shapes.items()}, batch


@pytest.mark.parametrize("cell", textbook.CELLS)
def test_gradients_of_the_textbook_equal_finite_differences(cell):
    network, params, batch = network_of(cell)
    values = textbook.as_values(params)
    loss, _ = network.loss(values, batch, network.zero_state(3))
    rng = np.random.default_rng(1)
    for name, gradient in zip(values, gradients(loss, list(values.values())), strict=True):
        direction = rng.normal(size=gradient.shape)
        up, down = (
            network.loss(textbook.as_values(params | {name: params[name] + by * direction}), batch, network.zero_state(3))[0]
            for by in (1e-6, -1e-6)
        )
        np.testing.assert_allclose((gradient * direction).sum(), (up.array - down.array) / 2e-6, rtol=1e-5, atol=1e-8)


def test_regret_is_how_far_a_drawn_character_is_from_the_likeliest_one():
    network, params, _ = network_of("rnn")
    values, prompt_ids = textbook.as_values(params), np.array([2, 0])
    _, states = network.logits(values, prompt_ids[:1], network.zero_state(1))
    logits_1V, _ = network.logits(values, prompt_ids[1:], states)
    ids = np.argsort(logits_1V.array[0])
    assert network.regret(params, prompt_ids, ids[-1:][None]) == 0
    expected = logits_1V.array[0, ids[-1]] - logits_1V.array[0, ids[1]]
    assert network.regret(params, prompt_ids, ids[1:2][None]) == pytest.approx(expected)


def test_a_right_cell_passes_and_a_cell_that_is_slightly_wrong_does_not(monkeypatch):
    case, window = accuracy.Case("rnn"), rnn.CELL.window
    assert accuracy.wrong(case, accuracy.measured(case, SMALL)) == []

    def wrong_window(params, inputs, state, dtype, noise_keys_B=None):
        outputs_TBH, state = window(params, inputs, state, dtype, noise_keys_B)
        return outputs_TBH, jax.tree.map(lambda leaf: leaf * 1.01, state)  # only a carried state is wrong

    monkeypatch.setattr(rnn, "CELL", rnn.CELL._replace(window=wrong_window))
    lines = accuracy.wrong(case, accuracy.measured(case, SMALL))
    assert [line.split(" differs")[0] for line in lines] == [
        "rnn, kernel xla, float32: loss",
        "rnn, kernel xla, float32: step",
        "rnn, kernel xla, float32: evaluation",
    ]
    assert "rnn, kernel xla, float32: gradient differs by nan, allowed 2.4e-05" in accuracy.wrong(
        case, dict.fromkeys(accuracy.ALLOWED, float("nan"))
    )


def test_cases_have_each_cell_in_each_precision_and_each_kernel_of_a_gpu():
    on_gpu = list(accuracy.cases("gpu", is_cuda=True))
    assert len(on_gpu) == len(set(on_gpu))
    wanted = {(cell, precision) for cell in keys.CELLS for precision in accuracy.ROUNDING}
    assert {(case.cell, case.precision) for case in on_gpu} == wanted
    cudnn = {(case.cell, case.precision, case.input) for case in on_gpu if case.kernel == "cudnn"}
    assert cudnn == {("lstm", "float32", "embedding"), ("lstm", "tf32", "embedding"), ("lstm", "float32", "onehot")}
    on_cpu = list(accuracy.cases("cpu", is_cuda=False))
    assert {case.precision for case in on_cpu} == {"float32", "bfloat16"}
    assert {case.cell for case in on_cpu} == set(keys.CELLS)
    variants = speed.charlm_variants("gpu", is_cuda=True)
    assert len({(shape, speed.words(variant)) for shape, variant in variants}) == len(variants)
    assert variants[:2] == [
        ("L", {"dtype": "float32", "precision": "tf32"}),
        ("L", {"dtype": "float32", "precision": "tf32", "kernel": "cudnn"}),
    ]


@pytest.mark.skipif(not pathlib.Path("/proc/self/environ").exists(), reason="this system has no /proc")
def test_a_part_that_hangs_is_killed_with_its_processes_and_keeps_its_figures(tmp_path):
    file = tmp_path / "alive"
    child = f"""
import pathlib, time
while True:
    pathlib.Path({os.fspath(file)!r}).write_text(str(time.time()))
    time.sleep(0.02)
"""
    code = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=True)
while not pathlib.Path({os.fspath(file)!r}).exists():
    time.sleep(0.01)
print('{{"figure": {{"nats": 1.5}}}}', "a line of a library", sep="\\n", flush=True)
time.sleep(1000)
"""
    for seconds in (2, 8, 32):  # on a busy machine, the processes start slowly
        outcome = figures_of("resume", code, seconds)
        assert outcome.status == "wrong"
        assert outcome.wrong == [f"resume: no end within {seconds} s"]
        assert seconds <= outcome.seconds < seconds + 20
        if outcome.figures:
            break
    assert outcome.figures == [{"nats": 1.5}]
    last = file.read_text()
    time.sleep(0.2)
    assert file.read_text() == last  # the process that the part had started is dead, too


def test_figures_are_kept_if_a_later_part_fails_and_skipped_parts_say_why(tmp_path):
    found = results.Results(tmp_path / "check.json", DEVICE, 8.0)
    found.add(figures_of("accuracy", """print('{"figure": {"loss": 1e-7}}\\n{"left_out": "gru"}')"""))
    found.add(figures_of("torch", """print('{"skipped": "no PyTorch"}')"""))
    found.add(figures_of("speed", """print('{"figure": {"shape": "S"}}', flush=True); raise ValueError("out of memory")"""))
    saved = json.loads((tmp_path / "check.json").read_text())
    assert saved["device"] == DEVICE
    assert {name: part["status"] for name, part in saved["parts"].items()} == {
        "accuracy": "right",
        "torch": "skipped",
        "speed": "wrong",
    }
    assert saved["parts"]["accuracy"]["figures"] == [{"loss": 1e-7}]
    assert saved["parts"]["accuracy"]["left_out"] == ["gru"]
    assert saved["parts"]["torch"]["reason"] == "no PyTorch"
    assert saved["parts"]["speed"]["figures"] == [{"shape": "S"}]
    assert found.wrong() == ["speed: ended with status 1: ValueError: out of memory"]


def test_the_time_that_a_part_does_not_use_is_given_to_the_later_parts():
    assert sum(part.share for part in parts.PARTS.values()) == pytest.approx(1)
    names = list(parts.PARTS)
    assert running.budget(names[0], names[1:], 100.0) == pytest.approx(100 * parts.PARTS[names[0]].share)
    assert running.budget("devices", [], 100.0) == 100
    assert running.budget("packed", ["devices"], 110.0) == pytest.approx(80)  # shares of 8 and 3 of 100
    assert running.budget("devices", [], -1.0) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=accuracy,fast"], f"--only=fast: must be one or several of {', '.join(parts.PARTS)}."),
        (["--minutes=0"], "--minutes=0.0: must be positive."),
        (["--text=none.txt"], "--text=none.txt can't be read: give a text file."),
        (["--out=README.md/folder"], "--out=README.md/folder can't be written (Not a directory): choose another folder."),
    ],
)
def test_wrong_flags_are_refused(script, flags, message):
    assert message in script.fails("check_device", *flags, cwd=ROOT)


@pytest.mark.slow
def test_the_whole_check_passes_on_a_cpu(script, tmp_path):
    result = script("check_device", f"--out={tmp_path}", "--minutes=10")
    saved = json.loads((tmp_path / "check_device.json").read_text())
    assert list(saved["parts"]) == list(parts.PARTS)
    for name, part in saved["parts"].items():
        assert part["status"] in ("right", "skipped"), part
        assert part["figures"] or part["reason"], name
        assert part["left_out"] == [] or name == "speed"
    cases = [(figure["cell"], figure["precision"]) for figure in saved["parts"]["accuracy"]["figures"]]
    assert set(cases) == {(cell, precision) for cell in keys.CELLS for precision in ("float32", "bfloat16")}
    assert saved["parts"]["resume"]["figures"][0]["different"] == []
    assert "Nothing is wrong" in result.stdout
    assert "lstm" in result.stdout
