"""Small forms of the faults of scripts/torture.py: each fault is tried a few times."""

import signal

import pytest
from faults import cache, configs, dataset, forks, inputs, options, sweep, two
from faults.runs import Result, Runs, finish, quick_compilation, wait_for_step

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name, value in quick_compilation().items():
        monkeypatch.setenv(name, value)
    return Runs(tmp_path, seed=1, kills=3, configs=4, trials=6)


def assert_survived(results: list[Result]) -> None:
    for result in results:
        assert result.failures == [], result
        assert result.tried, result


def test_an_exception_is_a_failure_of_one_fault_only(runs):
    def fault(runs, name):
        return Result(name, 1 // (name != "bad"), [])

    good, bad, other = runs.of_each(["good", "bad", "other"], fault)
    assert (good.failures, other.failures) == ([], [])
    assert "ZeroDivisionError" in bad.failures[0]


def test_a_forked_training_ends_like_one_with_its_own_start(runs):
    with forks.forking() as start:
        process = start(runs.train(runs.folder / "run", "stream", **{"train.steps": -1}))
        output, errors = finish(process)
        assert (process.returncode, output) == (2, "")
        assert errors.startswith("error: train.steps=-1: ")
        process = start(runs.train(runs.folder / "run", "stream"))
        wait_for_step(runs.folder / "run", 100, process)
        assert process.poll() is None
        process.kill()
        finish(process)
        assert process.returncode == -signal.SIGKILL
        process = start(runs.train(runs.folder / "run", "stream"))
        output, errors = finish(process)
        assert (process.returncode, errors) == (0, "")
        assert "resuming at step" in output


def test_other_cells_with_averages_and_regularisers_survive_kills(runs, monkeypatch):
    monkeypatch.setattr(options, "KINDS", ["stream_lstm", "stream_gru", "stream_mingru", "windows_gru", "documents_lstm"])
    monkeypatch.setattr(options, "EVALUATIONS", 1)
    results = list(options.results(runs))
    assert_survived(results[: len(options.KINDS)])
    assert not any(result.failures for result in results[len(options.KINDS) :])  # one evaluation may end before its kill


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
