"""Config files, overrides, the dicts that run directories hold, and conditions on keys.

All mistakes in a config are found here, before any work begins.
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import operator
import os
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping

from ml_collections import ConfigDict, FrozenConfigDict

from charlm.config import keys
from charlm.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
# An installed package has the recipes inside, a checkout beside it.
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "configs"
COMPARISONS = {">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt}
ADVICE = "start with config = base.get_config(), as configs/quickstart.py does"


def load(file_and_arg: str, overrides: Mapping[str, object] | None = None) -> ConfigDict:
    """The checked config of a file or recipe, with overrides applied.

    Args:
      file_and_arg: path of a config file, or name of a recipe such as `quickstart`; then optionally `:` and an argument for its
        `get_config`.
      overrides: dotted key → value, or the value as text from the command line.

    Returns:
      The config, locked. Its paths are absolute, so that the run can be read from any directory.

    Raises:
      UserError: there is no such file or recipe, the file raises an exception or has no `get_config`, a key is unknown or
        missing, or a value has the wrong type or is not allowed. The message names the file and, where known, the line.
    """
    file, arg = find(file_and_arg)
    config = _made_by(file, arg)
    overrides = overrides or {}
    _check_names(config, file)
    for name, value in overrides.items():
        override(config, name, value)
    return _checked(config, lambda name: "" if name in overrides else _place(file, name))


def checked(config: ConfigDict) -> ConfigDict:
    """A copy of a config made in Python, checked as `load` checks that of a file; locked, with absolute paths.

    Raises:
      UserError: a key is unknown or missing, or a value has the wrong type or is not allowed.
    """
    _check_names(config)
    return _checked(config, lambda name: "")


def find(file_and_arg: str) -> tuple[pathlib.Path, str | None]:
    """The file and the argument that `FILE[:ARG]` or `RECIPE[:ARG]` name. An existing file is preferred to a recipe.

    Raises:
      UserError: there is neither such a file nor such a recipe. The nearest recipe is named.
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
    """The result of another function of a config file, such as its `sweep()`.

    Raises:
      UserError: there is no such file or function, or it raises an exception or returns None.
    """
    file, _ = find(file_and_arg)
    result = _called(file, function)
    if result is None:
        raise UserError(f"--config={file} has no {function}() that returns something; see charlm/sweeps/sweep.py.")
    return result


def override(config: ConfigDict, name: str, value: object) -> None:
    """Sets a key in place. Text is read in the key's type.

    Raises:
      UserError: there is no such key (the nearest one is named), or the value has the wrong type or is not allowed.
    """
    *parts, last = keys.known(name).split(".")
    value = keys.checked(name, keys.parsed(name, value) if isinstance(value, str) else value)
    section = config
    for part in parts:
        section = section[part]
    with section.ignore_type():  # the table of keys has checked it
        section[last] = value


def to_dict(config: ConfigDict) -> dict:
    """The config as nested dicts of JSON values. Tuples become lists."""
    return {
        name: to_dict(value) if isinstance(value, ConfigDict) else list(value) if isinstance(value, tuple) else value
        for name, value in sorted(config.items())
    }


def from_dict(fields: Mapping) -> ConfigDict:
    """The checked config that `to_dict` made. Keys that did not exist then get the value that runs had before.

    Raises:
      UserError: a key is unknown, or a value has the wrong type or is not allowed.
    """
    return _config_of(keys.before_keys_existed() | flatten(fields))


def flatten(fields: Mapping | ConfigDict, prefix: str = "") -> dict[str, object]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(there: Mapping, here: Mapping) -> dict[str, tuple]:
    """Dotted key → (value there, value here), for the keys in which two runs differ.

    Args:
      there, here: two configs as nested or flat dicts. A key that one of them lacks has the value from before it existed.
        Keys that change no result are left out.
    """
    one, other = (keys.before_keys_existed() | flatten(fields) for fields in (there, here))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name) and name not in keys.CHANGE_NO_RESULT]
    return {name: (one.get(name), other.get(name)) for name in sorted(names)}


def in_words(different: Mapping[str, tuple]) -> str:
    """The result of `differences` for a message: `optim.beta1 (0.9 there, 0.8 here)`."""
    return ", ".join(f"{name} ({there!r} there, {here!r} here)" for name, (there, here) in different.items())


def condition(text: str) -> tuple[str, Callable[[object], bool]]:
    """A condition such as `model.hidden>=256`, as (left side, predicate on its value).

    Numbers are compared as numbers, true and false as such, and everything else as text. None satisfies only `=None`, and `!=`
    with anything else.

    Raises:
      UserError: it is not a condition.
    """
    match = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|!=|==|=|>|<)\s*(.*?)\s*", text)
    if match is None:
        raise UserError(f"{text!r} is not a condition: write one such as model.hidden>=256.")
    name, sign, wanted = match.groups()
    compare: Callable[..., bool] = COMPARISONS.get(sign, operator.eq)

    def holds(value: object) -> bool:
        if isinstance(value, bool | int | float):
            kind = bool if isinstance(value, bool) else float
            try:
                return compare(value, keys.typed(wanted, kind))
            except ValueError:
                expected = keys.TYPES[kind]
                raise UserError(f"{text!r}: {name} must be compared with {expected}, not {wanted!r}.") from None
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
    """Args: place: key → what a message about it begins with."""
    values = {}
    for name, value in flatten(config).items():
        try:
            value = keys.checked(name, value)
        except UserError as error:
            raise UserError(f"{place(name)}{error}") from error
        is_path = keys.KEYS[name].is_path and value
        values[name] = os.path.abspath(os.path.expanduser(str(value))) if is_path else value
    try:
        return _config_of(values).lock()
    except UserError as error:  # a rule over several keys; the message begins with the first of them
        raise UserError(f"{place(str(error).partition('=')[0])}{error}") from error


def _config_of(values: Mapping[str, object]) -> ConfigDict:
    """The config with these values of all keys, each checked, alone and together."""
    config = keys.defaults()
    for name, value in values.items():
        override(config, name, value)
    keys.check_together(flatten(config))
    return config


def _made_by(file: pathlib.Path, arg: str | None) -> ConfigDict:
    config = _called(file, "get_config", arg)
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={file} has no get_config() that returns a ConfigDict: {ADVICE}.")
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


def _called(file: pathlib.Path, function: str, arg: str | None = None) -> object:
    """The result of a function of a config file, or None if the file has no such function."""
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
            if arg is None and _takes(called):
                return called()
            if not _takes(called, arg):
                raise UserError(f"--config={file}:{arg}: this config takes no argument; write --config={file}.")
            return called(arg)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explained(error, file)) from error


def _takes(function: Callable, *arguments: str | None) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _imports(module: types.ModuleType, folder: str) -> Iterator[None]:
    """Lets a config file import `configs`, which is the folder of recipes, and the modules beside it.

    Afterwards none of these stay imported, so that another config file with modules of the same names gets its own.
    """
    recipes = types.ModuleType("configs")
    recipes.__path__ = [os.fspath(RECIPES)]
    beside = {path.stem for path in pathlib.Path(folder).glob("*.py")}
    beside |= {path.parent.name for path in pathlib.Path(folder).glob("*/__init__.py")}
    local = beside - sys.stdlib_module_names - {"charlm"} | {"configs", module.__name__}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in local}
    before = set(sys.modules)
    sys.modules |= {"configs": recipes, module.__name__: module}
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # a module may be younger than the last look at its folder
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the config file may have changed the path too
            sys.path.remove(folder)
        local |= {name for name in set(sys.modules) - before if _lies_in(sys.modules[name], folder)}
        for name in list(sys.modules):
            if name.partition(".")[0] in local:
                del sys.modules[name]
        sys.modules |= hidden


def _lies_in(module: types.ModuleType, folder: str) -> bool:
    """Whether a module, or a package with or without `__init__.py`, lies directly in a folder."""
    paths = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None) or ""]
    return folder in map(os.path.dirname, paths)


def _explained(error: Exception, file: pathlib.Path) -> str:
    """One sentence: in which file and line of the config an exception was raised, and what it says."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_shown(error.filename, file)} line {error.lineno}: {type(error).__name__}: {error.msg}."
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.dirname(frame.filename) == os.path.dirname(os.path.abspath(file))]
    place = f"{_shown(own[-1].filename, file)} line {own[-1].lineno}" if own else f"--config={file}"
    if own and "ml_collections" in frames[-1].filename and (name := _missing_key(error, own[-1].line or "")):
        try:
            keys.known(name)
        except UserError as unknown:
            return f"{place}: {unknown}"
    text = str(error).rstrip(".")
    return f"{place}: {type(error).__name__}{': ' if text else ''}{text}."


def _missing_key(error: Exception, line: str) -> str | None:
    """The key that an error of ml_collections is about, with its section where the source line names it."""
    match = re.search(r'Key "(\w+)"', str(error)) or re.match(r"\W*(\w+)", str(error))
    if match is None or not isinstance(error, AttributeError | KeyError):
        return None
    if below := re.search(rf"\.{match[1]}\.(\w+)", line):  # the name of a section is wrong
        return f"{match[1]}.{below[1]}"
    dotted = [f"{section}.{match[1]}" for section in re.findall(rf"\b(\w+)\.{match[1]}\b", line) if section in keys.SECTIONS]
    return next((name for name in dotted if name not in keys.KEYS), match[1])


def _shown(path: str, file: pathlib.Path) -> pathlib.Path:
    """A file in the folder of the config file, written like that one."""
    return file.with_name(os.path.basename(path))


def _place(file: pathlib.Path, name: str) -> str:
    """What a message about a key that a file sets begins with: the file, and the line if one line sets the key."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    *_, last = name.split(".")
    for pattern in (rf"\.{re.escape(name)}\s*=(?!=)", rf"\b{re.escape(last)}\b[\"']?\]?\s*[=:](?!=)"):
        found = [number for number, line in enumerate(lines, start=1) if re.search(pattern, line.partition("#")[0])]
        if len(found) == 1:
            return f"{file} line {found[0]}: "
    return f"{file}: "
