"""How many devices share a batch, and what XLA is told about the CPU before JAX starts.

On a CPU the devices are virtual ones, one a core: each runs its share of the batch on one thread, so that no small product has
to be split over threads. Everything is the same for the devices of a GPU or TPU host, which are simply there.
"""

import ctypes
import os

from charlm.errors import UserError

ROWS_THAT_PAY = 16  # fewer rows a device make products so flat that another core does not help


def shared_by(rows: int, available: int, wanted: int) -> int:
    """How many devices share a batch of so many rows: the largest divisor of `rows` among those that are there and wanted.

    Args:
      wanted: 0 for as many as pay.
    """
    most = min(available, wanted or max(1, rows // ROWS_THAT_PAY))
    return max(number for number in range(1, most + 1) if rows % number == 0)


def mesh(rows: int, wanted: int):
    """A mesh, of one axis named `rows`, of the JAX devices that share a batch of so many rows; `wanted` as above.

    Of several processes all devices take part, since each process must have some.

    Raises:
      UserError: these do not share the rows evenly.
    """
    import jax
    import numpy as np

    there = jax.devices()
    if jax.process_count() == 1:
        return jax.sharding.Mesh(np.array(there[: shared_by(rows, len(there), wanted)]), ("rows",))
    if rows % len(there):
        raise UserError(
            f"batch.size={rows} can't be shared evenly by the {len(there)} devices of {jax.process_count()} processes: "
            f"a multiple of {len(there)} would be right."
        )
    return jax.sharding.Mesh(np.array(sorted(there, key=lambda device: (device.process_index, device.id))), ("rows",))


def own(mesh):
    """The part of a mesh whose devices are this process's; all of it where there is one process."""
    import jax

    if jax.process_count() == 1:
        return mesh
    mine = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return jax.sharding.Mesh(mine, mesh.axis_names)


def put(tree, sharding):
    """Arrays that this process has whole, where a sharding wants them, be it on devices of other processes."""
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def spread(leaf):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(spread, tree)


def wanted(config) -> int:
    """How many devices the config asks for; 0 for as many as pay."""
    return config.devices


def prepare_cpu(config, rows: int, processes: int = 1) -> str:
    """Sets XLA_FLAGS for so many rows at once on the CPU, unless the user has set them, and keeps freed memory in the process.

    Args:
      processes: that share the rows, of which this is one.

    Returns what it has set; nothing where the user's stand.

    To be called before JAX is imported. With as many devices as cores each has one thread; with fewer, products use all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = shared_by(max(1, rows // processes), cores, -(-wanted(config) // processes))
    _keep_freed_memory()
    if "XLA_FLAGS" in os.environ:
        return ""
    flags = [f"--xla_force_host_platform_device_count={number}"]
    if number == cores > 1:
        flags.append("--xla_cpu_multi_thread_eigen=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
    return os.environ["XLA_FLAGS"]


def _keep_freed_memory() -> None:
    """Has glibc keep the large arrays that XLA frees after each step: given back to the system and asked for anew, their pages
    cost a fifth of a step (100 ms of 280 for four layers of 256, batch 64 x 100)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)
