"""Starts each part in its own process, reads its reports, and kills it when its time is up. Does not import JAX."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from charlm.errors import Failure
from device.parts import PARTS

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROBE_SECONDS = 120  # the first start of CUDA may be slow
MARK = "CHARLM_CHECK_DEVICE"  # a variable in the environment of all processes of a part


class Outcome(NamedTuple):
    """The result of a part.

    Attributes:
      status: right, wrong or skipped.
      seconds: the time that the part took.
      reason: why the part was skipped.
      wrong: a line for everything that is wrong.
      left_out: the measurements for which there was no time.
      figures: the measured values.
    """

    part: str
    status: str
    seconds: float
    reason: str
    wrong: list[str]
    left_out: list[str]
    figures: list[dict[str, Any]]


def environment(scratch: pathlib.Path) -> dict[str, str]:
    """The environment variables of all processes.

    - Processes find the package of this checkout.
    - They share compiled programs. On a GPU, XLA chooses the fastest of several algorithms when it compiles, so a program that
      is compiled again may round in another way.
    - A process takes only the GPU memory that it needs, so that one process can start before another one has ended.
    """
    path = os.pathsep.join(filter(None, [os.fspath(ROOT), os.environ.get("PYTHONPATH")]))
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": os.fspath(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return defaults | os.environ | {"PYTHONPATH": path}


def probe(environment: Mapping[str, str]) -> dict[str, Any]:
    """The devices that JAX uses; see `probe.py`. Raises a Failure if JAX can't start."""
    command = [sys.executable, os.fspath(HERE / "probe.py")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"JAX did not find its devices within {PROBE_SECONDS} s.") from error
    if done.returncode:
        raise Failure(f"JAX can't be used here: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def command(part: str, job: Mapping[str, Any]) -> list[str]:
    """The command that runs a part."""
    return [sys.executable, os.fspath(HERE / "part.py"), part, json.dumps(job)]


def budget(part: str, later: Sequence[str], seconds_left: float) -> float:
    """The seconds that a part may take, if the parts `later` follow it."""
    shares = [PARTS[name].share for name in (part, *later)]
    return max(0.0, seconds_left) * shares[0] / sum(shares)


def run(part: str, command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Outcome:
    """Runs the command of a part, and kills it and all processes that it has started after some seconds."""
    begin, mark, timed_out = time.monotonic(), uuid.uuid4().hex, threading.Event()
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env={**environment, MARK: mark}
        )

        def stop() -> None:
            if process.poll() is None:
                timed_out.set()
                _kill(process, mark)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # libraries may print other lines
                    if line.startswith("{"):
                        reports.append(json.loads(line))
            status = process.wait()
        finally:
            timer.cancel()
            _kill(process, mark)
            process.stdout.close()
        errors.seek(0)
        last_line = _last_line(errors.read())
    collected = {
        key: [report[key] for report in reports if key in report] for key in ("figure", "wrong", "left_out", "skipped")
    }
    wrong = collected["wrong"]
    if timed_out.is_set():
        wrong.append(f"{part}: no end within {seconds:.0f} s")
    elif status:
        wrong.append(f"{part}: ended with status {status}: {last_line}")
    reason = "; ".join(collected["skipped"])
    return Outcome(
        part,
        "wrong" if wrong else "skipped" if reason else "right",
        round(time.monotonic() - begin, 1),
        reason,
        wrong,
        collected["left_out"],
        collected["figure"],
    )


def _kill(process: subprocess.Popen, mark: str) -> None:
    """Kills a process, and all processes with this mark in their environment. A sweep starts trials in their own sessions."""
    process.kill()
    process.wait()
    for _ in range(10):  # a process may start another one at the moment at which it is killed
        alive = _marked(mark)
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """The processes whose environment has the mark. Only Linux tells them."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _last_line(text: str) -> str:
    """The last line that names an error, or else the last line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()] or ["it printed no error"]
    named = [line for line in lines if "rror" in line]
    return (named or lines)[-1][:300]
