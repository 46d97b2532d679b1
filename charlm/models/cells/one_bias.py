"""Converts weights from and to PyTorch and Keras, for cells that have one bias per gate.

PyTorch and Keras have the gates in the same order as these cells. PyTorch has two biases per gate and adds them.

Letters: I input features, H hidden units, G columns of the kernels, which is H times the number of gates.
"""

import jax
import numpy as np

from charlm.models.cells import Params


def from_torch(arrays: dict[str, jax.Array]) -> Params:
    """Params from `weight_ih` (G, I), `weight_hh` (G, H), `bias_ih` (G,) and `bias_hh` (G,). Adds the two biases."""
    return {
        "input_kernel": arrays["weight_ih"].T,
        "recurrent_kernel": arrays["weight_hh"].T,
        "bias": arrays["bias_ih"] + arrays["bias_hh"],
    }


def from_keras(arrays: dict[str, jax.Array]) -> Params:
    """Params from `kernel` (I, G), `recurrent_kernel` (H, G) and `bias` (G,)."""
    return {"input_kernel": arrays["kernel"], "recurrent_kernel": arrays["recurrent_kernel"], "bias": arrays["bias"]}


def to_torch(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`.

    `from_torch` adds the two biases. Here `bias_hh` is set to -0.0, because x + (-0.0) equals x bit for bit for every number x.
    With 0.0 as `bias_hh`, a bias of -0.0 would become 0.0 in `from_torch`.
    """
    return {
        "weight_ih": params["input_kernel"].T,
        "weight_hh": params["recurrent_kernel"].T,
        "bias_ih": params["bias"],
        "bias_hh": np.full_like(params["bias"], -0.0),
    }


def to_keras(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_keras`."""
    return {"kernel": params["input_kernel"], "recurrent_kernel": params["recurrent_kernel"], "bias": params["bias"]}
