"""Kills a training with `kill -9`, resumes it, and compares it bit for bit with a training that was not killed.

If they differ, the part tells two possible reasons apart. Two unbroken trainings are compared with each other, because a device
may compute sums in an order that changes from run to run. On a GPU, everything is then repeated with XLA's deterministic
operations.
"""

import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Mapping

from faults import checks
from faults.runs import saved_step, wait_for_step

from charlm.errors import Failure
from device import programs
from device.reporting import Job, Report

STEPS = 400
OVERRIDES = {
    "batch.size": 32,
    "batch.length": 32,
    "model.layers": 2,
    "model.hidden": 64,
    "model.dropout": 0.2,
    "train.steps": STEPS,
    "train.log_every": 10,
    "train.eval_every": 100,
    "train.checkpoint_every": 40,
    "sample.length": 50,
}
ON_CPU = {"batch.size": 4, "batch.length": 16, "model.hidden": 24}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def run(job: Job, report: Report) -> None:
    text = programs.made_up_text(job.folder, 60_000)
    for kernel in ("xla", "cudnn") if job.is_cuda else ("xla",):
        if job.is_over():
            report.left_out(f"kernel {kernel}")
            continue
        overrides = OVERRIDES | (ON_CPU if job.is_cpu else {}) | {"corpus.path": text, "model.kernel": kernel}
        begin = time.monotonic()
        try:
            found, resumed_at = _killed_and_resumed(job, kernel, overrides, {})
        except (Failure, AssertionError) as error:
            report.wrong(f"resume, kernel {kernel}: {error}")
            continue
        figure = {"kernel": kernel, "steps": STEPS, "resumed_at": resumed_at, "different": found}
        if found:
            figure |= _reasons(job, kernel, overrides)
            explained = ", ".join(f"{name}: {value}" for name, value in figure.items() if name.startswith(("two", "with")))
            report.wrong(
                f"resume, kernel {kernel}: the resumed run differs from an unbroken run in {', '.join(found)} ({explained})"
            )
        report.figure(**figure, seconds=time.monotonic() - begin)


def _killed_and_resumed(job: Job, name: str, overrides: Mapping, environment: Mapping) -> tuple[list[str], int]:
    """Returns what differs between a resumed run and an unbroken run, and the step at which it was resumed."""
    unbroken, killed = (pathlib.Path(job.folder) / f"{name}_{what}" for what in ("unbroken", "killed"))
    programs.run(programs.train("tiny", unbroken, overrides), job.seconds_left(), environment)
    with subprocess.Popen(
        programs.train("tiny", killed, overrides),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for_step(killed, STEPS // 3, process, job.seconds_left())
        finally:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise Failure(f"the training ended with status {process.returncode} before it was killed")
    saved = saved_step(killed)
    programs.run(programs.train("tiny", killed, overrides), job.seconds_left(), environment)
    return checks.differences(killed, unbroken), saved


def _reasons(job: Job, kernel: str, overrides: Mapping) -> dict[str, str]:
    """Compares two unbroken runs, and on a GPU repeats the comparison with deterministic operations."""
    unbroken, again = (pathlib.Path(job.folder) / f"{kernel}_{what}" for what in ("unbroken", "again"))
    found = {}
    try:
        programs.run(programs.train("tiny", again, overrides), job.seconds_left())
        found["two unbroken runs"] = ", ".join(checks.differences(again, unbroken)) or "equal"
        if job.platform == "gpu":
            flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()}
            different, _ = _killed_and_resumed(job, f"{kernel}_deterministic", overrides, flags)
            found[f"with {DETERMINISTIC}"] = ", ".join(different) or "equal"
    except (Failure, AssertionError) as error:
        found["with an error"] = str(error)
    return found
