"""Tests that config files, overrides and recipes can be loaded, and that each mistake gives one clear sentence.

For a mistake in a file, the sentence also names the file and, if charlm finds it, the line.
"""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from charlm.config import keys, load
from charlm.errors import UserError

CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.py") if file.name != "__init__.py")
TINY = str(ROOT / "configs" / "tiny.py")
OPTIMISERS = "adam, adamw, rmsprop, sgd, lion, adafactor, adan, muon, schedule_free_adamw; the nearest is 'adam'."
BEGIN = "from configs import base\ndef get_config():\n    config = base.get_config()\n"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_can_be_loaded_and_its_file_shows_the_train_command(file):
    config = load.load(str(file))
    assert set(load.flatten(config)) == set(keys.KEYS)
    if file.stem != "base":
        assert f"scripts/train.py --config=configs/{file.name} --workdir=" in file.read_text()
        assert f"\n| `{file.stem}`" in (ROOT / "configs" / "README.md").read_text()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_command_in_a_recipe_has_only_valid_flags(file):
    """Each flag must exist. Each value of --config must load."""
    for line in re.findall(r"^ +(scripts/.*(?:\n        .*)*)", file.read_text(), re.MULTILINE):
        program, *flags = line.replace("[", "").replace("]", "").split()
        source = (ROOT / "charlm" / "programs" / f"{program.removeprefix('scripts/').removesuffix('.py')}.py").read_text()
        for flag in (part for part in flags if part.startswith("--")):
            name, _, value = flag.removeprefix("--").partition("=")
            assert f'"{name}"' in source or name.removeprefix("config.") in keys.KEYS, flag
            if name == "config":
                assert load.load(os.fspath(ROOT / value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.hiden", "3", "unknown config key 'model.hiden': the nearest key is 'model.hidden'."),
        ("hidden", "3", "unknown config key 'hidden': the nearest key is 'model.hidden'."),
        ("model.hidden.units", "3", "unknown config key 'model.hidden.units': the nearest key is 'model.hidden'."),
        ("model.hidden", "wide", "model.hidden='wide': must be an integer."),
        ("model.hidden", "2.5", "model.hidden='2.5': must be an integer."),
        ("model.hidden", "25e-1", "model.hidden='25e-1': must be an integer."),
        ("model.hidden", "1e999999999", "model.hidden='1e999999999': must be an integer."),
        ("model.hidden", "nan", "model.hidden='nan': must be an integer."),
        ("model.hidden", "-inf", "model.hidden='-inf': must be an integer."),
        ("model.hidden", "1e10", "model.hidden=10000000000: must be below 2147483648."),
        ("corpus.split", "[0.9,", "corpus.split='[0.9,': must be a tuple such as (0.9,0.1)."),
        ("model.hidden", 2.5, "model.hidden=2.5: must be an integer."),
        ("model.hidden", True, "model.hidden=True: must be an integer."),
        ("model.hidden", None, "model.hidden=None: must be an integer."),
        ("model.hidden", "0", "model.hidden=0: must be positive."),
        ("batch.size", "-4", "batch.size=-4: must be positive."),
        ("batch.length", "0", "batch.length=0: must be positive."),
        ("model.dropout", "1.0", "model.dropout=1.0: must be at least 0 and below 1."),
        ("model.dropout", "-0.1", "model.dropout=-0.1: must be at least 0 and below 1."),
        ("optim.learning_rate", "nan", "optim.learning_rate=nan: must be a finite number, at most 3e+38."),
        ("optim.learning_rate", "fast", "optim.learning_rate='fast': must be a number."),
        ("optim.name", "adm", "optim.name='adm': must be one of " + OPTIMISERS),
        (
            "corpus.split",
            "(0.9,0.2)",
            "corpus.split=(0.9, 0.2): must be one to three positive fractions that sum to 1, such as (0.9,0.1).",
        ),
        ("corpus.split", "(0.9,", "corpus.split='(0.9,': must be a tuple such as (0.9,0.1)."),
        (
            "corpus.split",
            "('a','b')",
            "corpus.split=('a', 'b'): must be one to three positive fractions that sum to 1, such as (0.9,0.1).",
        ),
        ("vocab.unknown", "maybe", "vocab.unknown='maybe': must be true or false."),
        ("model.hidden", "10000000000", "model.hidden=10000000000: must be below 2147483648."),
        ("optim.decay_steps", "3000000000", "optim.decay_steps=3000000000: must be below 2147483648."),
        ("seed", "4294967296", "seed=4294967296: must be from 0 to 4294967295."),
        (
            "corpus.split",
            f"({'9' * 400},)",
            f"corpus.split=({'9' * 400},): must be one to three positive fractions that sum to 1, such as (0.9,0.1).",
        ),
        ("sample.temperature", "1e300", "sample.temperature=1e+300: must be a finite number, at most 3e+38."),
        ("sample.prompt", "", "sample.prompt='': must be None, or at least one character."),
        ("corpus.test_path", "/x", "corpus.test_path='/x': needs corpus.validation_path, which is not set."),
        ("corpus.validation_path", "/x", "corpus.validation_path='/x': needs corpus.path, which is not set."),
    ],
)
def test_wrong_overrides_are_refused_in_one_sentence(key, value, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load.load(TINY, {key: value})


@pytest.mark.parametrize("value", ["3", "{'hidden': 64}", {"hidden": 64}])
def test_a_section_name_is_refused_as_a_key(value):
    with pytest.raises(UserError, match=r"^config key 'model' is a section: set its keys, such as model\.cell\.$"):
        load.load(TINY, {"model": value})


@pytest.mark.parametrize("key", ["corpus.path", "corpus.validation_path", "corpus.test_path"])
def test_an_address_is_refused_as_the_path_of_a_text(key, tmp_path):
    for address in ("https://example.com/a.txt", "s3://bucket/a.txt"):
        expected = f"{key}={address!r}: must be a file or folder on this machine, not an internet address: download the text "
        with pytest.raises(UserError, match=f"^{re.escape(expected)}.*curl -LO .* or set corpus.name to a corpus"):
            load.load(TINY, {key: address})
    load.load(TINY, {"corpus.path": "a:b//c"})  # this can be the name of a file


def test_unknown_keys_in_a_config_of_another_version_are_named():
    fields = load.to_dict(load.load(TINY))
    fields["sample"]["top_z"] = 3
    with pytest.raises(UserError, match=r"unknown config key 'sample.top_z': the nearest key is 'sample.top_k'"):
        load.from_dict(fields)
    del fields["sample"]["top_z"]
    fields["model"]["hidden"] = 2.5
    with pytest.raises(UserError, match=r"^model.hidden=2.5: must be an integer.$"):
        load.from_dict(fields)


def test_a_tfds_dataset_together_with_a_file_is_refused():
    for key, value in (("corpus.path", "/titles.csv"), ("corpus.documents", "csv:1")):
        message = f"{key}='{value}' and corpus.tfds='a:b': only one of them can be set; --config.corpus.tfds=None unsets corpus"
        with pytest.raises(UserError, match=re.escape(message)):
            load.load(TINY, {"corpus.tfds": "a:b", key: value})


def test_values_are_converted_to_the_type_of_their_key():
    overrides = {"model.dropout": "0.25", "vocab.unknown": "TRUE", "corpus.split": "0.8,0.1,0.1", "corpus.path": "None"}
    config = load.load(TINY, overrides)
    assert (config.model.dropout, config.vocab.unknown, config.corpus.split) == (0.25, True, (0.8, 0.1, 0.1))
    assert config.corpus.path is None
    for text in ("[0.8,0.1,0.1]", "(0.8,0.1,0.1)", " [0.8, 0.1, 0.1]"):
        assert load.load(TINY, {"corpus.split": text}).corpus.split == (0.8, 0.1, 0.1)
    for text in ("1000", "1e3", "1E+3", "10.00e2", "1000.0"):
        hidden = load.load(TINY, {"model.hidden": text}).model.hidden
        assert hidden == 1000
        assert isinstance(hidden, int)
    assert load.load(TINY, {"seed": "4.294967295e9"}).seed == 4294967295
    for value in ("1", 1):
        rate = load.load(TINY, {"optim.learning_rate": value}).optim.learning_rate
        assert rate == 1.0
        assert isinstance(rate, float)
    assert load.load(TINY, {"corpus.split": [0.5, 0.5]}).corpus.split == (0.5, 0.5)


def test_paths_become_absolute_and_a_loaded_config_is_locked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load.load(TINY, {"corpus.path": "text", "corpus.validation_path": "~/other", "cache_dir": ""})
    assert config.corpus.path == str(tmp_path / "text")
    assert config.corpus.validation_path == os.path.expanduser("~/other")
    assert config.cache_dir == ""
    with pytest.raises(AttributeError):
        config.model.hiden = 3
    with pytest.raises(TypeError):
        config.model.hidden = "3"


def test_a_config_made_in_python_gets_the_same_checks_as_a_config_file():
    config = keys.defaults(type_safe=False)
    config.optim.learning_rate = 1
    assert load.checked(config).optim.learning_rate == 1.0
    config.optim.learning_rte = 3
    with pytest.raises(UserError, match=r"^unknown config key 'optim.learning_rte': the nearest key is 'optim.lear"):
        load.checked(config)
    del config.optim.learning_rte
    del config.optim["beta1"]
    with pytest.raises(UserError, match=r"^the config has no optim.beta1: start with config = base.get_config\(\)"):
        load.checked(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "--config={file} has no get_config() that returns a ConfigDict: start with config = base.get_config()"),
        ("def get_config(): return {{}}", "--config={file} has no get_config() that returns a ConfigDict"),
        ("get_config = 3", "--config={file} has no get_config() that returns a ConfigDict"),
        ("def get_config(", "{file} line 1: SyntaxError: '(' was never closed."),
        ("\n\ndef get_config(arg=None):\n    return 1 / 0\n", "{file} line 4: ZeroDivisionError: division by zero."),
        ("import no_such_module\n", "{file} line 1: ModuleNotFoundError: No module named 'no_such_module'."),
        ("def get_config():\n    raise ValueError\n", "{file} line 2: ValueError."),
        ("def get_config():\n    raise ValueError('one.')\n", "{file} line 2: ValueError: one."),
        # charlm finds these mistakes after Python has executed the file. It then searches the text of the file for the line.
        (
            "{begin}    config.model.hiden = 3\n    return config\n",
            "{file} line 4: unknown config key 'model.hiden': the nearest key is 'model.hidden'.",
        ),
        (
            "{begin}    config.modl.hidden = 3\n    return config\n",
            "{file} line 4: unknown config key 'modl.hidden': the nearest key is 'model.hidden'.",
        ),
        (
            "{begin}    config.model.hidden = 2 * config.model.hiden\n    return config\n",
            "{file} line 4: unknown config key 'model.hiden': the nearest key is 'model.hidden'.",
        ),
        (
            "{begin}    config.corpus.validation_path = '/a/text'\n    return config\n",
            "{file} line 4: corpus.validation_path='/a/text': needs corpus.path, which is not set.",
        ),
        (
            "{begin}    c = config\n    c.model.hidden = '64'\n    return c\n",
            "{file} line 5: model.hidden='64': must be an integer.",
        ),
        (
            "{begin}    model = config.model\n    model.hidden = -1\n    return config\n",
            "{file} line 5: model.hidden=-1: must be positive.",
        ),
        (
            "{begin}    config.optim.update(name='adm')\n    return config\n",
            "{file} line 4: optim.name='adm': must be one of " + OPTIMISERS,
        ),
        (
            "{begin}    config.model.update({{'hidden': 2.5}})\n    return config\n",
            "{file} line 4: model.hidden=2.5: must be an integer.",
        ),
        (
            "{begin}    for name in ('layers', 'hidden'):\n        config.model[name] = 0\n    return config\n",
            "{file}: model.hidden=0: must be positive.",
        ),
        ("{begin}    config.seed = 'x'\n    return config\n", "{file} line 4: seed='x': must be an integer."),
        # ml_collections finds these mistakes while Python executes the file.
        (
            "{begin}    config.lock()\n    config.model.hiden = 3\n    return config\n",
            "{file} line 5: unknown config key 'model.hiden': the nearest key is 'model.hidden'.",
        ),
        (
            "{begin}    config.lock()\n    config.sed = 3\n    return config\n",
            "{file} line 5: unknown config key 'sed': the nearest key is 'seed'.",
        ),
        (
            "{begin}    config.model.hidden = config.optim.hidden\n    return config\n",
            "{file} line 4: unknown config key 'optim.hidden': the nearest key is 'model.hidden'.",
        ),
        (
            "{begin}    config.model = type(config)()\n    return config\n",
            "{file}: the config has no model.",
        ),
        (
            "{begin}    config.model = 3\n    return config\n",
            "{file} line 4: config key 'model' is a section: set its keys, such as model.cell.",
        ),
        (
            "{begin}    del config.model['hidden']\n    config.model.hidden = 'x'\n    return config\n",
            "{file} line 5: model.hidden='x': must be an integer.",
        ),
    ],
)
def test_wrong_config_files_are_refused_with_file_and_line(tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text.format(begin=BEGIN))
    with pytest.raises(UserError) as caught:
        load.load(str(file))
    assert str(caught.value).startswith(message.format(file=file))
    assert "Could not override" not in str(caught.value)


def test_an_override_replaces_a_wrong_value_of_the_file_and_the_override_is_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"{BEGIN}    config.model.hidden = -1\n    return config\n")
    assert load.load(str(file), {"model.hidden": 3}).model.hidden == 3
    with pytest.raises(UserError, match=r"^model.hidden=-2: must be positive.$"):
        load.load(str(file), {"model.hidden": -2})


def test_an_override_of_a_key_also_changes_values_computed_from_this_key(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"{BEGIN}    config.optim.decay_steps = config.train.get_ref('steps') * 2\n    return config\n")
    assert load.load(str(file), {"train.steps": "7"}).optim.decay_steps == 14


def test_a_config_file_may_return_a_frozen_or_locked_config(tmp_path):
    file = tmp_path / "mine.py"
    end = "    config.optim.learning_rate = 1\n    return {}\n"
    for returned in ("ml_collections.FrozenConfigDict(config)", "config.lock()", "ml_collections.ConfigDict(config)"):
        file.write_text(f"import ml_collections\n{BEGIN}{end.format(returned)}")
        config = load.load(str(file), {"model.hidden": "5", "corpus.split": "1.0,"})
        assert (config.model.hidden, config.corpus.split, config.optim.learning_rate) == (5, (1.0,), 1.0)
        assert isinstance(config.optim.learning_rate, float)


def test_get_config_receives_the_argument_after_the_colon(tmp_path):
    file = tmp_path / "mine.py"
    text = BEGIN.replace("get_config():\n", "get_config({}):\n", 1) + "    config.model.hidden = {}\n    return config\n"
    file.write_text(text.format("arg=None", "int(arg)"))
    assert load.load(f"{file}:77").model.hidden == 77
    file.write_text(text.format("width='5'", "int(width)"))
    assert load.load(str(file)).model.hidden == 5
    assert load.load(f"{file}:").model.hidden == 5
    file.write_text(text.format("arg", "int(arg or 6)"))
    assert load.load(str(file)).model.hidden == 6
    file.write_text(text.format("", "7"))
    assert load.load(str(file)).model.hidden == 7
    message = f"--config={file}:3: this config takes no argument; write --config={file}."
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load.load(f"{file}:3")


def test_configs_may_import_modules_of_their_folder_and_these_modules_are_unloaded_afterwards(tmp_path):
    before, path = set(sys.modules), list(sys.path)
    text = "import common, package.sizes, plain.sizes, this\n" + BEGIN
    text += "    config.model.hidden, config.model.layers = common.HIDDEN, package.sizes.LAYERS\n"
    text += "    config.model.embedding = plain.sizes.EMBEDDING\n    return config\n"
    for number in (3, 4):
        folder = tmp_path / str(number)
        for name in ("package", "plain"):
            (folder / name).mkdir(parents=True)
            (folder / name / "sizes.py").write_text(f"LAYERS = {number}\nEMBEDDING = {number}\n")
        (folder / "package" / "__init__.py").touch()
        (folder / "common.py").write_text(f"HIDDEN = {number}\n")
        (folder / "this.py").touch()  # the standard library also has a module `this`
        (folder / "mine.py").write_text(text)
        config = load.load(str(folder / "mine.py"))
        assert (config.model.hidden, config.model.layers, config.model.embedding) == (number, number, number)
    (tmp_path / "3" / "common.py").write_text("\nHIDDEN = 1 / 0\n")
    with pytest.raises(UserError) as caught:
        load.load(str(tmp_path / "3" / "mine.py"))
    assert str(caught.value) == f"{tmp_path / '3' / 'common.py'} line 2: ZeroDivisionError: division by zero."
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {
        "common",
        "package",
        "plain",
        "this",
        "configs",
    }
    assert sys.path == path


def test_a_config_imports_modules_of_its_folder_rather_than_modules_already_imported(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "common.py").write_text("HIDDEN = 1\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    import common  # a module of the user, imported in a notebook

    (tmp_path / "common.py").write_text("HIDDEN = 2\n")
    file = tmp_path / "mine.py"
    file.write_text(f"import common\n{BEGIN}    config.model.hidden = common.HIDDEN\n    return config\n")
    assert load.load(str(file)).model.hidden == 2
    assert sys.modules["common"] is common
    assert common.HIDDEN == 1
    monkeypatch.delitem(sys.modules, "common")


def test_a_recipe_loads_by_its_name_unless_the_current_folder_has_a_file_of_this_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load.to_dict(load.load("quickstart")) == load.to_dict(load.load(str(ROOT / "configs" / "quickstart.py")))
    assert load.load("alice_axon:2").model.layers == 2
    (tmp_path / "tiny").mkdir()
    assert load.load("tiny").model.hidden == 32
    (tmp_path / "tiny.py").write_text(f"{BEGIN}    config.model.hidden = 5\n    return config\n")
    assert load.load("tiny.py").model.hidden == 5
    assert load.call("tiny", "sweep") == load.call(TINY, "sweep")
    for name in ("quikstart", "configs/quickstart.py", "quickstart.py", "../quickstart"):
        message = f"--config={name}: no such file in {tmp_path} and no such recipe; the nearest recipe is quickstart."
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            load.load(name)
    (tmp_path / "quickstart").write_text("")
    with pytest.raises(UserError, match=r"^--config=quickstart is not a Python file: its name must end in .py.$"):
        load.load("quickstart")


@pytest.mark.slow
def test_an_installed_package_includes_the_recipes_but_no_top_level_configs(tmp_path):
    """Installs the package as a user does, and runs it in a folder from which the checkout can't be imported."""
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("charlm", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, f"--target={site}", source], check=True, capture_output=True)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"bin", "charlm"}
    built = {path.relative_to(site) for path in site.rglob("*.py")}
    assert built >= {path.relative_to(ROOT) for path in (ROOT / "charlm").rglob("*.py")}
    (tmp_path / "mine.py").write_text("from configs import tiny\ndef get_config():\n    return tiny.get_config()\n")
    code = (
        "import charlm; from charlm.config import load; print(charlm.__file__, load.RECIPES); "
        "print(load.load('tiny') == load.load('mine.py') and load.load('alice_axon:2').model.layers)"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout == f"{site / 'charlm' / '__init__.py'} {site / 'charlm' / 'recipes'}\n2\n"


def test_numpy_scalars_become_python_values():
    values = {"model.hidden": np.int64(64), "optim.learning_rate": np.float64(0.01), "batch.shuffle": np.bool_(False)}
    found = load.flatten(load.load("configs/tiny.py", values))
    assert [(found[key], type(found[key])) for key in values] == [(64, int), (0.01, float), (False, bool)]
    with pytest.raises(UserError, match=r"model.hidden=64.0: must be an integer"):
        load.load("configs/tiny.py", {"model.hidden": np.float64(64)})
