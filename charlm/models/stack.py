"""The network: input encoding, layers of one recurrence, dropout, head. The only file that knows Flax.

`functions` gives the network as pure functions. Which recurrence runs is known in `cells/` alone.

Letters: B batch, T time, S scored positions, E embedding, I input features, H hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import keys, load
from charlm.data.batches import Batch
from charlm.models import cells
from charlm.models.dropout import dropout
from charlm.models.initializers import Initializers, initializers
from charlm.models.products import operand, product

CELL_NOISE = 1 << 16  # plus the layer's index: folded into the keys that a cell gets; dropout folds in the index alone


class Layer(nn.Module):
    """One layer: declares the parameters of a cell and runs it over a window."""

    cell: cells.Cell
    initial: Initializers
    inputs: int
    hidden: int
    dtype: jnp.dtype
    config: FrozenConfigDict

    @nn.compact
    def __call__(self, inputs, state, table_VI=None, noise_keys_B=None):
        """Args: see `cells.Cell.window`; `table_VI`: the rows that ids stand for, None for rows of the input kernel."""
        declared = self.cell.parameters(self.inputs, self.hidden, self.initial, self.config)
        params = {name: self.param(name, initializer, shape) for name, (initializer, shape) in declared.items()}
        if self.is_initializing():  # the outputs are not used then, and they take long to trace
            return jnp.zeros((*inputs.shape[:2], self.hidden)), state
        if table_VI is not None:
            params = self.cell.with_table(params, table_VI)
        return self.cell.window(params, inputs, state, self.dtype, noise_keys_B)


class CharLM(nn.Module):
    """A character-level language model. Keys of the config that only one line needs are read there, from `config`.

    Attributes:
      cell, name_of_cell: the recurrence, and `model.cell`, which names the layers' parameters: `lstm_0`, `lstm_1`, …
      vocab_size: V. layers, hidden: number of layers, and H of each.
      encoding: how an id enters: `embedding`, `onehot`, or `scalar`, the id divided by V.
      dropout: share of values dropped after each layer (so between layers and before the head), in [0, 1).
      dtype: of the operands of matrix products; parameters, state and sums are float32.
    """

    cell: cells.Cell
    name_of_cell: str
    vocab_size: int
    layers: int
    hidden: int
    encoding: str
    dropout: float
    dtype: jnp.dtype
    config: FrozenConfigDict

    @nn.compact
    def __call__(self, batch: Batch, carry: tuple, noise_keys_B: jax.Array | None = None) -> tuple[jax.Array, tuple]:
        """(logits_BSV, carry after the window).

        `noise_keys_B` is None, or one key per row. Everything that acts at random folds a number of its own into it.
        """
        config = self.config
        initial = initializers(config.model.init, self.hidden, config.model.init_scale, config.model.head_scale)
        carry = keep_rows(carry, jnp.logical_not(batch.reset_B))
        x, table_VE, features = jnp.asarray(batch.inputs_BT).T, None, self.vocab_size
        if self.encoding == "embedding":
            features = config.model.embedding
            table_VE = self.param("embedding", initial.embedding, (self.vocab_size, features))
        elif self.encoding == "scalar":
            x, features = x[..., None].astype(jnp.float32) / self.vocab_size, 1
        new_carry = []
        for index in range(self.layers):
            name = f"{self.name_of_cell}_{index}"
            layer = Layer(self.cell, initial, features, self.hidden, self.dtype, config, name=name)
            cell_keys_B = None if noise_keys_B is None else _fold_in(noise_keys_B, CELL_NOISE + index)
            x, state = layer(x, carry[index], table_VE if index == 0 else None, cell_keys_B)
            new_carry.append(state)
            features = self.hidden
            if index == self.layers - 1:
                x = x[x.shape[0] - batch.targets_BS.shape[1] :]  # only the last S positions are scored
            if noise_keys_B is not None and self.dropout > 0:
                x = dropout(_fold_in(noise_keys_B, index), x, self.dropout)
        head_HV = self.param("head_kernel", initial.head_kernel, (self.hidden, self.vocab_size))
        head_bias_V = self.param("head_bias", initial.head_bias, (self.vocab_size,))
        logits_BSV = product(x.swapaxes(0, 1), head_HV, self.dtype) + head_bias_V[None, None, :]
        return logits_BSV, tuple(new_carry)


class Functions(NamedTuple):
    """A model as pure functions; all that training, evaluation and sampling know of it.

    Attributes:
      init: key → params, a tree of float32 arrays.
      apply: (params, batch, carry, noise_keys_B=None) → (logits_BSV, carry). Without keys nothing acts at random. Each row
        has a key of its own, so its dropout mask does not depend on how rows are spread over devices.
      zero_carry: B → the state at the beginning of a text: a tuple with the state of each layer.
      stepwise: (params, rows) → the weights as `step` reads them, laid out once for `rows` rows.
      step: (weights, ids_B, carry) → (logits_BV, carry): what `apply` gives for one character, without dropout.
      operations: multiply-adds of all layers and the head for one character; a lookup of ids costs none.
      shape: for a picture of the network.
    """

    init: Callable
    apply: Callable
    zero_carry: Callable
    stepwise: Callable
    step: Callable
    operations: int
    shape: "Shape"


class Stepwise(NamedTuple):
    """Weights laid out to read one character at a time: each layer's as its cell has them, and the head's."""

    layers: tuple[Any, ...]
    head_HV: jax.Array
    head_bias_V: jax.Array


class Shape(NamedTuple):
    """What a picture shows: titles of the cell and of its state, layers, units of each, input encoding, dropout share."""

    cell: str
    state: str
    layers: int
    hidden: int
    encoding: str
    dropout: float


def functions(config: ConfigDict, vocab_size: int) -> Functions:
    """The model that a config describes, for a vocabulary of `vocab_size` symbols."""
    (name, cell), layers, hidden = named_cell(config), config.model.layers, config.model.hidden
    module = CharLM(
        cell=cell,
        name_of_cell=name,
        vocab_size=vocab_size,
        layers=layers,
        hidden=hidden,
        encoding=config.model.input,
        dropout=config.model.dropout,
        dtype=jnp.dtype(config.model.dtype),
        config=FrozenConfigDict(config),
    )

    def zero_carry(rows: int) -> tuple:
        return tuple(cell.zero_state(rows, hidden) for _ in range(layers))

    def init(key):
        ids = jnp.zeros((1, 1), jnp.int32)
        batch = Batch(ids, ids, jnp.ones((1, 1)), jnp.ones(1, bool))
        return module.init(key, batch, zero_carry(1))["params"]

    def apply(params, batch, carry, noise_keys_B=None):
        return module.apply({"params": params}, batch, carry, noise_keys_B)

    def stepwise(params: Any, rows: int) -> Stepwise:
        by_layer = [params[f"{name}_{index}"] for index in range(layers)]
        if module.encoding == "embedding":
            by_layer[0] = cell.with_table(by_layer[0], params["embedding"])
        elif module.encoding == "scalar":
            by_layer[0] = cell.with_table(by_layer[0], jnp.arange(vocab_size, dtype=jnp.float32)[:, None] / vocab_size)
        return Stepwise(
            layers=tuple(cell.prepare(of_layer, rows, module.dtype, index == 0) for index, of_layer in enumerate(by_layer)),
            head_HV=operand(params["head_kernel"], module.dtype, rows),
            head_bias_V=params["head_bias"],
        )

    def step(weights: Stepwise, ids_B: jax.Array, carry: tuple) -> tuple[jax.Array, tuple]:
        x, new_carry = ids_B, []
        for of_layer, state in zip(weights.layers, carry, strict=True):
            x, state = cell.step(of_layer, x, state, module.dtype)
            new_carry.append(state)
        logits_BV = product(x, weights.head_HV, module.dtype) + weights.head_bias_V[None, :]
        return logits_BV, tuple(new_carry)

    operations = layer_operations(config) + hidden * vocab_size
    shape = Shape(cell.title, cell.state_title, layers, hidden, module.encoding, module.dropout)
    return Functions(init, apply, zero_carry, stepwise, step, operations, shape)


def named_cell(config: ConfigDict) -> tuple[str, cells.Cell]:
    """The name of the config's cell, with which the parameters of its layers begin (`lstm_0`), and the cell."""
    return config.model.cell, cells.named(config.model.cell)


def layer_operations(config: ConfigDict) -> int:
    """Multiply-adds of all layers for one character. The first layer looks its ids up, so they count as no inputs."""
    (_, cell), layers, hidden = named_cell(config), config.model.layers, config.model.hidden
    return cell.operations(0, hidden) + (layers - 1) * cell.operations(hidden, hidden)


def unread_keys(config: ConfigDict) -> list[str]:
    """Keys that the config sets, but that only cells other than its own read."""
    all_cells = [cells.named(name) for name in keys.KEYS["model.cell"].rule.options]
    others = {key for cell in all_cells for key in cell.keys} - set(named_cell(config)[1].keys)
    values = load.flatten(config)
    return sorted(key for key in others if values[key] != keys.KEYS[key].default)


def keep_rows(carry: Any, keep_B: jax.Array) -> Any:
    """The state of the rows to keep; zeros for the others."""
    return jax.tree.map(lambda leaf: jnp.where(keep_B.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), carry)


def _fold_in(keys_B: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)


def parameter_table(params: Any) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, count) of every parameter, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.size) for path, leaf in leaves]


def parameter_count(params: Any) -> int:
    """The count of numbers in all parameters."""
    return sum(count for _, _, count in parameter_table(params))


def parameter_lines(params: Any) -> list[str]:
    """The table as lines of text. The last line counts two biases per layer, as PyTorch has for the same function."""
    table = parameter_table(params)
    total = parameter_count(params)
    doubled = total + sum(count for name, _, count in table if name.endswith("/bias"))
    rows = [(name, " x ".join(map(str, shape)), count) for name, shape, count in table]
    rows += [("parameters", "", total), ("with two biases a layer", "", doubled)]
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {shape:>12}  {count:>12,}" for name, shape, count in rows]
