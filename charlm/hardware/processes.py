"""Several processes, on one machine or many, that train one model together.

Each process feeds its own devices with its own rows of a batch. Only the first process uses the run directory, evaluates and
prints. It sends the others what they need. With one process nothing is communicated.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from charlm.errors import Broken, Failure, UserError

T = TypeVar("T")
JOIN_TIMEOUT_SECONDS = 280  # how long a process waits for the others at the start; JAX would wait longer and then abort
HEARTBEAT_SECONDS = 2  # between the heartbeats of a process
HEARTBEAT_TIMEOUT_SECONDS = 40  # after which a process counts as gone; JAX would take 100 s and then abort
ERRORS = {"UserError": UserError, "Failure": Failure, "OSError": OSError}  # that the first process passes on to the others


class ProcessLost(Broken):
    """Another process of the training is gone. At a normal exit JAX would wait for it and then abort."""


class ProcessSpec(NamedTuple):
    """Which of the processes this one is.

    Attributes:
      num_processes: how many train together.
      process_id: index of this process, from 0.
      coordinator: HOST:PORT of process 0; None if there is one process, or if JAX asks SLURM.
    """

    num_processes: int
    process_id: int
    coordinator: str | None


def spec_from_flags(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessSpec:
    """Checks the flags of the same names. With `distributed`, the values come from the environment of a SLURM step.

    Raises:
      UserError: flags are missing or contradict each other, or there is no SLURM step.
    """
    flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in flags.items() if value is None]
    if distributed:
        if len(missing) < len(flags):
            raise UserError(
                "--distributed takes these values from SLURM: leave out --coordinator, --num_processes and --process_id."
            )
        try:
            return ProcessSpec(int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"]), None)
        except (KeyError, ValueError) as error:
            raise UserError(
                "--distributed is for tasks started by srun: elsewhere give --coordinator, --num_processes and --process_id."
            ) from error
    if len(missing) == len(flags):
        return ProcessSpec(1, 0, None)
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"--{missing[0]} is not given: several processes need --coordinator, --num_processes and --process_id.")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: must be 1 or more.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}: must be from 0 to {num_processes - 1} with --num_processes={num_processes}."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT of process 0, such as node1:1234.")
    return ProcessSpec(num_processes, process_id, coordinator)


def join(spec: ProcessSpec) -> None:
    """Waits until all processes have started. From then on, this process ends when another one is gone.

    Call it before JAX does anything. If the others do not start in time, this process ends here with a message.

    Raises:
      UserError: the processes have different numbers of devices.
      Failure: they do not find each other.
    """
    if spec.num_processes == 1:
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    message = (
        f"not all {spec.num_processes} processes joined within {JOIN_TIMEOUT_SECONDS} s: "
        "start all of them with the same --coordinator."
    )
    timer = threading.Timer(JOIN_TIMEOUT_SECONDS, _end, [message])
    timer.daemon = True
    timer.start()
    try:
        initialize = functools.partial(jax.distributed.initialize, initialization_timeout=JOIN_TIMEOUT_SECONDS + 60)
        initialize() if spec.coordinator is None else initialize(spec.coordinator, spec.num_processes, spec.process_id)
    except (RuntimeError, ValueError) as error:
        raise Failure(f"the {spec.num_processes} processes did not find each other: {_first_line(error)}") from error
    finally:
        timer.cancel()
    threading.Thread(target=_exchange_heartbeats, args=(spec.process_id, spec.num_processes), daemon=True).start()
    devices = collections.Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        numbers = ", ".join(str(devices[index]) for index in sorted(devices))
        raise UserError(
            f"the {spec.num_processes} processes have {numbers} devices: all processes must have the same number of devices; "
            f"on CPUs --config.devices={spec.num_processes} gives each of them one."
        )


def count() -> int:
    """The number of processes that train together."""
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0."""
    import jax

    return jax.process_index() == 0


def is_process_loss(error: BaseException) -> bool:
    """Whether an error of JAX's says that another process is gone."""
    return count() > 1 and isinstance(error, RuntimeError | ValueError) and ("Gloo" in str(error) or "NCCL" in str(error))


@contextlib.contextmanager
def detect_process_loss() -> Iterator[None]:
    """Raises ProcessLost in place of JAX's error if another process of this training is gone."""
    try:
        yield
    except Exception as error:
        if not is_process_loss(error):
            raise
        raise ProcessLost(
            f"another process of this training has gone ({_first_line(error)}): "
            "the same commands resume from the last checkpoint."
        ) from error


def run_on_first_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in the first process only, and returns its result in all of them.

    Args:
      function: returns a JSON value. A UserError, Failure or OSError that it raises is raised in all processes.
      arguments: of the function.
    """
    if count() == 1:
        return function(*arguments)
    from jax.experimental import multihost_utils

    message = b""
    if is_first():
        answer: dict[str, Any]
        try:
            answer = {"value": function(*arguments)}
        except (UserError, Failure) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            answer = {"error": "OSError", "message": error.strerror or str(error)}
        message = json.dumps(answer).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.frombuffer(message.ljust(length, b" "), np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    return answer["value"]


def make_identical(make: Callable[[], T], fingerprint: Callable[[T], str]) -> T:
    """Makes a value in every process and checks that all made the same.

    Args:
      make: makes the value.
      fingerprint: of the value, such as a hash; equal values have equal fingerprints.

    Returns:
      The value that this process made.

    Raises:
      UserError: the values differ, or `make` raised it in this process.
      Failure: `make` failed in another process, or raised it in this one.
    """
    if count() == 1:
        return make()
    from jax.experimental import multihost_utils

    made: T | None = None
    error: UserError | Failure | None = None
    digest = b"\0" * 32  # says that this process failed
    try:
        made = make()
        digest = hashlib.sha256(fingerprint(made).encode()).digest()
    except (UserError, Failure) as caught:
        error = caught
    digests = np.asarray(multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)))
    if error is not None:
        raise error
    failed = [index for index, other in enumerate(digests) if not other.any()]
    if failed:
        raise Failure(f"process {failed[0]} of this training could not start: see its output.")
    different = [index for index, other in enumerate(digests) if other.tobytes() != digests[0].tobytes()]
    if different:
        raise UserError(
            f"process {different[0]} has another config or corpus than process 0: give all the same flags and the same files."
        )
    return cast(T, made)


def broadcast_from_first(tree: Any) -> Any:
    """Sends arrays of the first process to all processes.

    Args:
      tree: the arrays; the other processes pass arrays of the same shapes and types, whose values are ignored.

    Returns:
      The tree with NumPy arrays; with one process, the tree itself.
    """
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def gather_rows(tree: Any) -> Any:
    """Gathers arrays whose rows are shared by the processes; arrays that every process has whole stay as they are.

    Returns:
      The tree with whole NumPy arrays in every process; with one process, the tree itself.
    """
    if count() == 1:
        return tree
    import jax
    from jax.experimental import multihost_utils

    def gathered(leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)


def _exchange_heartbeats(index: int, processes: int) -> None:
    """Sends heartbeats to the other processes. Ends this process if another one has sent none for too long.

    If the first process is gone, JAX ends the others at once with its own message, unless a step reports the loss earlier.
    """
    from jax._src import distributed  # no public function reads another process's value without waiting for it

    client: Any = distributed.global_state.client
    seen = {other: ("", 0) for other in range(processes) if other != index}  # last heartbeat, and the round in which it came
    for number in itertools.count():  # counts rounds, not seconds, so that a job suspended as a whole can continue
        with contextlib.suppress(RuntimeError):
            client.key_value_set(f"charlm/alive/{index}", str(number), allow_overwrite=True)
        for other, (last, _) in seen.items():
            with contextlib.suppress(RuntimeError):  # it has sent none yet
                heartbeat = client.key_value_try_get(f"charlm/alive/{other}")
                if heartbeat != last:
                    seen[other] = (heartbeat, number)
            if (number - seen[other][1]) * HEARTBEAT_SECONDS > HEARTBEAT_TIMEOUT_SECONDS:
                _end(f"another process of this training has gone (process {other}): the same commands resume it.")
        time.sleep(HEARTBEAT_SECONDS)


def _end(message: str) -> None:
    """Ends the process from any thread; the main thread may be waiting inside JAX."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
