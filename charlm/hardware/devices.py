"""Chooses and describes the devices that process a batch together, and sets options of XLA, glibc and Linux before JAX starts.

"To share" a batch always means that its rows are divided among devices or processes. Each device gets the same number of rows.

On a CPU, JAX devices are virtual. charlm makes up to one device per core. With one device per core, each device uses one
thread, so small matrix products are not split over threads. On a GPU or TPU host, charlm uses the physical devices and sets no
CPU options.
"""

import contextlib
import importlib.util
import mmap
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from charlm.errors import UserError
from charlm.hardware import accelerators
from charlm.progress import counted

if TYPE_CHECKING:
    from jax import Device
    from jax.sharding import Mesh, Sharding

HUGE_PAGES_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# In sampling, several devices share the rows only if the weights have at most this number of bytes. With larger weights, the
# time to read the weights from memory limits the speed, and a second device does not help.
MAX_SHARED_WEIGHTS = 4 * 2**20
# Minimum number of rows of one device, unless the config sets the number of devices. With fewer rows, the matrices of a product
# have so few rows that another core does not help.
MIN_ROWS = 16
# The XLA flags of `command_buffers`. By default, XLA records neither while loops nor sequences of fewer than 5 operations.
COMMAND_BUFFERS = (
    "--xla_gpu_enable_command_buffer=+WHILE",
    "--xla_gpu_command_buffer_unroll_loops=true",
    "--xla_gpu_graph_min_graph_size=1",
)


def shared_by(rows: int, available: int, wanted: int) -> int:
    """Returns the number of devices that share a batch.

    The number is the largest divisor of `rows` that is at most `available` and at most `wanted`.

    Args:
      rows: number of rows of the batch.
      available: number of available devices.
      wanted: maximum number of devices. 0 allows one device for every MIN_ROWS rows.
    """
    most = min(available, wanted or max(1, rows // MIN_ROWS))
    return max(number for number in range(1, most + 1) if rows % number == 0)


def mesh(rows: int, wanted: int) -> "Mesh":
    """Returns a mesh of the JAX devices that share a batch. The mesh has one axis, `rows`.

    With several processes, the mesh contains all devices, because each process must have devices in the mesh.

    Args:
      rows: number of rows of the batch.
      wanted: maximum number of devices, as in `shared_by`. With several processes, this value is ignored.

    Raises:
      UserError: there are several processes, and their devices can't share the rows evenly.
    """
    import jax
    import numpy as np

    available = jax.devices()
    if jax.process_count() == 1:
        return jax.sharding.Mesh(np.array(available[: shared_by(rows, len(available), wanted)]), ("rows",))
    if rows % len(available):
        raise UserError(
            f"batch.size={rows}: must be a multiple of {len(available)}, the total number of devices in "
            f"{jax.process_count()} processes."
        )
    in_order = sorted(available, key=lambda device: (device.process_index, device.id))
    return jax.sharding.Mesh(np.array(in_order), ("rows",))


def local(mesh: "Mesh") -> "Mesh":
    """Returns a mesh of only those devices in `mesh` that belong to this process."""
    import jax

    if jax.process_count() == 1:
        return mesh
    local_devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return jax.sharding.Mesh(local_devices, mesh.axis_names)


def in_words(devices: "Iterable[Device]") -> str:
    """The number and the kind of some devices of the same platform, such as `2 cpu devices` or `1 gpu device (NVIDIA H200)`."""
    listed = list(devices)
    platform = listed[0].platform
    kinds = sorted({device.device_kind for device in listed} - {platform})
    return counted(len(listed), f"{platform} device") + (f" ({', '.join(kinds)})" if kinds else "")


def put(tree: Any, sharding: "Sharding") -> Any:
    """Places arrays on devices as the sharding defines. The devices may belong to several processes.

    Args:
      tree: a tree of complete arrays. Each process must pass all rows, not only the rows for its own devices.
      sharding: where the parts of the arrays are placed.
    """
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def spread(leaf: Any) -> Any:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(spread, tree)


def wanted(config: ConfigDict) -> int:
    """Returns the maximum number of devices in the config. 0 means that charlm chooses the number."""
    return config.devices


def rows_to_share(config: ConfigDict, weights: int, rows: int, dtype: str) -> int:
    """Returns the number of rows from which `mesh` should compute the number of devices for sampling.

    Returns `rows` if several devices make sampling faster, or if the config sets the number of devices. Otherwise returns 1, so
    that one device samples all rows.

    Args:
      weights: number of weights that are read for each character, as counted by `stack.layer_operations`.
      rows: number of rows that are sampled at once.
      dtype: data type of the operands in matrix products.
    """
    helps = weights * (2 if dtype == "bfloat16" else 4) <= MAX_SHARED_WEIGHTS
    return rows if helps or wanted(config) else 1


def for_trials(trials: int, available: int, wanted: int) -> int:
    """Returns the number of devices that share the trials of a pack.

    No device gets more trials than necessary. With this condition, the number is as small as possible.

    Args:
      trials: number of trials of the pack.
      available: number of available devices.
      wanted: maximum number of devices in the config. 0 sets no maximum.
    """
    each = -(-trials // min(available, wanted or available))
    return -(-trials // each)


def trials_mesh(trials: int, wanted: int) -> "Mesh":
    """Returns a mesh of the JAX devices that share the trials of a pack. The mesh has one axis, `trials`."""
    import jax
    import numpy as np

    number = for_trials(trials, len(jax.devices()), wanted)
    return jax.sharding.Mesh(np.array(jax.devices()[:number]), ("trials",))


def cpu_devices(config: ConfigDict, rows: int, processes: int = 1) -> int:
    """Returns the number of virtual CPU devices for this process, if the processes share the rows equally."""
    return shared_by(max(1, rows // processes), _cores(), -(-wanted(config) // processes))


def prepare(config: ConfigDict, rows: int, processes: int = 1) -> list[str]:
    """Sets the options of XLA and glibc for the devices of this machine. Call this function before JAX starts.

    The arguments are those of `prepare_cpu`.

    Returns:
      NAME=VALUE for each environment variable that charlm has set.

    Raises:
      UserError: the installed JAX does not have an option that the config sets.
    """
    settings = [*prepare_gpu(config), *prepare_cpu(config, rows, processes)]
    # If both functions have changed XLA_FLAGS, the second value has all flags.
    return list({setting.partition("=")[0]: setting for setting in settings}.values())


def prepare_gpu(config: ConfigDict) -> list[str]:
    """Adds the flags of `command_buffers` to XLA_FLAGS, if this key is set and JAX has a plugin for CUDA.

    Does not change a flag that the user has set, and does not change XLA_FLAGS if it names a file of flags.

    Returns:
      [] or [XLA_FLAGS=VALUE].

    Raises:
      UserError: XLA does not know one of the flags. With an unknown flag, XLA would end the process.
    """
    given = os.environ.get("XLA_FLAGS", "")
    flags = [flag for flag in COMMAND_BUFFERS if flag.partition("=")[0] not in given]
    if not config.command_buffers or not flags or not _expects_cuda() or _is_file(given):
        return []
    if unknown := _unknown_flags(flags):
        raise UserError(f"command_buffers=True: the installed jaxlib has no flag {unknown[0]}: set command_buffers=False.")
    os.environ["XLA_FLAGS"] = " ".join([*flags, given]).strip()
    return [f"XLA_FLAGS={os.environ['XLA_FLAGS']}"]


def without_effect(config: ConfigDict) -> list[str]:
    """A sentence if `command_buffers` is set, but has no effect. Call this function after `prepare`."""
    name = COMMAND_BUFFERS[0].partition("=")[0]
    if not config.command_buffers or (is_cuda() and name in os.environ.get("XLA_FLAGS", "")):
        return []
    return ["command_buffers has no effect: it needs a CUDA GPU, and XLA_FLAGS that charlm can change before JAX starts."]


def prepare_cpu(config: ConfigDict, rows: int, processes: int = 1) -> list[str]:
    """Sets the number of virtual CPU devices that share a batch; see `set_cpu_devices`.

    Args:
      rows: number of rows of a batch.
      processes: number of processes that share the rows.
    """
    return set_cpu_devices(cpu_devices(config, rows, processes))


def prepare_cpu_for_trials(config: ConfigDict, trials: int) -> list[str]:
    """Sets the number of virtual CPU devices that share the trials of a pack; see `set_cpu_devices`."""
    return set_cpu_devices(for_trials(trials, _cores(), wanted(config)))


def set_cpu_devices(number: int) -> list[str]:
    """Adds the number of virtual CPU devices to XLA_FLAGS. Call this function before JAX starts.

    Does not change XLA_FLAGS if the user has set the number of devices in XLA_FLAGS, if XLA_FLAGS names a file of flags, or if
    JAX will use a GPU or TPU. With as many devices as cores, each device gets one thread. With fewer devices, matrix products
    use all cores.

    Returns:
      NAME=VALUE for each environment variable that charlm has set.
    """
    accelerators.leave_out_missing()
    tunables = os.environ.get("GLIBC_TUNABLES")
    settings = [f"GLIBC_TUNABLES={tunables}"] if tunables == HUGE_PAGES else []
    given = os.environ.get("XLA_FLAGS", "")
    if "--xla_force_host_platform_device_count" in given or _is_file(given) or accelerators.is_expected():
        return settings
    flags = [f"--xla_force_host_platform_device_count={number}"]
    if number == _cores() > 1:
        flags.append("--xla_cpu_multi_thread_eigen=false")
    # If a flag occurs twice, XLA uses the last value. The flags of the user therefore come last.
    os.environ["XLA_FLAGS"] = " ".join([*flags, given]).strip()
    return [*settings, f"XLA_FLAGS={os.environ['XLA_FLAGS']}"]


def is_cuda() -> bool:
    """Whether JAX computes on a GPU of NVIDIA. Starts JAX."""
    from jax.extend import backend

    return "cuda" in backend.get_backend().platform_version.lower()  # the platform is `gpu` on GPUs of AMD, too


def jax_has_started() -> bool:
    """Whether JAX has started its devices. After this start, XLA_FLAGS has no effect.

    The import of JAX alone does not start its devices.
    """
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge  # JAX has no public function that tells this without starting JAX

    return xla_bridge.backends_are_initialized()


def use_huge_pages() -> None:
    """Restarts this program once, with GLIBC_TUNABLES set to use huge pages. Arguments and process id stay the same.

    Does nothing if Linux does not offer huge pages on request, if GLIBC_TUNABLES is already set, or if JAX will use a GPU or
    TPU. The restart is necessary because glibc reads the setting only when a program starts. XLA allocates the large arrays of
    a step again at each step. With pages of 4 kB, the first access to these arrays takes a part of the step's time
    (experiments/2026-11-22-speed). On a GPU or TPU, these arrays are in the memory of the device.
    """
    if variables := huge_pages():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})


def huge_pages() -> dict[str, str]:
    """The environment variable that `use_huge_pages` sets. Empty if `use_huge_pages` does nothing.

    The launcher of a sweep gives this variable to each training, so that the training need not restart itself.
    """
    try:
        on_request = "[madvise]" in HUGE_PAGES_SETTING.read_text()
    except OSError:  # not Linux
        return {}
    wanted = on_request and "GLIBC_TUNABLES" not in os.environ and not accelerators.is_expected()
    return {"GLIBC_TUNABLES": HUGE_PAGES} if wanted else {}


def use_batch_scheduling() -> None:
    """Gives this process the scheduling policy SCHED_BATCH. Call this function before JAX starts its threads.

    This is for processes that train together on CPUs. At each step, the processes send each other their gradients. With the
    default policy of Linux, a thread that wakes up for a message may interrupt a thread that computes, and the other processes
    then wait for this thread. With SCHED_BATCH, a thread that wakes up does not interrupt another thread
    (experiments/2026-11-29-processes).

    Does nothing if JAX will use a GPU or TPU, if the user has chosen another policy, or if the system refuses the change.
    """
    if not hasattr(os, "SCHED_BATCH") or accelerators.is_expected():  # only Linux has SCHED_BATCH
        return
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _expects_cuda() -> bool:
    """Whether JAX will look for CUDA devices when it starts. Does not start JAX."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return not {"cuda", "gpu"}.isdisjoint(platforms.split(","))
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _unknown_flags(flags: list[str]) -> list[str]:
    """The names of the flags --NAME=VALUE that do not occur in the libraries of jaxlib. Reading them takes about 0.4 s."""
    unknown = [flag.partition("=")[0] for flag in flags]
    jaxlib = importlib.util.find_spec("jaxlib")
    assert jaxlib is not None
    assert jaxlib.origin is not None
    for library in pathlib.Path(jaxlib.origin).parent.glob("*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            unknown = [name for name in unknown if content.find(f"{name.lstrip('-')}\0".encode()) < 0]
    return unknown


def _is_file(xla_flags: str) -> bool:
    """Whether the value of XLA_FLAGS names a file of flags."""
    return xla_flags.strip()[:1] not in ("", "-")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
