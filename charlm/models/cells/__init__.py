"""The recurrences: one file each. Nothing outside this folder knows which one runs.

To add a recurrence NAME:
1. Write `cells/NAME.py`. It ends with `CELL = Cell(...)`, which has the parts described below. `lstm.py` is an example;
   its fast path is the larger part of it, and a plain cell needs none: `window=by_steps(step)` is enough.
2. Add "NAME" to the choices of `model.cell` in `charlm/config/keys.py`, and its own keys, if it has any, to the same table.
Training, evaluation, sampling, sweeps, drawing, several devices and resume then work. The tests in
`tests/models/cells/test_cells.py` run on it by themselves.

Letters: T time, B batch (rows), I input features, H hidden units, V rows of a table.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]  # one layer's, float32
State = Any  # a tree whose leaves are float32 (B, …)
Inputs = jax.Array  # floats (…, I), or ids (…) that stand for rows of the input kernel


class Cell(NamedTuple):
    """A recurrence: all that the rest of the program knows of it.

    Attributes:
      title: its name in pictures. state_title: what is handed from step to step, in pictures.
      keys: the config keys that this cell reads and others need not, such as `model.forget_bias`.
      parameters: (inputs, hidden, initial, config) → name → (initializer, shape) of a layer's parameters. `initial` is
        an `initializers.Initializers`. The order matters: the random numbers of a parameter depend on it.
      zero_state: (rows, hidden) → the state before the first character, all zeros.
      window: (params, inputs, state, dtype, noise_keys_B=None) → (outputs_TBH, state). Runs a layer over a window, time
        first: inputs are floats (T, B, I), or ids (T, B). `noise_keys_B` is None, or a key for each row, for cells that
        act at random inside the recurrence. Must equal `by_steps(step)` if there is no noise.
      with_table: (params, table_VI) → the params for ids that stand for rows of `table_VI`.
      prepare: (params, rows, dtype, ids) → the params as `step` reads them, laid out once for stepping `rows` rows. `ids`
        says whether the inputs will be ids.
      step: (prepared, x, state, dtype) → (output_BH, state). One character: x is floats (B, I), or ids (B,).
      operations: (inputs, hidden) → multiply-adds of a layer for one character.
      from_torch, from_keras: arrays of one layer as the framework names them → params; None if it has no such layer.

    `dtype` is that of the operands of matrix products. Parameters, state and sums are float32.
    """

    title: str
    state_title: str
    keys: tuple[str, ...]
    parameters: Callable[..., dict[str, tuple[Callable, tuple[int, ...]]]]
    zero_state: Callable[[int, int], State]
    window: Callable[..., tuple[jax.Array, State]]
    with_table: Callable[[Params, jax.Array], Params]
    prepare: Callable[[Params, int, jnp.dtype, bool], Any]
    step: Callable[[Any, Inputs, State, jnp.dtype], tuple[jax.Array, State]]
    operations: Callable[[int, int], int]
    from_torch: Callable[[dict], Params] | None = None
    from_keras: Callable[[dict], Params] | None = None


def named(name: str) -> Cell:
    """The cell that `model.cell` names: `CELL` of the file with this name."""
    return importlib.import_module(f"{__name__}.{name}").CELL


def by_steps(step: Callable) -> Callable:
    """The `window` of a cell whose `step` reads the params as they are: a plain scan over time."""

    def window(params, inputs, state, dtype, noise_keys_B=None):
        del noise_keys_B

        def one(state, x):
            output_BH, state = step(params, x, state, dtype)
            return state, output_BH

        state, outputs_TBH = jax.lax.scan(one, state, inputs)
        return outputs_TBH, state

    return window


def is_ids(inputs: Inputs) -> bool:
    """Whether inputs are ids that stand for rows of the input kernel."""
    return jnp.issubdtype(inputs.dtype, jnp.integer)
