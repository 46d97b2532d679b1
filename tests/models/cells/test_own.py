"""Tests cells in files of the user: `model.cell=FILE.py:NAME`. The cell of these tests is the peephole LSTM in peephole.py."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY, assert_same, final_params
from faults.checks import read_rows
from ml_collections import FrozenConfigDict

import charlm
from charlm.config import load
from charlm.errors import UserError
from charlm.inference import restore
from charlm.models import cells, stack
from charlm.models.cells import interface, own
from charlm.models.initializers import initializers
from charlm.rundir.run import Run
from charlm.sweeps import naming, sweep
from charlm.training import opening, train
from configs import base

SOURCE = pathlib.Path(__file__).with_name("peephole.py").read_text(encoding="utf-8")
TINY_PATH = os.fspath(ROOT / TINY)
CONFIG = """
from charlm.sweeps.sweep import product
from configs import tiny

def get_config():
    config = tiny.get_config()
    config.update_from_flattened_dict({small!r})
    config.model.cell = "my cells/peephole.py:PEEPHOLE"
    config.model.layers = 2
    return config

def sweep():
    return product({{"model.cell": ["my cells/peephole.py:PEEPHOLE"]}})
"""


@pytest.fixture(autouse=True)
def _nothing_loaded(monkeypatch):
    """Makes charlm forget all loaded cells, so that each test begins like a new process."""
    for module, name in ((own, "_modules"), (own, "_digests"), (cells, "loaded")):
        monkeypatch.setattr(module, name, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_file):
    """A folder with a config file, a file with a cell, and two runs of this config.

    The run `complete` has all 6 steps, and the run `stopped` was stopped at step 4. Whenever the file of the cell runs, it adds
    a line to the file `ran`.
    """
    folder = tmp_path_factory.mktemp("own")
    (folder / "my cells").mkdir()
    (folder / "my cells" / "peephole.py").write_text(
        f"{SOURCE}\nwith open({str(folder / 'ran')!r}, 'a') as file:\n    print(file=file)\n"
    )
    small = {
        "corpus.path": os.fspath(corpus_file),
        "batch.size": 4,
        "batch.length": 16,
        "model.hidden": 8,
        "model.embedding": 6,
        "train.steps": 6,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 3,
        "sample.length": 20,
    }
    (folder / "config.py").write_text(CONFIG.format(small=small))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = load.load("config.py")
        assert train.train(config, "complete") == 0
        original = train.steps_at_once

        def killed(setup, step):
            if step >= 4:
                raise KeyboardInterrupt
            return original(setup, step)

        patch.setattr(train, "steps_at_once", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, "stopped")
    return folder


@pytest.fixture
def ran(folder):
    """The path of a file that exists only if the file of the cell has run during this test."""
    (folder / "ran").unlink(missing_ok=True)
    return folder / "ran"


def copied(folder, name, tmp_path):
    return pathlib.Path(shutil.copytree(folder / name, tmp_path / name))


def of_file(path, name="PEEPHOLE", **model):
    config = base.get_config()
    config.model.update({"cell": f"{path}:{name}", "hidden": 8, "embedding": 6} | model)
    return config


def contents(path):
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_peephole_lstm_equals_the_equations_in_numpy_float64():
    """Gers and Schmidhuber (2000); the equations are in the docstring of peephole.py."""
    config = of_file(ROOT / "tests/models/cells/peephole.py")
    own.load(config)
    cell, rng = cells.named(config.model.cell), np.random.default_rng(0)
    declared = cell.parameters(5, 6, initializers("orthogonal", 6, 0.1, 0.0), FrozenConfigDict(config))
    params = {name: rng.uniform(-0.5, 0.5, shape) for name, (_, shape) in declared.items()}
    inputs_TBI, c, h = rng.normal(size=(9, 3, 5)), rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    w_i, w_f, w_z, w_o = np.split(params["input_kernel"], 4, axis=1)
    r_i, r_f, r_z, r_o = np.split(params["recurrent_kernel"], 4, axis=1)
    b_i, b_f, b_z, b_o = np.split(params["bias"], 4)
    p_i, p_f, p_o = np.split(params["peepholes"], 3)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    with jax.enable_x64(True):
        arguments = jax.tree.map(jnp.asarray, (params, inputs_TBI, {"c": c, "h": h}))
        outputs_TBH, end = cell.window(*arguments, jnp.float64)
    for x, output in zip(inputs_TBI, outputs_TBH, strict=True):
        z = np.tanh(x @ w_z + h @ r_z + b_z)
        i = sigmoid(x @ w_i + h @ r_i + p_i * c + b_i)
        f = sigmoid(x @ w_f + h @ r_f + p_f * c + b_f)
        c = z * i + c * f
        o = sigmoid(x @ w_o + h @ r_o + p_o * c + b_o)
        h = o * np.tanh(c)
        np.testing.assert_allclose(output, h, rtol=0, atol=1e-13)
    np.testing.assert_allclose(end["c"], c, rtol=0, atol=1e-13)
    bias = declared["bias"][0](jax.random.key(0), (24,))
    np.testing.assert_array_equal(bias, [0] * 6 + [config.model.forget_bias] * 6 + [0] * 12)


def test_a_cell_of_the_user_trains_resumes_scores_and_samples(folder, ran, tmp_path, capsys):
    complete, stopped = folder / "complete", copied(folder, "stopped", tmp_path)
    config = Run(stopped).config()
    assert config.model.cell == f"{folder}/my cells/peephole.py:PEEPHOLE"
    with pytest.raises(
        UserError, match=r"^--workdir=.*stopped: the run's cell is code in .*peephole\.py, and charlm would run"
    ):
        train.train(config, os.fspath(stopped))
    assert not ran.exists()
    assert train.train(config, os.fspath(stopped), trust_code=True) == 0
    assert "of 8, embedding input" in (said := capsys.readouterr().out)
    assert "2 Peephole LSTM layers" in said
    assert read_rows(stopped) == read_rows(complete)
    assert_same(final_params(stopped), final_params(complete))
    assert {"peephole_0", "peephole_1"} < final_params(complete).keys()

    model = charlm.load(stopped, "latest", trust_code=True)
    logged = [row for row in Run(stopped).rows() if row["split"] == "validation"][-1]
    assert model.score(Run(stopped).splits()["validation"])["nats"] == pytest.approx(logged["nats"], abs=1e-6)
    text = model.sample("a", length=30, temperature=0.0)
    for _ in range(5):  # the sampler makes single steps, and each character that it chose is the likeliest one in a window too
        ids = model.logits(text[:-1])[-1].argmax()
        assert model.vocab.decode(np.array([ids])) == text[-1]
        text = text[:-1]
    assert train.train(config, os.fspath(stopped)) == 0  # a run that is done only prints its result, and runs no code
    assert len(ran.read_text()) == 1


def test_programs_need_and_accept_the_flag_trust_code(folder, ran, script, tmp_path):
    workdir = f"--workdir={copied(folder, 'complete', tmp_path)}"
    before, sample = contents(tmp_path), ["sample", workdir, "--prompt=a", "--length=5"]
    message = script.fails(*sample)
    assert re.search(r"the run's cell is code in .*peephole\.py, .* add --trust_code \(in Python trust_code=True\)\.$", message)
    assert contents(tmp_path) == before
    assert not ran.exists()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        export = ["export", workdir, "--format=npz", f"--output={tmp_path / 'out.npz'}", "--trust_code"]
        export = pool.submit(script.fails, *export)
        evaluate, sample = (pool.submit(script, *each, "--trust_code") for each in (["evaluate", workdir], sample))
    logged = [row for row in Run(tmp_path / "complete").rows() if row["split"] == "validation"][-1]
    assert json.loads(evaluate.result().stdout)["nats"] == pytest.approx(logged["nats"], abs=1e-6)
    assert len(sample.result().stdout) == 7
    assert export.result().endswith("layers of PyTorch can't be exported, since the cell has no to_torch.")


def test_code_that_reads_many_runs_never_runs_the_file_of_the_cell(folder, ran, script, tmp_path, monkeypatch):
    copied(folder, "complete", tmp_path)
    other = copied(folder, "stopped", tmp_path) / "config.json"
    fields = {key: value for key, value in json.loads(other.read_text()).items() if key != "seal"}
    other.write_text(json.dumps(fields | {"model": fields["model"] | {"cell": "lstm"}}))
    found = {row["name"]: row["model.cell"] for row in charlm.runs(tmp_path)}
    assert found == {"complete": f"{folder}/my cells/peephole.py:PEEPHOLE", "stopped": "lstm"}
    monkeypatch.chdir(folder)
    (trial,) = sweep.load_trials("config.py", {})
    sweep.check_files(trial)
    assert sweep.Root(tmp_path / "root").matched([trial]) == [trial]
    done = script("compare", tmp_path, f"--html={tmp_path / 'report.html'}", f"--plot={tmp_path / 'p.png'}")
    assert re.search(r"^peephole\.py:PEEPHOLE .* complete$", done.stdout, re.MULTILINE)
    assert "my cells" not in done.stdout
    assert not ran.exists()


def test_a_changed_file_is_not_run(folder, ran, tmp_path):
    stopped, file = copied(folder, "stopped", tmp_path), folder / "my cells" / "peephole.py"
    config, content = Run(stopped).config(), file.read_bytes()
    before = contents(stopped)
    changed = content.replace(b"jnp.tanh(u_z)", b"jax.nn.relu(u_z)")
    then, now = (hashlib.sha256(each).hexdigest() for each in (content, changed))
    with_flag = rf"peephole\.py, which .*changed since the run began \(SHA-256 {then} then, {now} now\): restore the file\.$"
    without = r"now\): restore the file and add --trust_code \(in Python trust_code=True\)\.$"
    try:
        file.write_bytes(changed)
        for call in (charlm.load, lambda path, **trust: train.train(config, os.fspath(path), **trust)):
            with pytest.raises(UserError, match=with_flag):
                call(stopped, trust_code=True)
            with pytest.raises(UserError, match=without):
                call(stopped)
        file.unlink()
        with pytest.raises(UserError, match=r"peephole\.py can't be read \(no such file\)\.$"):
            charlm.load(stopped, trust_code=True)
    finally:
        file.write_bytes(content)
    assert contents(stopped) == before
    assert not ran.exists()
    recorded = (stopped / "cells.json").read_text()
    for damaged, message in (
        (None, r"cells\.json does not exist"),
        ('{"sha256": []}', r"cells\.json is damaged \(it has no digests\): restore"),
        ('{"sha256": {}}', r"cells\.json has no digest of .*peephole\.py: restore"),
        (recorded.replace(then, now), r"its seal does not match"),
    ):
        (stopped / "cells.json").unlink()
        if damaged is not None:
            (stopped / "cells.json").write_text(damaged)
        with pytest.raises(UserError, match=message):
            charlm.load(stopped, trust_code=True)
        (stopped / "cells.json").write_text(recorded)
    charlm.load(stopped, trust_code=True)


@pytest.mark.slow
def test_train_init_from_with_a_cell_of_the_user_needs_trust_code(folder, tmp_path):
    config = load.checked(Run(folder / "complete").config())
    child = load.from_dict(load.flatten(config) | {"train.init_from": str(folder / "complete"), "train.steps": 1})
    with pytest.raises(UserError, match=r"^train\.init_from=.*complete: the run's cell is code in .*peephole\.py"):
        train.train(child, os.fspath(tmp_path / "child"))
    with pytest.raises(UserError, match=r"^train\.init_from=.*complete: the run's cell is code in .*peephole\.py"):
        opening.describe_only(child, str(tmp_path / "net.dot"), 1)
    assert not list(tmp_path.iterdir())
    assert train.train(child, os.fspath(tmp_path / "child"), trust_code=True) == 0
    assert_same(
        restore.load(tmp_path / "child", "0", trust_code=True).params,
        restore.load(folder / "complete", "best", trust_code=True).params,
    )
    longer = load.from_dict(load.flatten(child) | {"train.steps": 2})
    with pytest.raises(UserError, match=r"^--workdir=.*child: the run's cell is code"):
        opening.describe_only(child, str(tmp_path / "net.dot"), 1, str(tmp_path / "child"))
    with pytest.raises(UserError, match=r"^--workdir=.*child: the run's cell is code"):
        train.train(longer, os.fspath(tmp_path / "child"), extend=True)
    assert train.train(longer, os.fspath(tmp_path / "child"), extend=True, trust_code=True) == 0


@pytest.mark.slow
def test_a_sweep_passes_the_flag_trust_code_to_trials_that_resume(folder, ran, script, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (trial,) = sweep.load_trials("config.py", {})
    assert re.fullmatch(r"cell=peephole\.py_PEEPHOLE-[0-9a-f]{8}", trial.name)
    root = sweep.Root(tmp_path / "root")
    with root.locked():
        root.record("config.py", [trial])
    shutil.copytree(folder / "stopped", root.path / trial.name)
    before = contents(tmp_path)
    arguments = ["--config=config.py", f"--root={root.path}", "--dry_run"]
    message = script.fails("sweep", *arguments)
    assert re.search(rf"{re.escape(trial.name)}: the run's cell is code in .*peephole\.py, .* add --trust_code", message)
    assert f" --workdir={root.path}/{trial.name} --trust_code --config=" in script(
        "sweep", *arguments, "--trust_code"
    ).stdout.replace("'", "")
    slurm = script.fails("sweep", "--config=config.py", f"--root={tmp_path / 'new'}", "--dry_run", "--launcher=slurm")
    assert re.search(
        r"^error: --launcher=slurm: a job may stop and resume, .*peephole\.py:PEEPHOLE resumes only with --trust_code", slurm
    )
    assert contents(tmp_path) == before
    assert not ran.exists()
    (folder / "my cells").rename(folder / "moved")
    try:
        with pytest.raises(UserError, match=r"^trial cell=.*: model\.cell=.*peephole\.py:PEEPHOLE: no such file\.$"):
            sweep.check_files(trial)
    finally:
        (folder / "moved").rename(folder / "my cells")


@pytest.mark.slow
def test_a_sweep_trains_and_resumes_a_cell_of_the_user(folder, script, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["--config=config.py", f"--root={tmp_path / 'root'}"]
    script("sweep", *arguments)
    (workdir,) = (tmp_path / "root").glob("cell=*")
    assert read_rows(workdir) == read_rows(folder / "complete")
    shutil.rmtree(workdir)
    shutil.copytree(folder / "stopped", workdir)
    script("sweep", *arguments, "--trust_code")
    assert read_rows(workdir) == read_rows(folder / "complete")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r"own\.py can't be read \(no such file\)\.$"),
        ("import jax\nx = (1,\n", r"can't be loaded: .*own\.py line 2: SyntaxError: '\(' was never closed\.$"),
        ("import no_such_module\n", r"own\.py line 1: ModuleNotFoundError: No module named 'no_such_module'\.$"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"own\.py line 2: ZeroDivisionError: division by zero\.$"),
        ("import sys\nsys.exit(3)\n", r"own\.py line 2: SystemExit: 3\.$"),
        ("\0", r"can't be loaded: .*own\.py.*: source code string cannot contain null bytes\.$"),
        ("x = 1\n", r"own\.py has no PEEPHOLE: write PEEPHOLE = Cell\(\.\.\.\), see configs/README\.md\.$"),
        (SOURCE.replace("PEEPHOLE =", "LSTM = OTHER ="), r"own\.py has no PEEPHOLE: its cells are LSTM, OTHER\.$"),
        ("PEEPHOLE = {}\n", r"PEEPHOLE is of type dict, but must be a Cell of charlm\.models\.cells\.$"),
    ],
)
def test_a_file_that_gives_no_cell_is_refused(source, message, tmp_path, small):
    if source is not None:
        (tmp_path / "own.py").write_text(source)
    config = load.load(TINY_PATH, small | {"model.cell": f"{tmp_path / 'own.py'}:PEEPHOLE"})
    with pytest.raises(UserError, match=rf"^model\.cell={tmp_path}/own\.py:PEEPHOLE.*{message}"):
        train.train(config, os.fspath(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value",
    [
        "own.py",
        "own.py:",
        "own.py:3x",
        "own.py:a.b",
        "own:X",
        ".py:X",
        "a/.py:X",
        "https://a.b/own.py:X",
        "own.py:Ä",
        "a\0.py:X",
    ],
)
def test_values_that_name_neither_a_cell_nor_a_file_are_refused(value):
    with pytest.raises(UserError, match=r"must be one of lstm, .*, minlstm, or FILE\.py:NAME for a cell in your own file\.$"):
        load.load(TINY_PATH, {"model.cell": value})


@pytest.mark.parametrize(("value", "nearest"), [("gruu", "gru"), ("mogrifier-lstm", "mogrifier_lstm")])
def test_an_unknown_name_is_refused_and_the_nearest_cell_is_named(value, nearest):
    message = rf"^model\.cell='{value}': .* or FILE\.py:NAME for a cell in your own file; the nearest is '{nearest}'\.$"
    with pytest.raises(UserError, match=message):
        load.load(TINY_PATH, {"model.cell": value})


def test_paths_are_absolute_and_names_are_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, path in (("a/b.py:X_1", "a/b.py:X_1"), ("../c:d.py:X", "../c:d.py:X"), ("~/b.py:X", "home/b.py:X")):
        value = load.load(TINY_PATH, {"model.cell": given}).model.cell
        assert value == os.path.normpath(tmp_path / path)
        assert load.from_dict({"model.cell": value}).model.cell == value
    assert [cells.short_name(name) for name in ("lstm", "/a/b.py:X_1", "/a/b.py:x_1")] == ["lstm", "x_1", "x_1"]
    names = [naming.trial_name({"model.cell": name}) for name in ("lstm", "/a/b.py:X", "/c/b.py:X")]
    assert names[0] == "cell=lstm"
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"cell=b\.py_X-[0-9a-f]{8}", name) for name in names[1:])


def test_only_a_loaded_cell_is_used_and_a_changed_file_is_loaded_again(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(SOURCE)
    config = of_file(file)
    with pytest.raises(UserError, match=r"own\.py:PEEPHOLE is not loaded"):
        stack.functions(config, 5)
    own.load(config)
    first = cells.named(config.model.cell)
    own.load(config)
    assert cells.named(config.model.cell) is first
    assert own.digests(config) == {str(file): hashlib.sha256(SOURCE.encode()).hexdigest()}
    file.write_text(SOURCE.replace("Peephole LSTM", "Another"))
    own.load(config)
    assert cells.named(config.model.cell).title == "Another"
    config.model.cell = "lstm"
    assert own.digests(config) == {}


def test_the_example_in_the_documentation_works(small, tmp_path, capsys):
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "= Cell(" in block)
    (file, name) = re.search(r"model\.cell=(\w+\.py):(\w+)", text).groups()
    (tmp_path / file).write_text(block)
    for encoding in ("embedding", "onehot", "scalar"):
        config = of_file(tmp_path / file, name, input=encoding)
        own.load(config)
        interface.check(config)
    overrides = small | {
        "model.cell": f"{tmp_path / file}:{name}",
        "train.steps": 20,
        "sample.length": 0,
    }
    assert train.train(load.load(TINY_PATH, overrides), os.fspath(tmp_path / "run")) == 0
    assert "has no effect" not in capsys.readouterr().err
    rows = Run(tmp_path / "run").rows()
    assert [row["nats"] for row in rows if row["split"] == "validation"][-1] < rows[0]["nats"] - 0.1
