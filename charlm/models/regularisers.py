"""The regularisers that a config sets: the dropout rates of each place, and the penalties on activations.

`dropout.py` drops activations, weights and embeddings. `recurrent_noise.py` has zoneout, recurrent dropout and state noise,
which act on the recurrent state.

Letters: B batch, T time, S scored positions, H hidden units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config.packs import is_on
from charlm.errors import UserError
from charlm.models.dropout import Rate


class Regularisers(NamedTuple):
    """The regularisers outside the recurrence. A value of 0 turns a regulariser off.

    Attributes:
      input: dropout rate of the features that the first layer reads.
      hidden: dropout rate of the outputs of each layer except the last.
      output: dropout rate of the outputs of the last layer, before the head.
      per_window: whether the dropout with the rates `input`, `hidden` and `output` has one mask for all steps of a window.
      weight_drop: dropout rate of the weights in the recurrent kernels.
      embedding: fraction of the symbols whose embedding is dropped.
      state_noise: fraction of the rows of a window that begin with a random state.
      ar, tar: the factors alpha and beta of the penalties AR and TAR; see `penalty`.
    """

    input: Rate
    hidden: Rate
    output: Rate
    per_window: bool
    weight_drop: Rate
    embedding: Rate
    state_noise: float
    ar: float
    tar: float

    @property
    def needs_shared_key(self) -> bool:
        """Whether some masks are the same for all rows. Such a mask can't be drawn from the key of one row."""
        return is_on(self.weight_drop) or is_on(self.embedding)

    def dropout(self, layers: int) -> tuple[Rate, ...]:
        """The dropout rate before the first layer, and the dropout rate after each of `layers` layers."""
        return (self.input, *[self.hidden] * (layers - 1), self.output)


def of(config: ConfigDict | FrozenConfigDict, encoding: str) -> Regularisers:
    """The regularisers of a config.

    Args:
      encoding: the input encoding, `model.input`.

    Raises:
      UserError: a regulariser of the embedding is set, but the model has no embedding.
    """
    everywhere, hidden, output = config.model.dropout, config.model.dropout_hidden, config.model.dropout_output
    made = Regularisers(
        input=config.model.dropout_input,
        hidden=hidden if is_on(hidden) else everywhere,
        output=output if is_on(output) else everywhere,
        per_window=config.model.dropout_kind == "variational",
        weight_drop=config.model.weight_drop,
        embedding=config.model.embedding_dropout,
        state_noise=config.model.state_noise,
        ar=config.model.ar,
        tar=config.model.tar,
    )
    for name, rate in (("dropout_input", made.input), ("embedding_dropout", made.embedding)):
        if is_on(rate) and encoding != "embedding":
            raise UserError(f"model.{name}={rate}: needs an embedding, but model.input={encoding}.")
    return made


def keys_without_effect(config: ConfigDict, layers: int, carries_state: bool) -> list[str]:
    """A sentence for each key of dropout or of state noise that is set, but has no effect because of other keys.

    Args:
      carries_state: whether windows begin with the state that the window before has left.
    """
    sentences = []
    hidden, output = config.model.dropout_hidden, config.model.dropout_output
    if hidden and layers == 1:
        sentences.append("model.dropout_hidden has no effect: it acts between layers, and the model has one layer.")
    if config.model.dropout and output and (hidden or layers == 1):
        sentences.append("model.dropout has no effect: model.dropout_hidden and model.dropout_output replace it.")
    shares = (config.model.dropout_input, config.model.dropout, hidden, output)
    if config.model.dropout_kind != "step" and not any(shares):
        sentences.append(f"model.dropout_kind={config.model.dropout_kind} has no effect: the model has no dropout.")
    if config.model.state_noise and not carries_state:
        sentences.append("model.state_noise has no effect: every window begins with the zero state.")
    return sentences


def penalty(
    regularisers: Regularisers, outputs_TBH: jax.Array, dropped_SBH: jax.Array, weights_BS: jax.Array
) -> jax.Array | None:
    """The penalties AR and TAR, which are added to the sum of the loss (Merity et al. 2017, arXiv:1708.01009).

    Returns None if both penalties are off.

    AR is alpha times the mean square of the last layer's outputs after dropout. TAR is beta times the mean squared difference
    of the last layer's outputs, before dropout, at successive positions of a window.

    The training step adds the losses and the penalties of all devices, and divides this sum by the sum of the weights of all
    devices. Therefore this function returns the mean penalty of its rows times the sum of the weights of its rows. Padding has
    weight 0, so it adds nothing to the penalty.

    Args:
      outputs_TBH: the outputs of the last layer before dropout.
      dropped_SBH: the outputs of the last layer at the scored positions, after dropout.
      weights_BS: the weights of the scored positions. In each row, every position before the scored
        positions has the weight of the first scored position.
    """
    if not (regularisers.ar or regularisers.tar):
        return None
    weights_SB = jnp.asarray(weights_BS).T
    total = jnp.zeros((), outputs_TBH.dtype)
    if regularisers.ar:
        total += regularisers.ar * (jnp.square(dropped_SBH).mean(-1) * weights_SB).sum()
    steps, scored = len(outputs_TBH), len(weights_SB)
    if regularisers.tar and steps > 1:
        weights_TB = jnp.pad(weights_SB, ((steps - scored, 0), (0, 0)), mode="edge")
        squares_TB = jnp.square(jnp.diff(outputs_TBH, axis=0)).mean(-1)
        # A row has steps - 1 differences, but `scored` positions in the sum of the weights.
        total += regularisers.tar * scored / (steps - 1) * (squares_TB * weights_TB[1:]).sum()
    return total
