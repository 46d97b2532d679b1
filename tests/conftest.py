"""Settings and fixtures of all tests: strict JAX, a small made-up corpus, and a way to run the scripts as a user does."""

import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from faults import runs

from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run

ROOT = pathlib.Path(__file__).parent.parent
SHARED_CORPORA = ROOT.parent / "shared" / "corpora"
TINY = "configs/tiny.py"  # relative to ROOT

jax.config.update("jax_numpy_rank_promotion", "raise")
# Without this variable, devices.use_huge_pages sets it and restarts each script.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# With this variable, about 250 test processes would each compile charlm's modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Gives all tests, and the scripts that they start, the same compilation cache. Each session starts with an empty cache."""
    own = tmp_path_factory.getbasetemp()
    cache = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "xla"
    settings = {"jax_compilation_cache_dir": os.fspath(cache), "jax_persistent_cache_min_compile_time_secs": 0}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


# The default suite (`-m "not slow"`) turns off most optimisations of XLA, which halves the compile time. The suite also turns
# off XLA:CPU's emitters for fused operations. Together, these settings reduce the compile time to a sixth. Without `-m`, pytest
# compiles as in a user's run, so repeat a failed test without `-m`. The test modules below always compile with all
# optimisations. In these modules the emitters may stay off, because XLA reads its flags only once per process.
COMPILED_IN_FULL = {"cache", "lstm", "resume"}
WITHOUT_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def compiles_quickly(config) -> bool:
    return "not slow" in config.option.markexpr


def set_emitters(quickly: bool) -> None:
    # Flags that the user has set are kept. XLA ends a process that gives it an unknown flag. JAX 0.11 may not know this flag.
    if os.environ.get("XLA_FLAGS", WITHOUT_EMITTERS) != WITHOUT_EMITTERS or jax.__version_info__ >= (0, 11):
        return
    if quickly:
        os.environ["XLA_FLAGS"] = WITHOUT_EMITTERS
    else:
        os.environ.pop("XLA_FLAGS", None)


def pytest_configure(config):
    set_emitters(compiles_quickly(config))
    jax.devices()  # XLA reads its flags here


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly(request):
    quickly = compiles_quickly(request.config) and request.module.__name__.removeprefix("test_") not in COMPILED_IN_FULL
    jax.config.update("jax_disable_most_optimizations", quickly)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quickly)
    set_emitters(quickly)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("corpus") / "made_up.txt"
    file.write_text(runs.make_text(12_000), encoding="utf-8")
    return file


@pytest.fixture
def small(corpus_file):
    """Overrides with which every config trains on the made-up corpus within a second."""
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
    """Runs scripts/NAME.py in a new process."""

    def __call__(self, name: str, *arguments: str, status: int = 0, **options) -> subprocess.CompletedProcess:
        result = subprocess.run(self.command(name, *arguments), capture_output=True, text=True, env=self.env(), **options)
        assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def fails(self, name: str, *arguments: str, status: int = 2, **options) -> str:
        """Runs a script that must fail, and returns its error message. This message must be the only line on stderr."""
        result = self(name, *arguments, status=status, **options)
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("error: "), result.stderr
        return lines[0]

    def command(self, name: str, *arguments: str) -> list[str]:
        return runs.command(name, *arguments)

    def env(self) -> dict[str, str]:
        return {**os.environ, "JAX_NUMPY_RANK_PROMOTION": "raise"}


@pytest.fixture(scope="session")
def script() -> Scripts:
    return Scripts()


def final_params(workdir, directory=None):
    checkpoints = Checkpoints(directory or Run(workdir).checkpoints, read_only=True)
    config = Run(workdir).config()
    functions = stack.functions(config, len(Run(workdir).vocab()))
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    return jax.tree.map(np.asarray, checkpoints.restore_params(checkpoints.steps()[-1], abstract))


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
