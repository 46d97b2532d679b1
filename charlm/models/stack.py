"""`CharLM`: input encoding, a stack of LSTM layers scanned over time, dropout, head. The only room that knows Flax.

Letters: B batch, T time, S scored positions, E embedding, I input features, H hidden, G = 4H, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from charlm.data.batches import Batch
from charlm.models.cells import lstm

CarryStack = tuple[lstm.Carry, ...]  # one (c_BH, h_BH) for each layer, float32


class Initializers(NamedTuple):
    """Flax initialisers by the kind of weight."""

    embedding: nn.initializers.Initializer
    input_kernel: nn.initializers.Initializer
    recurrent_kernel: nn.initializers.Initializer
    bias: nn.initializers.Initializer
    head_kernel: nn.initializers.Initializer
    head_bias: nn.initializers.Initializer


def initializers(name: str, hidden: int, scale: float, head_scale: float) -> Initializers:
    """The initial weights of five systems; the forget bias comes on top of `bias`.

    `orthogonal` (Flax): LeCun normal, each gate's recurrence orthogonal. `glorot` (Keras): Glorot uniform, all four gates'
    recurrence one matrix with orthogonal rows. `axon`: Glorot uniform, each gate's input and recurrence by itself. `pytorch`:
    ±1/sqrt(hidden), biases too, of which PyTorch adds two; the embedding standard normal. `uniform` (MXNet): ±scale, biases 0.
    Where `head_scale` is not 0, the head has ±head_scale and biases 0, as Udacity's CharRNN has it beside PyTorch's own.
    """
    if head_scale > 0:
        head = {"head_kernel": _symmetric_uniform(head_scale), "head_bias": nn.initializers.zeros}
        return initializers(name, hidden, scale, 0.0)._replace(**head)
    zeros = nn.initializers.zeros
    if name == "glorot":
        glorot = nn.initializers.glorot_uniform()
        return Initializers(_symmetric_uniform(0.05), glorot, _orthogonal_rows, zeros, glorot, zeros)
    if name == "axon":
        glorot = nn.initializers.glorot_uniform()
        return Initializers(_symmetric_uniform(0.05), _glorot_gates, _glorot_gates, zeros, glorot, zeros)
    if name == "pytorch":
        small = _symmetric_uniform(1 / math.sqrt(hidden))
        return Initializers(nn.initializers.normal(1.0), small, small, _sum_of_two(small), small, small)
    if name == "uniform":
        small = _symmetric_uniform(scale)
        return Initializers(small, small, small, zeros, small, zeros)
    lecun = nn.initializers.lecun_normal()
    return Initializers(nn.initializers.normal(1.0), lecun, _orthogonal_gates, zeros, lecun, zeros)


class LSTMLayer(nn.Module):
    """The weights of one layer around `lstm.lstm`; gate order i, f, g, o."""

    hidden: int
    inputs: int
    weights: Initializers
    forget_bias: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs, carry, embedding_VI=None):
        """Runs the layer over a window, time first.

        Args:
          inputs: (T, B, I) floats, or (T, B) ids that stand for rows of `embedding_VI` (of the identity without it).
          carry: (c_BH, h_BH) before the window.

        Returns:
          (hidden_TBH, carry after the window); zeros and the carry as it was while the weights are made.
        """
        hidden, forget_bias = self.hidden, self.forget_bias
        input_kernel_IG = self.param("input_kernel", self.weights.input_kernel, (self.inputs, 4 * hidden))
        recurrent_kernel_HG = self.param("recurrent_kernel", self.weights.recurrent_kernel, (hidden, 4 * hidden))
        bias_G = self.param("bias", _with_forget_bias(self.weights.bias, forget_bias), (4 * hidden,))
        if self.is_initializing():  # nobody asks for the outputs, which take long to trace
            return jnp.zeros((*inputs.shape[:2], hidden)), carry
        if embedding_VI is not None:
            # V rows are projected once instead of T·B of them: embedding and projection become one row lookup.
            input_kernel_IG = embedding_VI @ input_kernel_IG
        return lstm.lstm(inputs, input_kernel_IG, bias_G, recurrent_kernel_HG, *carry, self.dtype)


class CharLM(nn.Module):
    """A character-level LSTM language model.

    Attributes:
      vocab_size: V.
      input: `embedding` (V, E), `onehot`, or `scalar`: the id divided by V, one feature.
      embedding: E, used by the embedding input only.
      layers, hidden: number of LSTM layers, and H of each.
      dropout: share of values dropped after each layer (so between layers and before the head), in [0, 1).
      initializer, init_scale, head_scale: see `initializers`.
      forget_bias: initial value of the forget gate's bias.
      dtype: of the operands of matrix products; parameters, state and sums are float32.
    """

    vocab_size: int
    input: str
    embedding: int
    layers: int
    hidden: int
    dropout: float
    initializer: str
    init_scale: float
    head_scale: float
    forget_bias: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, batch: Batch, carry: CarryStack, dropout_keys_B=None):
        init = initializers(self.initializer, self.hidden, self.init_scale, self.head_scale)
        embedding_VE = None
        if self.input == "embedding":
            embedding_VE = self.param("embedding", init.embedding, (self.vocab_size, self.embedding))
        features = {"embedding": self.embedding, "onehot": self.vocab_size, "scalar": 1}[self.input]
        keep_B1 = ~batch.reset_B[:, None]
        carry = jax.tree.map(lambda state_BH: jnp.where(keep_B1, state_BH, 0), carry)
        x, new_carry = batch.inputs_BT.T, []
        if self.input == "scalar":
            x = x[..., None].astype(jnp.float32) / self.vocab_size
        scored = batch.targets_BS.shape[1]
        for index in range(self.layers):
            layer = LSTMLayer(self.hidden, features, init, self.forget_bias, self.dtype, name=f"lstm_{index}")
            x, layer_carry = layer(x, carry[index], embedding_VE if index == 0 else None)
            new_carry.append(layer_carry)
            features = self.hidden
            if index == self.layers - 1:
                x = x[x.shape[0] - scored :]
            if dropout_keys_B is not None and self.dropout > 0:
                x = dropout(jax.vmap(jax.random.fold_in, in_axes=(0, None))(dropout_keys_B, index), x, self.dropout)
        head_HV = self.param("head_kernel", init.head_kernel, (self.hidden, self.vocab_size))
        head_bias_V = self.param("head_bias", init.head_bias, (self.vocab_size,))
        hidden_BSH = x.swapaxes(0, 1)
        logits_BSV = lstm.product(hidden_BSH, head_HV, self.dtype) + head_bias_V[None, None, :]
        return logits_BSV, tuple(new_carry)


class Functions(NamedTuple):
    """A model as pure functions; all that training, evaluation and sampling know of it.

    Attributes:
      init: key → params, a tree of float32 arrays.
      apply: (params, batch, carry, dropout_keys_B=None) → (logits_BSV, carry). No dropout without keys, of which each row has
        its own, so that what is dropped in a row does not depend on how rows are spread over devices.
      zero_carry: B → the state in which every text begins.
      stepwise: (params, rows) → the same weights as `step` reads them, laid out once for so many rows.
      step: (weights, ids_B, carry) → (logits_BV, carry): what `apply` gives for one character, without dropout.
      shape: what a picture of the network shows.
    """

    init: Callable
    apply: Callable
    zero_carry: Callable
    stepwise: Callable
    step: Callable
    shape: "Shape"


class Stepwise(NamedTuple):
    """Weights laid out to read one character at a time.

    Attributes:
      first_VG: float32, what an id adds to the gates of the first layer, its bias included.
      biases: (4H,) of the layers after the first.
      kernels: of each layer, as `lstm.laid_out` has them: of its recurrence, and of its input but in the first.
      head_HV, head_bias_V: of the head, its kernel rounded as the others are.
    """

    first_VG: jax.Array
    biases: tuple[jax.Array, ...]
    kernels: tuple[tuple[jax.Array, ...], ...]
    head_HV: jax.Array
    head_bias_V: jax.Array


class Shape(NamedTuple):
    """Of a network: layers, units of each, how an id enters, share dropped after each layer."""

    layers: int
    hidden: int
    encoding: str
    dropout: float


def functions(config, vocab_size: int) -> Functions:
    """The model that the config describes, for a vocabulary of the given size."""
    layers, hidden = config.model.layers, config.model.hidden
    module = CharLM(
        vocab_size=vocab_size,
        input=config.model.input,
        embedding=config.model.embedding,
        layers=layers,
        hidden=hidden,
        dropout=config.model.dropout,
        initializer=config.model.init,
        init_scale=config.model.init_scale,
        head_scale=config.model.head_scale,
        forget_bias=config.model.forget_bias,
        dtype=jnp.dtype(config.model.dtype),
    )

    def zero_carry(lanes: int) -> CarryStack:
        return tuple((jnp.zeros((lanes, hidden)), jnp.zeros((lanes, hidden))) for _ in range(layers))

    def init(key):
        ids = jnp.zeros((1, 1), jnp.int32)
        batch = Batch(ids, ids, jnp.ones((1, 1)), jnp.ones(1, bool))
        return module.init(key, batch, zero_carry(1))["params"]

    def apply(params, batch, carry, dropout_keys_B=None):
        return module.apply({"params": params}, batch, carry, dropout_keys_B)

    def stepwise(params, rows: int) -> Stepwise:
        first, *above = (params[f"lstm_{index}"] for index in range(layers))
        first_VG = first["input_kernel"]
        if module.input == "embedding":
            first_VG = params["embedding"] @ first_VG
        elif module.input == "scalar":
            first_VG = (jnp.arange(vocab_size, dtype=jnp.float32)[:, None] / vocab_size) * first_VG
        kernels = [[first["recurrent_kernel"]], *([layer["input_kernel"], layer["recurrent_kernel"]] for layer in above)]
        return Stepwise(
            first_VG=first_VG + first["bias"][None, :],
            biases=tuple(layer["bias"] for layer in above),
            kernels=tuple(lstm.laid_out(of_layer, module.dtype, rows) for of_layer in kernels),
            head_HV=lstm.operand(params["head_kernel"], module.dtype, rows),
            head_bias_V=params["head_bias"],
        )

    def step(weights: Stepwise, ids_B, carry: CarryStack):
        z_BG, above = jnp.take(weights.first_VG, ids_B, axis=0, mode="clip"), ()
        new_carry = []
        for index, (c_BH, h_BH) in enumerate(carry):
            if index > 0:
                z_BG, above = weights.biases[index - 1][None, :], (new_carry[-1][1],)
            new_carry.append(lstm.step(z_BG, (*above, h_BH), weights.kernels[index], c_BH, module.dtype))
        logits_BV = lstm.product(new_carry[-1][1], weights.head_HV, module.dtype) + weights.head_bias_V[None, :]
        return logits_BV, tuple(new_carry)

    return Functions(init, apply, zero_carry, stepwise, step, Shape(layers, hidden, module.input, module.dropout))


def parameter_table(params) -> list[tuple[str, tuple[int, ...], int]]:
    """(name, shape, count) of every parameter, in the order of the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, leaf.size) for path, leaf in leaves]


def parameter_count(params) -> int:
    """Numbers in all parameters together."""
    return sum(count for _, _, count in parameter_table(params))


def parameter_lines(params) -> list[str]:
    """The table as lines for people; the last one counts two biases a layer, which PyTorch has for the same function."""
    table = parameter_table(params)
    total = parameter_count(params)
    doubled = total + sum(count for name, _, count in table if name.startswith("lstm_") and name.endswith("/bias"))
    rows = [(name, " x ".join(map(str, shape)), count) for name, shape, count in table]
    rows += [("parameters", "", total), ("with two biases a layer", "", doubled)]
    width = max(len(name) for name, _, _ in rows)
    return [f"  {name:<{width}}  {shape:>12}  {count:>12,}" for name, shape, count in rows]


def dropout(keys_B, x_TBH, rate: float):
    """Inverted dropout (Srivastava et al. 2014): zeroes a share `rate` of x and scales the rest so that the mean stays.

    The rate is rounded to a multiple of 2^-16: one random word then serves two values, and drawing them costs half as much.
    """
    dropped = min(round(rate * 2**16), 2**16 - 1)
    steps, rows, hidden = x_TBH.shape
    words_BN = jax.vmap(lambda key: jax.random.bits(key, ((steps * hidden + 1) // 2,), jnp.uint32))(keys_B)
    halves_BTH = jax.lax.bitcast_convert_type(words_BN, jnp.uint16).reshape(rows, -1)[:, : steps * hidden]
    halves_TBH = halves_BTH.reshape(rows, steps, hidden).swapaxes(0, 1)
    return jnp.where(halves_TBH >= dropped, x_TBH * (2**16 / (2**16 - dropped)), 0)


def _with_forget_bias(initializer, forget_bias: float):
    def init(key, shape):
        hidden = shape[0] // 4
        return initializer(key, shape).at[hidden : 2 * hidden].add(forget_bias)

    return init


def _symmetric_uniform(bound: float):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _sum_of_two(initializer):
    return lambda key, shape: sum(initializer(each, shape) for each in jax.random.split(key))


def _glorot_gates(key, shape, dtype=jnp.float32):
    """Each gate's (I, H) block by itself, so that its bound is that of I inputs and H outputs, not of 4H."""
    inputs, units = shape
    return _symmetric_uniform(math.sqrt(6 / (inputs + units // 4)))(key, shape, dtype)


def _orthogonal_gates(key, shape, dtype=jnp.float32):
    """Each gate's (H, H) block a random orthogonal matrix, as in Flax's cells."""
    hidden = shape[0]
    rows = jax.random.normal(key, (4 * hidden, hidden), jnp.float32)  # drawn with three axes, XLA takes 1 s longer to compile
    blocks = _orthogonalized(rows.reshape(4, hidden, hidden))
    return blocks.swapaxes(0, 1).reshape(shape).astype(dtype)


def _orthogonal_rows(key, shape, dtype=jnp.float32):
    """The (H, 4H) matrix of all gates with orthonormal rows, as in Keras."""
    return _orthogonalized(jax.random.normal(key, (1, *shape), jnp.float32))[0].astype(dtype)


def _orthogonalized(blocks_NIO):
    """The orthogonal factors of random matrices with at most as many rows as columns, to 1e-6 (to 1e-3 or worse for one square
    matrix in a hundred).

    By Newton-Schulz iteration: products only, because several QR decompositions in one program wait for each other for ever in
    XLA:CPU (jaxlib 0.10.2, two cores, H = 512).
    """
    blocks_NIO /= jnp.linalg.norm(blocks_NIO, axis=(1, 2), keepdims=True)

    def iterate(_, blocks):
        return 1.5 * blocks - 0.5 * (blocks @ blocks.swapaxes(1, 2)) @ blocks

    # A singular value grows by half a step until it is near 1, and the smallest begins at about rows ** -1.5.
    return jax.lax.fori_loop(0, 20 + int(4 * math.log(blocks_NIO.shape[1] + 1)), iterate, blocks_NIO)
