"""Tests the event files of TensorBoard. The files are parsed without tensorboardX's reader."""

import pytest
from conftest import TINY
from tensorboardX.proto.event_pb2 import Event, SessionLog

from charlm.config import load
from charlm.rundir import events
from charlm.rundir.run import Run
from charlm.training import train


def read_events(file) -> list[Event]:
    raw, found = file.read_bytes(), []
    while raw:  # a TFRecord is 8 bytes of length, 4 bytes of checksum, the event, and 4 bytes of checksum
        size = int.from_bytes(raw[:8], "little")
        found.append(Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    return found


def values_of(file) -> dict:
    """A dict that maps each (tag, step) to its value."""
    return {(value.tag, event.step): value for event in read_events(file) for value in event.summary.value}


def text_of(value) -> str:
    """The text that TensorBoard shows for a value. Four spaces before a line make Markdown show it unchanged."""
    assert value.metadata.plugin_data.plugin_name == "text"
    lines = value.tensor.string_val[0].decode().split("\n")
    assert all(line.startswith("    ") for line in lines)
    return "\n".join(line[4:] for line in lines)


def test_a_training_writes_its_metrics_samples_and_config(small, tmp_path):
    workdir = tmp_path / "run"
    assert train.train(load.load(TINY, small | {"train.steps": 10}), workdir) == 0
    (file,) = workdir.rglob("*tfevents*")
    assert file.parent == workdir  # TensorBoard names a run after the folder of its event files
    seen = values_of(file)
    for row in Run(workdir).rows():
        assert seen[f"{row['split']}/nats", row["step"]].simple_value == pytest.approx(row["nats"], rel=1e-6)
    assert any(tag.startswith("_hparams_") for tag, _ in seen)
    samples = {int(sample.stem): sample.read_text(encoding="utf-8") for sample in (workdir / "samples").iterdir()}
    assert sorted(samples) == [4, 8, 10]
    assert {step: text_of(value) for (tag, step), value in seen.items() if tag == "sample/text_summary"} == samples
    # In all rows, also in validation rows, the field `seconds` counts the time of the whole run up to this row.
    rows = Run(workdir).rows()
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    before, after = (
        {row["step"]: row["seconds"] for row in rows if row["split"] == split} for split in ("train_mean", "validation")
    )
    assert before.keys() == after.keys() == samples.keys()
    assert all(before[step] < after[step] for step in before)


def test_a_resumed_run_of_an_older_version_keeps_its_folder_of_event_files(tmp_path):
    for name, folder in (("new", "."), ("old", "tensorboard")):
        (tmp_path / name / folder).mkdir(parents=True)
        for step in (0, 40):
            with events.opened(tmp_path / name, step, {"seed": 1, "corpus.split": (0.9, 0.1)}) as log:
                log.row({"step": step + 10, "split": "validation", "nats": 1.5, "bits": float("inf")})
                log.sample(step + 10, "# a\r\n<b>\n\n- c\n")
        files = sorted((tmp_path / name).rglob("*tfevents*"), key=lambda file: file.stat().st_mtime_ns)
        assert [file.parent for file in files] == [tmp_path / name / folder] * 2
        for file, step in zip(files, (0, 40), strict=True):
            # Training begins again at `step`. The START event makes TensorBoard hide the events that an earlier file has for
            # the steps from step + 1 on.
            starts = [event.step for event in read_events(file) if event.session_log.status == SessionLog.START]
            assert starts == [step + 1]
            seen = values_of(file)
            assert seen["validation/nats", step + 10].simple_value == 1.5
            assert ("validation/bits", step + 10) not in seen
            assert text_of(seen["sample/text_summary", step + 10]) == "# a\n<b>\n\n- c\n"
