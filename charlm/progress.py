"""Prints the progress of a program. A terminal shows a bar. Other outputs get plain lines."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from charlm import measures

LINE_SECONDS = 30.0  # without a terminal, the time between two lines of progress


class Reporter:
    """Shows the progress of a training: a bar on a terminal, and one line for each printed row of metrics.

    Use the reporter as a context manager. When the context ends, the bar is removed from the terminal.

    Args:
      total_steps: the length of the training.
      first_step: the step at which the training begins or resumes.
      all_rows: whether the rows of the split `train` are printed even if a terminal shows the bar.
    """

    def __init__(self, total_steps: int, first_step: int, all_rows: bool = False):
        self._total, self._all_rows = total_steps, all_rows
        self._bar = None
        console = Console()
        if console.is_terminal:
            columns = (BarColumn(bar_width=6), TextColumn("{task.fields[text]}"))  # at most 80 characters wide
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
        """Updates the bar, if a bar is shown."""
        if self._bar:
            figures = f"{nats:.4f} nats, perplexity {measures.perplexity(nats):.2f}"
            text = f"{step}/{self._total}  {figures}  {chars_per_second:,.0f} chars/s  {duration(seconds_left)} left"
            self._bar.update(self._task, completed=step, text=text)

    def row(self, row: dict, seconds_left: float = 0.0, note: str = "") -> None:
        """Prints a row of metrics. If a progress bar is shown, a row of the split `train` is printed only with `all_rows`,
        because the bar already shows the training loss.
        """
        step = f"step {row['step']:>{len(str(self._total))}}/{self._total}"
        nats = f"{row['split']} {row['nats']:.4f} nats"
        if row["split"] != "train":
            unknown = f", {row['unknown']:,} of {counted(row['chars'], 'char')} <unk>" if "unknown" in row else ""
            self.say(f"{step}  {nats} (perplexity {measures.perplexity(row['nats']):.4f}{unknown}){note}")
        elif self._all_rows or not self._bar:
            self.say(
                f"{step}  epoch {row['epoch']:.2f}  {nats}  lr {row['learning_rate']:.1e}  grad {row['grad_norm']:.2f}  "
                f"{row['chars_per_second']:,.0f} chars/s  {duration(seconds_left)} left"
            )

    def say(self, line: str) -> None:
        """Prints a line. If a bar is shown, the line is above the bar."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            tell(line)


@contextlib.contextmanager
def megabytes(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how much of the input has been read. A terminal shows a bar. Other outputs get one line at the start.

    Yields a function. The caller calls this function after each read, with the number of bytes that were read.

    Args:
      what: description of the work.
      size: expected total number of bytes.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        warn(f"{what}, {size / 1e6:,.0f} MB to read.")
        yield lambda number: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=size)
        yield lambda number: bar.advance(task, number)


@contextlib.contextmanager
def characters(what: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Shows on stderr how much of a text has been read, and its mean loss. A terminal shows a bar.

    Other outputs get one line at the start, and one line every LINE_SECONDS.

    Yields a function. The caller calls this function after each part of the text, with the number of characters of the part
    and the sum of their nats.

    Args:
      what: description of the work.
      total: the number of characters to read.
    """
    console, begin, chars, nats = Console(stderr=True), time.monotonic(), 0, 0.0
    bar = task = None
    last_line = begin
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=6), TextColumn("{task.fields[text]}"))
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task(what, total=total, text="compiling …")
    else:
        _put(f"{what}: {counted(total, 'char')} …", sys.stderr)

    def advance(new_chars: int, new_nats: float) -> None:
        nonlocal chars, nats, last_line
        chars, nats, now = chars + new_chars, nats + new_nats, time.monotonic()
        left = duration((now - begin) / chars * (total - chars))
        if bar is not None and task is not None:
            bar.update(task, completed=chars, text=f"{nats / chars:.4f} nats, {left} left")
        elif now - last_line >= LINE_SECONDS:
            last_line = now
            _put(f"{what}: {chars:,} of {total:,} chars, {nats / chars:.4f} nats, {left} left", sys.stderr)

    with bar if bar is not None else contextlib.nullcontext():
        yield advance


def duration(seconds: float) -> str:
    """Formats seconds like `42 s`, `3 min 05 s` or `2 h 07 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def counted(number: int, noun: str) -> str:
    """Formats a number with a noun, like `1 step` or `2,000 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def tell(line: str) -> None:
    """Prints a line on stdout. If stdout can't be written, the program continues and prints nothing more on stdout."""
    _put(line, sys.stdout)


def warn(message: str) -> None:
    """Prints a note on stderr about a problem that does not stop the program."""
    _put(f"note: {message}", sys.stderr)


def _put(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            # From now on, the stream writes to /dev/null. Otherwise Python would try to write the rest of the buffer again and
            # fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def stopping() -> None:
    """Tells the user that the program will stop because of a signal.

    A signal handler can call this function. A signal handler must not use `print` or the bar, because the signal may have
    interrupted a call of `print` or of the bar.
    """
    show_cursor = b"\x1b[?25h" if sys.stderr.isatty() else b""  # the bar hides the cursor
    with contextlib.suppress(OSError):  # if stderr is a pipe, Ctrl-C may have ended the process that reads the pipe
        os.write(2, show_cursor + b"stopping at the next step; a second signal ends the program at once.\n")
