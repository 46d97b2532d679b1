"""The recurrences, with one file for each recurrence. Code outside this folder is the same for every recurrence.

To add a recurrence NAME:
1. Write `cells/NAME.py`, which ends with `CELL = Cell(...)`. The attributes of `Cell` are described below. `lstm.py` is an
   example. Most of `lstm.py` makes the LSTM fast; a simple cell only needs `window=by_steps(step)`.
2. Add "NAME" to the choices of `model.cell` in `charlm/config/keys.py`. If the cell has its own config keys, add these keys to
   the same table.
Training, evaluation, sampling, sweeps, drawing, several devices and resume then work. The tests in
`tests/models/cells/test_cells.py` include the new cell without changes.

Letters: T time, B batch (rows), I input features, H hidden units, V rows of a table.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]  # the float32 parameters of one layer
State = Any  # a tree whose leaves are float32 (B, …)
Inputs = jax.Array  # floats (…, I), or ids (…) that select rows of the input kernel


class Cell(NamedTuple):
    """A recurrence, as the rest of the program uses it.

    Attributes:
      title: name of the cell in pictures.
      state_title: name of the recurrent state in pictures.
      keys: config keys that this cell reads and other cells may ignore, such as `model.forget_bias`.
      parameters: (inputs, hidden, initial, config) → dict of name → (initializer, shape) for one layer. `initial` is an
        `initializers.Initializers`. The order of the parameters determines their random numbers.
      zero_state: (rows, hidden) → the state before the first character, all zeros.
      window: (params, inputs, state, dtype, noise_keys_B=None) → (outputs_TBH, state). Runs a layer over a window. Inputs are
        floats (T, B, I) or ids (T, B). `noise_keys_B` is None, or one random key per row, for cells that use random numbers.
        Without noise, the result must equal the result of `by_steps(step)`.
      with_table: (params, table_VI) → params whose input kernel accepts ids. An id selects a row of `table_VI` as input.
      prepare: (params, rows, dtype, ids) → the params in the layout that `step` needs for `rows` rows. `ids` says whether the
        inputs will be ids.
      step: (prepared, x, state, dtype) → (output_BH, state). Reads one character: x is floats (B, I) or ids (B,).
      operations: (inputs, hidden) → multiply-adds of a layer for one character.
      from_torch, from_keras: arrays of one layer, with the framework's names → params. None if the framework has no such layer.

    `dtype` is the dtype of the operands of matrix products. Parameters, state and sums are float32.
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
    """The cell with this value of `model.cell`: `CELL` in the file of the same name."""
    return importlib.import_module(f"{__name__}.{name}").CELL


def by_steps(step: Callable) -> Callable:
    """Makes `window` from `step` by a scan over time. `step` must accept the params without `prepare`."""

    def window(params, inputs, state, dtype, noise_keys_B=None):
        del noise_keys_B

        def one(state, x):
            output_BH, state = step(params, x, state, dtype)
            return state, output_BH

        state, outputs_TBH = jax.lax.scan(one, state, inputs)
        return outputs_TBH, state

    return window


def is_ids(inputs: Inputs) -> bool:
    """Whether inputs are ids that select rows of the input kernel."""
    return jnp.issubdtype(inputs.dtype, jnp.integer)
