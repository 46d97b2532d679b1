"""Measures how fast charlm and other libraries train, evaluate and sample on one machine.

Each implementation is a program in scripts/peers/. Each program runs in its own process and interpreter. Programs therefore
share no threads, memory or libraries.

A shape is an entry of SHAPES: the sizes of a network and its batch. A group is one task, one recurrent cell, one shape and one
batch size. First, all programs of a group are started and warmed up. Each round then measures one program after another, while
the other programs wait. If something else slows the machine down for a while, all programs are affected about equally.
"""

import contextlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from charlm.errors import Failure

PEERS = pathlib.Path(__file__).parent
PAUSE = 0.3  # seconds before each measurement, because OpenMP threads of the previous program may still busy-wait
VOCAB = 65  # number of symbols of tiny Shakespeare
TASKS = ("train", "evaluate", "sample")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}  # cells that all libraries have, with the number of blocks of their kernels
EVALUATED = 512  # number of characters of each lane that an evaluation reads at once
# The pairs of implementations that are compared: the speed of the first is divided by the speed of the second.
COMPARISONS = (("charlm", "torch"), ("charlm", "keras"), ("charlm", "flax"), ("charlm-bf16", "torch-bf16"))
# Prints the versions of Python and of the libraries that the interpreter has imported.
_VERSIONS = """
import importlib.metadata, json, platform, sys
names = [name for name in ("flax", "jax", "jaxlib", "keras", "numpy", "torch") if name in sys.modules]
print(json.dumps({"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}))
"""
# The instruction sets of a processor that decide how fast it multiplies matrices, as Linux names them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


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
      batch: training: rows of a batch. Evaluation: lanes. Sampling: number of texts.
      chars_per_second: the median over rounds. For `peak`, the unit is FLOP/s.
      spread: the fastest round minus the slowest round, divided by the median.
      peak_rss_bytes: the largest resident memory of the process, including its libraries and compiler.
      rounds: the chars/s of each round. All implementations of a group have the same number of rounds, in the same order.
      parameters: the number of parameters of the network. 0 for `peak`.
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
    rounds: Sequence[float] = ()
    parameters: int = 0

    @property
    def group(self) -> tuple[str, str, str, int]:
        """The task, the cell, the shape and the batch size."""
        return self.task, self.cell, self.shape, self.batch


def machine() -> dict[str, object]:
    """Describes this machine: the processor, the cores that this process may use, the memory and the operating system."""
    processor, instructions = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):  # only Linux has this file
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                processor = value
            elif name in ("flags", "Features"):
                instructions = set(value.split())
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in instructions],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def available(names: Iterable[str], pythons: dict[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Finds out which implementations can run.

    Args:
      pythons: a dict from implementation names without `-bf16` to paths of Python interpreters. An implementation that is not
        in the dict uses the interpreter that runs this module.

    Returns:
      A dict from the implementations that can run to the versions of their libraries, and a dict from the implementations that
      can't run to the reason.
    """
    found, missing = {}, {}
    for name in names:
        module, python = IMPLEMENTATIONS[name].module, _python(name, pythons)
        try:
            with tempfile.TemporaryDirectory() as folder:
                command = [python, "-c", f"import {module}\n{_VERSIONS}"]
                done = subprocess.run(command, capture_output=True, env=_environment(folder), text=True)
        except OSError as error:
            missing[name] = f"{python} can't be run: {error.strerror}"
            continue
        reason = (done.stderr.splitlines() or [""])[-1]
        if done.returncode == 0:
            found[name] = json.loads((done.stdout.splitlines() or ["{}"])[-1])
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
      batch: see `Measurement`.
      seconds: the duration of each measurement.
      say: a function that prints a line about the progress.
      cell: the recurrent cell of the networks, a key of GATES.

    Raises:
      Failure: at least one program ended with an error. The message gives all errors. The results of the other programs are
        yielded before the exception.
    """
    job = {"task": task, "cell": cell, **SHAPES[shape]._asdict(), "batch": batch, "vocab": VOCAB}
    if task == "evaluate":
        job["length"] = EVALUATED
    programs = {name: IMPLEMENTATIONS[name] for name in names}
    if task == "train":
        programs |= {f"peak-{dtype}": peak for dtype, peak in PEAKS.items()}
    answers: dict[str, list[dict]] = {name: [] for name in programs}
    failures, group = [], f"{task} {cell} {shape}, batch {batch}"

    def leave_out(failure: Failure) -> None:
        failures.append(f"{group}: {failure}")
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
            say(f"{group}: {name} is ready {started or ''}")
        for number in range(rounds):
            for name, worker in list(workers.items()):
                try:
                    answers[name].append(worker.measure(seconds))
                except Failure as failure:
                    leave_out(failure)
                    del workers[name]
            say(f"{group}: round {number + 1} of {rounds} is done")
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
            rounds=rates,
            parameters=workers[name].started.get("parameters", 0),
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


def find(measured: Iterable[Measurement], group: tuple, implementation: str, dtype: str | None = None) -> Measurement | None:
    """Returns the measurement of one implementation on one group, or None if there is none.

    If `dtype` is given, the measurement must also have this number type.
    """
    for row in measured:
        if (row.group, row.implementation) == (group, implementation) and dtype in (None, row.dtype):
            return row
    return None


def limit(measured: list[Measurement], row: Measurement) -> float:
    """Returns the highest possible training speed in chars/s: the speed at which only matrix products would take time.

    The matrix products are assumed to run at the peak speed that was measured for the number type of `row`. If the peak speed
    was not measured, the result is nan.
    """
    peak = find(measured, row.group, "peak", row.dtype)
    return math.nan if peak is None else peak.chars_per_second / SHAPES[row.shape].flop_per_char(row.cell)


class Ratio(NamedTuple):
    """How many times as fast one implementation is as another implementation on the same group.

    Attributes:
      median: the ratio of the medians of the rounds.
      lowest, highest: the lowest and the highest ratio of a single round.
    """

    median: float
    lowest: float
    highest: float


def ratio(measured: list[Measurement], group: tuple, ours: str, other: str) -> Ratio | None:
    """Returns how many times as fast `ours` is as `other`, or None if one of the two was not measured on the group."""
    pair = find(measured, group, ours), find(measured, group, other)
    if pair[0] is None or pair[1] is None:
        return None
    median = pair[0].chars_per_second / pair[1].chars_per_second
    of_rounds = [a / b for a, b in zip(pair[0].rounds, pair[1].rounds, strict=True)] or [median]
    return Ratio(median, min(of_rounds), max(of_rounds))


def table(measured: list[Measurement]) -> list[list[str]]:
    """Returns the header and the rows of the table.

    The column "x torch" has the speed divided by the speed of PyTorch in the same number type. The column "of limit" has the
    speed divided by the result of `limit`.
    """
    rows = [["task", "cell", "shape", "batch", "implementation", "chars/s", "spread", "x torch", "of limit", "peak memory"]]
    for row in measured:
        to_torch = ratio(measured, row.group, row.implementation, "torch-bf16" if row.dtype == "bfloat16" else "torch")
        of_limit = row.chars_per_second / limit(measured, row)
        if row.implementation == "peak":
            name, speed, to_torch, of_limit = f"limit, {row.dtype}", limit(measured, row), None, math.nan
        else:
            name, speed = row.implementation, row.chars_per_second
        ratios = ["" if to_torch is None else f"{to_torch.median:.2f}", "" if math.isnan(of_limit) else f"{of_limit:.0%}"]
        memory = f"{row.peak_rss_bytes / 1e6:,.0f} MB"
        place = [row.task, row.cell, row.shape, str(row.batch)]
        rows.append([*place, name, f"{speed:,.0f}", f"{row.spread:.0%}", *ratios, memory])
    return rows


def kinds(measured: list[Measurement]) -> dict[tuple[str, str, int], list[tuple]]:
    """Returns the groups of each kind, in the order of the measurements.

    A kind is a task, a cell and a batch size. The batch size is 0 for training, because each shape has its own batch size.
    """
    found: dict[tuple[str, str, int], list[tuple]] = {}
    for group in dict.fromkeys(row.group for row in measured):
        task, cell, _, batch = group
        found.setdefault((task, cell, 0 if task == "train" else batch), []).append(group)
    return found


def means(measured: list[Measurement]) -> list[str]:
    """Returns one line for each kind of groups.

    A line has the geometric means over all shapes of four ratios: the chars/s of charlm in float32 divided by the chars/s of
    PyTorch, Keras and Flax, and the chars/s of charlm in bfloat16 divided by the chars/s of PyTorch in bfloat16. A ratio is
    left out if one of its speeds was not measured.
    """
    lines = []
    for (task, cell, batch), groups in kinds(measured).items():
        found = []
        for ours, other in COMPARISONS:
            ratios = [ratio(measured, group, ours, other) for group in groups]
            medians = [each.median for each in ratios if each is not None]
            if len(medians) == len(groups):
                found.append(f"{ours} / {other} {statistics.geometric_mean(medians):.2f}")
        if found:
            lines.append(f"{task} {cell}{f', batch {batch}' if batch else ''}, geometric mean over shapes: {', '.join(found)}")
    return lines


def _python(name: str, pythons: dict[str, str]) -> str:
    return pythons.get(name.removesuffix("-bf16"), sys.executable)


def _environment(folder: str) -> dict[str, str]:
    """Returns the environment variables of a program.

    Temporary files go to `folder`, because PyTorch does not delete the cache of its compiler.
    """
    return {**os.environ, "KERAS_BACKEND": "jax", "TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
