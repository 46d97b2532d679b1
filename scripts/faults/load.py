"""Checks that neither many starts in one process nor a long run leaks resources.

Training is started and stopped 24 times in one process. After the last start, the process must not have more open files or more
threads than after the fourth start, and its memory must be less than 10 % larger. The memory of the long run must not grow by
more than 5 %.
"""

import gc
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time

from faults.runs import LIMIT, ROOT, Result, Runs, finish, logged_step, start, wait_for_step

STARTS = 24
EARLY, LATE = 2_000, 20_000  # steps of the long run at which its memory is measured


def results(runs: Runs) -> list[Result]:
    return [_many_starts(runs), _long_run(runs)]


def _many_starts(runs: Runs) -> Result:
    command = runs.train(runs.folder / "starts", "stream", **{"train.steps": 1000})
    command = [sys.executable, "-m", "faults.load", *command[2:]]
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=4 * LIMIT)
    failed = result.returncode != 0
    failures = [f"{STARTS} starts in one process: {result.stderr[-500:]}"] if failed else []
    note = "" if failed else result.stdout.strip().splitlines()[-1]
    return Result(f"{STARTS} starts one after another in one process", STARTS, failures, note)


def _long_run(runs: Runs) -> Result:
    workdir = runs.folder / "long"
    every = {"train.checkpoint_every": 500, "train.eval_every": 2000, "train.log_every": 50}
    process = start(runs.train(workdir, "stream", **{"train.steps": LATE + 500}, **every))
    try:
        early, late = (_memory_at(step, process, workdir) for step in (EARLY, LATE))
    except AssertionError as error:  # the run was too slow or hung
        process.kill()
        return Result(f"memory of {LATE:,} steps", 1, [str(error)])
    finally:
        finish(process)
    note = f"{early:.0f} MB after {EARLY:,} steps, {late:.0f} MB after {LATE:,}"
    # A decrease is not a leak: Linux may take back memory that only the start needed, such as unused parts of huge pages.
    return Result(f"memory of {LATE:,} steps", 1, [] if late <= 1.05 * early else [note], note)


def _memory_at(step: int, process: subprocess.Popen, workdir: pathlib.Path) -> float:
    wait_for_step(workdir, step, process, seconds=4 * LIMIT)
    readings = []
    for _ in range(5):
        readings.append(resident(process.pid))
        time.sleep(0.1)
    return statistics.median(readings)


def resident(pid: int) -> float:
    """The resident memory of a process in MB."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _start_often(config: str, workdir: str, *flags: str) -> None:
    """Trains STARTS times in this process, and checks open files, threads and memory. A signal stops each training."""
    from charlm.config import load
    from charlm.training import train

    overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    config, workdir = config.removeprefix("--config="), workdir.removeprefix("--workdir=")
    seen = []
    for number in range(STARTS):
        thread = threading.Thread(target=_stop_at, args=(pathlib.Path(workdir), 30 * (number + 1)))
        thread.start()
        assert train.train(load.load(config, overrides), workdir) == 128 + signal.SIGTERM
        thread.join()
        gc.collect()
        seen.append((resident(os.getpid()), len(os.listdir("/proc/self/fd")), threading.active_count()))
    (early, files, threads), (late, files_late, threads_late) = seen[3], seen[-1]
    assert files_late <= files, seen
    assert threads_late <= threads, seen
    assert late < 1.1 * early, seen
    print(f"{early:.0f} MB and {files} files after 4 starts, {late:.0f} MB and {files_late} files after {STARTS}")


def _stop_at(workdir: pathlib.Path, step: int) -> None:
    while logged_step(workdir) < step:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _start_often(*sys.argv[1:])
