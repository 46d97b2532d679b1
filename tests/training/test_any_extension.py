"""Any change with --extend is refused without a changed byte, or it is made and the run is trained to its end."""

import json
import shutil

import pytest
from conftest import TINY, slow
from hypothesis import example, given, settings, strategies

from charlm.config import load
from charlm.errors import UserError
from charlm.rundir.run import Run
from charlm.training import train

CHANGES = [
    ("train.steps", 5),
    ("train.steps", 9),
    ("train.steps", 10),
    ("train.epochs", 0.3),
    ("train.log_every", 3),
    ("train.eval_every", 3),
    ("train.checkpoint_every", 2),
    ("train.patience", 1),
    ("train.best", "train"),
    ("train.init_from", "/no/such/run"),
    ("optim.learning_rate", 0.5),
    ("optim.schedule", "step"),
    ("optim.warmup_steps", 2),
    ("optim.decay_after", 1.0),
    ("optim.name", "sgd"),
    ("eval.lanes", 2),
    ("eval.burn_in", 3),
    ("sample.length", 5),
    ("sample.top_k", 3),
    ("sample.prompt", "a"),
    ("sample.prompt", "%"),
    ("model.hidden", 16),
    ("model.dropout", 0.1),
    ("batch.size", 2),
    ("corpus.lowercase", True),
    ("corpus.encoding", "latin-1"),
    ("vocab.unknown", True),
    ("seed", 3),
]
SUBSETS = strategies.lists(strategies.sampled_from(CHANGES), min_size=1, max_size=4).map(dict)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("examples", [3, slow(150)])
def test_any_change_is_refused_without_a_trace_or_the_run_is_trained_to_its_end(examples, small, tmp_path):
    done, number, seen = tmp_path / "done", iter(range(10**6)), {"refused": 0, "trained": 0}
    assert train.train(load.load(TINY, small), str(done)) == 0

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(changes=SUBSETS)
    @example(changes={"train.steps": 9, "optim.schedule": "step", "eval.lanes": 2})
    @example(changes={"train.steps": 9, "sample.prompt": "%"})
    def check(changes):
        workdir = tmp_path / f"run{next(number)}"
        shutil.copytree(done, workdir)
        before = contents(workdir)
        try:
            config = load.load(TINY, small | changes)
            assert train.train(config, str(workdir), extend=True) == 0
        except UserError as error:
            assert str(error).endswith(".")  # noqa: PT017
            assert contents(workdir) == before
            seen["refused"] += 1
            return
        seen["trained"] += 1
        run = Run(workdir)
        (entry,) = run.extensions()
        assert entry["after"] == changes
        assert json.loads((workdir / "config.json").read_text())["optim"]["schedule"] == config.optim.schedule
        assert run.status()["state"] == "done"
        assert run.status()["step"] == changes.get("train.steps", 6) or "train.patience" in changes
        assert (workdir / "metrics.jsonl").read_bytes().startswith(before["metrics.jsonl"])
        after = contents(workdir)
        assert train.train(config, str(workdir), extend=True) == 0  # the same command changes nothing more
        assert contents(workdir) == after

    check()
    assert all(seen.values())
