"""Converts the weights of other frameworks to parameters of charlm, and parameters of charlm to such weights.

Also checks weights from a file, and writes a run directory from them. `torch.py` and `keras.py` read and make the weight files.

Names of arrays end in letters for their axes: E is the size of the embedding, H the size of the last layer's output, and V the
number of symbols in the vocabulary.
"""

import collections
import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from charlm import progress
from charlm.config import keys, load
from charlm.data.vocab import EOS, PAD, UNK, Vocab
from charlm.errors import UserError
from charlm.hardware import accelerators
from charlm.models import blocks, cells, recurrent_noise, stack
from charlm.models.cells import Cell, own
from charlm.rundir import directory
from charlm.rundir import run as run_module
from charlm.rundir.checkpoint import Checkpoints
from charlm.training.setup import Setup, set_up
from charlm.training.state import Progress, initial_state, state_with, to_checkpoint

Params = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """How a framework stores a recurrent layer.

    Attributes:
      framework: name of the framework, for messages.
      converter: `from_torch` or `from_keras`. A cell's function with this name converts the arrays of one layer to charlm's
        parameters.
      inverse: `to_torch` or `to_keras`. A cell's function with this name converts charlm's parameters of one layer to the
        framework's arrays.
      input_array: the framework's name for the input kernel, the matrix that multiplies the inputs of the layer.
      input_axis: the axis of the input kernel whose length is the number of inputs.
      has_one_width: whether all recurrent layers of a model must have the same number of units.
    """

    framework: str
    converter: str
    inverse: str
    input_array: str
    input_axis: int
    has_one_width: bool


class Weights(NamedTuple):
    """The weights of one network as the framework stores them.

    Attributes:
      file: name of the weight file, for messages.
      layout: how the framework stores a recurrent layer.
      layers: the arrays of each recurrent layer. The keys are the framework's names for the arrays.
      head_kernel_HV, head_bias_V: the linear layer after the last recurrent layer.
      embedding_VE: the embedding, or None.
      symbols: the symbols in the order of the ids; None if the file has no symbols.
    """

    file: str
    layout: Layout
    layers: list[Arrays]
    head_kernel_HV: np.ndarray
    head_bias_V: np.ndarray
    embedding_VE: np.ndarray | None
    symbols: list[str] | None


def checked(
    file: pathlib.Path,
    layout: Layout,
    layers: Sequence[Arrays],
    head: Arrays,
    embedding_VE: np.ndarray | None,
    unknown: Iterable[str],
    symbols: list[str] | None = None,
) -> Weights:
    """Checks that a file has all parts of a network and no other arrays. Returns the weights.

    Args:
      head: the arrays `kernel` (H, V) and `bias` (V,) of the linear layer after the last recurrent layer.
      unknown: names of the arrays in the file that are no part of a layer, the head or the embedding.

    Raises:
      UserError: the file has no recurrent layers, has no head, or has unknown arrays.
    """
    if not layers:
        raise UserError(f"{file} has no recurrent layers: give the weights of a PyTorch CharRNN or of a Keras 3 model.")
    if names := sorted(unknown):
        raise UserError(
            f"{file} has {', '.join(names)} beside its recurrent layers: it may have only one linear head (a weight and a "
            "bias) and at most one embedding."
        )
    if head.keys() != {"kernel", "bias"}:
        raise UserError(f"{file} has no head beside its recurrent layers: it must have a linear layer (a weight and a bias).")
    return Weights(str(file), layout, list(layers), head["kernel"], head["bias"], embedding_VE, symbols)


def params_of(weights: Weights, config: ConfigDict) -> Params:
    """The weights as parameters of the config's model. Does not check shapes.

    Raises:
      UserError: the config's layers can't use layers of this framework, or can't use a layer, or a layer lacks an array.
    """
    name, cell = _only_cell(config, weights.layout, weights.layout.converter, "imported")
    if blocks.shape_of(config).tie:
        raise UserError(f"model.tie=True: {weights.file} has a head of its own: set model.tie=False.")
    params: Params = {}
    for index, arrays in enumerate(weights.layers):
        try:
            params[f"{name}_{index}"] = getattr(cell, weights.layout.converter)(arrays)
        except KeyError as error:
            raise UserError(
                f"{weights.file} has no {error.args[0]} in its recurrent layer {index}: all layers must have their kernels and "
                "biases."
            ) from error
        except UserError as error:
            raise UserError(f"{weights.file} can't be used for model.cell={name!r}: {error}") from error
    if weights.embedding_VE is not None:
        params["embedding"] = weights.embedding_VE
    return params | {"head_kernel": weights.head_kernel_HV, "head_bias": weights.head_bias_V}


def of_params(params: Params, config: ConfigDict, vocab: Vocab, layout: Layout, file: str) -> Weights:
    """Converts the parameters of the config's model to the weights of a framework. `params_of` converts in the other direction.

    With `model.tie`, the kernel of the head is the product of its matrices, so the files have an ordinary head.

    Args:
      params: the parameters, a tree of float32 arrays.
      vocab: the vocabulary of the model.
      layout: how the framework stores a recurrent layer.
      file: name of the file that will hold the weights.

    Raises:
      UserError: the framework has no layer for the config's layers.
    """
    _, cell = _only_cell(config, layout, layout.inverse, "exported")
    params = jax.tree.map(np.asarray, params)
    layers = [getattr(cell, layout.inverse)(params[block.name]) for block in blocks.blocks_of(config)]
    head_HV = np.asarray(functools.reduce(np.matmul, blocks.head_kernels(params)))
    return Weights(file, layout, layers, head_HV, params["head_bias"], params.get("embedding"), list(vocab.names))


def _only_cell(config: ConfigDict, layout: Layout, converter: str, done: str) -> tuple[str, Cell]:
    """The name of the cell of all layers, and the cell.

    Args:
      converter: name of the cell's function that converts a layer.
      done: `imported` or `exported`, for messages.

    Raises:
      UserError: the layers have different cells, or something that a stack of layers of the framework does not have.
    """
    names, values = keys.cell_names(config), load.flatten(config)
    refused = f"layers of {layout.framework} can't be {done}"
    shares = recurrent_noise.rates(cells.named(names[0]), config)
    if shares.has_zoneout:
        raise UserError(
            f"model.zoneout_cell={shares.zoneout_cell}, model.zoneout_hidden={shares.zoneout_hidden}: {refused}, since "
            f"{layout.framework} has no zoneout."
        )
    for key in ("model.residual", "model.norm", "model.mlp"):
        if values[key]:
            raise UserError(f"{key}={values[key]}: {refused}, since {layout.framework} has no such stack of layers.")
    if len(set(names)) > 1:
        raise UserError(f"model.cell={names!r}: {refused}, since all layers in a file must have the same cell.")
    widths = tuple(block.width for block in blocks.blocks_of(config))
    if len(set(widths)) > 1 and layout.has_one_width:
        raise UserError(f"model.widths={widths!r}: {refused}, since {layout.framework} has one width for all layers.")
    cell = cells.named(names[0])
    if getattr(cell, converter) is None:
        raise UserError(f"model.cell={names[0]!r}: {refused}, since the cell has no {converter}.")
    return cells.short_name(names[0]), cell


def write_run(config: ConfigDict, workdir: str, weights: Weights, symbols_file: str | None = None) -> None:
    """Writes a run directory from a config and imported weights. The run has the state `done` and is at step 0.

    Args:
      symbols_file: a JSON list of the symbols in the order of the ids. If it is None, the symbols in the weight file are used.
        If the weight file has no symbols, charlm assumes that the ids follow the sorted symbols of the config's corpus.

    The vocabulary of the run consists of these symbols. If the corpus has other symbols, a note tells the difference.

    Raises:
      UserError: the run directory already holds a run, the shapes of the weights differ from the shapes that the config needs,
        or the symbols can't be a vocabulary for the config. The message says what is wrong.
    """
    if directory.exists(workdir, config):
        raise UserError(f"--workdir={workdir} already holds a run: choose another directory.")
    symbols = weights.symbols if symbols_file is None else symbols_in(symbols_file)
    own.load(config)
    accelerators.leave_out_missing()
    setup, where = set_up(config), symbols_file or weights.file
    vocab = setup.vocab if symbols is None else _vocabulary(symbols, setup.vocab, where)
    if symbols is not None and len(symbols) != len(weights.head_bias_V):
        raise UserError(
            f"{where} has {len(symbols)} symbols, but {weights.file} has a head for {len(weights.head_bias_V)}: the list must "
            "have one symbol for each id."
        )
    functions = stack.functions(config, len(vocab))
    state = jax.eval_shape(lambda: initial_state(functions, setup.optimizer, setup.batches.rows, 0))
    _check_shapes(params_of(weights, config), state.params, weights.file)
    if symbols is None:
        progress.tell("note: without --symbols, charlm assumes that the ids follow the sorted symbols of the corpus.")
    else:
        weights = _reordered(weights, symbols, list(vocab.names), where)
        _tell_differences(vocab, setup.vocab, where)
    _write(config, workdir, setup, vocab, params_of(weights, config), weights.file)
    print(f"made {workdir} from {weights.file}: to evaluate or sample it, give --checkpoint=latest.")


def _write(config: ConfigDict, workdir: str, setup: Setup, vocab: Vocab, params: Params, file: str) -> None:
    directory.make(workdir)
    run = run_module.Run(workdir)
    with run.locked(), contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints:
        run.begin(config, vocab, setup.provenance, cells=own.digests(config))
        run.note_start(f"imported from {file}", stack.parameter_count(params), setup.total_steps)
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.float32), params)
        carry = setup.functions.zero_carry(setup.batches.rows)
        state = state_with(params, setup.optimizer, carry, setup.averaging)
        checkpoints.save(0, *to_checkpoint(state), Progress().to_dict())
        checkpoints.wait()
        run.write_status("done", 0, None, f"imported from {file}")


def _vocabulary(symbols: list[str], of_corpus: Vocab, where: str) -> Vocab:
    """The vocabulary that has these symbols. The symbols may be in any order.

    Args:
      of_corpus: the vocabulary of the config's corpus. It tells whether the symbols are bytes, and whether the
        corpus consists of documents.
      where: the name of the file that has the symbols, for messages.
    """
    if set(symbols) == set(of_corpus.names):
        return of_corpus
    specials = {name for name in (PAD, EOS, UNK) if name in symbols}
    if of_corpus.of_bytes:
        raise UserError(f"{where} has other symbols than the 256 bytes of vocab.source=bytes: set vocab.source=corpus.")
    for name in (PAD, EOS):
        if name in of_corpus.specials and name not in specials:
            raise UserError(f"{where} has no symbol {name}, which a model of documents needs: leave out corpus.documents.")
        if name in specials and name not in of_corpus.specials:
            raise UserError(f"{where} has the symbol {name}, which only a model of documents has: set corpus.documents.")
    characters = [symbol for symbol in symbols if symbol not in specials]
    if several := [symbol for symbol in characters if len(symbol) != 1]:
        raise UserError(f"{where} has the symbols {_listed(several)}: each symbol must be one character.")
    if not characters:
        raise UserError(f"{where} has no characters: it must list the symbols in the order of the ids.")
    return Vocab.of("".join(characters), UNK in specials, documents=EOS in specials)


def _tell_differences(vocab: Vocab, of_corpus: Vocab, where: str) -> None:
    only_here = [symbol for symbol in vocab.names if symbol not in of_corpus.names]
    only_corpus = [symbol for symbol in of_corpus.names if symbol not in vocab.names]
    if only_here or only_corpus:
        progress.warn(
            f"the run has the {len(vocab)} symbols of {where}, the corpus has {len(of_corpus)}: "
            f"{_listed(only_here)} only in the run, {_listed(only_corpus)} only in the corpus."
        )


def _check_shapes(params: Params, expected: Params, file: str) -> None:
    found, wanted = ({name: shape for name, shape, _ in stack.parameter_table(tree)} for tree in (params, expected))
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{file} has {_shape_text(found.get(name))} for {name}, but the config and its corpus make "
                f"{_shape_text(wanted.get(name))}: change the config."
            )


def _reordered(weights: Weights, symbols: list[str], wanted: list[str], file: str) -> Weights:
    """The weights with the rows and columns of the symbols in the order of `wanted` instead of the order of `symbols`.

    `wanted` and `symbols` are two lists of the same symbols.
    """
    if symbols == wanted:
        return weights
    order = [symbols.index(symbol) for symbol in wanted]
    name, axis = weights.layout.input_array, weights.layout.input_axis
    first, *others = weights.layers
    if weights.embedding_VE is not None:
        weights = weights._replace(embedding_VE=weights.embedding_VE[order])
    elif first[name].shape[axis] == len(order):
        weights = weights._replace(layers=[{**first, name: np.take(first[name], order, axis)}, *others])
    else:
        raise UserError(f"{file} has its symbols in an unsorted order: model.input=scalar needs the sorted order.")
    return weights._replace(head_kernel_HV=weights.head_kernel_HV[:, order], head_bias_V=weights.head_bias_V[order])


def symbols_in(file: str) -> list[str]:
    """Reads a JSON list of symbols in the order of the ids. The list may contain the special symbols `<pad>`, `<eos>`, `<unk>`.

    Raises:
      UserError: the file can't be read, is not a list of strings, or has a symbol twice.
    """
    path = existing(file)
    return checked_symbols(read(path, lambda: json.loads(path.read_text(encoding="utf-8"))), file)


def checked_symbols(symbols: Any, where: str) -> list[str]:
    """Returns `symbols` if it is a list of different strings. Otherwise raises a UserError.

    Args:
      symbols: a value that was read from a JSON text.
      where: what messages call the JSON text.
    """
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise UserError(f'{where} is no JSON list of symbols, such as ["\\n", " ", "a"].')
    if twice := sorted(symbol for symbol, count in collections.Counter(symbols).items() if count > 1):
        raise UserError(f"{where} has {', '.join(map(repr, twice))} more than once: each symbol must have one id.")
    return symbols


def existing(file: str) -> pathlib.Path:
    """The path of a file. Raises a UserError if the file does not exist."""
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"{file} is no file: give a file of saved weights or symbols.")
    return path


def read(path: pathlib.Path, reader: Callable[[], Any]) -> Any:
    """Returns the result of `reader`. Any exception becomes a UserError, because damaged files cause many kinds of errors."""
    try:
        return reader()
    except Exception as error:
        message = str(error).strip() or "\n"
        raise UserError(f"{path} can't be read ({f'{type(error).__name__}: {message.splitlines()[0]}'[:200]}).") from error


def library(module: str, path: pathlib.Path, installation: str, verb: str = "reading") -> ModuleType:
    """Imports an optional library.

    Args:
      module: the name of the library's module.
      path: the file that the library is needed for.
      installation: the name of the library and how to install it, for the message.
      verb: what the library does with the file, `reading` or `writing`.

    Raises:
      UserError: the library is not installed.
    """
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(f"{verb} {path.name} needs {installation}.") from error


def _listed(symbols: list[str], most: int = 10) -> str:
    return f"{symbols[:most]}" + (f" and {len(symbols) - most} more" if len(symbols) > most else "")


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"the shape {shape}"
