"""What a person sees while a model trains: a bar on a terminal, otherwise one plain line for each row of metrics."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from charlm import measures


class Reporter:
    """Shows the progress of a training. A context manager: the bar disappears before anything else is printed."""

    def __init__(self, total_steps: int, first_step: int):
        self._total = total_steps
        self._bar = None
        console = Console()
        if console.is_terminal:
            columns = (BarColumn(bar_width=6), TextColumn("{task.fields[text]}"))  # fits 80 characters
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, text="compiling …")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, nats: float, chars_per_second: float, seconds_left: float) -> None:
        """Moves the bar, if there is one."""
        if self._bar:
            figures = f"{nats:.4f} nats, perplexity {measures.perplexity(nats):.2f}"
            text = f"{step}/{self._total}  {figures}  {chars_per_second:,.0f} chars/s  {duration(seconds_left)} left"
            self._bar.update(self._task, completed=step, text=text)

    def row(self, row: dict, seconds_left: float = 0.0, note: str = "") -> None:
        """Prints a row of metrics. With a bar, which shows the training loss, it prints only rows of evaluations."""
        step = f"step {row['step']:>{len(str(self._total))}}/{self._total}"
        nats = f"{row['split']} {row['nats']:.4f} nats"
        if row["split"] != "train":
            self.say(f"{step}  {nats} (perplexity {measures.perplexity(row['nats']):.4f}){note}")
        elif not self._bar:
            self.say(
                f"{step}  epoch {row['epoch']:.2f}  {nats}  lr {row['learning_rate']:.1e}  grad {row['grad_norm']:.2f}  "
                f"{row['chars_per_second']:,.0f} chars/s  {duration(seconds_left)} left"
            )

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            tell(line)


@contextlib.contextmanager
def megabytes(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function to call with each number of bytes read. Shows a bar on a terminal, otherwise one line, on stderr.

    Args:
      what: the work, for the bar or line. size: all bytes, as far as known.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        warn(f"{what}, {size / 1e6:,.0f} MB to read.")
        yield lambda number: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=size)
        yield lambda number: bar.advance(task, number)


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 05 s, 2 h 07 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def counted(number: int, noun: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def tell(line: str) -> None:
    """Prints a line on stdout. If nobody reads it any more, or its disk is full, the training goes on silently."""
    _put(line, sys.stdout)


def warn(message: str) -> None:
    """Prints a note on stderr: something went wrong, and was handled."""
    _put(f"note: {message}", sys.stderr)


def _put(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else the rest of the buffer would fail next


def stopping() -> None:
    """Answers a signal. Safe in a signal handler, where `print` and the bar are not: the handler may interrupt them."""
    show_cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""  # the bar hides the cursor
    with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe too
        os.write(2, show_cursor + b"stopping at the next step; a second signal ends this at once.\n")
