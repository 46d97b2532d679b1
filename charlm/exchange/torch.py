"""Reads the weights of a PyTorch model: one recurrent module, such as nn.LSTM, a linear head, and at most one embedding.

The recurrent module must contain all recurrent layers. V is the size of the vocabulary, H is the size of a layer, and E is the
size of an embedding vector. The reader finds the arrays by their names in the state_dict:
- `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0` and `bias_hh_l0` are the arrays of layer 0.
- `weight` (V, H) and `bias` (V,) are the arrays of the head.
- `weight` (V, E) is the embedding, if the name of its module is `encoder` or begins with `emb`.
The recurrent module and the head may have any names.
"""

import collections
import pathlib
import re

import numpy as np

from charlm.errors import UserError
from charlm.exchange.weights import Arrays, Layout, Weights, checked, existing, library
from charlm.exchange.weights import read as read_file

LAYOUT = Layout("PyTorch", "from_torch", input_array="weight_ih", input_axis=1)


def read(file: str) -> Weights:
    """Reads the weights of a PyTorch model. Also reads the symbols in the order of their ids, if the file has symbols.

    A `.safetensors` file holds a state_dict. A file that torch.save wrote holds either a state_dict, or a dict with
    `state_dict` and `tokens` as in Udacity's course. Such a file is loaded with weights_only=True.

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
        safetensors = library("safetensors.numpy", path, "safetensors (pip install safetensors)")
        return read_file(path, lambda: safetensors.load_file(path)), None
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
