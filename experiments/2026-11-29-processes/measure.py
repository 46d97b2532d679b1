"""Compares the speed of one process on two cores with the speed of two processes on one core each, in turn.

    .venv/bin/python experiments/2026-11-29-processes/measure.py [--configs M L] [--ways one two default] [--rounds 5]
        [--csv=FILE]

The ways of training, all with scripts/train.py:

- one: one process on two cores;
- two: two processes, one on each of the same two cores;
- default: like `two`, but the processes keep Linux's default scheduling policy instead of SCHED_BATCH.

Every round trains each config once in each way, and every other round has the ways in reverse order. The speed of a training is
the median chars/s over its log intervals, without the first SKIPPED intervals, in which the programs are compiled. The table
has medians over the rounds. A ratio is the speed of a way divided by the speed of `one` in the same round.
`interruptions/s` counts how often Linux took a core away from a thread that was running (involuntary context switches), for
each second of CPU time of the whole training.
"""

import argparse
import csv
import json
import os
import pathlib
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
# Name → recipe, changes, steps, steps of a log interval. An interval takes 1 to 3 s on two cores.
CONFIGS = {
    # quickstart with the windows and the loss that it had then: 1 layer of 128 or 256, float32
    "S": ("quickstart", {"batch.length": 64, "model.ar": 0.0, "model.hidden": 128}, 2000, 200),
    "M": ("quickstart", {"batch.length": 64, "model.ar": 0.0}, 1000, 100),
    # 2 layers of 512 with dropout, bfloat16
    "L": ("tiny_shakespeare", {"model.ar": 0.0, "model.dropout": 0.4, "batch.size": 64}, 140, 10),
}
WAYS = ("one", "two", "default")
SKIPPED = 2
WITHOUT_POLICY = (
    "from charlm.hardware import devices\n"
    "devices.use_batch_scheduling = lambda: None\n"
    "from charlm.programs import train\n"
    "train.run()"
)


def measured(name: str, way: str, cores: list[int], cache: str) -> dict:
    """Trains a config once. Returns its speed, and how often its threads were interrupted for each second of CPU time."""
    recipe, changes, steps, log_every = CONFIGS[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        # Evaluations and checkpoints come only after the last step.
        quiet = {"train.steps": steps, "train.log_every": log_every, "train.eval_every": steps, "train.checkpoint_every": 0}
        quiet |= {"eval.lanes": 64, "eval.burn_in": 0, "sample.length": 0, "cache_dir": cache}
        flags = [f"--config={ROOT / 'configs' / recipe}.py", f"--workdir={workdir}"]
        flags += [f"--config.{key}={value}" for key, value in (changes | quiet).items()]
        program = ["-c", WITHOUT_POLICY] if way == "default" else [str(ROOT / "scripts" / "train.py")]
        commands = {",".join(map(str, cores)): [sys.executable, *program, *flags]}
        if way != "one":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                flags += [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--num_processes={len(cores)}"]
            commands = {
                str(core): [sys.executable, *program, *flags, f"--process_id={index}"] for index, core in enumerate(cores)
            }
        running = [
            subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.DEVNULL, cwd=ROOT, env=environment())
            for core, command in commands.items()
        ]
        statuses = [process.wait() for process in running]
        if any(statuses):
            sys.exit(f"{name}, {way}: a training failed")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "chars/s": statistics.median([row["chars_per_second"] for row in rows if row["split"] == "train"][SKIPPED:]),
        "interruptions/s": (after.ru_nivcsw - before.ru_nivcsw) / seconds,
    }


def environment() -> dict[str, str]:
    """The environment of a training: this checkout's code, and no settings of the user for XLA and its cache."""
    others = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    return others | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=["M", "L"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=pathlib.Path)
    arguments = parser.parse_args()
    ways = list(dict.fromkeys(["one", *arguments.ways]))
    cores = sorted(os.sched_getaffinity(0))[:2]
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"cores {cores}, Linux {platform.release()}, load averages at the start {load}\n", flush=True)
    found: list[dict] = []
    with tempfile.TemporaryDirectory() as cache:
        for number in range(arguments.rounds):
            for name in arguments.configs:
                for way in ways if number % 2 == 0 else reversed(ways):
                    found.append({"round": number, "config": name, "way": way, **measured(name, way, cores, cache)})
                    print(f"round {number + 1}, {name}, {way}: {found[-1]['chars/s']:,.0f} chars/s", flush=True)
    print("\n| config | way | chars/s | ratio | lowest and highest ratio | interruptions/s |\n|---|---|---|---|---|---|")
    for name in arguments.configs:
        rows = {way: [row for row in found if (row["config"], row["way"]) == (name, way)] for way in ways}
        for way in ways:
            speeds, ones = ([row["chars/s"] for row in rows[each]] for each in (way, "one"))
            ratios = [speed / one for speed, one in zip(speeds, ones, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            interruptions = statistics.median(row["interruptions/s"] for row in rows[way])
            medians = f"{statistics.median(speeds):,.0f} | {statistics.median(ratios):.2f} | {spread} | {interruptions:,.0f}"
            print(f"| {name} | {way} | {medians} |")
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, found[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
