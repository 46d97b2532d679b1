"""Several processes, on one machine or many, that train one model together: who speaks, and what all of them know.

Each process feeds its own devices with its own rows of a batch. The first one alone has the run directory, evaluates and
prints; what it finds is told to the others. With one process everything here does nothing.
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
from typing import NamedTuple, TypeVar

import numpy as np

from charlm.errors import Broken, Failure, UserError

T = TypeVar("T")
JOIN_SECONDS = 280  # that a process waits for the others at the start; JAX itself would wait for longer, and then abort
SILENT_SECONDS = 40  # without a sign of life after which a process counts as gone; JAX itself would take 100, and then abort
SIGN_SECONDS = 2  # between signs of life
ERRORS = {"UserError": UserError, "Failure": Failure, "OSError": OSError}


class Lost(Broken):
    """Another process of the training has gone, for which JAX would wait at a normal exit, and then abort."""


class Place(NamedTuple):
    """Where a process stands among all that train together. coordinator: HOST:PORT of the first; None: SLURM knows."""

    number: int
    index: int
    coordinator: str | None


def place_of(distributed: bool, coordinator: str | None, number: int | None, index: int | None) -> Place:
    """From flags, or with `distributed` from the environment of a SLURM step.

    Raises:
      UserError: flags are missing or contradict each other, or this is no step of SLURM.
    """
    given = {"coordinator": coordinator, "num_processes": number, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if distributed:
        if len(missing) < 3:
            raise UserError("--distributed takes all from SLURM: leave --coordinator, --num_processes and --process_id away.")
        try:
            return Place(int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_PROCID"]), None)
        except (KeyError, ValueError) as error:
            raise UserError(
                "--distributed is for tasks that srun has started: elsewhere give --coordinator=HOST:PORT."
            ) from error
    if len(missing) == 3:
        return Place(1, 0, None)
    if missing:
        raise UserError(f"--{missing[0]} is not given: several processes need --coordinator, --num_processes and --process_id.")
    if number < 1 or not 0 <= index < number:
        raise UserError(f"--process_id={index} is not right: with --num_processes={number} it must be from 0 to {number - 1}.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator} is not right: HOST:PORT of the process 0 would be, such as node1:1234.")
    return Place(number, index, coordinator)


def join(place: Place) -> None:
    """Waits until all processes are there, and from then on ends this one where another goes. To be called before JAX does
    anything.

    Raises:
      UserError: they have different numbers of devices.
      Failure: they don't find each other. Where they don't come this process ends here.
    """
    if place.number == 1:
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    late = f"of the {place.number} processes not all came within {JOIN_SECONDS} s: start them all, with the same coordinator."
    patience = threading.Timer(JOIN_SECONDS, _end, [late])
    patience.daemon = True
    patience.start()
    try:
        initialize = functools.partial(jax.distributed.initialize, initialization_timeout=JOIN_SECONDS + 60)
        initialize() if place.coordinator is None else initialize(place.coordinator, place.number, place.index)
    except (RuntimeError, ValueError) as error:
        raise Failure(f"the {place.number} processes did not find each other: {_first_line(error)}") from error
    finally:
        patience.cancel()
    threading.Thread(target=_watch, args=(place.index, place.number), daemon=True).start()
    devices = collections.Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        numbers = ", ".join(str(devices[index]) for index in sorted(devices))
        raise UserError(
            f"the {place.number} processes have {numbers} devices, but must have as many each: on CPUs "
            f"--config.devices={place.number} gives each of them one."
        )


def _watch(index: int, number: int) -> None:
    """Gives signs of life to the other processes, and ends this one where another has given none for long.

    Where the first one has gone JAX itself ends the others at once, in its own words, unless a step tells them before.
    """
    from jax._src import distributed  # of what is public nothing reads what another process says without waiting for it

    client = distributed.global_state.client
    heard = {other: ("", 0) for other in range(number) if other != index}  # last sign, and in which round it came
    for this in itertools.count():  # rounds, not seconds, so that a job that was suspended as a whole goes on
        with contextlib.suppress(RuntimeError):
            client.key_value_set(f"charlm/alive/{index}", str(this), allow_overwrite=True)
        for other, (before, _) in heard.items():
            with contextlib.suppress(RuntimeError):  # none has come yet
                now = client.key_value_try_get(f"charlm/alive/{other}")
                if now != before:
                    heard[other] = (now, this)
            if (this - heard[other][1]) * SIGN_SECONDS > SILENT_SECONDS:
                _end(f"another process of this training has gone (process {other}): the same commands go on.")
        time.sleep(SIGN_SECONDS)


def _end(message: str) -> None:
    """Ends the process from whatever thread, since the main one waits within JAX."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def is_loss(error: BaseException) -> bool:
    """Whether an error of JAX's says that another process has gone."""
    return number() > 1 and isinstance(error, RuntimeError | ValueError) and ("Gloo" in str(error) or "NCCL" in str(error))


@contextlib.contextmanager
def in_company() -> Iterator[None]:
    """Raises a Lost where another process of this training has gone."""
    try:
        yield
    except Exception as error:
        if not is_loss(error):
            raise
        why = str(error).splitlines()[0]
        raise Lost(
            f"another process of this training has gone ({why}): the same commands go on from the last checkpoint."
        ) from error


def is_first() -> bool:
    import jax

    return jax.process_index() == 0


def number() -> int:
    import jax

    return jax.process_count()


def first_says(function: Callable[..., object], *arguments: object) -> object:
    """What a function returns in the first process, in all of them: it is called there only.

    The result is anything JSON can say; a UserError, Failure or OSError is raised in all processes alike.
    """
    if number() == 1:
        return function(*arguments)
    from jax.experimental import multihost_utils

    said = b""
    if is_first():
        try:
            answer = {"value": function(*arguments)}
        except (UserError, Failure) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        except OSError as error:
            answer = {"error": "OSError", "message": error.strerror or str(error)}
        said = json.dumps(answer).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    padded = np.frombuffer(said.ljust(length, b" "), np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"])
    return answer["value"]


def alike(make: Callable[[], T], named: Callable[[T], str]) -> T:
    """What each process makes for itself, once all have made the same.

    Args:
      named: by what it is compared, such as a hash.

    Raises:
      UserError, Failure: it can't be made in this process, or in another one, or is not the same in all.
    """
    if number() == 1:
        return make()
    from jax.experimental import multihost_utils

    made, error, digest = None, None, b"\0" * 32
    try:
        made = make()
        digest = hashlib.sha256(named(made).encode()).digest()
    except (UserError, Failure) as caught:
        error = caught
    digests = np.asarray(multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)))
    if error is not None:
        raise error
    failed = [index for index, other in enumerate(digests) if not other.any()]
    if failed:
        raise Failure(f"process {failed[0]} of this training could not begin: it says why.")
    different = [index for index, other in enumerate(digests) if other.tobytes() != digests[0].tobytes()]
    if different:
        raise UserError(
            f"process {different[0]} has another config or corpus than process 0: give all the same flags and the same files."
        )
    return made


def first_gives(tree):
    """Arrays that the first process has, in all of them, as NumPy arrays; the others give arrays of the same shapes."""
    if number() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def whole(tree):
    """Arrays of which each process has all or some rows, whole in each of them, as NumPy arrays."""
    if number() == 1:
        return tree
    import jax
    from jax.experimental import multihost_utils

    def gathered(leaf):
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gathered, tree)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
