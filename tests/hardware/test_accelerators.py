"""Tests how charlm finds a GPU or TPU, and what it says if JAX does not use one. The devices and JAX's packages are made up."""

import json
import os
import sys
import types

import jax
import pytest
from conftest import TINY
from faults.runs import as_flags
from jax._src import hardware_utils

from charlm.hardware import accelerators, devices
from configs import base

MATCHING = jax.__version__
# As JAX's package for CUDA does on a machine without a GPU, this package raises an error when JAX asks it for its devices.
PLUGIN = """
import os
def initialize():
    if "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
        raise RuntimeError("operation cuInit(0) failed: CUDA_ERROR_NO_DEVICE")
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes up a machine: JAX's packages and their versions, the paths of devices, and the GPUs of nvidia-smi.

    At first, the machine has none of these.
    """
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
        monkeypatch.delenv(name, raising=False)
    packages, programs, files = (tmp_path / name for name in ("packages", "programs", "dev"))
    for folder in (packages, programs, files):
        folder.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, filter(None, (packages, os.environ.get("PYTHONPATH"))))))
    made_up = {
        name: each._replace(files=tuple(str(files / pattern.removeprefix("/dev/")) for pattern in each.files))
        for name, each in accelerators.ACCELERATORS.items()
    }
    monkeypatch.setattr(accelerators, "ACCELERATORS", made_up)

    def make(packages_and_versions=None, paths=(), nvidia_smi=None):
        for package, version in (packages_and_versions or {}).items():
            information = packages / f"{package.replace('-', '_')}-{version}.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            if "cuda" in package:
                plugin = packages / "jax_plugins" / f"xla_{package.split('-')[1]}"
                plugin.mkdir(parents=True)
                (plugin / "__init__.py").write_text(PLUGIN)
        for path in paths:
            (files / path).parent.mkdir(parents=True, exist_ok=True)
            (files / path).touch()
        if nvidia_smi is not None:
            (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
            (programs / "nvidia-smi").chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("packages", "paths", "environment", "expected"),
    [
        ({}, ["nvidia0"], {}, False),  # JAX is not installed for this GPU
        ({"jax-cuda12-plugin": MATCHING}, [], {}, False),
        ({"jax-cuda12-plugin": MATCHING}, ["nvidiactl"], {}, True),
        ({"jax-cuda13-plugin": MATCHING}, ["dxg"], {}, True),
        ({"jax-cuda12-plugin": MATCHING}, ["nvidia0"], {"CUDA_VISIBLE_DEVICES": "1"}, True),
        ({"jax-cuda12-plugin": MATCHING}, ["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        ({"jax-cuda12-plugin": MATCHING}, ["nvidia0"], {"JAX_PLATFORMS": "cpu"}, False),
        ({}, [], {"JAX_PLATFORMS": "cuda,cpu"}, True),
        ({"libtpu": "0.0.1"}, ["nvidia0"], {}, False),
        ({"libtpu": "0.0.1"}, ["accel0"], {"CUDA_VISIBLE_DEVICES": ""}, True),
        ({"libtpu": "0.0.1"}, ["vfio/vfio"], {}, False),
        ({"libtpu": "0.0.1"}, ["vfio/3"], {}, True),
    ],
)
def test_settings_for_the_cpu_are_left_out_if_jax_will_use_a_gpu_or_tpu(
    machine, tmp_path, monkeypatch, packages, paths, environment, expected
):
    machine(packages, paths)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert accelerators.is_expected() == expected
    monkeypatch.setattr(accelerators, "leave_out_missing", lambda: None)  # it would change JAX's settings in this process
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert (devices.prepare_cpu(base.get_config(), 64) == []) == expected
    assert ("XLA_FLAGS" not in os.environ) == expected
    restarts = []
    (tmp_path / "enabled").write_text("always [madvise] never")
    monkeypatch.setattr(devices, "HUGE_PAGES_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(os, "execve", lambda *arguments: restarts.append(arguments))
    devices.use_huge_pages()
    assert (not restarts) == expected


@pytest.mark.parametrize(
    ("packages", "paths", "tpus", "expected"),
    [
        ({}, [], 0, []),
        ({"jax-cuda12-plugin": MATCHING}, [], 0, [("jax_platforms", "cpu")]),
        ({"jax-cuda12-plugin": MATCHING}, ["nvidia0"], 0, []),
        ({"libtpu": "0.0.1"}, [], 0, [("jax_platforms", "cpu")]),
        ({"libtpu": "0.0.1"}, [], 4, []),  # TPUs without a known path
        ({"libtpu": "0.0.1"}, ["accel0"], 4, []),
    ],
)
def test_packages_for_missing_devices_are_left_out(machine, monkeypatch, packages, paths, tpus, expected):
    machine(packages, paths)
    updates = []
    monkeypatch.setattr(hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (tpus, None))
    monkeypatch.setattr(jax.config, "update", lambda *update: updates.append(update))
    accelerators.leave_out_missing()
    assert updates == expected


LIST_ONE = "[ \"$*\" = '--query-gpu=name --format=csv,noheader' ] && echo 'NVIDIA H200'"
LIST_TWO = "printf 'NVIDIA A100\\nNVIDIA A100\\n'"
INSTALL = f"to use the GPU, run {sys.executable} -m pip install 'jax[%s]=={MATCHING}'"
SEES_NONE = "but JAX sees no GPU and runs on the CPU"


@pytest.mark.parametrize(
    ("packages", "nvidia_smi", "environment", "expected"),
    [
        ({}, None, {}, None),
        ({}, LIST_ONE, {}, f"nvidia-smi lists 1 GPU (NVIDIA H200), {SEES_NONE}: {INSTALL % 'cuda12'}"),
        (
            {"jax-cuda13-plugin": "0.1"},
            LIST_TWO,
            {},
            f"nvidia-smi lists 2 GPUs (NVIDIA A100), {SEES_NONE}: {INSTALL % 'cuda13'}",
        ),
        (
            {"jax-cuda13-plugin": MATCHING},
            LIST_ONE,
            {},
            f"nvidia-smi lists 1 GPU (NVIDIA H200), {SEES_NONE}: JAX_PLATFORMS=cuda {sys.executable} -c 'import jax; "
            "jax.devices()' prints the reason.",
        ),
        # The user has chosen the CPU.
        ({}, LIST_ONE, {"JAX_PLATFORMS": "cpu"}, None),
        ({}, LIST_ONE, {"CUDA_VISIBLE_DEVICES": ""}, None),
        # nvidia-smi finds no GPU, or has no driver.
        ({}, "echo 'No devices were found'; exit 6", {}, None),
        ({}, "true", {}, None),
        ({}, "exec sleep 60", {}, None),
        (
            {"jax-cuda12-plugin": MATCHING},
            "exit 9",
            {},
            "JAX is installed for cuda12, but no GPU is visible, so JAX runs on the CPU.",
        ),
        ({"libtpu": "0.0.1"}, None, {}, "JAX is installed for tpu, but no TPU is visible, so JAX runs on the CPU."),
    ],
)
def test_one_sentence_says_why_jax_uses_no_gpu_or_tpu(machine, monkeypatch, packages, nvidia_smi, environment, expected):
    monkeypatch.setattr(accelerators, "SECONDS", 0.5)
    machine(packages, nvidia_smi=nvidia_smi)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert accelerators.missing() == expected


def test_a_training_without_the_gpu_that_jax_is_installed_for_says_so_once_and_runs_on_the_cpu(
    script, small, tmp_path, machine
):
    """This is how `ACCELERATOR=cuda12 scripts/quickstart.sh` ends on a machine without a GPU."""
    machine({"jax-cuda12-plugin": MATCHING})
    flags = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(small | {"train.steps": 2})]
    result = script("train", *flags)
    assert result.stderr == "note: JAX is installed for cuda12, but no GPU is visible, so JAX runs on the CPU.\n"
    assert "4 rows on 1 cpu device\n" in result.stdout
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert [each["device"] for each in recorded] == ["1 cpu device"]
    assert "--xla_force_host_platform_device_count=1" in recorded[0]["XLA_FLAGS"]


@pytest.mark.slow
def test_other_programs_print_nothing_about_a_missing_gpu(script, small, tmp_path, machine):
    run = f"--workdir={tmp_path / 'run'}"
    script("train", f"--config={TINY}", run, *as_flags(small | {"train.steps": 2}))
    machine({"jax-cuda12-plugin": MATCHING})
    file, flags = tmp_path / "weights.safetensors", as_flags(small)
    for command in (
        ["evaluate", run],
        ["sample", run, "--prompt=a", "--length=3"],
        ["inspect", run, "--ngram="],
        ["export", run, "--format=safetensors", f"--output={file}"],
        ["import_torch", f"--config={TINY}", f"--weights={file}", f"--workdir={tmp_path / 'imported'}", *flags],
    ):
        assert "cuda" not in script(*command).stderr.lower(), command


@pytest.mark.slow
def test_a_device_that_jax_cannot_start_is_an_error_of_one_sentence(script, small, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    message = script.fails("train", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *as_flags(small), status=1)
    assert message.startswith("error: Unable to initialize backend 'tpu'")
    assert "set JAX_PLATFORMS=''" in message


def test_devices_are_described_by_their_number_and_their_kind():
    def device(platform, kind):
        return types.SimpleNamespace(platform=platform, device_kind=kind)

    assert devices.in_words(jax.devices()[:1]) == "1 cpu device"
    assert devices.in_words([device("cpu", "cpu")] * 2) == "2 cpu devices"
    assert devices.in_words([device("gpu", "NVIDIA H200")]) == "1 gpu device (NVIDIA H200)"
    mixed = (device("gpu", kind) for kind in ("Tesla T4", "NVIDIA L4", "Tesla T4"))
    assert devices.in_words(mixed) == "3 gpu devices (NVIDIA L4, Tesla T4)"
