"""Weights imported from PyTorch and Keras.

One test compares the results of an imported PyTorch model with the formulas in PyTorch's documentation. If PyTorch is
installed, another test compares charlm with PyTorch itself. For Keras, one test compares the logits of an imported model with
an output of Keras 3.15.1.
"""

import json
import os
import re
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.runs import as_flags
from safetensors.numpy import save_file

from charlm.config import load
from charlm.data.batches import Batch
from charlm.data.vocab import UNK
from charlm.errors import UserError
from charlm.exchange import keras as keras_weights
from charlm.exchange import torch as torch_weights
from charlm.exchange import weights as weights_module
from charlm.inference import restore
from charlm.models import objective, stack
from charlm.models.cells import lstm
from charlm.rundir.run import Run
from charlm.training import train
from configs import base

HIDDEN, LAYERS = 8, 2
KERAS_FILE = ROOT / "tests" / "data" / "lstm.keras"


def torch_state(symbols: int, seed=0) -> dict[str, np.ndarray]:
    """Returns random arrays with the names and shapes of the arrays in a PyTorch model's state_dict.

    The model is like the CharRNN of Udacity's notebook: it has one-hot input, two LSTM layers and a linear head.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for layer in range(LAYERS):
        for name, columns in (("weight_ih", symbols if layer == 0 else HIDDEN), ("weight_hh", HIDDEN)):
            state[f"lstm.{name}_l{layer}"] = rng.normal(size=(4 * HIDDEN, columns)).astype(np.float32)
        for name in ("bias_ih", "bias_hh"):
            state[f"lstm.{name}_l{layer}"] = rng.normal(size=4 * HIDDEN).astype(np.float32)
    state["fc.weight"] = rng.normal(size=(symbols, HIDDEN)).astype(np.float32)
    state["fc.bias"] = rng.normal(size=symbols).astype(np.float32)
    return state


def torch_logits(state, ids) -> np.ndarray:
    """Computes logits in float64 with the formulas of nn.LSTM and nn.Linear in PyTorch's documentation."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    state = {name: value.astype(np.float64) for name, value in state.items()}
    carried, logits = [(np.zeros(HIDDEN), np.zeros(HIDDEN)) for _ in range(LAYERS)], []
    for symbol in ids:
        x = np.eye(len(state["fc.bias"]))[symbol]
        for layer in range(LAYERS):
            c, h = carried[layer]
            z = state[f"lstm.weight_ih_l{layer}"] @ x + state[f"lstm.bias_ih_l{layer}"]
            z += state[f"lstm.weight_hh_l{layer}"] @ h + state[f"lstm.bias_hh_l{layer}"]
            i, f, g, o = np.split(z, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            carried[layer] = (c, x)
        logits.append(state["fc.weight"] @ x + state["fc.bias"])
    return np.array(logits)


def config_overrides(corpus_file) -> dict:
    return {
        "corpus.path": corpus_file,
        "model.input": "onehot",
        "model.hidden": HIDDEN,
        "model.layers": LAYERS,
        "batch.size": 4,
        "eval.length": 100,
    }


def import_flags(weights, workdir, corpus_file, *more):
    tiny = f"--config={ROOT / 'configs' / 'tiny.py'}"
    return [f"--weights={weights}", tiny, f"--workdir={workdir}", *as_flags(config_overrides(corpus_file)), *more]


@pytest.mark.slow
def test_an_imported_pytorch_model_gives_the_loss_and_the_sample_of_the_documented_formulas(script, corpus_file, tmp_path):
    text = corpus_file.read_text()
    symbols = sorted(set(text))
    # Udacity's notebook takes the symbols from tuple(set(text)), so the order of the symbols is arbitrary.
    shuffled = list(np.random.default_rng(1).permutation(symbols))
    state = torch_state(len(symbols))
    save_file(state, tmp_path / "rnn.safetensors")
    (tmp_path / "symbols.json").write_text(json.dumps(shuffled))
    flags = import_flags(tmp_path / "rnn.safetensors", tmp_path / "run", corpus_file, f"--symbols={tmp_path / 'symbols.json'}")
    assert f"made {tmp_path / 'run'} from {tmp_path / 'rnn.safetensors'}: " in script("import_torch", *flags).stdout
    validation = text[int(0.9 * len(text)) :]
    ids = [shuffled.index(symbol) for symbol in validation]
    logits = torch_logits(state, ids[:-1])
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    result = json.loads(script("evaluate", f"--workdir={tmp_path / 'run'}", "--checkpoint=latest").stdout.splitlines()[-1])
    assert result["chars"] == len(validation) - 1
    assert result["nats"] == pytest.approx(nats.mean(), rel=1e-5)
    sampled = script("sample", f"--workdir={tmp_path / 'run'}", "--prompt=a", "--length=40", "--temperature=0").stdout
    greedy = ["a"]
    for _ in range(40):
        greedy.append(shuffled[int(torch_logits(state, [shuffled.index(symbol) for symbol in greedy])[-1].argmax())])
    assert sampled == "".join(greedy) + "\n"
    assert "already holds a run" in script.fails("import_torch", *flags)


def test_the_error_message_names_wrong_shapes_and_wrong_symbols(script, corpus_file, tmp_path):
    symbols = sorted(set(corpus_file.read_text()))
    file = tmp_path / "rnn.safetensors"
    save_file(torch_state(len(symbols)), file)
    flags = import_flags(file, tmp_path / "run", corpus_file)
    message = script.fails("import_torch", *flags, "--config.model.hidden=16")
    assert f"has the shape (8, {len(symbols)}) for head_kernel" in message
    assert f"but the config and its corpus make the shape (16, {len(symbols)}): change the config." in message

    def write_run(overrides, symbols_file=None):
        config = load.load(TINY, config_overrides(os.fspath(corpus_file)) | overrides)
        weights_module.write_run(config, os.fspath(tmp_path / "run"), torch_weights.read(os.fspath(file)), symbols_file)

    with pytest.raises(UserError, match="has nothing for lstm_2/bias"):
        write_run({"model.layers": 3})
    for listed, message in (
        (symbols[1:], f"has {len(symbols) - 1} symbols, but {file} has a head for {len(symbols)}: the list must have one"),
        ([*symbols[1:], "the"], "has the symbols ['the']: each symbol must be one character."),
        ([*symbols[1:], "<eos>"], "has the symbol <eos>, which only a model of documents has: set corpus.documents."),
    ):
        (tmp_path / "symbols.json").write_text(json.dumps(listed))
        with pytest.raises(UserError, match=re.escape(message)):
            write_run({}, os.fspath(tmp_path / "symbols.json"))
    with pytest.raises(UserError, match=r"has other symbols than the 256 bytes of vocab.source=bytes: set vocab.source=corpus"):
        write_run({"vocab.source": "bytes"}, os.fspath(tmp_path / "symbols.json"))
    assert not (tmp_path / "run").exists()
    assert (
        "note: without --symbols, charlm assumes that the ids follow the sorted symbols of the corpus."
        in script("import_torch", *flags).stdout
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "none.safetensors is no file"),
        ("damaged.safetensors", b"12345678garbage", "damaged.safetensors can't be read"),
        ("damaged.keras", b"no zip file", "damaged.keras can't be read"),
        ("damaged.weights.h5", b"no HDF5", "damaged.weights.h5 can't be read"),
    ],
)
def test_missing_and_damaged_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    read = torch_weights.read if name.endswith("safetensors") else keras_weights.read
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"fc2.weight": (5, 5), "fc2.bias": (5,)},
            "has fc.bias, fc.weight, fc2.bias, fc2.weight beside its recurrent layers",
        ),
        ({"norm.weight": (8,)}, "has fc.bias, fc.weight, norm.weight "),
        ({"lstm.weight_ih_l0_reverse": (32, 5)}, "lstm.weight_ih_l0_reverse"),
        ({"lstm.weight_hr_l0": (4, 8)}, "lstm.weight_hr_l0"),
        ({"second.weight_ih_l0": (32, 5)}, r"has 2 modules of recurrent layers \(lstm, second\)"),
        (None, "has no recurrent layers"),
    ],
)
def test_pytorch_models_with_unsupported_layers_or_without_recurrent_layers_are_refused(tmp_path, extra, message):
    state = torch_state(5)
    if extra is None:
        state = {name: value for name, value in state.items() if name.startswith("fc")}
    save_file(state | {name: np.zeros(shape, np.float32) for name, shape in (extra or {}).items()}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=message):
        torch_weights.read(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("layers/dense_1/vars/0", "has layers/dense_1/vars/0 beside its recurrent layers"),
        ("layers/layer_normalization/vars/0", "has layers/layer_normalization/vars/0 "),
        (None, "has no recurrent layers"),
    ],
)
def test_keras_models_with_unsupported_layers_or_without_recurrent_layers_are_refused(tmp_path, extra, message):
    with h5py.File(tmp_path / "a.weights.h5", "w") as h5:
        h5["layers/dense/vars/0"], h5["layers/dense/vars/1"] = np.zeros((8, 5)), np.zeros(5)
        h5["layers/dropout/seed_generator/vars/0"] = np.zeros(2)
        if extra:
            h5["layers/lstm/cell/vars/0"] = np.zeros((5, 32))
            h5[extra] = np.zeros((5, 5))
    with pytest.raises(UserError, match=message):
        keras_weights.read(str(tmp_path / "a.weights.h5"))


@pytest.mark.slow
def test_an_imported_run_keeps_its_vocabulary_and_can_be_trained_on(corpus_file, tmp_path, capsys):
    """The symbols of the imported model are in an arbitrary order.

    They include Q, which is not in the corpus. They do not include the line feed, which is in the corpus.
    """
    ours = sorted(set(corpus_file.read_text()))
    theirs = [symbol for symbol in ours if symbol != "\n"] + ["Q", UNK]
    theirs = list(np.random.default_rng(1).permutation(theirs))
    state = torch_state(len(theirs))
    save_file(state, tmp_path / "rnn.safetensors")
    (tmp_path / "symbols.json").write_text(json.dumps(theirs))
    overrides = config_overrides(os.fspath(corpus_file)) | {"train.steps": 1, "sample.length": 0}
    weights = torch_weights.read(os.fspath(tmp_path / "rnn.safetensors"))
    config = load.load(TINY, overrides)
    weights_module.write_run(config, os.fspath(tmp_path / "run"), weights, os.fspath(tmp_path / "symbols.json"))
    assert "['<unk>', 'Q'] only in the run, ['\\n'] only in the corpus." in capsys.readouterr().err
    vocab = Run(tmp_path / "run").vocab()
    assert list(vocab.names) == [UNK, *sorted(set(theirs) - {UNK})]
    imported = final_params(tmp_path / "run")
    for place, symbol in enumerate(vocab.names):
        np.testing.assert_array_equal(imported["head_kernel"][:, place], state["fc.weight"][theirs.index(symbol)])
        np.testing.assert_array_equal(
            imported["lstm_0"]["input_kernel"][place], state["lstm.weight_ih_l0"][:, theirs.index(symbol)]
        )
    with pytest.raises(UserError, match=r"not the vocabulary of this run's corpus: .* begin another run with train.init_from="):
        train.train(load.load(TINY, overrides | {"train.steps": 9}), os.fspath(tmp_path / "run"), extend=True)
    child = load.load(TINY, overrides | {"train.init_from": os.fspath(tmp_path / "run")})
    assert train.train(child, os.fspath(tmp_path / "child")) == 0
    parent = Run(tmp_path / "child").parent()
    assert (parent["step"], parent["new_symbols"], parent["dropped_symbols"]) == (0, ["\n"], [UNK, "Q"])
    begun = restore.load(tmp_path / "child", "0").params
    for place, symbol in enumerate(ours):
        if symbol != "\n":
            np.testing.assert_array_equal(begun["head_bias"][place], state["fc.bias"][theirs.index(symbol)])
    np.testing.assert_array_equal(begun["lstm_1"]["recurrent_kernel"], state["lstm.weight_hh_l1"].T)


@pytest.mark.slow
def test_keras_and_pytorch_weights_give_the_same_loss(script, corpus_file, tmp_path):
    """Imports the same weights from a PyTorch file and from a Keras file. The losses of the two models must be equal.

    The Keras file is also imported with --config.model.dtype=bfloat16. The loss must then differ.
    """
    state = torch_state(len(set(corpus_file.read_text())))
    save_file(state, tmp_path / "rnn.safetensors")
    with h5py.File(tmp_path / "rnn.weights.h5", "w") as h5:
        for layer, name in enumerate(("lstm", "lstm_1")):
            h5[f"layers/{name}/cell/vars/0"] = state[f"lstm.weight_ih_l{layer}"].T
            h5[f"layers/{name}/cell/vars/1"] = state[f"lstm.weight_hh_l{layer}"].T
            h5[f"layers/{name}/cell/vars/2"] = state[f"lstm.bias_ih_l{layer}"] + state[f"lstm.bias_hh_l{layer}"]
        h5["layers/dense/vars/0"], h5["layers/dense/vars/1"] = state["fc.weight"].T, state["fc.bias"]
    bfloat16 = "--config.model.dtype=bfloat16"
    nats = []
    for kind, weights, *more in (
        ("torch", "rnn.safetensors"),
        ("keras", "rnn.weights.h5"),
        ("keras", "rnn.weights.h5", bfloat16),
    ):
        workdir = tmp_path / f"run{len(nats)}"
        script(f"import_{kind}", *import_flags(tmp_path / weights, workdir, corpus_file, *more))
        nats.append(
            json.loads(script("evaluate", f"--workdir={workdir}", "--checkpoint=latest").stdout.splitlines()[-1])["nats"]
        )
    assert nats[1] == pytest.approx(nats[0], rel=1e-6)
    assert nats[2] != pytest.approx(nats[0], rel=1e-6)


def test_pytorch_arrays_without_module_names_are_read(tmp_path):
    named = torch_state(5)
    bare = {name.removeprefix("fc.").removeprefix("lstm."): value for name, value in named.items()}
    save_file(bare, tmp_path / "bare.safetensors")
    params = weights_module.params_of(torch_weights.read(str(tmp_path / "bare.safetensors")), base.get_config())
    np.testing.assert_array_equal(params["head_kernel"], named["fc.weight"].T)
    np.testing.assert_array_equal(params["head_bias"], named["fc.bias"])
    np.testing.assert_array_equal(params["lstm_1"]["recurrent_kernel"], named["lstm.weight_hh_l1"].T)


def test_an_lstm_without_a_head_is_refused(tmp_path):
    state = {name: value for name, value in torch_state(5).items() if name.startswith("lstm")}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="has no head beside its recurrent layers"):
        torch_weights.read(str(tmp_path / "a.safetensors"))


def test_symbols_must_be_unique(tmp_path):
    (tmp_path / "symbols.json").write_text('["a", "b", "a"]')
    with pytest.raises(UserError, match="has 'a' more than once"):
        weights_module.symbols_in(str(tmp_path / "symbols.json"))


def test_symbols_must_be_a_list(tmp_path):
    (tmp_path / "symbols.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no JSON list of symbols"):
        weights_module.symbols_in(str(tmp_path / "symbols.json"))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_keras_arrays_become_the_right_parameters(tmp_path, suffix):
    rng = np.random.default_rng(0)
    wanted = {
        "lstm_0": {"input_kernel": (5, 32), "recurrent_kernel": (8, 32), "bias": (32,)},
        "lstm_1": {"input_kernel": (8, 32), "recurrent_kernel": (8, 32), "bias": (32,)},
    }
    wanted = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), wanted, is_leaf=lambda x: isinstance(x, tuple)
    )
    wanted |= {"head_kernel": rng.normal(size=(8, 5)).astype(np.float32), "head_bias": rng.normal(size=5).astype(np.float32)}
    with h5py.File(tmp_path / "model.weights.h5", "w") as h5:
        for index, name in enumerate(("lstm", "lstm_1")):
            for place, part in enumerate(("input_kernel", "recurrent_kernel", "bias")):
                h5[f"layers/{name}/cell/vars/{place}"] = wanted[f"lstm_{index}"][part]
        h5["layers/dense/vars/0"], h5["layers/dense/vars/1"] = wanted["head_kernel"], wanted["head_bias"]
        h5["optimizer/vars/0"] = np.zeros(())
    file = tmp_path / "model.weights.h5"
    if suffix == ".keras":
        file = tmp_path / "model.keras"
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
            archive.writestr("config.json", "{}")
    params = weights_module.params_of(keras_weights.read(str(file)), base.get_config())
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_import_keras_makes_a_finished_float32_run(script, tmp_path):
    (tmp_path / "text").write_text("abcde" * 50)
    recipe = f"--config={ROOT / 'configs' / 'anna_pytorch.py'}"  # the recipe has bfloat16, but an import must use float32
    shape = {"corpus.path": tmp_path / "text", "model.hidden": 4, "batch.size": 2, "batch.length": 10, "sample.length": 0}
    shape |= {"eval.lanes": 1}
    script("import_keras", f"--weights={KERAS_FILE}", recipe, f"--workdir={tmp_path / 'run'}", *as_flags(shape))
    assert Run(tmp_path / "run").config().model.dtype == "float32"
    assert Run(tmp_path / "run").status()["state"] == "done"


def test_an_imported_keras_file_gives_the_logits_of_keras():
    """Keras 3.15.1 saved tests/data/lstm.keras.

    The model has one-hot inputs of 5 symbols, two LSTM layers of 4 units, and a dense head. Dropout is applied between
    the LSTM layers. All biases are random. `predicted` is the output of the model's `predict` for five ids.
    """
    config = base.get_config()
    config.model.update({"input": "onehot", "hidden": 4, "layers": 2})
    params = weights_module.params_of(keras_weights.read(os.fspath(KERAS_FILE)), config)
    functions = stack.functions(config, 5)
    ids = np.array([[0, 3, 1, 4, 2]], np.int32)
    batch = Batch(ids, ids, np.ones(ids.shape, np.float32), np.ones(1, bool))
    logits, _ = functions.apply(jax.tree.map(jnp.asarray, params), batch, functions.zero_carry(1))
    predicted = [0.1815265715122223, 1.545412540435791, -1.4739539623260498, 1.0513674020767212, -0.30002421140670776]
    np.testing.assert_allclose(logits[0, -1], predicted, atol=1e-6)


def test_logits_and_gradients_equal_those_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed. Run 'pip install torch' in a separate environment")
    torch.manual_seed(0)
    lstm, head = torch.nn.LSTM(13, 24, 2, batch_first=True), torch.nn.Linear(24, 13)
    state = {f"lstm.{k}": v for k, v in lstm.named_parameters()} | {f"fc.{k}": v for k, v in head.state_dict().items()}
    torch.save({"n_hidden": 24, "state_dict": state, "tokens": tuple("abcdefghijklm")}, tmp_path / "rnn.pt")
    weights = torch_weights.read(str(tmp_path / "rnn.pt"))
    assert weights.symbols == list("abcdefghijklm")
    config = base.get_config()
    config.model.update({"input": "onehot", "hidden": 24, "layers": 2})
    params = weights_module.params_of(weights, config)
    functions = stack.functions(config, 13)
    ids = np.random.default_rng(0).integers(0, 13, (4, 51)).astype(np.int32)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((4, 50), np.float32), np.ones(4, bool))

    def loss(params):
        logits, _ = functions.apply(params, batch, functions.zero_carry(4))
        nats, chars = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS)
        return nats / chars, logits

    gradients, logits = jax.grad(loss, has_aux=True)(jax.tree.map(jnp.asarray, params))
    hot = torch.nn.functional.one_hot(torch.tensor(batch.inputs_BT.astype(np.int64)), 13).float()
    expected_logits = head(lstm(hot)[0])
    targets = torch.tensor(batch.targets_BS.astype(np.int64))
    torch.nn.functional.cross_entropy(expected_logits.reshape(-1, 13), targets.reshape(-1)).backward()
    np.testing.assert_allclose(logits, expected_logits.detach().numpy(), atol=1e-5)
    for layer in range(2):
        ours = gradients[f"lstm_{layer}"]
        for name, torch_name in (("input_kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"), ("bias", "bias_ih")):
            np.testing.assert_allclose(ours[name], getattr(lstm, f"{torch_name}_l{layer}").grad.numpy().T, atol=1e-5)
    np.testing.assert_allclose(gradients["head_kernel"], head.weight.grad.numpy().T, atol=1e-5)
    np.testing.assert_allclose(gradients["head_bias"], head.bias.grad.numpy(), atol=1e-5)


def test_layers_without_biases_are_refused(tmp_path):
    state = {name: value for name, value in torch_state(5).items() if not name.startswith("lstm.bias")}
    save_file(state, tmp_path / "a.safetensors")
    weights = torch_weights.read(str(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"a.safetensors has no bias_ih in its recurrent layer 0: .*must have .*biases"):
        weights_module.params_of(weights, base.get_config())


def test_cells_without_a_converter_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lstm, "CELL", lstm.CELL._replace(from_torch=None))
    save_file(torch_state(5), tmp_path / "a.safetensors")
    weights = torch_weights.read(str(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"model\.cell='lstm': layers of PyTorch can't be imported"):
        weights_module.params_of(weights, base.get_config())


def test_models_with_lstm_and_gru_layers_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as h5:
        h5["layers/lstm/cell/vars/0"], h5["layers/gru/cell/vars/0"] = np.zeros((5, 32)), np.zeros((8, 24))
    with pytest.raises(UserError, match=r"has recurrent layers of several kinds \(gru, lstm\)"):
        keras_weights.read(str(tmp_path / "a.weights.h5"))


@pytest.mark.parametrize("encoding", ["embedding", "onehot", "scalar"])
def test_symbols_in_another_order_are_sorted_or_refused(small, corpus_file, tmp_path, encoding):
    """The order of the symbols in a file must not change the imported parameters.

    With model.input=scalar, the importer must refuse a file with unsorted symbols. The input is then the id divided by the
    number of symbols, so no change of the parameters can correct the order.
    """
    symbols = sorted(set(corpus_file.read_text()))
    order = np.random.default_rng(1).permutation(len(symbols))
    config = load.load(TINY, small | {"model.input": encoding, "model.embedding": 6})
    inputs = {"embedding": 6, "onehot": len(symbols), "scalar": 1}[encoding]
    rng = np.random.default_rng(0)
    shapes = {"weight_ih": (32, inputs), "weight_hh": (32, 8), "bias_ih": (32,), "bias_hh": (32,)}
    layer = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    head, bias = rng.normal(size=(8, len(symbols))).astype(np.float32), rng.normal(size=len(symbols)).astype(np.float32)
    table = rng.normal(size=(len(symbols), 6)).astype(np.float32) if encoding == "embedding" else None
    in_order = weights_module.Weights("rnn.pt", torch_weights.LAYOUT, [layer], head, bias, table, symbols)
    weights_module.write_run(config, str(tmp_path / "sorted"), in_order)
    shuffled = in_order._replace(
        layers=[layer | {"weight_ih": layer["weight_ih"][:, order]}] if encoding == "onehot" else [layer],
        head_kernel_HV=head[:, order],
        head_bias_V=bias[order],
        embedding_VE=None if table is None else table[order],
        symbols=[symbols[index] for index in order],
    )
    if encoding == "scalar":
        with pytest.raises(
            UserError, match=r"rnn\.pt has its symbols in an unsorted order: model\.input=scalar needs the sorted order"
        ):
            weights_module.write_run(config, str(tmp_path / "shuffled"), shuffled)
        assert not (tmp_path / "shuffled").exists()
        return
    weights_module.write_run(config, str(tmp_path / "shuffled"), shuffled)
    assert_same(final_params(tmp_path / "shuffled"), final_params(tmp_path / "sorted"))
