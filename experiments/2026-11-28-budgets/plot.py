"""Draws the losses of the sweep in this folder, prints them as tables, and writes those of all trials into trials.csv.

    python experiments/2026-11-28-budgets/plot.py runs/budgets

Of each cell and budget, the learning rate with the lowest mean validation loss is used, among the rates with most seeds. The
speed is that of the fastest seed, because other work on the machine can only slow a trial down.
"""

import collections
import csv
import pathlib
import statistics
import sys

from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

import charlm

HERE = pathlib.Path(__file__).parent
BUDGETS = (50_000, 130_000, 400_000)
CELLS = ("layernorm_lstm", "gru", "slstm", "lstm", "mogrifier_lstm", "rnn", "minlstm", "mingru")
INPUTS = {"embedding": "embedding of 64 values", "onehot": "one-hot input"}


def best_trials(runs: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """(cell, budget) → the trials with the best learning rate, one trial for each seed."""
    trials = collections.defaultdict(list)
    for run in runs:
        if run["state"] == "done":
            trials[run["model.cell"], budget_of(run), run["optim.learning_rate"]].append(run)
    best = {}
    for (cell, budget, _), of_rate in sorted(trials.items(), key=lambda item: (-len(item[1]), mean(item[1]))):
        best.setdefault((cell, budget), of_rate)
    return best


def budget_of(run: dict) -> int:
    return min(BUDGETS, key=lambda budget: abs(budget - run["parameters"]))


def mean(runs: list[dict]) -> float:
    return statistics.fmean(run["best"] for run in runs)


def print_losses(best: dict[tuple[str, int], list[dict]]) -> None:
    """Prints the mean validation loss ± standard error: one row for each cell, one column for each budget."""
    print("| cell |", " | ".join(f"{budget:,}" for budget in BUDGETS), "|")
    print("|---" * (1 + len(BUDGETS)) + "|")
    for cell in CELLS:
        losses = [f"{mean(best[cell, budget]):.4f}{standard_error(best[cell, budget])}" for budget in BUDGETS]
        print(f"| `{cell}` |", " | ".join(losses), "|")


def standard_error(runs: list[dict]) -> str:
    return f" ± {statistics.stdev(run['best'] for run in runs) / len(runs) ** 0.5:.4f}" if len(runs) > 1 else ""


def print_details(best: dict[tuple[str, int], list[dict]]) -> None:
    print("| budget | cell | width | parameters | learning rate | training loss | seeds | chars/s |")
    print("|---|---|---|---|---|---|---|---|")
    for (cell, budget), runs in sorted(best.items(), key=lambda item: (item[0][1], mean(item[1]))):
        train, speed = statistics.fmean(run["train"] for run in runs), max(run["chars_per_second"] for run in runs)
        width, parameters, rate = (runs[0][key] for key in ("model.hidden", "parameters", "optim.learning_rate"))
        print(
            f"| {budget:,} | `{cell}` | {width} | {parameters:,} | {rate:g} | {train:.4f} | {len(runs)} "
            f"| {float(f'{speed:.2g}'):,.0f} |"
        )


def print_rates(runs: list[dict]) -> None:
    """Prints the loss of each cell and budget with each learning rate, for seed 0."""
    losses = collections.defaultdict(dict)
    for run in runs:
        if run["state"] in ("done", "diverged") and run["seed"] == 0:
            loss = f"{run['best']:.4f}" if run["state"] == "done" else "diverged"
            losses[budget_of(run), run["model.cell"]][run["optim.learning_rate"]] = loss
    rates = sorted({rate for of_rates in losses.values() for rate in of_rates})
    print("| budget | cell |", " | ".join(f"{rate:g}" for rate in rates), "|")
    print("|---" * (len(rates) + 2) + "|")
    for (budget, cell), of_rates in sorted(losses.items()):
        lowest = min(of_rates.values())
        cells = (of_rates.get(rate, "") for rate in rates)
        print(f"| {budget:,} | `{cell}` |", " | ".join(f"**{loss}**" if loss == lowest else loss for loss in cells), "|")


def write_trials(runs: list[dict]) -> None:
    """Writes the validation loss of each trial after each epoch, its last training loss and its time in seconds."""
    with (HERE / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["trial", "parameters", "epoch 1", "epoch 2", "epoch 3", "train", "seconds"])
        for run in runs:
            losses = [f"{row['nats']:.4f}" for row in run["rows"] if row["split"] == "validation"]
            if run["state"] == "diverged":
                losses = (losses + ["diverged"] * 3)[:3]
            train = f"{run['train']:.4f}" if run["train"] else ""
            rows.writerow([run["name"], run["parameters"], *losses, train, f"{run['seconds']:.0f}"])


def draw(axes: Axes, best: dict[tuple[str, int], list[dict]]) -> None:
    for cell, colour in zip(CELLS, TABLEAU_COLORS, strict=False):
        points = sorted((runs[0]["parameters"], mean(runs)) for (name, _), runs in best.items() if name == cell)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=cell, color=colour)
    axes.set(xscale="log", xlabel="parameters")
    axes.set_xticks(BUDGETS, [f"{budget // 1000} K" for budget in BUDGETS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def main() -> None:
    every = charlm.runs(sys.argv[1])
    write_trials(every)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    both[0].set_ylabel("validation loss, nats/char")
    for axes, (encoding, title) in zip(both, INPUTS.items(), strict=True):
        runs = [run for run in every if run["model.input"] == encoding]
        best = best_trials(runs)
        draw(axes, best)
        axes.set_title(title)
        print(f"\n{title}:\n")
        print_losses(best)
        print("\nThe trials of this table:\n")
        print_details(best)
        print("\nEach learning rate, seed 0:\n")
        print_rates(runs)
    figure.legend(*both[1].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(HERE / "budgets.png", dpi=150)


if __name__ == "__main__":
    main()
