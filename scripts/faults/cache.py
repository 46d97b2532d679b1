"""Damages compiled programs in the folder in which JAX keeps them, and then trains.

The run must not differ from a run without a fault. Each program that was truncated, emptied, or had a bit flipped must be
compiled again and replaced. Further trainings are killed while they compile and keep their programs.
"""

import hashlib
import pathlib
import shutil
import signal
import time

from faults import checks
from faults.runs import HARMS, Result, Runs, finish, harm, start

TRIES = 12  # trainings with several damaged programs
KILLED = 6  # trainings that are killed while they compile


def results(runs: Runs) -> list[Result]:
    return [_damage(runs), _kill(runs)]


def _train(runs: Runs, workdir: pathlib.Path, cache: pathlib.Path) -> tuple[list[str], str]:
    """Trains with this folder of compiled programs. Returns one line for each failure, and the notes of the training."""
    process = start(runs.train(workdir, "stream"), JAX_COMPILATION_CACHE_DIR=str(cache))
    _, errors = finish(process)
    if process.returncode:
        return [f"{workdir}: exit status {process.returncode}: {errors[-300:]}"], errors
    wrong = [path.name for path in sorted(cache.glob("*-cache")) if not _is_whole(path)]
    failures = [f"{workdir}: {wrong} of {cache} are still damaged"] if wrong else []
    return failures + checks.survival(workdir, runs.straight("stream")), errors


def _programs(cache: pathlib.Path) -> int:
    """The number of compiled programs in a folder. The last of them may not be complete."""
    return len(list(cache.glob("*-cache")))


def _is_whole(program: pathlib.Path) -> bool:
    digest = program.with_name(program.name.removesuffix("-cache") + "-sha256")
    return digest.exists() and digest.read_text() == hashlib.sha256(program.read_bytes()).hexdigest()


def _damage(runs: Runs) -> Result:
    rng, cache, whole, damaged = runs.random("cache"), runs.folder / "cache", runs.folder / "cache_whole", 0
    failures, _ = _train(runs, runs.folder / "cache_run", cache)
    shutil.copytree(cache, whole)
    names = [path.name for path in sorted(whole.glob("*-cache"))]
    for number in range(TRIES):
        shutil.rmtree(cache)
        shutil.copytree(whole, cache)  # the same path each time: JAX looks for a program by its key, which depends on the path
        noted = 0
        for name in rng.sample(names, rng.randint(1, len(names))):
            how = rng.choice(HARMS)
            harm(cache / name, how, rng.random(), rng.randrange(8))
            damaged, noted = damaged + 1, noted + (how != "deleted")
        found, errors = _train(runs, runs.folder / f"cache_run_{number}", cache)
        failures += found
        if errors.count("is damaged: compiling it again") != noted:
            failures.append(f"training {number}: {noted} damaged programs, but these notes: {errors[-300:]}")
    return Result("damaged compiled programs", damaged, failures, f"in {TRIES} trainings")


def _kill(runs: Runs) -> Result:
    """Kills each training when it has kept a random number of its programs."""
    rng, failures, killed = runs.random("cache", "kill"), [], 0
    all_programs = _programs(runs.folder / "cache_whole")
    for number in range(KILLED):
        workdir, cache = runs.folder / f"cache_killed_run_{number}", runs.folder / f"cache_killed_{number}"
        process = start(runs.train(workdir, "stream"), JAX_COMPILATION_CACHE_DIR=str(cache))
        enough = rng.randrange(1, all_programs)
        while process.poll() is None and _programs(cache) < enough:
            time.sleep(0.001)
        process.kill()
        finish(process)
        killed += process.returncode == -signal.SIGKILL
        failures += _train(runs, workdir, cache)[0]
    return Result("kill -9 while programs are compiled", killed, failures)
