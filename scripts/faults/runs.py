"""Makes the small runs on which faults are tried.

The functions make texts, start programs, wait until the time of a fault, and damage files. This module imports neither JAX nor
charlm, because these imports are slow.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

ROOT = pathlib.Path(__file__).resolve().parents[2]
FRAMINGS = {
    "stream": {"devices": 2},
    "chunks": {"batch.framing": "chunks"},
    "windows": {"batch.framing": "windows", "batch.stride": 3, "devices": 2},
    "documents": {"batch.framing": "documents", "corpus.documents": "lines", "batch.length": 40},
}
# Cell → overrides. With each cell, the weights are averaged in another way, and other regularisers draw random numbers.
CELLS = {
    "lstm": {
        "optim.average": "nt_asgd",
        "optim.average_patience": 0,
        "optim.schedule": "constant",
        "model.weight_drop": 0.2,
        "model.zoneout_cell": 0.1,
        "model.zoneout_hidden": 0.1,
        "model.state_noise": 0.2,
        "model.dropout_kind": "variational",
        "model.ar": 1.0,
        "model.tar": 1.0,
    },
    "gru": {
        "model.cell": "gru",
        "model.layers": 2,
        "optim.name": "muon",
        "optim.average": "ema",
        "optim.average_decay": 0.98,
        "model.recurrent_dropout": 0.1,
        "model.embedding_dropout": 0.1,
    },
    "mingru": {
        "model.cell": "mingru",
        "model.layers": 2,
        "model.residual": True,
        "model.norm": True,
        "model.mlp": 2,
        "optim.name": "adan",
        "optim.average": "tail",
        "optim.average_last": 0.5,
        "model.dropout_input": 0.1,
    },
}
STEPS = 300
LOG_EVERY = 10
RUN = {
    "model.hidden": 24,
    "model.dropout": 0.2,
    "train.steps": STEPS,
    "train.log_every": LOG_EVERY,
    "train.eval_every": 50,
    "train.checkpoint_every": 20,
    "sample.length": 20,
}
TEXTS = ("config.json", "vocab.json", "corpus.json", "status.json", "environment.json", "metrics.jsonl")  # files of every run
HARMS = ("truncated", "emptied", "flipped", "deleted")  # ways to damage a file; flipped: one bit is inverted
MOMENTS = ("any moment", "start-up", "checkpoint", "row")  # moments at which a fault can happen; see `wait_for_moment`
QUICK_COMPILATION = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
LIMIT = 1800  # a program that runs longer than this number of seconds is regarded as hung


class Result(NamedTuple):
    """A row of the table that scripts/torture.py prints.

    Attributes:
      fault: the name of the fault.
      tried: how many times the fault was tried.
      failures: one line for each failure.
      note: a remark for the table.
    """

    fault: str
    tried: int
    failures: list[str]
    note: str = ""


class Runs:
    """The runs of one call of scripts/torture.py. All these runs are in the same folder and train on the same corpus.

    A framing is a way to arrange a text into batches. FRAMINGS has the config of each framing. A kind of run is a framing, such
    as `windows`, or a framing with the options of a cell (see CELLS), such as `windows_gru`. For each kind, there is one run
    without any fault, with which the other runs are compared.

    `kills` is the number of kills for each framing, `configs` the number of random configs, and `trials` the number of trials
    of the sweep.
    """

    def __init__(self, folder: pathlib.Path, seed: int, kills: int, configs: int = 20, trials: int = 20):
        self.folder, self.seed, self.kills, self.configs, self.trials = folder, seed, kills, configs, trials
        self.corpus = folder / "corpus.txt"
        self.corpus.write_text(make_text(20_000), encoding="utf-8")

    def train(self, workdir: pathlib.Path, kind: str, **more: object) -> list[str]:
        """Returns the command that trains in `workdir`. The same command resumes the run."""
        framing, _, cell = kind.partition("_")
        overrides = RUN | FRAMINGS[framing] | CELLS.get(cell, {}) | {"corpus.path": self.corpus} | more
        return command("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={workdir}", *as_flags(overrides))

    def straight(self, kind: str, start: "Start | None" = None) -> pathlib.Path:
        """Returns the directory of the run of this kind without any fault. The first call trains this run."""
        workdir = self.folder / f"straight_{kind}"
        if not (workdir / "status.json").exists():
            succeed(self.train(workdir, kind), start)
        return workdir

    def random(self, *names: object) -> random.Random:
        """Returns a random generator. Its seed is made from `names` and the seed of these runs."""
        return random.Random(" ".join(map(str, (self.seed, *names))))

    def of_each_framing(self, fault: Callable[["Runs", str], Result]) -> Iterator[Result]:
        """Calls `fault(self, framing)` for each framing; see `of_each`."""
        return self.of_each(FRAMINGS, fault)

    def of_each(self, names: Iterable[object], fault: Callable[["Runs", Any], Result]) -> Iterator[Result]:
        """Calls `fault(self, name)` for each name, two names at a time. An exception becomes a failure.

        Yields:
          The results in the order of the names, each as soon as it is known.
        """

        def attempt(name: object) -> Result:
            try:
                return fault(self, name)
            except Exception as error:
                return Result(str(name), 1, [f"{name}: {''.join(traceback.format_exception(error))[-400:]}"])

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            yield from pool.map(attempt, names)


def quick_compilation() -> dict[str, str]:
    """Environment variables with which XLA compiles small programs in about a sixth of the time.

    JAX 0.11 or newer may not know these flags of XLA, and XLA ends the process if a flag is unknown.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "True"} | ({"XLA_FLAGS": QUICK_COMPILATION} if version < (0, 11) else {})


def make_text(chars: int, seed: int = 0) -> str:
    """Returns a text of made-up words with punctuation and line breaks. Words repeat, so an LSTM can learn some of them."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    text = ""
    while len(text) < chars:
        text += rng.choice(words) + rng.choice([" ", " ", " ", ", ", ".\n"])
    return text[:chars]


def as_flags(overrides: dict[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def command(program: str, *arguments: object) -> list[str]:
    """Returns the command that runs scripts/PROGRAM.py."""
    return [sys.executable, str(ROOT / "scripts" / f"{program}.py"), *map(str, arguments)]


def readers(workdir: pathlib.Path) -> list[list[str]]:
    """Returns one command of each program that reads a run: evaluate, sample and compare."""
    return [
        command("evaluate", f"--workdir={workdir}"),
        command("sample", f"--workdir={workdir}", "--prompt=a", "--length=50", "--checkpoint=latest"),
        command("compare", workdir, "--json", "--each"),
    ]


class Process(Protocol):
    """The methods of `subprocess.Popen` that the faults use. A process of `forks` has the same."""

    pid: int
    returncode: Any

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def communicate(self, *, timeout: float) -> tuple[str, str]: ...


Start = Callable[[list[str]], Process]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    env = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: Process) -> tuple[str, str]:
    """Waits until a program ends. Returns its standard output and its standard error. Kills the program after LIMIT seconds.

    If all these processes are paused for some time, such as by SIGSTOP, this time counts as one second.
    """
    for _ in range(LIMIT):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=1)
    process.kill()
    output, errors = process.communicate(timeout=LIMIT)
    return output, f"{errors}\nhung for {LIMIT} s"


def free_port() -> int:
    """Returns a port of this machine that no program uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def succeed(command: list[str], start_with: Start | None = None) -> None:
    """Runs a command that must succeed. `start_with` starts it; default: `start`.

    Raises:
      RuntimeError: the command failed.
    """
    process = (start_with or start)(command)
    _, errors = finish(process)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}: {errors}")


def metrics_bytes(workdir: pathlib.Path) -> int:
    """The size of the metrics file in bytes; 0 if the file does not exist."""
    return (workdir / "metrics.jsonl").stat().st_size if (workdir / "metrics.jsonl").exists() else 0


def logged_step(workdir: pathlib.Path) -> int:
    """The step of the last complete row of metrics; 0 if no row is complete."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved_step(workdir: pathlib.Path) -> int:
    """The step of the latest complete checkpoint; 0 if no checkpoint is complete."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def wait_for_step(workdir: pathlib.Path, step: int, process: Process | None = None, seconds: float = LIMIT) -> None:
    """Waits until the metrics reach a step. Stops waiting if `process` ends.

    Raises:
      AssertionError: the metrics did not reach the step in time.
    """
    end = time.monotonic() + seconds
    while process is None or process.poll() is None:
        if logged_step(workdir) >= step:
            return
        if time.monotonic() > end:
            raise AssertionError(f"{workdir} did not reach step {step} in {seconds:.0f} s")
        time.sleep(0.001)


def wait_for_moment(process: Process, workdir: pathlib.Path, moment: str, rng: random.Random, seconds: float) -> None:
    """Waits until a moment comes or the process ends.

    Args:
      moment: one of MOMENTS. "any moment" is a random time within a whole run. "start-up" is a random time within the first
        half of a run. For "checkpoint" and "row", one of the next six writes of a checkpoint or of metrics rows is chosen at
        random. The moment is up to 0.02 s after this write was noticed.
      seconds: the duration of a whole run.
    """
    waits_for_write = moment in ("checkpoint", "row")
    end = time.monotonic() + (LIMIT if waits_for_write else rng.uniform(0, seconds if moment == "any moment" else seconds / 2))
    events, last = rng.randint(1, 6), None
    while process.poll() is None and time.monotonic() < end:
        if waits_for_write:
            tmp = moment == "checkpoint"
            now = {path.name for path in workdir.glob("checkpoints/*tmp*")} if tmp else metrics_bytes(workdir)
            if now and now != last:
                last, events = now, events - 1
                if not events:
                    time.sleep(rng.uniform(0, 0.02))
                    return
        time.sleep(0.001)


def harm(path: pathlib.Path, how: str, place: float = 0.5, bit: int = 2) -> None:
    """Damages a file. `how` is one of HARMS. If `path` is a folder, deletes the folder.

    Args:
      place: where the file is truncated, or which byte is changed. 0 is the beginning of the file and 1 is its end.
      bit: which bit of this byte is flipped, from 0 to 7.
    """
    if path.is_dir():
        shutil.rmtree(path)
        return
    content = path.read_bytes()
    at = int(place * len(content))
    if how == "deleted":
        path.unlink()
    elif how == "flipped" and content:
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
    else:
        path.write_bytes(content[:at] if how == "truncated" else b"")
