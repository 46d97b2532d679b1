"""Streams and evaluation windows, against the text read by hand."""

import numpy as np
import pytest

from charlm.batches import Stream, evaluation_windows

IDS = np.arange(1000, dtype=np.uint16)  # every symbol its own position, so that a batch shows where it was taken


def test_lanes_are_contiguous_over_an_epoch_and_reset_at_its_start():
    stream = Stream(IDS, lanes=3, length=7, shift=False, seed=0)
    assert stream.steps_per_epoch == 999 // 21
    seen = [[] for _ in range(3)]
    for step in range(stream.steps_per_epoch):
        batch = stream.batch_at(step)
        assert batch.reset_B.tolist() == [step == 0] * 3
        np.testing.assert_array_equal(batch.targets_BS, batch.inputs_BT + 1)
        np.testing.assert_array_equal(batch.weights_BS, 1)
        assert (batch.inputs_BT.dtype, batch.weights_BS.dtype) == (np.int32, np.float32)
        for lane, row in zip(seen, batch.inputs_BT, strict=True):
            lane.extend(row)
    # The lanes one after another are the text.
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(stream.chars_per_epoch))
    assert stream.batch_at(stream.steps_per_epoch).reset_B.all()


def test_a_step_number_is_the_whole_data_state():
    stream = Stream(IDS, lanes=2, length=9, shift=True, seed=5)
    straight = [stream.batch_at(step) for step in range(120)]
    for step in (119, 3, 60, 3):
        for mine, others in zip(stream.batch_at(step), straight[step], strict=True):
            np.testing.assert_array_equal(mine, others)


def test_shift_leaves_no_char_out_for_good_and_depends_on_seed_and_epoch():
    stream = Stream(IDS[:100], lanes=3, length=11, shift=True, seed=1)  # 99 targets fill 3 steps of 33: none to spare
    assert stream.chars_per_epoch == 99
    stream = Stream(IDS[:95], lanes=3, length=11, shift=True, seed=1)  # 94 targets: 28 to spare
    firsts = [int(stream.batch_at(epoch * stream.steps_per_epoch).inputs_BT[0, 0]) for epoch in range(200)]
    assert (min(firsts), max(firsts)) == (0, 28)
    assert len(set(firsts)) == 29
    others = Stream(IDS[:95], lanes=3, length=11, shift=True, seed=2)
    assert firsts != [int(others.batch_at(epoch * others.steps_per_epoch).inputs_BT[0, 0]) for epoch in range(200)]


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
@pytest.mark.parametrize(("lanes", "burn_in"), [(1, 0), (1, 50), (4, 0), (4, 50), (7, 13)])
def test_evaluation_scores_every_char_but_the_first_once(length, lanes, burn_in):
    scored, before = [], None
    for number, batch in enumerate(evaluation_windows(IDS, length, lanes, burn_in)):
        assert batch.inputs_BT.shape[0] == lanes
        assert batch.reset_B.tolist() == [number == 0] * lanes
        np.testing.assert_array_equal(batch.targets_BS, batch.inputs_BT + 1)
        mask = batch.weights_BS > 0
        scored.extend(batch.targets_BS[mask])
        if before is not None:  # each lane goes on where its last window ended
            going_on = mask[:, 0]
            np.testing.assert_array_equal(batch.inputs_BT[going_on, 0], before[going_on] + 1)
        before = batch.inputs_BT[:, -1]
    assert sorted(scored) == list(range(1, 1000))


def test_burn_in_warms_the_state_of_all_lanes_but_the_first():
    (batch,) = evaluation_windows(IDS, 5000, lanes=4, burn_in=50)
    unscored = [np.argmax(row > 0) for row in batch.weights_BS]
    assert unscored == [0, 50, 50, 50]
    assert [int(row[0]) for row in batch.inputs_BT] == [0, 238, 476, 714]
