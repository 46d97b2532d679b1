"""The minGRU (Feng et al. 2024, arXiv:2410.01201): a GRU whose gate and candidate depend on the input alone.

    z = sigmoid(x W_z + b_z)     h = (1 - z) h' + z g(x W_v + b_v)     h' is the state of the previous step

`blend.py` defines g and computes h. The gates have the order z, v.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.models.cells import blend
from charlm.models.initializers import Initializers

GATES = 2


def parameters(
    inputs: int, hidden: int, initial: Initializers, config: FrozenConfigDict
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Name → (initializer, shape) of one layer's parameters."""
    del config
    return {
        "input_kernel": (initial.input_kernel(GATES), (inputs, GATES * hidden)),
        "bias": (initial.bias, (GATES * hidden,)),
    }


def pre_activations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    u, v = jnp.split(x, GATES, axis=-1)
    return u, v


CELL = blend.cell("minGRU", (), GATES, parameters, pre_activations)
