"""What the programs of this folder share. Each is one implementation, which scripts/benchmark.py measures on one job.

They are called as `python NAME.py JOB`. JOB is a JSON object: task (train, sample), layers, hidden, embedding (0: one-hot),
batch, length, vocab, dtype. A program compiles, warms up and writes a line. For each line `SECONDS` on stdin it measures for
about that long and writes {"chars_per_second", "peak_rss_bytes"}. Nothing here imports charlm: other interpreters lack it.
"""

import json
import sys
import time
from collections.abc import Callable


def job() -> dict:
    return json.loads(sys.argv[1])


def serve(run: Callable[[int], int], **said: object) -> None:
    """Measures `run`. It takes a number of units of work (steps, chunks of text), does them, and returns the number of
    characters that it processed."""
    run(2)  # compiles; some compile again when their output comes back as input
    begin = time.perf_counter()
    run(2)
    seconds_of_unit = (time.perf_counter() - begin) / 2
    _tell(ready=True, **said)
    for line in sys.stdin:
        units = max(1, round(float(line) / seconds_of_unit))
        run(-(-units // 5))  # fills the CPU caches again after the other programs
        begin = time.perf_counter()
        chars = run(units)
        seconds = time.perf_counter() - begin
        seconds_of_unit = seconds / units
        _tell(chars_per_second=chars / seconds, peak_rss_bytes=_peak_rss_bytes())


def _tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _peak_rss_bytes() -> int:
    """The largest resident memory of this program so far. VmHWM starts at zero with it; getrusage includes its parent's."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:  # no Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
