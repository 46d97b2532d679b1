"""Every config key is declared once and read in one file, and a change of its value changes the run (invariant 6)."""

import contextlib
import io
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, slow
from faults.checks import read_rows
from faults.runs import make_text

from charlm.config import checking, help_keys, keys, load, rules
from charlm.errors import Failure, UserError
from charlm.training import train

TINY = str(ROOT / "configs" / "tiny.py")

# To test that a key has an effect, the tests change its value. For most keys, the function `another` chooses the new value. For
# the keys below, the value that it chooses would not change the short run of these tests, so the values below are used instead.
VALUES = {
    "devices": 2,
    "corpus.name": "no such corpus",
    "corpus.path": "/another/file",
    "corpus.validation_path": "/another/file",
    "corpus.test_path": "/another/file",
    "corpus.data_dir": "/proc/another folder",
    "corpus.tfds": "no_such_dataset:text",
    "corpus.encoding": "cp037",
    "corpus.documents": "lines",
    "corpus.split": (0.8, 0.2),
    "corpus.keep": "abcdefghij\n",
    "batch.bucket": 5,
    "model.widths": (5,),
    "optim.name": "sgd",
    "optim.eps": 1e-2,
    "optim.clip_norm": 0.01,
    "optim.clip_value": 0.001,
    "optim.decay_epochs": 0.01,
    "optim.decay_after": 2.0,
    "optim.average_last": 0.75,
    "optim.average_patience": 0,
    "train.epochs": 0.02,
    "train.least_steps": 3,
    "train.eval_every": 2,
    "eval.framing": "chunks",
    "sample.temperature": 0.1,
}
# With these overrides, charlm refuses the corpus at once and does not try to download it, so the tests need no network.
NAMED = {"corpus.path": None, "corpus.data_dir": "/proc/no folder"}
LINES = {"corpus.documents": "lines", "batch.framing": "documents", "batch.length": 30}
# Some keys affect a run only if other keys have certain values. For each such key, this dict gives the other keys and their
# values.
CONTEXT = {
    "devices": {"batch.size": 3},
    "corpus.tfds": NAMED,
    "corpus.folder": {"corpus.path": "the folder"},
    "batch.stride": {"batch.framing": "windows"},
    "batch.shuffle": {"batch.framing": "chunks"},
    "batch.bucket": LINES | {"batch.padding": "counted"},
    "batch.padding": LINES,
    "batch.start_symbol": LINES,
    "model.dropout_hidden": {"model.layers": 2},
    "model.dropout_kind": {"model.dropout": 0.5},
    "model.residual": {"model.layers": 2},
    "model.init_scale": {"model.init": "uniform"},
    "model.mogrifier_rounds": {"model.cell": "mogrifier_lstm"},
    "model.mogrifier_rank": {"model.cell": "mogrifier_lstm"},
    "model.slstm_heads": {"model.cell": "slstm"},
    "optim.decay_biases": {"optim.weight_decay": 0.5, "model.init": "pytorch"},
    "optim.weight_decay_epochs": {"optim.name": "adamw"},
    "optim.weight_rms": {"optim.name": "adamw", "optim.weight_decay_epochs": 0.5},
    "optim.eps_form": {"optim.eps": 1e-2},
    "seed": {"batch.shift": False},
    "corpus.name": NAMED,
    "corpus.data_dir": NAMED,
    "optim.decay_rate": {"optim.schedule": "step", "optim.decay_steps": 2},
    "optim.decay_steps": {"optim.schedule": "exponential"},
    "optim.decay_epochs": {"optim.schedule": "step"},
    "optim.decay_after": {"optim.schedule": "exponential", "optim.decay_steps": 2},
    "optim.momentum": {"optim.name": "sgd"},
    "optim.beta3": {"optim.name": "adan"},
    "optim.muon_momentum": {"optim.name": "muon"},
    "optim.average_decay": {"optim.average": "ema"},
    "optim.average_last": {"optim.average": "tail"},
    "optim.average_patience": {
        "optim.average": "nt_asgd",
        "optim.learning_rate": 5.0,
        "optim.schedule": "constant",
        "train.steps": 6,
        "train.eval_every": 1,
    },
    "train.epochs": {"train.steps": 0, "train.epochs": 0.01},
    "train.least_steps": {"train.steps": 0, "train.epochs": 0.01},
    "train.patience": {"optim.learning_rate": 5.0, "train.steps": 6, "train.eval_every": 1},
    "train.halvings": {
        "optim.name": "sgd",
        "optim.weight_decay": 3.0,
        "optim.learning_rate": 1.0,
        "optim.clip_norm": 0.0,
        "optim.schedule": "constant",
        "train.steps": 24,
        "train.eval_every": 100,
    },
    "eval.burn_in": {"eval.lanes": 3},
    "sample.prompt": {"sample.length": 20},
    "sample.temperature": {"sample.length": 20},
    "sample.top_k": {"sample.length": 20},
    "corpus.test_path": {"corpus.validation_path": "the corpus"},
}
# These keys change the memory use or the time of a run, but not its results. Their tests are below, in test_cache.py and in
# test_train.py. `model.precision` has no effect on a CPU. Its test is in test_lowering.py.
WITHOUT_EFFECT = {"eval.length", "eval.rows", "model.precision", *keys.CHANGE_NO_RESULT}


def another(key: keys.Key, value: object) -> object:
    """Returns another value of the key's type. It is an allowed value, unless the key's rule allows only one value."""
    if key.rule.options:
        return next((option for option in key.rule.options if option != value), f"not {value}")
    if key.type is bool:
        return not value
    if key.type is int:
        return value + 1
    if key.type is float:
        return value / 2 if value else 0.5
    return "a" if value != "a" else "b"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A corpus file. It has capital letters and CRLF, so that each config key for normalising text changes it.

    The file is in a folder that has a second text in a subfolder.
    """
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_bytes((make_text(6000) + "ABC\r\n" + make_text(700, seed=1) + "Z").encode())
    (file.parent / "more").mkdir()
    (file.parent / "more" / "words.txt").write_text(make_text(500, seed=2))
    return file


@pytest.fixture(scope="module")
def outcome(words, tmp_path_factory):
    """Returns a function from overrides to a text with the output and the results of a short run. The text has no times."""
    outcomes = {}

    def outcome_with(overrides: dict) -> str:
        name = json.dumps(overrides, sort_keys=True)
        if name not in outcomes:
            outcomes[name] = _outcome(overrides, words, tmp_path_factory.mktemp("run") / "run")
        return outcomes[name]

    return outcome_with


def _config(overrides, words):
    fixed = {
        "corpus.path": str(words),
        "batch.size": 4,
        "batch.length": 16,
        "model.hidden": 8,
        "model.layers": 1,
        "model.embedding": 6,
        "train.steps": 4,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 0,
        "eval.length": 128,
        "eval.burn_in": 5,
        "sample.length": 0,
        "vocab.source": "corpus",
    }
    paths = {"the corpus": str(words), "the folder": str(words.parent)}
    overrides = {key: paths.get(value, value) if isinstance(value, str) else value for key, value in overrides.items()}
    return load.load(TINY, fixed | overrides)


def _outcome(overrides, words, workdir):
    config = _config(overrides, words)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            train.train(config, workdir)
    except (UserError, Failure) as error:
        return str(error)
    samples = [file.read_text() for file in sorted(workdir.glob("samples/*"))]
    checkpoints = sorted(file.name for file in workdir.glob("checkpoints/*"))
    printed = re.sub(r"(\d+ min )?\d+ s\b|[\d,]+ chars/s", "", stdout.getvalue())
    files = [(workdir / name).read_text() for name in ("status.json", "vocab.json", "corpus.json")]
    return json.dumps([read_rows(workdir), samples, checkpoints, printed.replace(str(workdir), ""), files])


# Most cases compile a program. So by default, only the keys of the text and of its batches are tested. Other default tests
# compare what the keys of the other sections do with formulas.
@pytest.mark.parametrize(
    "key",
    [key if key.startswith(("corpus.", "vocab.", "batch.")) else slow(key) for key in keys.KEYS if key not in WITHOUT_EFFECT],
)
def test_changing_a_key_changes_the_run(key, words, outcome):
    context = CONTEXT.get(key, {})
    value = VALUES.get(key, another(keys.KEYS[key], load.flatten(_config(context, words))[key]))
    try:
        changed = outcome(context | {key: value})
    except UserError as error:  # the config check read the key and refused its value
        assert key in str(error)  # noqa: PT017
        return
    assert changed != outcome(context)


def test_the_same_config_gives_the_same_run_and_eval_length_and_eval_rows_do_not_change_the_loss(words, outcome, tmp_path):
    assert _outcome({}, words, tmp_path / "again") == outcome({})
    for key, value in (("eval.length", 600), ("eval.rows", 5)):
        context = {"eval.framing": "chunks"} if key == "eval.rows" else {}
        texts = _outcome(context | {key: value}, words, tmp_path / key), outcome(context)
        changed_rows, rows = (json.loads(text)[0] for text in texts)
        assert [row["nats"] for row in changed_rows] == pytest.approx([row["nats"] for row in rows], rel=1e-6)


@pytest.mark.parametrize("key", keys.KEYS)
def test_every_key_is_read_in_exactly_one_file(key):
    readers = []
    for file in [*(ROOT / "charlm").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        code = re.sub(r'""".*?"""', "", file.read_text(), flags=re.DOTALL)
        if re.search(rf"\bconfig\.{re.escape(key)}\b", re.sub(r'f?"[^"\n]*"|#[^\n]*', "", code)):
            name = str(file.relative_to(ROOT / "charlm"))
            readers.append("models/cells" if name.startswith("models/cells/") else name)  # several cells may read a key
    # The files in `also` may read a key in addition to its one file, because sampling takes its defaults from these keys.
    also = {f"sample.{name}": {"inference/model.py"} for name in ("length", "temperature", "top_k")}
    also |= {"sample.prompt": {"inference/inputs.py"}, "model.dtype": {"inference/model.py", "programs/sample.py"}}
    assert len(set(readers) - also.get(key, set())) == 1, f"{key} is read in {readers}"


@pytest.mark.parametrize("key", keys.TABLE, ids=lambda key: key.name)
def test_every_key_has_a_description_and_a_default_that_its_rule_allows(key):
    assert len(key.meaning) > 10 or key.name == "optim.name"
    assert checking.checked(key.name, key.default) == key.default
    assert key.type in checking.TYPES
    assert key.default is not None or not key.rule.is_right("") or key.rule is rules.ANY  # a key is unset by None, not by ""
    if key.rule is not rules.ANY:
        assert key.rule.words


def test_every_key_is_declared_once_and_has_its_default():
    names = [key.name for key in keys.TABLE]
    assert len(names) == len(set(names))
    for config in (keys.defaults(), keys.defaults(type_safe=False)):
        assert load.flatten(config) == {key.name: key.default for key in keys.TABLE}
    with pytest.raises(TypeError):
        keys.defaults().corpus.path = 3  # a key that is None still has a type


def test_short_names_leave_out_the_section_if_the_rest_is_still_unique():
    assert keys.short("model.hidden") == "hidden"
    assert keys.short("optim.name") == "optim.name"  # corpus.name also exists
    assert keys.short("model.of_another_version") == "model.of_another_version"


def test_each_key_is_found_by_its_short_name_and_an_ambiguous_name_is_refused():
    assert [keys.full_name(keys.short(key)) for key in keys.KEYS] == list(keys.KEYS)
    assert [keys.full_name(name) for name in ("hidden", "optim.name", "seed")] == ["model.hidden", "optim.name", "seed"]
    for name, message in (
        ("name", r"config key 'name' is ambiguous: write corpus\.name or optim\.name\."),
        ("length", r"'length' is ambiguous: write batch\.length, eval\.length or sample\.length\."),
        ("hiden", "unknown config key 'hiden': the nearest key is 'model.hidden'"),
        ("idden", "unknown config key 'idden': the nearest key is 'model.hidden'"),
        ("model", "'model' is a section"),
        ("", "unknown config key ''"),
    ):
        with pytest.raises(UserError, match=message):
            keys.full_name(name)


def test_a_config_saved_before_a_key_existed_gets_the_default_or_the_earlier_behaviour(monkeypatch):
    fields = load.to_dict(load.load(TINY))
    for key in keys.KEYS:
        without_key = json.loads(json.dumps(fields))
        *section, last = key.split(".")
        del (without_key[section[0]] if section else without_key)[last]
        expected = load.flatten(fields) | {key: keys.before_keys_existed()[key]}
        assert load.flatten(load.to_dict(load.from_dict(without_key))) == expected
    new = (keys.Key("model.zoneout", 0.0, rules.FRACTION, "x"), keys.Key("model.peephole", True, rules.ANY, "x", before=False))
    monkeypatch.setattr(keys, "TABLE", keys.TABLE + new)
    monkeypatch.setattr(keys, "KEYS", keys.KEYS | {key.name: key for key in new})
    config = load.from_dict(fields)
    assert (config.model.zoneout, config.model.peephole) == (0.0, False)
    assert load.differences(fields, load.to_dict(config)) == {}
    assert load.load(TINY).model.peephole is True
    different = load.differences(fields, load.to_dict(load.load(TINY)))
    assert load.in_words(different) == "model.peephole (False saved, True given)"


def test_older_runs_keep_their_vocabulary_and_their_way_to_read_a_folder():
    fields = load.to_dict(load.load(TINY))
    assert (fields["vocab"]["source"], fields["corpus"]["folder"]) == ("corpus", "tree")
    old = json.loads(json.dumps(fields))
    del old["vocab"]["source"], old["corpus"]["folder"]
    config = load.from_dict(old)
    assert (config.vocab.source, config.corpus.folder) == ("train", "flat")
    # The old run can be resumed with the new defaults, because the text and the vocabulary are compared when a run resumes.
    assert load.differences(load.to_dict(config), fields) == {}
    # An older run of documents has no start symbol, so the new default would change its training.
    del old["batch"]["start_symbol"]
    assert load.from_dict(old).batch.start_symbol is False
    assert load.differences(old, fields) == {}  # the corpus has no documents, so the key has no effect
    assert keys.effective(load.flatten(old))["batch.start_symbol"] is True
    old["corpus"]["documents"] = "lines"
    documents = fields | {"corpus": fields["corpus"] | {"documents": "lines"}}
    assert load.differences(old, documents) == {"batch.start_symbol": (False, True)}
    # A new run can't be resumed with the old values.
    different = load.differences(fields, load.to_dict(config))
    assert different == {"corpus.folder": ("tree", "flat"), "vocab.source": ("corpus", "train")}


@pytest.mark.parametrize("columns", [70, 80, 150])
def test_the_list_of_keys_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_keys.help_text().splitlines()
    assert max(map(len, lines)) < columns
    for key in keys.TABLE:
        (line,) = [line for line in lines if line.startswith(f"{key.name} ")]
        assert line.split()[1] == {"": '""', (0.9, 0.1): "(0.9,0.1)"}.get(key.default, str(key.default))
    text = " ".join(" ".join(lines).split())
    for key in keys.TABLE:
        assert " ".join(key.meaning.split()) in text
    assert "units of each layer (integer, positive)" in text
    assert "(one of adam, adamw, rmsprop, sgd, lion, adafactor, adan, muon, schedule_free_adamw)" in text
    assert "(true or false)" in text
    assert "(path, or None)" in text


@pytest.mark.parametrize("program", ["train", "sweep", "import_torch", "import_keras"])
def test_helpkeys_needs_no_other_flag_and_does_not_import_jax(program):
    code = (
        f"import sys; from charlm.programs import {program}; sys.argv = ['x', '--helpkeys=markdown']\n"
        f"try: {program}.run()\nexcept SystemExit as error: assert error.code == 0\nassert 'jax' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr == ""
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in result.stdout.splitlines()]
    assert rows[0] == ["key", "default", "meaning", "allowed values"]
    assert [len(row) for row in rows] == [4] * (len(keys.TABLE) + 2)
    assert [row[0] for row in rows[2:]] == [f"`{key.name}`" for key in keys.TABLE]


def test_help_mentions_helpkeys_only_if_the_program_has_a_config_flag(script, tmp_path):
    assert "--helpkeys: list all config keys" in script("train", "--help").stdout
    assert "helpkeys" not in script("compare", "--help").stdout
    assert "unknown command line flag 'helpkeys'" in script.fails("sample", "--helpkeys", cwd=tmp_path).lower()
    assert script.fails("train", "--helpkeys=html") == "error: --helpkeys=html: must be markdown or empty."
