"""Trains on a full disk, on a read-only disk, and with a disk quota that is used up.

A limit on the size of files stands in for the quota.
"""

import os
import pathlib
import resource
import shutil
import subprocess

from faults import checks
from faults.runs import Result, Runs, finish, metrics_bytes, readers, start, succeed, wait_for_moment

DISK_BYTES = 4 * 2**20
FULL_TRIES = 10
QUOTA_TRIES = 6  # for each framing


def results(runs: Runs) -> list[Result]:
    return [*_disks(runs), *runs.of_each_framing(_quota)]


def _disks(runs: Runs) -> list[Result]:
    mount = runs.folder / "disk"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", mount]).returncode:
        return [Result("full disk", 0, [], "not tried: a tmpfs needs root")]
    try:
        return [_full(runs, mount), _read_only(runs, mount)]
    finally:
        subprocess.run(["umount", mount], check=True)


def _full(runs: Runs, mount: pathlib.Path) -> Result:
    """Trains on a nearly full disk. In every second try, JAX's cache of compiled programs is also on this disk.

    After each failed training, frees the disk and starts the same command again, which must succeed.
    """
    rng, straight, failures, tried = runs.random("disk"), runs.straight("stream"), [], 0
    workdir, filler, cache = mount / "run", mount / "filler", mount / "xla"
    while tried < FULL_TRIES:
        shutil.rmtree(workdir, ignore_errors=True)
        filler.write_bytes(b"\0" * (DISK_BYTES - rng.randint(20_000, 400_000)))
        process = start(runs.train(workdir, "stream"), **({"JAX_COMPILATION_CACHE_DIR": str(cache)} if tried % 2 else {}))
        _, errors = finish(process)
        filler.unlink()
        shutil.rmtree(cache, ignore_errors=True)
        if process.returncode == 0:
            continue
        tried += 1
        what = f"full disk, try {tried}"
        failures += checks.refusal(process.returncode, errors, ("can't be written", "No space left"), what)
        succeed(runs.train(workdir, "stream"))
        failures += [f"{what}: {found}" for found in checks.survival(workdir, straight)]
    return Result("full disk", tried, failures)


def _read_only(runs: Runs, mount: pathlib.Path) -> Result:
    before = [checks.outcome(command) for command in readers(mount / "run")]
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    status, _, errors = checks.outcome(runs.train(mount / "new", "stream"))
    failures = checks.refusal(status, errors, ("can't be written",), "training on a read-only disk")
    for command, (status, output, _) in zip(readers(mount / "run"), before, strict=True):
        now = checks.outcome(command)
        if now[:2] != (status, output) or status:
            failures.append(f"read-only: {command[1]}: {now}")
    return Result("read-only disk: train, evaluate, sample, compare", 4, failures)


def _quota(runs: Runs, framing: str) -> Result:
    """Starts trainings. At a random moment, limits the size that each file of the training may have.

    Each training resumes the run of the previous training, unless the previous training was done.
    """
    rng, straight, failures, tried = runs.random("quota", framing), runs.straight(framing), [], 0
    workdir = runs.folder / f"quota_{framing}"
    while tried < QUOTA_TRIES:
        process = start(runs.train(workdir, framing))
        wait_for_moment(process, workdir, "row", rng, 6.0)
        room = rng.choice((rng.randint(0, 300), rng.randint(0, 8000)))
        limit_file_size(process, metrics_bytes(workdir) + room)
        _, errors = finish(process)
        if process.returncode == 0:
            failures += checks.survival(workdir, straight)
            shutil.rmtree(workdir)
            continue
        tried += 1
        failures += checks.refusal(process.returncode, errors, ("can't be written",), f"{workdir}: room of {room} bytes")
    succeed(runs.train(workdir, framing))
    failures += checks.survival(workdir, straight)
    return Result(f"quota used up, {framing}", tried, failures)


def limit_file_size(process: subprocess.Popen, size: int) -> None:
    """Limits every file that a running process writes to `size` bytes. A write beyond this size fails."""
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
