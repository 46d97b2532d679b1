"""Prints the losses of the sweep in this folder as a table of pairs.

    python experiments/2026-11-28-regularisers/table.py runs/regularisers

The diagonal has the regularisers alone. The other cells have the pairs. A cell has the best validation loss and, in brackets,
the training loss at the end. Only trials with seed 0 are shown.
"""

import os
import pathlib
import sys

import charlm

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2]))  # sweep imports configs
import sweep

KEYS = sorted({key for settings in sweep.REGULARISERS.values() for key in settings})


def main() -> None:
    losses = {}
    for run in charlm.runs(sys.argv[1]):
        if run["state"] == "done" and run["seed"] == 0:
            losses[tuple(run[key] for key in KEYS)] = f"{run['best']:.4f} ({run['train']:.4f})"
    off = {key: sweep.get_config().model[key.removeprefix("model.")] for key in KEYS}
    names = list(sweep.REGULARISERS)
    print(f"no regulariser: {losses.get(tuple(off.values()), '')}\n")
    print("| |", " | ".join(f"`{name}`" for name in names), "|")
    print("|---" * (len(names) + 1) + "|")
    for row in names:
        settings = [
            off | sweep.REGULARISERS[row] | sweep.REGULARISERS[column]
            if row == column or (row, column) in sweep.PAIRS
            else None
            for column in names
        ]
        cells = ["" if each is None else losses.get(tuple(each.values()), "") for each in settings]
        print(f"| `{row}` |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
