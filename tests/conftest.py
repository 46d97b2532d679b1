"""What all tests share: strict JAX, a small corpus made on the spot, and scripts run as a user runs them."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run

ROOT = pathlib.Path(__file__).parent.parent
SHARED_CORPORA = ROOT.parent / "shared" / "corpora"
TINY = "configs/tiny.py"  # as seen from ROOT

jax.config.update("jax_numpy_rank_promotion", "raise")
# Else devices.use_huge_pages has each script start anew with it.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# Else each of some 250 processes compiles charlm's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """A compilation cache that all tests and the scripts they start share, empty at the start of each session."""
    own = tmp_path_factory.getbasetemp()
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "xla"
    settings = {"jax_compilation_cache_dir": os.fspath(cache), "jax_persistent_cache_min_compile_time_secs": 0}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


# The default suite compiles without most optimisations, in half the time, and so without XLA:CPU's emitters for fused
# operations, in a third of what is left; its failures are to be repeated with -m 'not slow'. The long suite, and pytest without
# -m, compile as a user does. These modules do so always, but that XLA reads its flags once in a process of pytest.
COMPILED_IN_FULL = {"cache", "lstm", "resume"}
WITHOUT_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def compiles_quickly(config) -> bool:
    return "not slow" in config.option.markexpr


def set_emitters(quickly: bool) -> None:
    # The user's flags stand. XLA ends a process that has a flag it does not know; the next version need not have this one.
    if os.environ.get("XLA_FLAGS", WITHOUT_EMITTERS) != WITHOUT_EMITTERS or jax.__version_info__ >= (0, 11):
        return
    if quickly:
        os.environ["XLA_FLAGS"] = WITHOUT_EMITTERS
    else:
        os.environ.pop("XLA_FLAGS", None)


def pytest_configure(config):
    set_emitters(compiles_quickly(config))
    jax.devices()  # has read the flags


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    quickly = compiles_quickly(request.config) and request.module.__name__.removeprefix("test_") not in COMPILED_IN_FULL
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quickly)
    set_emitters(quickly)


def make_text(chars: int, seed: int = 0) -> str:
    """Words of a small made-up language with punctuation and line breaks: something that an LSTM can learn a little of."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(60)]
    text = ""
    while len(text) < chars:
        text += rng.choice(words) + rng.choice([" ", " ", " ", ", ", ".\n"])
    return text[:chars]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("corpus") / "made_up.txt"
    file.write_text(make_text(12_000), encoding="utf-8")
    return file


@pytest.fixture
def small(corpus_file):
    """Overrides that make any config train on the made-up corpus within a second."""
    return {
        "corpus.path": os.fspath(corpus_file),
        "batch.size": 4,
        "batch.length": 16,
        "model.hidden": 8,
        "model.layers": 1,
        "model.embedding": 6,
        "train.steps": 6,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 3,
        "eval.length": 128,
        "sample.length": 20,
    }


class Scripts:
    """Runs scripts/NAME.py in a process of its own."""

    def __call__(self, name: str, *arguments: str, status: int = 0, **options) -> subprocess.CompletedProcess:
        result = subprocess.run(self.command(name, *arguments), capture_output=True, text=True, env=self.env(), **options)
        assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def fails(self, name: str, *arguments: str, status: int = 2, **options) -> str:
        """The one sentence on stderr with which the script refuses; stdout and traceback must be empty."""
        result = self(name, *arguments, status=status, **options)
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: "), result.stderr
        return lines[0]

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, os.fspath(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]

    def env(self) -> dict[str, str]:
        return {**os.environ, "JAX_NUMPY_RANK_PROMOTION": "raise"}


@pytest.fixture(scope="session")
def script() -> Scripts:
    return Scripts()


def as_flags(overrides: dict) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def read_rows(workdir) -> list[dict]:
    """The rows of a run's metrics without the columns that tell time, which no two runs share, and what seals them."""
    timing = ("seconds", "chars_per_second", "seal")
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timing} for line in lines]


def final_params(workdir, directory=None):
    checkpoints = Checkpoints(directory or Run(workdir).checkpoints, read_only=True)
    config = Run(workdir).config()
    functions = stack.functions(config, len(Run(workdir).vocab()))
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    return jax.tree.map(np.asarray, checkpoints.restore_params(checkpoints.steps()[-1], abstract))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def wait_for_step(workdir, step):
    metrics = workdir / "metrics.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        lines = metrics.read_text().rpartition("\n")[0].splitlines() if metrics.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.001)
    raise AssertionError(f"{workdir} did not reach step {step}")
