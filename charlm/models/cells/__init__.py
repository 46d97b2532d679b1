"""The recurrent cells, such as the LSTM, with one file for each cell. Code outside this folder is the same for every cell.

To add a cell NAME:
1. Write `cells/NAME.py`, which ends with `CELL = Cell(...)`. The attributes of `Cell` are described below. `rnn.py` is an
   example. Most of the code in `lstm.py`, `gru.py` and `rnn.py` only makes these cells fast, and `chunks.py` has code that all
   three use. A simple cell does not need such code: `window=by_steps(step)` is enough.
2. Add "NAME" to the choices of `model.cell` in `charlm/config/keys.py`. If the cell has its own config keys, add these keys to
   the same table.
Then all of charlm works with the new cell: training (also on several devices, and resumed), evaluation, sampling, sweeps and
drawing. The tests in `tests/models/cells/test_cells.py` include the new cell without changes.

A cell can also be in a file of the user, with `model.cell=FILE.py:NAME`. `own.py` loads such a file, and `interface.py` checks
the cell. configs/README.md has an example.

Letters in the names and shapes of arrays: T time, B batch (rows), I input features, H hidden units, V rows of a table, with one
row for each symbol of the vocabulary.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from charlm.config import rules
from charlm.errors import UserError

Params = dict[str, jax.Array]  # the float32 parameters of one layer
State = Any  # a tree whose leaves are float32 (B, …)
# The config keys of weight drop, recurrent dropout, zoneout and state noise. `Cell.keys` says what a cell needs for each key. A
# cell that has a recurrent kernel, a candidate and the state (c, h) can have all five keys.
NOISE_KEYS = ("model.weight_drop", "model.recurrent_dropout", "model.zoneout_cell", "model.zoneout_hidden", "model.state_noise")
Inputs = jax.Array  # floats (…, I), or ids (…) that select rows of the input kernel


class Inside(NamedTuple):
    """The values that a cell computes at a step, besides its output and its state. Each array is float32 (B, units).

    Attributes:
      gates: name → array with values from 0 to 1. It is of interest how often a gate is nearly 0 or nearly 1.
      others: name → array with any values, such as the candidate of the new state.
    """

    gates: dict[str, jax.Array]
    others: dict[str, jax.Array]


class Cell(NamedTuple):
    """A recurrent cell. The rest of charlm uses a cell only through these attributes.

    Attributes:
      title: name of the cell in pictures.
      state_title: name of the cell's state in pictures.
      keys: config keys that this cell reads, but that other cells may ignore, such as `model.forget_bias`. The keys
        in NOISE_KEYS are special: if a cell has such a key, the code outside this folder applies the noise to the cell.
        Therefore each of these keys needs something from the cell. With `model.weight_drop`, the cell must have a parameter
        `recurrent_kernel`. With `model.recurrent_dropout`, `step` must take `factor_BH`. With `model.zoneout_hidden` alone, the
        state and the output must be h. With `model.zoneout_cell` and `model.zoneout_hidden`, the state must be (c, h) and the
        output must be h. With `model.state_noise`, the state must be h or (c, h). Two more keys need something from the
        cell. With `model.unroll`, `window` must take the keyword argument `unroll`, the number of steps that XLA compiles as
        one iteration of the loop over time. With `model.kernel`, the params, the state and the results must be those of the
        LSTM, because cuDNN may then run the window.
      parameters: (inputs, hidden, initial, config) → dict of name → (initializer, shape) for one layer with `inputs` input
        features and `hidden` units. `initial` is an `initializers.Initializers`. The order of the parameters determines their
        initial random numbers.
      zero_state: (rows, hidden) → the state before the first character, all zeros.
      window: (params, inputs, state, dtype, noise_keys_B=None) → (outputs_TBH, state). Runs a layer over a window. Inputs are
        floats (T, B, I) or ids (T, B). `noise_keys_B` has one random key per row, for cells that use random numbers. It is
        None if there must be no noise. Without noise, the result must equal the result of `by_steps(step)`.
      with_table: (params, table_VI) → params for inputs that are ids. With these params, id i gives the same result as row i of
        `table_VI` gives with the original params.
      prepare: (params, rows, dtype, ids) → the params in the layout that `step` needs for a batch of `rows` rows. `ids` is True
        if the inputs of `step` will be ids.
      step: (prepared, x, state, dtype) → (output_BH, state). Reads one character: x is floats (B, I) or ids (B,). With
        `model.recurrent_dropout` among the keys, `step` takes a fifth argument `factor_BH=None`, by which it multiplies the
        candidate that enters the state.
      operations: (inputs, hidden, config) → the number of multiply-adds of a layer for one character. If the inputs are ids,
        `inputs` is 0. Raises a UserError if the values of the cell's keys don't fit `hidden`.
      from_torch, from_keras: (arrays) → params. `arrays` maps the framework's names to the arrays of one layer. None if the
        framework has no such layer.
      to_torch, to_keras: (params) → arrays, the inverses of `from_torch` and `from_keras`. `from_torch(to_torch(params))` and
        `from_keras(to_keras(params))` equal `params` bit for bit. None if the framework has no such layer.
      keras_layer: name of the layer's class in Keras. Empty if the cell has no `to_keras`.
      look: (prepared, x, state, dtype) → `Inside`, with the same arguments as `step`. The program `inspect` shows these values.
        None if the cell has nothing to show besides its output and its state.
      noisy_window: (params, inputs, state, dtype, noise_T, unroll) → (outputs_TBH, state). `window` with recurrent dropout and
        zoneout; `noise_T` is a `noise.Noise`. It must do the same as `noise.noisy_step` at each step. None: charlm uses this
        function with `step`, which is slower.

    `dtype` is the dtype of the operands of matrix products. The parameters, the state and the results of matrix products are
    float32.
    """

    title: str
    state_title: str
    keys: tuple[str, ...]
    parameters: Callable[..., dict[str, tuple[Callable, tuple[int, ...]]]]
    zero_state: Callable[[int, int], State]
    window: Callable[..., tuple[jax.Array, State]]
    with_table: Callable[[Params, jax.Array], Params]
    prepare: Callable[[Params, int, jnp.dtype, bool], Any]
    step: Callable[..., tuple[jax.Array, State]]
    operations: Callable[[int, int, FrozenConfigDict], int]
    from_torch: Callable[[dict], Params] | None = None
    from_keras: Callable[[dict], Params] | None = None
    to_torch: Callable[[dict], dict] | None = None
    to_keras: Callable[[dict], dict] | None = None
    keras_layer: str = ""
    look: Callable[[Any, Inputs, State, jnp.dtype], Inside] | None = None
    noisy_window: Callable[..., tuple[jax.Array, State]] | None = None


loaded: dict[str, Cell] = {}  # FILE.py:NAME → the cell, for cells in files of the user; only `own.load` changes this dict


def named(name: str) -> Cell:
    """The cell for `model.cell=name`. It is the object `CELL` in the file `name`.py of this folder.

    If `name` is FILE.py:NAME, it is the object NAME in FILE.py. This function never runs the file. Therefore `own.load`
    must have loaded the cell before.
    """
    if rules.own_cell(name):
        if name not in loaded:
            raise UserError(f"model.cell={name} is not loaded: call charlm.models.cells.own.load(config) first.")
        return loaded[name]
    return importlib.import_module(f"{__name__}.{name}").CELL


def short_name(name: str) -> str:
    """The name of the cell inside the names of its parameters, such as `lstm` in `lstm_0`.

    `name` is a value of `model.cell`. For FILE.py:NAME, the result is NAME in lower case.
    """
    found = rules.own_cell(name)
    return found[1].lower() if found else name


def by_steps(step: Callable) -> Callable:
    """Makes the attribute `window` of a cell from `step`, by a scan over time.

    The scan calls `step` with the params of the layer, not with the result of `prepare`. The window takes `unroll`, so a cell
    with this window may have `model.unroll` among its keys.
    """

    def window(params, inputs, state, dtype, noise_keys_B=None, unroll=1):
        del noise_keys_B

        def one(state, x):
            output_BH, state = step(params, x, state, dtype)
            return state, output_BH

        state, outputs_TBH = jax.lax.scan(one, state, inputs, unroll=unroll)
        return outputs_TBH, state

    return window


def is_ids(inputs: Inputs) -> bool:
    """Whether the inputs of a layer are ids, which select rows of the input kernel."""
    return jnp.issubdtype(inputs.dtype, jnp.integer)
