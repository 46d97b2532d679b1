"""Begins a run with the parameters of another run, its parent (`train.init_from`).

Some parameters have one row or column for each symbol of the vocabulary, for example the embedding and the head. These rows and
columns are matched by symbol and never by position. A symbol that only the new run has gets the random initial values that it
would have without `train.init_from`. All other parameters are copied.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from charlm import progress
from charlm.config import keys, load
from charlm.data.vocab import shown
from charlm.errors import UserError
from charlm.inference import restore
from charlm.models import stack
from charlm.rundir import checkpoint, directory
from charlm.rundir.run import Run
from charlm.training.setup import Setup
from charlm.training.state import Progress, TrainState, initial_state_maker, state_with, to_checkpoint

LISTED = 20  # the maximum number of symbols that `tell` lists
Params = dict[str, Any]


class Inheritance(NamedTuple):
    """The first state of a run that begins with the parameters of another run.

    Attributes:
      state: the state before the first step.
      parent: the contents of parent.json; see `Run.parent`.
    """

    state: TrainState
    parent: dict[str, Any]


def read(
    config: ConfigDict, setup: Setup, recorded: dict[str, Any] | None = None, trust_code: bool = False
) -> Inheritance | None:
    """Reads and checks the parameters that `train.init_from` names. Returns None if the key is not set. Writes nothing.

    Args:
      recorded: the contents of parent.json if the run has already begun. The parameters must then be the recorded parameters,
        even if the parent has another best checkpoint now.
      trust_code: whether the user trusts the code of the parent's cell, if this cell is in a file of the user.

    Raises:
      UserError: the parent can't be read, its parameters have other shapes, or they are not the recorded parameters.
      Failure: the parent's checkpoints are damaged.
    """
    given = config.train.init_from
    if given is None:
        return None
    given_as = f"train.init_from={given}"
    path, which = directory.run_and_checkpoint(given, given_as)
    step_or_name = str(recorded["step"]) if recorded else which
    trained = restore.load(path, step_or_name, given_as=given_as, trust_code=trust_code)
    digest = checkpoint.digest(trained.params)
    if recorded and digest != recorded["digest"]:
        raise UserError(
            f"{given_as}: the parameters of step {recorded['step']} have changed since this run began and saved no checkpoint: "
            "choose another directory."
        )
    _check_shapes(config, trained, given_as)
    if setup.functions.shape.encoding == "scalar" and setup.vocab != trained.vocab:
        raise UserError(
            f"{given_as}: the run has another vocabulary, and with model.input=scalar the input of a symbol depends on all "
            "symbols of the vocabulary: use a corpus with the same symbols."
        )
    state = initial_state_maker(setup)(np.uint32(setup.seed))
    old, new = list(trained.vocab.names), list(setup.vocab.names)
    params = matched(trained.params, state.params, old, new, _vocabulary_axes(config, len(new)))
    parent = {
        "path": path,
        "step": trained.step,
        "digest": digest,
        "new_symbols": [symbol for symbol in new if symbol not in set(old)],
        "dropped_symbols": [symbol for symbol in old if symbol not in set(new)],
    }
    return Inheritance(state_with(params, setup.optimizer, state.carry, setup.averaging), parent)


def for_run(run: Run, config: ConfigDict, setup: Setup, begun: bool, trust_code: bool) -> Inheritance | None:
    """The first state of the run. None if the run has a checkpoint, or if `train.init_from` is not set. Writes nothing.

    A run that was killed before it saved its first checkpoint begins again with the parameters that it recorded. Raises the
    same errors as `read`.

    Args:
      begun: whether the directory holds a run. If it holds none, parent.json is not read: an earlier command, perhaps with
        another config, was killed after it wrote this file and before it had begun its run.
      trust_code: see `read`.
    """
    has_checkpoint = run.checkpoints.is_dir() and any(path.name.isdecimal() for path in run.checkpoints.iterdir())
    recorded = run.parent() if begun else None  # read even if there is a checkpoint: reports a missing parent.json
    return None if has_checkpoint else read(config, setup, recorded, trust_code)


def save(run: Run, inheritance: Inheritance) -> None:
    """Saves the first state as the checkpoint of step 0. Afterwards, the run no longer needs its parent."""
    # With several processes, a checkpoint can't be saved from arrays on the devices of one process.
    params, rest = jax.tree.map(np.asarray, to_checkpoint(inheritance.state))
    with contextlib.closing(checkpoint.Checkpoints(run.checkpoints)) as checkpoints:
        checkpoints.save(0, params, rest, Progress().to_dict())
        checkpoints.wait()


def matched(old: Params, fresh: Params, old_symbols: list[str], new_symbols: list[str], axes: Params) -> Params:
    """The parameters of `old`. Rows and columns that belong to symbols are put into the order of `new_symbols`.

    Args:
      old: the parameters of the other run.
      fresh: random initial parameters of the new run. They give the values of new symbols.
      old_symbols, new_symbols: the symbols of the two runs in the order of their ids.
      axes: for each parameter, the axis whose length is the size of the vocabulary, or -1 if it has no such axis.
    """
    id_in_old = {symbol: index for index, symbol in enumerate(old_symbols)}
    to = np.array([index for index, symbol in enumerate(new_symbols) if symbol in id_in_old], int)
    source = np.array([id_in_old[symbol] for symbol in new_symbols if symbol in id_in_old], int)

    def match(old_leaf: jax.Array, fresh_leaf: jax.Array, axis: int) -> jax.Array:
        if axis < 0:
            return old_leaf
        values = np.array(fresh_leaf)
        np.moveaxis(values, axis, 0)[to] = np.moveaxis(np.asarray(old_leaf), axis, 0)[source]
        return jax.numpy.asarray(values)

    return jax.tree.map(match, old, fresh, axes)


def tell(parent: dict[str, Any]) -> None:
    """Prints from which run and step the parameters come, and which symbols are new or dropped."""
    lines = [f"begins with the parameters of {parent['path']} at step {parent['step']:,}"]
    for name, what in (("new_symbols", "new, with random initial parameters"), ("dropped_symbols", "dropped")):
        if symbols := parent[name]:
            names = [symbol if len(symbol) > 1 else shown(symbol) for symbol in symbols]
            listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
            lines.append(f"{progress.counted(len(symbols), 'symbol')} {what}: {listed}")
    progress.tell("; ".join(lines) + ".")


def _shapes(config: ConfigDict, vocab_size: int) -> Params:
    return jax.eval_shape(stack.functions(config, vocab_size).init, jax.random.key(0))


def _vocabulary_axes(config: ConfigDict, vocab_size: int) -> Params:
    """The argument `axes` of `matched`: for each parameter, the axis that becomes longer if the vocabulary has one more symbol.

    Because the axes are found in this way, this function needs no list of parameter names.
    """

    def axis_of(small: jax.ShapeDtypeStruct, large: jax.ShapeDtypeStruct) -> int:
        return next((axis for axis, pair in enumerate(zip(small.shape, large.shape, strict=True)) if pair[0] != pair[1]), -1)

    return jax.tree.map(axis_of, _shapes(config, vocab_size), _shapes(config, vocab_size + 1))


def _check_shapes(config: ConfigDict, trained: restore.Trained, given_as: str) -> None:
    """Raises a UserError if the model of the config does not have the same parameters and shapes as the parent.

    The shapes are compared for the parent's vocabulary, because the two vocabularies may have different sizes.
    """
    size = len(trained.vocab)
    wanted, found = (stack.parameter_table(tree) for tree in (_shapes(config, size), trained.params))
    if wanted == found:
        return
    here, there = load.flatten(config), load.flatten(trained.config)
    causes = []  # keys that change the shapes if they are set to the parent's values
    for name in keys.KEYS:
        if name.startswith("model.") and here[name] != there[name]:
            try:
                other = load.from_dict(here | {name: there[name]})
            except UserError:  # the value does not fit the other keys: the list model.widths does not fit another model.layers
                causes.append(name)
                continue
            if stack.parameter_table(_shapes(other, size)) != wanted:
                causes.append(name)
    if causes:
        theirs, ours = (" and ".join(f"{name}={values[name]}" for name in causes) for values in (there, here))
        raise UserError(f"{given_as}: the run has {theirs}, but this config has {ours}: use the values of the run.")
    name, shape, _ = next(row for row in found if row not in wanted)
    raise UserError(f"{given_as}: the run's parameter {name} of shape {shape} is not a parameter of this config's model.")
