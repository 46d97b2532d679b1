"""SIGINT and SIGTERM ask a training to save and end; a second signal acts as if no training ran."""

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

    After the first signal the previous handlers are back. So a second one ends the script at once, and in a notebook it raises
    KeyboardInterrupt without ending the kernel. Outside the main thread, where Python allows no signal handlers, the list stays
    empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        progress.stopping()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()


def ask_to_stop(received: list[int]) -> bool:
    """Whether to stop at once. Several processes stop only when the metrics of a step have told all of them."""
    return bool(received) and processes.count() == 1
