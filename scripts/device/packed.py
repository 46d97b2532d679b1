"""Trains 16 trials as one program, trains some of them alone, and compares their losses and their speeds."""

import json
import pathlib
import shutil
import time

from faults.runs import as_flags

from charlm.errors import Failure
from device import programs
from device.reporting import Job, Report, difference, rows_difference

TRIALS = 16
ALONE = (0, 15)  # the trials that are also trained alone
# configs/tiny.py has one layer of 32 units.
SIZES = {"model.hidden": 128, "model.embedding": 64, "batch.size": 32, "batch.length": 64, "train.steps": 100}
SIZES_ON_CPU = {"model.hidden": 16, "train.steps": 40}
OVERRIDES = {
    "model.precision": "float32",
    "model.dropout": 0.2,
    "train.log_every": 10,
    "train.eval_every": 20,
    "train.checkpoint_every": 0,
    "sample.length": 0,
}
CONFIG = """
from charlm.sweeps.sweep import product
from configs import tiny

get_config = tiny.get_config


def sweep():
    return product({"optim.learning_rate": [3e-3, 5e-3, 1e-2, 2e-2], "seed": [0, 1, 2, 3]})
"""
# The products of a pack add in another order than those of a single trial. On CPUs the losses of 12 steps differ by less than
# 1e-4 nats (tests/training/test_packing.py). The difference grows from step to step.
ALLOWED = 1e-3


def run(job: Job, report: Report) -> None:
    overrides = OVERRIDES | (SIZES_ON_CPU if job.is_cpu else SIZES)
    overrides["corpus.path"] = programs.made_up_text(job.folder, 60_000)
    folder = pathlib.Path(job.folder)
    config, root = folder / "packed.py", folder / "packed"
    config.write_text(CONFIG, encoding="utf-8")
    flags = (f"--config={config}", f"--root={root}", "--launcher=packed", f"--pack={TRIALS}", *as_flags(overrides))
    begin = time.monotonic()
    try:
        programs.run(programs.command("sweep", *flags), job.seconds_left())
        seconds = time.monotonic() - begin
        trials = json.loads((root / "sweep.json").read_text(encoding="utf-8"))["trials"]
        names = list(trials)
        alone, errors, wall = [], [], []
        for number in ALONE:
            single = folder / f"alone_{number}"
            begin = time.monotonic()
            programs.run(programs.train("tiny", single, overrides | trials[names[number]]), job.seconds_left())
            wall.append(time.monotonic() - begin)
            alone.append(programs.chars_per_second(single))
            errors.append(rows_difference(programs.rows(root / names[number]), programs.rows(single)))
    except Failure as error:
        report.wrong(f"packed: {error}")
        return
    packed = TRIALS * programs.chars_per_second(root / names[0])
    report.figure(
        trials=len(names),
        hidden=overrides["model.hidden"],
        steps=overrides["train.steps"],
        rows_difference=max(errors),
        chars_per_second=packed,
        chars_per_second_alone=max(alone),
        faster=packed / max(alone),
        seconds=seconds,
        seconds_of_one_alone=min(wall),
    )
    difference(report, f"packed, {TRIALS} trials", "the loss of a trial in a pack and alone", max(errors), ALLOWED)
    if len(names) != TRIALS:
        report.wrong(f"packed: the sweep has {len(names)} trials instead of {TRIALS}")
    shutil.rmtree(root)
