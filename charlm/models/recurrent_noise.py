"""Zoneout and recurrent dropout: the regularisers that act inside the recurrence.

They act on every cell whose `keys` contain their config keys.

Zoneout (Krueger et al. 2017, arXiv:1606.01305): in training, each unit keeps the value of the previous step with the
probability k. c and h have separate random masks and separate probabilities. The new h is always computed from the new c, even
if the unit then keeps its old c. Nothing is scaled. In evaluation, c and h take their expected values, as in the paper:

    c = k_c c' + (1 - k_c) c_new          h = k_h h' + (1 - k_h) h_new          c', h' are the state of the previous step

Recurrent dropout (Semeniuta et al. 2016, arXiv:1603.05118): in training, values of the candidate g are dropped before g enters
the state. The state itself is never dropped. The mask is new at every step. The paper scales g by 1 - rate in evaluation. Here,
g is scaled by 1 / (1 - rate) in training, and evaluation uses the plain cell.

With zoneout or recurrent dropout, training does not use the fast `window` of the cell. It uses the loop over time in
`cells/deferred.py` if the cell has a `recurrence`, and otherwise a plain loop over the steps of the cell. Zoneout changes the
evaluation too, so evaluation with zoneout uses the plain loop. Evaluation with recurrent dropout alone uses the fast `window`.
If the config sets none of the keys, `with_noise` returns the cell unchanged.

Letters: T time, B batch (rows), H hidden units.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config.packs import is_on
from charlm.models import dropout
from charlm.models.cells import Cell, Inputs, Params, State, deferred, is_ids

# The numbers that are folded into the random keys of the rows.
CANDIDATE, CELL_STATE, HIDDEN_STATE = range(3)


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


def with_noise(cell: Cell, config: ConfigDict | FrozenConfigDict) -> Cell:
    """The cell with the zoneout and the recurrent dropout of the config."""
    chosen = rates(cell, config)
    if not any(map(is_on, chosen)):
        return cell

    def window(
        params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_keys_B: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        if noise_keys_B is None:
            if not chosen.has_zoneout:
                return cell.window(params, inputs, state, dtype)
            return _by_steps(cell, chosen, params, inputs, state, dtype, None)
        noise_T = _noise(noise_keys_B, chosen, inputs.shape[0], jax.tree.leaves(state)[0].shape[-1])
        if cell.recurrence is None:
            return _by_steps(cell, chosen, params, inputs, state, dtype, noise_T)
        return _deferred(chosen, cell.recurrence(params, inputs, state, dtype), noise_T)

    def step(weights: Any, x: Inputs, state: State, dtype: jnp.dtype) -> tuple[jax.Array, State]:
        return _with_noise(functools.partial(cell.step, weights, x, state, dtype), chosen, state, None)

    return cell._replace(window=window, step=step)


class _Noise(NamedTuple):
    """The random numbers of one step. For all steps of a window, each array has an additional first axis T.

    An array is None if its rate is 0.

    Attributes:
      factor: (B, H), the factor by which the candidate is multiplied: 0 where a value is dropped.
      keeps_cell, keeps_hidden: (B, H) bool, True if a unit of c or of h keeps the value of the previous step.
    """

    factor: jax.Array | None
    keeps_cell: jax.Array | None
    keeps_hidden: jax.Array | None


def _noise(keys_B: jax.Array, chosen: Rates, steps: int, hidden: int) -> _Noise:
    of_candidate, of_cell, of_hidden = (dropout.fold_in(keys_B, number) for number in (CANDIDATE, CELL_STATE, HIDDEN_STATE))
    ones_TBH = jnp.ones((steps, len(keys_B), hidden))

    def keeps(keys_B, rate):
        return jnp.logical_not(dropout.kept(keys_B, steps, hidden, rate)) if rate > 0 else None

    return _Noise(
        factor=dropout.dropout(of_candidate, ones_TBH, chosen.recurrent_dropout) if is_on(chosen.recurrent_dropout) else None,
        keeps_cell=keeps(of_cell, chosen.zoneout_cell),
        keeps_hidden=keeps(of_hidden, chosen.zoneout_hidden),
    )


def _by_steps(
    cell: Cell, chosen: Rates, params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_T: _Noise | None
) -> tuple[jax.Array, State]:
    """Runs a layer over a window by a plain loop over the steps of the cell."""
    # In training, `cell.step` rounds the kernels. If they were rounded here, the sum of their gradients would be rounded too.
    dtype_of_weights = dtype if noise_T is None else jnp.promote_types(dtype, jnp.float32)
    weights = cell.prepare(params, inputs.shape[1], dtype_of_weights, is_ids(inputs))

    def one(state, x_and_noise):
        x, noise = x_and_noise
        output_BH, state = _with_noise(functools.partial(cell.step, weights, x, state, dtype), chosen, state, noise)
        return state, output_BH

    state, outputs_TBH = jax.lax.scan(one, state, (inputs, noise_T))
    return outputs_TBH, state


def _deferred(chosen: Rates, recurrence: tuple, noise_T: _Noise) -> tuple[jax.Array, State]:
    """Runs a layer over a window by `deferred.scan`. `recurrence` is the result of `Cell.recurrence`."""
    step, kernels, others, inputs_T, state, dtype = recurrence

    def one(times, others, x_and_noise, state):
        x, noise = x_and_noise
        return _with_noise(functools.partial(step, times, others, x, state), chosen, state, noise)

    return deferred.scan(one, kernels, others, (inputs_T, noise_T), state, dtype)


def _with_noise(step: Callable, chosen: Rates, state: State, noise: _Noise | None) -> tuple[jax.Array, State]:
    """A step of the cell with noise. If `noise` is None, nothing is random, and zoneout uses the expected values.

    Args:
      step: (**factor_BH) → (output_BH, state), the step of the cell from `state`.
    """
    candidate = {} if noise is None or noise.factor is None else {"factor_BH": noise.factor.astype(_dtype_of(state))}
    output_BH, new_state = step(**candidate)
    if not chosen.has_zoneout:
        return output_BH, new_state
    # The state of a cell with zoneout is h, or (c, h), and its output is h.
    (*old_c, old_h), (*new_c, new_h) = jax.tree.leaves(state), jax.tree.leaves(new_state)
    mixed_h = _mixed(old_h, new_h, chosen.zoneout_hidden, None if noise is None else noise.keeps_hidden)
    mixed_c = [
        _mixed(old, new, chosen.zoneout_cell, None if noise is None else noise.keeps_cell)
        for old, new in zip(old_c, new_c, strict=True)
    ]
    return mixed_h, jax.tree.unflatten(jax.tree.structure(state), [*mixed_c, mixed_h])


def _mixed(old: jax.Array, new: jax.Array, rate: float, keeps: jax.Array | None) -> jax.Array:
    if rate == 0:
        return new
    return rate * old + (1 - rate) * new if keeps is None else jnp.where(keeps, old, new)


def _dtype_of(state: State) -> jnp.dtype:
    return jax.tree.leaves(state)[0].dtype
