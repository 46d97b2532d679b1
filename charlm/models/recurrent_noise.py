"""Zoneout and recurrent dropout: the regularisers that act inside the recurrence, for every cell that reads their keys.

Zoneout (Krueger et al. 2017, arXiv:1606.01305): in training, each unit keeps its value of the step before with the probability
k, separately for c and h. The h of a step is computed from the new c of the cell, also where c keeps its old value. Nothing is
scaled. In evaluation, both take the expected value, as in the paper:

    c = k_c c' + (1 - k_c) c_new          h = k_h h' + (1 - k_h) h_new          c', h' are the state of the previous step

Recurrent dropout (Semeniuta et al. 2016, arXiv:1603.05118): in training, the candidate g that enters the state is dropped, so
the state itself is never dropped. The mask is new at every step. The paper scales g by 1 - rate in evaluation. Here g is scaled
by 1 / (1 - rate) in training, and evaluation is the plain cell.

A cell with one of them runs as a plain loop over its steps. Without them, the cell is returned as it is. With recurrent dropout
alone, evaluation uses the fast window of the cell. Zoneout changes the evaluation too.

Letters: T time, B batch (rows), H hidden units.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.models import dropout
from charlm.models.cells import Cell, Inputs, Params, State, is_ids

# The numbers that are folded into the random keys of the rows.
CANDIDATE, CELL_STATE, HIDDEN_STATE = range(3)


class Rates(NamedTuple):
    """The shares of one cell. The share of a key that the cell does not read is 0."""

    recurrent_dropout: float
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
    shares = rates(cell, config)
    if not any(shares):
        return cell

    def window(
        params: Params, inputs: Inputs, state: State, dtype: jnp.dtype, noise_keys_B: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        steps, rows = inputs.shape[:2]
        if noise_keys_B is None:
            if not shares.has_zoneout:
                return cell.window(params, inputs, state, dtype)
            noise_T, dtype_of_weights = None, dtype
        else:
            noise_T = _noise(noise_keys_B, shares, steps, jax.tree.leaves(state)[0].shape[-1])
            # `cell.step` rounds the kernels. If they were rounded here, the sum of their gradients would be rounded too.
            dtype_of_weights = jnp.promote_types(dtype, jnp.float32)
        weights = cell.prepare(params, rows, dtype_of_weights, is_ids(inputs))

        def one(state, arguments):
            x, noise = arguments
            output_BH, state = _step(cell, shares, weights, x, state, dtype, noise)
            return state, output_BH

        state, outputs_TBH = jax.lax.scan(one, state, (inputs, noise_T))
        return outputs_TBH, state

    def step(weights: Any, x: Inputs, state: State, dtype: jnp.dtype) -> tuple[jax.Array, State]:
        return _step(cell, shares, weights, x, state, dtype, None)

    return cell._replace(window=window, step=step)


class _Noise(NamedTuple):
    """The random numbers of a step, or of all steps. None where the share is 0.

    Attributes:
      factor: factor of the candidate, (B, H).
      keeps_cell, keeps_hidden: whether a unit keeps its value of the step before, (B, H) bool.
    """

    factor: jax.Array | None
    keeps_cell: jax.Array | None
    keeps_hidden: jax.Array | None


def _noise(keys_B: jax.Array, shares: Rates, steps: int, hidden: int) -> _Noise:
    of_candidate, of_cell, of_hidden = (
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number) for number in (CANDIDATE, CELL_STATE, HIDDEN_STATE)
    )
    ones_TBH = jnp.ones((steps, len(keys_B), hidden))

    def keeps(keys_B, share):
        return jnp.logical_not(dropout.kept(keys_B, steps, hidden, share)) if share > 0 else None

    return _Noise(
        factor=dropout.dropout(of_candidate, ones_TBH, shares.recurrent_dropout) if shares.recurrent_dropout > 0 else None,
        keeps_cell=keeps(of_cell, shares.zoneout_cell),
        keeps_hidden=keeps(of_hidden, shares.zoneout_hidden),
    )


def _step(
    cell: Cell, shares: Rates, weights: Any, x: Inputs, state: State, dtype: jnp.dtype, noise: _Noise | None
) -> tuple[jax.Array, State]:
    """A step of the cell with noise. Without noise, zoneout takes the expected value."""
    candidate = {} if noise is None or noise.factor is None else {"factor_BH": noise.factor.astype(_dtype_of(state))}
    output_BH, new_state = cell.step(weights, x, state, dtype, **candidate)
    if not shares.has_zoneout:
        return output_BH, new_state
    # The state of a cell with zoneout is h, or (c, h), and its output is h.
    (*old_c, old_h), (*new_c, new_h) = jax.tree.leaves(state), jax.tree.leaves(new_state)
    mixed_h = _mixed(old_h, new_h, shares.zoneout_hidden, None if noise is None else noise.keeps_hidden)
    mixed_c = [
        _mixed(old, new, shares.zoneout_cell, None if noise is None else noise.keeps_cell)
        for old, new in zip(old_c, new_c, strict=True)
    ]
    return mixed_h, jax.tree.unflatten(jax.tree.structure(state), [*mixed_c, mixed_h])


def _mixed(old: jax.Array, new: jax.Array, share: float, keeps: jax.Array | None) -> jax.Array:
    if share == 0:
        return new
    return share * old + (1 - share) * new if keeps is None else jnp.where(keeps, old, new)


def _dtype_of(state: State) -> jnp.dtype:
    return jax.tree.leaves(state)[0].dtype
