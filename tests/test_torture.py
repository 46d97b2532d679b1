"""Small forms of the faults of scripts/torture.py: each fault is tried a few times."""

import pytest
from faults import cache, configs, dataset, inputs, options, sweep, two
from faults.runs import Result, Runs

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path, seed=1, kills=3, configs=4, trials=6)


def assert_survived(results: list[Result]) -> None:
    for result in results:
        assert result.failures == [], result
        assert result.tried, result


def test_other_cells_with_averages_and_regularisers_survive_kills(runs, monkeypatch):
    monkeypatch.setattr(options, "KINDS", ["stream_lstm", "stream_gru", "stream_mingru", "windows_gru", "documents_lstm"])
    monkeypatch.setattr(options, "EVALUATIONS", 1)
    assert_survived([result for result in options.results(runs) if not result.fault.startswith("kill -9 during evaluate")])


def test_random_configs_survive_kills(runs):
    assert_survived(configs.results(runs))


def test_a_sweep_survives_kills_of_its_trainings_and_of_its_launcher(runs, monkeypatch):
    monkeypatch.setattr(sweep, "EARLY", 2)
    assert_survived(sweep.results(runs))


def test_damaged_compiled_programs_are_replaced(runs, monkeypatch):
    monkeypatch.setattr(cache, "TRIES", 2)
    monkeypatch.setattr(cache, "KILLED", 1)
    assert_survived(cache.results(runs))


def test_a_damaged_dataset_is_refused(runs, monkeypatch):
    monkeypatch.setattr(dataset, "HARMS", ("flipped",))
    assert_survived(dataset.results(runs))


def test_a_pipe_to_which_no_program_writes_is_refused(runs):
    assert_survived([inputs.pipes(runs)])


def test_a_second_training_in_a_directory_is_refused(runs, monkeypatch):
    monkeypatch.setattr(two, "TRIES", 1)
    monkeypatch.setattr(two, "PAIRS", 1)
    assert_survived(two.results(runs))
