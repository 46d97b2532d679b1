"""Finds out whether JAX will use a GPU or TPU, and tells the user why it does not.

JAX chooses the device by itself: a GPU or TPU if a package for it is installed and works, otherwise the CPU. Importing this
module does not import JAX.
"""

import glob
import importlib.metadata
import os
import shlex
import subprocess
import sys
from typing import NamedTuple

from charlm.progress import counted


class Accelerator(NamedTuple):
    """A kind of device for which JAX has a package.

    Attributes:
      package: the package that lets JAX use the device.
      noun: what the device is called in messages.
      files: patterns of paths. If no path exists, this machine has no such device.
    """

    package: str
    noun: str
    files: tuple[str, ...]


NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # JAX tries to use CUDA only if one of these exists
TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
# The values of ACCELERATOR in scripts/setup.sh. Each value is an extra of charlm and of JAX.
ACCELERATORS = {
    "cuda12": Accelerator("jax-cuda12-plugin", "GPU", NVIDIA_FILES),
    "cuda13": Accelerator("jax-cuda13-plugin", "GPU", NVIDIA_FILES),
    "tpu": Accelerator("libtpu", "TPU", TPU_FILES),
}
SECONDS = 20  # nvidia-smi may take some seconds, but must not block a training


def is_expected() -> bool:
    """Whether JAX will use a GPU or TPU, as far as this can be known before JAX starts."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] != "cpu"
    return any(_is_visible(ACCELERATORS[name]) for name in _installed())


def leave_out_missing() -> None:
    """Keeps JAX from starting its packages for devices that this machine does not have. Call this function before JAX starts.

    JAX would use the CPU anyway. But its package for CUDA would first print a traceback, and would crash with
    CUDA_VISIBLE_DEVICES="" (https://github.com/jax-ml/jax/issues/37668). The package for TPUs would print errors.
    """
    names = _installed()
    if os.environ.get("JAX_PLATFORMS") or not names or any(_is_visible(ACCELERATORS[name]) for name in names):
        return
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    import jax
    from jax._src import hardware_utils  # JAX has no public function that counts TPUs without starting them

    if hardware_utils.num_available_tpu_chips_and_device_id()[0] == 0:
        jax.config.update("jax_platforms", "cpu")


def missing() -> str | None:
    """A sentence that says why JAX does not use a GPU or TPU, if the user may expect it. Call this function after JAX started.

    The sentence names a command if this machine has a GPU, or says that no device is visible if only the package for the device
    is installed. Returns None if JAX uses a GPU or TPU, if the user has chosen the CPU, or if nothing hints at another device.
    """
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    names = _installed()
    if gpus := _listed_by_nvidia_smi():
        cuda = next((name for name in names if ACCELERATORS[name].noun == "GPU"), "cuda12")
        if _version(ACCELERATORS[cuda].package) == jax.__version__:
            remedy = f"JAX_PLATFORMS=cuda {shlex.quote(sys.executable)} -c 'import jax; jax.devices()' prints the reason."
        else:
            install = f"{shlex.quote(sys.executable)} -m pip install 'jax[{cuda}]=={jax.__version__}'"
            remedy = f"to use the GPU, run {install}"
        return f"nvidia-smi lists {gpus}, but JAX sees no GPU and runs on the CPU: {remedy}"
    if names:
        return f"JAX is installed for {names[0]}, but no {ACCELERATORS[names[0]].noun} is visible, so JAX runs on the CPU."
    return None


def _installed() -> list[str]:
    """The kinds of accelerators for which JAX's package is installed."""
    return [name for name, accelerator in ACCELERATORS.items() if _version(accelerator.package)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_visible(accelerator: Accelerator) -> bool:
    return not (accelerator.noun == "GPU" and _gpus_are_hidden()) and any(map(glob.glob, accelerator.files))


def _gpus_are_hidden() -> bool:
    """Whether the user, or SLURM, has hidden all NVIDIA GPUs from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")


def _listed_by_nvidia_smi() -> str:
    """The GPUs that nvidia-smi lists, in words. Empty if there are none, or if they are hidden from this process."""
    if _gpus_are_hidden():
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, check=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    names = [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return f"{counted(len(names), 'GPU')} ({', '.join(sorted(set(names)))})" if names else ""
