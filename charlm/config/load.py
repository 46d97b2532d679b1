"""Loading a config file, applying dotted overrides, and checking every key; all mistakes are found here, before any work."""

import ast
import difflib
import functools
import importlib.util
import math
import operator
import os
import pathlib
import re
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from charlm.errors import UserError

MOST = 3e38  # nearly the largest number of float32
Rule = tuple[Callable[[object], bool], str]  # whether a value is right, and what would be

ANY: Rule = (lambda value: True, "")
POSITIVE: Rule = (lambda value: value > 0, "positive")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")
NOT_EMPTY: Rule = (lambda value: value != "", "at least one char")
SHARE: Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")


FRAMINGS = ("stream", "chunks", "windows", "documents")


def one_of(*choices: str) -> Rule:
    return (lambda value: value in choices, f"one of {', '.join(choices)}")


def _are_fractions(value: tuple) -> bool:
    numbers = all(isinstance(share, int | float) and not isinstance(share, bool) for share in value)
    return numbers and len(value) in (1, 2, 3) and min(value) > 0 and math.isclose(sum(value), 1)


def _is_document_form(value: str) -> bool:
    form, _, field = value.partition(":")
    return value in ("", "lines") or (form in ("csv", "jsonl") and field != "")


RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "cache_dir": ANY,
    "corpus.name": ANY,  # corpora.py knows which there are
    "corpus.path": NOT_EMPTY,
    "corpus.validation_path": NOT_EMPTY,
    "corpus.test_path": NOT_EMPTY,
    "corpus.data_dir": NOT_EMPTY,
    "corpus.split": (_are_fractions, "one to three positive fractions that sum to 1, such as (0.9,0.1)"),
    "corpus.tfds": (lambda value: value.count(":") == 1, "DATASET:FEATURE, such as ag_news_subset:title"),
    "corpus.documents": (_is_document_form, "empty, lines, csv:COLUMN or jsonl:FIELD"),
    "corpus.lowercase": ANY,
    "corpus.keep": ANY,
    "corpus.newlines": ANY,
    "vocab.source": one_of("train", "corpus"),
    "vocab.unknown": ANY,
    "devices": NOT_NEGATIVE,
    "batch.framing": one_of(*FRAMINGS),
    "batch.size": POSITIVE,
    "batch.length": POSITIVE,
    "batch.shift": ANY,
    "batch.stride": POSITIVE,
    "batch.shuffle": ANY,
    "batch.bucket": POSITIVE,
    "batch.padding": one_of("masked", "counted"),
    "model.cell": one_of("lstm"),
    "model.input": one_of("embedding", "onehot", "scalar"),
    "model.embedding": POSITIVE,
    "model.layers": POSITIVE,
    "model.hidden": POSITIVE,
    "model.dropout": SHARE,
    "model.init": one_of("orthogonal", "glorot", "axon", "pytorch", "uniform"),
    "model.init_scale": POSITIVE,
    "model.head_scale": NOT_NEGATIVE,
    "model.forget_bias": ANY,
    "model.dtype": one_of("float32", "bfloat16"),
    "optim.name": one_of("adam", "adamw", "rmsprop", "sgd"),
    "optim.learning_rate": POSITIVE,
    "optim.schedule": one_of("constant", "cosine", "trapezoid", "exponential", "step"),
    "optim.warmup_steps": NOT_NEGATIVE,
    "optim.final_fraction": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "optim.decay_rate": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "optim.decay_steps": POSITIVE,
    "optim.beta1": SHARE,
    "optim.beta2": SHARE,
    "optim.eps": POSITIVE,
    "optim.eps_form": one_of("outer", "keras"),
    "optim.momentum": SHARE,
    "optim.clip_norm": NOT_NEGATIVE,
    "optim.clip_value": NOT_NEGATIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.decay_biases": ANY,
    "train.epochs": POSITIVE,
    "train.steps": NOT_NEGATIVE,
    "train.steps_per_call": NOT_NEGATIVE,
    "train.log_every": POSITIVE,
    "train.eval_every": NOT_NEGATIVE,
    "train.checkpoint_every": NOT_NEGATIVE,
    "train.patience": NOT_NEGATIVE,
    "train.halvings": NOT_NEGATIVE,
    "train.best": one_of("validation", "train"),
    "eval.framing": one_of(*FRAMINGS),
    "eval.rows": POSITIVE,
    "eval.length": POSITIVE,
    "eval.lanes": POSITIVE,
    "eval.burn_in": NOT_NEGATIVE,
    "sample.prompt": NOT_EMPTY,
    "sample.length": NOT_NEGATIVE,
    "sample.temperature": NOT_NEGATIVE,
    "sample.top_k": NOT_NEGATIVE,
}
DEFAULTS_FILE = pathlib.Path(__file__).parents[2] / "configs" / "base.py"
BEGINNING = DEFAULTS_FILE.with_name("quickstart.py")  # what a message names to someone whose config file is not there
COMPARISONS = {">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt}
OF_THE_MACHINE = (
    "cache_dir",
    "train.steps_per_call",
)  # these change no result: a run goes on with others, and old runs need not have them
LATER = ("sample.top_k", "model.cell")  # newer than some runs, which are as the default has it
PATHS = ("corpus.path", "corpus.validation_path", "corpus.test_path", "corpus.data_dir", "cache_dir")


def load(file_and_arg: str, overrides: Mapping[str, object] | None = None) -> ConfigDict:
    """The checked config of a file, with overrides applied.

    Args:
      file_and_arg: path of a config file, optionally followed by `:` and an argument for its `get_config`.
      overrides: dotted key → value, or the value as a string in which it was typed.

    Returns:
      The config, locked; its paths are absolute, so that the run can be read from any directory.

    Raises:
      UserError: no such file, no `get_config` in it, an unknown key, a wrong type, or a value out of range.
    """
    file, _, arg = file_and_arg.partition(":")
    config = _get_config(pathlib.Path(file), arg or None)
    _check_keys(config, file)
    for key, value in (overrides or {}).items():
        override(config, key, value)
    check(config)
    for key in PATHS:
        if _get(config, key):
            _section(config, key)[key.split(".")[-1]] = os.path.abspath(os.path.expanduser(_get(config, key)))
    return config.lock()


def call(file_and_arg: str, function: str) -> object:
    """What a config file's function of that name returns, such as its `sweep()`.

    Raises:
      UserError: there is no such file or function, or it fails.
    """
    file = pathlib.Path(file_and_arg.partition(":")[0])
    result = _call(file, function)
    if result is None:
        raise UserError(f"--config={file} has no {function}() that returns something; see charlm/sweep.py.")
    return result


def condition(text: str) -> tuple[str, Callable[[object], bool]]:
    """A condition such as `model.hidden>=256` as (left side, predicate on its value).

    Numbers are compared as numbers, true and false as such, everything else as it is written; None fulfils only `=None` and
    `!=` something else.

    Raises:
      UserError: it is no condition.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*", text)
    if match is None:
        raise UserError(f"{text!r} is no condition: one such as model.hidden>=256 would be right.")
    name, sign, wanted = match.groups()
    compare = COMPARISONS.get(sign, operator.eq)

    def holds(value: object) -> bool:
        kind = bool if isinstance(value, bool) else float
        if isinstance(value, int | float):
            try:
                return compare(value, _typed(wanted, kind))
            except (KeyError, ValueError):
                raise UserError(f"{text!r} compares {name} with {wanted!r}: {_expected(kind)} would be right.") from None
        return compare(str(value), wanted) if value is not None or compare in (operator.eq, operator.ne) else False

    return name, holds


def known(key: str) -> str:
    """The key itself. Raises a UserError where there is no such key, naming the nearest one."""
    if key not in RULES:
        raise UserError(f"unknown config key {key!r}: {_nearest(key)}.")
    return key


def short(key: str) -> str:
    """The shortest ending of a key that no other key has: `hidden`, `optim.name`; of an unknown key all of it."""
    names = key.split(".")
    endings = [".".join(names[-count:]) for count in range(1, len(names) + 1)]
    return next((ending for ending in endings if sum(f".{known}".endswith(f".{ending}") for known in RULES) == 1), key)


def override(config: ConfigDict, key: str, value: object) -> None:
    """Sets a dotted key in place; a string is read as the key's type asks.

    Raises:
      UserError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    section, name = _section(config, known(key)), key.split(".")[-1]
    kind = section.get_type(name)
    try:
        section[name] = _typed(value, kind) if isinstance(value, str) else value
    except (TypeError, ValueError, SyntaxError, KeyError, RecursionError, MemoryError) as error:
        raise UserError(f"{key}={value!r} is of the wrong type: {_expected(kind)} would be right.") from error


def check(config: ConfigDict) -> None:
    """Raises a UserError for the first key whose value is out of its range."""
    base = defaults()
    for key, (is_right, what) in RULES.items():
        value, default = _get(config, key), _get(base, key)
        if value is None and default is None:
            continue
        kind = _section(base, key).get_type(key.split(".")[-1])
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise UserError(f"{key}={value!r} is of the wrong type: {_expected(kind)} would be right.")
        if isinstance(value, float) and not abs(value) <= MOST:
            raise UserError(f"{key}={value} is not right: a finite number would be, at most {MOST:g}.")
        if isinstance(value, int) and abs(value) >= 2**31 and key != "seed":
            raise UserError(f"{key}={value} is not right: it must be below 2147483648.")
        try:
            right = is_right(value)
        except OverflowError:  # of integers of hundreds of digits as fractions
            right = False
        if not right:
            raise UserError(f"{key}={value!r} is not right: it must be {what}.")
    if config.corpus.test_path is not None and config.corpus.validation_path is None:
        raise UserError("corpus.test_path is set but corpus.validation_path is not: give both files, or neither.")
    if config.corpus.validation_path is not None and config.corpus.path is None:
        raise UserError("corpus.validation_path is set but corpus.path is not: give the training text there.")
    dataset = config.corpus.tfds
    for key, value in (("path", config.corpus.path), ("documents", config.corpus.documents)):
        if dataset is not None and value:
            raise UserError(
                f"corpus.{key}={value!r} and corpus.tfds={dataset!r} are both set: corpus.tfds=None takes the file."
            )


def to_dict(config: ConfigDict) -> dict:
    """The config as nested dicts of JSON values; tuples become lists."""
    return {
        name: to_dict(value) if isinstance(value, ConfigDict) else list(value) if isinstance(value, tuple) else value
        for name, value in sorted(config.items())
    }


def from_dict(fields: Mapping) -> ConfigDict:
    """The checked config that `to_dict` wrote.

    Raises:
      UserError: keys missing, unknown, or with values of the wrong type or range.
    """
    config = defaults()
    flat = flatten(fields)
    missing = [key for key in RULES if key not in flat and key not in (*OF_THE_MACHINE, *LATER)]
    if missing:
        raise UserError(f"the config has no {missing[0]}: it was written by another version of charlm.")
    for key, value in flat.items():
        override(config, key, tuple(value) if isinstance(value, list) else value)
    check(config)
    return config


def flatten(fields: Mapping | ConfigDict, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one dict with dotted keys."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(mine: Mapping, others: Mapping) -> dict[str, tuple]:
    """Dotted key → (value in mine, value in others) for the keys in which two runs differ, given as nested dicts."""
    mine, others = flatten(mine), flatten(others)
    keys = [key for key in {**mine, **others} if mine.get(key) != others.get(key) and key not in OF_THE_MACHINE]
    return {key: (mine.get(key), others.get(key)) for key in sorted(keys)}


def in_words(different: Mapping[str, tuple]) -> str:
    """What `differences` found, as messages have it: `optim.beta1 (0.9 there, 0.8 here)`."""
    return ", ".join(f"{key} ({there!r} there, {here!r} here)" for key, (there, here) in different.items())


@functools.cache
def of_old_runs() -> dict[str, object]:
    """Dotted key → the value that runs have which are older than the key."""
    flat = flatten(defaults())
    return {key: flat[key] for key in LATER}


def defaults() -> ConfigDict:
    """What configs/base.py says."""
    # Here and not above: the defaults stand in configs/, beside the package, and nothing else needs them.
    from configs import base

    return base.get_config()


def _get_config(file: pathlib.Path, arg: str | None) -> ConfigDict:
    config = _call(file, "get_config", arg)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={file} has no get_config(arg=None) that returns a ConfigDict; see configs/quickstart.py.")
    return config


def _call(file: pathlib.Path, function: str, *arguments: str | None) -> object:
    """What a function of a config file returns, None where there is none."""
    if not file.is_file():
        raise UserError(f"--config={file}: there is no such file in {os.getcwd()}; {BEGINNING} is one to begin with.")
    spec = importlib.util.spec_from_file_location(f"charlm_config_{file.stem}", file)
    if spec is None:
        raise UserError(f"--config={file} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*arguments) if hasattr(module, function) else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={file} can't be loaded: {type(error).__name__}: {error}.") from error


def _check_keys(config: ConfigDict, file: str) -> None:
    given = flatten(config)
    for key in given:
        if key not in RULES:
            raise UserError(f"{file} sets the unknown config key {key!r}: {_nearest(key)}.")
    for key in RULES:
        if key not in given:
            raise UserError(f"{file} has no {key}: begin its get_config with config = base.get_config().")


def _nearest(key: str) -> str:
    same_name = [known for known in RULES if known.split(".")[-1] == key.split(".")[-1]]
    close = difflib.get_close_matches(key, RULES, n=1, cutoff=0.0)
    return f"the nearest known one is {(same_name + close)[0]!r}"


def _section(config: ConfigDict, key: str) -> ConfigDict:
    for name in key.split(".")[:-1]:
        config = config[name]
    return config


def _get(config: ConfigDict, key: str):
    return _section(config, key)[key.split(".")[-1]]


def _typed(value: str, kind: type):
    """A string from the command line as a value of the given type; ValueError where it is none."""
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    if kind is int:
        return int(value)
    if kind is float:
        return float(value)
    if kind is tuple:
        literal = ast.literal_eval(value)
        return literal if isinstance(literal, tuple) else (literal,)
    return None if value == "None" else value


def _expected(kind: type) -> str:
    return {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        tuple: "a tuple such as (0.9,0.1)",
    }[kind]
