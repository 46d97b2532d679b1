"""The layout of the package: each wing imports only from wings below it, and its __init__.py is only a docstring."""

import ast
import pathlib

import pytest
from conftest import ROOT

PACKAGE = ROOT / "charlm"
# From top to bottom; wings in one row are on the same floor. `door` is charlm/__init__.py and charlm/__main__.py.
FLOORS = (
    ("door",),
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
    ("ground",),
)
HEIGHT = {wing: len(FLOORS) - number for number, floor in enumerate(FLOORS) for wing in floor}
GROUND = {"cli", "errors", "files", "measures", "progress"}


def modules(package: pathlib.Path) -> dict[str, pathlib.Path]:
    """Dotted name → file, for every module of a package and the package itself."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """The modules of `known` that a file imports, at its top or inside functions."""
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
            # `from charlm.data import batches` imports a module; `from charlm.data.batches import Batch` imports a name of one.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {module for module in found if module in known}


def wing_of(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 1 or parts[1] == "__main__":
        return "door"
    return "ground" if parts[1] in GROUND else parts[1]


def upward(package: pathlib.Path) -> list[str]:
    """A line for each import from a higher wing."""
    known = modules(package)
    return [
        f"{known[name].relative_to(package.parent)} imports {known[other].relative_to(package.parent)}"
        for name, file in known.items()
        for other in sorted(imports(name, file, known))
        if HEIGHT[wing_of(other)] > HEIGHT[wing_of(name)]
    ]


def circle(package: pathlib.Path) -> list[str]:
    """The files of one import cycle, in order; empty if there is none."""
    known = modules(package)
    arrows = {name: sorted(imports(name, file, known) - {name}) for name, file in known.items()}
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in arrows[name]:
            if found := walk(other, [*path, name]):
                return found
        finished.add(name)
        return []

    found = next(filter(None, (walk(name, []) for name in known)), [])
    return [str(known[name].relative_to(package.parent)) for name in found]


def test_no_import_runs_upward():
    assert upward(PACKAGE) == []


def test_no_circle_of_imports():
    assert circle(PACKAGE) == []


def test_every_wing_has_a_place_in_the_plan():
    assert {wing_of(name) for name in modules(PACKAGE)} == set(HEIGHT)


def test_the_file_of_a_wing_is_its_docstring():
    for wing in sorted(set(HEIGHT) - {"door", "ground"}):
        tree = ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"charlm/{wing}/__init__.py has no docstring"
        assert len(tree.body) == 1, f"charlm/{wing}/__init__.py holds more than its docstring"


@pytest.mark.parametrize(
    "line",
    ["from charlm.models import stack", "def late():\n    import charlm.models.stack", "from ..models import stack as s"],
)
def test_a_planted_upward_import_is_found_with_both_files(tmp_path, line):
    planted(tmp_path, {"data/corpora.py": line, "models/stack.py": ""})
    assert upward(tmp_path / "charlm") == ["charlm/data/corpora.py imports charlm/models/stack.py"]


def test_a_planted_circle_is_found(tmp_path):
    planted(tmp_path, {"data/corpora.py": "from charlm.data.vocab import Vocab", "data/vocab.py": "import charlm.data.corpora"})
    assert circle(tmp_path / "charlm") == ["charlm/data/corpora.py", "charlm/data/vocab.py", "charlm/data/corpora.py"]


def planted(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in {"__init__.py": "", "data/__init__.py": "", "models/__init__.py": "", **files}.items():
        file = folder / "charlm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
