"""Compares the speed of two checkouts of charlm, in training and in sampling, for the model sizes of the benchmark.

    git worktree add /tmp/before 0e34d7a && git worktree add /tmp/after HEAD
    .venv/bin/python experiments/2026-11-28-wings/two_commits.py /tmp/before /tmp/after [rounds] [seconds] [train,sample]

For each task, model size and batch size, the script starts one process per checkout, which runs scripts/peers/charlm_peer.py.
Each round measures one process after the other, and the order alternates between rounds. The script then prints a line with the
median chars/s of each checkout. The line ends with the ratio after/before, which is the median of the ratios of all rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = {"S": (2, 128, 0, 50, 50), "M": (2, 256, 256, 32, 32), "L": (2, 512, 0, 128, 100)}
NAMES = ("layers", "hidden", "embedding", "batch", "length")


def start(checkout: str, job: dict) -> subprocess.Popen:
    """Starts scripts/peers/charlm_peer.py of the checkout, and waits until it is ready."""
    command = [sys.executable, f"{checkout}/scripts/peers/charlm_peer.py", json.dumps(job)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": checkout}, **pipes)
    answer(process)
    return process


def answer(process: subprocess.Popen) -> dict:
    while line := process.stdout.readline():
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a process of charlm_peer.py ended with status {process.wait()}")


def measure(process: subprocess.Popen, seconds: float) -> float:
    time.sleep(0.3)  # the threads of the other process may still be busy-waiting
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return answer(process)["chars_per_second"]


def main() -> None:
    checkouts = [os.path.abspath(path) for path in sys.argv[1:3]]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 7
    seconds = float(sys.argv[4]) if len(sys.argv) > 4 else 1.5
    tasks = sys.argv[5].split(",") if len(sys.argv) > 5 else ["train", "sample"]
    for task in tasks:
        for name, shape in SHAPES.items():
            for batch in (1, 64) if task == "sample" else (shape[3],):
                job = {**dict(zip(NAMES, shape, strict=True)), "batch": batch, "task": task, "vocab": 65, "dtype": "float32"}
                peers = [start(checkout, job) for checkout in checkouts]
                speeds: list[list[float]] = [[], []]
                for number in range(rounds):
                    for which in (0, 1) if number % 2 == 0 else (1, 0):
                        speeds[which].append(measure(peers[which], seconds))
                for peer in peers:
                    peer.kill()
                    peer.wait()
                before, after = map(statistics.median, speeds)
                ratio = statistics.median(new / old for old, new in zip(*speeds, strict=True))
                print(
                    f"{task:6} {name} {batch:>3}  before {before:>9,.0f}  after {after:>9,.0f}  ratio {ratio:.3f}", flush=True
                )


if __name__ == "__main__":
    main()
