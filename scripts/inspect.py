"""Runs `charlm inspect` from this checkout. The program is charlm/programs/inspect.py."""

if __name__ == "__main__":
    from charlm.programs import inspect

    inspect.run()
else:
    # Python's own module `inspect` has the same name. While a program of this folder runs, the folder comes first in the search
    # path, so `import inspect` finds this file. It then loads Python's module in its place.
    import importlib.machinery
    import importlib.util
    import os
    import sys

    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.machinery.PathFinder.find_spec(
        "inspect", [place for place in sys.path if os.path.abspath(place) != folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["inspect"] = module
    spec.loader.exec_module(module)
