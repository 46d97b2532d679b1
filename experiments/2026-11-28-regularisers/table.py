"""Prints the losses of the sweep in this folder as a table of pairs, and writes those of all trials into trials.csv.

    python experiments/2026-11-28-regularisers/table.py runs/regularisers

The diagonal has the regularisers alone. The other cells have the pairs. A cell has the best validation loss and, in brackets,
the training loss at the end, for seed 0. Below the table stand the means of the settings that have several seeds.
"""

import csv
import os
import pathlib
import statistics
import sys

import charlm

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2]))  # sweep imports configs
import sweep

HERE = pathlib.Path(__file__).parent
SETTINGS = sweep.REGULARISERS | sweep.ALONE
KEYS = sorted({key for settings in SETTINGS.values() for key in settings})
OFF = {key: sweep.get_config().model[key.removeprefix("model.")] for key in KEYS}


def values_of(*names: str) -> tuple:
    """The values of KEYS in a trial with these regularisers."""
    settings = OFF.copy()
    for name in names:
        settings |= SETTINGS[name]
    return tuple(settings.values())


def main() -> None:
    trials = {}
    for run in charlm.runs(sys.argv[1]):
        if run["state"] == "done":
            trials.setdefault(tuple(run[key] for key in KEYS), []).append(run)

    def cell(*names: str) -> str:
        found = [run for run in trials.get(values_of(*names), []) if run["seed"] == 0]
        return f"{found[0]['best']:.4f} ({found[0]['train']:.4f})" if found else ""

    names = list(sweep.REGULARISERS)
    print(f"no regulariser: {cell()}\n")
    print("| |", " | ".join(f"`{name}`" for name in names), "|")
    print("|---" * (len(names) + 1) + "|")
    for row in names:
        cells = [cell(row, column) if row == column or (row, column) in sweep.PAIRS else "" for column in names]
        print(f"| `{row}` |", " | ".join(cells), "|")
    print()
    for name in sweep.ALONE:
        print(f"{name}: {cell(name)}")
    settings = [(), *((name,) for name in SETTINGS), *sweep.PAIRS]
    for chosen in settings:
        losses = [run["best"] for run in trials.get(values_of(*chosen), [])]
        if len(losses) > 1:
            error = statistics.stdev(losses) / len(losses) ** 0.5
            print(f"{' and '.join(chosen)}: {statistics.fmean(losses):.4f} ± {error:.4f} ({len(losses)} seeds)")

    with open(HERE / "trials.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["regularisers", "seed", "validation", "train", "chars_per_second", "seconds"])
        for chosen in settings:
            for run in sorted(trials.get(values_of(*chosen), []), key=lambda run: run["seed"]):
                losses = f"{run['best']:.4f}", f"{run['train']:.4f}"
                writer.writerow([" ".join(chosen), run["seed"], *losses, round(run["chars_per_second"]), round(run["seconds"])])


if __name__ == "__main__":
    main()
