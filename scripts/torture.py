"""Tests whether runs survive faults that happen on real machines. Prints a table with the result for each fault.

    scripts/torture.py [--seed=0] [--kills=100] [--configs=20] [--trials=20] [--only=kill,stop] [--scratch=FOLDER]

Small runs are started with the commands that a user would type. Each fault is caused in some of these runs, and then the same
command is started again. A run survives if its result equals, bit for bit, the result of a run without a fault. The result is
the rows of metrics, the samples, the parameters and the status. The run must also have no extra files.

If a file is damaged, the run also survives in two other cases. In the first case, the program continues and prints a note about
the data that it left out. In the second case, the program refuses to continue and names the file in one sentence.

The whole program takes half an hour on 2 CPU cores. To cause a full disk and a read-only disk, the program mounts a small
tmpfs, so these two faults need root. The exit status is 0 if every run survived, and 1 otherwise. With --scratch, the runs are
kept in FOLDER.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

from absl import flags
from faults import cache, configs, damage, dataset, disk, diverge, going_on, inputs, kill, load, options, stop, sweep, two
from faults.runs import Runs

from charlm import cli
from charlm.errors import UserError

FAULTS = {
    "kill": kill,
    "options": options,
    "configs": configs,
    "sweep": sweep,
    "stop": stop,
    "going_on": going_on,
    "disk": disk,
    "damage": damage,
    "cache": cache,
    "dataset": dataset,
    "inputs": inputs,
    "diverge": diverge,
    "two": two,
    "load": load,
}

_SEED = flags.DEFINE_integer("seed", 0, "seed of the random numbers that choose when and where faults happen")
_KILLS = flags.DEFINE_integer("kills", 100, "number of kills for each framing")
_CONFIGS = flags.DEFINE_integer("configs", 20, "number of random configs")
_TRIALS = flags.DEFINE_integer("trials", 20, "number of trials of the sweep")
_ONLY = flags.DEFINE_list("only", [], f"faults to try: {', '.join(FAULTS)}")
_SCRATCH = flags.DEFINE_string("scratch", None, "folder for the runs; default: a temporary folder, which is deleted at the end")


def main(overrides: dict[str, str]) -> int:
    del overrides
    if unknown := set(_ONLY.value) - set(FAULTS):
        raise UserError(f"--only={','.join(sorted(unknown))}: must be one of {', '.join(FAULTS)}.")
    for flag in (_KILLS, _CONFIGS, _TRIALS):
        if flag.value < 1:
            raise UserError(f"--{flag.name}={flag.value}: must be positive.")
    folder = pathlib.Path(_SCRATCH.value or tempfile.mkdtemp(prefix="charlm_torture_"))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--scratch={folder} is not empty: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    try:
        return _try_faults(
            Runs(folder, _SEED.value, _KILLS.value, _CONFIGS.value, _TRIALS.value),
            [name for name in FAULTS if name in (_ONLY.value or FAULTS)],
        )
    finally:
        if not _SCRATCH.value:
            shutil.rmtree(folder, ignore_errors=True)


def _try_faults(runs: Runs, names: list[str]) -> int:
    """Prints each row of the table as soon as it is known. Returns the exit status."""
    status, begin = 0, time.monotonic()
    print("| fault | tried | survived | |\n|---|---|---|---|", flush=True)
    for name in names:
        print(f"{time.monotonic() - begin:5.0f} s  {name} …", file=sys.stderr, flush=True)
        try:
            for fault, tried, failures, note in FAULTS[name].results(runs):
                print(f"| {fault} | {tried} | {tried - min(tried, len(failures))} | {note} |", flush=True)
                for failure in failures:
                    print(f"not survived: {' '.join(failure.split())[:500]}", file=sys.stderr, flush=True)
                if failures or not (tried or note):
                    status = 1
        except Exception:  # one fault that can't be tried does not end the others
            status = 1
            print(f"{name} was not tried to its end:", file=sys.stderr)
            traceback.print_exc()
    print(f"{time.monotonic() - begin:5.0f} s  end", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    cli.run(main)
