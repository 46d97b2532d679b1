"""Prints the devices that JAX uses, and the versions of what computes on them, as a JSON object.

A process of its own runs this file, because a process that has asked JAX for its devices keeps them.
"""

import importlib.metadata
import json
import os
import platform
import subprocess

PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "torch",
)


def main() -> None:
    import jax
    from jax.extend import backend

    found = jax.local_devices()
    version = backend.get_backend().platform_version
    memory = found[0].memory_stats() or {}
    description = {
        "platform": found[0].platform,
        "kind": found[0].device_kind,
        "count": len(found),
        "is_cuda": "cuda" in version.lower(),
        "platform_version": " ".join(version.split()),
        "memory_bytes": memory.get("bytes_limit"),
        "nvidia_smi": _nvidia_smi(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    print(json.dumps(description))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> list[str]:
    """Name, version of the driver, memory and compute capability of each NVIDIA GPU. Empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


if __name__ == "__main__":
    main()
