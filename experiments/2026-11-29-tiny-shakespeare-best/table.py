"""Prints the table of the ablation, and draws its effects and the learning curves of the best model.

    python experiments/2026-11-29-tiny-shakespeare-best/table.py runs/ablation

Writes ablation.csv (every trial) and ablation.png into this folder. The learning curves come from logs/best_seed*.jsonl.
"""

import csv
import json
import os
import pathlib
import statistics
import sys

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import charlm
from charlm.config import load

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2]))  # ablation imports configs
import ablation

HERE = pathlib.Path(__file__).parent
CHANGES = {"none": {}} | ablation.REMOVED | ablation.ADDED
KEYS = sorted({key for change in CHANGES.values() for key in change})
BASE = {key: load.flatten(ablation.get_config())[key] for key in KEYS}


def by_change(runs: list[dict]) -> dict[str, dict[int, dict]]:
    """Name of the change → seed → finished run; the change with the largest effect first."""
    found = {}
    for name, change in CHANGES.items():
        values = BASE | change
        seeds = {run["seed"]: run for run in runs if run["state"] == "done" and all(run[key] == values[key] for key in KEYS)}
        if seeds:
            found[name] = dict(sorted(seeds.items()))
    return dict(sorted(found.items(), key=lambda item: -statistics.fmean(effects(item[1], found["none"]))))


def effects(seeds: dict[int, dict], base: dict[int, dict]) -> list[float]:
    """The loss minus that of the base with the same seed, one for each seed, in nats per character."""
    return [run["best"] - base[seed]["best"] for seed, run in seeds.items()]


def mean(values: list[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.4f}{error}"


def label(name: str) -> str:
    return name if name == "none" else f"no {name}" if name in ablation.REMOVED else f"with {name}"


def keys_of(change: dict) -> str:
    return " ".join(f"`{key}={value:g}`" if isinstance(value, float) else f"`{key}={value}`" for key, value in change.items())


def print_table(found: dict[str, dict[int, dict]]) -> None:
    print("| change | keys | seed 0 | seeds 1; 2 | difference | training |")
    print("|---|---|---|---|---|---|")
    for name, seeds in found.items():
        losses = [f"{run['best']:.4f}" for run in seeds.values()]
        difference = "" if name == "none" else mean(effects(seeds, found["none"]))
        print(
            f"| {label(name)} | {keys_of(CHANGES[name])} | {losses[0]} | {'; '.join(losses[1:])} | {difference} "
            f"| {seeds[0]['train']:.4f} |"
        )


def write_trials(found: dict[str, dict[int, dict]]) -> None:
    """Writes the validation loss of each trial after each epoch, its last training loss and its time in seconds."""
    with (HERE / "ablation.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["change", "seed", "parameters", "epoch 1", "epoch 2", "epoch 3", "train", "seconds"])
        for name, seeds in found.items():
            for seed, run in seeds.items():
                losses = [f"{row['nats']:.4f}" for row in run["rows"] if row["split"] == "validation"]
                rows.writerow([name, seed, run["parameters"], *losses, f"{run['train']:.4f}", f"{run['seconds']:.0f}"])


def draw_effects(axes: Axes, found: dict[str, dict[int, dict]]) -> None:
    """One row for each change, with one point for each seed."""
    names = [name for name in found if name != "none"]
    for row, name in enumerate(names):
        differences = effects(found[name], found["none"])
        axes.barh(row, statistics.fmean(differences), color="tab:blue" if name in ablation.REMOVED else "tab:orange", alpha=0.5)
        axes.plot(differences, [row] * len(differences), "k.", markersize=5)
    axes.set_yticks(range(len(names)), map(label, names))
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="validation loss minus that of the base, nats/char", title="2 x LSTM 512, 3 epochs: effect of each change")
    axes.grid(axis="x", alpha=0.3)


def draw_curves(axes: Axes) -> None:
    for path in sorted((HERE / "logs").glob("best_seed*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            points = [(row["epoch"], row["nats"]) for row in rows if row["split"] == split]
            name = split if path.stem.endswith("0") else None
            axes.plot(*zip(*points, strict=True), color=colour, marker="." if split == "validation" else "", label=name)
    axes.set(xlabel="epoch", ylabel="nats/char", ylim=(1.0, 2.0), title="the best model, seeds 0 to 3")
    axes.legend()
    axes.grid(alpha=0.3)


def main() -> None:
    found = by_change(charlm.runs(sys.argv[1]))
    print_table(found)
    write_trials(found)
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_effects(left, found)
    draw_curves(right)
    figure.savefig(HERE / "ablation.png", dpi=120)


if __name__ == "__main__":
    main()
