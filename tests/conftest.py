"""Settings and fixtures for all tests.

One setting makes JAX strict: broadcasting between arrays of different rank is an error. The other settings make the tests
faster. The fixtures provide a small made-up corpus, and run the scripts as a user would. A comment such as `invariant 4` refers
to the list of invariants in scripts/README.md.
"""

import os
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from faults import runs
from faults.checks import read_rows
from faults.runs import QUICK_COMPILATION

from charlm.hardware.cache import keep_compiled
from charlm.models import stack
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run

ROOT = pathlib.Path(__file__).parent.parent
SHARED_CORPORA = ROOT.parent / "shared" / "corpora"
TINY = "configs/tiny.py"  # path relative to ROOT

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests expect virtual CPU devices. The tests therefore run on the CPU, even if JAX is installed for a GPU or TPU. With the
# variable in the environment, the scripts use the CPU, too.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
# If GLIBC_TUNABLES is not set, each script sets it in devices.use_huge_pages and then restarts itself, which takes time.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# If PYTHONDONTWRITEBYTECODE is set, Python saves no bytecode. Each of the about 250 processes that the tests start would then
# compile charlm's modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session", autouse=True)
def _share_compilation_cache(tmp_path_factory):
    """Gives all tests and all scripts the same compilation cache. Each test session starts with an empty cache."""
    temporary = tmp_path_factory.getbasetemp()
    cache = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / "xla"
    settings = {"jax_compilation_cache_dir": os.fspath(cache), "jax_persistent_cache_min_compile_time_secs": 0}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    keep_compiled(None)  # so that the programs of this process have digests, too: the scripts check them


# The default suite (`-m "not slow"`) turns off most XLA optimisations, which halves the compile time. It also turns off the
# emitters of XLA:CPU, which are code generators for fused operations. Together, the two settings reduce the compile time to a
# sixth. XLA also splits each program into several parts that it compiles in parallel. For the small programs of the tests this
# costs more than it saves, so a program is one part. Without `-m`, pytest compiles with the same settings as a user's run. If a
# test fails, repeat the test without `-m` to see whether these settings cause the failure.
#
# The test modules in FULLY_OPTIMISED always compile with all optimisations. There is one exception: in the default suite, the
# XLA flags of the pytest process do not change for these modules, because XLA reads its flags only once per process.
FULLY_OPTIMISED = {"cache", "lstm"}


def wants_quick_compilation(config) -> bool:
    return "not slow" in config.option.markexpr


def set_xla_flags(quick: bool) -> None:
    # If the user has set XLA_FLAGS, its value does not change. With JAX 0.11 or newer, the flags are not set. That JAX may
    # not know a flag, and XLA ends the process if a flag is unknown.
    if os.environ.get("XLA_FLAGS", QUICK_COMPILATION) != QUICK_COMPILATION or jax.__version_info__ >= (0, 11):
        return
    if quick:
        os.environ["XLA_FLAGS"] = QUICK_COMPILATION
    else:
        os.environ.pop("XLA_FLAGS", None)


def pytest_configure(config):
    set_xla_flags(wants_quick_compilation(config))
    jax.devices()  # XLA reads its flags during this call


@pytest.fixture(scope="module", autouse=True)
def _set_compilation_speed(request):
    quick = wants_quick_compilation(request.config) and request.module.__name__.removeprefix("test_") not in FULLY_OPTIMISED
    jax.config.update("jax_disable_most_optimizations", quick)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(quick)
    set_xla_flags(quick)


def slow(*values, id=None):
    """A case of a parametrised test that only `scripts/test.sh --slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def half_slow(cases):
    """The cases of a parametrised test. By default, every second case is tested."""
    return [slow(*case) if number % 2 else case for number, case in enumerate(cases)]


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("corpus") / "made_up.txt"
    file.write_text(runs.make_text(12_000), encoding="utf-8")
    return file


@pytest.fixture
def small(corpus_file):
    """Config overrides for a small run: with them, any config trains on the made-up corpus within a second."""
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
        """Runs a script that must fail and returns the error message. The message must be the only line on stderr."""
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


def assert_near_rows(workdir, expected_workdir):
    """Compares the rows of metrics of two runs. The losses may differ by 1e-4 nats."""
    numbers = ("nats", "bits", "perplexity", "bits_per_byte", "grad_norm")
    for row, expected in zip(read_rows(workdir), read_rows(expected_workdir), strict=True):
        assert row == expected | {name: pytest.approx(expected[name], abs=1e-4) for name in numbers if name in expected}


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)
