"""Measures training speed for several batch sizes, window lengths, hidden sizes, numbers of layers and of devices.

    .venv/bin/python experiments/2026-11-22-speed/scaling.py [rounds]

Each curve changes one of these settings. The script prints a table and writes scaling.png into its own folder. All programs of
a curve start first. Then they are measured in turn.
"""

import contextlib
import os
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2] / "scripts"))

from peers import measuring

BASE = {"batch": 64, "length": 64, "hidden": 256, "layers": 2, "devices": 0}
CURVES = {
    "batch": [1, 4, 16, 32, 64, 128, 256],
    "length": [8, 16, 32, 64, 128, 256],
    "hidden": [64, 128, 256, 512, 1024],
    "layers": [1, 2, 3, 4],
    "devices": [1, 2],
}
SECONDS = 1.5


def rates(name: str, rounds: int) -> list[float]:
    """Returns the median chars/s for each value of one curve."""
    with contextlib.ExitStack() as stack:
        workers = []
        for value in CURVES[name]:
            job = {"task": "train", "embedding": 0, "vocab": measuring.VOCAB, **BASE, name: value}
            worker = measuring.Worker(f"{name} {value}", measuring.IMPLEMENTATIONS["charlm"], sys.executable, job)
            workers.append(stack.enter_context(worker))
        answers = [[worker.measure(SECONDS)["chars_per_second"] for worker in workers] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*answers, strict=True)]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(3 * len(CURVES), 3), layout="constrained", sharey=True)
    print(f"{BASE}, float32, one-hot input, chars/s")
    for axis, name in zip(axes, CURVES, strict=True):
        measured = rates(name, rounds)
        print(f"{name}: " + ", ".join(f"{value} {rate:,.0f}" for value, rate in zip(CURVES[name], measured, strict=True)))
        axis.plot(range(len(measured)), measured, marker="o")
        axis.set_xticks(range(len(measured)), CURVES[name])
        axis.set(xlabel=name, yscale="log")
        axis.grid(True, which="both", alpha=0.3)
    axes[0].set_ylabel("chars/s")
    figure.savefig(pathlib.Path(__file__).with_name("scaling.png"), dpi=110)


if __name__ == "__main__":
    main()
