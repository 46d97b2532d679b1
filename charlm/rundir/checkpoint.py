"""Saves, lists, reads and deletes the checkpoints of a run. Only this module calls Orbax.

A checkpoint has three items. `params` holds the parameters. `rest` holds the optimiser state and the carry (the recurrent
state). Only training needs `rest`; the programs evaluate and sample do not read it. `progress` is a dict of JSON values.

`progress` also holds digests of the arrays and of its own values, because TensorStore does not detect every flipped bit.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from charlm import files
from charlm.errors import Failure

# These libraries log every save and every damaged file. charlm hides their logs, because it reports damaged files itself.
for name in ("absl", "asyncio", "orbax"):
    logging.getLogger(name).setLevel(logging.CRITICAL)

T = TypeVar("T")
TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax ignores folders with this ending
# A checkpoint that is being deleted has the first ending in the name of its folder. A checkpoint that a new save replaces has
# the second ending.
DROPPED, REPLACED = f".dropped{TEMPORARY}", f".replaced{TEMPORARY}"
LISTING_ATTEMPTS = 100
DIGESTS = "digests"  # the key in the saved progress whose value is a dict with the digests of progress, params and rest


class Checkpoints:
    """The checkpoints of one run directory.

    Each checkpoint is in a folder named after its step. For example, the folder `40` holds the checkpoint of step 40.
    """

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        """Opens the checkpoint folder. Creates a missing folder, unless `read_only` is true.

        Raises:
          Failure: `read_only` is true and the folder does not exist.
        """
        if not isinstance(sys.unraisablehook, _LeftoverErrorFilter):
            sys.unraisablehook = _LeftoverErrorFilter(sys.unraisablehook)
        self._replaced: pathlib.Path | None = None
        self._directory = pathlib.Path(directory).resolve()
        if read_only and not self._directory.is_dir():
            raise Failure(f"{directory} does not exist: this run has no checkpoint yet.")
        processes = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # only this process uses checkpoints, so Orbax must not wait for other processes
            index = jax.process_index()
            processes = ocp.options.MultiprocessingOptions(
                primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
            )
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._clean_up()
        options = ocp.CheckpointManagerOptions(read_only=read_only, create=False, multiprocessing_options=processes)
        items = ("params", "rest", "progress")
        self._manager = _retry_listing(lambda: ocp.CheckpointManager(self._directory, options=options, item_names=items))

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in ascending order.

        Call `reload` first if another process may have changed the folder.
        """
        return sorted(self._manager.all_steps())

    def exists(self, step: int) -> bool:
        """Whether the folder of a step exists. Looks at the disk at each call, so `reload` is not needed."""
        return (self._directory / str(step)).is_dir()

    def reload(self) -> None:
        """Lists the checkpoints on disk again, because another process may have added or deleted checkpoints."""
        _retry_listing(self._manager.reload)

    def save(self, step: int, params: Any, rest: Any, progress: dict[str, Any]) -> None:
        """Starts to save a checkpoint. Copies the arrays and returns. Orbax writes the files in the background.

        Replaces an existing checkpoint of the same step. Such a checkpoint exists if training stopped during the evaluation at
        this step.

        Args:
          step: the step of the checkpoint.
          params: tree of arrays.
          rest: tree of arrays.
          progress: JSON values.

        Raises:
          OSError: this checkpoint or the previous checkpoint can't be written. `wait` raises this error too.
        """
        # The arrays are copied, because the next training step overwrites their memory while Orbax still writes. NumPy copies
        # them, because JAX would compile a program for each shape.
        copies = jax.tree.map(np.array, jax.device_get((params, rest)))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(copies[0]),
            rest=ocp.args.StandardSave(copies[1]),
            progress=ocp.args.JsonSave({**progress, DIGESTS: _digests(progress, {"params": copies[0], "rest": copies[1]})}),
        )
        if step in self.steps():
            self._replaced = self._directory / f"{step}{REPLACED}"
            (self._directory / str(step)).rename(self._replaced)
            self._manager.reload()
        with _as_os_error():
            self._manager.save(step, args=items)

    def keep_only(self, steps: set[int]) -> None:
        """Deletes all complete checkpoints whose step is not in `steps`.

        Raises:
          OSError: a checkpoint can't be deleted.
        """
        surplus = set(self.steps()) - steps
        for step in surplus:
            # The folder is renamed first, so that no process finds a partly deleted checkpoint, even if this process
            # is killed.
            dropped = self._directory / f"{step}{DROPPED}"
            (self._directory / str(step)).rename(dropped)
            shutil.rmtree(dropped)
        if surplus:
            self._manager.reload()

    def set_aside(self, step: int) -> None:
        """Moves an unreadable checkpoint to the folder `unreadable`, so that its step can be saved again."""
        destination = self._directory.with_name("unreadable") / str(step)
        shutil.rmtree(destination, ignore_errors=True)
        destination.parent.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(destination)
        self._manager.reload()

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Reads the parameters of a checkpoint and places the arrays on this process's first device.

        Args:
          step: the step of the checkpoint.
          abstract_params: tree of jax.ShapeDtypeStruct.

        Raises:
          Failure: the checkpoint is missing or damaged.
          OSError: the checkpoint can't be read for another reason, such as permissions or too little memory.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_on_first_device(abstract_params)), progress=ocp.args.JsonRestore()
        )
        restored = self._restore_items(step, items)
        self._verified_progress(step, restored.progress, params=restored.params)
        return restored.params

    def restore(self, step: int, abstract_params: Any, abstract_rest: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Reads a whole checkpoint and returns (params, rest, progress).

        Places the arrays on this process's first device. Raises the same errors as `restore_params`.

        Args:
          step: the step of the checkpoint.
          abstract_params: tree of jax.ShapeDtypeStruct.
          abstract_rest: tree of jax.ShapeDtypeStruct.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_on_first_device(abstract_params)),
            rest=ocp.args.StandardRestore(_on_first_device(abstract_rest)),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._restore_items(step, items)
        progress = self._verified_progress(step, restored.progress, params=restored.params, rest=restored.rest)
        return restored.params, restored.rest, progress

    def progress(self, step: int) -> dict[str, Any]:
        """Reads the progress of a checkpoint. Raises the same errors as `restore_params`."""
        restored = self._restore_items(step, ocp.args.Composite(progress=ocp.args.JsonRestore()))
        return self._verified_progress(step, restored.progress)

    def wait(self) -> None:
        """Waits until the checkpoint that `save` started is on disk.

        Raises:
          OSError: the checkpoint can't be written.
        """
        with _as_os_error():
            self._manager.wait_until_finished()
        if self._replaced is not None:
            shutil.rmtree(self._replaced)
            self._replaced = None

    def close(self) -> None:
        """Ends the threads of Orbax."""
        with contextlib.suppress(Exception):  # if a write failed, `wait` has already raised the error
            self._manager.close()

    def _clean_up(self) -> None:
        """Repairs the folder if an earlier process was killed during a save or a deletion.

        If a new checkpoint was not completed, restores the old checkpoint of the same step. Deletes partly written and partly
        deleted checkpoints.
        """
        for path in self._directory.glob(f"*{REPLACED}"):
            step = self._directory / path.name.removesuffix(REPLACED)
            if not step.exists():
                path.rename(step)
        for path in self._directory.glob(f"*{TEMPORARY}"):
            shutil.rmtree(path)

    def _verified_progress(self, step: int, saved: dict[str, Any], **trees: Any) -> dict[str, Any]:
        """Returns the progress without the digests. Raises a Failure if the progress or a tree does not match its digest."""
        progress = {key: value for key, value in saved.items() if key != DIGESTS}
        if DIGESTS not in saved:
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read (an older version of charlm saved it)")
        actual, recorded = _digests(progress, trees), saved[DIGESTS]
        if actual != {name: recorded.get(name) for name in actual}:
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read (its contents do not match its digests)")
        return progress

    def _restore_items(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except MemoryError:
            raise
        except Exception as error:  # damaged files make Orbax and TensorStore raise many kinds of errors
            missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if (isinstance(error, OSError) and not missing) or re.search(
                "RESOURCE_EXHAUSTED|UNAVAILABLE|PERMISSION", str(error)
            ):
                raise OSError(f"{self._directory / str(step)}: {str(error).splitlines()[0][:200]}") from error
            reason = f"{type(error).__name__}: {str(error).split(' [')[0].splitlines()[0] if str(error) else ''}"[:200]
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read ({reason})") from error


def _retry_listing(list_steps: Callable[[], T]) -> T:
    """Calls `list_steps` again if `list_steps` raises FileNotFoundError.

    Orbax first lists the checkpoints, then opens each checkpoint. Meanwhile, another process may delete a listed checkpoint.
    """
    for _ in range(LISTING_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            return list_steps()
    return list_steps()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raises an OSError in place of any other error. If a write fails, Orbax and TensorStore raise many kinds of errors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = re.search(r"([^:]+) \[os_error_code", str(error))
        raise OSError(reason[1].strip() if reason else lines[0][:200]) from error


class _LeftoverErrorFilter:
    """A sys.unraisablehook that hides the tracebacks of all Orbax errors after the first error.

    Orbax reads and writes arrays concurrently. If several arrays fail, Orbax raises only the first error. Python would print
    the later errors when it deletes the unfinished coroutines, or when a write uses an event loop that is already closed.
    """

    def __init__(self, previous_hook: Callable[[Any], Any]):
        self._previous_hook = previous_hook

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        is_abandoned = code is not None and "orbax" in code.co_filename
        if not is_abandoned and str(unraisable.exc_value) != "Event loop is closed":
            self._previous_hook(unraisable)


def _digests(progress: dict[str, Any], trees: dict[str, Any]) -> dict[str, str]:
    return {"progress": files.digest(json.dumps(progress)), **{name: digest(tree) for name, tree in trees.items()}}


def digest(tree: Any) -> str:
    """SHA-256 of the names, types, shapes and values of all arrays in a tree."""
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        hashed.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        hashed.update(array.data.cast("B") if array.size else b"")
    return hashed.hexdigest()


def _on_first_device(abstract: Any) -> Any:
    """Adds a sharding to each leaf of a tree, so that Orbax restores the arrays to this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
