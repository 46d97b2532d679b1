"""Loads config files, applies overrides, converts configs to and from dicts, and parses conditions on keys.

This module finds all mistakes in a config before any work begins.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import operator
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping

from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import checking, keys
from charlm.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
# An installed package contains the recipes. In a checkout, the recipes are in the folder `configs` beside the package.
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"
COMPARISONS = {">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt}
ADVICE = "start with config = base.get_config(), as configs/quickstart.py does"


def load(file_and_arg: str, overrides: Mapping[str, object] | None = None) -> ConfigDict:
    """Loads a config file or recipe, applies overrides and checks the config.

    Args:
      file_and_arg: path of a config file, or name of a recipe such as `quickstart`. An optional `:ARG` passes an argument to
        `get_config`.
      overrides: dotted key → value. Text from the command line is converted to the key's type.

    Returns:
      The config, locked so that no key can be added. All paths are absolute, so that the run can be read from any directory.

    Raises:
      UserError: the file or recipe does not exist, raises an exception or has no `get_config`; a key is unknown or missing;
        or a value has the wrong type or is not allowed. For a mistake in the file, the message names the file and, if known,
        the line.
    """
    file, arg = find(file_and_arg)
    config = _config_from_file(file, arg)
    overrides = overrides or {}
    _check_names(config, file)
    for name, value in overrides.items():
        override(config, name, value)
    return _checked(config, lambda name: "" if name in overrides else _place(file, name))


def checked(config: ConfigDict) -> ConfigDict:
    """Checks a config made in Python. Returns a locked copy with absolute paths, as `load` does.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type or is not allowed.
    """
    _check_names(config)
    return _checked(config, lambda name: "")


def find(file_and_arg: str) -> tuple[pathlib.Path, str | None]:
    """Returns the file and the argument of `FILE[:ARG]` or `RECIPE[:ARG]`. A file takes priority over a recipe.

    Raises:
      UserError: neither a file nor a recipe has this name. The message names the nearest recipe.
    """
    name, _, arg = file_and_arg.partition(":")
    file, recipe = pathlib.Path(name), RECIPES / f"{name}.py"
    if file.is_file():
        return file, arg or None
    if name.isidentifier() and recipe.is_file():
        return recipe, arg or None
    recipes = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem not in ("__init__", "base"))
    nearest = difflib.get_close_matches(file.stem, recipes, n=1, cutoff=0.0)[0]
    raise UserError(f"--config={name}: no such file in {os.getcwd()} and no such recipe; the nearest recipe is {nearest}.")


def call(file_and_arg: str, function: str) -> object:
    """Calls a function of a config file other than `get_config()`, such as `sweep()`, and returns its result.

    Raises:
      UserError: the file or function does not exist, or the function raises an exception or returns None.
    """
    file, _ = find(file_and_arg)
    result = _result_of(file, function)
    if result is None:
        raise UserError(f"--config={file} has no {function}() that returns a value; see charlm/sweeps/sweep.py.")
    return result


def override(config: ConfigDict, name: str, value: object) -> None:
    """Sets a key in place. Text is converted to the key's type.

    Raises:
      UserError: the key is unknown, or the value has the wrong type or is not allowed. For an unknown key, the message names
        the nearest key.
    """
    *parts, last = keys.known(name).split(".")
    value = checking.checked(name, checking.parsed(name, value) if isinstance(value, str) else value)
    section = config
    for part in parts:
        section = section[part]
    with section.ignore_type():  # checking.checked has checked the type
        section[last] = value


def to_dict(config: ConfigDict) -> dict:
    """Converts a config to nested dicts of JSON values. Tuples become lists."""
    return {
        name: to_dict(value) if isinstance(value, ConfigDict) else list(value) if isinstance(value, tuple) else value
        for name, value in sorted(config.items())
    }


def from_dict(fields: Mapping) -> ConfigDict:
    """Converts the result of `to_dict` back to a config and checks the config.

    If the dict was saved before a key existed, the key gets the value that the key table defines for older runs.

    Raises:
      UserError: a key is unknown, or a value has the wrong type or is not allowed.
    """
    return _config_of(keys.before_keys_existed() | flatten(fields))


def flatten(fields: Mapping | ConfigDict, prefix: str = "") -> dict[str, object]:
    """Converts nested dicts to one dict with dotted keys."""
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(saved: Mapping, given: Mapping) -> dict[str, tuple]:
    """Dotted key → (saved value, given value), for the keys in which two configs differ.

    Keys that do not change results are left out. A key that has no effect in either of the two configs is left out too. If a
    config was saved before a key existed, the key gets the value that the key table defines for older runs, and this value is
    compared. A key with `is_seen_in_data` is also left out if its saved value is its value for older runs, and its given value
    is its default.

    Args:
      saved: config of an existing run, as a nested or flat dict.
      given: the other config, as a nested or flat dict.
    """
    old, new = (keys.effective(flatten(fields)) for fields in (saved, given))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in keys.CHANGE_NO_RESULT]
    changed = {name: (old.get(name), new.get(name)) for name in sorted(names)}
    return {name: values for name, values in changed.items() if values != keys.NEW_DEFAULTS.get(name)}


def results_config(fields: Mapping) -> str:
    """The keys of a config that change results, with their values, as JSON text. If two configs give the same JSON text,
    their runs have the same results.

    Args:
      fields: a config as a nested or flat dict of JSON values, perhaps saved before some keys existed.
    """
    values = keys.effective(flatten(fields))
    return json.dumps({name: value for name, value in values.items() if name not in keys.CHANGE_NO_RESULT}, sort_keys=True)


def in_words(different: Mapping[str, tuple]) -> str:
    """Formats the result of `differences` for a message, such as `optim.beta1 (0.9 saved, 0.8 given)`."""
    return ", ".join(f"{name} ({saved!r} saved, {given!r} given)" for name, (saved, given) in different.items())


def condition(text: str) -> tuple[str, Callable[[object], bool]]:
    """Parses a condition such as `model.hidden>=256`.

    Returns the name on the left side, and a predicate: a function that says whether a value of this name meets the condition.

    The predicate compares numbers as numbers, booleans as booleans, tuples as tuples, and all other values as text. None
    satisfies only two conditions: `=None`, and `!=` with any text other than None.

    Raises:
      UserError: the text is not a condition. The predicate raises a UserError if the right side has the wrong type.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*", text)
    if match is None:
        raise UserError(f"{text!r} is not a condition: write a condition such as model.hidden>=256.")
    name, sign, wanted = match.groups()
    compare: Callable[..., bool] = COMPARISONS.get(sign, operator.eq)

    def holds(value: object) -> bool:
        if isinstance(value, bool | int | float):
            kind = bool if isinstance(value, bool) else float
            try:
                return compare(value, checking.typed(wanted, kind))
            except ValueError:
                expected = checking.TYPES[kind]
                raise UserError(f"{text!r}: {name} must be compared with {expected}, not {wanted!r}.") from None
        if isinstance(value, list | tuple) and compare in (operator.eq, operator.ne):
            with contextlib.suppress(ValueError):  # the right side is not a tuple
                return compare(tuple(value), checking.typed(wanted, tuple))
        return compare(str(value), wanted) if value is not None or compare in (operator.eq, operator.ne) else False

    return name, holds


def _check_names(config: ConfigDict, file: pathlib.Path | None = None) -> None:
    """Raises a UserError for the first key that is unknown or missing."""
    names = flatten(config)
    for name in names:
        try:
            keys.known(name)
        except UserError as error:
            raise UserError(f"{_place(file, name) if file else ''}{error}") from error
    for name in keys.KEYS:
        if name not in names:
            raise UserError(f"{f'{file}: ' if file else ''}the config has no {name}: {ADVICE}.")


def _checked(config: ConfigDict, place: Callable[[str], str]) -> ConfigDict:
    """Returns a checked, locked copy of the config. `place` maps a key to the start of a message about the key."""
    values = {}
    for name, value in flatten(config).items():
        try:
            value = checking.checked(name, value)
        except UserError as error:
            raise UserError(f"{place(name)}{error}") from error
        values[name] = checking.with_absolute_paths(name, value)
    try:
        return _config_of(values).lock()
    except UserError as error:  # checking.check_together raised this error, and its message begins with a key
        raise UserError(f"{place(str(error).partition('=')[0])}{error}") from error


def _config_of(values: Mapping[str, object]) -> ConfigDict:
    """Makes a config from the values of all keys. Checks each value, and then the rules that concern two keys."""
    config = keys.defaults()
    for name, value in values.items():
        override(config, name, value)
    checking.check_together(flatten(config))
    return config


def _config_from_file(file: pathlib.Path, arg: str | None) -> ConfigDict:
    config = _result_of(file, "get_config", arg)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={file} has no get_config() that returns a ConfigDict: {ADVICE}.")
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


def _result_of(file: pathlib.Path, function: str, arg: str | None = None) -> object:
    """Runs a config file and calls a function of the file. Returns None if the file has no such function."""
    spec = importlib.util.spec_from_file_location(f"charlm_config_{file.stem}", os.path.abspath(file))
    if spec is None or spec.loader is None:
        raise UserError(f"--config={file} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        with _imports(module, os.path.dirname(os.path.abspath(file))):
            spec.loader.exec_module(module)
            called = getattr(module, function, None)
            if not callable(called):
                return None
            if arg is None and _accepts(called):
                return called()
            if not _accepts(called, arg):
                raise UserError(f"--config={file}:{arg}: this config takes no argument; write --config={file}.")
            return called(arg)
    except UserError:
        raise
    except Exception as error:
        raise UserError(error_message(error, file, f"--config={file}")) from error


def _accepts(function: Callable, *arguments: str | None) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _imports(module: types.ModuleType, folder: str) -> Iterator[None]:
    """Lets a config file import modules from its own folder. The file can also import recipes from the package `configs`.

    Afterwards these modules are removed from sys.modules, because another config file may need other modules with
    the same names.
    """
    recipes = types.ModuleType("configs")
    recipes.__path__ = [os.fspath(RECIPES)]
    siblings = {path.stem for path in pathlib.Path(folder).glob("*.py")}
    siblings |= {path.parent.name for path in pathlib.Path(folder).glob("*/__init__.py")}
    local = siblings - sys.stdlib_module_names - {"charlm"} | {"configs", module.__name__}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in local}
    before = set(sys.modules)
    sys.modules |= {"configs": recipes, module.__name__: module}
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # Python may have cached the list of files before a module was added
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the config file may have removed the folder from sys.path
            sys.path.remove(folder)
        local |= {name for name in set(sys.modules) - before if _is_in_folder(sys.modules[name], folder)}
        for name in list(sys.modules):
            if name.partition(".")[0] in local:
                del sys.modules[name]
        sys.modules |= hidden


def _is_in_folder(module: types.ModuleType, folder: str) -> bool:
    """Whether a module or package is directly in a folder. The package may lack `__init__.py`."""
    paths = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None) or ""]
    return folder in map(os.path.dirname, paths)


def error_message(error: Exception | SystemExit, file: pathlib.Path, otherwise: str) -> str:
    """Describes in one sentence an exception that a user's file raised, and names the file and the line that raised it.

    Args:
      file: the user's file. The exception may also come from another file in the same folder.
      otherwise: the beginning of the sentence if no line of a file in this folder raised the exception.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_sibling(error.filename, file)} line {error.lineno}: {type(error).__name__}: {error.msg}."
    frames = traceback.extract_tb(error.__traceback__)
    in_folder = [frame for frame in frames if os.path.dirname(frame.filename) == os.path.dirname(os.path.abspath(file))]
    place = f"{_sibling(in_folder[-1].filename, file)} line {in_folder[-1].lineno}" if in_folder else otherwise
    if in_folder and "ml_collections" in frames[-1].filename and (name := _missing_key(error, in_folder[-1].line or "")):
        try:
            keys.known(name)
        except UserError as unknown:
            return f"{place}: {unknown}"
    text = str(error).rstrip(".")
    return f"{place}: {type(error).__name__}{': ' if text else ''}{text}."


def _missing_key(error: BaseException, line: str) -> str | None:
    """The key named by an error of ml_collections. Includes the section if the source line names the section."""
    match = re.search(r'Key "(\w+)"', str(error)) or re.match(r"\W*(\w+)", str(error))
    if match is None or not isinstance(error, AttributeError | KeyError):
        return None
    if below := re.search(rf"\.{match[1]}\.(\w+)", line):  # the unknown name is a section
        return f"{match[1]}.{below[1]}"
    dotted = [f"{section}.{match[1]}" for section in re.findall(rf"\b(\w+)\.{match[1]}\b", line) if section in keys.SECTIONS]
    return next((name for name in dotted if name not in keys.KEYS), match[1])


def _sibling(path: str, file: pathlib.Path) -> pathlib.Path:
    """The path of another file in the folder of `file`, relative or absolute like `file`."""
    return file.with_name(os.path.basename(path))


def _place(file: pathlib.Path, name: str) -> str:
    """Returns the start of a message about a key: the config file, and the line number if exactly one line sets the key."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    *_, last = name.split(".")
    for pattern in (rf"\.{re.escape(name)}\s*=(?!=)", rf"\b{re.escape(last)}\b[\"']?\]?\s*[=:](?!=)"):
        found = [number for number, line in enumerate(lines, start=1) if re.search(pattern, line.partition("#")[0])]
        if len(found) == 1:
            return f"{file} line {found[0]}: "
    return f"{file}: "
