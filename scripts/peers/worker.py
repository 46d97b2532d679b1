"""The code that all programs in this folder use. Each program NAME_peer.py measures one library for scripts/benchmark.py.

A program is called as `python NAME_peer.py JOB`. JOB is a JSON object with task (train, evaluate or sample), cell (lstm, gru
or rnn), layers, hidden, embedding (0 for one-hot), batch, length, vocab and dtype. Some programs read more fields, such as
kernel. The program compiles, warms up and writes one JSON line to stdout, with the seconds of the first call of the measured
function. If JOB has the time of the start in `started`, the line also has the seconds from this time to the end of the first
call.

To evaluate is to compute the loss of a text. The text is read in `batch` lanes, `length` characters of each lane at once, and
the recurrent state is carried from window to window.

The program then reads lines from stdin. Each line is a number of seconds. For each line, the program measures for about this
time and writes a JSON object with chars_per_second, peak_rss_bytes, and peak_device_bytes if this is known.

This file does not import charlm, because the interpreters of the other libraries do not have charlm.
"""

import json
import sys
import time
from collections.abc import Callable


def job() -> dict:
    return json.loads(sys.argv[1])


def serve(run: Callable[[int], int], peak_device_bytes: Callable[[], int | None] = lambda: None, **details: object) -> None:
    """Warms up, and then measures `run` once for each line on stdin.

    Args:
      run: a function that does a given number of units of work and returns the number of processed characters. A unit is a
        training step, a window of an evaluation or a chunk of drawn text.
      peak_device_bytes: a function that returns the largest memory that the program has used on a GPU or TPU so far.
      details: values to add to the first line of output.
    """
    begin, started = time.perf_counter(), job().get("started")
    run(1)
    details["first_call_seconds"] = time.perf_counter() - begin
    if started is not None:
        details["seconds_to_first_step"] = time.time() - started
    run(1)  # some libraries compile again in the second unit of work, whose input is the output of the first unit
    begin = time.perf_counter()
    run(2)
    seconds_of_unit = (time.perf_counter() - begin) / 2
    _tell(ready=True, **details)
    for line in sys.stdin:
        units = max(1, round(float(line) / seconds_of_unit))
        run(-(-units // 5))  # fills the CPU caches again after other programs have used them
        begin = time.perf_counter()
        chars = run(units)
        seconds = time.perf_counter() - begin
        seconds_of_unit = seconds / units
        _tell(chars_per_second=chars / seconds, peak_rss_bytes=_peak_rss_bytes(), peak_device_bytes=peak_device_bytes())


def _tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _peak_rss_bytes() -> int:
    """Returns the largest resident memory of this program so far, in bytes.

    VmHWM counts only this program. getrusage also counts the memory of the parent process.
    """
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except OSError:  # this system is not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
