"""Tests of layers with their own cells and widths, skip connections, RMSNorm, feed-forward blocks and the tied head.

`logits_in_numpy` computes a network with all these options in float64, from the equations of the papers.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.checks import read_rows

from charlm.config import load
from charlm.data.batches import Batch
from charlm.errors import UserError
from charlm.inference import restore, sample
from charlm.models import blocks, stack
from charlm.rundir.run import Run
from charlm.sweeps import sweep
from charlm.training import opening, train
from configs import base

VOCAB = 11
BLOCKS = {"cell": ("lstm", "gru"), "hidden": 6, "embedding": 6, "residual": True, "norm": True, "mlp": 3, "tie": True}
# The cases differ in the first skip connection, in the projection of a tied head, and in the first layer's input.
CASES = {
    "all options": BLOCKS,
    "widths": {"cell": ("gru", "mingru"), "widths": (5, 8), "embedding": 7, "tie": True, "mlp": 2},
    "plain skips": {"cell": "rnn", "hidden": 6, "embedding": 5, "residual": True},
    "onehot": {"cell": ("rnn", "mingru"), "hidden": VOCAB, "input": "onehot", "residual": True, "norm": True, "mlp": 1},
}


def config_of(**keys):
    config = base.get_config()
    config.model.update({"layers": 2, **keys})
    return config


def build(**keys):
    """A network and random parameters. No parameter is zero, so that every parameter has an effect."""
    functions = stack.functions(config_of(**keys), VOCAB)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    rng = np.random.default_rng(3)
    return functions, jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.8, 0.8, leaf.shape), jnp.float32), shapes)


def ids(rows, steps, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, steps)).astype(np.int32)


def batch_of(ids_BT, scored=None):
    targets_BS = np.roll(ids_BT, -1, axis=1)[:, -(scored or ids_BT.shape[1]) :]
    return Batch(ids_BT, targets_BS, np.ones(targets_BS.shape, np.float32), np.zeros(len(ids_BT), bool))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(p, x, state):
    c, h = state
    i, f, g, o = np.split(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"], 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (c, h)


def gru(p, x, h):
    inputs, recurrent = (np.split(each, 3, axis=-1) for each in (x @ p["input_kernel"] + p["bias"], h @ p["recurrent_kernel"]))
    r, z = (sigmoid(inputs[gate] + recurrent[gate]) for gate in (0, 1))
    n = np.tanh(inputs[2] + r * (recurrent[2] + p["recurrent_bias"]))
    h = (1 - z) * n + z * h
    return h, h


def rnn(p, x, h):
    h = np.tanh(x @ p["input_kernel"] + h @ p["recurrent_kernel"] + p["bias"])
    return h, h


def mingru(p, x, h):
    u, v = np.split(x @ p["input_kernel"] + p["bias"], 2, axis=-1)
    h = (1 - sigmoid(u)) * h + sigmoid(u) * np.where(v >= 0, v + 0.5, sigmoid(v))
    return h, h


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def gelu(x):
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def logits_in_numpy(params, ids_BT, keys):
    """The logits (B, T, V) from the zero state."""
    keys = {"input": "embedding", "residual": False, "norm": False, "mlp": 0, "tie": False, "layers": 2, **keys}
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    names = keys["cell"] if isinstance(keys["cell"], tuple) else (keys["cell"],) * keys["layers"]
    widths = keys.get("widths") or (keys["hidden"],) * len(names)
    features = {
        "embedding": params.get("embedding"),
        "onehot": np.eye(VOCAB),
        "scalar": np.arange(VOCAB)[:, None] / VOCAB,
    }[keys["input"]]
    states = [(np.zeros((len(ids_BT), width)),) * 2 if name == "lstm" else np.zeros((len(ids_BT), width))
              for name, width in zip(names, widths, strict=True)]  # fmt: skip
    logits = []
    for ids_B in ids_BT.T:
        x = features[ids_B]
        for index, name in enumerate(names):
            has_vectors = index > 0 or keys["input"] == "embedding"
            into = rms_norm(x, params[f"norm_{index}"]) if keys["norm"] and has_vectors else x
            y, states[index] = globals()[name](params[f"{name}_{index}"], into, states[index])
            x = y + x if keys["residual"] and has_vectors and x.shape == y.shape else y
            if keys["mlp"]:
                mlp = params[f"mlp_{index}"]
                inside = gelu(rms_norm(x, mlp["scale"]) @ mlp["up_kernel"] + mlp["up_bias"])
                x = x + inside @ mlp["down_kernel"] + mlp["down_bias"]
        if keys["norm"]:
            x = rms_norm(x, params["norm_head"])
        if keys["tie"]:
            x = x @ params["head_projection"] if x.shape[-1] != params["embedding"].shape[-1] else x
            logits.append(x @ params["embedding"].T + params["head_bias"])
        else:
            logits.append(x @ params["head_kernel"] + params["head_bias"])
    return np.stack(logits, axis=1)


@pytest.mark.parametrize("case", CASES)
def test_windows_and_single_steps_equal_the_equations_in_float64(case):  # invariants 3 and 10
    functions, params = build(**CASES[case])
    ids_BT, apply = ids(3, 8), jax.jit(functions.apply)
    expected = logits_in_numpy(params, ids_BT, CASES[case])
    first, carry = apply(params, batch_of(ids_BT[:, :4]), functions.zero_carry(3))
    second, end = apply(params, batch_of(ids_BT[:, 4:]), carry)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), expected, atol=2e-5)
    last, _ = apply(params, batch_of(ids_BT, scored=1), functions.zero_carry(3))
    np.testing.assert_allclose(last[:, 0], expected[:, -1], atol=2e-5)
    weights, carry, step = functions.stepwise(params, 3), functions.zero_carry(3), jax.jit(functions.step)
    for position in range(8):
        logits_BV, carry = step(weights, ids_BT[:, position], carry)
        np.testing.assert_allclose(logits_BV, expected[:, position], atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), end, carry)


def test_in_bfloat16_single_steps_equal_a_window_and_results_are_float32():
    functions, params = build(**BLOCKS, dtype="bfloat16")
    ids_BT = ids(1, 6)
    logits, end = jax.jit(functions.apply)(params, batch_of(ids_BT), functions.zero_carry(1))
    exact = logits_in_numpy(params, ids_BT, BLOCKS)
    assert 1e-4 < np.abs(logits - exact).max() < 0.1
    weights, carry, step = functions.stepwise(params, 1), functions.zero_carry(1), jax.jit(functions.step)
    for position in range(6):
        logits_BV, carry = step(weights, ids_BT[:, position], carry)
        np.testing.assert_allclose(logits_BV, logits[:, position], atol=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, end, carry, logits_BV))} == {jnp.dtype(jnp.float32)}


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64(True):
        functions, params = build(**BLOCKS | {"embedding": 5, "widths": (6, 6)}, dtype="float64")
        arguments, structure = jax.tree.flatten(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params))
        batch, carry = batch_of(ids(2, 5)), functions.zero_carry(2)

        def value(arguments):
            logits, _ = functions.apply(structure.unflatten(arguments), batch, carry)
            return (logits * jnp.sin(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape)).sum()

        rng, value_of = np.random.default_rng(2), jax.jit(value)
        for position, gradient in enumerate(jax.jit(jax.grad(value))(arguments)):
            direction = rng.normal(size=gradient.shape)
            up, down = (
                value_of([leaf + by * direction if k == position else leaf for k, leaf in enumerate(arguments)])
                for by in (1e-5, -1e-5)
            )
            np.testing.assert_allclose((gradient * direction).sum(), (up - down) / 2e-5, rtol=1e-6, atol=1e-8)


def test_dropout_acts_on_the_branches_and_not_on_the_skip_connections(monkeypatch):
    """If dropout removes everything, only the embedding is left, which the skip connections carry to the tied head."""
    seen = []

    def dropout(keys_B, x_TBH, rate, per_window):
        seen.append((keys_B, rate, per_window))
        return 0 * x_TBH

    monkeypatch.setattr(stack, "dropout", dropout)
    functions, params = build(**BLOCKS, dropout=0.5)
    ids_BT, noise = ids(3, 4), jax.random.split(jax.random.key(0), 3)

    def apply(params, noise):
        logits, _ = functions.apply(params, batch_of(ids_BT), functions.zero_carry(3), noise)
        return logits, [jax.random.key_data(keys_B) for keys_B, _, _ in seen]

    logits, keys = jax.jit(apply)(params, noise)
    embedding = np.asarray(params["embedding"], np.float64)
    expected = rms_norm(embedding, np.asarray(params["norm_head"])) @ embedding.T + np.asarray(params["head_bias"])
    np.testing.assert_allclose(logits, expected[ids_BT], atol=1e-5)
    # Two layers and two feed-forward blocks have different masks for each of three rows.
    assert len({np.asarray(row).tobytes() for keys_B in keys for row in keys_B}) == 4 * 3
    assert {(rate, per_window) for _, rate, per_window in seen} == {(0.5, False)}


@pytest.mark.parametrize("case", CASES)
def test_operations_count_the_entries_of_the_matrices_that_multiply(case):
    functions, params = build(**CASES[case])
    first = functions.shape.blocks[0].name
    looked_up = {f"{first}/input_kernel"} | (set() if CASES[case].get("tie") else {"embedding"})
    sizes = {name: size for name, shape, size in stack.parameter_table(params) if len(shape) == 2}
    assert functions.operations == sum(size for name, size in sizes.items() if name not in looked_up)


def test_layers_are_named_after_their_own_cells_and_one_name_stands_for_all_layers():
    _, params = build(cell=("lstm", "gru"), hidden=4)
    assert {"lstm_0", "gru_1"} <= params.keys()
    one, several = (
        jax.jit(stack.functions(config_of(init="pytorch", **keys), VOCAB).init)(jax.random.key(5))
        for keys in ({"cell": "rnn", "hidden": 4}, {"cell": ("rnn", "rnn"), "widths": (4, 4)})
    )
    assert {"rnn_0", "rnn_1"} <= one.keys()
    assert_same(one, several)


def test_initial_weights_have_the_bounds_of_their_own_layer():
    keys = BLOCKS | {"widths": (16, 16), "embedding": 64, "cell": "lstm", "init": "pytorch", "forget_bias": 0.0}
    params = jax.jit(stack.functions(config_of(**keys), 90).init)(jax.random.key(0))
    for leaf, inputs in (
        (params["embedding"], 16),  # drawn as the kernel of a head with 16 inputs, so that the logits begin small
        (params["head_projection"], 16),
        (params["mlp_1"]["up_kernel"], 16),
        (params["mlp_1"]["down_kernel"], 3 * 16),
        (params["lstm_1"]["recurrent_kernel"], 16),
    ):
        assert 0.9 / np.sqrt(inputs) < np.abs(leaf).max() <= 1 / np.sqrt(inputs)
    for scale, width in (
        (params["norm_0"], 64),
        (params["norm_1"], 16),
        (params["norm_head"], 16),
        (params["mlp_0"]["scale"], 16),
    ):
        np.testing.assert_array_equal(scale, np.ones(width))
    keys = {"cell": "rnn", "widths": (4, 64), "init": "pytorch"}
    params = jax.jit(stack.functions(config_of(**keys), 90).init)(jax.random.key(0))
    for leaf, width in (
        (params["rnn_0"]["input_kernel"], 4),
        (params["rnn_1"]["input_kernel"], 64),
        (params["head_kernel"], 64),
    ):
        assert 0.9 / np.sqrt(width) < np.abs(leaf).max() <= 1 / np.sqrt(width)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cell": '("lstm","gri")'}, "model.cell='gri': must be one of lstm, rnn, gru, .*"),
        ({"cell": ("lstm", 3)}, "model.cell=3: must be a string."),
        ({"cell": "()"}, r"model.cell=\(\): a tuple must have one value for each layer."),
        ({"cell": (("lstm",), "gru")}, r"model.cell=\(\('lstm',\), 'gru'\): a tuple must have one value for each layer."),
        ({"cell": "(lstm,gru)"}, r"model.cell='\(lstm,gru\)': must be a string, or a tuple of strings, such as .*"),
        (
            {"cell": '("lstm","gru","rnn")'},
            r"model.cell=\('lstm', 'gru', 'rnn'\): names the cells of 3 layers, but model.layers=2: set model.layers=3.",
        ),
        ({"widths": "8"}, r"model.widths=\(8,\): has the widths of 1 layer, but model.layers=2: set model.layers=1."),
        ({"widths": "(8,0)"}, r"model.widths=\(8, 0\): must be a tuple of positive integers, .*"),
        ({"widths": (8, 2.5)}, r"model.widths=\(8, 2.5\): must be a tuple of positive integers, .*"),
        ({"widths": (8, True)}, r"model.widths=\(8, True\): must be a tuple of positive integers, .*"),
        (
            {"widths": "(8,16)", "residual": "true"},
            r"model.residual=True: needs layers of equal width, but model.widths=\(8, 16\).",
        ),
        ({"tie": "true", "input": "onehot"}, "model.tie=True: needs model.input=embedding, but model.input=onehot."),
        ({"mlp": "-1"}, "model.mlp=-1: must be 0 or more."),
        ({"mlp": "1.5"}, "model.mlp='1.5': must be an integer."),
        ({"residual": "2"}, "model.residual='2': must be true or false."),
    ],
)
def test_layers_that_do_not_fit_together_are_refused_in_one_sentence(overrides, message):
    overrides = {"model.layers": 2} | {f"model.{name}": value for name, value in overrides.items()}
    with pytest.raises(UserError, match=f"^{message}$"):
        load.load(TINY, overrides)


def test_a_wrong_list_of_cells_ends_training_with_status_2_before_anything_is_written(script, tmp_path):
    message = script.fails("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.model.cell=('lstm','gri')")
    assert "model.cell='gri': must be one of lstm, " in message
    assert not list(tmp_path.iterdir())


def test_heads_of_an_slstm_must_divide_the_width_of_its_own_layer():
    keys = {"cell": ("lstm", "slstm"), "slstm_heads": 4}
    stack.functions(config_of(**keys, widths=(6, 8)), VOCAB)
    with pytest.raises(UserError, match=r"model.slstm_heads=4: must divide the number of units of each layer, 6"):
        stack.functions(config_of(**keys, widths=(8, 6)), VOCAB)


def test_keys_without_effect_are_named():
    assert stack.unread_keys(config_of(cell=("gru", "lstm"), forget_bias=2.0)) == []  # the second layer reads the key
    assert stack.unread_keys(config_of(cell=("gru", "rnn"), forget_bias=2.0)) == ["model.forget_bias"]
    assert blocks.without_effect(config_of(residual=True)) == []
    assert blocks.without_effect(config_of(residual=True, layers=1, embedding=256)) == []
    (sentence,) = blocks.without_effect(config_of(residual=True, layers=1, embedding=3))
    assert sentence.startswith("model.residual has no effect: ")
    (sentence,) = blocks.without_effect(config_of(widths=(8, 8), hidden=8))
    assert sentence.startswith("model.hidden has no effect: ")


def test_sweeps_accept_lists_and_their_flags_make_the_same_config(tmp_path, corpus_file):
    text = f"""
from configs import base
from charlm.sweeps.sweep import product
def get_config():
    config = base.get_config()
    config.corpus.path = {str(corpus_file)!r}
    config.model.cell = ["gru", "lstm"]
    return config
def sweep():
    return product({{"model.cell": ["lstm", ("lstm", "gru"), ["gru", "gru"]], "model.widths": [(), (8, 16)]}})
"""
    (tmp_path / "swept.py").write_text(text)
    assert load.load(str(tmp_path / "swept.py")).model.cell == ("gru", "lstm")
    trials = sweep.load_trials(str(tmp_path / "swept.py"), {})
    assert [trial.config.model.cell for trial in trials[::2]] == ["lstm", ("lstm", "gru"), ("gru", "gru")]
    assert trials[3].name == "cell=lstm+gru,widths=8+16"
    assert len({trial.name for trial in trials}) == 6
    for trial in trials:
        (config_flag, *flags) = sweep.train_flags(trial.config)
        overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
        assert load.to_dict(load.load(config_flag.removeprefix("--config="), overrides)) == load.to_dict(trial.config)
        assert load.flatten(load.from_dict(load.to_dict(trial.config))) == load.flatten(trial.config)


@pytest.fixture
def all_options(small, monkeypatch):
    """The config of a small run with all options. The embedding has another width than the layers."""
    monkeypatch.chdir(ROOT)
    options = {"cell": '("lstm","mingru")', "layers": 2, "widths": "(8,8)", "embedding": 6, "mlp": 2, "dropout": 0.2}
    options |= {"residual": True, "norm": True, "tie": True}
    return load.load(TINY, small | {f"model.{name}": value for name, value in options.items()})


def test_describe_names_and_draws_all_parts(all_options, tmp_path, capsys):
    assert opening.describe_only(all_options, str(tmp_path / "net.dot"), 2) == 0
    out, err = capsys.readouterr()
    model = "2 layers (LSTM of 8, minGRU of 8), 1 skip connection, RMSNorm, feed-forward blocks, embedding input, tied head"
    assert f"model: {model}, " in out
    assert "  mlp_1/down_kernel " in out
    assert "note: model.hidden has no effect: model.widths sets the number of units of each layer." in err
    drawing = (tmp_path / "net.dot").read_text()
    for part in ("LSTM 1\\n8", "minGRU 2\\n8", "RMSNorm", "feed-forward\\n16", "softmax\\ntied to the embedding"):
        assert f'label="{part}"' in drawing
    assert "mlp_sum_1_1 -> sum_2_1 [style=dashed]" in drawing
    assert "input_1 -> sum_1_1" not in drawing  # the first layer has no skip connection


@pytest.mark.slow
def test_a_network_with_all_options_resumes_bit_by_bit_and_samples(all_options, tmp_path, monkeypatch):  # invariant 1
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    assert train.train(all_options, uninterrupted) == 0
    original = train.steps_at_once

    def killed(setup, step):
        if step >= 4:
            raise KeyboardInterrupt
        return original(setup, step)

    with monkeypatch.context() as patch:
        patch.setattr(train, "steps_at_once", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(all_options, interrupted)
    assert train.train(Run(interrupted).config(), interrupted) == 0
    assert read_rows(interrupted) == read_rows(uninterrupted)
    params = final_params(uninterrupted)
    assert_same(final_params(interrupted), params)

    # Greedy sampling draws the most probable characters according to the equations in float64.
    trained = restore.load(uninterrupted, "latest")
    prompt = np.array([3, 5])
    drawn_N = np.concatenate(
        [*sample.sampler(trained.functions, trained.vocab)(params, prompt, 1, 5, 0.0, jax.random.key(0))], 1
    )
    keys = {name: trained.config.model[name] for name in ("cell", "widths", "mlp", "residual", "norm", "tie")}
    ids_N = [*prompt]
    for _ in range(5):
        ids_N.append(logits_in_numpy(params, np.array([ids_N]), keys)[0, -1].argmax())
    assert drawn_N[0].tolist() == ids_N[2:]
