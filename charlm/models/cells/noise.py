"""The noise inside a recurrence: recurrent dropout and zoneout, applied to the steps of a cell. `models/recurrent_noise.py`
explains them and draws the random numbers.

Letters: T time, B batch (rows), H hidden units.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from charlm.models.cells import State, deferred


class Noise(NamedTuple):
    """The random numbers of one step. For all steps of a window, each array has an additional first axis T.

    An array is None if its rate is 0.

    Attributes:
      factor: (B, H), the factor by which the candidate is multiplied: 0 where a value is dropped.
      keeps_cell, keeps_hidden: (B, H) bool, True if a unit of c or of h keeps the value of the previous step.
    """

    factor: jax.Array | None = None
    keeps_cell: jax.Array | None = None
    keeps_hidden: jax.Array | None = None


def kept(keeps: jax.Array | None, old: jax.Array, new: jax.Array) -> jax.Array:
    """The old values where `keeps` is True, and the new values elsewhere."""
    return new if keeps is None else jnp.where(keeps, old, new)


def noisy_step(step: Callable, state: State, noise: Noise) -> tuple[jax.Array, State]:
    """A step of a cell with noise.

    Args:
      step: (**factor_BH) → (output_BH, state), the step of the cell from `state`.
      state: with zoneout, the state must be h, or (c, h), and the output must be h.
    """
    candidate = {} if noise.factor is None else {"factor_BH": noise.factor}
    output_BH, new_state = step(**candidate)
    if noise.keeps_cell is None and noise.keeps_hidden is None:
        return output_BH, new_state
    (*old_c, old_h), (*new_c, new_h) = jax.tree.leaves(state), jax.tree.leaves(new_state)
    c = [kept(noise.keeps_cell, old, new) for old, new in zip(old_c, new_c, strict=True)]
    h = kept(noise.keeps_hidden, old_h, new_h)
    return h, jax.tree.unflatten(jax.tree.structure(state), [*c, h])


def scan(arguments: tuple, noise_T: Noise, unroll: int = 1) -> tuple[jax.Array, State]:
    """`deferred.scan` with noise.

    Args:
      arguments: the arguments of `deferred.scan`. The step must take the factor of recurrent dropout as its last argument
        `factor_BH`, if there is such a factor.
    """
    step, kernels, others, inputs_T, state, dtype = arguments

    def one(times, others, x_and_noise, state):
        x, noise = x_and_noise
        return noisy_step(functools.partial(step, times, others, x, state), state, noise)

    return deferred.scan(one, kernels, others, (inputs_T, noise_T), state, dtype, unroll)
