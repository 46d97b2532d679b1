"""The network: an input encoding, recurrent layers that all use the same cell, dropout, and the output layer (the head).

`functions` returns the network as pure functions. The code in this file is the same for every cell in `cells/`.

Letters: B batch, T time, S scored positions, E embedding, I input features, H hidden units, V vocabulary.
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
from charlm.models.cells import interface, own
from charlm.models.dropout import dropout
from charlm.models.initializers import Initializers, initializers
from charlm.models.products import operand, product

# The random keys of an operation are made with `jax.random.fold_in`. The dropout after layer i folds in the number i. Random
# operations inside the cell of layer i fold in the number CELL_NOISE + i.
CELL_NOISE = 1 << 16


class Layer(nn.Module):
    """One layer: declares the parameters of a cell and runs the cell over a window."""

    cell: cells.Cell
    initial: Initializers
    inputs: int
    hidden: int
    dtype: jnp.dtype
    config: FrozenConfigDict

    @nn.compact
    def __call__(self, inputs, state, table_VI=None, noise_keys_B=None):
        """Runs the layer; see `cells.Cell.window` for the other arguments and the results.

        Args:
          table_VI: the input features of each id, such as an embedding. If None, and if the inputs are ids, each id selects a
            row of the input kernel.
        """
        declared = self.cell.parameters(self.inputs, self.hidden, self.initial, self.config)
        params = {name: self.param(name, initializer, shape) for name, (initializer, shape) in declared.items()}
        if self.is_initializing():  # initialisation does not use the outputs, and tracing the cell is slow
            return jnp.zeros((*inputs.shape[:2], self.hidden)), state
        if table_VI is not None:
            params = self.cell.with_table(params, table_VI)
        return self.cell.window(params, inputs, state, self.dtype, noise_keys_B)


class CharLM(nn.Module):
    """A character-level language model.

    Attributes:
      cell: the recurrent cell of all layers.
      name_of_cell: the `short_name` of the cell. The parameters of the layers are named after it: `lstm_0`, `lstm_1`, …
      vocab_size: V, the number of symbols in the vocabulary.
      layers: number of layers.
      hidden: H, the number of units of each layer.
      encoding: input encoding of an id: `embedding`, `onehot`, or `scalar` (the id divided by V).
      dropout: fraction of the values that are set to 0 after each layer, including the last layer, in [0, 1).
      dtype: dtype of the operands of matrix products. Parameters, state and sums are float32.
      config: the whole config. Keys that only one line of code reads have no attribute here and are read from this config.
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
        """Returns (logits_BSV, carry after the window).

        `noise_keys_B` holds one random key per row. Each random operation folds a different number into these keys. If
        `noise_keys_B` is None, nothing is random.
        """
        config = self.config
        initial = _initializers(config, self.hidden)
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
    """A model as pure functions. Training, evaluation and sampling use a model only through these functions.

    Attributes:
      init: random key → params, a tree of float32 arrays.
      apply: (params, batch, carry, noise_keys_B=None) → (logits_BSV, carry). Without `noise_keys_B`, nothing is random.
        Otherwise each row has its own random key. The dropout mask of a row therefore does not depend on the device that holds
        the row.
      zero_carry: number of rows → the carry at the beginning of a text. A carry is a tuple with the state of each layer.
      stepwise: (params, rows) → the weights in the layout that `step` needs for `rows` rows.
      step: (weights, ids_B, carry) → (logits_BV, carry). Computes the same as `apply` for one character, without dropout.
      operations: number of multiply-adds of all layers and the head for one character. The lookup of an id adds nothing to
        this number.
      shape: the names and sizes that the drawing of the network shows.
    """

    init: Callable
    apply: Callable
    zero_carry: Callable
    stepwise: Callable
    step: Callable
    operations: int
    shape: "Shape"


class Stepwise(NamedTuple):
    """The weights in the layout that `Functions.step` needs. `layers` holds the result of `Cell.prepare` for each layer."""

    layers: tuple[Any, ...]
    head_HV: jax.Array
    head_bias_V: jax.Array


class Shape(NamedTuple):
    """The names and sizes that the drawing of the network shows.

    Attributes:
      cell: name of the cell in the drawing, such as `LSTM`.
      state: name of the recurrent state in the drawing, such as `c, h`.
      layers: number of layers.
      hidden: number of units of each layer.
      encoding: input encoding.
      dropout: fraction of the values that are set to 0 after each layer.
    """

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
    """The name of the config's cell, and the cell. Parameter names of layers begin with this name, such as `lstm_0`."""
    return cells.short_name(config.model.cell), cells.named(config.model.cell)


def check_own_cells(config: ConfigDict) -> None:
    """Checks the cells of a config that are in files of the user. `own.load` must have loaded them.

    Raises:
      UserError: a cell does not have the interface of a cell; see `interface.check`.
    """
    hidden, encoding, dtype = config.model.hidden, config.model.input, jnp.dtype(config.model.dtype)
    # With one-hot inputs, the number of inputs is the size of the vocabulary. The checks take any number.
    inputs = {"embedding": config.model.embedding, "scalar": 1}.get(encoding, hidden + 1)
    for name in own.names(config):
        initial = _initializers(config, hidden)
        interface.check(name, inputs, hidden, config.model.layers, encoding, initial, dtype, config)


def _initializers(config: ConfigDict | FrozenConfigDict, hidden: int) -> Initializers:
    return initializers(config.model.init, hidden, config.model.init_scale, config.model.head_scale)


def layer_operations(config: ConfigDict) -> int:
    """The number of multiply-adds of all layers for one character.

    The first layer is counted as a layer with 0 inputs, because it looks up each id and does not multiply by an input kernel.
    """
    (_, cell), layers, hidden = named_cell(config), config.model.layers, config.model.hidden
    frozen = FrozenConfigDict(config)
    return cell.operations(0, hidden, frozen) + (layers - 1) * cell.operations(hidden, hidden, frozen)


def unread_keys(config: ConfigDict) -> list[str]:
    """The keys that have no effect, because only cells other than the config's cell read these keys.

    Keys with their default value are left out.
    """
    all_cells = [cells.named(name) for name in keys.KEYS["model.cell"].rule.options]
    others = {key for cell in all_cells for key in cell.keys} - set(named_cell(config)[1].keys)
    values = load.flatten(config)
    return sorted(key for key in others if values[key] != keys.KEYS[key].default)


def keep_rows(carry: Any, keep_B: jax.Array) -> Any:
    """The carry after the states of some rows are set to 0. These are the rows for which `keep_B` is False."""
    return jax.tree.map(lambda leaf: jnp.where(keep_B.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), carry)


def _fold_in(keys_B: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)


def parameter_table(params: Any) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, number of values) of every parameter, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.size) for path, leaf in leaves]


def parameter_count(params: Any) -> int:
    """The total number of values in all parameters."""
    return sum(count for _, _, count in parameter_table(params))


def parameter_lines(params: Any) -> list[str]:
    """The table of parameters as lines of text.

    A layer of PyTorch has two biases for each gate. Most layers here have one. The last line gives the total with two biases
    per layer. A `recurrent_bias` already is a part of the second bias.
    """
    table = parameter_table(params)
    total = parameter_count(params)
    biases = {kind: sum(count for name, _, count in table if name.endswith(f"/{kind}")) for kind in ("bias", "recurrent_bias")}
    doubled = total + biases["bias"] - biases["recurrent_bias"]
    rows = [(name, " x ".join(map(str, shape)), count) for name, shape, count in table]
    rows += [("parameters", "", total), ("with two biases a layer", "", doubled)]
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {shape:>12}  {count:>12,}" for name, shape, count in rows]
