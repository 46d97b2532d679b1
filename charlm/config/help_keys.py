"""The help text of `--helpkeys`: all config keys with their defaults, meanings and allowed values."""

import shutil
import textwrap

from charlm.config import keys
from charlm.config.checking import TYPES
from charlm.config.rules import DATASET, DOCUMENTS, ENCODING
from charlm.errors import UserError


def help_text(form: str = "") -> str:
    """The table of all keys as help text.

    Args:
      form: `markdown` for a Markdown table. Empty for plain text that fits the width of the terminal.

    Raises:
      UserError: `form` is neither empty nor `markdown`.
    """
    if form not in ("", "markdown"):
        raise UserError(f"--helpkeys={form}: must be markdown or empty.")
    return _as_markdown() if form else _for_terminal(shutil.get_terminal_size().columns)


def _as_markdown() -> str:
    lines = ["| key | default | meaning | allowed values |", "| --- | --- | --- | --- |"]
    for key in keys.TABLE:
        cells = f"`{key.name}`", f"`{_default_text(key.default)}`", key.meaning, _allowed_values(key)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines)


def _for_terminal(columns: int) -> str:
    left = max(len(key.name) for key in keys.TABLE) + 2, max(len(_default_text(key.default)) for key in keys.TABLE) + 2
    width = max(columns - sum(left) - 1, 20)
    lines = [f"{'key':<{left[0]}}{'default':<{left[1]}}meaning (allowed values)"]
    section = ""
    for key in keys.TABLE:
        if section != (section := key.name.rpartition(".")[0]):
            lines.append("")
        first, *rest = textwrap.wrap(f"{key.meaning} ({_allowed_values(key)})", width, break_on_hyphens=False)
        lines.append(f"{key.name:<{left[0]}}{_default_text(key.default):<{left[1]}}{first}")
        lines += [" " * sum(left) + more for more in rest]
    return "\n".join([*lines, "", "Set a key with --config.KEY=VALUE, or in a config file."])


def _default_text(default: object) -> str:
    """A default in the form that the command line accepts."""
    if isinstance(default, tuple):
        return f"({','.join(map(str, default))})"
    return str(default) if default != "" else '""'


def _allowed_values(key: keys.Key) -> str:
    if key.type in (bool, tuple) or key.rule.options or key.rule in (DATASET, DOCUMENTS, ENCODING):
        words = key.rule.words or TYPES[key.type]
    else:
        kind = "path" if key.is_path else {int: "integer", float: "number", str: "text"}[key.type]
        words = f"{kind}, {key.rule.words}" if key.rule.words and not key.is_path else kind
    words += ", or a tuple of these" if key.or_tuple else ""
    return words if key.default is not None else f"{words}, or None"
