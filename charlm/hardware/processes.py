"""Training of one model in several processes, on one machine or on several machines.

Each process gives its own rows of a batch to its own devices. Only the first process reads and writes the run directory,
evaluates the model and prints. It sends the other processes the data that they need. If there is only one process, nothing is
sent.
"""

import atexit
import collections
import contextlib
import functools
import hashlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from charlm.errors import Broken, Failure, UserError
from charlm.hardware import devices

T = TypeVar("T")
JOIN_TIMEOUT_SECONDS = 280  # all processes must start within this time; after a longer time, JAX would abort
HEARTBEAT_SECONDS = 2  # time between two heartbeats of a process
HEARTBEAT_TIMEOUT_SECONDS = 40  # a process without a heartbeat for this time is lost; JAX would abort after 100 s
ERRORS = {"UserError": UserError, "Failure": Failure, "OSError": OSError}  # see run_on_first_process


class ProcessLost(Broken):
    """Another process of the training is gone.

    This process must exit without Python's clean-up. During the clean-up, JAX would wait for the lost process and then abort.
    """


class ProcessSpec(NamedTuple):
    """The number of processes, the index of this process and the address of process 0.

    Attributes:
      num_processes: number of processes that train together.
      process_id: index of this process, from 0.
      coordinator: HOST:PORT of process 0. None if there is only one process, or if JAX gets the address from SLURM.
    """

    num_processes: int
    process_id: int
    coordinator: str | None


def spec_from_flags(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessSpec:
    """Makes a ProcessSpec from flags. Each argument is the value of the flag with the same name.

    With --distributed, the values come from SLURM.

    Raises:
      UserError: a flag is missing or wrong, flags contradict each other, or --distributed is used outside a SLURM step.
    """
    flags = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in flags.items() if value is None]
    if distributed:
        if len(missing) < len(flags):
            raise UserError(
                "--distributed takes these values from SLURM: remove --coordinator, --num_processes and --process_id."
            )
        try:
            return ProcessSpec(int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"]), None)
        except (KeyError, ValueError) as error:
            raise UserError(
                "--distributed is for tasks started by srun: otherwise give --coordinator, --num_processes and --process_id."
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
    """Waits until all processes have started. Then starts a thread that ends this process if another process is lost.

    Call this function before any other use of JAX. If a process does not start within JOIN_TIMEOUT_SECONDS, this process prints
    an error and ends.

    Raises:
      UserError: the processes have different numbers of devices.
      Failure: the processes can't connect to each other.
    """
    if spec.num_processes == 1:
        return
    devices.use_batch_scheduling()
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
        raise Failure(f"the {spec.num_processes} processes could not connect to each other: {_first_line(error)}") from error
    finally:
        timer.cancel()
    stop = threading.Event()
    exchange = threading.Thread(target=_exchange_heartbeats, args=(spec.process_id, spec.num_processes, stop), daemon=True)
    exchange.start()
    atexit.register(_leave, stop, exchange)
    number_of = collections.Counter(device.process_index for device in jax.devices())
    if len(set(number_of.values())) > 1:
        numbers = ", ".join(str(number_of[index]) for index in sorted(number_of))
        raise UserError(
            f"the {spec.num_processes} processes have {numbers} devices: all processes must have the same number of devices; "
            f"on CPUs --config.devices={spec.num_processes} gives each process one device."
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
    """Whether an error from JAX means that another process is gone."""
    return count() > 1 and isinstance(error, RuntimeError | ValueError) and ("Gloo" in str(error) or "NCCL" in str(error))


@contextlib.contextmanager
def detect_process_loss() -> Iterator[None]:
    """Replaces JAX's error by ProcessLost if another process of this training is gone."""
    try:
        yield
    except Exception as error:
        if not is_process_loss(error):
            raise
        raise ProcessLost(
            f"another process of this training has gone ({_first_line(error)}): "
            "run the same commands again to resume from the last checkpoint."
        ) from error


def run_on_first_process(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function only in the first process, and returns the result in all processes.

    Args:
      function: must return a JSON value.
      arguments: arguments of the function.

    Raises:
      UserError, Failure, OSError: the function raised this error in the first process. All processes raise it.
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
    """Makes a value in each process and checks that all processes made the same value.

    Args:
      make: function that makes the value.
      fingerprint: function that returns a fingerprint of the value, such as a hash. Equal values have equal fingerprints.

    Returns:
      The value that this process made.

    Raises:
      UserError: the values differ, or `make` raised a UserError in this process.
      Failure: `make` raised a Failure in this process, or `make` failed in another process.
    """
    if count() == 1:
        return make()
    from jax.experimental import multihost_utils

    made: T | None = None
    error: UserError | Failure | None = None
    digest = b"\0" * 32  # zeros tell the other processes that `make` failed in this process
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
        raise Failure(f"process {failed[0]} of this training could not start: see the output of process {failed[0]}.")
    different = [index for index, other in enumerate(digests) if other.tobytes() != digests[0].tobytes()]
    if different:
        raise UserError(
            f"process {different[0]} has another config or corpus than process 0: "
            "give all processes the same flags and the same files."
        )
    return cast(T, made)


def broadcast_from_first(tree: Any) -> Any:
    """Sends arrays of the first process to all processes.

    Args:
      tree: arrays. The other processes must pass arrays of the same shapes and types. The values of these arrays are ignored.

    Returns:
      The tree with NumPy arrays. If there is only one process, the tree is returned unchanged.
    """
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def gather_rows(tree: Any) -> Any:
    """Gathers arrays whose rows are split between the processes. Replicated arrays are only converted to NumPy.

    Returns:
      The tree with whole NumPy arrays in each process. If there is only one process, the tree is returned unchanged.
    """
    if count() == 1:
        return tree
    import jax
    from jax.experimental import multihost_utils

    def gathered(leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)


def _leave(stop: threading.Event, exchange: threading.Thread) -> None:
    """Waits until all processes have come to their end, and ends the exchange of heartbeats.

    A thread that is inside JAX while Python ends would abort the process, although its work is done.
    """
    import jax

    with contextlib.suppress(RuntimeError):  # another process is gone
        jax.distributed.shutdown()
    stop.set()
    exchange.join(HEARTBEAT_TIMEOUT_SECONDS)


def _exchange_heartbeats(index: int, processes: int, stop: threading.Event) -> None:
    """Sends heartbeats to the other processes, until `stop` is set. Ends this process if another sends none for too long.

    If the first process is gone, JAX ends the other processes at once with JAX's own message. If another process is gone, a
    training step may raise an error before this function ends the process.
    """
    from jax._src import distributed  # a private module: JAX's public functions would wait until another process sends a value

    client: Any = distributed.global_state.client
    # For each other process: its last heartbeat, and the round of the loop in which this heartbeat was seen first.
    seen = {other: ("", 0) for other in range(processes) if other != index}
    # The loop counts rounds instead of reading a clock. So all processes can be suspended together and continue later.
    for number in itertools.count():
        with contextlib.suppress(RuntimeError):
            client.key_value_set(f"charlm/alive/{index}", str(number), allow_overwrite=True)
        for other, (last, _) in seen.items():
            with contextlib.suppress(RuntimeError):  # no heartbeat from this process yet
                heartbeat = client.key_value_try_get(f"charlm/alive/{other}")
                if heartbeat != last:
                    seen[other] = (heartbeat, number)
            if (number - seen[other][1]) * HEARTBEAT_SECONDS > HEARTBEAT_TIMEOUT_SECONDS:
                _end(f"another process of this training has gone (process {other}): run the same commands again to resume.")
        if stop.wait(HEARTBEAT_SECONDS):
            return


def _end(message: str) -> None:
    """Ends the process from any thread, even while the main thread waits inside JAX."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
