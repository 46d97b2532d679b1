"""Measures a sweep of 16 trials with packs of 4, 8 and 16 trials, and with one process for each trial, two at a time.

    .venv/bin/python experiments/2026-11-29-packed/measure.py [--hidden 32 64 128] [--packs 4 8 16] [--rounds 2] [--csv=FILE]

For each width and each round, every way of launching trains the sweep of `sweep.py` in a new folder and with an empty cache, so
that the times include compilation. `seconds` is the wall time of the whole command, and `chars/s` is the number of all trained
characters divided by this time. Both are medians over the rounds. `difference` is the largest difference between the loss in a
row of metrics and in the same row of the trial trained alone, in nats.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = pathlib.Path(__file__).with_name("sweep.py")
LOCAL = "--parallel=2"


def measured(hidden: int, ways: list[str], folder: pathlib.Path) -> list[dict]:
    """Trains the sweep once in each way. Returns a row of the table for each way."""
    rows, losses = [], {}
    for way in ways:
        root = folder / way.strip("-").replace(" --", "_")
        command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), f"--config={SWEEP}:{hidden}", f"--root={root}"]
        command += [*way.split(), f"--config.cache_dir={root}_cache"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds = time.perf_counter() - begin
        losses[way], chars = read(root)
        rows.append({"hidden": hidden, "way": way, "seconds": seconds, "chars/s": chars / seconds})
    for row in rows:
        assert losses[row["way"]].keys() == losses[LOCAL].keys()
        row["difference"] = max(abs(nats - losses[LOCAL][place]) for place, nats in losses[row["way"]].items())
    return rows


def read(root: pathlib.Path) -> tuple[dict[tuple, float], int]:
    """Returns (trial, step, split) → nats of all rows of metrics, and the number of trained characters of all trials."""
    losses, chars = {}, 0
    for file in sorted(root.glob("*/metrics.jsonl")):
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            losses[file.parent.name, row["step"], row["split"]] = row["nats"]
            chars += row["chars"] if row["split"] == "train" else 0
    return losses, chars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--packs", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--csv", type=pathlib.Path)
    arguments = parser.parse_args()
    ways = [LOCAL, *(f"--launcher=packed --pack={number}" for number in arguments.packs)]
    rows = []
    print("| hidden | launched with | seconds | chars/s | difference |\n|---|---|---|---|---|", flush=True)
    for hidden in arguments.hidden:
        of_width = []
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                of_width += measured(hidden, ways, pathlib.Path(folder))
        rows += of_width
        for way in ways:
            same = [row for row in of_width if row["way"] == way]
            seconds, speed = (statistics.median(row[name] for row in same) for name in ("seconds", "chars/s"))
            difference = max(row["difference"] for row in same)
            print(f"| {hidden} | `{way}` | {seconds:.0f} | {speed:,.0f} | {difference:.1e} |", flush=True)
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # otherwise, charlm would not use the empty cache
    main()
