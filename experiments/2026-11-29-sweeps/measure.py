"""Measures a sweep of 16 small trials (`sweep.py`) with several launchers, and where the time of a single trial goes.

    .venv/bin/python experiments/2026-11-29-sweeps/measure.py --json=experiments/2026-11-29-sweeps/sweeps.json
    .venv/bin/python experiments/2026-11-29-sweeps/measure.py --ways --json=trials.json      (only the single trials)

Options: --ways FLAGS ...: flags of scripts/sweep.py, one text for each way. --steps 400: length of a trial of the sweep.
--rounds 1: number of measurements of each way. --starts 2: number of measurements of each single trial. --configs, --hidden,
--cores: the single trials. With the defaults, the program takes about 11 minutes.

All trainings use one cache folder. Before the first measurement, short trainings fill it, so nothing is compiled later. The
ways are measured in turn, round by round.

Columns of the table of sweeps (medians over the rounds):

- seconds: the wall time of the whole command.
- chars/s: the number of all trained characters divided by these seconds.
- speed-up: chars/s of this way divided by chars/s of the first way.
- chars/s while training: the sum of the speeds of the trials that train at the same time. The speed of a trial is the median
  over its log intervals without the first interval.

Columns of the table of single trials (medians over --starts). Each trial is a whole run of `configs/quickstart.py` or
`configs/tiny.py` with this width, in a process of its own on so many cores:

- start: seconds from the start of the process to the metrics of the first step.
- trial: seconds from the start of the process to its end.
- evaluations, samples, checkpoints: their share of the trial.
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

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = pathlib.Path(__file__).with_name("sweep.py")
WAYS = ["--parallel=1", "--parallel=2", "--launcher=packed --pack=8", "--launcher=packed --pack=4"]
SHARES = ("evaluations", "samples", "checkpoints")


def sweep_command(way: str, root: str, cache: str, steps: int) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), f"--config={SWEEP}", f"--root={root}", *way.split()]
    return [*command, f"--config.cache_dir={cache}", f"--config.train.steps={steps}"]


def measured_sweep(way: str, cache: str, steps: int) -> dict[str, float]:
    """Trains the sweep in a new folder. Returns the numbers of the table."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(sweep_command(way, f"{folder}/root", cache, steps), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds = time.perf_counter() - begin
        speeds, chars = [], 0
        for file in pathlib.Path(folder, "root").glob("*/metrics.jsonl"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            training = [row for row in rows if row["split"] == "train"]
            speeds.append(statistics.median(row["chars_per_second"] for row in training[1:] or training))
            chars += sum(row["chars"] for row in training)
    # --parallel=N trains N trials at a time, a pack trains all its trials.
    at_once = int(way.rpartition("=")[2]) * statistics.mean(speeds)
    return {"seconds": seconds, "chars/s": chars / seconds, "chars/s while training": at_once}


def fill_cache(ways: list[str], cache: str) -> None:
    """Compiles all programs of the sweep: trains a trial of each width, or a pack of each width, for a few steps."""
    for way in ways:
        one = [] if "packed" in way else ["--only=optim.learning_rate=0.01", "--only=seed=0"]
        with tempfile.TemporaryDirectory() as folder:
            command = [*sweep_command(way, f"{folder}/root", cache, 20), *one]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def probe(config: str, overrides: list[str], workdir: str) -> None:
    """Trains a config in this process. Prints when the first step ended, and the seconds of the other parts, as JSON."""
    sys.argv = ["charlm", f"--config={config}", f"--workdir={workdir}", *overrides]
    seconds = dict.fromkeys(SHARES, 0.0)
    from charlm.programs import train as program
    from charlm.training import start

    def timed(owner: object, name: str, part: str, of: type = object) -> None:
        function = getattr(owner, name)

        def call(*arguments: object) -> object:
            begin = time.perf_counter()
            result = function(*arguments)
            if isinstance(arguments[-1], of):
                seconds[part] += time.perf_counter() - begin
            return result

        setattr(owner, name, call)

    prepare = start.prepare

    def prepare_and_time(*arguments: object) -> None:
        prepare(*arguments)  # JAX must not be imported before
        from charlm.training import judging, record, requests

        timed(requests.Alone, "answer", "evaluations", requests.Evaluation)
        timed(record.Record, "evaluation", "samples")
        timed(judging, "check_params", "checkpoints")
        timed(record.Record, "save", "checkpoints")
        timed(record.Record, "end", "checkpoints")
        add_metrics = judging.add_metrics

        def add_and_note(*arguments: object) -> object:
            seconds.setdefault("first", time.time())
            return add_metrics(*arguments)

        judging.add_metrics = add_and_note

    start.prepare = prepare_and_time
    try:
        program.run()
    finally:
        print(json.dumps(seconds))


def measured_trial(config: str, hidden: int, cores: int, cache: str) -> dict[str, float]:
    """Trains a config with this width in a process on so many cores. Returns the numbers of the table."""
    from charlm.hardware import devices

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"--config.model.hidden={hidden}", f"--config.cache_dir={cache}"]
        command = [sys.executable, __file__, "--probe", config, *overrides, f"{folder}/run"]
        environment = {**os.environ, **devices.huge_pages()}
        all_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(all_cores)[:cores])  # the process inherits these cores
        begin = time.time()
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
        trial = time.time() - begin
        os.sched_setaffinity(0, all_cores)
    seconds = json.loads(output.splitlines()[-1])
    return {"start": seconds["first"] - begin, "trial": trial} | {part: seconds[part] / trial for part in SHARES}


def medians(measurements: list[dict], keys: tuple[str, ...]) -> list[dict]:
    """The measurements with equal values of `keys`, joined to one row with the medians of the other values."""
    groups: dict[tuple, list[dict]] = {}
    for each in measurements:
        groups.setdefault(tuple(each[key] for key in keys), []).append(each)
    return [
        {key: value if key in keys else statistics.median(each[key] for each in group) for key, value in group[0].items()}
        for group in groups.values()
    ]


def write(file: pathlib.Path | None, sweeps: list[dict], trials: list[dict]) -> None:
    """Writes the JSON file."""
    if file:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        machine = {"cores": len(os.sched_getaffinity(0)), "cpu": models[:1], "commit": git.stdout.strip()}
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "orbax-checkpoint")}
        content = {"machine": machine, "versions": versions, "sweeps": sweeps, "trials": trials}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def print_tables(sweeps: list[dict], trials: list[dict]) -> None:
    if sweeps:
        rows = medians(sweeps, ("way",))
        print("| launched with | seconds | chars/s | speed-up | chars/s while training |\n|---|---|---|---|---|")
        for row in rows:
            ratio = row["chars/s"] / rows[0]["chars/s"]
            numbers = f"{row['seconds']:.0f} | {row['chars/s']:,.0f} | {ratio:.2f} | {row['chars/s while training']:,.0f}"
            print(f"| `{row['way']}` | {numbers} |")
    if trials:
        print("\n| config | hidden | cores | start | trial | evaluations | samples | checkpoints | together |")
        print(f"|{'---|' * 9}")
        for row in medians(trials, ("config", "hidden", "cores")):
            shares = [row[part] for part in SHARES]
            percent = " | ".join(f"{share:.1%}" for share in [*shares, sum(shares)])
            times = f"{row['start']:.2f} s | {row['trial']:.1f} s"
            print(f"| {row['config']} | {row['hidden']} | {row['cores']} | {times} | {percent} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--configs", nargs="*", default=["quickstart", "tiny"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    kinds = [
        (config, hidden, cores) for config in arguments.configs for hidden in arguments.hidden for cores in arguments.cores
    ]
    sweeps: list[dict] = []
    trials: list[dict] = []
    with tempfile.TemporaryDirectory() as cache:
        fill_cache(arguments.ways, cache)
        for _ in range(arguments.rounds):
            for way in arguments.ways:
                sweeps.append({"way": way} | measured_sweep(way, cache, arguments.steps))
                write(arguments.json, sweeps, trials)
                print(f"{way}: {sweeps[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
        for number in range(arguments.starts + 1):
            for config, hidden, cores in kinds:
                numbers = measured_trial(config, hidden, cores, cache)
                if number:  # the first round compiles
                    trials.append({"config": config, "hidden": hidden, "cores": cores} | numbers)
                    write(arguments.json, sweeps, trials)
    print_tables(sweeps, trials)


if __name__ == "__main__":
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # otherwise, charlm would not use the cache folder of this program
    if sys.argv[1:2] == ["--probe"]:
        probe(sys.argv[2], sys.argv[3:-1], sys.argv[-1])
    else:
        main()
