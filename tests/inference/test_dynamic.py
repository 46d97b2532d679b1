"""Tests of dynamic evaluation and of ensembles.

The expected values come from plain NumPy loops that are written from the formulas. The loops get their gradients from
`jax.grad` of an LSTM that this file writes out step by step. The expected values therefore use no code of the package.
"""

import contextlib
import io
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, final_params
from faults.runs import make_text

import charlm
from charlm.compare import reading
from charlm.config import load
from charlm.data.ids import Encoded
from charlm.errors import Failure, UserError
from charlm.inference import dynamic, dynamic_run, ensemble, evaluate, inputs
from charlm.inference.dynamic import Settings
from charlm.inference.protocol import Protocol
from charlm.models import stack
from charlm.rundir.run import Run
from configs import base

VOCAB, HIDDEN, LAYERS = 11, 6, 2
IDS = np.random.default_rng(0).integers(0, VOCAB, 400).astype(np.uint8)
TRAIN = np.random.default_rng(1).integers(0, VOCAB, 331).astype(np.uint8)
SEGMENT = 7


@pytest.fixture(scope="module")
def model():
    config = base.get_config()
    config.model.update({"hidden": HIDDEN, "layers": LAYERS, "embedding": 5})
    functions = stack.functions(config, VOCAB)
    return functions, jax.jit(functions.init)(jax.random.key(3)), dynamic.Evaluator(functions)


def textbook_nats(params, state, ids):
    """The nats of ids[1:] and the new state, for one text. The LSTM is written out step by step."""
    nats, state = [], list(state)
    for current, following in itertools.pairwise(ids):
        x = params["embedding"][current]
        for layer in range(LAYERS):
            weights, (c, h) = params[f"lstm_{layer}"], state[layer]
            i, f, g, o = jnp.split(x @ weights["input_kernel"] + weights["bias"] + h @ weights["recurrent_kernel"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            x = jax.nn.sigmoid(o) * jnp.tanh(c)
            state[layer] = (c, x)
        nats.append(-jax.nn.log_softmax(x @ params["head_kernel"] + params["head_bias"])[following])
    return jnp.stack(nats), tuple(state)


def textbook_loss(params, state, ids):
    nats, state = textbook_nats(params, state, ids)
    return nats.mean(), (nats, state)


textbook_gradient = jax.jit(jax.grad(textbook_loss, has_aux=True))
ZERO = tuple((jnp.zeros(HIDDEN), jnp.zeros(HIDDEN)) for _ in range(LAYERS))


def numpy_tree(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def textbook_scales(params, ids):
    """The root of the mean squared gradient of each weight, over the segments of a text in a single lane."""
    state, squares, segments = ZERO, jax.tree.map(lambda leaf: np.zeros(leaf.shape), params), 0
    for start in range(0, len(ids) - SEGMENT, SEGMENT):
        gradient, (_, state) = textbook_gradient(params, state, ids[start : start + SEGMENT + 1])
        squares = jax.tree.map(lambda sum_, g: sum_ + g**2, squares, numpy_tree(gradient))
        segments += 1
    return jax.tree.map(lambda sum_: np.sqrt(sum_ / segments), squares)


def textbook_dynamic(params, scales, ids, rate, decay, epsilon):
    """theta += decay d (theta_0 - theta) - rate g / (s + epsilon), with d = min(s / mean(s), 1 / decay)."""
    trained, weights, state, nats = numpy_tree(params), numpy_tree(params), ZERO, []
    mean = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(scales)]).mean()
    for start in range(0, len(ids) - 1, SEGMENT):
        gradient, (of_segment, state) = textbook_gradient(weights, state, ids[start : start + SEGMENT + 1])
        nats.append(np.asarray(of_segment))

        def updated(theta, theta_0, g, s):
            return theta + decay * np.minimum(s / mean, 1 / decay) * (theta_0 - theta) - rate * g / (s + epsilon)

        weights = jax.tree.map(updated, weights, trained, numpy_tree(gradient), scales)
    return np.concatenate(nats)


def test_statistics_and_losses_equal_a_loop_from_the_formulas(model):
    _, params, evaluator = model
    assert dynamic.lanes_of(TRAIN, SEGMENT) == 1
    scales = evaluator.statistics(params, TRAIN, SEGMENT)
    expected = textbook_scales(params, TRAIN)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=2e-4, atol=1e-7), scales, expected)
    # With a high lambda, d of some weights reaches its limit 1 / decay. The last segment of IDS is shorter than SEGMENT.
    for rate, decay, epsilon in ((3e-3, 0.05, 1e-3), (2e-2, 0.9, 1e-4)):
        nats_M = evaluator.nats(params, scales, IDS, Settings(SEGMENT, rate, decay, epsilon))
        assert nats_M.shape == (len(IDS) - 1,)
        wanted_M = textbook_dynamic(params, expected, IDS, rate, decay, epsilon)
        np.testing.assert_allclose(nats_M, wanted_M, rtol=1e-3, atol=1e-4)
        static_M = textbook_nats(params, ZERO, IDS)[0]
        assert np.abs(wanted_M - static_M).max() > 0.05  # learning changes the losses, so the comparison above tests it


def test_without_learning_the_loss_is_the_loss_of_static_evaluation(model):
    functions, params, evaluator = model
    before = jax.tree.map(np.array, params)
    scales = evaluator.statistics(params, TRAIN, SEGMENT)
    nats_M = evaluator.nats(params, scales, IDS, Settings(SEGMENT, 0.0, 0.0, 1e-5))
    protocol = Protocol.of_run(base.get_config(), "stream")._replace(length=SEGMENT)
    nats, chars = evaluate.evaluator(functions)(params, Encoded(IDS), protocol)
    assert chars == len(nats_M)
    assert nats_M.sum(dtype=np.float64) == pytest.approx(nats, rel=1e-7)
    # With lambda alone, the weights stay the trained weights.
    np.testing.assert_array_equal(evaluator.nats(params, scales, IDS, Settings(SEGMENT, 0.0, 0.5, 1e-5)), nats_M)
    evaluator.nats(params, scales, IDS, Settings(SEGMENT, 0.1, 0.5, 1e-5))
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_every_character_is_scored_before_the_weights_learn_from_it(model):
    _, params, evaluator = model
    scales, settings = evaluator.statistics(params, TRAIN, SEGMENT), Settings(SEGMENT, 0.01, 0.01, 1e-4)
    nats_M = evaluator.nats(params, scales, IDS, settings)
    changed = IDS.copy()
    changed[200:] = (changed[200:] + 1) % VOCAB
    changed_M = evaluator.nats(params, scales, changed, settings)
    np.testing.assert_array_equal(changed_M[:199], nats_M[:199])  # nats_M[i] is the loss of IDS[i + 1]
    assert (changed_M[199:] != nats_M[199:]).all()


@pytest.mark.slow
def test_statistics_in_several_lanes_approximate_the_mean_over_single_segments(model, monkeypatch):
    _, params, evaluator = model
    # Most characters are 0, so the gradients of different lanes are similar. Without the random signs, s would be much larger.
    rng, length = np.random.default_rng(2), 4 * 300 * SEGMENT + 1
    ids = np.where(rng.random(length) < 0.8, 0, rng.integers(0, VOCAB, length)).astype(np.uint8)
    assert dynamic.lanes_of(ids, SEGMENT) == 4
    lanes = evaluator.statistics(params, ids, SEGMENT)
    monkeypatch.setattr(dynamic, "MOST_LANES", 1)
    one = evaluator.statistics(params, ids, SEGMENT)
    ratios = np.concatenate([np.ravel(left / right) for left, right in zip(*map(jax.tree.leaves, (lanes, one)), strict=True)])
    assert np.median(ratios) == pytest.approx(1, abs=0.03)
    assert np.percentile(ratios, [1, 99]) == pytest.approx([1, 1], abs=0.25)


def test_a_rate_that_is_too_high_is_a_failure(model):
    _, params, evaluator = model
    scales = evaluator.statistics(params, TRAIN, SEGMENT)
    with pytest.raises(Failure, match=r"diverged at character \d+ of the text .*give a lower --dynamic_learning_rate"):
        evaluator.nats(params, scales, IDS, Settings(SEGMENT, 1e38, 0.0, 1e-30))


def test_defaults_scale_with_the_length_of_a_segment():
    assert Settings.of(segment=5) == (5, 5e-5, 2e-3, 2e-5)
    assert Settings.of() == pytest.approx((20, 2e-4, 8e-3, 2e-5))
    assert len(Settings.of().grid()) == 15
    assert len(Settings.of(decay=0.0).grid()) == 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs. a and b differ in their seed and size. Each other run differs from a in what its name says."""
    folder = tmp_path_factory.mktemp("dynamic")
    texts = {"text": make_text(6000), "other": make_text(6000).replace("e", "é")}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    variants = {
        "a": {"corpus.path": str(folder / "text.txt"), "seed": 1},
        "b": {"corpus.path": str(folder / "text.txt"), "seed": 2, "model.hidden": 12},
        "other": {"corpus.path": str(folder / "other.txt"), "train.steps": 1},
        "split": {"corpus.path": str(folder / "text.txt"), "corpus.split": (0.8, 0.2), "train.steps": 1},
        "lower": {"corpus.path": str(folder / "text.txt"), "corpus.lowercase": True, "train.steps": 1},
        "chunks": {"corpus.path": str(folder / "text.txt"), "batch.framing": "chunks", "train.steps": 1},
        "longer": {"corpus.path": str(folder / "text.txt"), "batch.length": 40, "train.steps": 1},
    }
    small = {"model.hidden": 8, "train.steps": 40, "train.eval_every": 40, "sample.length": 0}
    for name, overrides in variants.items():
        with contextlib.redirect_stdout(io.StringIO()):
            charlm.train(load.load(str(ROOT / TINY), small | overrides), folder / name)
    return folder


def scored_by(script, *flags):
    result = script("evaluate", *flags)
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.mark.slow
def test_evaluate_with_a_grid_reports_what_it_tuned_on(script, runs, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(runs / "a", workdir)
    before = final_params(workdir)
    static, _ = scored_by(script, f"--workdir={workdir}")
    result, stderr = scored_by(script, f"--workdir={workdir}", "--dynamic", "--dynamic_grid", "--dynamic_segment=10")
    assert "gradients of the train split: 5,399 chars" in stderr
    assert "setting 15 of 15: learning rate 0.0008, lambda 0.012" in stderr
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), before)

    # The validation split has 600 characters. The first 120 of them are used for tuning.
    tuning = result["tuning"]
    assert (tuning["split"], tuning["first_char"], tuning["last_char"]) == ("validation", 1, 120)
    assert min(tuning["tried"], key=lambda entry: entry["nats"])["learning_rate"] == tuning["learning_rate"]
    assert result["protocol"]["tuned"].startswith("on the first 120 chars of the validation split: learning rate among 5e-05, ")
    assert result["chars"] == static["chars"] == 599
    assert result["rest"]["chars"] == result["rest"]["bytes"] == 480
    model = charlm.load(workdir)
    settings = Settings.of(10, tuning["learning_rate"], tuning["lambda"])
    nats_M = model.dynamic.nats(
        model.params,
        model.dynamic.statistics(model.params, model.vocab.encode(model.run.splits()["train"]), 10),
        model.vocab.encode(model.run.splits()["validation"]),
        settings,
    )
    assert result["nats"] == pytest.approx(float(nats_M.mean()), rel=1e-5)
    assert result["rest"]["nats"] == pytest.approx(float(nats_M[119:].mean()), rel=1e-5)
    assert min(entry["nats"] for entry in tuning["tried"]) == pytest.approx(float(nats_M[:119].mean()), rel=1e-5)

    # compare ignores the result, although it was written after the result of the static evaluation.
    assert len((workdir / "evaluations.jsonl").read_text().splitlines()) == 2
    problems: list[str] = []
    assert reading._evaluations(workdir / "evaluations.jsonl", problems)["validation"]["nats"] == static["nats"]
    assert not problems
    assert "method" in result["protocol"]
    assert "method" not in static["protocol"]


@pytest.mark.slow
def test_dynamic_evaluation_does_not_depend_on_the_number_of_devices(script, runs, monkeypatch):
    """It runs on one device, because it learns from one segment after another."""
    losses = []
    for number in (1, 8):
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={number}")
        result, _ = scored_by(script, f"--workdir={runs / 'a'}", "--dynamic", "--dynamic_segment=10")
        losses.append(result["nats"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_dynamic_score_of_a_string_in_python(runs):
    model, text = charlm.load(runs / "a"), make_text(500)
    static = model.score(text, framing="stream")
    same = model.score_dynamically(text, segment=9, learning_rate=0.0, decay=0.0)
    assert same["nats"] == pytest.approx(static["nats"], rel=1e-6)
    assert [same[key] for key in ("chars", "bytes", "step")] == [static[key] for key in ("chars", "bytes", "step")]
    assert model.score_dynamically(text, segment=9, learning_rate=1e-3)["nats"] < static["nats"]
    with pytest.raises(UserError, match="the text has 5 chars, but one segment of --dynamic_segment=20 needs at least 21"):
        model.score_dynamically(text[:5])
    with pytest.raises(UserError, match="the train split has 5,400 chars, but one segment of --dynamic_segment=5400 needs"):
        model.score_dynamically(make_text(6000), segment=5400)


def test_the_probability_of_an_ensemble_is_the_mean_of_the_probabilities(script, runs, tmp_path):
    workdirs = [str(runs / "a"), str(runs / "b")]
    text = make_text(300)
    (tmp_path / "text.txt").write_text(text)
    result, _ = scored_by(script, *workdirs, "--ensemble", f"--text={tmp_path / 'text.txt'}")
    surprisals = [charlm.load(workdir).surprisal(text)[1:].astype(np.float64) for workdir in workdirs]
    expected = -np.log(np.mean(np.exp(-np.stack(surprisals)), axis=0)).mean()
    assert result["nats"] == pytest.approx(expected, rel=1e-6)
    assert [member["nats"] for member in result["members"]] == pytest.approx([nats.mean() for nats in surprisals], rel=1e-6)
    assert [member["workdir"] for member in result["members"]] == workdirs
    assert result["protocol"]["method"] == "ensemble of 2 runs, mean of the probabilities"
    assert result["chars"] == result["bytes"] == 299
    for workdir in workdirs:
        assert json.loads((runs / workdir / "evaluations.jsonl").read_text().splitlines()[-1])["members"] == result["members"]


def test_an_ensemble_of_a_model_with_itself_has_the_loss_of_that_model_in_each_framing(runs):
    model = charlm.load(runs / "a")
    scored = inputs.string_to_score(model.run, make_text(400))
    for framing in ("stream", "windows", "chunks"):
        protocol = Protocol.of_run(model.config, framing)
        encoded = scored.encoded(model.vocab)
        alone = model.evaluate(scored, encoded, protocol)
        twice = ensemble.evaluate([model, model], scored, encoded, protocol)
        assert twice["nats"] == pytest.approx(alone["nats"], rel=1e-6)
        assert twice["chars"] == alone["chars"]


@pytest.mark.parametrize(
    ("names", "framing", "length", "uses_split", "message"),
    [
        (["a", "b", "other"], None, None, True, r"/a and .*/other have different vocabularies \(14 and 14 symbols\)"),
        (
            ["a", "split"],
            None,
            None,
            True,
            "/a and .*/split have different corpora or splits: give the text to score with --text.",
        ),
        (["a", "split"], None, None, False, None),
        (["a", "lower"], None, None, True, None),  # the corpus has no upper-case letters
        (["a", "lower"], None, None, False, "/a and .*/lower prepare a text differently: .* need the same corpus.newlines"),
        (
            ["a", "chunks"],
            None,
            None,
            True,
            r"read a text differently \(recurrent state in the first: carried; in the second: zero at every chunk of 32\)",
        ),
        (["a", "chunks"], "stream", None, True, None),
        (
            ["a", "longer"],
            "chunks",
            None,
            True,
            "in the first: zero at every chunk of 32; in the second: zero at every chunk of 40",
        ),
        (["a", "longer"], "chunks", 9, True, None),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(runs, names, framing, length, uses_split, message):
    members = [Run(runs / name) for name in names]
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        ensemble.check(members, framing, length, uses_split)


def test_dynamic_evaluation_needs_a_stream_and_a_grid_needs_a_validation_split(runs):
    config = Run(runs / "chunks").config()
    for framing in (None, "windows", "documents"):
        with pytest.raises(UserError, match=f"but the framing is '{framing or 'chunks'}': add --framing=stream"):
            dynamic_run.check(Protocol.of_run(config, framing), {"train": 9}, False)
    with pytest.raises(UserError, match=r"--dynamic_grid needs a validation split, .*: leave out --dynamic_grid"):
        dynamic_run.check(Protocol.of_run(config, "stream"), {"train": 9}, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segment": 0}, "--dynamic_segment=0: must be 1 or more."),
        ({"learning_rate": -1e-3}, "--dynamic_learning_rate=-0.001: must be 0 or more."),
        ({"learning_rate": math.inf}, "--dynamic_learning_rate=inf: must be 0 or more."),
        ({"decay": -1.0}, "--dynamic_lambda=-1: must be 0 or more."),
        ({"decay": math.nan}, "--dynamic_lambda=nan: must be 0 or more."),
        ({"epsilon": 0.0}, "--dynamic_epsilon=0: must be above 0."),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(UserError) as error:
        Settings.of(**values)
    assert str(error.value) == message
