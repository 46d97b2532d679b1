"""Reads the weights of a Keras 3 model: a stack of recurrent layers, a dense head, and at most one embedding.

Names of the arrays in the HDF5 file:
- `layers/lstm/cell/vars/0`, `…/1` and `…/2` are the kernel, the recurrent kernel and the bias of the first layer.
- `layers/lstm_1/cell/vars/0`, `…/1` and `…/2` are the kernel, the recurrent kernel and the bias of the second layer.
- `layers/dense/vars/0` and `…/1` are the kernel (H, V) and the bias (V,) of the head. H is the number of hidden units and V is
  the size of the vocabulary.
"""

import io
import pathlib
import re
import zipfile
from types import ModuleType

import numpy as np

from charlm.errors import UserError
from charlm.exchange.weights import Layout, Weights, checked, existing, library
from charlm.exchange.weights import read as read_file

LAYOUT = Layout("Keras", "from_keras", input_array="kernel", input_axis=0)
ARRAYS = ("kernel", "recurrent_kernel", "bias")  # the names here of the arrays 0, 1 and 2 of a recurrent layer in the file


def read(file: str) -> Weights:
    """Reads the weights of a Keras 3 model from a `.weights.h5` or `.keras` file.

    Raises:
      UserError: the file can't be read, or the model is not a stack of recurrent layers of one kind with a dense head.
    """
    path = existing(file)
    h5py = library("h5py", path, "h5py (pip install h5py)")
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
    return checked(path, LAYOUT, [layers[place] for place in sorted(layers)], found, embedding_VE, unknown)


def _arrays(path: pathlib.Path, h5py: ModuleType) -> dict[str, np.ndarray]:
    source: pathlib.Path | io.BytesIO = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    arrays = {}
    with h5py.File(source, "r") as h5:
        h5.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


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
