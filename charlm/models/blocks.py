"""The layers that a config describes, and the parts that surround a cell: RMSNorm, skip connection and feed-forward block.

Let x be the input of a layer. With all options, the output of the layer is

    y = x + cell(norm(x))         model.residual, model.norm
    z = y + mlp(norm'(y))         model.mlp

norm is RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467): a vector is divided by its root mean square and multiplied by learnt
scales. norm' is another RMSNorm, and its scales are parameters of the mlp. mlp is a dense layer with model.mlp * H units and
GELU, followed by a dense layer with H units. With all options, the layers are those of the public code for the minGRU and the
minLSTM (Feng et al. 2024, arXiv:2410.01201), except that this code also has a convolution before each cell.

With `model.tie`, the head multiplies by the transposed embedding (Press & Wolf 2017, arXiv:1608.05859; Inan et al. 2017,
arXiv:1611.01462).

Letters: H units of a layer, F units inside a feed-forward block, E features of the embedding, V size of the vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm import progress
from charlm.config import keys
from charlm.models import cells, kernels, recurrent_noise, regularisers
from charlm.models.initializers import Initializers, initializers
from charlm.models.products import operand, product
from charlm.models.regularisers import Regularisers

EPS = 1e-6  # is added to the mean square, so that a vector of zeros stays a vector of zeros


class Block(NamedTuple):
    """One layer of the network.

    Attributes:
      name: name of the parameters of its cell, such as `lstm_0`.
      cell: the recurrent cell with the kernel of the config, and with zoneout and recurrent dropout if the config sets them.
      inputs: number of input features. It is 0 for the first layer, because the first layer looks up ids.
      width: H, the number of units.
      skip: whether the input is added to the output of the cell.
      norm: whether the input of the cell is normalised.
      mlp: F, the number of units inside the feed-forward block. 0 if there is no such block.
    """

    name: str
    cell: cells.Cell
    inputs: int
    width: int
    skip: bool
    norm: bool
    mlp: int

    def operations(self, config: FrozenConfigDict) -> int:
        """The number of multiply-adds for one character."""
        return self.cell.operations(self.inputs, self.width, config) + 2 * self.width * self.mlp


class Shape(NamedTuple):
    """The names, sizes and connections of the network, without its weights.

    Attributes:
      blocks: the layers, the first layer first.
      encoding: input encoding of an id: `embedding`, `onehot`, or `scalar` (the id divided by V).
      embedding: E, the number of features of the embedding. 0 with any other encoding.
      dtype: dtype of the operands of matrix products. Parameters, state and sums are float32.
      precision: how GPUs and TPUs compute float32 products: a key of `products.PRECISIONS`.
      regularisers: the dropout outside the recurrence, and the penalties on activations.
      norm: whether the input of the head is normalised.
      tie: whether the head multiplies by the transposed embedding.
    """

    blocks: tuple[Block, ...]
    encoding: str
    embedding: int
    dtype: jnp.dtype
    precision: str
    regularisers: Regularisers
    norm: bool
    tie: bool

    def head_operations(self, vocab_size: int) -> int:
        """The number of multiply-adds of the head for one character."""
        width = self.blocks[-1].width
        if not self.tie:
            return width * vocab_size
        return self.embedding * vocab_size + (width * self.embedding if width != self.embedding else 0)


def shape_of(config: ConfigDict) -> Shape:
    """The network that the config describes."""
    encoding = config.model.input
    return Shape(
        blocks=blocks_of(config),
        encoding=encoding,
        embedding=config.model.embedding if encoding == "embedding" else 0,
        dtype=jnp.dtype(config.model.dtype),
        precision=config.model.precision,
        regularisers=regularisers.of(config, encoding),
        norm=config.model.norm,
        tie=config.model.tie,
    )


def blocks_of(config: ConfigDict) -> tuple[Block, ...]:
    """The layers that the config describes, the first layer first.

    Each layer is named after its cell and its place: `lstm_0`, `gru_1`.
    """
    names = keys.cell_names(config)
    widths = config.model.widths or (config.model.hidden,) * len(names)
    # A layer reads vectors, unless it is the first layer and the ids are not embedded.
    inputs = (config.model.embedding if config.model.input == "embedding" else 0, *widths[:-1])
    return tuple(
        Block(
            name=f"{cells.short_name(name)}_{index}",
            cell=_cell(name, config),
            inputs=features if index else 0,
            width=width,
            skip=config.model.residual and features == width,
            norm=config.model.norm and features > 0,
            mlp=config.model.mlp * width,
        )
        for index, (name, features, width) in enumerate(zip(names, inputs, widths, strict=True))
    )


def _cell(name: str, config: ConfigDict) -> cells.Cell:
    cell = cells.named(name)
    return recurrent_noise.with_noise(kernels.with_kernel(cell, config), config, kernels.unroll(cell, config))


def without_effect(config: ConfigDict) -> list[str]:
    """A sentence for each of `model.residual` and `model.hidden` that is set, but has no effect because of other keys."""
    sentences = []
    if config.model.residual and not any(block.skip for block in blocks_of(config)):
        sentences.append("model.residual has no effect: no layer reads vectors of its own width.")
    if config.model.widths and config.model.hidden != keys.KEYS["model.hidden"].default:
        sentences.append("model.hidden has no effect: model.widths sets the number of units of each layer.")
    return sentences


def in_words(shape: Shape) -> str:
    """The network as text, such as `2 LSTM layers of 512, embedding input`."""
    layers = progress.counted(len(shape.blocks), f"{shape.blocks[0].cell.title} layer")
    text = f"{layers} of {shape.blocks[0].width}"
    if len({(block.cell.title, block.width) for block in shape.blocks}) > 1:
        each = ", ".join(f"{block.cell.title} of {block.width}" for block in shape.blocks)
        text = f"{progress.counted(len(shape.blocks), 'layer')} ({each})"
    skips = sum(block.skip for block in shape.blocks)
    parts = [
        progress.counted(skips, "skip connection") if skips else "",
        "RMSNorm" if shape.norm else "",
        "feed-forward blocks" if shape.blocks[0].mlp else "",
        f"{shape.encoding} input",
        "tied head" if shape.tie else "",
    ]
    return ", ".join([text, *filter(None, parts)])


def make_initializers(config: ConfigDict, width: int) -> Initializers:
    """The initializers that the config names, for a layer of `width` units."""
    return initializers(config.model.init, width, config.model.init_scale, config.model.head_scale)


def tied(head_kernel: Callable) -> Callable:
    """The initializer of an embedding (V, E) that is also the head: it is drawn as a head's kernel (E, V) and transposed.

    An initial embedding drawn from the standard normal distribution would make the initial logits too large.
    """
    return lambda key, shape: head_kernel(key, shape[::-1]).T


def vectors(x: jax.Array, table_VE: jax.Array | None) -> jax.Array:
    """The vectors that a layer reads: x itself, or, if x contains ids, the rows of the table that these ids select."""
    return x if table_VE is None else jnp.take(table_VE, x, axis=0, mode="clip")


def normalised(x: jax.Array, table_VE: jax.Array | None, scale: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The inputs (x, table_VE) of a layer after RMSNorm. If x contains ids, the rows of the table are normalised."""
    return (rms_norm(x, scale), None) if table_VE is None else (x, rms_norm(table_VE, scale))


def rms_norm(x: jax.Array, scale_H: jax.Array) -> jax.Array:
    """RMSNorm over the last axis of x."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + EPS) * _as_row(scale_H, x)


def mlp_parameters(config: ConfigDict, block: Block) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns a function: random key → initial parameters of the feed-forward block of the layer `block`."""
    into, out = make_initializers(config, block.width), make_initializers(config, block.mlp)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        keys_4 = jax.random.split(key, 4)
        return {
            "scale": jnp.ones(block.width),
            "up_kernel": into.input_kernel(1)(keys_4[0], (block.width, block.mlp)),
            "up_bias": into.one_bias(keys_4[1], (block.mlp,)),
            "down_kernel": out.input_kernel(1)(keys_4[2], (block.mlp, block.width)),
            "down_bias": out.one_bias(keys_4[3], (block.width,)),
        }

    return init


def mlp(params: dict[str, jax.Array], x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The output (…, H) of the feed-forward block for the input x (…, H). The caller adds x to this output."""
    x_F = product(rms_norm(x, params["scale"]), params["up_kernel"], dtype)
    x_F = jax.nn.gelu(x_F + _as_row(params["up_bias"], x), approximate=False)
    return product(x_F, params["down_kernel"], dtype) + _as_row(params["down_bias"], x)


def prepared_mlp(params: dict[str, jax.Array], dtype: jnp.dtype, rows: int) -> dict[str, jax.Array]:
    """The parameters of `mlp`, whose kernels are already rounded to `dtype`, for inputs of `rows` rows."""
    return {name: operand(leaf, dtype, rows) if leaf.ndim == 2 else leaf for name, leaf in params.items()}


def head_kernels(params: dict[str, Any]) -> list[jax.Array]:
    """The matrices by which the head multiplies one after the other, from the parameters of a model.

    Without `model.tie`, the list has one matrix (H, V). With `model.tie`, the list has the transposed embedding (E, V). If the
    width H of the last layer is not E, a projection (H, E) precedes the transposed embedding.
    """
    if "head_kernel" in params:
        return [params["head_kernel"]]
    projection = [params["head_projection"]] if "head_projection" in params else []
    return [*projection, params["embedding"].T]


def _as_row(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
