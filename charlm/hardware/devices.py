"""How many devices share a batch, and what XLA and the C library are told about the CPU before JAX starts.

On a CPU the devices are virtual, one per core. Each runs its share of the batch on one thread, so no small product is split
over threads. The devices of a GPU or TPU host are used as they are.
"""

import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from charlm.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh, Sharding

HUGE_PAGES_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# Sampling with more bytes of weights than this waits for reading them, so a second device does not help.
MAX_SHARED_WEIGHTS = 4 * 2**20
MIN_ROWS = 16  # with fewer rows per device, the products are so flat that another core does not help


def shared_by(rows: int, available: int, wanted: int) -> int:
    """The number of devices that share a batch: the largest divisor of `rows` that is available and wanted.

    Args:
      wanted: 0 for as many as make it faster.
    """
    most = min(available, wanted or max(1, rows // MIN_ROWS))
    return max(number for number in range(1, most + 1) if rows % number == 0)


def mesh(rows: int, wanted: int) -> "Mesh":
    """The JAX devices that share a batch, as a mesh with one axis called `rows`. `wanted` is as in `shared_by`.

    With several processes all devices take part, because every process must have some.

    Raises:
      UserError: these devices can't share the rows evenly.
    """
    import jax
    import numpy as np

    available = jax.devices()
    if jax.process_count() == 1:
        return jax.sharding.Mesh(np.array(available[: shared_by(rows, len(available), wanted)]), ("rows",))
    if rows % len(available):
        raise UserError(
            f"batch.size={rows}: must be a multiple of {len(available)}, the number of devices of all "
            f"{jax.process_count()} processes."
        )
    in_order = sorted(available, key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(np.array(in_order), ("rows",))


def local(mesh: "Mesh") -> "Mesh":
    """The part of a mesh with the devices of this process."""
    import jax

    if jax.process_count() == 1:
        return mesh
    local_devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return jax.sharding.Mesh(local_devices, mesh.axis_names)


def put(tree: Any, sharding: "Sharding") -> Any:
    """Arrays that this process has in full, placed as a sharding says, on devices of other processes too."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def spread(leaf: Any) -> Any:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(spread, tree)


def wanted(config: ConfigDict) -> int:
    """How many devices the config asks for; 0 for as many as make it faster."""
    return config.devices


def rows_to_share(config: ConfigDict, weights: int, rows: int, dtype: str) -> int:
    """Of the rows that are sampled at once, how many the devices should share: all, or one if sharing does not help.

    Args:
      weights: how many are read for each character, as `stack.layer_operations` counts them.
      dtype: of the operands of matrix products.
    """
    helps = weights * (2 if dtype == "bfloat16" else 4) <= MAX_SHARED_WEIGHTS
    return rows if helps or wanted(config) else 1


def cpu_devices(config: ConfigDict, rows: int, processes: int = 1) -> int:
    """How many virtual CPU devices this process should have for its share of the rows."""
    return shared_by(max(1, rows // processes), _cores(), -(-wanted(config) // processes))


def prepare_cpu(config: ConfigDict, rows: int, processes: int = 1) -> list[str]:
    """Adds the number of virtual CPU devices to XLA_FLAGS, unless the user has set it there or names a file of flags.

    Call it before JAX starts. With as many devices as cores, each device gets one thread; with fewer, products use all cores.

    Args:
      rows: of a batch. processes: how many share the rows.

    Returns:
      NAME=VALUE for each environment variable that charlm has set.
    """
    number = cpu_devices(config, rows, processes)
    tunables = os.environ.get("GLIBC_TUNABLES")
    settings = [f"GLIBC_TUNABLES={tunables}"] if tunables == HUGE_PAGES else []
    given = os.environ.get("XLA_FLAGS", "")
    is_file = given.strip()[:1] not in ("", "-")
    if "--xla_force_host_platform_device_count" in given or is_file:
        return settings
    flags = [f"--xla_force_host_platform_device_count={number}"]
    if number == _cores() > 1:
        flags.append("--xla_cpu_multi_thread_eigen=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, given]).strip()  # if a flag is given twice, the last one counts
    return [*settings, f"XLA_FLAGS={os.environ['XLA_FLAGS']}"]


def jax_has_started() -> bool:
    """Whether JAX has its devices, so that XLA_FLAGS have no effect any more. Importing JAX does not start it."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge  # no public function tells this without starting JAX

    return xla_bridge.backends_are_initialized()


def use_huge_pages() -> None:
    """Restarts this program once with glibc told to use huge pages. Arguments and process id stay the same.

    Nothing happens if Linux does not offer huge pages on request, or if the user has set GLIBC_TUNABLES. glibc reads the
    setting only when a program starts. XLA allocates the large arrays of a step anew at each step, and touching them in pages
    of 4 kB takes a part of the step's time (experiments/2026-11-22-speed).
    """
    try:
        on_request = "[madvise]" in HUGE_PAGES_SETTING.read_text()
    except OSError:  # not Linux
        return
    if on_request and "GLIBC_TUNABLES" not in os.environ:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
