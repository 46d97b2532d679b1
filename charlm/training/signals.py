"""SIGINT and SIGTERM ask a training to save and end; a second signal ends the process at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from charlm import progress
from charlm.hardware import processes


@contextlib.contextmanager
def caught() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM append their number.

    Outside the main thread, where Python allows no signal handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        progress.stopping()
        for signal_number in before:
            signal.signal(signal_number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask_to_stop(received: list[int]) -> bool:
    """Whether to stop at once. Several processes stop only when the metrics of a step have told all of them."""
    return bool(received) and processes.count() == 1
