"""After a first SIGINT or SIGTERM, a training saves its state and stops. A second signal has the usual effect of the signal."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from charlm import progress
from charlm.hardware import processes


@contextlib.contextmanager
def caught() -> Iterator[list[int]]:
    """Yields a list to which the number of a received SIGINT or SIGTERM is appended.

    At the first signal, the handlers that were set before are restored. A second signal therefore ends a script at once. In a
    notebook, a second SIGINT raises KeyboardInterrupt and the notebook's kernel continues.

    Python allows signal handlers only in the main thread. In other threads the list stays empty.
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
    """Whether to stop at once because of a received signal.

    With several processes the result is always False, because all processes must stop at the same step. Instead, the metrics
    of each step tell all processes whether one of the processes has received a signal.
    """
    return bool(received) and processes.count() == 1
