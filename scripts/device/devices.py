"""Trains with one device and with all devices, and compares the losses. On a CPU, each core can be a device."""

import pathlib

from charlm.errors import Failure
from charlm.progress import counted
from device import programs
from device.reporting import Job, Report, difference, rows_difference

OVERRIDES = {
    "batch.size": 64,
    "batch.length": 32,
    "model.layers": 2,
    "model.hidden": 64,
    "model.dropout": 0.2,
    "model.precision": "float32",
    "train.steps": 60,
    "train.log_every": 10,
    "train.eval_every": 30,
    "sample.length": 0,
}
ON_CPU = {"model.hidden": 24, "batch.length": 16}
ALLOWED = 1e-4  # sums of the devices are added in another order; on 2 CPU devices, the difference is below 2e-6


def run(job: Job, report: Report) -> None:
    available = job.device["cores"] if job.is_cpu else job.device["count"]
    if available == 1:
        report.skip("this machine has one device")
        return
    overrides = OVERRIDES | (ON_CPU if job.is_cpu else {}) | {"corpus.path": programs.made_up_text(job.folder, 60_000)}
    most = max(number for number in (2, 4, 8) if number <= available)
    expected = None
    for number in sorted({1, 2, most}):
        if job.is_over():
            report.left_out(counted(number, "device"))
            continue
        workdir = pathlib.Path(job.folder) / str(number)
        try:
            programs.run(programs.train("tiny", workdir, overrides | {"devices": number}), job.seconds_left())
        except Failure as error:
            report.wrong(f"{counted(number, 'device')}: {error}")
            continue
        rows = programs.rows(workdir)
        expected = expected or rows
        error = rows_difference(rows, expected)
        report.figure(devices=number, rows_difference=error, chars_per_second=programs.chars_per_second(workdir))
        difference(report, counted(number, "device"), "the loss", error, ALLOWED)
