"""Kills the launcher of a sweep and its trainings by `kill -9` at random moments, until every trial is done.

The same sweep first runs without a fault. While it runs, the memory and the open files of its launcher are measured after the
first trials and at the end, and must not have grown.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import time

from faults import checks
from faults.load import resident
from faults.runs import LIMIT, Result, Runs, command, finish, start

PARALLEL = 2
EARLY = 6  # the launcher is measured first when this number of trials have begun
LONGEST_PAUSE = 10.0  # seconds between two kills
CONFIG = """
from charlm.sweeps.sweep import *
from configs import tiny

def get_config():
    config = tiny.get_config()
    config.corpus.path = {corpus!r}
    config.batch.size = 4
    config.model.hidden = 8
    config.optim.average = "ema"
    config.train.log_every = 5
    config.train.checkpoint_every = 10
    config.sample.length = 10
    return config

def sweep():
    return product({{"seed": list(range({seeds})), "model.dropout": [0.0, 0.2]}})
"""


def results(runs: Runs) -> list[Result]:
    config = runs.folder / "swept.py"
    config.write_text(CONFIG.format(corpus=os.fspath(runs.corpus), seeds=-(-runs.trials // 2)), encoding="utf-8")
    straight, root = runs.folder / "sweep_straight", runs.folder / "sweep"
    begin = time.monotonic()
    flat = _without_fault(runs, config, straight)
    trials = json.loads((straight / "sweep.json").read_text())["trials"]
    # On average, one kill in the time that a trial takes: most of the PARALLEL trainings are done before they are killed.
    longest_pause = min(LONGEST_PAUSE, 2 * PARALLEL * (time.monotonic() - begin) / len(trials))
    children, launchers, failures = _kill(runs, config, root, longest_pause)
    for name in trials:
        failures += checks.survival(root / name, straight / name) if (root / name).exists() else [f"{name} was not trained"]
    if _compared(root) != _compared(straight):
        failures.append(f"compare {root}: differs from the sweep without kills")
    note = f"{children} kills of trainings, {launchers} of the launcher"
    return [flat, Result(f"kill -9 in a sweep of {len(trials)} trials", children + launchers, failures, note)]


def _compared(root: pathlib.Path) -> list[dict]:
    """The rows of the program compare, without times."""
    compare = command("compare", root, "--json", "--each")
    output, _ = finish(start(compare))
    rows = json.loads(output.replace(str(root), ""))
    return [{name: value for name, value in row.items() if name not in ("chars/s", "time")} for row in rows]


def _launch(config: pathlib.Path, root: pathlib.Path) -> subprocess.Popen:
    with open(f"{root}.log", "a", encoding="utf-8") as log:  # a pipe that nobody reads could become full
        started = command("sweep", f"--config={config}", f"--root={root}", f"--parallel={PARALLEL}")
        return subprocess.Popen(started, stdout=log, stderr=subprocess.STDOUT)


def _without_fault(runs: Runs, config: pathlib.Path, root: pathlib.Path) -> Result:
    launcher, readings = _launch(config, root), []
    while launcher.poll() is None:
        begun = len(list(root.glob("*/status.json")))
        if begun >= EARLY and (reading := _measure(launcher.pid)):
            readings.append((begun, *reading))
        time.sleep(0.1)
    what = f"memory and open files of the launcher, {runs.trials} trials"
    if launcher.returncode or len(readings) < 20:
        return Result(what, 1, [f"{root}: exit status {launcher.returncode}: {pathlib.Path(f'{root}.log').read_text()[-500:]}"])
    early, late = readings[:10], readings[-10:]
    (memory, files), (memory_late, files_late) = (
        [statistics.median(reading[column] for reading in part) for column in (1, 2)] for part in (early, late)
    )
    note = f"{memory:.0f} MB and {files:.0f} files after {EARLY} trials, {memory_late:.0f} MB and {files_late:.0f} at the end"
    is_flat = memory_late <= 1.05 * memory and files_late <= files
    return Result(what, 1, [] if is_flat else [note], note)


def _measure(pid: int) -> tuple[float, int] | None:
    """The resident memory in MB and the number of open files of a process. None if the process has ended."""
    try:
        return resident(pid), len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _kill(runs: Runs, config: pathlib.Path, root: pathlib.Path, longest_pause: float) -> tuple[int, int, list[str]]:
    """Launches a sweep again and again until it ends by itself with exit status 0.

    Args:
      longest_pause: the longest time between two kills, in seconds.

    Returns:
      The number of kills of trainings, the number of kills of the launcher, and one line for each failure.
    """
    rng, children, launchers = runs.random("sweep"), 0, 0
    end = time.monotonic() + LIMIT + 60 * runs.trials
    while time.monotonic() < end:
        launcher = _launch(config, root)
        seen: set[int] = set()  # trainings that this launcher has started
        while launcher.poll() is None:
            try:
                launcher.wait(timeout=rng.uniform(0, longest_pause))
                break
            except subprocess.TimeoutExpired:
                pass
            seen |= set(_children(launcher.pid))
            trainings = sorted(pid for pid in seen if _is_training(pid, root))
            if rng.random() < 0.2:
                launcher.kill()
                launchers += 1
            elif trainings:
                os.kill(rng.choice(trainings), signal.SIGKILL)
                children += 1
        if launcher.wait() == 0:
            return children, launchers, []
        if launcher.returncode not in (1, -signal.SIGKILL):
            return children, launchers, [f"{root}: exit status {launcher.returncode}, see {root}.log"]
    return children, launchers, [f"{root}: the sweep did not end"]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_training(pid: int, root: pathlib.Path) -> bool:
    """Whether the process trains a trial of this sweep. Another process may get the number of a process that has ended."""
    try:
        return f"--workdir={root}/".encode() in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
