"""Measures the sweep of `sweep.py`, which has 16 trials, with packs and with one process for each trial.

    .venv/bin/python experiments/2026-11-29-packed/measure.py --json=packs.json
    .venv/bin/python experiments/2026-11-29-packed/measure.py --hidden 64 --packs 16 --parallel 1 2 --json=single.json

Options: --hidden 32 64 128: widths. --packs 4 8 16: numbers of trials in a pack. --parallel 2: numbers of processes at a time,
if each trial has its own process. --steps 200: length of a trial. --rounds 1: number of measurements of each way.

Each round trains the sweep in all ways, one after another, each in a new folder and with an empty cache of compiled programs.
The columns of the table are medians over the rounds:

- seconds: the wall time of the whole command, with start-up and compilation.
- chars/s: the number of all trained characters divided by these seconds.
- chars/s while training: the sum of the speeds of the trials that are trained at the same time. The speed of a trial is the
  median over its log intervals, without the first interval, which includes compilation.
- speed-up: the seconds of the first way divided by the seconds of this way.
- difference: the largest difference between the loss in a row of metrics and the loss in the same row of the first way, in
  nats per character.

The JSON file also has the machine, the versions of packages and the single measurements. It is written again after each of
them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = pathlib.Path(__file__).with_name("sweep.py")
COLUMNS = {"seconds": "{:.0f}", "chars/s": "{:,.0f}", "chars/s while training": "{:,.0f}", "speed-up": "{:.2f}"}
COLUMNS |= {"difference": "{:.1e}"}


class Way(NamedTuple):
    """A way to launch the sweep: the flags, and the number of trials that they train at the same time."""

    flags: str
    at_once: int


def measured(way: Way, hidden: int, steps: int) -> tuple[dict[str, float], dict[tuple, float]]:
    """Trains the sweep. Returns the measured numbers, and (trial, step, split) → nats of all rows of metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), f"--config={SWEEP}:{hidden}", f"--root={folder}/root"]
        command += [*way.flags.split(), f"--config.cache_dir={folder}/cache", f"--config.train.steps={steps}"]
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds = time.perf_counter() - begin
        losses, speeds, chars = {}, [], 0
        for file in pathlib.Path(folder, "root").glob("*/metrics.jsonl"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            losses |= {(file.parent.name, row["step"], row["split"]): row["nats"] for row in rows}
            training = [row for row in rows if row["split"] == "train"]
            speeds.append(statistics.median(row["chars_per_second"] for row in training[1:] or training))
            chars += sum(row["chars"] for row in training)
    at_once = way.at_once * statistics.mean(speeds)
    return {"seconds": seconds, "chars/s": chars / seconds, "chars/s while training": at_once}, losses


def tables(measurements: list[dict]) -> list[dict]:
    """The rows of the table: the medians over the rounds, and the largest difference."""
    grouped: dict[tuple, list[dict]] = {}
    for each in measurements:
        grouped.setdefault((each["hidden"], each["way"]), []).append(each)
    rows = []
    for (hidden, way), group in sorted(grouped.items(), key=lambda item: item[0][0]):
        row = {name: statistics.median(each[name] for each in group) for name in COLUMNS}
        rows.append({"hidden": hidden, "way": way} | row | {"difference": max(each["difference"] for each in group)})
    return rows


def report(measurements: list[dict], file: pathlib.Path | None) -> None:
    """Writes the JSON file."""
    if file:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        cpuinfo = pathlib.Path("/proc/cpuinfo")
        models = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        machine = {"cores": len(os.sched_getaffinity(0)), "cpu": models[:1], "commit": git.stdout.strip()}
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
        content = {"machine": machine, "versions": versions, "table": tables(measurements), "measurements": measurements}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--packs", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--parallel", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    ways = [Way(f"--parallel={number}", number) for number in arguments.parallel]
    ways += [Way(f"--launcher=packed --pack={number}", number) for number in arguments.packs]
    measurements: list[dict] = []
    for _ in range(arguments.rounds):
        for hidden in arguments.hidden:
            first: dict = {}
            for way in ways:
                numbers, losses = measured(way, hidden, arguments.steps)
                first = first or {"seconds": numbers["seconds"], "losses": losses}
                assert losses.keys() == first["losses"].keys()
                numbers["speed-up"] = first["seconds"] / numbers["seconds"]
                numbers["difference"] = max(abs(nats - first["losses"][place]) for place, nats in losses.items())
                measurements.append({"hidden": hidden, "way": way.flags} | numbers)
                report(measurements, arguments.json)
                print(f"hidden {hidden}, {way.flags}: {numbers['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(f"| hidden | launched with | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for row in tables(measurements):
        cells = [form.format(row[name]) for name, form in COLUMNS.items()]
        print(f"| {row['hidden']} | `{row['way']}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # otherwise, charlm would not use the empty cache
    main()
