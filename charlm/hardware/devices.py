"""How many devices share a batch, and what XLA and the C library are told about the CPU before JAX starts.

On a CPU the devices are virtual ones, one a core: each runs its share of the batch on one thread, so that no small product has
to be split over threads. Everything is the same for the devices of a GPU or TPU host, which are simply there.
"""

import os
import pathlib
import sys

from charlm.errors import UserError

HUGE_PAGES_GIVEN = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
WEIGHTS_THAT_PAY = 4 * 2**20  # bytes of weights, beyond which reading them, by each device again, is what sampling waits for
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


def rows_to_share(config, weights: int, rows: int, dtype: str) -> int:
    """Of the rows that are sampled at once, how many the devices should share: all, or one if sharing does not pay.

    Args:
      weights: how many are read for each character, as `stack.layer_operations` counts them.
      dtype: of the operands of matrix products.
    """
    pays = weights * (2 if dtype == "bfloat16" else 4) <= WEIGHTS_THAT_PAY
    return rows if pays or wanted(config) else 1


def prepare_cpu(config, rows: int, processes: int = 1) -> list[str]:
    """Adds to XLA_FLAGS how many devices so many rows have on the CPU, unless the user has said so there or named a file.

    Args:
      processes: that share the rows, of which this is one.

    Returns a line NAME=VALUE for each variable that charlm has set; none where the user's stands.

    To be called before JAX is imported. With as many devices as cores each has one thread; with fewer, products use all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = shared_by(max(1, rows // processes), cores, -(-wanted(config) // processes))
    tunables = os.environ.get("GLIBC_TUNABLES")
    lines = [f"GLIBC_TUNABLES={tunables}"] if tunables == HUGE_PAGES else []
    given = os.environ.get("XLA_FLAGS", "")
    if "--xla_force_host_platform_device_count" in given or given.strip()[:1] not in ("", "-"):  # else a file of flags
        return lines
    flags = [f"--xla_force_host_platform_device_count={number}"]
    if number == cores > 1:
        flags.append("--xla_cpu_multi_thread_eigen=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, given]).strip()  # of one flag given twice the last counts
    return [*lines, f"XLA_FLAGS={os.environ['XLA_FLAGS']}"]


def use_huge_pages() -> None:
    """Starts this program anew, arguments and process id the same, with glibc told to ask for huge pages; once, and only where
    Linux gives them on request and the user has not set GLIBC_TUNABLES.

    XLA asks for the large arrays of a step anew at each step. In pages of 4 kB their first touches cost a sixth of the time of
    a step (four layers of 256, batch 64 x 100). glibc reads this setting only when a program starts.
    """
    try:
        on_request = "[madvise]" in HUGE_PAGES_GIVEN.read_text()
    except OSError:  # no Linux
        return
    if on_request and "GLIBC_TUNABLES" not in os.environ:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES})
