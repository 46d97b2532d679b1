"""Reads files with the weights of a Keras 3 model, and makes such files.

The model is a stack of recurrent layers, a dense head, and at most one embedding.

Names of the arrays in the HDF5 file:
- `layers/lstm/cell/vars/0`, `…/1` and `…/2` are the kernel, the recurrent kernel and the bias of the first layer.
- `layers/lstm_1/cell/vars/0`, `…/1` and `…/2` are the kernel, the recurrent kernel and the bias of the second layer.
  Layers of other kinds are named `gru`, `gru_1` or `simple_rnn`, `simple_rnn_1`.
- `layers/dense/vars/0` and `…/1` are the kernel (H, V) and the bias (V,) of the head. H is the number of hidden units and V is
  the size of the vocabulary.
- `layers/embedding/vars/0` is the embedding (V, E). E is the size of an embedding vector.
"""

import io
import json
import pathlib
import re
import zipfile
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from charlm.config import load
from charlm.errors import UserError
from charlm.exchange.weights import Layout, Weights, checked, checked_symbols, existing, library
from charlm.exchange.weights import read as read_file
from charlm.models import blocks

LAYOUT = Layout("Keras", "from_keras", "to_keras", input_array="kernel", input_axis=0, has_one_width=False)
ARRAYS = ("kernel", "recurrent_kernel", "bias")  # the names here of the arrays 0, 1 and 2 of a recurrent layer in the file
H5PY = "h5py (pip install h5py)"
KERAS_VERSION = "3.0.0"  # the first version of Keras whose files have the layout that `encoded` uses
EXTRA = "charlm.json"  # a .keras file is a zip archive; its member EXTRA has the symbols and the config, and Keras ignores it


def read(file: str) -> Weights:
    """Reads the weights of a Keras 3 model from a `.weights.h5` or `.keras` file.

    If `encoded` made the file, also reads the symbols in the order of their ids.

    Raises:
      UserError: the file can't be read, or the model is not a stack of recurrent layers of one kind with a dense head.
    """
    path = existing(file)
    h5py = library("h5py", path, H5PY)
    arrays = read_file(path, lambda: _arrays(path, h5py))
    layers: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        if match := re.match(r"layers/([a-z]\w*?)(?:_(\d+))?/cell/vars/([012])$", name):
            layers.setdefault((int(match[2] or 0), match[1]), {})[ARRAYS[int(match[3])]] = value
    kinds = {kind for _, kind in layers}
    if len(kinds) > 1:
        raise UserError(f"{path} has recurrent layers of several kinds ({', '.join(sorted(kinds))}): all must be of one kind.")
    found: dict[str, np.ndarray] = {}
    unknown = []
    for name, value in arrays.items():
        kind = _kind(name, value)
        if kind and kind not in found:
            found[kind] = value
        elif kind or (name.startswith("layers/") and not _is_of(name, kinds) and "/seed_generator/" not in name):
            unknown.append(name)
    embedding_VE = found.pop("embedding", None)
    return checked(path, LAYOUT, [layers[place] for place in sorted(layers)], found, embedding_VE, unknown, _symbols(path))


def _arrays(path: pathlib.Path, h5py: ModuleType) -> dict[str, np.ndarray]:
    source: pathlib.Path | io.BytesIO = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    arrays = {}
    with h5py.File(source, "r") as h5:
        h5.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def _symbols(path: pathlib.Path) -> list[str] | None:
    """The symbols that `encoded` stored in a .keras file. None if the file has no symbols."""
    if path.suffix != ".keras":
        return None
    with zipfile.ZipFile(path) as archive:
        if EXTRA not in archive.namelist():
            return None
        return checked_symbols(read_file(path, lambda: json.loads(archive.read(EXTRA))["symbols"]), f"the vocabulary in {path}")


def encoded(weights: Weights, config: ConfigDict) -> bytes:
    """The content of a `.keras` file with these weights. `read` and `keras.saving.load_model` can read the file.

    The file has an additional member `charlm.json`, a JSON object with the fields `symbols` and `config`.

    Args:
      weights: the weights. They must have symbols.
      config: the config of the run.

    Raises:
      UserError: h5py is not installed.
    """
    h5py = library("h5py", pathlib.Path(weights.file), H5PY, "writing")
    layer_class = blocks.blocks_of(config)[0].cell.keras_layer
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", layer_class).lower()  # Keras's name of a layer: lstm, gru, simple_rnn
    arrays, layers = {}, []
    if weights.embedding_VE is None:
        features = weights.layers[0][LAYOUT.input_array].shape[LAYOUT.input_axis]
        layers.append(_layer("InputLayer", "input_layer", {"batch_shape": [None, None, features], "dtype": "float32"}))
    else:
        layers.append(_layer("InputLayer", "input_layer", {"batch_shape": [None, None], "dtype": "int32"}))
        symbols, features = weights.embedding_VE.shape
        layers.append(_layer("Embedding", "embedding", {"input_dim": symbols, "output_dim": features}))
        arrays["layers/embedding/vars/0"] = weights.embedding_VE
    for index, of_layer in enumerate(weights.layers):
        name = f"{kind}_{index}" if index else kind
        layers.append(_layer(layer_class, name, {"units": len(of_layer["recurrent_kernel"]), "return_sequences": True}))
        arrays |= {f"layers/{name}/cell/vars/{place}": of_layer[array] for place, array in enumerate(ARRAYS)}
    layers.append(_layer("Dense", "dense", {"units": len(weights.head_bias_V)}))
    arrays |= {"layers/dense/vars/0": weights.head_kernel_HV, "layers/dense/vars/1": weights.head_bias_V}
    h5_buffer, buffer = io.BytesIO(), io.BytesIO()
    with h5py.File(h5_buffer, "w") as h5:
        for name, value in arrays.items():
            h5[name] = value
    model = {"module": "keras", "class_name": "Sequential", "config": {"name": "charlm", "layers": layers}}
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": KERAS_VERSION}))
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", h5_buffer.getvalue())
        archive.writestr(EXTRA, json.dumps({"symbols": weights.symbols, "config": load.to_dict(config)}))
    return buffer.getvalue()


def _layer(class_name: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A layer as Keras's config.json describes it. Keras uses its defaults for settings that are not in `config`."""
    return {"module": "keras.layers", "class_name": class_name, "config": {"name": name, **config}}


def _kind(name: str, value: np.ndarray) -> str | None:
    """What an array is: `kernel` or `bias` (both of the head), `embedding`, or None for all other arrays."""
    if re.match(r"layers/dense(_\d+)?/vars/[01]$", name):
        return "bias" if value.ndim == 1 else "kernel"
    return "embedding" if re.match(r"layers/embedding(_\d+)?/vars/0$", name) else None


def _is_of(name: str, kinds: set[str]) -> bool:
    """Whether an array belongs to a recurrent layer.

    Such a layer may also have arrays that are not weights: the random state of dropout and the saved recurrent state.

    Args:
      name: the name of the array in the file.
      kinds: the kinds of the recurrent layers, such as `lstm`.
    """
    return any(re.match(rf"layers/{kind}(_\d+)?/", name) for kind in kinds)
