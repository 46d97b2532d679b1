"""The minLSTM (Feng et al. 2024, arXiv:2410.01201): an LSTM whose gates and candidate depend on the input alone.

    f = sigmoid(x W_f + b_f)     i = sigmoid(x W_i + b_i)
    h = f / (f + i) h' + i / (f + i) g(x W_v + b_v)              h' is the state of the previous step

`blend.py` defines g and computes h. The gates have the order f, i, v. There is no output gate and no second state c.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.models.cells import blend
from charlm.models.initializers import Initializers

GATES = 3


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters. `model.forget_bias` is added to the bias of f."""

    def bias(key, shape):
        return initial.bias(key, shape).at[:hidden].add(config.model.forget_bias)

    return {
        "input_kernel": (initial.input_kernel(GATES), (inputs, GATES * hidden)),
        "bias": (bias, (GATES * hidden,)),
    }


def pre_activations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(u, v) from the pre-activations of f, i and v.

    u = log i - log f, so sigmoid(u) = i / (f + i). Computed in this way, u stays finite even where f and i both underflow to 0.
    """
    f, i, v = jnp.split(x, GATES, axis=-1)
    return jax.nn.softplus(-f) - jax.nn.softplus(-i), v


CELL = blend.cell("minLSTM", ("model.forget_bias",), GATES, parameters, pre_activations)
