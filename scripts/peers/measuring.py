"""Measures how fast charlm and other libraries train and sample on one machine.

Each implementation is a program in scripts/peers/. Each program runs in its own process and interpreter. Programs therefore
share no threads, memory or libraries.

A shape is an entry of SHAPES: the sizes of a network and its batch. A group is one task (train or sample), one shape and one
batch size. First, all programs of a group are started and warmed up. Each round then measures one program after another, while
the other programs wait. If something else slows the machine down for a while, all programs are affected about equally.
"""

import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from charlm.errors import Failure

PEERS = pathlib.Path(__file__).parent
PAUSE = 0.3  # seconds before each measurement, because OpenMP threads of the previous program may still busy-wait
VOCAB = 65  # number of symbols of tiny Shakespeare
GATES = {"lstm": 4, "gru": 3, "rnn": 1}  # cells that all libraries have, with the number of blocks of their kernels


class Shape(NamedTuple):
    """The sizes of a network and its training batch. `embedding` is 0 for one-hot input."""

    layers: int
    hidden: int
    embedding: int
    batch: int
    length: int

    def flop_per_char(self, cell: str = "lstm") -> int:
        """Returns the number of floating-point operations in matrix products to train on one character.

        Each weight needs 6 operations: 2 in the forward pass and 4 in the backward pass. The embedding table is left out,
        because no matrix product uses it. All weights of the kernel of a one-hot input are included, although a row lookup can
        replace this product and needs fewer operations.
        """
        first = self.embedding or VOCAB
        rows = sum((first if layer == 0 else self.hidden) + self.hidden for layer in range(self.layers))
        return 6 * (rows * GATES[cell] * self.hidden + self.hidden * VOCAB)


SHAPES = {
    "S": Shape(layers=2, hidden=128, embedding=0, batch=50, length=50),
    "M": Shape(layers=2, hidden=256, embedding=256, batch=32, length=32),
    "L": Shape(layers=2, hidden=512, embedding=0, batch=128, length=100),
}


class Implementation(NamedTuple):
    """How an implementation is measured.

    Attributes:
      program: the file in scripts/peers/ that measures the implementation.
      module: the module that the interpreter of this program must be able to import.
      dtype: the number type of matrix products.
    """

    program: str
    module: str
    dtype: str


IMPLEMENTATIONS = {
    "charlm": Implementation("charlm_peer.py", "jax", "float32"),
    "charlm-bf16": Implementation("charlm_peer.py", "jax", "bfloat16"),
    "flax": Implementation("flax_peer.py", "flax", "float32"),
    "keras": Implementation("keras_peer.py", "keras", "float32"),
    "torch": Implementation("torch_peer.py", "torch", "float32"),
    "torch-bf16": Implementation("torch_peer.py", "torch", "bfloat16"),
}
PEAKS = {"float32": Implementation("peak.py", "jax", "float32"), "bfloat16": Implementation("peak.py", "jax", "bfloat16")}


class Measurement(NamedTuple):
    """The result of one implementation on one group.

    Attributes:
      chars_per_second: the median over rounds. For `peak`, the unit is FLOP/s.
      spread: the fastest round minus the slowest round, divided by the median.
      peak_rss_bytes: the largest resident memory of the process, including its libraries and compiler.
    """

    task: str
    shape: str
    batch: int
    dtype: str
    implementation: str
    chars_per_second: float
    spread: float
    peak_rss_bytes: int
    cell: str = "lstm"


def available(names: Iterable[str], pythons: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Returns the implementations that can run, and a reason for each implementation that can't run.

    Args:
      pythons: a dict from implementation names without `-bf16` to paths of Python interpreters. An implementation that is not
        in the dict uses the interpreter that runs this module.
    """
    found, missing = [], {}
    for name in names:
        module, python = IMPLEMENTATIONS[name].module, _python(name, pythons)
        try:
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run(
                    [python, "-c", f"import {module}"], capture_output=True, env=_environment(folder), text=True
                )
        except OSError as error:
            missing[name] = f"{python} can't be run: {error.strerror}"
            continue
        reason = (done.stderr.splitlines() or [""])[-1]
        if done.returncode == 0:
            found.append(name)
        elif reason == f"ModuleNotFoundError: No module named {module!r}":
            base = name.removesuffix("-bf16")
            missing[name] = f"{python} has no {module}: name another interpreter with --peer_python {base}=/path/to/python"
        else:
            missing[name] = f"{python} can't import {module}: {reason or f'status {done.returncode}'}"
    return found, missing


def measure(
    task: str,
    shape: str,
    batch: int,
    names: Iterable[str],
    pythons: dict[str, str],
    rounds: int,
    seconds: float,
    say=print,
    cell: str = "lstm",
) -> Iterator[Measurement]:
    """Measures implementations on one group. If the task is train, also measures the peak speed of matrix products.

    Args:
      seconds: the duration of each measurement.
      say: a function that prints a line about the progress.
      cell: the recurrent cell of the networks, a key of GATES.

    Raises:
      Failure: at least one program ended with an error. The message gives all errors. The results of the other programs are
        yielded before the exception.
    """
    job = {"task": task, "cell": cell, **SHAPES[shape]._asdict(), "batch": batch, "vocab": VOCAB}
    programs = {name: IMPLEMENTATIONS[name] for name in names}
    if task == "train":
        programs |= {f"peak-{dtype}": peak for dtype, peak in PEAKS.items()}
    answers: dict[str, list[dict]] = {name: [] for name in programs}
    failures = []

    def leave_out(failure: Failure) -> None:
        failures.append(f"{task} {shape}, batch {batch}: {failure}")
        say(f"{failures[-1]}; this implementation is left out")

    with contextlib.ExitStack() as stack:
        workers = {}
        for name, implementation in programs.items():
            python = _python(name, pythons) if name in IMPLEMENTATIONS else sys.executable
            try:
                workers[name] = stack.enter_context(Worker(name, implementation, python, job))
            except Failure as failure:
                leave_out(failure)
                continue
            started = {key: value for key, value in workers[name].started.items() if key != "ready"}
            say(f"{task} {shape}, batch {batch}: {name} is ready {started or ''}")
        for number in range(rounds):
            for name, worker in list(workers.items()):
                try:
                    answers[name].append(worker.measure(seconds))
                except Failure as failure:
                    leave_out(failure)
                    del workers[name]
            say(f"{task} {shape}, batch {batch}: round {number + 1} of {rounds} is done")
    for name in workers:
        implementation = programs[name]
        rates = [answer["chars_per_second"] for answer in answers[name]]
        median = statistics.median(rates)
        yield Measurement(
            task=task,
            shape=shape,
            batch=batch,
            dtype=implementation.dtype,
            implementation=name if name in IMPLEMENTATIONS else "peak",
            chars_per_second=median,
            spread=(max(rates) - min(rates)) / median,
            peak_rss_bytes=max(answer["peak_rss_bytes"] for answer in answers[name]),
            cell=cell,
        )
    if failures:
        raise Failure("; ".join(failures))


class Worker:
    """Runs a program of scripts/peers. The program ends when the `with` block ends."""

    def __init__(self, name: str, implementation: Implementation, python: str, job: dict):
        self._name, self._stderr = name, tempfile.TemporaryFile("w+")  # noqa: SIM115 - a full pipe would block the program
        self._folder = tempfile.TemporaryDirectory()
        command = [python, os.fspath(PEERS / implementation.program), json.dumps(job | {"dtype": implementation.dtype})]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=_environment(self._folder.name),
        )

    def __enter__(self) -> "Worker":
        try:
            self.started = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._stderr.close()
        self._folder.cleanup()

    def measure(self, seconds: float) -> dict:
        time.sleep(PAUSE)
        with contextlib.suppress(BrokenPipeError):  # if the program has ended, _answer raises the error
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # other lines come from libraries
                return json.loads(line)
        self._stderr.seek(0)
        errors = [line for line in self._stderr.read().splitlines() if "Error" in line] or ["it printed no error"]
        raise Failure(f"{self._name} ended with status {self._process.wait()}: {errors[-1]}")


def rate(
    measured: list[Measurement], task: str, shape: str, batch: int, implementation: str, dtype: str | None = None
) -> float:
    """Returns the chars/s of one implementation on one group, or nan if `measured` has no such measurement.

    If `dtype` is given, the measurement must also have this number type.
    """
    for row in measured:
        same = (row.task, row.shape, row.batch, row.implementation) == (task, shape, batch, implementation)
        if same and dtype in (None, row.dtype):
            return row.chars_per_second
    return math.nan


def limit(measured: list[Measurement], row: Measurement) -> float:
    """Returns the highest possible training speed in chars/s: the speed at which only matrix products would take time.

    The matrix products are assumed to run at the peak speed that was measured for the number type of `row`. If the peak speed
    was not measured, the result is nan.
    """
    peak = rate(measured, row.task, row.shape, row.batch, "peak", row.dtype)
    return peak / SHAPES[row.shape].flop_per_char(row.cell)


def table(measured: list[Measurement]) -> list[list[str]]:
    """Returns the header and the rows of the table.

    The column "x torch" has the speed divided by the speed of PyTorch in the same number type. The column "of limit" has the
    speed divided by the result of `limit`.
    """
    rows = [["task", "shape", "batch", "implementation", "chars/s", "spread", "x torch", "of limit", "peak memory"]]
    for row in measured:
        torch = "torch-bf16" if row.dtype == "bfloat16" else "torch"
        ratio = row.chars_per_second / rate(measured, row.task, row.shape, row.batch, torch)
        of_limit = row.chars_per_second / limit(measured, row)
        if row.implementation == "peak":
            name, speed, ratio, of_limit = f"limit, {row.dtype}", limit(measured, row), math.nan, math.nan
        else:
            name, speed = row.implementation, row.chars_per_second
        ratios = ["" if math.isnan(ratio) else f"{ratio:.2f}", "" if math.isnan(of_limit) else f"{of_limit:.0%}"]
        memory = f"{row.peak_rss_bytes / 1e6:,.0f} MB"
        rows.append([row.task, row.shape, str(row.batch), name, f"{speed:,.0f}", f"{row.spread:.0%}", *ratios, memory])
    return rows


def means(measured: list[Measurement]) -> list[str]:
    """Returns one line for training, and one line for each batch size of sampling.

    A line has the geometric means over all shapes of four ratios: the chars/s of charlm in float32 divided by the chars/s of
    PyTorch, Keras and Flax, and the chars/s of charlm in bfloat16 divided by the chars/s of PyTorch in bfloat16. A ratio is
    left out if one of its speeds was not measured.
    """
    groups = list(dict.fromkeys((row.task, row.batch if row.task == "sample" else 0) for row in measured))
    lines = []
    for task, batch in groups:
        found = []
        for ours, other in (
            ("charlm", "torch"), ("charlm", "keras"), ("charlm", "flax"), ("charlm-bf16", "torch-bf16"),
        ):  # fmt: skip
            cells = {(row.shape, row.batch) for row in measured if row.task == task and batch in (0, row.batch)}
            ratios = [rate(measured, task, *cell, ours) / rate(measured, task, *cell, other) for cell in sorted(cells)]
            if ratios and not any(map(math.isnan, ratios)):
                found.append(f"{ours} / {other} {statistics.geometric_mean(ratios):.2f}")
        if found:
            lines.append(f"{task}{f', batch {batch}' if batch else ''}, geometric mean over shapes: {', '.join(found)}")
    return lines


def _python(name: str, pythons: dict[str, str]) -> str:
    return pythons.get(name.removesuffix("-bf16"), sys.executable)


def _environment(folder: str) -> dict[str, str]:
    """Returns the environment variables of a program.

    Temporary files go to `folder`, because PyTorch does not delete the cache of its compiler.
    """
    return {**os.environ, "KERAS_BACKEND": "jax", "TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
