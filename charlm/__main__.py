"""The command `charlm`, which runs any program of the package.

Example: `charlm train --config=quickstart --workdir=runs/first`. `python -m charlm train ...` does the same.
"""

import difflib
import importlib
import sys

PROGRAMS = ("train", "evaluate", "sample", "sweep", "compare", "inspect", "import_torch", "import_keras", "export")
INTERNAL = ("train_pack",)  # programs that only other programs start
USAGE = f"usage: charlm PROGRAM [flags]\nprograms: {', '.join(PROGRAMS)}\ncharlm PROGRAM --help lists the flags of a program."


def main() -> None:
    """Runs the program that the first argument names. The program gets the remaining arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print(USAGE)
        sys.exit(0)
    if name not in PROGRAMS + INTERNAL:
        nearest = difflib.get_close_matches(name, PROGRAMS, n=1, cutoff=0.0)[0]
        print(f"error: charlm has no program {name!r}: the nearest name is {nearest!r}.", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    importlib.import_module(f"charlm.programs.{name}").run()


if __name__ == "__main__":
    main()
