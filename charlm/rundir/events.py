"""Writes the event files that TensorBoard reads: the scalars of the metrics, the config, and the samples.

TensorBoard names a run after the folder of its event files, so these files are directly in the run directory.
"""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

SCALARS = {
    "nats",
    "bits",
    "perplexity",
    "bits_per_byte",
    "learning_rate",
    "grad_norm",
    "chars_per_second",
}


class Events:
    """An event file. The function `opened` opens it and closes it."""

    def __init__(self, workdir: pathlib.Path):
        # Runs of older versions of charlm have their event files in the folder `tensorboard`. If such a run is resumed, the new
        # event file is put there too, so that all events of the run stay together.
        old = workdir / "tensorboard"
        prefix = (old if old.is_dir() else workdir) / "events"
        # SummaryWriter is not used, because its thread hangs when the disk is full.
        self._writer = event_file_writer.EventsWriter(os.fspath(prefix), f".{os.getpid()}.{time.time_ns()}")

    def start(self, step: int, config: Mapping[str, object]) -> None:
        """Writes the step at which the training begins or resumes. Also writes the config, for the tab HParams."""
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
        for hparams_summary in summary.hparams(plain, {"validation/nats": 0.0, "validation/perplexity": 0.0}):
            self._write(summary=hparams_summary)

    def row(self, row: Mapping[str, Any]) -> None:
        """Writes the scalars of a row of metrics.jsonl."""
        for name in SCALARS & row.keys():
            if math.isfinite(row[name]):
                self._write(summary=summary.scalar(f"{row['split']}/{name}", row[name]), step=row["step"])
        if row["split"] != "train":
            self._writer.flush()

    def sample(self, step: int, text: str) -> None:
        """Writes a sampled text, which TensorBoard shows in its tab Text.

        This tab reads the text as Markdown. Four spaces before each line make Markdown show the text unchanged, like code.
        """
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._write(summary=summary.text("sample", "\n".join(f"    {line}" for line in lines)), step=step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file.

        An OSError is ignored, because the files of the run have the same data. If the disk is full, writing these files has
        already raised an error.
        """
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **content))


@contextlib.contextmanager
def opened(workdir: pathlib.Path, step: int, config: Mapping[str, object]) -> Iterator[Events]:
    """Opens a new event file in a run directory.

    Args:
      step: the step at which the training begins or resumes. A resumed training goes back to its last checkpoint. Before, it
        may have written events of later steps to other files. TensorBoard hides these events.
      config: dotted key → value.
    """
    events = Events(workdir)
    try:
        events.start(step, config)
        yield events
    finally:
        events.close()
