"""Zoneout, recurrent dropout and state noise: the regularisers that act on the recurrent state.

They act on every cell whose `keys` contain their config keys.

Zoneout (Krueger et al. 2017, arXiv:1606.01305): in training, each unit keeps the value of the previous step with the
probability k. c and h have separate random masks and separate probabilities. The new h is always computed from the new c, even
if the unit then keeps its old c. Nothing is scaled. In evaluation, c and h take their expected values, as in the paper:

    c = k_c c' + (1 - k_c) c_new          h = k_h h' + (1 - k_h) h_new          c', h' are the state of the previous step

Recurrent dropout (Semeniuta et al. 2016, arXiv:1603.05118): in training, values of the candidate g are dropped before g enters
the state. The state itself is never dropped. The mask is new at every step. The paper scales g by 1 - rate in evaluation. Here,
g is scaled by 1 / (1 - rate) in training, and evaluation uses the plain cell.

With zoneout or recurrent dropout, training uses the `noisy_window` of the cell if there is one, and otherwise a plain loop over
the steps of the cell, which is slower. Zoneout changes the evaluation too, so evaluation with zoneout uses the plain loop.
Evaluation with recurrent dropout alone uses the `window` of the cell. If the config sets none of these keys, `with_noise`
returns the cell unchanged.

State noise: in training, some rows of a window begin with a random state instead of the state that the window before has left.
The states of all layers are then random, and most values are far larger than usual. The reason is a failure: if a rare symbol
was repeated many times, h of a layer became up to ten times larger than usual. The large h kept the gates open, so h stayed
large, and the predictions were useless for hundreds of characters (experiments/2026-11-29-general-recipe). With state noise,
the model meets large states in training and learns to return from them. A row that begins with the zero state keeps it.

Letters: T time, B batch (rows), H hidden units.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config.packs import is_on
from charlm.models import dropout
from charlm.models.cells import Cell, Inputs, Params, State, is_ids
from charlm.models.cells.noise import Noise, noisy_step

# The numbers that are folded into the random keys of the rows.
CANDIDATE, CELL_STATE, HIDDEN_STATE = range(3)
CHOICE = 1 << 16  # above every index of a layer

STANDARD_DEVIATION = 4.0  # of the random c; the tanh of most of its values is then near -1 or 1


class Rates(NamedTuple):
    """The probabilities of dropout and zoneout for one cell. If the cell does not read a key, the rate of the key is 0."""

    recurrent_dropout: dropout.Rate
    zoneout_cell: float
    zoneout_hidden: float

    @property
    def has_zoneout(self) -> bool:
        return self.zoneout_cell > 0 or self.zoneout_hidden > 0


def rates(cell: Cell, config: ConfigDict | FrozenConfigDict) -> Rates:
    return Rates(
        recurrent_dropout=config.model.recurrent_dropout if "model.recurrent_dropout" in cell.keys else 0.0,
        zoneout_cell=config.model.zoneout_cell if "model.zoneout_cell" in cell.keys else 0.0,
        zoneout_hidden=config.model.zoneout_hidden if "model.zoneout_hidden" in cell.keys else 0.0,
    )


def with_noise(cell: Cell, config: ConfigDict | FrozenConfigDict, unroll: int = 1) -> Cell:
    """The cell with the zoneout and the recurrent dropout of the config.

    Args:
      unroll: number of steps that XLA compiles as one iteration of the loops over time in this file.
    """
    chosen = rates(cell, config)
    if not any(map(is_on, chosen)):
        return cell

    def window(
        params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_keys_B: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        if noise_keys_B is None:
            if not chosen.has_zoneout:
                return cell.window(params, inputs, state, dtype)
            return _by_steps(cell, chosen, params, inputs, state, dtype, None, unroll)
        like_BH = jax.tree.leaves(state)[0]
        noise_T = _noise(noise_keys_B, chosen, inputs.shape[0], like_BH.shape[-1], like_BH.dtype)
        if cell.noisy_window is None:
            return _by_steps(cell, chosen, params, inputs, state, dtype, noise_T, unroll)
        return cell.noisy_window(params, inputs, state, dtype, noise_T, unroll)

    def step(weights: Any, x: Inputs, state: State, dtype: jnp.dtype) -> tuple[jax.Array, State]:
        return _expected(functools.partial(cell.step, weights, x, state, dtype), chosen, state)

    return cell._replace(window=window, step=step)


def with_random_states(
    keys_B: jax.Array, carry: tuple[State, ...], cells: Sequence[Cell], rate: float, carried_B: jax.Array
) -> tuple[State, ...]:
    """The carry after the states of some rows are replaced by random states: c is normal, and h = o tanh(c) with a uniform o.

    Args:
      keys_B: a random key for each row.
      carry: the state of each layer. The state of a cell with the key `model.state_noise` is h or (c, h). Other cells keep
        their states.
      rate: the probability that a row gets random states.
      carried_B: False for the rows whose state is the zero state. They keep it.
    """
    chosen_B1 = (carried_B & (jax.vmap(jax.random.uniform)(dropout.fold_in(keys_B, CHOICE)) < rate))[:, None]

    def disturbed(layer, cell, state):
        if "model.state_noise" not in cell.keys:
            return state
        *c, h_BH = jax.tree.leaves(state)
        of_layer_B = dropout.fold_in(keys_B, layer)
        normal_BH = jax.vmap(lambda key: jax.random.normal(key, h_BH.shape[1:]))(dropout.fold_in(of_layer_B, CELL_STATE))
        o_BH = jax.vmap(lambda key: jax.random.uniform(key, h_BH.shape[1:]))(dropout.fold_in(of_layer_B, HIDDEN_STATE))
        random_c_BH = STANDARD_DEVIATION * normal_BH
        drawn = [random_c_BH] * len(c) + [o_BH * jnp.tanh(random_c_BH)]
        leaves = [jnp.where(chosen_B1, new, old) for new, old in zip(drawn, (*c, h_BH), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)

    return tuple(map(disturbed, range(len(cells)), cells, carry))


def _noise(keys_B: jax.Array, chosen: Rates, steps: int, hidden: int, dtype: jnp.dtype) -> Noise:
    of_candidate, of_cell, of_hidden = (dropout.fold_in(keys_B, number) for number in (CANDIDATE, CELL_STATE, HIDDEN_STATE))
    ones_TBH = jnp.ones((steps, len(keys_B), hidden), dtype)

    def keeps(keys_B, rate):
        return jnp.logical_not(dropout.kept(keys_B, steps, hidden, rate)) if rate > 0 else None

    return Noise(
        factor=dropout.dropout(of_candidate, ones_TBH, chosen.recurrent_dropout) if is_on(chosen.recurrent_dropout) else None,
        keeps_cell=keeps(of_cell, chosen.zoneout_cell),
        keeps_hidden=keeps(of_hidden, chosen.zoneout_hidden),
    )


def _by_steps(
    cell: Cell,
    chosen: Rates,
    params: Params,
    inputs: Inputs,
    state: State,
    dtype: jnp.dtype,
    noise_T: Noise | None,
    unroll: int,
) -> tuple[jax.Array, State]:
    """Runs a layer over a window by a plain loop over the steps of the cell."""
    # In training, `cell.step` rounds the kernels. If they were rounded here, the sum of their gradients would be rounded too.
    dtype_of_weights = dtype if noise_T is None else jnp.promote_types(dtype, jnp.float32)
    weights = cell.prepare(params, inputs.shape[1], dtype_of_weights, is_ids(inputs))

    def one(state, x_and_noise):
        x, noise = x_and_noise
        step = functools.partial(cell.step, weights, x, state, dtype)
        output_BH, state = _expected(step, chosen, state) if noise is None else noisy_step(step, state, noise)
        return state, output_BH

    state, outputs_TBH = jax.lax.scan(one, state, (inputs, noise_T), unroll=unroll)
    return outputs_TBH, state


def _expected(step: Callable, chosen: Rates, state: State) -> tuple[jax.Array, State]:
    """A step of the cell without random numbers: zoneout uses the expected values. `step` is that of `noisy_step`."""
    output_BH, new_state = step()
    if not chosen.has_zoneout:
        return output_BH, new_state
    (*old_c, old_h), (*new_c, new_h) = jax.tree.leaves(state), jax.tree.leaves(new_state)
    c = [_mixed(chosen.zoneout_cell, old, new) for old, new in zip(old_c, new_c, strict=True)]
    h = _mixed(chosen.zoneout_hidden, old_h, new_h)
    return h, jax.tree.unflatten(jax.tree.structure(state), [*c, h])


def _mixed(rate: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return new if rate == 0 else rate * old + (1 - rate) * new
