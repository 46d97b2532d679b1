"""Trains a recipe from beginning to end, and compares its loss with the loss that was recorded on a CPU.

On an accelerator this is configs/tiny_shakespeare.py. On a CPU it would take too long, so configs/quickstart.py is trained.
"""

import hashlib
import json
import pathlib
import time

from charlm.data import sources
from charlm.errors import Failure, UserError
from device import programs
from device.reporting import Job, Report, difference

# The validation loss in nats/char, and by how much it may differ. The recorded runs of a recipe with seeds 0 to 2 differ from
# their mean by up to 0.0007 nats with tiny_shakespeare and 0.0087 nats with quickstart (configs/README.md).
RECORDED = {"tiny_shakespeare": (1.4023, 0.01), "quickstart": (1.502, 0.02)}


def text_file(folder: str) -> pathlib.Path:
    """A file with tiny Shakespeare, or with a made-up text if tiny Shakespeare is not on this machine and can't be fetched."""
    file = pathlib.Path(folder) / "tiny_shakespeare.txt"
    try:
        text, _ = sources.named("tiny_shakespeare", sources.data_dir_of(None))
    except (UserError, ImportError):  # without a network, or without tensorflow-datasets
        return programs.made_up_text(folder, 300_000)
    file.write_text(text, encoding="utf-8", newline="")
    return file


def run(job: Job, report: Report) -> None:
    recipe = "quickstart" if job.is_cpu else "tiny_shakespeare"
    file = pathlib.Path(job.text) if job.text else text_file(job.folder)
    workdir, begin = pathlib.Path(job.folder) / recipe, time.monotonic()
    try:
        programs.run(programs.train(recipe, workdir, {"corpus.path": file}), job.seconds_left())
        seconds = time.monotonic() - begin
        status = json.loads((workdir / "status.json").read_text(encoding="utf-8"))
        scored = programs.evaluate(workdir, job.seconds_left())
    except Failure as error:
        report.wrong(f"training of {recipe}: {error}")
        return
    recorded, allowed = RECORDED[recipe]
    is_tiny_shakespeare = hashlib.sha256(file.read_bytes()).hexdigest() == sources.SOURCES["tiny_shakespeare"].sha256
    report.figure(
        recipe=recipe,
        text="tiny Shakespeare" if is_tiny_shakespeare else file.name,
        seconds=seconds,
        steps=status["step"],
        chars_per_second=programs.chars_per_second(workdir),
        nats=scored["nats"],
        bits=scored["bits"],
        recorded_nats=recorded if is_tiny_shakespeare else None,
    )
    if is_tiny_shakespeare:
        error = abs(scored["nats"] - recorded)
        difference(report, f"training of {recipe}", "the validation loss in nats", error, allowed)
    elif not scored["nats"] < 3:
        report.wrong(f"training of {recipe}: the validation loss is {scored['nats']:.2f} nats")
