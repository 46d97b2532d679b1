"""Shows the status of each trial on the terminal while the trials run."""

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from charlm import measures, progress
from charlm.sweeps import sweep
from charlm.sweeps.status import FINAL_STATES, TrialStatus

REPORT_SECONDS = 60.0  # without a terminal, the time between two reports on the running trials


class Display:
    """Shows the status of trials.

    On a terminal, the display is a live table. Without a terminal, the display prints a line when a trial starts or ends, and
    every minute a line for each running trial.
    """

    def __init__(self, total: int):
        """`total` is the number of trials in the sweep."""
        self._total = total
        self._statuses: dict[str, TrialStatus] = {}
        self._console = Console()
        self._live = None
        self._reported = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether the display is a live table. The table does not show why a trial failed."""
        return self._live is not None

    def set(self, trial: sweep.Trial, status: TrialStatus) -> None:
        """Updates the status of a trial. Without a live table, prints the status if the state has changed."""
        before = self._statuses.get(trial.name)
        self._statuses[trial.name] = status
        if not self._live and (before is None or before.state != status.state):
            self._print(trial.name, status)

    def set_silently(self, trial: sweep.Trial, status: TrialStatus) -> None:
        """Updates the status of a trial without printing it."""
        self._statuses[trial.name] = status

    def refresh(self) -> None:
        """Without a live table, prints the running trials once a minute."""
        if not self._live and time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            for name, status in self._statuses.items():
                if status.state == "running":
                    self._print(name, status)

    def statuses(self) -> dict[str, TrialStatus]:
        """Trial name → status, for all trials whose status was set."""
        return dict(self._statuses)

    def _print(self, name: str, status: TrialStatus) -> None:
        parts = [f"{status.state:<8} {name}"]
        if status.step:
            parts.append(f"step {status.step}" + (f"/{status.total_steps}" if status.total_steps else ""))
        if status.best:
            parts.append(measures.best_in_words(status.best))
        if status.state == "running" and status.seconds_left is not None:
            parts.append(f"{progress.duration(status.seconds_left)} left")
        if status.message:
            parts.append(status.message)
        if status.state in FINAL_STATES:
            parts.append(f"({sum(other.state in FINAL_STATES for other in self._statuses.values())} of {self._total} ended)")
        print("  ".join(parts), flush=True)

    def _table(self) -> Table:
        """The table of trials.

        Running trials come first, then queued trials, then failed and stopped trials, then all other trials. Trials with the
        same state are sorted by their best loss. The table shows only as many trials as fit on the screen.
        """
        order = {"running": 0, "queued": 1, "failed": 2, "stopped": 2, "diverged": 3, "done": 4, "pruned": 5}
        rows = sorted(
            self._statuses.items(),
            key=lambda item: (order.get(item[1].state, 6), item[1].best["nats"] if item[1].best else float("inf")),
        )
        max_rows = max(3, self._console.height - 6)
        hidden = len(rows) - max_rows
        table = Table(box=None, pad_edge=False, caption_justify="left")
        table.caption = self._caption() + (f"; {hidden} more not shown" if hidden > 0 else "")
        table.add_column("trial", overflow="fold")
        table.add_column("state", no_wrap=True)
        for name in ("step", "best ppl", "chars/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, status in rows[:max_rows]:
            table.add_row(*_table_row(name, status))
        return table

    def _caption(self) -> str:
        counts: dict[str, int] = {}
        for status in self._statuses.values():
            counts[status.state] = counts.get(status.state, 0) + 1
        text = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        waiting = self._total - len(self._statuses)
        return text + (f", {waiting} waiting" if waiting > 0 else "")


def _table_row(name: str, status: TrialStatus) -> list[str]:
    colours = {"running": "cyan", "done": "green", "diverged": "magenta", "failed": "red", "stopped": "yellow"}
    colour = colours.get(status.state, "default")
    is_running = status.state == "running"
    return [
        name,
        f"[{colour}]{status.state}[/{colour}]",
        f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step or ""),
        f"{measures.perplexity(status.best['nats']):.4f}" if status.best else "",
        f"{status.chars_per_second:,.0f}" if status.chars_per_second else "",
        progress.duration(status.seconds_left) if is_running and status.seconds_left is not None else "",
    ]
