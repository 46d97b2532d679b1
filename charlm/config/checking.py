"""Converts values of config keys from text, and checks values against the rules of their keys."""

import ast
import decimal
import difflib
import os
from collections.abc import Mapping
from typing import Any

from charlm.config import keys
from charlm.config.rules import MOST, SEED, own_cell
from charlm.errors import UserError

# Pairs of keys. If the first key of a pair is set, the second key must be set too.
NEEDS = (("corpus.test_path", "corpus.validation_path"), ("corpus.validation_path", "corpus.path"))
# Pairs of keys. At most one of the two keys of a pair can be set.
CONFLICTS = (("corpus.path", "corpus.tfds"), ("corpus.documents", "corpus.tfds"))
TYPES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a tuple such as (0.9,0.1)",
}


def typed(text: str, kind: type) -> object:
    """Converts text from the command line to a type. Raises a ValueError if the text is not of that type."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            literal = ast.literal_eval(text)
            return tuple(literal) if isinstance(literal, list | tuple) else (literal,)
        if kind is int:
            return _integer(text)
        if kind is str:
            return None if text == "None" else text
        return kind(text)
    except (TypeError, SyntaxError, KeyError, RecursionError, MemoryError, ArithmeticError) as error:
        raise ValueError(f"{text!r} is not {TYPES[kind]}") from error


def _integer(text: str) -> int:
    """Converts text such as `1000`, `1e3` or `1000.0` to an integer. Raises an exception if the number is not an integer."""
    try:
        return int(text)
    except ValueError:
        number = decimal.Decimal(text)  # exact, unlike a float
        if not number.is_finite() or number.adjusted() > 18 or number != number.to_integral_value():
            raise
        return int(number)


def parsed(name: str, text: str) -> object:
    """Converts text from the command line to the key's type. Raises a UserError if the text is not of that type."""
    key = keys.KEYS[name]
    try:
        return typed(text, tuple if key.or_tuple and text.startswith(("(", "[")) else key.type)
    except ValueError as error:
        several = ', or a tuple of strings, such as ("lstm","gru")' if key.or_tuple else ""
        raise UserError(f"{name}={text!r}: must be {TYPES[key.type]}{several}.") from error


def checked(name: str, value: object) -> object:
    """Checks a value and returns it in the key's type.

    If the key's type needs it, an integer is converted to a float, and a list to a tuple. A NumPy scalar is converted to the
    Python value that it holds.

    Raises:
      UserError: the value has another type, or the key's rule does not allow the value.
    """
    key = keys.KEYS[name]
    if value is None and key.default is None:
        return None
    if key.or_tuple and isinstance(value, list | tuple):
        if not value or any(isinstance(each, list | tuple) for each in value):
            raise UserError(f"{name}={value!r}: a tuple must have one value for each layer.")
        return tuple(checked(name, each) for each in value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:  # a NumPy scalar, for example of np.arange
        value = value.item()  # type: ignore[attr-defined]
    if key.type is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST:
        value = float(value)
    if key.type is tuple and isinstance(value, list):
        value = tuple(value)
    if not isinstance(value, key.type) or isinstance(value, bool) != (key.type is bool):
        raise UserError(f"{name}={value!r}: must be {TYPES[key.type]}.")
    if isinstance(value, float) and not abs(value) <= MOST:
        raise UserError(f"{name}={value}: must be a finite number, at most {MOST:g}.")
    if isinstance(value, int) and abs(value) >= 2**31 and key.rule is not SEED:
        raise UserError(f"{name}={value}: must be below 2147483648.")
    try:
        right = key.rule.is_right(value)
    except OverflowError:  # a tuple of fractions contains an integer too large for a float
        right = False
    if not right:
        none = "None, or " if key.default is None and value == "" else ""
        raise UserError(f"{name}={value!r}: must be {none}{key.rule.words}{_nearest(value, key.rule.options)}.")
    return value


def _nearest(value: object, options: tuple[str, ...]) -> str:
    """The end of a message about a wrong value: names the nearest option. Empty if the rule has no options."""
    if not (options and isinstance(value, str) and value.replace("-", "_").isidentifier()):
        return ""
    return f"; the nearest is {difflib.get_close_matches(value, options, n=1, cutoff=0.0)[0]!r}"


def with_absolute_paths(name: str, value: object) -> object:
    """The value of a key after relative paths in it are converted to absolute paths. `~` is the user's home directory."""
    if isinstance(value, tuple):
        return tuple(with_absolute_paths(name, part) for part in value)
    is_path = keys.KEYS[name].is_path or (name == "model.cell" and own_cell(value))
    return os.path.abspath(os.path.expanduser(str(value))) if is_path and value else value


def check_together(values: Mapping[str, Any]) -> None:
    """Checks NEEDS, CONFLICTS and the keys of layers. Raises a UserError that names two keys that do not fit together."""
    for name, needed in NEEDS:
        if values[name] is not None and values[needed] is None:
            raise UserError(f"{name}={values[name]!r}: needs {needed}, which is not set.")
    for name, other in CONFLICTS:
        if values[name] and values[other]:
            raise UserError(
                f"{name}={values[name]!r} and {other}={values[other]!r}: only one of them can be set; "
                f"--config.{other}=None unsets {other}."
            )
    _check_layers(values)


def _check_layers(values: Mapping[str, Any]) -> None:
    layers, widths = values["model.layers"], values["model.widths"]
    for name, tells in (("model.cell", "names the cells"), ("model.widths", "has the widths")):
        value = values[name]
        if isinstance(value, tuple) and value and len(value) != layers:
            count = f"{len(value)} {'layer' if len(value) == 1 else 'layers'}"
            raise UserError(f"{name}={value!r}: {tells} of {count}, but model.layers={layers}: set model.layers={len(value)}.")
    if values["model.residual"] and len(set(widths)) > 1:
        raise UserError(f"model.residual=True: needs layers of equal width, but model.widths={widths!r}.")
    if values["model.tie"] and values["model.input"] != "embedding":
        raise UserError(f"model.tie=True: needs model.input=embedding, but model.input={values['model.input']}.")
