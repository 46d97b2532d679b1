"""What a person sees while a model trains: a bar on a terminal, one plain line for each row of metrics elsewhere."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from charlm import measures


class Reporter:
    """Shows where a training stands; a context manager, so that the bar is gone before anything else is printed."""

    def __init__(self, total_steps: int, first_step: int):
        self._total = total_steps
        self._bar = None
        console = Console()
        if console.is_terminal:
            columns = (BarColumn(bar_width=6), TextColumn("{task.fields[text]}"))  # all of it fits 80 characters
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, text="compiling …")

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, nats: float, chars_per_second: float, seconds_left: float) -> None:
        """Moves the bar; does nothing elsewhere."""
        if self._bar:
            figures = f"{nats:.4f} nats, perplexity {measures.perplexity(nats):.2f}"
            text = f"{step}/{self._total}  {figures}  {chars_per_second:,.0f} chars/s  {duration(seconds_left)} left"
            self._bar.update(self._task, completed=step, text=text)

    def row(self, row: dict, seconds_left: float = 0.0, note: str = "") -> None:
        """Prints a row of metrics; on a terminal, where the bar shows the training loss, only those of evaluations."""
        if row["split"] != "train":
            self.say(f"step {row['step']:>6}/{self._total}  {row['split']} {_nats(row['nats'])}{note}")
        elif not self._bar:
            self.say(
                f"step {row['step']:>6}/{self._total}  epoch {row['epoch']:.2f}  train {_nats(row['nats'])}  "
                f"lr {row['learning_rate']:.1e}  grad {row['grad_norm']:.2f}  "
                f"{row['chars_per_second']:,.0f} chars/s  {duration(seconds_left)} left"
            )

    def say(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            tell(line)


@contextlib.contextmanager
def megabytes(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function to call with each number of bytes done; shows a bar on a terminal, one line elsewhere, both on stderr.

    Args:
      size: bytes in all, as far as is known.
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
    """Seconds as a person reads them: 42 s, 3 min 05 s, 2 h 07 min."""
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
    """One line on stdout, for as long as somebody reads it: a training does not end because a pipe does, or a disk of logs."""
    _put(line, sys.stdout)


def warn(message: str) -> None:
    """One line on stderr for what went wrong and was mended."""
    _put(f"note: {message}", sys.stderr)


def _put(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is still buffered would be the next to fail


def stopping() -> None:
    """What a signal is answered with. Safe in its handler, where print and the bar are not: they may be at work below it."""
    show_cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""  # which the bar hides, and only the end of it shows again
    with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe too
        os.write(2, show_cursor + b"stopping at the next step; a second signal ends this at once.\n")


def _nats(nats: float) -> str:
    return f"{nats:.4f} nats (perplexity {measures.perplexity(nats):.4f})"
