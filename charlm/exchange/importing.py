"""Weights trained elsewhere as a run directory that evaluates and samples like any other: PyTorch's and Keras's layouts.

PyTorch: `weight_ih_l0` (4H, I), `weight_hh_l0` (4H, H), two biases that add up; a linear head (V, H). Keras: `kernel` (I, 4H),
`recurrent_kernel` (H, 4H), one bias; a dense head (H, V). Gates stand in the order i, f, g, o in both, as here.

Letters: E embedding, I input features, H hidden, V vocabulary.
"""

import collections
import contextlib
import dataclasses
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterable

import jax
import numpy as np

from charlm import progress
from charlm.errors import UserError
from charlm.models import stack
from charlm.rundir import run as run_module
from charlm.rundir.checkpoint import Checkpoints
from charlm.training.setup import Setup, set_up
from charlm.training.state import Progress, initial_state

EXTRA = "pip install -e '.[import]' in charlm's folder installs it"

Params = dict[str, object]


def from_torch(file: str) -> tuple[Params, list[str] | None]:
    """The parameters of a state_dict in charlm's layout, and the symbols in the order of its ids where the file has them.

    Reads `.safetensors`, and what `torch.save` wrote, weights only: a state_dict, or Udacity's dict with `tokens` beside it.

    Raises:
      UserError: it can't be read, or is no CharRNN.
    """
    path, tokens = _existing(file), None
    if path.suffix == ".safetensors":
        library = _optional("safetensors.numpy", path, f"safetensors ({EXTRA})")
        state = _read(path, lambda: library.load_file(path))
    else:
        torch = _optional(
            "torch", path, "PyTorch (pip install torch); or save the state_dict as .safetensors, and its symbols for --symbols"
        )
        state = _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
        if isinstance(state, dict) and "state_dict" in state:
            tokens = list(state["tokens"]) if "tokens" in state else None
            state = state["state_dict"]
        if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
            raise UserError(f"{path} holds no state_dict: save model.state_dict() with torch.save.")
        state = {name: value.detach().float().numpy() for name, value in state.items()}
    params, others, modules = {}, {}, set()
    for name, value in state.items():
        if match := re.search(r"(?:^|\.)(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)$", name):
            modules.add(name[: match.start(1)])
            kind, layer = match[1], params.setdefault(f"lstm_{match[2]}", {})
            if kind.startswith("bias"):
                layer["bias"] = layer.get("bias", 0) + value
            else:
                layer[{"weight_ih": "input_kernel", "weight_hh": "recurrent_kernel"}[kind]] = value.T
        elif re.search(r"(?:^|\.)(emb\w*|encoder)\.weight$", name) and "embedding" not in params:
            params["embedding"] = value
        else:
            others[name] = value
    if len(modules) > 1:
        listed = ", ".join(sorted(module.removesuffix(".") for module in modules))
        raise UserError(
            f"{path} has {len(modules)} modules of LSTM layers ({listed}): one nn.LSTM with all layers would be right."
        )
    if params and not others:
        raise UserError(f"{path} has no head beside its LSTM layers: a linear layer, a weight and a bias, would be right.")
    heads = {name.rpartition(".")[0] for name in others}
    head = {name.rpartition(".")[2]: value for name, value in others.items()}
    dimensions = {kind: value.ndim for kind, value in head.items()}
    _check_layers(path, params, others if len(heads) > 1 or dimensions != {"weight": 2, "bias": 1} else {})
    return params | {"head_kernel": head["weight"].T, "head_bias": head["bias"]}, tokens


def from_keras(file: str) -> Params:
    """The parameters of a Keras 3 model (`.weights.h5`, or `.keras`, which holds one) in charlm's layout.

    Raises:
      UserError: it can't be read, or is no stack of LSTM layers with a dense head.
    """
    path = _existing(file)
    h5py = _optional("h5py", path, f"h5py ({EXTRA})")

    def weights() -> dict[str, np.ndarray]:
        source = path
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
        found = {}
        with h5py.File(source, "r") as h5:
            h5.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return found

    found = _read(path, weights)
    params: Params = {}
    layers = sorted({int(match[1] or 0) for name in found if (match := re.match(r"layers/lstm(?:_(\d+))?/", name))})
    for index, number in enumerate(layers):
        prefix = f"layers/lstm{f'_{number}' if number else ''}/cell/vars/"
        names = {"input_kernel": "0", "recurrent_kernel": "1", "bias": "2"}
        params[f"lstm_{index}"] = {name: found[prefix + key] for name, key in names.items() if prefix + key in found}
    others = []
    for name, value in found.items():
        if re.match(r"layers/dense(_\d+)?/vars/[01]$", name):
            kind = "head_bias" if value.ndim == 1 else "head_kernel"
        elif re.match(r"layers/embedding(_\d+)?/vars/0$", name):
            kind = "embedding"
        else:
            kind = None
        if kind and kind not in params:
            params[kind] = value
        elif kind or (name.startswith("layers/") and not re.match(r"layers/lstm(_\d+)?/|.*/seed_generator/", name)):
            others.append(name)
    _check_layers(path, params, others)
    return params


def _check_layers(path: pathlib.Path, params: Params, others: Iterable[str]) -> None:
    if "lstm_0" not in params:
        raise UserError(f"{path} has no LSTM layers: weights of a PyTorch CharRNN or of a Keras 3 model would be right.")
    if others:
        raise UserError(
            f"{path} has {', '.join(sorted(others))} beside its LSTM layers: one linear head, a weight and a bias, and at most "
            "one embedding would be right."
        )


def symbols_in(file: str) -> list[str]:
    """The symbols in the order of their ids, from a JSON list; specials as `<pad>`, `<eos>` and `<unk>`."""
    path = _existing(file)
    symbols = _read(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
        raise UserError(f'{path} is no JSON list of symbols, such as ["\\n", " ", "a"].')
    if twice := sorted(symbol for symbol, count in collections.Counter(symbols).items() if count > 1):
        raise UserError(f"{path} has {', '.join(map(repr, twice))} more than once: each symbol stands for one id.")
    return symbols


def write_run(config, workdir: str, params: Params, symbols: list[str] | str | None, file: str) -> None:
    """Makes a run directory, done at step 0, of a config and parameters from elsewhere.

    Args:
      symbols: in the order of the file's ids, or a JSON file of them; None where they are those of the config's corpus, sorted.

    Raises:
      UserError: shapes or symbols differ from what the config and its corpus make; both are named.
    """
    if run_module.exists(workdir, config):
        raise UserError(f"--workdir={workdir} holds a run already: choose another directory.")
    tokens = symbols_in(symbols) if isinstance(symbols, str) else symbols
    setup = set_up(config)
    state = jax.eval_shape(lambda: initial_state(setup.functions, setup.optimizer, setup.batches.rows, 0))
    _check_shapes(params, state.params, file)
    params = _reordered(params, setup, tokens, symbols if isinstance(symbols, str) else file)
    run_module.make(workdir)
    run = run_module.Run(workdir)
    with run.locked(), contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints:
        run.begin(config, setup.vocab, setup.provenance)
        run.note_start(f"imported from {file}", stack.parameter_count(params), setup.total_steps)
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, jax.numpy.float32), params)
        rest = (setup.optimizer.init(params), setup.functions.zero_carry(setup.batches.rows))
        checkpoints.save(0, params, rest, dataclasses.asdict(Progress()))
        checkpoints.wait()
        run.write_status("done", 0, None, f"imported from {file}")
    print(f"{workdir} is made of {file}: evaluate.py and sample.py take it with --checkpoint=latest.")


def _check_shapes(params: Params, expected, file: str) -> None:
    mine, wanted = ({name: shape for name, shape, _ in stack.parameter_table(tree)} for tree in (params, expected))
    for name in sorted(mine.keys() | wanted.keys()):
        if mine.get(name) != wanted.get(name):
            here, there = (_shown(shapes.get(name)) for shapes in (mine, wanted))
            raise UserError(f"{file} has {here} for {name}, where the config and its corpus make {there}: change the config.")


def _reordered(params: Params, setup: Setup, tokens: list[str] | None, file: str) -> Params:
    """The parameters with the rows and columns of symbols in the order of the vocabulary."""
    mine = [*setup.vocab.specials, *setup.vocab.symbols]
    if tokens is None:
        progress.tell("note: no symbols are given, so ids are taken to stand for those of the corpus, sorted: see --symbols.")
    if tokens is None or tokens == mine:
        return params
    if sorted(tokens) != sorted(mine):
        theirs, ours = sorted(set(tokens) - set(mine)), sorted(set(mine) - set(tokens))
        raise UserError(
            f"{file} has a vocabulary of {len(tokens)}, the corpus one of {len(mine)}: "
            f"{_listed(theirs)} only there, {_listed(ours)} only here."
        )
    order = [tokens.index(symbol) for symbol in mine]
    first = params["lstm_0"]
    if "embedding" in params:
        params = {**params, "embedding": params["embedding"][order]}
    elif first["input_kernel"].shape[0] == len(order):
        params = {**params, "lstm_0": {**first, "input_kernel": first["input_kernel"][order]}}
    else:
        raise UserError(f"{file} has its symbols in another order than sorted, which an input of one number can't follow.")
    return {**params, "head_kernel": params["head_kernel"][:, order], "head_bias": params["head_bias"][order]}


def _listed(symbols: list[str], most: int = 10) -> str:
    return f"{symbols[:most]}" + (f" and {len(symbols) - most} more" if len(symbols) > most else "")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"the shape {shape}"


def _existing(file: str) -> pathlib.Path:
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"{file} is no file: give the weights that were saved.")
    return path


def _read(path: pathlib.Path, read):
    try:
        return read()
    except Exception as error:  # each library raises whatever the damaged bytes lead it to
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
        raise UserError(f"{path} can't be read ({reason}).") from error


def _optional(module: str, path: pathlib.Path, what: str):
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(f"reading {path.name} needs {what}.") from error
