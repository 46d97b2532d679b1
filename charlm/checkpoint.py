"""Every Orbax call of the project: saving, finding, reading and dropping the checkpoints of a run.

A checkpoint holds `params`, what else training needs to go on (`rest`: optimiser state, carry) and `progress`, a dict of
JSON values. Readers of a finished model restore the parameters alone. With the progress are saved digests of the arrays, since
TensorStore does not notice every flipped bit.
"""

import contextlib
import hashlib
import logging
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp

from charlm.errors import Failure

for name in ("absl", "asyncio", "orbax"):  # their lines on saves and on damaged files are no news for the user
    logging.getLogger(name).setLevel(logging.CRITICAL)


DIGESTS = "digests"  # of params and rest, beside the progress


class Checkpoints:
    """The checkpoints of one run directory; kept are the best and the two latest."""

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        _silence_what_is_left_behind()
        self._directory = pathlib.Path(directory).resolve()
        if read_only and not self._directory.is_dir():
            raise Failure(f"{directory} does not exist: this run has no checkpoint yet.")
        alone = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # the others of this training know nothing of its checkpoints
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me))
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(read_only=read_only, create=False, multiprocessing_options=alone),
            item_names=("params", "rest", "progress"),
        )

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def is_there(self, step: int) -> bool:
        """Whether the folder of a step is there at this moment."""
        return (self._directory / str(step)).is_dir()

    def reload(self) -> None:
        """Has `steps` look again at what is there."""
        self._manager.reload()

    def save(self, step: int, params, rest, progress: dict) -> None:
        """Starts to save; the copying is done when this returns, the writing goes on in the background.

        A checkpoint that has this step already goes: the training was stopped amid the evaluation of the step.

        Raises:
          OSError: this one, or the one before it, can't be written. So do `keep_only` and `wait`.
        """
        copies = jax.tree.map(lambda leaf: leaf.copy(), (params, rest))  # the originals are donated to the next step
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(copies[0]),
            rest=ocp.args.StandardSave(copies[1]),
            progress=ocp.args.JsonSave({**progress, DIGESTS: [_digest(tree) for tree in copies]}),
        )
        with _as_os_error():
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(step, args=items)

    def keep_only(self, steps: set[int]) -> None:
        """Deletes the complete checkpoints of all other steps."""
        with _as_os_error():
            for step in set(self.steps()) - steps:
                self._manager.delete(step)

    def set_aside(self, step: int) -> None:
        """Moves a checkpoint that can't be read to the folder `unreadable`, so that its step can be saved again."""
        aside = self._directory.with_name("unreadable") / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(aside)
        self._manager.reload()

    def restore_params(self, step: int, abstract_params):
        """The parameters of a step, placed on this process's default device whatever wrote them."""
        items = ocp.args.Composite(params=ocp.args.StandardRestore(_here(abstract_params)), progress=ocp.args.JsonRestore())
        restored = self._restored(step, items)
        self._verify(step, restored.progress, restored.params)
        return restored.params

    def restore(self, step: int, abstract_params, abstract_rest) -> tuple:
        """(params, rest, progress) as they were saved."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_here(abstract_params)),
            rest=ocp.args.StandardRestore(_here(abstract_rest)),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._restored(step, items)
        self._verify(step, restored.progress, restored.params, restored.rest)
        return restored.params, restored.rest, _without_digests(restored.progress)

    def progress(self, step: int) -> dict:
        """The progress saved with a step."""
        return _without_digests(self._restored(step, ocp.args.Composite(progress=ocp.args.JsonRestore())).progress)

    def wait(self) -> None:
        """Blocks until what `save` started is on disk."""
        with _as_os_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # who waited has been told what could not be written
            self._manager.close()

    def _verify(self, step: int, progress: dict, *trees) -> None:
        """Raises a Failure where arrays are not those that were saved; checkpoints of older versions have no digests."""
        saved = progress.get(DIGESTS, [])
        for tree, digest in zip(trees, saved, strict=False):
            if _digest(tree) != digest:
                raise Failure(f"checkpoint {self._directory / str(step)} can't be read (its contents are not what was saved)")

    def _restored(self, step: int, items):
        try:
            return self._manager.restore(step, args=items)
        except Exception as error:  # Orbax and TensorStore raise whatever the damaged bytes lead them to
            reason = f"{type(error).__name__}: {str(error).split(' [')[0].splitlines()[0] if str(error) else ''}"[:200]
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read ({reason})") from error


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """What Orbax and TensorStore raise where they can't write, a ValueError of many lines say, as an OSError that says why."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        why = re.search(r"([^:]+) \[os_error_code", str(error))
        raise OSError(why[1].strip() if why else lines[0][:200]) from error


def _silence_what_is_left_behind() -> None:
    """Arrays are read and written side by side: of several that can't be, one is raised. The others would be printed, each with
    a traceback: coroutines left behind when they are collected, writes when they report to an event loop that has gone."""
    unraisable_before, except_before = sys.unraisablehook, sys.excepthook
    if hasattr(unraisable_before, "of_charlm"):
        return

    def unraisable_hook(unraisable) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        if code is None or "orbax" not in code.co_filename:
            unraisable_before(unraisable)

    def except_hook(kind, error, traceback) -> None:
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            except_before(kind, error, traceback)

    unraisable_hook.of_charlm = True
    sys.unraisablehook, sys.excepthook = unraisable_hook, except_hook


def _without_digests(progress: dict) -> dict:
    return {key: value for key, value in progress.items() if key != DIGESTS}


def _digest(tree) -> str:
    """SHA-256 over all arrays of a tree, their names, types and shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _here(abstract):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
