"""Checks that a cell in a file of the user has the interface that `Cell` describes.

The checks trace the functions of the cell and compute only shapes, so they take less than a second. They do not check values.

Letters: T time, B batch (rows), I input features, H hidden units.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import keys, load, rules
from charlm.errors import UserError
from charlm.models import blocks, cells
from charlm.models.cells import Cell, Inside, own
from charlm.models.cells.noise import Noise

FUNCTIONS = ("parameters", "zero_state", "window", "with_table", "prepare", "step", "operations")
TAKEN = ("norm", "mlp")  # the network has parameters such as `norm_0` and `mlp_0`
OPTIONAL = ("from_torch", "from_keras", "to_torch", "to_keras", "look", "noisy_window")


def check(config: ConfigDict) -> None:
    """Checks the cells of a config that are in files of the user. `own.load` must have loaded these cells.

    Raises:
      UserError: a cell does not have the interface. The message tells what was expected and what was found.
    """
    shape, checked = blocks.shape_of(config), set()
    for name, block in zip(keys.cell_names(config), shape.blocks, strict=True):
        sizes = name, block.inputs, block.width
        if rules.own_cell(name) and sizes not in checked:
            checked.add(sizes)
            if (short := cells.short_name(name)) in TAKEN:
                raise UserError(f"model.cell={name}: the network has parameters named {short}_0: give the cell another name.")
            checks = _Checks(block.cell, f"model.cell={name}", pathlib.Path(own.file_of(name)), FrozenConfigDict(config))
            checks.fields()
            checks.layer(block, shape)


class _Checks:
    """The checks of one cell. Each method raises a UserError if the cell does not have the interface."""

    def __init__(self, cell: Cell, given_as: str, file: pathlib.Path, config: FrozenConfigDict):
        self._cell, self._given_as, self._file, self._config = cell, given_as, file, config

    def fields(self) -> None:
        """Checks the attributes that do not depend on the sizes of a layer."""
        cell = self._cell
        for name in ("title", "state_title", "keras_layer"):
            self._expect(name, getattr(cell, name), isinstance(getattr(cell, name), str), "a string")
        self._expect("keys", cell.keys, isinstance(cell.keys, tuple), 'a tuple of config keys, such as ("model.forget_bias",)')
        for key in cell.keys:
            try:
                keys.known(key)
            except UserError as error:
                raise UserError(f"{self._given_as}: the attribute keys has an {error}") from error
        for name in FUNCTIONS:
            self._expect(name, getattr(cell, name), callable(getattr(cell, name)), "a function")
        for name in OPTIONAL:
            value = getattr(cell, name)
            self._expect(name, value, value is None or callable(value), "a function or None")

    def layer(self, block: blocks.Block, shape: blocks.Shape) -> None:
        """Checks the functions of the cell for one layer with the sizes of `block`.

        The inputs of the first layer are ids, unless `model.input` is `scalar`.
        """
        cell, dtype, encoding = self._cell, shape.dtype, shape.encoding
        hidden, is_first = block.width, block.inputs == 0
        inputs = block.inputs or {"embedding": shape.embedding, "scalar": 1}.get(encoding, hidden + 1)
        steps, rows = [size for size in (2, 3, 4, 5) if size not in (inputs, hidden)][:2]
        state = self._zero_state(rows, hidden)
        params = self._params(inputs, hidden)
        self._noise_keys(params, state, (rows, hidden))
        self._kernel_key(params, state, (rows, hidden), inputs)
        self._operations(block.inputs, hidden)
        ids_TB, floats_TBI = _array(jnp.int32, steps, rows), _array(jnp.float32, steps, rows, inputs)
        with_table = params
        if is_first and encoding != "onehot":
            table_VI = _array(jnp.float32, hidden + 2, inputs)
            with_table = self._traced("with_table", cell.with_table, params, table_VI)
        # With `scalar`, the inputs of the first layer are floats in a window of training, but ids in a single step of the
        # sampler.
        x = _array(jnp.int32, rows) if is_first else _array(jnp.float32, rows, inputs)
        prepared = self._traced("prepare", lambda params: cell.prepare(params, rows, dtype, is_first), with_table)
        step = lambda prepared, x, state: cell.step(prepared, x, state, dtype)  # noqa: E731
        self._results("step", step, (prepared, x, state), (rows, hidden), state)
        if "model.recurrent_dropout" in cell.keys:
            factor_BH = _array(jnp.float32, rows, hidden)
            with_factor = lambda prepared, x, state, factor_BH: cell.step(prepared, x, state, dtype, factor_BH=factor_BH)  # noqa: E731
            self._results("step with factor_BH", with_factor, (prepared, x, state, factor_BH), (rows, hidden), state)
        if (look := cell.look) is not None:
            self._inside(lambda prepared, x, state: look(prepared, x, state, dtype), prepared, x, state)
        reads_ids = is_first and encoding != "scalar"
        arguments: tuple = (with_table, ids_TB, state) if reads_ids else (params, floats_TBI, state)
        outputs = steps, rows, hidden
        self._results("window", lambda *args: cell.window(*args, dtype), arguments, outputs, state)
        if (noisy_window := cell.noisy_window) is not None:
            without = lambda *args: noisy_window(*args, dtype, Noise(), 1)  # noqa: E731
            self._results("noisy_window without noise", without, arguments, outputs, state)
        keys_B = _array(_key().dtype, rows)
        with_noise = lambda params, inputs, state, keys_B: cell.window(params, inputs, state, dtype, keys_B)  # noqa: E731
        self._results("window with noise_keys_B", with_noise, (*arguments, keys_B), outputs, state)

    def _zero_state(self, rows: int, hidden: int) -> Any:
        """The shapes of the state before the first character."""
        made = self._called("zero_state", lambda: self._cell.zero_state(rows, hidden))
        found = self._called("zero_state", lambda: jax.tree.map(jnp.asarray, made))
        leaves = jax.tree.leaves(found)
        call = f"zero_state({rows}, {hidden})"
        wanted = f"a tree of float32 arrays that are all zero and whose first axis has the length {rows}, the number of rows"
        is_right = all(leaf.shape[:1] == (rows,) and leaf.dtype == jnp.float32 and not leaf.any() for leaf in leaves)
        self._returns(call, _text(found), bool(leaves) and is_right, wanted)
        # Evaluation donates the state, and an array can be donated only once.
        is_separate = len({id(leaf) for leaf in jax.tree.leaves(made)}) == len(leaves)
        self._returns(call, "one array in two places", is_separate, "a tree of separate arrays")
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)

    def _params(self, inputs: int, hidden: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the parameters of a layer."""
        config = self._config
        initial = blocks.make_initializers(config, hidden)
        call = f"parameters({inputs}, {hidden}, …)"
        found = self._called("parameters", lambda: self._cell.parameters(inputs, hidden, initial, config))
        self._returns(call, found, isinstance(found, dict) and bool(found), "a dict with at least one parameter")
        params = {}
        for name, declared in found.items():
            self._returns(call, f"the name {name!r}", _is_safe(name), "names that consist of ASCII letters, digits and _")
            is_pair = isinstance(declared, tuple) and len(declared) == 2 and callable(declared[0])
            is_right = is_pair and isinstance(declared[1], tuple) and all(type(size) is int for size in declared[1])
            self._returns(
                call, f"{declared!r} for {name}", is_right, "(initializer, shape), where shape is a tuple of integers"
            )
            initializer, shape = declared
            value = self._traced(f"the initializer of {name}", lambda key, of=initializer, shape=shape: of(key, shape), _key())
            expected = jax.ShapeDtypeStruct(shape, jnp.float32)
            self._returns(f"the initializer of {name}", _text(value), _same(value, expected), _text(expected))
            params[name] = expected
        return params

    def _noise_keys(self, params: dict[str, jax.ShapeDtypeStruct], state: Any, shape: tuple[int, ...]) -> None:
        """Checks what the cell needs for the noise that its keys name; see `Cell.keys`. `shape` is the shape of h."""
        keys = self._cell.keys
        if "model.weight_drop" in keys:
            kernel = params.get("recurrent_kernel")
            is_right = kernel is not None and len(kernel.shape) == 2
            wanted = "a dict with a matrix recurrent_kernel, since keys has model.weight_drop"
            self._expect("parameters", _text(params), is_right, wanted)
        shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
        of_state = [key for key in ("model.zoneout_cell", "model.zoneout_hidden") if key in keys]
        if of_state:
            is_right = shapes == [shape] * (2 if "model.zoneout_cell" in keys else 1)
            wanted = f"{'c and h' if 'model.zoneout_cell' in keys else 'h'}, since keys has {' and '.join(of_state)}"
            self._expect("the state", _text(state), is_right, wanted)
        if "model.state_noise" in keys:
            is_right = shapes in ([shape], [shape] * 2)
            self._expect("the state", _text(state), is_right, "h, or c and h, since keys has model.state_noise")

    def _kernel_key(self, params: dict[str, jax.ShapeDtypeStruct], state: Any, shape: tuple[int, int], inputs: int) -> None:
        """Checks that the cell has the parameters and the state of the LSTM, if its keys have `model.kernel`."""
        if "model.kernel" not in self._cell.keys:
            return
        columns = 4 * shape[1]
        of_lstm = {"input_kernel": (inputs, columns), "recurrent_kernel": (shape[1], columns), "bias": (columns,)}
        is_right = {name: param.shape for name, param in params.items()} == of_lstm
        wanted = f"a dict with the shapes {of_lstm}, since keys has model.kernel"
        self._expect("parameters", _text(params), is_right, wanted)
        is_right = [leaf.shape for leaf in jax.tree.leaves(state)] == [shape] * 2
        self._expect("the state", _text(state), is_right, "c and h, since keys has model.kernel")

    def _operations(self, inputs: int, hidden: int) -> None:
        found = self._called("operations", lambda: self._cell.operations(inputs, hidden, self._config))
        self._returns(f"operations({inputs}, {hidden}, …)", found, type(found) is int and found >= 0, "an int, 0 or more")

    def _results(self, what: str, function: Callable, arguments: tuple, shape: tuple[int, ...], state: Any) -> None:
        """Checks that a function returns (output, state).

        Args:
          what: what messages call the function.
          arguments: the arguments of the function.
          shape: the shape that the output must have.
          state: a tree with the structure, shapes and data types that the returned state must have.
        """
        found = self._traced(what, function, *arguments)
        self._returns(what, _text(found), isinstance(found, tuple) and len(found) == 2, "a tuple (output, state)")
        output, new_state = found
        expected = jax.ShapeDtypeStruct(shape, jnp.float32)
        self._returns(what, f"the output {_text(output)}", _same(output, expected), f"the output {_text(expected)}")
        is_same = _same(new_state, state)
        self._returns(what, f"the state {_text(new_state)}", is_same, f"the state {_text(state)}, as zero_state does")

    def _inside(self, look: Callable, prepared: Any, x: jax.ShapeDtypeStruct, state: Any) -> None:
        found = self._traced("look", look, prepared, x, state)
        is_right = isinstance(found, Inside) and all(isinstance(part, dict) for part in found)
        leaves, rows = jax.tree.leaves(found), x.shape[0]
        is_right = is_right and all(leaf.shape[:1] == (rows,) and leaf.dtype == jnp.float32 for leaf in leaves)
        wanted = f"an Inside of two dicts of float32 arrays whose first axis has the length {rows}, the number of rows"
        self._returns("look", _text(found), is_right, wanted)

    def _traced(self, what: str, function: Callable, *arguments: Any) -> Any:
        """The shapes of the result of a function."""
        return self._called(what, lambda: jax.eval_shape(function, *arguments))

    def _called(self, what: str, call: Callable[[], Any]) -> Any:
        """The result of a call of a function of the cell. An exception becomes a UserError."""
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            message, *_ = load.error_message(error, self._file, str(self._file)).splitlines()
            raise UserError(f"{self._given_as}: {what} fails: {message.rstrip('.')}.") from error

    def _expect(self, what: str, found: Any, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise UserError(f"{self._given_as}: {what} must be {wanted}, but is {_shortened(found)}.")

    def _returns(self, what: str, found: Any, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise UserError(f"{self._given_as}: {what} must return {wanted}, but returns {_shortened(found)}.")


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _same(found: Any, expected: Any) -> bool:
    """Whether two trees of arrays have the same structure, shapes and data types."""
    if str(jax.tree.structure(found)) != str(jax.tree.structure(expected)):
        return False
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all((left.shape, left.dtype) == (right.shape, right.dtype) for left, right in pairs)


def _text(tree: Any) -> str:
    """A tree of arrays in words, such as `(float32 (3, 8), float32 (3, 8))`."""
    return str(jax.tree.map(lambda leaf: _Words(f"{leaf.dtype} {leaf.shape}"), tree))


class _Words(str):
    """Text that is shown without quotation marks if it is part of a tuple or a dict."""

    def __repr__(self) -> str:
        return str(self)


def _shortened(found: Any) -> str:
    text = " ".join((found if isinstance(found, str) else repr(found)).split())
    return text if len(text) <= 300 else f"{text[:300]} …"


def _is_safe(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and name.isidentifier()
