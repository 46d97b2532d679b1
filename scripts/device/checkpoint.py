"""Writes checkpoints on the device and on the CPU, and uses each of them on the other one.

Both trainings have the same seed and no dropout, so their losses may differ only by rounding. Each run is then scored on the
device and on the CPU, and trained on where it was not trained before.
"""

import pathlib
import time

from charlm.errors import Failure
from device import programs
from device.reporting import Job, Report, difference, rows_difference

STEPS = 60
OVERRIDES = {
    "batch.size": 32,
    "batch.length": 32,
    "model.layers": 2,
    "model.hidden": 64,
    "model.precision": "float32",
    "train.steps": STEPS,
    "train.log_every": 10,
    "train.eval_every": 30,
    "sample.length": 0,
}
ON_CPU = {"batch.size": 4, "batch.length": 16, "model.hidden": 24}
# The mean of thousands of characters in float32. The losses of two trainings differ more, because the first difference grows.
ALLOWED_NATS = 2e-5
ALLOWED_ROWS = 1e-3


def run(job: Job, report: Report) -> None:
    sizes = ON_CPU if job.is_cpu else {}
    overrides = OVERRIDES | sizes | {"corpus.path": programs.made_up_text(job.folder, 60_000)}
    platforms = {"the device": {}, "the CPU": programs.ON_CPU}
    trainings = [("the device", "xla"), ("the CPU", "xla"), *([("the device", "cudnn")] if job.is_cuda else [])]
    rows_of = {}
    for trained_on, kernel in trainings:
        other = next(name for name in platforms if name != trained_on)
        where = f"checkpoint of {trained_on}, kernel {kernel}"
        if job.is_over():
            report.left_out(where)
            continue
        workdir = pathlib.Path(job.folder) / f"{trained_on.split()[-1]}_{kernel}"
        begin = time.monotonic()
        try:
            command = programs.train("tiny", workdir, overrides | {"model.kernel": kernel})
            programs.run(command, job.seconds_left(), platforms[trained_on])
            rows_of.setdefault(trained_on, programs.rows(workdir))
            nats = {
                name: programs.evaluate(workdir, job.seconds_left(), environment)["nats"]
                for name, environment in platforms.items()
            }
            longer = {"model.kernel": "xla", "train.steps": STEPS + 20}
            command = programs.train("tiny", workdir, overrides | longer)
            programs.run([*command, "--extend"], job.seconds_left(), platforms[other])
            after = programs.rows(workdir)[-1]
        except Failure as error:
            report.wrong(f"{where}: {error}")
            continue
        error = abs(nats["the device"] - nats["the CPU"])
        figure = {
            "trained_on": trained_on,
            "kernel": kernel,
            "nats_on_device": nats["the device"],
            "nats_on_cpu": nats["the CPU"],
            "difference": error,
            "nats_after_more_steps_elsewhere": after["nats"],
            "seconds": time.monotonic() - begin,
        }
        difference(report, where, "the loss on the device and on the CPU", error, ALLOWED_NATS)
        if (after["step"], after["split"]) != (STEPS + 20, "validation") or not after["nats"] < nats[trained_on] + 0.1:
            report.wrong(f"{where}: after more steps on {other}, the last row is {after}")
        report.figure(**figure)
    if len(rows_of) == 2:
        error = rows_difference(*rows_of.values())
        report.figure(rows_difference=error)
        difference(report, "checkpoint", "the loss of the same training on the device and on the CPU", error, ALLOWED_ROWS)
