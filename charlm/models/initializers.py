"""Initialises weights as in Flax, Keras, Axon, PyTorch or MXNet, for layers such as an LSTM.

A layer has one or more gates, and each of its kernels has the shape (inputs, gates * hidden). Each gate has one block of
`hidden` columns, and the blocks lie side by side.

Shape letters: I inputs (rows of a kernel), H hidden units, O columns, N matrices.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# A function (key, shape) → array. Flax's own type of initializers has more arguments, which are not needed here.
Initializer = Callable[..., Any]


class Initializers(NamedTuple):
    """One initializer for each kind of weight.

    Attributes:
      embedding: initializer of the embedding.
      input_kernel: a function from the number of gates to the initializer of a layer's kernel for the input.
      recurrent_kernel: a function from the number of gates to the initializer of a layer's kernel for the recurrent state.
      bias: initializer of a layer's bias. A cell may add a constant to this bias. For example, the LSTM adds its forget bias.
      head_kernel: initializer of the kernel of the head, which computes the logits.
      head_bias: initializer of the bias of the head.
    """

    embedding: Initializer
    input_kernel: Callable[[int], Initializer]
    recurrent_kernel: Callable[[int], Initializer]
    bias: Initializer
    head_kernel: Initializer
    head_bias: Initializer


def initializers(name: str, hidden: int, scale: float, head_scale: float) -> Initializers:
    """The initializers for a value of the config key `model.init`.

    - `orthogonal` (Flax): kernels are LeCun normal, except for the recurrent kernels. The block of each gate in a recurrent
      kernel is an orthogonal matrix.
    - `glorot` (Keras): kernels are Glorot uniform, except for the recurrent kernels. A whole recurrent kernel, with the blocks
      of all gates, is a matrix with orthonormal rows.
    - `axon` (Axon): kernels are Glorot uniform. In a layer, the bound is computed for the block of one gate, not for the whole
      kernel.
    - `pytorch` (PyTorch): kernels and biases are uniform in ±1/sqrt(hidden). A layer's bias is the sum of two such biases. The
      embedding is standard normal.
    - `uniform` (MXNet): kernels and the embedding are uniform in ±scale.

    Biases are 0, except for `pytorch`.

    Args:
      name: the value of `model.init`.
      hidden: number of units of a layer.
      scale: the bound for `uniform`.
      head_scale: if not 0, the head's kernel is uniform in ±head_scale and its bias is 0, as in Udacity's CharRNN.
    """
    zeros, glorot, lecun = nn.initializers.zeros, nn.initializers.glorot_uniform(), nn.initializers.lecun_normal()
    match name:
        case "glorot":
            whole, rows = _for_any_gates(glorot), _for_any_gates(_orthogonal_rows)
            chosen = Initializers(_symmetric_uniform(0.05), whole, rows, zeros, glorot, zeros)
        case "axon":
            chosen = Initializers(_symmetric_uniform(0.05), _glorot_gates, _glorot_gates, zeros, glorot, zeros)
        case "pytorch":
            small = _symmetric_uniform(1 / math.sqrt(hidden))
            kernel = _for_any_gates(small)
            chosen = Initializers(nn.initializers.normal(1.0), kernel, kernel, _sum_of_two(small), small, small)
        case "uniform":
            small = _symmetric_uniform(scale)
            kernel = _for_any_gates(small)
            chosen = Initializers(small, kernel, kernel, zeros, small, zeros)
        case _:
            kernel = _for_any_gates(lecun)
            chosen = Initializers(nn.initializers.normal(1.0), kernel, _orthogonal_gates, zeros, lecun, zeros)
    if head_scale > 0:
        return chosen._replace(head_kernel=_symmetric_uniform(head_scale), head_bias=zeros)
    return chosen


def _for_any_gates(initializer: Initializer) -> Callable[[int], Initializer]:
    """Returns a function that returns the same initializer for any number of gates.

    The initializer treats the blocks of all gates as one matrix.
    """
    return lambda gates: initializer


def _symmetric_uniform(bound: float) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _sum_of_two(initializer: Initializer) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: sum(initializer(each, shape) for each in jax.random.split(key))


def _glorot_gates(gates: int) -> Initializer:
    """Glorot uniform. The bound is computed for I inputs and H outputs, the size of one gate's block.

    For the whole kernel, the bound would be computed for gates * H outputs.
    """

    def init(key, shape, dtype=jnp.float32):
        inputs, columns = shape
        return _symmetric_uniform(math.sqrt(6 / (inputs + columns // gates)))(key, shape, dtype)

    return init


def _orthogonal_gates(gates: int) -> Initializer:
    """Each gate's (H, H) block is a random orthogonal matrix, as in Flax's cells."""

    def init(key, shape, dtype=jnp.float32):
        hidden = shape[0]
        # The random array has two axes, because XLA would need a second more to compile a random array with three axes.
        rows = jax.random.normal(key, (gates * hidden, hidden), jnp.float32)
        blocks = _orthogonalized(rows.reshape(gates, hidden, hidden))
        return blocks.swapaxes(0, 1).reshape(shape).astype(dtype)

    return init


def _orthogonal_rows(key, shape, dtype=jnp.float32):
    """The recurrent kernel (H, gates * H) of all gates is one matrix with orthonormal rows, as in Keras."""
    return _orthogonalized(jax.random.normal(key, (1, *shape), jnp.float32))[0].astype(dtype)


def _orthogonalized(blocks_NIO: jax.Array) -> jax.Array:
    """The orthogonal factors (of the polar decomposition) of random matrices.

    Each factor has orthonormal rows, up to an error of about 1e-6. For one square matrix in a hundred, the error is 1e-3 or
    more. A matrix must not have more rows than columns.

    The factors are computed with Newton-Schulz iteration, which needs only matrix products. QR decompositions are not used,
    because several QR decompositions in one program can deadlock on XLA:CPU (experiments/2026-11-22-first-figures).
    """
    blocks_NIO /= jnp.linalg.norm(blocks_NIO, axis=(1, 2), keepdims=True)

    def iterate(_, blocks):
        return 1.5 * blocks - 0.5 * (blocks @ blocks.swapaxes(1, 2)) @ blocks

    # All singular values converge to 1. Each iteration multiplies a small singular value by about 1.5. Before the first
    # iteration, the smallest singular value is about rows ** -1.5.
    return jax.lax.fori_loop(0, 20 + int(4 * math.log(blocks_NIO.shape[1] + 1)), iterate, blocks_NIO)
