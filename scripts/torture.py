"""Does to trainings what happens to them on real machines, and prints a table of the faults tried and survived.

    scripts/torture.py [--seed=0] [--kills=100] [--only=kill,stop] [--scratch=FOLDER]

Each fault befalls small runs, started as a user starts them. Survived means that what the same command makes of it afterwards
is bit for bit the run to which nothing happened (rows of metrics, samples, parameters, status, no file more), or, of damaged
files, that a program says what it did without, or refuses in one sentence that names the file. Half an hour on 2 CPU cores. A
full and a read-only disk need root, for a small tmpfs. Exit status: 0 if all was survived, else 1; --scratch keeps the runs.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from charlm import cli
from charlm.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
FRAMINGS = {
    "stream": {"devices": 2},
    "chunks": {"batch.framing": "chunks"},
    "windows": {"batch.framing": "windows", "batch.stride": 3, "devices": 2},
    "documents": {"batch.framing": "documents", "corpus.documents": "lines", "batch.length": 40},
}
STEPS = 300
RUN = {
    "model.hidden": 24,
    "model.dropout": 0.2,
    "train.steps": STEPS,
    "train.log_every": 10,
    "train.eval_every": 50,
    "train.checkpoint_every": 20,
    "sample.length": 20,
}
MODES = ("any moment", "start-up", "checkpoint", "row")  # when a kill comes
HARMS = ("truncated", "emptied", "flipped", "deleted")
PATIENCE = 10  # seconds in which a signal has to be followed
LIMIT = 300  # seconds after which a program counts as one that hangs

_SEED = flags.DEFINE_integer("seed", 0, "of the moments and places of faults")
_KILLS = flags.DEFINE_integer("kills", 100, "of each framing")
_ONLY = flags.DEFINE_list(
    "only", [], "faults to try: " + ", ".join(("kill", "stop", "disk", "damage", "diverge", "two", "load"))
)
_SCRATCH = flags.DEFINE_string("scratch", None, "folder for the runs, which are then kept; by default a temporary one")


class Row(NamedTuple):
    """A row of the table; lost: what was not survived, a line each."""

    fault: str
    tried: int
    lost: list[str]
    note: str = ""


class Place:
    """Where the runs are: a corpus, and of each framing one run that nothing happens to."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.corpus = folder / "corpus.txt"
        self.corpus.write_text(made_up(20_000))

    def train(self, workdir: pathlib.Path, framing: str, **more) -> list[str]:
        overrides = RUN | FRAMINGS[framing] | {"corpus.path": self.corpus} | more
        keys = [f"--config.{key}={value}" for key, value in overrides.items()]
        return program("train", f"--config={ROOT / 'configs' / 'tiny.py'}", f"--workdir={workdir}", *keys)

    def straight(self, framing: str) -> pathlib.Path:
        workdir = self.folder / f"straight_{framing}"
        if not (workdir / "status.json").exists():
            succeed(self.train(workdir, framing))
        return workdir


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]


def started(command: list[str], **environment: str) -> subprocess.Popen:
    env = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process: subprocess.Popen) -> tuple[str, str]:
    """What a program has printed, and its errors. One that hangs is killed, and has then failed."""
    try:
        return process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return output, f"{errors}\nhung for {LIMIT} s"


def succeed(command: list[str]) -> str:
    """Standard error of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr}")
    return done.stderr


def made_up(chars: int) -> str:
    """Words of a small made-up language, in lines."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    text = ""
    while len(text) < chars:
        text += rng.choice(words) + rng.choice([" ", " ", ", ", ".\n"])
    return text[:chars]


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """In what a run differs from the one that nothing happened to; nothing where it was survived."""
    import numpy as np

    from charlm.inference import restore

    found = []
    if rows(workdir) != rows(straight):
        found.append("rows of metrics")
    if names(workdir) != names(straight):
        found.append(f"files: {sorted(names(workdir) ^ names(straight))}")
    for file in (straight / "samples").iterdir():
        if not (workdir / "samples" / file.name).exists() or (workdir / "samples" / file.name).read_text() != file.read_text():
            found.append(f"sample {file.name}")
    if json.loads((workdir / "status.json").read_text()) != json.loads((straight / "status.json").read_text()):
        found.append("status")
    one, other = (restore.load(str(path), "latest") for path in (workdir, straight))
    if any(not np.array_equal(left, right) for left, right in zip(leaves(one.params), leaves(other.params), strict=True)):
        found.append("parameters")
    return found


def leaves(tree) -> list:
    import jax

    return jax.tree.leaves(tree)


def rows(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "chars_per_second", "seal")
    return [{key: value for key, value in json.loads(line).items() if key not in timing} for line in lines]


def names(workdir: pathlib.Path) -> set[str]:
    """The files of a run by their names, those of arrays and of TensorBoard, one a start, by their folders'."""
    found = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    found = {re.sub(r"(tensorboard/|checkpoints/\d+/\w+/).*", r"\1", name) for name in found}
    return {name for name in found if name != "evaluations.jsonl" and not name.startswith("unreadable/")}


def kill(place: Place, framing: str, seed: int, count: int) -> Row:
    """kill -9 at random moments, as many as asked for, over as many runs as last that long."""
    rng = random.Random(f"{seed} {framing}")
    straight, lost = place.straight(framing), []
    begin = time.monotonic()
    succeed(place.train(place.folder / f"timed_{framing}", framing))
    whole = time.monotonic() - begin
    killed, number, workdir = 0, 0, place.folder / f"kill_{framing}_0"
    in_this_one = 0
    while killed < count or in_this_one:
        if killed >= count:
            succeed(place.train(workdir, framing))
        else:
            there = complete(workdir)
            process = started(place.train(workdir, framing))
            await_moment(process, workdir, rng.choice(MODES), rng, whole)
            process.kill()
            output, errors = ended(process)
            lost += resumed_elsewhere(workdir, there, output)
            if process.returncode == -signal.SIGKILL:
                killed, in_this_one = killed + 1, in_this_one + 1
                continue
            if process.returncode:
                lost.append(f"{workdir}: exit status {process.returncode}: {errors}")
                break
        if found := differences(workdir, straight):
            lost += [f"{workdir}: {', '.join(found)}"] * max(1, in_this_one)
        number, in_this_one = number + 1, 0
        workdir = place.folder / f"kill_{framing}_{number}"
    return Row(f"kill -9, {framing}", killed, lost, f"{number} runs of {STEPS} steps")


def complete(workdir: pathlib.Path) -> int:
    """The latest step that has a complete checkpoint; 0: none."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def resumed_elsewhere(workdir: pathlib.Path, there: int, output: str) -> list[str]:
    """Nothing where a start has gone on from the checkpoint that was there, as far as it came to say so."""
    said = re.search(r"resuming at step (\d+)", output)
    if said is None and there and "steps," in output:
        return [f"{workdir}: began anew, though step {there} was saved"]
    return [f"{workdir}: {said[0]}, though step {there} was saved"] if said and int(said[1]) != there else []


def await_moment(process: subprocess.Popen, workdir: pathlib.Path, mode: str, rng: random.Random, whole: float) -> None:
    """Waits until a moment of the kind has come, or the process has ended."""
    end = time.monotonic() + {"any moment": rng.uniform(0, whole), "start-up": rng.uniform(0, whole / 2)}.get(mode, 600)
    events, last = rng.randint(1, 6), None
    while process.poll() is None and time.monotonic() < end:
        now = {path.name for path in workdir.glob("checkpoints/*tmp*")} if mode == "checkpoint" else size(workdir)
        if mode in ("checkpoint", "row") and now and now != last:
            last, events = now, events - 1
            if not events:
                time.sleep(rng.uniform(0, 0.02))
                return
        time.sleep(0.0005)


def stop(place: Place, framing: str, seed: int) -> Row:
    """SIGTERM and SIGINT, of which the run saves its state, and every third time a second signal, of which it ends at once."""
    rng = random.Random(f"{seed} stop {framing}")
    straight, lost, slowest, tried = place.straight(framing), [], 0.0, 0
    workdir = place.folder / f"stop_{framing}"
    while tried < 12:
        there, rows_before = complete(workdir), size(workdir)
        process = started(place.train(workdir, framing))
        await_moment(process, workdir, rng.choice(MODES), rng, 6.0)
        begun = size(workdir) > rows_before  # in the loop, which listens
        signals = [rng.choice((signal.SIGTERM, signal.SIGINT)) for _ in range(2 if rng.random() < 1 / 3 else 1)]
        begin = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(rng.uniform(0, 0.05) if len(signals) > 1 else 0)
        output, errors = ended(process)
        seconds = time.monotonic() - begin
        lost += resumed_elsewhere(workdir, there, output)
        if process.returncode == 0:  # it was done already
            lost += [f"{workdir}: {found}" for found in differences(workdir, straight)]
            shutil.rmtree(workdir)
            continue
        tried, slowest = tried + 1, max(slowest, seconds)
        allowed = {128 + number for number in signals}
        if not begun or len(signals) > 1 or json.loads((workdir / "status.json").read_text())["state"] == "done":
            allowed |= {-number for number in signals}
        if process.returncode not in allowed or seconds > PATIENCE or "Traceback" in errors:
            lost.append(f"{workdir}: {signals} gave {process.returncode} after {seconds:.1f} s: {errors[-300:]}")
    succeed(place.train(workdir, framing))
    if found := differences(workdir, straight):
        lost.append(f"{workdir}: {', '.join(found)}")
    return Row(f"SIGTERM or SIGINT, one or two, {framing}", tried, lost, f"at most {slowest:.1f} s until it had ended")


def size(workdir: pathlib.Path) -> int:
    """Bytes of metrics."""
    return (workdir / "metrics.jsonl").stat().st_size if (workdir / "metrics.jsonl").exists() else 0


def quota(place: Place, framing: str, seed: int) -> Row:
    """Files may grow no more from a random moment on."""
    rng = random.Random(f"{seed} quota {framing}")
    straight, lost, tried = place.straight(framing), [], 0
    workdir = place.folder / f"quota_{framing}"
    while tried < 6:
        process = started(place.train(workdir, framing))
        await_moment(process, workdir, "row", rng, 6.0)
        room = rng.choice((rng.randint(0, 300), rng.randint(0, 8000)))
        limit = size(workdir) + room
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        _, errors = ended(process)
        if process.returncode == 0:
            lost += [f"{workdir}: {found}" for found in differences(workdir, straight)]
            shutil.rmtree(workdir)
            continue
        tried += 1
        lost += sentence(process.returncode, errors, ("can't be written",), f"{workdir}: room of {room} bytes")
    succeed(place.train(workdir, framing))
    if found := differences(workdir, straight):
        lost.append(f"{workdir}: {', '.join(found)}")
    return Row(f"quota used up, {framing}", tried, lost)


def disk(place: Place, seed: int) -> list[Row]:
    """A tmpfs that is nearly full, every second time with the cache of compiled programs on it, and one that is read-only."""
    mount = place.folder / "disk"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount]).returncode:
        return [Row("full disk", 0, [], "not tried: no tmpfs without root")]
    rng, straight, lost, tried = random.Random(f"{seed} disk"), place.straight("stream"), [], 0
    workdir, filler = mount / "run", mount / "filler"
    try:
        while tried < 10:
            shutil.rmtree(workdir, ignore_errors=True)
            filler.write_bytes(b"\0" * (4 * 2**20 - rng.randint(20_000, 400_000)))
            cache = {"JAX_COMPILATION_CACHE_DIR": str(mount / "xla")} if tried % 2 else {}
            process = started(place.train(workdir, "stream"), **cache)
            _, errors = ended(process)
            filler.unlink()
            shutil.rmtree(mount / "xla", ignore_errors=True)
            if process.returncode == 0:
                continue
            tried += 1
            lost += sentence(process.returncode, errors, ("can't be written", "No space left"), f"full disk, try {tried}")
            succeed(place.train(workdir, "stream"))
            if found := differences(workdir, straight):
                lost.append(f"full disk, try {tried}: {', '.join(found)}")
        written = [Row("full disk", tried, lost)]
        before = [outcome(command) for command in readers(workdir)]
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        lost = []
        refused = subprocess.run(place.train(mount / "new", "stream"), capture_output=True, text=True, timeout=LIMIT)
        lost += sentence(refused.returncode, refused.stderr, ("can't be written",), "training on a read-only disk")
        for command, (status, output, _) in zip(readers(workdir), before, strict=True):
            now = outcome(command)
            if now[:2] != (status, output) or status:
                lost.append(f"read-only: {command[1]}: {now}")
        return [*written, Row("read-only disk: train, evaluate, sample, compare", 4, lost)]
    finally:
        subprocess.run(["umount", mount], check=True)


def readers(workdir: pathlib.Path) -> list[list[str]]:
    """The commands that read a run."""
    return [
        program("evaluate", f"--workdir={workdir}"),
        program("sample", f"--workdir={workdir}", "--prompt=a", "--length=50", "--checkpoint=latest"),
        program("compare", workdir, "--json", "--each"),
    ]


def outcome(command: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output but for what tells time, and standard error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    return done.returncode, re.sub(r'"(seconds|chars_per_second|time|speed)": [^,}]*', "", done.stdout), done.stderr


def sentence(status: int, errors: str, words: tuple[str, ...], what: str) -> list[str]:
    """Nothing where a program has ended with one sentence that has one of the words, else what it did."""
    lines = errors.strip().splitlines()
    mistakes = [line for line in lines if not line.startswith("note: ")]
    right = status in (1, 2) and len(mistakes) == 1 and mistakes[0].startswith("error: ")
    return [] if right and any(word in errors for word in words) else [f"{what}: exit status {status}: {errors[-400:]}"]


def damage(place: Place, seed: int) -> list[Row]:
    """Each text of a run and each file of its latest and its best checkpoint, harmed in four ways, and these checkpoints gone;
    then each program. Samples and event files are no evidence of anything, and not sealed."""
    straight = place.straight("stream")
    before = place.folder / "stopped" / "run"
    process = started(place.train(before, "stream"))
    while not list(before.glob("checkpoints/120")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    ended(process)
    latest, best = complete(before), json.loads((before / "status.json").read_text())["best"]["step"]
    expected = [outcome(command) for command in readers(before)]
    texts = [
        "config.json",
        "vocab.json",
        "corpus.json",
        "status.json",
        "environment.json",
        "metrics.jsonl",
        "evaluations.jsonl",
    ]
    files = [before / name for name in texts]
    for step in {latest, best}:
        files += [path for path in (before / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    cases = [(file.relative_to(before), harm) for file in files for harm in HARMS]
    cases += [(pathlib.Path("checkpoints", str(step)), "deleted") for step in {latest, best}]

    def one(case: tuple[pathlib.Path, str]) -> list[tuple[str, list[str]]]:
        name, harm = case
        workdir = place.folder / "damage" / f"{str(name).replace('/', '_')}_{harm}" / "run"
        shutil.copytree(before, workdir)
        harmed(workdir / name, harm, random.Random(f"{seed} {name} {harm}"))
        words = (name.name,) if len(name.parts) == 1 else ("/".join(name.parts[:2]), "--checkpoint=latest", "--checkpoint=best")
        results = []
        for command, right in zip(readers(workdir), expected, strict=True):
            status, output, errors = outcome(command)
            what = f"{command[1]} with {name} {harm}"
            if "Traceback" in errors:
                results.append(("read", [f"{what}: {errors[-400:]}"]))
            elif status:
                results.append(("read", sentence(status, errors, words, what)))
            else:
                same = output.replace(str(workdir), str(before)) == right[1]
                said = any(line.startswith("note: ") and any(word in line for word in words) for line in errors.splitlines())
                results.append(("read", [] if same or said else [f"{what}: silently another outcome: {output[:300]}"]))
        status, _, errors = outcome(place.train(workdir, "stream"))
        what = f"train with {name} {harm}"
        if status:
            results.append(("resume", sentence(status, errors, words, what)))
        else:
            found = differences(workdir, straight)
            said = any(line.startswith("note: ") and any(word in line for word in words) for line in errors.splitlines())
            kept = all(row in rows(straight) for row in rows(workdir))
            lost = [line for line in found if not (said and kept and line in ("rows of metrics", "status"))]
            results.append(("resume", [f"{what}: {lost} {errors[-300:]}"] if lost else []))
        if not any(lost for _, lost in results):
            shutil.rmtree(workdir)
        return results

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [result for case in pool.map(one, cases) for result in case]
    kinds = {"resume": "damaged file, then resume", "read": "damaged file, then evaluate, sample, compare"}
    return [
        Row(
            text,
            sum(kind == which for which, _ in results),
            [line for which, lost in results if which == kind for line in lost],
        )
        for kind, text in kinds.items()
    ]


def harmed(path: pathlib.Path, how: str, rng: random.Random) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        return
    content = path.read_bytes()
    at = rng.randrange(len(content)) if content else 0
    if how == "deleted":
        path.unlink()
    elif how == "flipped" and content:
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
    else:
        path.write_bytes(content[:at] if how == "truncated" else b"")


def diverge(place: Place, seed: int) -> list[Row]:
    """A learning rate of 1,000, with each optimiser."""
    del seed
    lost = []
    for optimizer in ("sgd", "adam", "adamw", "rmsprop"):
        wild = {"optim.name": optimizer, "optim.learning_rate": 1e3}
        workdir = place.folder / f"diverge_{optimizer}"
        status, _, errors = outcome(place.train(workdir, "stream", **wild))
        state = json.loads((workdir / "status.json").read_text())
        lost += sentence(status, errors, ("is marked diverged",), f"diverge with {optimizer}")
        logged = rows(workdir)[-1]["step"] if size(workdir) else 0
        if state["state"] != "diverged" or state["step"] > logged + RUN["train.log_every"]:
            lost.append(f"diverge with {optimizer}: {state}")
    return [Row("learning rate of 1,000, each optimiser", 4, lost, "noticed within a log interval")]


def two(place: Place, seed: int) -> list[Row]:
    """A second training in the same directory, readers beside a training, and one of two processes killed."""
    rng, straight = random.Random(f"{seed} two"), place.straight("stream")
    lost, tried, read, lost_read = [], 0, 0, []
    for number in range(3):
        workdir = place.folder / f"two_{number}"
        process = started(place.train(workdir, "stream", **{"train.checkpoint_every": 3}))
        await_moment(process, workdir, "row", rng, 60.0)
        second = started(place.train(workdir, "stream", **{"train.checkpoint_every": 3}))
        for command in readers(workdir):
            status, _, errors = outcome(command)
            read += 1
            if status or "can't be read" in errors or "Traceback" in errors:
                lost_read.append(f"{command[1]} beside a training: exit status {status}: {errors[-300:]}")
        _, errors = ended(second)
        if second.returncode:  # else the first had ended before
            tried += 1
            lost += sentence(second.returncode, errors, ("is in use by process",), "a second training")
        ended(process)
        if "rows of metrics" in (found := differences(workdir, straight)) or "parameters" in found:
            lost.append(f"{workdir}: {found}")
    return [
        Row("second training in the same directory", tried, lost),
        Row("evaluate, sample, compare beside a training", read, lost_read),
        one_of_two(place, rng),
    ]


def one_of_two(place: Place, rng: random.Random) -> Row:
    """Two processes train together; one is killed, the other has to end, and both together go on."""
    lost, slowest = [], 0.0
    straight = place.folder / "pair_straight"
    for process in pair(place, straight):
        ended(process)
    for number in range(4):
        workdir = place.folder / f"pair_{number}"
        processes = pair(place, workdir)
        await_moment(processes[0], workdir, "row", rng, 60.0)
        victim = number % 2
        processes[victim].kill()
        begin = time.monotonic()
        _, errors = ended(processes[1 - victim])
        seconds = time.monotonic() - begin
        slowest = max(slowest, seconds)
        ended(processes[victim])
        said = ["error: another process of this training has gone"]
        said += ["JAX distributed service detected fatal errors"] if victim == 0 else []  # JAX itself may be quicker then
        if processes[1 - victim].returncode == 0 or not any(line in errors for line in said) or seconds > 60:
            lost.append(f"{workdir}: process {victim} killed: {errors[-300:]}")
        for process in pair(place, workdir):
            ended(process)
        if found := differences(workdir, straight):
            lost.append(f"{workdir}: {', '.join(found)}")
    return Row("one of two processes killed", 4, lost, f"the other ended within {slowest:.1f} s")


def pair(place: Place, workdir: pathlib.Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = place.train(workdir, "stream")
    return [started([*command, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"]) for i in range(2)]


def load(place: Place, seed: int) -> list[Row]:
    """24 starts in one process leak no file and little memory; a long run's memory is flat."""
    del seed
    counts = subprocess.run(
        [sys.executable, "-c", LEAKS, *place.train(place.folder / "leaks", "stream", **{"train.steps": 1000})[2:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=4 * LIMIT,
    )
    lost = [] if counts.returncode == 0 else [f"24 starts in one process: {counts.stderr[-500:]}"]
    note = counts.stdout.strip().splitlines()[-1] if counts.returncode == 0 else ""
    workdir = place.folder / "long"
    more = {"train.steps": 20_500, "train.checkpoint_every": 500, "train.eval_every": 2000, "train.log_every": 50}
    process = started(place.train(workdir, "stream", **more))
    sizes, end = [], time.monotonic() + 4 * LIMIT
    for step in (2000, 20_000):
        while process.poll() is None and last_step(workdir) < step and time.monotonic() < end:
            time.sleep(0.05)
        readings = []
        for _ in range(5):
            readings.append(resident(process.pid))
            time.sleep(0.1)
        sizes.append(statistics.median(readings))
    ended(process)
    # Linux takes back what a start no longer needs, unused halves of huge pages above all, at any time: less is no leak.
    flat = f"{sizes[0]:.0f} MB after 2,000 steps, {sizes[1]:.0f} MB after 20,000"
    return [
        Row("24 starts one after another in one process", 24, lost, note),
        Row("memory of 20,000 steps", 1, [] if sizes[1] <= 1.05 * sizes[0] else [flat], flat),
    ]


LEAKS = """
import gc, os, signal, sys, threading, time
from charlm.config import load as config
from charlm.training import train
overrides = dict(argument.removeprefix("--config.").split("=", 1) for argument in sys.argv[3:])
path, workdir = sys.argv[1].split("=", 1)[1], sys.argv[2].split("=", 1)[1]
def stop_at(step):
    while not os.path.exists(workdir + "/metrics.jsonl") or f'"step": {step},' not in open(workdir + "/metrics.jsonl").read():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)
seen = []
for start in range(24):
    thread = threading.Thread(target=stop_at, args=(30 * (start + 1),))
    thread.start()
    assert train.train(config.load(path, overrides), workdir) == 143
    thread.join()
    gc.collect()
    with open("/proc/self/statm") as file:
        megabytes = int(file.read().split()[1]) * 4096 / 1e6
    seen.append((megabytes, len(os.listdir("/proc/self/fd")), threading.active_count()))
(early, files, threads), (late, files_late, threads_late) = seen[3], seen[-1]
assert files_late <= files and threads_late <= threads, seen
assert late < 1.1 * early, seen
print(f"{early:.0f} MB and {files} files after 4 starts, {late:.0f} MB and {files_late} files after 24")
"""


def last_step(workdir: pathlib.Path) -> int:
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines() if (workdir / "metrics.jsonl").exists() else []
    steps = re.findall(rb'"step": (\d+)', lines[-1]) if lines else []
    return int(steps[0]) if steps else 0


def resident(pid: int) -> float:
    """Megabytes that a process has in memory."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def of_each_framing(fault: Callable, place: Place, *arguments) -> list[Row]:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda framing: fault(place, framing, *arguments), FRAMINGS))


def main(overrides: dict[str, str]) -> int:
    del overrides
    seed = _SEED.value
    faults = {
        "kill": lambda place: of_each_framing(kill, place, seed, _KILLS.value),
        "stop": lambda place: of_each_framing(stop, place, seed),
        "disk": lambda place: [*disk(place, seed), *of_each_framing(quota, place, seed)],
        "damage": lambda place: damage(place, seed),
        "diverge": lambda place: diverge(place, seed),
        "two": lambda place: two(place, seed),
        "load": lambda place: load(place, seed),
    }
    if unknown := set(_ONLY.value) - set(faults):
        raise UserError(f"--only={','.join(sorted(unknown))} is no fault: {', '.join(faults)} are.")
    if _KILLS.value < 1:
        raise UserError(f"--kills={_KILLS.value} is not right: it must be 1 or more.")
    folder = pathlib.Path(_SCRATCH.value or tempfile.mkdtemp(prefix="charlm_torture_"))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--scratch={folder} is not empty: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    table, begin = [], time.monotonic()
    print("| fault | tried | survived | |\n|---|---|---|---|", flush=True)
    try:
        place = Place(folder)
        for name, fault in faults.items():
            if not _ONLY.value or name in _ONLY.value:
                print(f"{time.monotonic() - begin:5.0f} s  {name} …", file=sys.stderr, flush=True)
                for row in fault(place):
                    table.append(row)
                    print(
                        f"| {row.fault} | {row.tried} | {row.tried - min(row.tried, len(row.lost))} | {row.note} |", flush=True
                    )
                    for line in row.lost:
                        print(f"not survived: {' '.join(line.split())[:500]}", file=sys.stderr, flush=True)
    finally:
        if not _SCRATCH.value:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(row.lost or not (row.tried or row.note) for row in table) else 0


if __name__ == "__main__":
    cli.run(main)
