"""What the programs of this folder share: each is one implementation measured on one job by scripts/benchmark.py.

Called as `python NAME.py JOB`, with JOB a JSON object: task (train, sample), layers, hidden, embedding (0: one-hot), batch,
length, vocab, dtype. It compiles and warms up, writes a line, and then for each line `SECONDS` on stdin measures for about that
long and writes {"chars_per_second", "peak_rss_bytes"}. Nothing here is imported from charlm, whose package other interpreters
have not.
"""

import json
import sys
import time
from collections.abc import Callable


def job() -> dict:
    return json.loads(sys.argv[1])


def serve(run: Callable[[int], int], **said: object) -> None:
    """Measures `run`: called with a number of units of work (steps, chunks of text), it returns once these are done, with the
    characters that were processed."""
    run(2)  # compiles, for some once more when its own output comes back as input
    begin = time.perf_counter()
    run(2)
    seconds_of_unit = (time.perf_counter() - begin) / 2
    _tell(ready=True, **said)
    for line in sys.stdin:
        units = max(1, round(float(line) / seconds_of_unit))
        run(-(-units // 5))  # brings back into the caches what the programs measured in between have driven out
        begin = time.perf_counter()
        chars = run(units)
        seconds = time.perf_counter() - begin
        seconds_of_unit = seconds / units
        _tell(chars_per_second=chars / seconds, peak_rss_bytes=_peak_rss_bytes())


def _tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _peak_rss_bytes() -> int:
    """The largest resident memory so far of this program. VmHWM begins at zero with it; getrusage counts its parent's too."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:  # no Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
