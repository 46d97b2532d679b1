"""Runs that begin with the parameters of another run (`train.init_from`)."""

import json
import os
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest
from conftest import ROOT, assert_same, final_params
from faults.checks import differences
from faults.runs import as_flags, make_text, wait_for_step

import charlm
from charlm.compare import reading, tables
from charlm.config import load
from charlm.data.vocab import Vocab
from charlm.errors import UserError
from charlm.inference import restore
from charlm.rundir.run import Run
from charlm.training import inheriting, opening, train

TINY = str(ROOT / "configs" / "tiny.py")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two corpus files. The second lacks the letters a and b and has capital letters that sort before all other letters."""
    folder = tmp_path_factory.mktemp("texts")
    text = make_text(4_000)
    (folder / "first.txt").write_text(text, encoding="utf-8")
    (folder / "second.txt").write_text(text.translate(str.maketrans("ab", "ÄB")), encoding="utf-8")
    return folder


def config_of(small, text, **more):
    return load.load(TINY, small | {"corpus.path": os.fspath(text), "vocab.source": "corpus", "sample.length": 0} | more)


@pytest.fixture(scope="module", params=["embedding", "onehot"])
def parent(request, texts, tmp_path_factory):
    """A trained run with the text `first.txt`, and the overrides of its model."""
    model = {"model.input": request.param, "model.hidden": 8, "model.layers": 2, "model.embedding": 6}
    small = {"batch.size": 4, "batch.length": 16, "train.steps": 6, "train.eval_every": 4, "eval.length": 128} | model
    workdir = tmp_path_factory.mktemp("parent") / "run"
    assert train.train(config_of(small, texts / "first.txt"), str(workdir)) == 0
    return workdir, small


def step_0(workdir, config):
    """Trains a run with this config. Returns the parameters of its checkpoint of step 0, with which the run began."""
    assert train.train(config, str(workdir)) == 0
    return jax.tree.map(np.asarray, restore.load(workdir, "0").params)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_with_the_same_symbols_a_run_begins_with_all_parameters_of_its_parent(parent, texts, tmp_path):
    workdir, small = parent
    child = {**small, "train.init_from": f"{workdir}:latest", "train.steps": 1}
    assert_same(step_0(tmp_path / "run", config_of(child, texts / "first.txt")), final_params(workdir))


def test_symbols_are_matched_by_their_characters_and_not_by_their_ids(parent, texts, tmp_path, capsys):
    """Compares the rows and columns of each symbol in the child with the rows and columns of this symbol in the parent.

    The vocab.json of each run gives the id of the symbol in this run.
    """
    workdir, small = parent
    before = contents(workdir)
    config = config_of(small | {"train.steps": 1}, texts / "second.txt")
    fresh = jax.tree.map(np.asarray, inheriting.initial_state_maker(train.opening.set_up(config))(np.uint32(0)).params)
    config = config_of({**small, "train.init_from": f"{workdir}:latest", "train.steps": 1}, texts / "second.txt")
    child, old = step_0(tmp_path / "run", config), final_params(workdir)
    theirs, ours = (json.loads((path / "vocab.json").read_text())["symbols"] for path in (workdir, tmp_path / "run"))
    assert (set(theirs) - set(ours), set(ours) - set(theirs)) == ({"a", "b"}, {"Ä", "B"})
    assert theirs.index("c") != ours.index("c")  # the ids differ, so matching by id would be wrong
    assert theirs.index("j") == ours.index("j") + 1
    rows = [("embedding",)] if small["model.input"] == "embedding" else [("lstm_0", "input_kernel")]

    def at(tree, path):
        return tree[path[0]] if len(path) == 1 else tree[path[0]][path[1]]

    for index, symbol in enumerate(ours):
        source, place = (old, theirs.index(symbol)) if symbol in theirs else (fresh, index)
        for path in rows:
            np.testing.assert_array_equal(at(child, path)[index], at(source, path)[place])
        np.testing.assert_array_equal(child["head_kernel"][:, index], source["head_kernel"][:, place])
        np.testing.assert_array_equal(child["head_bias"][index], source["head_bias"][place])
    for name in ("lstm_0", "lstm_1"):
        for array in old[name]:
            if (name, array) not in rows:
                np.testing.assert_array_equal(child[name][array], old[name][array])
    said = capsys.readouterr().out
    assert f"begins with the parameters of {workdir} at step 6; 2 symbols new" in said
    assert "'B' (U+0042), 'Ä' (U+00C4); 2 symbols dropped: 'a' (U+0061), 'b' (U+0062)." in said
    assert contents(workdir) == before


def test_special_symbols_are_matched_by_name():
    old, new = (Vocab.of("ab", unknown=True), Vocab.of("bc", unknown=True, documents=True))
    symbols = [[*vocab.specials, *vocab.symbols] for vocab in (old, new)]
    params, fresh = {"head": np.array([[1.0, 2.0, 3.0]])}, {"head": np.array([[-1.0, -2.0, -3.0, -4.0, -5.0]])}
    matched = inheriting.matched(params, fresh, *symbols, {"head": 1})
    assert matched["head"].tolist() == [[-1, -2, 1, 3, -5]]  # <pad>, <eos>, <unk>, b, c


def test_the_run_records_its_parent_and_compare_shows_it(parent, texts, tmp_path, script):
    workdir, small = parent
    child = config_of({**small, "train.init_from": str(workdir), "train.steps": 1}, texts / "second.txt")
    shutil.copytree(workdir, tmp_path / "parent")
    assert train.train(child, str(tmp_path / "run")) == 0
    recorded = Run(tmp_path / "run").parent()
    best = Run(workdir).status()["best"]["step"]
    digests = json.loads((workdir / f"checkpoints/{best}/progress/metadata").read_text())["digests"]
    assert (recorded["path"], recorded["step"], recorded["digest"]) == (str(workdir), best, digests["params"])
    assert (recorded["new_symbols"], recorded["dropped_symbols"]) == (["B", "Ä"], ["a", "b"])
    words = f"{workdir} step {best}"
    rows = json.loads(script("compare", str(tmp_path), "--json").stdout)
    assert sorted(str(row.get("parent")) for row in rows) == sorted(["None", words])
    assert [run["parent"] for run in charlm.runs(tmp_path)] == [None, words]
    (tmp_path / "run/parent.json").unlink()
    status = json.loads((tmp_path / "run/status.json").read_text()) | {"state": "incomplete"}
    status.pop("seal")
    (tmp_path / "run/status.json").write_text(json.dumps(status))
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"parent.json is missing, although the run has train.init_from: restore"):
        train.train(child, str(tmp_path / "run"))
    assert contents(tmp_path / "run") == before
    records, problems = reading.read([tmp_path / "run"])
    assert len(records) == 1
    assert any("parent.json is missing" in problem for problem in problems)


def test_runs_with_different_parents_are_not_averaged_over_seeds(parent, texts, tmp_path):
    workdir, _ = parent
    for name, seed, step in (("run0", 0, 4), ("run1", 1, 4), ("run2", 2, 6)):
        shutil.copytree(workdir, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["seed"] = seed
        config.pop("seal")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        parent = {"path": "/p", "step": step, "digest": str(step), "new_symbols": [], "dropped_symbols": []}
        (tmp_path / name / "parent.json").write_text(json.dumps(parent))
    records, problems = reading.read([tmp_path / "run0", tmp_path / "run1", tmp_path / "run2"])
    assert not problems
    assert sorted(len(group.records) for group in tables.groups_of(records)) == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.hidden": 16, "model.dropout": 0.5},
            "the run has model.hidden=8, but this config has model.hidden=16: use",
        ),
        ({"model.layers": 1}, "the run has model.layers=2, but this config has model.layers=1"),
        (
            {"model.layers": 3, "model.widths": (8, 8, 4)},
            "the run has model.layers=2 and model.widths=(), but this config has model.layers=3 and model.widths=(8, 8, 4)",
        ),
        ({"train.init_from": "{run}:7"}, "no such checkpoint; must be best, latest or one of the run's steps (4, 6)"),
        ({"train.init_from": "{run}:lates"}, "the checkpoint 'lates' must be best, latest or a step"),
        ({"train.init_from": "{run}/checkpoints"}, "checkpoints is not the directory of a run"),
        ({"train.init_from": "/no/such"}, "train.init_from=/no/such: /no/such is not the directory of a run: give RUN, or"),
        ({"model.input": "scalar"}, "but this config has model.input=scalar"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(parent, texts, tmp_path, change, message):
    workdir, small = parent
    overrides = {**small, "train.init_from": str(workdir), **change}
    overrides["train.init_from"] = overrides["train.init_from"].format(run=workdir)
    before = contents(workdir)
    with pytest.raises(UserError) as error:
        train.train(config_of(overrides, texts / "second.txt"), str(tmp_path / "run"))
    assert str(error.value).startswith("train.init_from=")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
    assert contents(workdir) == before


@pytest.mark.slow
def test_bytes_are_matched_with_bytes_and_with_ascii_characters(texts, tmp_path, small, capsys):
    """The text `second.txt` has Ä, which is two bytes. In the vocabulary of the parent, the id of each byte is its value."""
    small, of_bytes = {**small, "train.steps": 1}, {"vocab.source": "bytes"}
    assert train.train(config_of(small, texts / "first.txt", **of_bytes), str(tmp_path / "parent")) == 0
    old = final_params(tmp_path / "parent")
    child = {**small, "train.init_from": str(tmp_path / "parent")}
    assert_same(step_0(tmp_path / "bytes", config_of(child, texts / "second.txt", **of_bytes)), old)
    characters = step_0(tmp_path / "characters", config_of(child, texts / "second.txt"))
    symbols = json.loads((tmp_path / "characters/vocab.json").read_text())["symbols"]
    for place, symbol in enumerate(symbols):
        if symbol != "Ä":
            np.testing.assert_array_equal(characters["embedding"][place], old["embedding"][ord(symbol)])
            np.testing.assert_array_equal(characters["head_kernel"][:, place], old["head_kernel"][:, ord(symbol)])
    parent = Run(tmp_path / "characters").parent()
    assert parent["new_symbols"] == ["Ä"]
    assert len(parent["dropped_symbols"]) == 256 - (len(symbols) - 1)
    assert "<0xC3>" in parent["dropped_symbols"]
    assert "'\\x14' (U+0014) and 223 more.\n" in capsys.readouterr().out


@pytest.mark.slow
def test_scalar_input_needs_the_same_vocabulary(texts, tmp_path, small):
    scalar = {**small, "model.input": "scalar", "train.steps": 1}
    assert train.train(config_of(scalar, texts / "first.txt"), str(tmp_path / "parent")) == 0
    child = {**scalar, "train.init_from": str(tmp_path / "parent")}
    with pytest.raises(UserError, match="the run has another vocabulary"):
        train.train(config_of(child, texts / "second.txt"), str(tmp_path / "run"))
    config = config_of(child, texts / "first.txt")
    assert_same(step_0(tmp_path / "run", config), final_params(tmp_path / "parent"))
    shutil.rmtree(tmp_path / "parent")  # the run that has begun can be described without its parent
    assert opening.describe_only(config, str(tmp_path / "n.dot"), 1, str(tmp_path / "run")) == 0
    with pytest.raises(UserError, match="is not the directory of a run"):
        opening.describe_only(config, str(tmp_path / "n.dot"), 1)


@pytest.mark.slow
def test_a_child_killed_before_its_first_checkpoint_begins_again_with_the_same_parameters(texts, tmp_path, small, monkeypatch):
    """Before the child begins again, the parent gets a later checkpoint, so `latest` is now another checkpoint."""
    parent = config_of(small, texts / "first.txt")
    assert train.train(parent, str(tmp_path / "parent")) == 0
    overrides = {"train.init_from": f"{tmp_path / 'parent'}:latest", "sample.length": 20}
    child = config_of(small, texts / "second.txt", **overrides)
    assert train.train(child, str(tmp_path / "uninterrupted")) == 0

    def killed(run, inheritance):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inheriting, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(child, str(tmp_path / "run"))
    later, original = tmp_path / "parent/checkpoints/8", tmp_path / "parent/checkpoints/6"
    shutil.copytree(tmp_path / "parent/checkpoints/4", later)
    assert train.train(child, str(tmp_path / "run")) == 0
    assert differences(tmp_path / "run", tmp_path / "uninterrupted") == []
    shutil.rmtree(tmp_path / "run/checkpoints")  # without checkpoints, the child must read the parameters of its parent again
    status = json.loads((tmp_path / "run/status.json").read_text()) | {"state": "incomplete", "seal": None}
    status.pop("seal")
    (tmp_path / "run/status.json").write_text(json.dumps(status))
    shutil.rmtree(original)
    shutil.copytree(tmp_path / "parent/checkpoints/4", original)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="the parameters of step 6 have changed since this run began"):
        train.train(child, str(tmp_path / "run"))
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_after_a_killed_first_start_a_start_with_another_config_does_not_get_the_old_parent(
    parent, texts, tmp_path, monkeypatch
):
    """The first start is killed after it has written parent.json and before it writes status.json.

    The config of the second start names another parent, or no parent.
    """
    workdir, small = parent
    shutil.copytree(workdir, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/checkpoints/6")  # its latest parameters are those of step 4

    def killed(self, *arguments, **options):
        raise KeyboardInterrupt

    def child(folder, **init_from):
        config = config_of(small | {"train.steps": 1} | init_from, texts / "first.txt")
        return train.train(config, str(tmp_path / folder))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_status", killed)
        with pytest.raises(KeyboardInterrupt):
            child("run", **{"train.init_from": f"{workdir}:latest"})
    assert (tmp_path / "run/parent.json").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "run without parent")
    assert child("run", **{"train.init_from": f"{tmp_path / 'other'}:latest"}) == 0
    assert Run(tmp_path / "run").parent()["path"] == str(tmp_path / "other")
    assert_same(restore.load(tmp_path / "run", "0").params, restore.load(workdir, "4").params)
    assert child("run without parent") == 0
    assert Run(tmp_path / "run without parent").parent() is None


@pytest.mark.slow
def test_a_killed_child_resumes_bit_for_bit_without_its_parent(script, texts, tmp_path, small):
    parent = config_of(small, texts / "first.txt")
    assert train.train(parent, str(tmp_path / "parent")) == 0
    overrides = small | {
        "corpus.path": texts / "second.txt",
        "vocab.source": "corpus",
        "train.init_from": tmp_path / "parent",
        "train.steps": 1500,
        "train.checkpoint_every": 100,
        "train.eval_every": 500,
        "train.log_every": 25,
    }

    def command(name):
        return script.command("train", f"--config={TINY}", f"--workdir={tmp_path / name}", *as_flags(overrides))

    subprocess.run(command("uninterrupted"), check=True, env=script.env(), capture_output=True)
    with subprocess.Popen(command("run"), env=script.env(), stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 300, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (tmp_path / "parent").rename(tmp_path / "moved")
    subprocess.run(command("run"), check=True, env=script.env(), capture_output=True)
    assert differences(tmp_path / "run", tmp_path / "uninterrupted") == []
