"""Compares scripts/train.py in two processes with one core each and in one process with two cores, in turn.

    .venv/bin/python experiments/2026-11-22-speed/processes.py [configs/quickstart.py] [steps] [rounds]

The figure of a run is the median chars/s of its log rows except the first row. The script prints, for one and for two
processes, the median over rounds, and the ratio of the two medians.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


def rate(config_file: str, steps: int, processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, os.fspath(ROOT / "scripts/train.py"), f"--config={config_file}", f"--workdir={workdir}"]
        command += [f"--config.train.{key}={value}" for key, value in {"steps": steps, "log_every": 50}.items()]
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                command += [f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={processes}"]
        running = []
        for index in range(processes):
            of_this = command if processes == 1 else ["taskset", "-c", str(index), *command, f"--process_id={index}"]
            running.append(subprocess.Popen(of_this, stdout=subprocess.DEVNULL, cwd=ROOT))
        statuses = [process.wait() for process in running]
        if any(statuses):
            sys.exit(f"{' '.join(command)} failed")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return statistics.median([row["chars_per_second"] for row in rows if row["split"] == "train"][1:])


def main() -> None:
    config_file = sys.argv[1] if len(sys.argv) > 1 else "configs/quickstart.py"
    steps, rounds = (int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((2, 400), (3, 3)))
    rates = {1: [], 2: []}
    for _ in range(rounds):
        for processes, found in rates.items():
            found.append(rate(config_file, steps, processes))
    one, two = (statistics.median(found) for found in rates.values())
    print(f"{config_file}: one process {one:,.0f}, two {two:,.0f} chars/s, {two / one:.2f}")


if __name__ == "__main__":
    main()
