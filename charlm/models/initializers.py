"""Weight initialisation as in five libraries: Flax, Keras, Axon, PyTorch and MXNet.

The initializers work for every cell whose kernels store the gates side by side. Such a kernel of a layer with `gates` gates has
the shape (inputs, gates * hidden). Each gate has one block of columns.

Letters: I inputs (rows of a kernel), H hidden units, O columns, N matrices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# (key, shape) → array. Flax's own type for initializers is not used, because it requires arguments that are not needed here.
Initializer = Callable[..., Any]


class Initializers(NamedTuple):
    """One initializer for each kind of weight.

    Attributes:
      embedding, head_kernel, head_bias: initializers of the weights outside the layers.
      input_kernel, recurrent_kernel: functions that take the number of gates, and return the initializer of a layer's kernel.
      bias: initializer of a layer's bias. A cell may add a constant to this bias. For example, the LSTM adds
        `model.forget_bias` to the bias of the forget gate.
      one_bias: initializer of a bias to which PyTorch adds no second bias, such as a bias of the GRU's candidate.
    """

    embedding: Initializer
    input_kernel: Callable[[int], Initializer]
    recurrent_kernel: Callable[[int], Initializer]
    bias: Initializer
    one_bias: Initializer
    head_kernel: Initializer
    head_bias: Initializer


def initializers(name: str, hidden: int, scale: float, head_scale: float) -> Initializers:
    """The initializers that `model.init` names.

    - `orthogonal` (Flax): kernels are LeCun normal. The recurrent kernel of each gate is an orthogonal matrix.
    - `glorot` (Keras): kernels are Glorot uniform. The recurrent kernel of all gates is one matrix with orthonormal rows.
    - `axon` (Axon): kernels are Glorot uniform, with a separate bound for each gate.
    - `pytorch` (PyTorch): kernels and biases are uniform in ±1/sqrt(hidden). A layer of PyTorch adds two such biases. A layer
      of charlm has one bias, which is drawn as the sum of two such random biases. The embedding is standard normal.
    - `uniform` (MXNet): kernels and the embedding are uniform in ±scale.

    Biases are 0, except for `pytorch`.

    Args:
      hidden: number of units of a layer.
      scale: bound of the uniform distribution, if the name is `uniform`. Other names do not use this value.
      head_scale: if not 0, the head's kernel is uniform in ±head_scale and its bias is 0, as in Udacity's CharRNN.
    """
    zeros, glorot, lecun = nn.initializers.zeros, nn.initializers.glorot_uniform(), nn.initializers.lecun_normal()
    match name:
        case "glorot":
            whole, rows = _for_any_gates(glorot), _for_any_gates(_orthogonal_rows)
            chosen = Initializers(_symmetric_uniform(0.05), whole, rows, zeros, zeros, glorot, zeros)
        case "axon":
            chosen = Initializers(_symmetric_uniform(0.05), _glorot_gates, _glorot_gates, zeros, zeros, glorot, zeros)
        case "pytorch":
            small = _symmetric_uniform(1 / math.sqrt(hidden))
            kernel = _for_any_gates(small)
            chosen = Initializers(nn.initializers.normal(1.0), kernel, kernel, _sum_of_two(small), small, small, small)
        case "uniform":
            small = _symmetric_uniform(scale)
            kernel = _for_any_gates(small)
            chosen = Initializers(small, kernel, kernel, zeros, zeros, small, zeros)
        case _:
            kernel = _for_any_gates(lecun)
            chosen = Initializers(nn.initializers.normal(1.0), kernel, _orthogonal_gates, zeros, zeros, lecun, zeros)
    if head_scale > 0:
        return chosen._replace(head_kernel=_symmetric_uniform(head_scale), head_bias=zeros)
    return chosen


def _for_any_gates(initializer: Initializer) -> Callable[[int], Initializer]:
    """A function that returns `initializer` for any number of gates. The columns of all gates are initialised as one matrix."""
    return lambda gates: initializer


def _symmetric_uniform(bound: float) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _sum_of_two(initializer: Initializer) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: sum(initializer(each, shape) for each in jax.random.split(key))


def _glorot_gates(gates: int) -> Initializer:
    """Glorot uniform with the bound for one gate's (I, H) block: I inputs and H outputs, instead of gates * H outputs."""

    def init(key, shape, dtype=jnp.float32):
        inputs, columns = shape
        return _symmetric_uniform(math.sqrt(6 / (inputs + columns // gates)))(key, shape, dtype)

    return init


def _orthogonal_gates(gates: int) -> Initializer:
    """Each gate's (H, H) block is a random orthogonal matrix, as in Flax's cells."""

    def init(key, shape, dtype=jnp.float32):
        hidden = shape[0]
        # The random array is drawn with two axes. With three axes, XLA would need about 1 s more to compile.
        rows = jax.random.normal(key, (gates * hidden, hidden), jnp.float32)
        blocks = _orthogonalized(rows.reshape(gates, hidden, hidden))
        return blocks.swapaxes(0, 1).reshape(shape).astype(dtype)

    return init


def _orthogonal_rows(key, shape, dtype=jnp.float32):
    """The recurrent kernel (H, gates * H) of all gates is one matrix with orthonormal rows, as in Keras."""
    return _orthogonalized(jax.random.normal(key, (1, *shape), jnp.float32))[0].astype(dtype)


def _orthogonalized(blocks_NIO: jax.Array) -> jax.Array:
    """Makes the rows of each random matrix orthonormal. A matrix must not have more rows than columns.

    The result is the orthogonal factor of the matrix's polar decomposition. The error of the result is usually about 1e-6. For
    one square matrix in a hundred, the error is 1e-3 or more.

    The method is Newton-Schulz iteration, which needs only matrix products. QR decomposition is not used, because several QR
    decompositions in one program can deadlock on XLA:CPU (experiments/2026-11-22-first-figures).
    """
    blocks_NIO /= jnp.linalg.norm(blocks_NIO, axis=(1, 2), keepdims=True)

    def iterate(_, blocks):
        return 1.5 * blocks - 0.5 * (blocks @ blocks.swapaxes(1, 2)) @ blocks

    # All singular values must become 1. Each iteration multiplies a small singular value by about 1.5. Before the first
    # iteration, the smallest singular value is about rows ** -1.5.
    return jax.lax.fori_loop(0, 20 + int(4 * math.log(blocks_NIO.shape[1] + 1)), iterate, blocks_NIO)
