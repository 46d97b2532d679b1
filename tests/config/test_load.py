"""Invariant 6: every key is read in one place, matters, and nothing else passes for a key; all configs load."""

import contextlib
import io
import json
import re

import pytest
from conftest import ROOT, make_text, read_rows

from charlm.config import load as config_module
from charlm.errors import Failure, UserError
from charlm.training import train
from configs import base

CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.py") if file.name != "__init__.py")
TINY = str(ROOT / "configs" / "tiny.py")

# For each key another value, and where it takes one, the context in which the key has a say.
OTHER = {
    "seed": 1,
    "devices": 2,
    "cache_dir": "/another/folder",
    "corpus.name": "no such corpus",
    "corpus.path": "/another/file",
    "corpus.validation_path": "/another/file",
    "corpus.test_path": "/another/file",
    "corpus.data_dir": "/proc/another folder",
    "corpus.tfds": "no_such_dataset:text",
    "corpus.documents": "lines",
    "corpus.split": (0.8, 0.2),
    "corpus.lowercase": True,
    "corpus.keep": "abcdefghij\n",
    "corpus.newlines": False,
    "vocab.source": "train",
    "vocab.unknown": True,
    "batch.framing": "of another kind",
    "batch.size": 5,
    "batch.length": 17,
    "batch.shift": False,
    "batch.stride": 3,
    "batch.shuffle": False,
    "batch.bucket": 5,
    "batch.padding": "counted",
    "model.input": "onehot",
    "model.embedding": 7,
    "model.layers": 2,
    "model.hidden": 9,
    "model.dropout": 0.5,
    "model.init": "uniform",
    "model.init_scale": 0.3,
    "model.head_scale": 1.0,
    "model.forget_bias": 0.0,
    "model.dtype": "bfloat16",
    "optim.name": "sgd",
    "optim.learning_rate": 1e-3,
    "optim.schedule": "constant",
    "optim.warmup_steps": 3,
    "optim.final_fraction": 0.5,
    "optim.decay_rate": 0.9,
    "optim.decay_steps": 2,
    "optim.beta1": 0.5,
    "optim.beta2": 0.9,
    "optim.eps": 1e-2,
    "optim.eps_form": "keras",
    "optim.momentum": 0.9,
    "optim.clip_norm": 0.01,
    "optim.clip_value": 0.001,
    "optim.weight_decay": 0.5,
    "optim.decay_biases": True,
    "train.epochs": 0.02,
    "train.steps": 5,
    "train.steps_per_call": 2,
    "train.log_every": 3,
    "train.eval_every": 2,
    "train.checkpoint_every": 3,
    "train.patience": 1,
    "train.halvings": 1,
    "train.best": "train",
    "eval.framing": "chunks",
    "eval.rows": 7,
    "eval.length": 100,
    "eval.lanes": 3,
    "eval.burn_in": 20,
    "sample.prompt": "a",
    "sample.length": 5,
    "sample.temperature": 0.1,
    "sample.top_k": 2,
}
NAMED = {"corpus.path": None, "corpus.data_dir": "/proc/no folder"}  # refused at once, without a network
LINES = {"corpus.documents": "lines", "batch.framing": "documents", "batch.length": 30}
CONTEXT = {
    "devices": {"batch.size": 3},
    "corpus.tfds": {"corpus.data_dir": "/tmp/no folder", "corpus.path": None},
    "batch.stride": {"batch.framing": "windows"},
    "batch.shuffle": {"batch.framing": "chunks"},
    "batch.bucket": LINES | {"batch.padding": "counted"},
    "batch.padding": LINES,
    "model.init_scale": {"model.init": "uniform"},
    "optim.decay_biases": {"optim.weight_decay": 0.5, "model.init": "pytorch"},
    "optim.eps_form": {"optim.eps": 1e-2},
    "seed": {"batch.shift": False},
    "corpus.name": NAMED,
    "corpus.data_dir": NAMED,
    "optim.decay_rate": {"optim.schedule": "step", "optim.decay_steps": 2},
    "optim.decay_steps": {"optim.schedule": "exponential"},
    "optim.momentum": {"optim.name": "sgd"},
    "train.epochs": {"train.steps": 0, "train.epochs": 0.01},
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
# Memory or time, not result: these have tests of their own, below and in test_cache.py.
WITHOUT_EFFECT = {"eval.length", "eval.rows", "cache_dir", "train.steps_per_call"}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A corpus in which every normalisation finds something to do."""
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_bytes((make_text(6000) + "ABC\r\n" + make_text(700, seed=1) + "Z").encode())
    return file


@pytest.fixture(scope="module")
def outcome(words, tmp_path_factory):
    """A function: overrides → all that a short run lets one see, but for its times."""
    seen = {}

    def of(overrides: dict) -> str:
        name = json.dumps(overrides, sort_keys=True)
        if name not in seen:
            seen[name] = _outcome(overrides, words, tmp_path_factory.mktemp("run") / "run")
        return seen[name]

    return of


def _outcome(overrides, words, workdir):
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
    overrides = {key: str(words) if value == "the corpus" else value for key, value in overrides.items()}
    config = config_module.load(TINY, fixed | overrides)
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


@pytest.mark.parametrize("key", [key for key in OTHER if key not in WITHOUT_EFFECT])
def test_changing_a_key_changes_something(key, outcome):
    context = CONTEXT.get(key, {})
    try:
        changed = outcome(context | {key: OTHER[key]})
    except UserError as error:  # refused by the check of the config: it was read
        assert key in str(error)  # noqa: PT017
        return
    assert changed != outcome(context)


def test_the_same_keys_give_the_same_and_the_window_of_an_evaluation_changes_nothing(words, outcome, tmp_path):
    assert _outcome({}, words, tmp_path / "again") == outcome({})
    for key, value in (("eval.length", 600), ("eval.rows", 5)):
        context = {"eval.framing": "chunks"} if key == "eval.rows" else {}
        texts = _outcome(context | {key: value}, words, tmp_path / key), outcome(context)
        other, one = (json.loads(text)[0] for text in texts)
        assert [row["nats"] for row in other] == pytest.approx([row["nats"] for row in one], rel=1e-6)


def test_every_key_has_another_value_here_and_a_rule():
    keys = set(config_module.flatten(base.get_config()))
    assert keys == set(OTHER)
    assert keys == set(config_module.RULES)


def test_every_key_is_read_in_exactly_one_place():
    sources = [*(ROOT / "charlm").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    text = "\n".join(re.sub(r'""".*?"""', "", file.read_text(), flags=re.DOTALL) for file in sources)
    for key in OTHER:
        reads = re.findall(rf"\bconfig\.{re.escape(key)}\b", re.sub(r'f?"[^"\n]*"|#[^\n]*', "", text))
        checks = {"corpus.path": 2, "corpus.validation_path": 2, "corpus.test_path": 1}  # the rules over several keys
        checks |= {"corpus.tfds": 1, "corpus.documents": 1}
        checks |= {f"sample.{name}": 1 for name in ("prompt", "length", "temperature", "top_k")}  # scripts/sample.py's defaults
        checks |= {"model.layers": 1, "model.hidden": 1, "model.dtype": 1}  # how many weights there are, before JAX starts
        assert len(reads) - checks.get(key, 0) == 1, f"{key} is read {len(reads)} times"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_loads_and_says_how_to_run_it(file):
    config = config_module.load(str(file))
    assert set(config_module.flatten(config)) == set(OTHER)
    if file.stem != "base":
        assert f"scripts/train.py --config=configs/{file.name} --workdir=" in file.read_text()


def test_every_key_of_base_is_commented():
    for line in (ROOT / "configs" / "base.py").read_text().splitlines():
        if re.match(r"    config\.\w+(\.\w+)? = (?!ConfigDict)", line):
            assert "  # " in line, line


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.hiden", "3", r"unknown config key 'model.hiden': the nearest known one is 'model.hidden'"),
        ("hidden", "3", r"unknown config key 'hidden': the nearest known one is 'model.hidden'"),
        ("model", "3", r"unknown config key 'model'"),
        ("model.hidden.units", "3", r"unknown config key 'model.hidden.units': the nearest known one is 'model.hidden'"),
        ("model.hidden", "wide", r"model.hidden='wide' is of the wrong type: an integer would be right"),
        ("model.hidden", "2.5", r"model.hidden='2.5' is of the wrong type: an integer"),
        ("model.hidden", "0", r"model.hidden=0 is not right: it must be positive"),
        ("batch.size", "-4", r"batch.size=-4 is not right: it must be positive"),
        ("batch.length", "0", r"batch.length=0 is not right"),
        ("model.dropout", "1.0", r"model.dropout=1.0 is not right: it must be at least 0 and below 1"),
        ("model.dropout", "-0.1", r"model.dropout=-0.1 is not right"),
        ("optim.learning_rate", "nan", r"optim.learning_rate=nan is not right: a finite number would be"),
        ("optim.name", "adm", r"optim.name='adm' is not right: it must be one of adam, adamw, rmsprop, sgd"),
        ("corpus.split", "(0.9,0.2)", r"corpus.split=\(0.9, 0.2\) is not right"),
        ("corpus.split", "(0.9,", r"corpus.split='\(0.9,' is of the wrong type"),
        ("corpus.split", "('a','b')", r"corpus.split=\('a', 'b'\) is not right"),
        ("vocab.unknown", "maybe", r"vocab.unknown='maybe' is of the wrong type: true or false would be right"),
        ("model.hidden", "10000000000", r"model.hidden=10000000000 is not right: it must be below 2147483648"),
        ("optim.decay_steps", "3000000000", r"optim.decay_steps=3000000000 is not right: it must be below 2147483648"),
        ("corpus.split", f"({'9' * 400},)", r"corpus.split=.* is not right: it must be one to three"),
        ("sample.temperature", "1e300", r"sample.temperature=1e\+300 is not right: a finite number would be, at most 3e\+38"),
        ("sample.prompt", "", r"sample.prompt='' is not right: it must be at least one char"),
        ("corpus.test_path", "x", r"corpus.test_path is set but corpus.validation_path is not"),
    ],
)
def test_wrong_overrides_get_one_sentence(key, value, message):
    with pytest.raises(UserError, match=message):
        config_module.load(TINY, {key: value})


def test_runs_that_are_older_than_a_key_are_as_its_default_has_it():
    fields = config_module.to_dict(config_module.load(TINY))
    del fields["sample"]["top_k"]
    assert config_module.to_dict(config_module.from_dict(fields)) == config_module.to_dict(config_module.load(TINY))
    del fields["sample"]["length"]
    with pytest.raises(UserError, match=r"has no sample.length: it was written by another version"):
        config_module.from_dict(fields)


def test_a_dataset_of_tfds_beside_a_file_is_refused():
    for key, value in (("corpus.path", "titles.csv"), ("corpus.documents", "csv:1")):
        message = rf"{key}='{value}' and corpus.tfds='a:b' are both set: corpus.tfds=None takes the file"
        with pytest.raises(UserError, match=message):
            config_module.load(TINY, {"corpus.tfds": "a:b", key: value})


def test_values_are_read_as_their_key_asks():
    overrides = {"model.dropout": "0.25", "vocab.unknown": "TRUE", "corpus.split": "0.8,0.1,0.1", "corpus.path": "None"}
    config = config_module.load(TINY, overrides)
    assert (config.model.dropout, config.vocab.unknown, config.corpus.split) == (0.25, True, (0.8, 0.1, 0.1))
    assert config.corpus.path is None
    assert config_module.load(TINY, {"optim.learning_rate": "1"}).optim.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("x = 1", "has no get_config"),
        ("def get_config(arg=None): return {}", "has no get_config"),
        ("def get_config(", "can't be loaded: SyntaxError"),
        ("def get_config(arg=None): return 1 / 0", "can't be loaded: ZeroDivisionError"),
        ("{base} config.model.hiden = 3; return config", "unknown config key 'model.hiden'"),
        ("{base} config.model = type(config)(); return config", "has no model.input: begin its get_config"),
        ("{base} config.model.unlock(); del config.model['hidden']; config.model.hidden = 'x'; return config", "wrong type"),
    ],
)
def test_wrong_config_files_get_one_sentence(tmp_path, text, message):
    file = tmp_path / "mine.py"
    if text is not None:
        begin = "from configs import base\ndef get_config(arg=None): config = base.get_config();"
        file.write_text(text.replace("{base}", begin))
    with pytest.raises(UserError, match=message):
        config_module.load(str(file))


def test_argument_behind_the_colon_reaches_get_config(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import base\n"
        "def get_config(arg=None):\n    config = base.get_config()\n    config.model.hidden = int(arg)\n    return config\n"
    )
    assert config_module.load(f"{file}:77").model.hidden == 77
