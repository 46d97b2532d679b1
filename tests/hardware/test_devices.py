"""Tests how many devices divide the rows of a batch among them, and how XLA and the C library are set up for the CPU."""

import concurrent.futures
import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from charlm.errors import UserError
from charlm.hardware import devices
from charlm.models import stack
from configs import base


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("rows", "wanted", "processes", "expected"),
    [
        (64, 0, 1, "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"),
        # 3 does not divide 64, so 2 devices are used. With 2 devices on 4 cores, matrix products use all cores.
        (64, 3, 1, "--xla_force_host_platform_device_count=2"),
        (50, 0, 1, "--xla_force_host_platform_device_count=2"),
        (33, 0, 1, "--xla_force_host_platform_device_count=1"),
        (64, 0, 2, "--xla_force_host_platform_device_count=2"),
    ],
)
def test_prepare_cpu_sets_xla_flags_unless_the_user_has_set_them(monkeypatch, rows, wanted, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    config = base.get_config()
    config.devices = wanted
    assert devices.prepare_cpu(config, rows, processes) == [f"XLA_FLAGS={expected}"]
    assert os.environ["XLA_FLAGS"] == expected
    assert devices.prepare_cpu(config, rows, processes) == []  # XLA_FLAGS already sets the number of devices
    assert os.environ["XLA_FLAGS"] == expected
    monkeypatch.setenv("XLA_FLAGS", "/a/file/of/flags")
    assert devices.prepare_cpu(config, rows, processes) == []
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")  # other flags of the user are kept
    assert devices.prepare_cpu(config, rows, processes) == [f"XLA_FLAGS={expected} --xla_dump_to=x"]


def test_command_buffers_add_flags_if_jax_has_a_plugin_for_cuda(monkeypatch, tmp_path):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    config, flags = base.get_config(), " ".join(devices.COMMAND_BUFFERS)
    config.command_buffers = True
    with monkeypatch.context() as without_plugin:
        without_plugin.setattr(importlib.util, "find_spec", lambda name: None)
        assert devices.prepare_gpu(config) == []
    (tmp_path / "jax_cuda13_plugin").mkdir()
    (tmp_path / "jax_cuda13_plugin" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert devices.prepare_gpu(config) == [f"XLA_FLAGS={flags}"]
    assert devices.prepare_gpu(config) == []  # the flags are already set
    assert os.environ["XLA_FLAGS"] == flags
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS")
    assert devices.prepare_gpu(config) == []
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setenv("XLA_FLAGS", "/a/file/of/flags")
    assert devices.prepare_gpu(config) == []
    assert devices.without_effect(config) != []
    user_flags = "--xla_gpu_graph_min_graph_size=3 --xla_force_host_platform_device_count=1"
    monkeypatch.setenv("XLA_FLAGS", user_flags)
    assert devices.prepare(config, 16) == [f"XLA_FLAGS={' '.join(devices.COMMAND_BUFFERS[:2])} {user_flags}"]
    monkeypatch.delenv("XLA_FLAGS")
    assert devices.prepare(config, 16) == [f"XLA_FLAGS={flags}"]  # JAX_PLATFORMS=cuda,cpu: no options for a CPU
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.delenv("JAX_PLATFORMS")
    (setting,) = devices.prepare(config, 16)
    assert setting.startswith("XLA_FLAGS=--xla_force_host_platform_device_count=")
    assert setting.endswith(flags)
    monkeypatch.delenv("XLA_FLAGS")
    config.command_buffers = False
    assert devices.prepare_gpu(config) == []
    assert devices.without_effect(config) == []


def test_xla_knows_the_flags_of_command_buffers_and_an_unknown_flag_is_refused(monkeypatch):
    """XLA ends the process if XLA_FLAGS has an unknown flag or a wrong value."""
    environment = {**os.environ, "XLA_FLAGS": " ".join(devices.COMMAND_BUFFERS)}
    done = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(devices, "COMMAND_BUFFERS", (*devices.COMMAND_BUFFERS, "--xla_gpu_graph_min_graph=1"))
    config = base.get_config()
    config.command_buffers = True
    with pytest.raises(UserError, match=r"jaxlib has no flag --xla_gpu_graph_min_graph: set command_buffers=False\."):
        devices.prepare_gpu(config)


@pytest.mark.parametrize(
    ("system_setting", "user_tunables", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1"),
        ("[always] madvise never", None, None),
        (None, None, None),
    ],
)
def test_a_program_restarts_itself_if_linux_offers_huge_pages_on_request(tmp_path, system_setting, user_tunables, expected):
    if system_setting is not None:
        (tmp_path / "enabled").write_text(system_setting)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\nfrom charlm.hardware import devices\nprint(os.getpid(), sys.argv[1:])\n"
        f"devices.HUGE_PAGES_SETTING = pathlib.Path({str(tmp_path / 'enabled')!r})\ndevices.use_huge_pages()\n"
        "print(os.getpid(), sys.argv[1:])\nprint(os.environ.get('GLIBC_TUNABLES'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": "."}
    if user_tunables is not None:
        environment["GLIBC_TUNABLES"] = user_tunables
    command = [sys.executable, os.fspath(program), "--text=a b", "c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *starts, tunables = done.stdout.splitlines()
    assert tunables == str(expected)
    assert len(starts) == (3 if expected and not user_tunables else 2)
    assert len(set(starts)) == 1  # the restart keeps the process id and the arguments
    assert "['--text=a b', 'c']" in starts[0]


def test_devices_share_the_sampled_rows_only_if_the_weights_are_small():
    config = base.get_config()
    config.model.update({"hidden": 512, "layers": 2})

    def shared(dtype: str) -> int:
        return devices.rows_to_share(config, stack.layer_operations(config), 64, dtype)

    # Several devices divide the rows among them if all weights take at most 4 MB. Here the weights are three matrices of
    # 512 x 2,048. These matrices take 12 MB in float32 and 6 MB in bfloat16.
    assert shared("float32") == 1
    assert shared("bfloat16") == 1
    config.model.hidden = 256  # three matrices of 256 x 1,024: 3 MB in float32
    assert shared("float32") == 64
    config.model.layers = 4  # seven matrices of 256 x 1,024: 7 MB in float32, 3.5 MB in bfloat16
    assert shared("float32") == 1
    assert shared("bfloat16") == 64
    config.devices = 2  # a number of devices that the user has set has priority over this rule
    assert shared("float32") == 64


def test_number_of_devices_that_share_a_batch():
    assert devices.shared_by(rows=64, available=2, wanted=0) == 2
    assert devices.shared_by(rows=50, available=4, wanted=0) == 2  # neither 3 nor 4 divides 50
    assert devices.shared_by(rows=8, available=2, wanted=0) == 1  # 2 devices would have fewer than MIN_ROWS rows each
    assert devices.shared_by(rows=8, available=2, wanted=2) == 2
    assert devices.shared_by(rows=7, available=4, wanted=3) == 1
    assert devices.shared_by(rows=128, available=8, wanted=3) == 2


def test_number_of_devices_that_share_the_trials_of_a_pack():
    cases = ((8, 2, 0, 2), (3, 2, 0, 2), (5, 4, 0, 3), (12, 8, 0, 6), (4, 8, 0, 4), (4, 8, 2, 2), (9, 4, 16, 3), (2, 1, 0, 1))
    for trials, available, wanted, expected in cases:
        number = devices.for_trials(trials, available, wanted)
        assert number == expected
        # No device could have fewer trials at most, and one device less would have more.
        assert -(-trials // number) == -(-trials // min(available, wanted or available))


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has SCHED_BATCH")
def test_batch_scheduling_is_set_on_cpus_unless_the_user_has_chosen_a_policy(monkeypatch):
    """Linux has one policy per thread, so this test changes the policy of a thread that soon ends."""

    def policies() -> list[int]:
        found = []
        for platform, before in (("cuda", os.SCHED_OTHER), ("cpu", os.SCHED_OTHER), ("cpu", os.SCHED_IDLE)):
            monkeypatch.setenv("JAX_PLATFORMS", platform)
            os.sched_setscheduler(0, before, os.sched_param(0))
            devices.use_batch_scheduling()
            found.append(os.sched_getscheduler(0))
        return found

    def refused(*arguments):
        raise PermissionError

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(policies).result() == [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE]
    monkeypatch.setattr(os, "sched_setscheduler", refused)
    devices.use_batch_scheduling()
    monkeypatch.delattr(os, "SCHED_BATCH")
    devices.use_batch_scheduling()
