"""How many devices share a batch, and what XLA and the C library are told about the CPU."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from ml_collections import ConfigDict

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
        (64, 3, 1, "--xla_force_host_platform_device_count=2"),  # 3 does not divide 64; products use all cores
        (50, 0, 1, "--xla_force_host_platform_device_count=2"),
        (33, 0, 1, "--xla_force_host_platform_device_count=1"),
        (64, 0, 2, "--xla_force_host_platform_device_count=2"),
    ],
)
def test_what_xla_is_told_of_the_cpu(monkeypatch, rows, wanted, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    config = base.get_config()
    config.devices = wanted
    assert devices.prepare_cpu(config, rows, processes) == [f"XLA_FLAGS={expected}"]
    assert os.environ["XLA_FLAGS"] == expected
    assert devices.prepare_cpu(config, rows, processes) == []  # who has named a number of devices has it
    assert os.environ["XLA_FLAGS"] == expected
    monkeypatch.setenv("XLA_FLAGS", "/a/file/of/flags")
    assert devices.prepare_cpu(config, rows, processes) == []
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")  # what the user has set besides stands
    assert devices.prepare_cpu(config, rows, processes) == [f"XLA_FLAGS={expected} --xla_dump_to=x"]


@pytest.mark.parametrize(
    ("given", "set_before", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1"),
        ("[always] madvise never", None, None),
        (None, None, None),
    ],
)
def test_a_program_starts_anew_for_huge_pages_where_they_are_given_on_request(tmp_path, given, set_before, expected):
    if given is not None:
        (tmp_path / "enabled").write_text(given)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\nfrom charlm.hardware import devices\nprint(os.getpid(), sys.argv[1:])\n"
        f"devices.HUGE_PAGES_SETTING = pathlib.Path({str(tmp_path / 'enabled')!r})\ndevices.use_huge_pages()\n"
        "print(os.getpid(), sys.argv[1:])\nprint(os.environ.get('GLIBC_TUNABLES'))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"PYTHONPATH": "."}
    if set_before is not None:
        environment["GLIBC_TUNABLES"] = set_before
    command = [sys.executable, os.fspath(program), "--text=a b", "c"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *starts, tunables = done.stdout.splitlines()
    assert tunables == str(expected)
    assert len(starts) == (3 if expected and not set_before else 2)
    assert len(set(starts)) == 1  # one process id, one list of arguments
    assert "['--text=a b', 'c']" in starts[0]


def test_rows_are_sampled_by_several_devices_where_their_weights_are_few():
    config = ConfigDict({"devices": 0, "model": {"cell": "lstm", "hidden": 512, "layers": 2}})

    def shared(dtype: str) -> int:
        return devices.rows_to_share(config, stack.layer_operations(config), 64, dtype)

    # Three matrices of 512 x 2,048: 12 MB in float32, 6 MB in bfloat16; of 256 x 1,024, 3 MB and 1.5 MB; 4 MB pay.
    assert shared("float32") == 1
    assert shared("bfloat16") == 1
    config.model.hidden = 256
    assert shared("float32") == 64
    config.model.layers = 4  # seven
    assert shared("float32") == 1
    assert shared("bfloat16") == 64
    config.devices = 2  # who asks for them has them
    assert shared("float32") == 64


def test_number_of_devices():
    assert devices.shared_by(rows=64, available=2, wanted=0) == 2
    assert devices.shared_by(rows=50, available=4, wanted=0) == 2  # 3 do not divide 50, 4 neither
    assert devices.shared_by(rows=8, available=2, wanted=0) == 1  # too few rows to pay
    assert devices.shared_by(rows=8, available=2, wanted=2) == 2
    assert devices.shared_by(rows=7, available=4, wanted=3) == 1
    assert devices.shared_by(rows=128, available=8, wanted=3) == 2
