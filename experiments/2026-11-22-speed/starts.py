"""Measures the first start of a program, and later starts that find compiled code and encoded text in the cache.

    .venv/bin/python experiments/2026-11-22-speed/starts.py [MEGABYTES]

Each line has the seconds from the command to its first result, and peak resident memory. The first result of a training is the
metrics row of the first step (`train.log_every=1`). The first result of a sample is the first character after a prompt of one
character. Everything runs in a new folder with its own cache. The long text has MEGABYTES of random words (default: 500).
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]


def words(path: pathlib.Path, size: int) -> None:
    """Writes `size` bytes of text: lines of ten words, drawn uniformly from 50,000 random words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    known = np.array(["".join(rng.choice(letters, length)) for length in rng.integers(2, 11, 50_000)])
    with path.open("w") as file:
        while file.tell() < size:
            drawn = rng.choice(known, (20_000, 10))
            file.write("".join(" ".join(line) + "\n" for line in drawn))
        file.truncate(size)


def started(folder: pathlib.Path, what: str, *arguments: str, metrics: pathlib.Path | None = None) -> None:
    """Runs a script to its end and prints the time of its first result: a row in `metrics`, or two characters on stdout."""
    environment = {**os.environ, "XDG_CACHE_HOME": os.fspath(folder / "cache")}
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        if metrics is None:
            process.stdout.read(2)
        else:
            while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
                if process.poll() is not None:
                    sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")
                time.sleep(0.01)
        first = time.perf_counter() - begin
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")
    whole = time.perf_counter() - begin
    print(f"{what}: first after {first:.1f} s, {whole:.1f} s in all, {usage.ru_maxrss * 1024 / 1e6:,.0f} MB", flush=True)


def trained(folder: pathlib.Path, what: str, name: str, config: str, *overrides: str) -> None:
    flags = [f"--config={config}", f"--workdir={folder / name}", "--config.train.steps=3", "--config.train.log_every=1"]
    started(folder, what, "scripts/train.py", *flags, *overrides, metrics=folder / name / "metrics.jsonl")


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        for number, when in enumerate(("first", "second", "third")):
            trained(folder, f"tiny_shakespeare, {when} start", f"run{number}", "configs/tiny_shakespeare.py")
        for when in ("first", "second", "third"):
            flags = [f"--workdir={folder / 'run0'}", "--prompt=A", "--length=500"]
            started(folder, f"sample of tiny_shakespeare, {when} start", "scripts/sample.py", *flags)
        words(folder / "text.txt", megabytes * 1_000_000)
        path = f"--config.corpus.path={folder / 'text.txt'}"
        for number, when in enumerate(("first", "second")):
            name = f"long{number}"
            overrides = (path, "--config.corpus.split=(0.9999,0.0001)")
            trained(folder, f"{megabytes} MB of text, {when} start", name, "configs/quickstart.py", *overrides)


if __name__ == "__main__":
    main()
