"""Draws the losses of the sweep in this folder, and prints them as tables.

    python experiments/2026-11-28-budgets/plot.py runs/budgets

Of each cell and budget, the learning rate with the lowest mean validation loss is used, among the rates with most seeds. The
speed is that of the fastest seed, because other work on the machine can only slow a trial down.
"""

import collections
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


def print_table(best: dict[tuple[str, int], list[dict]]) -> None:
    print("| cell | budget | width | parameters | rate | nats | seeds | train | chars/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (cell, budget), runs in sorted(best.items(), key=lambda item: (item[0][1], mean(item[1]))):
        error = f" ± {statistics.stdev(run['best'] for run in runs) / len(runs) ** 0.5:.4f}" if len(runs) > 1 else ""
        train, speed = statistics.fmean(run["train"] for run in runs), max(run["chars_per_second"] for run in runs)
        width, parameters, rate = (runs[0][key] for key in ("model.hidden", "parameters", "optim.learning_rate"))
        print(
            f"| `{cell}` | {budget:,} | {width} | {parameters:,} | {rate:g} | {mean(runs):.4f}{error} | {len(runs)} "
            f"| {train:.4f} | {speed:,.0f} |"
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
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    both[0].set_ylabel("validation loss, nats/char")
    for axes, (encoding, title) in zip(both, INPUTS.items(), strict=True):
        runs = [run for run in every if run["model.input"] == encoding]
        best = best_trials(runs)
        draw(axes, best)
        axes.set_title(title)
        print(f"\n{title}:\n")
        print_table(best)
        print("\nEach learning rate, seed 0:\n")
        print_rates(runs)
    figure.legend(*both[1].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(HERE / "budgets.png", dpi=150)


if __name__ == "__main__":
    main()
