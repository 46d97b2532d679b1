"""Tests of the program export, which writes the weights of a run to files for PyTorch, Keras and NumPy.

One test reads every format back with charlm's own import. The parameters must then be equal bit for bit. Other tests run the
lines of Python in scripts/README.md that load a file, and compare the logits of the loaded model with the logits of charlm.
Some tests need neither PyTorch nor Keras: NumPy computes the formulas from the documentation of PyTorch.
"""

import importlib
import io
import json
import os
import re
import sys
import zipfile

import h5py
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import ROOT, TINY, assert_same, final_params

import charlm
from charlm.config import load
from charlm.data.batches import Batch
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.exchange import keras as keras_weights
from charlm.exchange import torch as torch_weights
from charlm.exchange import weights as weights_module
from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from configs import base

KERAS_FILE = ROOT / "tests" / "data" / "lstm.keras"
TEXT = "abc<é\n中>" * 200
FORMATS = {"safetensors": "safetensors", "npz": "npz", "torch": "pt", "keras": "keras"}


@pytest.fixture(scope="module", params=["embedding", "onehot", "scalar"])
def run(request, tmp_path_factory):
    """An imported run with two layers of 6 units and random weights. No bias is zero. One bias is -0.0."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "text").write_text(TEXT, encoding="utf-8")
    overrides = {"corpus.path": os.fspath(folder / "text"), "model.input": request.param, "model.embedding": 5}
    config = load.load(TINY, overrides | {"model.hidden": 6, "model.layers": 2})
    vocab = Vocab.of(TEXT, unknown=False)
    abstract = jax.eval_shape(stack.functions(config, len(vocab)).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)
    params["lstm_0"]["bias"][3] = -0.0
    arrays = weights_module.of_params(params, config, vocab, torch_weights.LAYOUT, "random")
    weights_module.write_run(config, os.fspath(folder / "run"), arrays)
    assert_bits_equal(final_params(folder / "run"), params)
    return folder / "run"


def assert_bits_equal(left, right):
    assert_same(left, right)
    assert_same(*(jax.tree.map(np.signbit, params) for params in (left, right)))  # needed because 0.0 == -0.0


@pytest.fixture
def export(monkeypatch, capsys):
    """Runs the program export in this process. Returns its output."""
    from absl import flags

    from charlm.programs import export

    def run_export(**values):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["export", *(f"--{name}={value}" for name, value in values.items())])
        export.main({})
        return capsys.readouterr().out

    return run_export


def logits_of(run) -> tuple[np.ndarray, np.ndarray]:
    """Ids of a text, and charlm's logits after each character."""
    model = charlm.load(run, "latest")
    text = TEXT[3:60]
    return model.vocab.encode(text).astype(np.int64), model.logits(text)


def documented_logits(state, ids, features) -> np.ndarray:
    """Computes the logits in float64 with the formulas of nn.LSTM and nn.Linear in PyTorch's documentation.

    Args:
      state: the state_dict.
      ids: the ids of a text.
      features: an array of shape (V, I). Row v is the input of the first layer for the id v.
    """
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    state = {name: value.astype(np.float64) for name, value in state.items()}
    inputs = features[ids].astype(np.float64)
    for layer in range(2):
        weight_ih, weight_hh = state[f"rnn.weight_ih_l{layer}"], state[f"rnn.weight_hh_l{layer}"]
        bias, h, c, outputs = state[f"rnn.bias_ih_l{layer}"] + state[f"rnn.bias_hh_l{layer}"], np.zeros(6), np.zeros(6), []
        for x in inputs:
            i, f, g, o = np.split(weight_ih @ x + weight_hh @ h + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        inputs = np.array(outputs)
    return inputs @ state["head.weight"].T + state["head.bias"]


def features_of(run, state) -> np.ndarray:
    size = len(Run(run).vocab())
    match Run(run).config().model.input:
        case "embedding":
            return state["embedding.weight"]
        case "onehot":
            return np.eye(size)
    return np.arange(size)[:, None] / size


def lines_in_readme(name: str) -> str:
    """The lines of Python in scripts/README.md that contain `name`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "scripts" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if name in block)
    return block


def first_line(name: str) -> str:
    """The line of Python in README.md that loads the weights from the file `name`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (line,) = (line for block in blocks for line in block.splitlines() if f'"{name}"' in line)
    return line


@pytest.mark.parametrize("kind", FORMATS)
def test_export_and_import_change_no_bit(run, export, tmp_path, kind):
    if kind == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    file = tmp_path / f"model.{FORMATS[kind]}"
    assert export(workdir=run, format=kind, output=file, checkpoint="latest").startswith(f"wrote {file}: step 0 of {run}, ")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    weights = (keras_weights if kind == "keras" else torch_weights).read(os.fspath(file))
    assert weights.symbols == sorted(set(TEXT))
    config = Run(run).config()
    weights_module.write_run(config, os.fspath(tmp_path / "again"), weights)
    assert_bits_equal(final_params(run), final_params(tmp_path / "again"))


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_the_documented_formulas_of_pytorch_give_the_logits_of_charlm(run, export, monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    export(workdir=run, format=kind, output=f"first.{kind}", checkpoint="latest")
    names = {"np": np, "json": json, "safetensors": safetensors}
    exec(lines_in_readme(f"first.{kind}").replace('"pt")', '"np")'), names)
    ids, logits = logits_of(run)
    np.testing.assert_allclose(documented_logits(names["state"], ids, features_of(run, names["state"])), logits, atol=1e-5)
    assert names["symbols"] == sorted(set(TEXT))
    assert names["config"] == load.to_dict(Run(run).config())
    if kind == "npz":
        state = names["state"]
        exec(first_line("first.npz"), names)
        assert_same({name: names["state"][name] for name in state}, state)


def test_the_documented_formulas_of_keras_give_the_logits_of_charlm(run, export, tmp_path):
    """Keras multiplies an input by a kernel from the right, so each kernel is the transposed weight matrix of PyTorch."""
    file = tmp_path / "first.keras"
    export(workdir=run, format="keras", output=file, checkpoint="latest")
    state = {}
    with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as h5:
        for layer, name in enumerate(("lstm", "lstm_1")):
            variables = h5[f"layers/{name}/cell/vars"]
            state[f"rnn.weight_ih_l{layer}"], state[f"rnn.weight_hh_l{layer}"] = variables["0"][()].T, variables["1"][()].T
            state[f"rnn.bias_ih_l{layer}"], state[f"rnn.bias_hh_l{layer}"] = variables["2"][()], np.zeros(1)
        state["head.weight"], state["head.bias"] = h5["layers/dense/vars/0"][()].T, h5["layers/dense/vars/1"][()]
        if "embedding" in h5["layers"]:
            state["embedding.weight"] = h5["layers/embedding/vars/0"][()]
        extra = json.loads(archive.read("charlm.json"))
    ids, logits = logits_of(run)
    np.testing.assert_allclose(documented_logits(state, ids, features_of(run, state)), logits, atol=1e-5)
    assert extra == {"symbols": sorted(set(TEXT)), "config": load.to_dict(Run(run).config())}


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_lines_in_the_readme_make_a_pytorch_model_with_the_logits_of_charlm(run, export, monkeypatch, tmp_path, kind):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    export(workdir=run, format=kind, output=f"first.{FORMATS[kind]}", checkpoint="latest")
    ids, logits = logits_of(run)
    names = {"torch": torch, "json": json, "safetensors": safetensors, "ids": torch.tensor(ids)[None]}
    importlib.import_module("safetensors.torch")
    exec(first_line(f"first.{FORMATS[kind]}"), names)
    short = names["state"]
    exec(lines_in_readme(f"first.{FORMATS[kind]}"), names)
    assert_same(*({name: value.numpy() for name, value in state.items()} for state in (short, names["state"])))
    if "embedding.weight" in names["state"]:
        exec(lines_in_readme("load_state_dict"), names)
        result = names["logits"][0]
    else:
        features = torch.tensor(features_of(run, names["state"]), dtype=torch.float32)
        rnn, head = torch.nn.LSTM(features.shape[1], 6, 2, batch_first=True), torch.nn.Linear(6, len(names["symbols"]))
        torch.nn.ModuleDict({"rnn": rnn, "head": head}).load_state_dict(names["state"])
        result = head(rnn(features[names["ids"]])[0])[0]
    np.testing.assert_allclose(result.detach().numpy(), logits, atol=1e-5)


def test_the_lines_in_the_readme_make_a_keras_model_with_the_logits_of_charlm(run, export, monkeypatch, tmp_path):
    if "keras" not in sys.modules:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    monkeypatch.chdir(tmp_path)
    export(workdir=run, format="keras", output="first.keras", checkpoint="latest")
    ids, logits = logits_of(run)
    names = {"keras": keras, "json": json, "zipfile": zipfile}
    with jax.numpy_rank_promotion("allow"):
        exec(first_line("first.keras"), names)
        short = names["model"]
        exec(lines_in_readme("first.keras"), names)
        features = features_of(run, {"embedding.weight": None})
        inputs = ids[None] if features is None else features[ids].astype(np.float32)[None]
        result = names["model"].predict(inputs, verbose=0)
        np.testing.assert_array_equal(short.predict(inputs, verbose=0), result)
    np.testing.assert_allclose(result[0], logits, atol=1e-5)
    assert names["symbols"] == sorted(set(TEXT))


def test_an_exported_keras_file_is_like_the_file_that_keras_saves(tmp_path):
    """Keras 3.15.1 saved tests/data/lstm.keras.

    For each exported layer, every setting in charlm's config.json must have the same value in the config.json of Keras. The
    config.json of Keras may have more settings.
    """
    config = base.get_config()
    config.model.update({"input": "onehot", "hidden": 4, "layers": 2})
    weights = keras_weights.read(os.fspath(KERAS_FILE))._replace(file="model.keras", symbols=list("abcde"))
    (tmp_path / "model.keras").write_bytes(keras_weights.encoded(weights, config))
    (ours, our_arrays), (saved, saved_arrays) = map(opened_keras, (tmp_path / "model.keras", KERAS_FILE))
    assert_same(our_arrays, {name: value for name, value in saved_arrays.items() if name.startswith("layers/")})
    assert (ours["module"], ours["class_name"]) == (saved["module"], saved["class_name"])
    saved_layers = [layer for layer in saved["config"]["layers"] if layer["class_name"] != "Dropout"]
    for layer, saved_layer in zip(ours["config"]["layers"], saved_layers, strict=True):
        assert (layer["module"], layer["class_name"]) == (saved_layer["module"], saved_layer["class_name"])
        shared = {name: saved_layer["config"][name] for name in layer["config"]}
        assert layer["config"] == shared


def opened_keras(file) -> tuple[dict, dict[str, np.ndarray]]:
    """The config.json of a .keras file, and the arrays of its weights."""
    arrays = {}
    with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as h5:
        h5.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return json.loads(archive.read("config.json")), arrays


def test_a_pickle_in_an_npz_file_is_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", **{"head.weight": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match=r"a\.npz can't be read \(ValueError: Object arrays cannot be loaded"):
        torch_weights.read(os.fspath(tmp_path / "a.npz"))


def test_wrong_flags_are_refused_before_anything_is_written(run, export, tmp_path):
    for values, message in (
        ({"format": "keras", "output": "a.h5"}, r"--output=.*a\.h5: the name must end in \.keras"),
        ({"format": "torch", "output": "a.npz"}, r"must end in \.pt or \.pth"),
        ({"format": "npz", "output": "missing/a.npz"}, r"a\.npz can't be written: give a file in a folder that exists"),
        ({"format": "npz", "output": "a.npz", "checkpoint": "7"}, "--checkpoint=7: no such checkpoint"),
        ({"format": "npz", "output": "a.npz", "checkpoint": "x"}, "--checkpoint=x: must be best, latest or a step"),
        ({"format": "npz", "output": "a.npz", "workdir": tmp_path}, "must be the directory of a run"),
    ):
        flags = {"workdir": run, "checkpoint": "latest"} | values
        with pytest.raises(UserError, match=message):
            export(**flags | {"output": tmp_path / values["output"]})
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_installed_is_named(run, export, monkeypatch, tmp_path):
    for module, kind in (("torch", "torch"), ("safetensors.numpy", "safetensors"), ("h5py", "keras")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"writing model\.{FORMATS[kind]} needs .*pip install {module.split('.')[0]}"):
            export(workdir=run, format=kind, output=tmp_path / f"model.{FORMATS[kind]}", checkpoint="latest")
    assert list(tmp_path.iterdir()) == []


def test_a_cell_without_a_converter_is_refused(run, export, monkeypatch, tmp_path):
    from charlm.models.cells import lstm

    monkeypatch.setattr(lstm, "CELL", lstm.CELL._replace(to_keras=None))
    with pytest.raises(UserError, match=r"model\.cell='lstm': layers of Keras can't be exported"):
        export(workdir=run, format="keras", output=tmp_path / "a.keras", checkpoint="latest")


def network(**keys):
    """A config with two layers of 6 units, a vocabulary, and random parameters."""
    config = base.get_config()
    config.model.update({"hidden": 6, "layers": 2, "embedding": 5, **keys})
    vocab = Vocab.of(TEXT, unknown=False)
    functions, rng = stack.functions(config, len(vocab)), np.random.default_rng(0)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    return config, vocab, functions, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("embedding", [5, 6])
def test_a_tied_head_is_exported_as_an_ordinary_head(embedding):
    config, vocab, functions, params = network(tie=True, embedding=embedding)
    weights = weights_module.of_params(params, config, vocab, torch_weights.LAYOUT, "a.npz")
    state = dict(np.load(io.BytesIO(torch_weights.encoded(weights, config))))
    ids_T = np.arange(len(vocab), dtype=np.int32)
    batch = Batch(ids_T[None], ids_T[None], np.ones((1, len(ids_T)), np.float32), np.ones(1, bool))
    logits, _ = functions.apply(params, batch, functions.zero_carry(1))
    state = {name: value for name, value in state.items() if value.dtype == np.float32}
    np.testing.assert_allclose(documented_logits(state, ids_T, state["embedding.weight"]), logits[0], atol=2e-5)
    with pytest.raises(UserError, match=r"^model\.tie=True: a\.npz has a head of its own: set model\.tie=False\.$"):
        weights_module.params_of(weights, config)
    config.model.tie = False
    assert weights_module.params_of(weights, config)["head_kernel"].shape == (6, len(vocab))


def test_keras_holds_layers_of_different_widths(tmp_path):
    config, vocab, _, params = network(widths=(6, 3))
    weights = weights_module.of_params(params, config, vocab, keras_weights.LAYOUT, "model.keras")
    (tmp_path / "model.keras").write_bytes(keras_weights.encoded(weights, config))
    assert_bits_equal(weights_module.params_of(keras_weights.read(os.fspath(tmp_path / "model.keras")), config), params)
    model, _ = opened_keras(tmp_path / "model.keras")
    assert [layer["config"].get("units") for layer in model["config"]["layers"]] == [None, None, 6, 3, len(vocab)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"residual": True}, r"model\.residual=True: layers of {0} can't be {1}, since {0} has no such stack of layers\."),
        ({"norm": True}, r"model\.norm=True: layers of {0} can't be {1}, since {0} has no such stack of layers\."),
        ({"mlp": 2}, r"model\.mlp=2: layers of {0} can't be {1}, since {0} has no such stack of layers\."),
        (
            {"cell": ("lstm", "gru")},
            r"model\.cell=\('lstm', 'gru'\): layers of {0} can't be {1}, since all layers in a file must have the same cell\.",
        ),
        ({"widths": (6, 3)}, r"model\.widths=\(6, 3\): layers of {0} can't be {1}, since {0} has one width for all layers\."),
    ],
)
def test_layers_that_a_framework_can_not_hold_are_refused(keys, message):
    config, vocab, _, params = network(**keys)
    plain_config, _, _, plain = network()
    for layout in (torch_weights.LAYOUT, keras_weights.LAYOUT):
        if "widths" in keys and layout is keras_weights.LAYOUT:
            continue
        with pytest.raises(UserError, match=f"^{message.format(layout.framework, 'exported')}$"):
            weights_module.of_params(params, config, vocab, layout, "file")
        weights = weights_module.of_params(plain, plain_config, vocab, layout, "file")
        with pytest.raises(UserError, match=f"^{message.format(layout.framework, 'imported')}$"):
            weights_module.params_of(weights, config)


@pytest.mark.parametrize("symbols", ['"abc"', "[1, 2]", '["a", "a"]', "[", '{"a": 1}'])
def test_a_wrong_vocabulary_in_a_file_is_refused(run, export, tmp_path, symbols):
    export(workdir=run, format="npz", output=tmp_path / "a.npz", checkpoint="latest")
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "wrong.npz", **arrays | {"symbols": np.array(symbols)})
    with pytest.raises(UserError, match=r"wrong\.npz"):
        torch_weights.read(os.fspath(tmp_path / "wrong.npz"))
    with zipfile.ZipFile(tmp_path / "wrong.keras", "w") as archive:
        archive.writestr("model.weights.h5", zipfile.ZipFile(KERAS_FILE).read("model.weights.h5"))
        archive.writestr("charlm.json", f'{{"symbols": {symbols}}}')
    with pytest.raises(UserError, match=r"wrong\.keras"):
        keras_weights.read(os.fspath(tmp_path / "wrong.keras"))


def test_the_exported_checkpoint_is_the_requested_checkpoint(export, corpus_file, tmp_path):
    overrides = {"corpus.path": os.fspath(corpus_file), "model.hidden": 8, "train.steps": 4, "train.eval_every": 2}
    workdir, heads = tmp_path / "run", []
    charlm.train(load.load(TINY, overrides | {"sample.length": 0, "cache_dir": ""}), workdir)
    checkpoints, functions = Checkpoints(Run(workdir).checkpoints, read_only=True), charlm.load(workdir).trained.functions
    for step in (2, 4):
        file = tmp_path / f"{step}.safetensors"
        assert f"step {step} of " in export(workdir=workdir, format="safetensors", output=file, checkpoint=step)
        heads.append(safetensors.numpy.load_file(file)["head.weight"])
        params = checkpoints.restore_params(step, jax.eval_shape(functions.init, jax.random.key(0)))
        np.testing.assert_array_equal(heads[-1].T, params["head_kernel"])
    assert not np.array_equal(*heads)
