"""Tests of the package's layout. A wing is a folder inside charlm/.

The list LEVELS puts the wings on levels. A wing must not import from a wing on a higher level. The __init__.py of a wing must
have only a docstring.
"""

import ast
import pathlib

import pytest
from conftest import ROOT

PACKAGE = ROOT / "charlm"
# The levels from top to bottom. Wings on the same level may import each other.
# Two names in the list are not folders. `entry` stands for charlm/__init__.py and charlm/__main__.py. `base` stands for the
# modules in BASE_MODULES, which are files directly in charlm/.
LEVELS = (
    ("entry",),
    ("programs",),
    ("sweeps",),
    ("exchange",),
    ("training",),
    ("compare",),
    ("inference",),
    ("models",),
    ("rundir",),
    ("data",),
    ("hardware",),
    ("config",),
    ("base",),
)
HEIGHT = {wing: len(LEVELS) - number for number, level in enumerate(LEVELS) for wing in level}
BASE_MODULES = {"cli", "errors", "files", "measures", "progress"}


def modules(package: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {dotted name: file} for a package, its subpackages and all modules in them."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """Returns the modules in `known` that a file imports. Imports inside functions are included.

    Args:
      name: the dotted name of the file's module.
      file: the file.
      known: the result of `modules`.
    """
    found = set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            # `from charlm.data import batches` imports a module. `from charlm.data.batches import Batch` imports a class.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {module for module in found if module in known}


def wing_of(name: str) -> str:
    """Returns the name in LEVELS for a module with this dotted name."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "entry"
    return "base" if parts[1] in BASE_MODULES else parts[1]


def upward_imports(package: pathlib.Path) -> list[str]:
    """Returns one line for each import from a wing on a higher level."""
    known = modules(package)
    return [
        f"{known[name].relative_to(package.parent)} imports {known[other].relative_to(package.parent)}"
        for name, file in known.items()
        for other in sorted(imports(name, file, known))
        if HEIGHT[wing_of(other)] > HEIGHT[wing_of(name)]
    ]


def import_cycle(package: pathlib.Path) -> list[str]:
    """Returns the files of one import cycle: each file imports the next file, and the last file is the first file again.

    Returns an empty list if the package has no import cycle.
    """
    known = modules(package)
    imported = {name: sorted(imports(name, file, known) - {name}) for name, file in known.items()}
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in imported[name]:
            if found := walk(other, [*path, name]):
                return found
        finished.add(name)
        return []

    found = next(filter(None, (walk(name, []) for name in known)), [])
    return [str(known[name].relative_to(package.parent)) for name in found]


def test_no_wing_imports_from_a_higher_wing():
    assert upward_imports(PACKAGE) == []


def test_the_package_has_no_import_cycle():
    assert import_cycle(PACKAGE) == []


def test_every_wing_is_in_levels():
    assert {wing_of(name) for name in modules(PACKAGE)} == set(HEIGHT)


def test_the_init_file_of_a_wing_has_only_a_docstring():
    for wing in sorted(set(HEIGHT) - {"entry", "base"}):
        tree = ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"charlm/{wing}/__init__.py has no docstring"
        assert len(tree.body) == 1, f"charlm/{wing}/__init__.py has more than a docstring"


@pytest.mark.parametrize(
    "line",
    ["from charlm.models import stack", "def late():\n    import charlm.models.stack", "from ..models import stack as s"],
)
def test_an_upward_import_is_found(tmp_path, line):
    write_package(tmp_path, {"data/corpora.py": line, "models/stack.py": ""})
    assert upward_imports(tmp_path / "charlm") == ["charlm/data/corpora.py imports charlm/models/stack.py"]


def test_an_import_cycle_is_found(tmp_path):
    write_package(
        tmp_path, {"data/corpora.py": "from charlm.data.vocab import Vocab", "data/vocab.py": "import charlm.data.corpora"}
    )
    assert import_cycle(tmp_path / "charlm") == ["charlm/data/corpora.py", "charlm/data/vocab.py", "charlm/data/corpora.py"]


def write_package(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in {"__init__.py": "", "data/__init__.py": "", "models/__init__.py": "", **files}.items():
        file = folder / "charlm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
