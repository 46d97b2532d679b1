"""Running the trials of a sweep as processes of this machine, and showing where each stands."""

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from charlm import measures, progress
from charlm.compare import reading
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.sweeps import sweep

POLL_SECONDS = 0.2
ELSEWHERE = "in another process"
REPORT_SECONDS = 60.0  # between lines on what runs, where there is no terminal
ENDED = ("done", "diverged", "failed", "pruned")
SAVED_BY = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Standing(NamedTuple):
    """Where a trial stands, as its run directory tells.

    Attributes:
      state: new, one of run.STATES, or what a launcher knows beyond the directory: running, queued, stopped, pruned.
      best: {"step", "nats", "split"}.
      seconds_left: at the pace so far, None where that is unknown.
    """

    state: str
    step: int = 0
    total_steps: int | None = None
    best: dict | None = None
    chars_per_second: float | None = None
    seconds: float | None = None
    message: str = ""

    @property
    def seconds_left(self) -> float | None:
        if not (self.seconds and self.step and self.total_steps):
            return None
        return self.seconds / self.step * max(self.total_steps - self.step, 0)


def standing_of(run: Run) -> Standing:
    """Reads a run directory, which somebody may be writing to; a damaged one is `failed`, with the reason."""
    if not (run.workdir / "status.json").exists():
        return Standing("new")
    try:
        status = run.status()
        starts = run.starts() if (run.workdir / "environment.json").exists() else []
    except UserError as error:
        return Standing("failed", message=str(error))
    row = _last_train_row(run.workdir / "metrics.jsonl")
    return Standing(
        status["state"],
        max(status.get("step", 0), row.get("step", 0)),
        starts[-1].get("total_steps") if starts else None,
        status.get("best"),
        row.get("chars_per_second"),
        row.get("seconds"),
        status.get("message", ""),
    )


def last_words(log: pathlib.Path) -> str:
    """The sentence with which a training refused, else the last line of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    refusals = [line.removeprefix("error: ") for line in lines[-3:] if line.startswith("error: ")]
    return (refusals or lines or [""])[-1][:300]


class Share(NamedTuple):
    """What one of several processes may use. gpus: for CUDA_VISIBLE_DEVICES, None where there are none."""

    cores: tuple[int, ...]
    gpus: str | None
    shares_a_gpu: bool


def shares(parallel: int, cores: Iterable[int], gpus: list[str]) -> list[Share]:
    """Cores and GPUs for so many processes, as many for each, so that a trial's sums do not depend on its place.

    With fewer cores or GPUs than processes, several share one.
    """
    cores = sorted(cores)
    each, gpus_each = max(1, len(cores) // parallel), max(1, len(gpus) // parallel)
    return [
        Share(
            tuple(cores[(place * each + number) % len(cores)] for number in range(each)),
            ",".join(gpus[(place * gpus_each + number) % len(gpus)] for number in range(gpus_each)) if gpus else None,
            0 < len(gpus) < parallel,
        )
        for place in range(parallel)
    ]


def cores_here() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def gpus_here() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        return [str(number) for number in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []


def start(command: list[str], share: Share, log: pathlib.Path) -> subprocess.Popen:
    """Starts a training on its share of the machine, in a session of its own: a Ctrl-C reaches it only through us, once."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if share.gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = share.gpus
    if share.shares_a_gpu:
        env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    mine = cores_here()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, share.cores)  # a child inherits it
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        finally:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, mine)


def local(
    root: sweep.Root,
    trials: Iterator[sweep.Trial],
    command_of: Callable[[sweep.Trial], list[str]],
    places: list[Share],
    display: "Display",
    ended: Callable[[sweep.Trial, Standing], None] = lambda trial, standing: None,
    is_enough: Callable[[sweep.Trial], bool] = lambda trial: False,
) -> int:
    """Runs trials, as many at once as there are places; returns the number of the signal that stopped it, else 0.

    A trial whose directory another process holds, as an orphan of a killed launcher does, is waited for.

    Args:
      trials: asked for the next one only when there is a place for it.
      ended: called as each trial ends. is_enough: asked again and again whether a running trial may stop; it is then `pruned`.
    """
    running: dict[int, tuple[sweep.Trial, subprocess.Popen]] = {}
    elsewhere: dict[int, sweep.Trial] = {}
    pruned: set[str] = set()
    exhausted = False

    def begin(place: int, trial: sweep.Trial) -> None:
        process = start(command_of(trial), places[place], root.log(trial))
        running[place] = (trial, process)
        if stopped:  # between the two lines above, when nobody could pass it on
            process.send_signal(stopped[0])

    children = _Children(lambda: [process for _, process in running.values()])
    with display, children as stopped:
        while True:
            for place, (trial, process) in list(running.items()):
                if process.poll() is not None:
                    del running[place]
                    if process.returncode == 2 and root.run(trial).is_training():  # an orphan that was still starting
                        elsewhere[place] = trial
                        continue
                    standing = _standing_after(root, trial, process.returncode, trial.name in pruned)
                    display.set(trial, standing)
                    ended(trial, standing)
                elif not stopped and trial.name not in pruned and is_enough(trial):
                    pruned.add(trial.name)
                    process.send_signal(signal.SIGTERM)
                else:
                    display.set(trial, standing_of(root.run(trial))._replace(state="running", message=""))
            for place, trial in list(elsewhere.items()):
                if not root.run(trial).is_training():
                    del elsewhere[place]
                    standing = standing_of(root.run(trial))
                    if standing.state not in ENDED and not stopped:
                        begin(place, trial)
                    else:
                        display.set(trial, standing)
                        ended(trial, standing)
                else:
                    display.set(trial, standing_of(root.run(trial))._replace(state="running", message=ELSEWHERE))
            for place in range(len(places)):
                if place in running or place in elsewhere or exhausted or stopped:
                    continue
                trial = next(trials, None)
                exhausted = trial is None
                if trial is None:
                    continue
                if root.run(trial).is_training():
                    elsewhere[place] = trial
                    display.set(trial, standing_of(root.run(trial))._replace(state="running", message=ELSEWHERE))
                else:
                    begin(place, trial)
                    display.set(trial, standing_of(root.run(trial))._replace(state="running", message=""))
            if not running and (stopped or (exhausted and not elsewhere)):
                return stopped[0] if stopped else 0
            display.refresh()
            time.sleep(POLL_SECONDS)


class Display:
    """Shows trials: as a live table on a terminal, elsewhere as a line for each that begins or ends, and one a minute."""

    def __init__(self, number: int):
        """number: of trials in all."""
        self._number = number
        self._standings: dict[str, Standing] = {}
        self._console = Console()
        self._live = None
        self._reported = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a table, so that lines have to be said again once it is gone."""
        return self._live is not None

    def set(self, trial: sweep.Trial, standing: Standing) -> None:
        before = self._standings.get(trial.name)
        self._standings[trial.name] = standing
        if not self._live and (before is None or before.state != standing.state):
            self._print(trial.name, standing)

    def known(self, trial: sweep.Trial, standing: Standing) -> None:
        """As `set`, of what is no news."""
        self._standings[trial.name] = standing

    def refresh(self) -> None:
        """Says on what the running trials are, where no table shows it, once a minute."""
        if not self._live and time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            for name, standing in self._standings.items():
                if standing.state == "running":
                    self._print(name, standing)

    def counts(self) -> dict[str, int]:
        """State → trials in it."""
        counts: dict[str, int] = {}
        for standing in self._standings.values():
            counts[standing.state] = counts.get(standing.state, 0) + 1
        return counts

    def standings(self) -> dict[str, Standing]:
        """Name of a trial → where it stands."""
        return dict(self._standings)

    def _print(self, name: str, standing: Standing) -> None:
        parts = [f"{standing.state:<8} {name}"]
        if standing.step:
            parts.append(f"step {standing.step}" + (f"/{standing.total_steps}" if standing.total_steps else ""))
        if standing.best:
            parts.append(measures.best_in_words(standing.best))
        if standing.state == "running" and standing.seconds_left is not None:
            parts.append(f"{progress.duration(standing.seconds_left)} left")
        if standing.message:
            parts.append(standing.message)
        if standing.state in ENDED:
            parts.append(f"({sum(other.state in ENDED for other in self._standings.values())} of {self._number} ended)")
        print("  ".join(parts), flush=True)

    def _table(self) -> Table:
        """Those that run first, then what went wrong, then the rest from the best on; as many as fit the screen."""
        order = {"running": 0, "queued": 1, "failed": 2, "stopped": 2, "diverged": 3, "done": 4, "pruned": 5}
        rows = sorted(
            self._standings.items(),
            key=lambda item: (order.get(item[1].state, 6), item[1].best["nats"] if item[1].best else float("inf")),
        )
        room = max(3, self._console.height - 6)
        hidden = len(rows) - room
        table = Table(box=None, pad_edge=False, caption_justify="left")
        table.caption = self._caption() + (f"; {hidden} more not shown" if hidden > 0 else "")
        for name, justify in (("trial", "left"), ("state", "left"), ("step", "right"), ("best ppl", "right")):
            table.add_column(name, justify=justify, overflow="fold" if name == "trial" else "ellipsis", no_wrap=name != "trial")
        table.add_column("chars/s", justify="right", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
        for name, standing in rows[:room]:
            table.add_row(*_cells(name, standing))
        return table

    def _caption(self) -> str:
        counts = ", ".join(f"{number} {state}" for state, number in sorted(self.counts().items()))
        waiting = self._number - len(self._standings)
        return counts + (f", {waiting} waiting" if waiting > 0 else "")


def _cells(name: str, standing: Standing) -> list[str]:
    colours = {"running": "cyan", "done": "green", "diverged": "magenta", "failed": "red", "stopped": "yellow"}
    colour = colours.get(standing.state, "default")
    runs = standing.state == "running"
    return [
        name,
        f"[{colour}]{standing.state}[/{colour}]",
        f"{standing.step}/{standing.total_steps}" if standing.total_steps else str(standing.step or ""),
        f"{measures.perplexity(standing.best['nats']):.4f}" if standing.best else "",
        f"{standing.chars_per_second:,.0f}" if standing.chars_per_second else "",
        progress.duration(standing.seconds_left) if runs and standing.seconds_left is not None else "",
    ]


def _standing_after(root: sweep.Root, trial: sweep.Trial, code: int, was_pruned: bool) -> Standing:
    """Where a trial stands whose process has ended."""
    standing = standing_of(root.run(trial))
    if standing.state in ENDED:
        return standing
    if was_pruned:
        return standing._replace(state="pruned")
    if code < 0:
        return standing._replace(state="stopped", message=f"killed by {signal.Signals(-code).name}")
    if code in SAVED_BY:
        return standing._replace(state="stopped")
    return standing._replace(state="failed", message=last_words(root.log(trial)) or f"exit status {code}")


def _last_train_row(file: pathlib.Path) -> dict:
    """The last row of the training loss, looked for in the last few rows."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - 2**14))
            lines = opened.read().splitlines()
    except OSError:
        return {}
    rows = (reading.parsed(line) for line in reversed(lines))
    return next((row for row in rows if row is not None and row["split"] == "train"), {})


class _Children:
    """A list to which SIGINT and SIGTERM add their number; the first is passed on to the children, the second kills them.

    Where the launcher itself fails, they are asked to save their state and to end.
    """

    def __init__(self, children: Callable[[], list[subprocess.Popen]]):
        self._children, self._received = children, []

    def __enter__(self) -> list[int]:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self._received

    def __exit__(self, kind, *_) -> None:
        for process in self._children() if kind else ():
            process.send_signal(signal.SIGTERM)
        for process in self._children() if kind else ():
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        del frame
        for process in self._children():
            process.send_signal(signal.SIGKILL if self._received else number)
        self._received.append(number)
