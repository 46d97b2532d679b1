"""Compares the training speed of two checkouts of charlm, in turn.

    .venv/bin/python experiments/2026-11-29-training/compare.py BEFORE AFTER [--shapes S M L] [--dtypes float32 bfloat16]
        [--rounds 6] [--seconds 1.5]

BEFORE and AFTER are folders with a checkout and its environment `.venv`. For each shape and dtype, the program
scripts/peers/charlm_peer.py of both checkouts is started, and both measure in turn. Every other round has the reverse order.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2] / "scripts"))
from peers import measuring


def started(checkout: pathlib.Path, job: dict) -> subprocess.Popen:
    """The peer program of a checkout. It has compiled the training step, and waits for the first line."""
    command = [checkout / ".venv" / "bin" / "python", checkout / "scripts" / "peers" / "charlm_peer.py", json.dumps(job)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, cwd=checkout, env=os.environ | {"PYTHONPATH": os.fspath(checkout)}, **pipes)
    process.stdout.readline()
    return process


def measured(process: subprocess.Popen, seconds: float) -> dict:
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkouts", nargs=2, type=pathlib.Path)
    parser.add_argument("--shapes", nargs="+", default=list(measuring.SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.5)
    args = parser.parse_args()
    print("| shape | dtype | before, chars/s | after, chars/s | ratio | lowest, highest ratio | memory before, after |")
    print("|---|---|---|---|---|---|---|")
    for shape in args.shapes:
        for dtype in args.dtypes:
            job = {"task": "train", "cell": "lstm", "vocab": measuring.VOCAB, "dtype": dtype}
            job |= measuring.SHAPES[shape]._asdict()
            processes = [started(checkout.resolve(), job) for checkout in args.checkouts]
            rounds = []
            for number in range(args.rounds):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                found = {which: measured(processes[which], args.seconds) for which in order}
                rounds.append([found[0], found[1]])
            for process in processes:
                process.stdin.close()
                process.wait()
            speeds = [[each["chars_per_second"] for each in found] for found in zip(*rounds, strict=True)]
            ratios = [after / before for before, after in zip(*speeds, strict=True)]
            before, after = (f"{statistics.median(each):,.0f}" for each in speeds)
            memory = ", ".join(f"{each['peak_rss_bytes'] / 1e6:,.0f} MB" for each in rounds[-1])
            ratio = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
            print(f"| {shape} | {dtype} | {before} | {after} | {ratio} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
