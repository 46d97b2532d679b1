"""The network: an input encoding, recurrent layers, dropout, and the output layer (the head).

`functions` returns the network as pure functions. The code in this file is the same for every cell in `cells/`.
`blocks` describes the layers, and has the parts that surround a cell: skip connections, normalisation, feed-forward blocks.

Letters: B batch, T time, S scored positions, E embedding, I input features, H hidden units, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import keys, load
from charlm.config.packs import is_on
from charlm.data.batches import Batch
from charlm.models import blocks, cells, recurrent_noise, regularisers
from charlm.models.cells.deferred import look_up
from charlm.models.dropout import Rate, dropout, embedding_dropout, fold_in, weight_dropout
from charlm.models.initializers import Initializer, Initializers
from charlm.models.products import in_precision, operand, product

# The random keys of each operation are made with `jax.random.fold_in`. The dropout after layer i folds in the number i. Random
# operations inside the cell of layer i fold in the number CELL_NOISE + i. The dropout after the feed-forward block of layer i
# folds in the number MLP_NOISE + i. Random states fold in the number STATE_NOISE. The weight drop of layer i folds the number
# i into the key that all rows share.
CELL_NOISE = 1 << 16
INPUT_NOISE = EMBEDDING_NOISE = 2 << 16
MLP_NOISE = 3 << 16
STATE_NOISE = 4 << 16


class Layer(nn.Module):
    """One layer: declares the parameters of a cell and runs the cell over a window."""

    cell: cells.Cell
    initial: Initializers
    inputs: int
    hidden: int
    dtype: jnp.dtype
    config: FrozenConfigDict
    weight_drop: Rate = 0.0

    @nn.compact
    def __call__(self, inputs, state, table_VI=None, noise_keys_B=None, weight_key=None):
        """Runs the layer; see `cells.Cell.window` for the other arguments and the results.

        Args:
          table_VI: the input features of each id, such as an embedding. If None, and if the inputs are ids, each id selects a
            row of the input kernel.
          weight_key: the random key of the weight drop. If None, no weights are dropped.
        """
        declared = self.cell.parameters(self.inputs, self.hidden, self.initial, self.config)
        params = {name: parameter(self, name, initializer, shape) for name, (initializer, shape) in declared.items()}
        if self.is_initializing():  # initialisation does not use the outputs, and tracing the cell is slow
            return jnp.zeros((*inputs.shape[:2], self.hidden)), state
        if table_VI is not None:
            params = self.cell.with_table(params, table_VI)
        if weight_key is not None and "model.weight_drop" in self.cell.keys:
            params |= {"recurrent_kernel": weight_dropout(weight_key, params["recurrent_kernel"], self.weight_drop)}
        return self.cell.window(params, inputs, state, self.dtype, noise_keys_B)


class CharLM(nn.Module):
    """A character-level language model.

    Attributes:
      shape: the layers, the input encoding, the dropout and the kind of head.
      vocab_size: V, the number of symbols in the vocabulary.
      config: the whole config. If only one line of code reads a key, the key has no attribute here and is read from `config`.
    """

    shape: blocks.Shape
    vocab_size: int
    config: FrozenConfigDict

    @nn.compact
    def __call__(
        self, batch: Batch, carry: tuple, noise_keys_B: jax.Array | None = None, shared_key: jax.Array | None = None
    ) -> tuple[jax.Array, tuple, jax.Array | None]:
        """Returns (logits_BSV, carry after the window, penalty).

        The penalty is None without noise, and if the config sets no penalty; see `regularisers.penalty`.

        `noise_keys_B` holds one random key per row, and `shared_key` is the key of masks that are the same for all rows. Each
        random operation folds a different number into these keys. Without noise, `noise_keys_B` is None and nothing is random.
        """
        config, shape, used = self.config, self.shape, self.shape.regularisers
        initial = blocks.make_initializers(config, shape.blocks[-1].width)
        carried_B = jnp.logical_not(batch.reset_B)
        carry = keep_rows(carry, carried_B)
        if used.state_noise and noise_keys_B is not None:
            keys_B, of_layers = fold_in(noise_keys_B, STATE_NOISE), [block.cell for block in shape.blocks]
            carry = recurrent_noise.with_random_states(keys_B, carry, of_layers, used.state_noise, carried_B)
        x, embedding_VE, table_VE, features = jnp.asarray(batch.inputs_BT).T, None, None, self.vocab_size
        if shape.encoding == "embedding":
            features = shape.embedding
            initializer = blocks.tied(initial.head_kernel) if shape.tie else initial.embedding
            embedding_VE = parameter(self, "embedding", initializer, (self.vocab_size, features))
            x, table_VE = self._dropped_input(x, embedding_VE, noise_keys_B, shared_key)
        elif shape.encoding == "scalar":
            x, features = x[..., None].astype(jnp.float32) / self.vocab_size, 1
        new_carry, penalty = [], None
        for index, (block, rate) in enumerate(zip(shape.blocks, used.dropout(len(shape.blocks))[1:], strict=True)):
            before = blocks.vectors(x, table_VE) if block.skip else None
            if block.norm:
                scale = parameter(self, f"norm_{index}", nn.initializers.ones, (features,))
                x, table_VE = blocks.normalised(x, table_VE, scale)
            own_initial = blocks.make_initializers(config, block.width)
            layer = Layer(
                block.cell, own_initial, features, block.width, shape.dtype, config, used.weight_drop, name=block.name
            )
            cell_keys_B = None if noise_keys_B is None else fold_in(noise_keys_B, CELL_NOISE + index)
            weight_key = jax.random.fold_in(shared_key, index) if shared_key is not None and is_on(used.weight_drop) else None
            outputs_TBH, state = layer(x, carry[index], table_VE, cell_keys_B, weight_key)
            new_carry.append(state)
            x, features, table_VE = outputs_TBH, block.width, None
            if index == len(shape.blocks) - 1:
                x = x[x.shape[0] - batch.targets_BS.shape[1] :]  # only the last S positions are scored
            x = self._dropped(x, noise_keys_B, index, rate)
            if index == len(shape.blocks) - 1 and noise_keys_B is not None:
                penalty = regularisers.penalty(used, outputs_TBH, x, batch.weights_BS)
            if before is not None:
                x = x + before[before.shape[0] - x.shape[0] :]
            if block.mlp:
                mlp = self.param(f"mlp_{index}", blocks.mlp_parameters(config, block))
                x = x + self._dropped(blocks.mlp(mlp, x, shape.dtype), noise_keys_B, MLP_NOISE + index, rate)
        if shape.norm:
            x = blocks.rms_norm(x, parameter(self, "norm_head", nn.initializers.ones, (features,)))
        x_BSH = x.swapaxes(0, 1)
        if embedding_VE is None or not shape.tie:
            head_HV = parameter(self, "head_kernel", initial.head_kernel, (features, self.vocab_size))
        else:
            head_HV = embedding_VE.T
            if features != shape.embedding:
                projection_HE = parameter(self, "head_projection", initial.input_kernel(1), (features, shape.embedding))
                x_BSH = product(x_BSH, projection_HE, shape.dtype)
        head_bias_V = parameter(self, "head_bias", initial.head_bias, (self.vocab_size,))
        logits_BSV = product(x_BSH, head_HV, shape.dtype) + head_bias_V[None, None, :]
        return logits_BSV, tuple(new_carry), penalty

    def _dropped(self, x: jax.Array, noise_keys_B: jax.Array | None, number: int, rate: Rate) -> jax.Array:
        if noise_keys_B is None or not is_on(rate):
            return x
        return dropout(fold_in(noise_keys_B, number), x, rate, self.shape.regularisers.per_window)

    def _dropped_input(
        self, ids_TB: jax.Array, table_VE: jax.Array, noise_keys_B: jax.Array | None, shared_key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The input of the first layer after dropout: (ids_TB, table of the features of all ids), or (features_TBE, None)."""
        used = self.shape.regularisers
        if shared_key is not None and is_on(used.embedding):
            table_VE = embedding_dropout(jax.random.fold_in(shared_key, EMBEDDING_NOISE), table_VE, used.embedding)
        if noise_keys_B is None or not is_on(used.input):
            return ids_TB, table_VE
        # Each row has its own mask, so the features can't come from a table that all rows share.
        return self._dropped(look_up(table_VE, ids_TB, self.shape.dtype), noise_keys_B, INPUT_NOISE, used.input), None


def parameter(module: nn.Module, name: str, initializer: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """Declares a parameter of a module, and returns its value.

    Does the same as `module.param`. But if the parameter already has a value, `module.param` would trace the initializer to
    learn its shape, which takes a large part of the time to trace the model.

    Raises:
      ValueError: the value of the parameter has another shape.
    """
    if module.is_initializing():
        return module.param(name, initializer, shape)
    value: jax.Array = module.get_variable("params", name)
    if jnp.shape(value) != tuple(shape):
        raise ValueError(f"parameter {name} has the shape {jnp.shape(value)}: must be {shape}")
    return value


class Functions(NamedTuple):
    """A model as pure functions. Training, evaluation and sampling use a model only through these functions.

    Attributes:
      init: random key → params, a tree of float32 arrays.
      apply: (params, batch, carry, noise_keys_B=None, shared_key=None) → (logits_BSV, carry). Without `noise_keys_B`, nothing
        is random. Otherwise each row has its own random key. The dropout mask of a row therefore does not depend on the device
        that holds the row.
      penalised: takes the arguments of `apply`, and returns (logits_BSV, carry, penalty). The training
        minimises the sum of the loss plus the penalty; see `regularisers.penalty`. The penalty is None if no penalty is set.
      grad: `jax.grad` for functions that call the model. With `jax.grad` itself, the products of the cells' backward passes
        would not have the precision that `model.precision` sets, because JAX traces them after the model has returned.
      needs_shared_key: whether `noise_keys_B` must come with `shared_key`, the random key of masks that all rows share.
      zero_carry: number of rows → the carry at the beginning of a text. A carry is a tuple with the state of each layer.
      stepwise: (params, rows) → the weights in the layout that `step` needs for `rows` rows.
      step: (weights, ids_B, carry, inside=None) → (logits_BV, carry). Computes the same as `apply` for one character, without
        dropout. If `inside` is a list, the `Seen` of each layer is added to it.
      operations: number of multiply-adds of all layers and the head for one character. The lookup of an id adds nothing to
        this number.
      shape: the names, sizes and connections of the network, for its description and its drawing.
    """

    init: Callable
    apply: Callable
    penalised: Callable
    grad: Callable
    needs_shared_key: bool
    zero_carry: Callable
    stepwise: Callable
    step: Callable
    operations: int
    shape: blocks.Shape


class Stepwise(NamedTuple):
    """The weights in the layout that `Functions.step` needs.

    Attributes:
      layers: the result of `Cell.prepare` for each layer.
      norms: the scales of RMSNorm for each layer. None for a layer without RMSNorm, and for the first layer, because its
        weights in `layers` already include RMSNorm.
      mlps: the parameters of the feed-forward block of each layer. None for a layer without this block.
      embedding_VE: the input of the first layer's skip connection. None if the first layer has no skip connection.
      head_norm_H: the scales of RMSNorm before the head. None if there is no RMSNorm before the head.
      head_kernels: the matrices by which the head multiplies, one after the other.
    """

    layers: tuple[Any, ...]
    norms: tuple[jax.Array | None, ...]
    mlps: tuple[Any, ...]
    embedding_VE: jax.Array | None
    head_norm_H: jax.Array | None
    head_kernels: tuple[jax.Array, ...]
    head_bias_V: jax.Array


class Seen(NamedTuple):
    """What the cell of a layer computes for one character.

    Attributes:
      output_BH: the output of the cell.
      state: name → array (B, …), the state of the cell after the character.
      inside: the gates and the other values inside the cell.
    """

    output_BH: jax.Array
    state: dict[str, jax.Array]
    inside: cells.Inside


def functions(config: ConfigDict, vocab_size: int) -> Functions:
    """The model that a config describes, for a vocabulary of `vocab_size` symbols."""
    shape = blocks.shape_of(config)
    layers, dtype = shape.blocks, shape.dtype
    module = CharLM(shape, vocab_size, FrozenConfigDict(config))
    needs_shared_key = shape.regularisers.needs_shared_key

    def zero_carry(rows: int) -> tuple:
        return tuple(block.cell.zero_state(rows, block.width) for block in layers)

    def init(key):
        ids = jnp.zeros((1, 1), jnp.int32)
        batch = Batch(ids, ids, jnp.ones((1, 1)), jnp.ones(1, bool))
        return module.init(key, batch, zero_carry(1))["params"]

    def penalised(params, batch, carry, noise_keys_B=None, shared_key=None):
        if noise_keys_B is not None and shared_key is None and needs_shared_key:
            raise ValueError("masks of weights or embeddings are on: noise_keys_B must come with shared_key")
        return module.apply({"params": params}, batch, carry, noise_keys_B, shared_key)

    def apply(params, batch, carry, noise_keys_B=None, shared_key=None):
        return penalised(params, batch, carry, noise_keys_B, shared_key)[:2]

    def stepwise(params: Any, rows: int) -> Stepwise:
        by_layer = [params[block.name] for block in layers]
        norms = [params.get(f"norm_{index}") for index in range(len(layers))]
        first = layers[0].cell
        if shape.encoding == "embedding":
            table_VE = params["embedding"] if norms[0] is None else blocks.rms_norm(params["embedding"], norms[0])
            by_layer[0] = first.with_table(by_layer[0], table_VE)
        elif shape.encoding == "scalar":
            by_layer[0] = first.with_table(by_layer[0], jnp.arange(vocab_size, dtype=jnp.float32)[:, None] / vocab_size)
        mlps = [params.get(f"mlp_{index}") for index in range(len(layers))]
        return Stepwise(
            layers=tuple(
                block.cell.prepare(of_layer, rows, dtype, index == 0)
                for index, (block, of_layer) in enumerate(zip(layers, by_layer, strict=True))
            ),
            norms=(None, *norms[1:]),
            mlps=tuple(mlp and blocks.prepared_mlp(mlp, dtype, rows) for mlp in mlps),
            embedding_VE=params["embedding"] if layers[0].skip else None,
            head_norm_H=params.get("norm_head"),
            head_kernels=tuple(operand(kernel, dtype, rows) for kernel in blocks.head_kernels(params)),
            head_bias_V=params["head_bias"],
        )

    def step(weights: Stepwise, ids_B: jax.Array, carry: tuple, inside: list | None = None) -> tuple[jax.Array, tuple]:
        x, table_VE, new_carry = ids_B, weights.embedding_VE, []
        of_layers = zip(layers, weights.layers, weights.norms, weights.mlps, carry, strict=True)
        for block, of_layer, scale_H, mlp, state in of_layers:
            before = blocks.vectors(x, table_VE) if block.skip else None
            if scale_H is not None:
                x = blocks.rms_norm(x, scale_H)
            if inside is not None:
                inside.append(look(block.cell, of_layer, x, state, dtype))
            x, state = block.cell.step(of_layer, x, state, dtype)
            new_carry.append(state)
            table_VE = None
            if before is not None:
                x = x + before
            if mlp is not None:
                x = x + blocks.mlp(mlp, x, dtype)
        if weights.head_norm_H is not None:
            x = blocks.rms_norm(x, weights.head_norm_H)
        for kernel in weights.head_kernels:
            x = product(x, kernel, dtype)
        return x + weights.head_bias_V[None, :], tuple(new_carry)

    precise = functools.partial(in_precision, shape.precision)
    return Functions(
        init=init,
        apply=precise(apply),
        penalised=precise(penalised),
        grad=lambda function, **options: precise(jax.grad(function, **options)),
        needs_shared_key=needs_shared_key,
        zero_carry=zero_carry,
        stepwise=precise(stepwise),
        step=precise(step),
        operations=layer_operations(config) + shape.head_operations(vocab_size),
        shape=shape,
    )


def look(cell: cells.Cell, weights: Any, x: cells.Inputs, state: Any, dtype: jnp.dtype) -> Seen:
    """What a cell computes for one character. The arguments after `cell` are the arguments of `Cell.step`."""
    output_BH, after = cell.step(weights, x, state, dtype)
    leaves, names = jax.tree.leaves(after), cell.state_title.split(", ")
    if len(names) != len(leaves):
        names = [f"state {number}" for number in range(1, len(leaves) + 1)]
    inside = cells.Inside({}, {}) if cell.look is None else cell.look(weights, x, state, dtype)
    return Seen(output_BH, dict(zip(names, leaves, strict=True)), inside)


def layer_operations(config: ConfigDict) -> int:
    """The number of multiply-adds of all layers for one character.

    The first layer is counted as a layer with 0 inputs, because it looks up each id and does not multiply by an input kernel.
    """
    frozen = FrozenConfigDict(config)
    return sum(block.operations(frozen) for block in blocks.blocks_of(config))


def unread_keys(config: ConfigDict) -> list[str]:
    """The keys that have no effect, because only cells other than the config's cells read these keys.

    Keys with their default value are left out.
    """
    all_cells = [cells.named(name) for name in keys.KEYS["model.cell"].rule.options]
    others = {key for cell in all_cells for key in cell.keys}
    others -= {key for block in blocks.blocks_of(config) for key in block.cell.keys}
    values = load.flatten(config)
    return sorted(key for key in others if values[key] != keys.KEYS[key].default)


def keep_rows(carry: Any, keep_B: jax.Array) -> Any:
    """The carry after the states of some rows are set to 0. These are the rows for which `keep_B` is False."""
    return jax.tree.map(lambda leaf: jnp.where(keep_B.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), carry)


def parameter_table(params: Any) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, number of values) of every parameter, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.size) for path, leaf in leaves]


def parameter_count(params: Any) -> int:
    """The total number of values in all parameters."""
    return sum(count for _, _, count in parameter_table(params))


def parameter_lines(params: Any) -> list[str]:
    """The table of parameters as lines of text.

    A layer of PyTorch has two biases for each gate. Most layers of charlm have one bias for each gate. The last line gives the
    number of parameters that the model has with two biases for each gate. If a layer has a `recurrent_bias`, as the GRU has,
    this array already is a part of the second bias.
    """
    table = parameter_table(params)
    total = parameter_count(params)
    biases = {kind: sum(count for name, _, count in table if name.endswith(f"/{kind}")) for kind in ("bias", "recurrent_bias")}
    doubled = total + biases["bias"] - biases["recurrent_bias"]
    rows = [(name, " x ".join(map(str, shape)), count) for name, shape, count in table]
    rows += [("parameters", "", total), ("with two biases a layer", "", doubled)]
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {shape:>12}  {count:>12,}" for name, shape, count in rows]
