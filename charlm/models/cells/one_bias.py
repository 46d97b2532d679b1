"""Conversion of weights from PyTorch and Keras, and to them, for cells that have one bias per gate.

The frameworks have the same order of gates as these cells. PyTorch has two biases per gate and adds them.

Letters: I input features, H hidden units, G columns of the kernels, which is H times the number of gates.
"""

import jax
import numpy as np

from charlm.models.cells import Params


def from_torch(arrays: dict[str, jax.Array]) -> Params:
    """Params from `weight_ih` (G, I), `weight_hh` (G, H), `bias_ih` (G,) and `bias_hh` (G,). The bias is the sum of the two."""
    return {
        "input_kernel": arrays["weight_ih"].T,
        "recurrent_kernel": arrays["weight_hh"].T,
        "bias": arrays["bias_ih"] + arrays["bias_hh"],
    }


def from_keras(arrays: dict[str, jax.Array]) -> Params:
    """Params from `kernel` (I, G), `recurrent_kernel` (H, G) and `bias` (G,)."""
    return {"input_kernel": arrays["kernel"], "recurrent_kernel": arrays["recurrent_kernel"], "bias": arrays["bias"]}


def to_torch(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`, which adds the two biases.

    `bias_hh` is -0.0, because every number x stays the same in x + (-0.0). With 0.0, a bias of -0.0 would become 0.0.
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
