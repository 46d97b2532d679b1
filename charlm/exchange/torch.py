"""Reads files with the weights of a PyTorch model, and makes such files.

The model has one recurrent module, such as nn.LSTM, a linear head, and at most one embedding.

The recurrent module must contain all recurrent layers. V is the size of the vocabulary, H is the size of a layer, and E is the
size of an embedding vector. The reader finds the arrays by their names in the state_dict:
- `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0` and `bias_hh_l0` are the arrays of layer 0.
- `weight` (V, H) and `bias` (V,) are the arrays of the head.
- `weight` (V, E) is the embedding, if the name of its module is `encoder` or begins with `emb`.
In a file that is read, the recurrent module and the head may have any names. In the files that `encoded` makes, the modules
are named `rnn`, `head` and `embedding`.
"""

import collections
import io
import json
import pathlib
import re
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from charlm.config import load
from charlm.errors import UserError
from charlm.exchange.weights import Arrays, Layout, Weights, checked, checked_symbols, existing, library
from charlm.exchange.weights import read as read_file

LAYOUT = Layout("PyTorch", "from_torch", "to_torch", input_array="weight_ih", input_axis=1, has_one_width=True)

SAFETENSORS = "safetensors (pip install safetensors)"
TEXTS = ("symbols", "config")  # names of the JSON texts that `encoded` stores together with the arrays


def read(file: str) -> Weights:
    """Reads the weights of a PyTorch model. Also reads the symbols in the order of their ids, if the file has symbols.

    A `.safetensors` or `.npz` file holds a state_dict, and may hold the symbols as `encoded` stores them. A file that
    torch.save wrote holds either a state_dict, or a dict with `state_dict` and `tokens` as in Udacity's course. Such a file is
    loaded with weights_only=True.

    Raises:
      UserError: the file can't be read, or the weights do not belong to a CharRNN.
    """
    path = existing(file)
    state, symbols = _state_dict(path)
    layers: dict[int, dict[str, np.ndarray]] = collections.defaultdict(dict)
    others: dict[str, np.ndarray] = {}
    modules, embedding_VE = set(), None
    for name, value in state.items():
        if match := re.search(r"(?:^|\.)(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)$", name):
            modules.add(name[: match.start(1)].removesuffix("."))
            layers[int(match[2])][match[1]] = value
        elif re.search(r"(?:^|\.)(emb\w*|encoder)\.weight$", name) and embedding_VE is None:
            embedding_VE = value
        else:
            others[name] = value
    if len(modules) > 1:
        raise UserError(
            f"{path} has {len(modules)} modules of recurrent layers ({', '.join(sorted(modules))}): all layers must be "
            "in one module, such as nn.LSTM."
        )
    head = {name.rpartition(".")[2]: value for name, value in others.items()}
    one_module = len({name.rpartition(".")[0] for name in others}) == 1
    linear = one_module and {kind: value.ndim for kind, value in head.items()} == {"weight": 2, "bias": 1}
    return checked(
        path,
        LAYOUT,
        layers=[layers[index] for index in sorted(layers)],
        head={"kernel": head["weight"].T, "bias": head["bias"]} if linear else {},
        embedding_VE=embedding_VE,
        unknown=[] if linear else others,
        symbols=symbols,
    )


def _state_dict(path: pathlib.Path) -> tuple[Arrays, list[str] | None]:
    """Returns a dict from names to arrays, and the symbols. The symbols are None if the file has no symbols."""
    if path.suffix == ".safetensors":
        safetensors = library("safetensors", path, SAFETENSORS)
        arrays, texts = read_file(path, lambda: _opened_safetensors(path, safetensors))
        return arrays, _symbols(texts, path)
    if path.suffix == ".npz":
        arrays = read_file(path, lambda: dict(np.load(path)))
        return arrays, _symbols({name: str(arrays.pop(name)) for name in TEXTS if name in arrays}, path)
    torch = library(
        "torch", path, "PyTorch (pip install torch); or save the state_dict as .safetensors, and its symbols for --symbols"
    )
    state, symbols = read_file(path, lambda: torch.load(path, map_location="cpu", weights_only=True)), None
    if isinstance(state, dict) and "state_dict" in state:
        symbols = list(state["tokens"]) if "tokens" in state else None
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
        raise UserError(f"{path} holds no state_dict: save model.state_dict() with torch.save.")
    return {name: value.detach().float().numpy() for name, value in state.items()}, symbols


def _opened_safetensors(path: pathlib.Path, safetensors: ModuleType) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)


def _symbols(texts: dict[str, str], path: pathlib.Path) -> list[str] | None:
    """The symbols in the texts that `encoded` stored together with the arrays. None if there are no symbols."""
    if "symbols" not in texts:
        return None
    return checked_symbols(read_file(path, lambda: json.loads(texts["symbols"])), f"the vocabulary in {path}")


def encoded(weights: Weights, config: ConfigDict) -> bytes:
    """The content of a file with these weights. `read` can read the file.

    The names of the arrays are the names in the state_dict of PyTorch modules, so `load_state_dict` accepts the arrays.

    The suffix of `weights.file` chooses the format:
    - `.safetensors`: the file has the state_dict. Its metadata has `symbols` and `config`, both as JSON texts.
    - `.npz`: the file has the state_dict, and the same two JSON texts as arrays without axes.
    - any other suffix: torch.save writes a dict with the fields `state_dict`, `tokens` (the symbols) and `config`.

    Args:
      weights: the weights. They must have symbols.
      config: the config of the run.

    Raises:
      UserError: the library that writes the format is not installed.
    """
    path = pathlib.Path(weights.file)
    state = {f"rnn.{name}_l{index}": value for index, arrays in enumerate(weights.layers) for name, value in arrays.items()}
    state |= {"head.weight": weights.head_kernel_HV.T, "head.bias": weights.head_bias_V}
    if weights.embedding_VE is not None:
        state["embedding.weight"] = weights.embedding_VE
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    texts = {"symbols": json.dumps(weights.symbols), "config": json.dumps(load.to_dict(config))}
    if path.suffix == ".safetensors":
        return library("safetensors.numpy", path, SAFETENSORS, "writing").save(state, texts)
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        contents: dict[str, Any] = state | {name: np.array(text) for name, text in texts.items()}
        np.savez(buffer, **contents)
        return buffer.getvalue()
    torch = library(
        "torch", path, "PyTorch (pip install torch); or choose --format=safetensors, which PyTorch reads too", "writing"
    )
    # `copy`, because PyTorch needs writable arrays, and arrays from JAX are read-only
    tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    torch.save({"state_dict": tensors, "tokens": weights.symbols, "config": load.to_dict(config)}, buffer)
    return buffer.getvalue()
