"""Every Orbax call of the project: saving, finding, reading and dropping the checkpoints of a run.

A checkpoint holds `params`, what else training needs to go on (`rest`: optimiser state, carry) and `progress`, a dict of
JSON values. Readers of a finished model restore the parameters alone. With the progress are saved digests of the arrays, since
TensorStore does not notice every flipped bit.
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
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from charlm import files
from charlm.errors import Failure

for name in ("absl", "asyncio", "orbax"):  # their lines on saves and on damaged files are no news for the user
    logging.getLogger(name).setLevel(logging.CRITICAL)


T = TypeVar("T")
TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax takes what has such a name for no checkpoint
DROPPED, REPLACED = f".dropped{TEMPORARY}", f".replaced{TEMPORARY}"
DIGESTS = "digests"  # of the progress itself, of params and of rest; saved with the progress


class Checkpoints:
    """The checkpoints of one run directory; kept are the best and the two latest."""

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        _silence_what_is_left_behind()
        self._replaced: pathlib.Path | None = None
        self._directory = pathlib.Path(directory).resolve()
        if read_only and not self._directory.is_dir():
            raise Failure(f"{directory} does not exist: this run has no checkpoint yet.")
        alone = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:  # the others of this training know nothing of its checkpoints
            me = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=str(me))
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._tidy()
        options = ocp.CheckpointManagerOptions(read_only=read_only, create=False, multiprocessing_options=alone)
        items = ("params", "rest", "progress")
        self._manager = _listed(lambda: ocp.CheckpointManager(self._directory, options=options, item_names=items))

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def is_there(self, step: int) -> bool:
        """Whether the folder of a step is there at this moment."""
        return (self._directory / str(step)).is_dir()

    def reload(self) -> None:
        """Has `steps` look again at what is there."""
        _listed(self._manager.reload)

    def save(self, step: int, params, rest, progress: dict) -> None:
        """Starts to save; the copying is done when this returns, the writing goes on in the background.

        A checkpoint that has this step already is replaced: the training was stopped amid the evaluation of the step.

        Raises:
          OSError: this one, or the one before it, can't be written. So do `keep_only` and `wait`.
        """
        copies = jax.tree.map(lambda leaf: leaf.copy(), (params, rest))  # the originals are donated to the next step
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
        """Deletes the complete checkpoints of all other steps."""
        surplus = set(self.steps()) - steps
        for step in surplus:
            # Renamed first, so that nobody who reads beside us, and no next start where we are killed in the meantime, takes
            # what is left of it for a checkpoint.
            dropped = self._directory / f"{step}{DROPPED}"
            (self._directory / str(step)).rename(dropped)
            shutil.rmtree(dropped)
        if surplus:
            self._manager.reload()

    def _tidy(self) -> None:
        """Deletes what was not yet a checkpoint, or no longer one, when the start before was killed."""
        for path in self._directory.glob(f"*{REPLACED}"):
            step = self._directory / path.name.removesuffix(REPLACED)
            if not step.exists():  # what was to replace it never came
                path.rename(step)
        for path in self._directory.glob(f"*{TEMPORARY}"):
            shutil.rmtree(path)

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
        self._opened(step, restored.progress, params=restored.params)
        return restored.params

    def restore(self, step: int, abstract_params, abstract_rest) -> tuple:
        """(params, rest, progress) as they were saved."""
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_here(abstract_params)),
            rest=ocp.args.StandardRestore(_here(abstract_rest)),
            progress=ocp.args.JsonRestore(),
        )
        restored = self._restored(step, items)
        return restored.params, restored.rest, self._opened(step, restored.progress, params=restored.params, rest=restored.rest)

    def progress(self, step: int) -> dict:
        """The progress saved with a step."""
        return self._opened(step, self._restored(step, ocp.args.Composite(progress=ocp.args.JsonRestore())).progress)

    def wait(self) -> None:
        """Blocks until what `save` started is on disk."""
        with _as_os_error():
            self._manager.wait_until_finished()
        if self._replaced is not None:
            shutil.rmtree(self._replaced)
            self._replaced = None

    def close(self) -> None:
        with contextlib.suppress(Exception):  # who waited has been told what could not be written
            self._manager.close()

    def _opened(self, step: int, saved: dict, **trees) -> dict:
        """The progress without its digests. Raises a Failure where it, or one of the trees, is not what was saved."""
        progress = {key: value for key, value in saved.items() if key != DIGESTS}
        if DIGESTS not in saved:
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read (an older version of charlm saved it)")
        found, written = _digests(progress, trees), saved[DIGESTS]
        if found != {name: written.get(name) for name in found}:
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read (its contents are not what was saved)")
        return progress

    def _restored(self, step: int, items):
        try:
            return self._manager.restore(step, args=items)
        except MemoryError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever the damaged bytes lead them to
            gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
            if (isinstance(error, OSError) and not gone) or re.search("RESOURCE_EXHAUSTED|UNAVAILABLE|PERMISSION", str(error)):
                raise OSError(f"{self._directory / str(step)}: {str(error).splitlines()[0][:200]}") from error
            reason = f"{type(error).__name__}: {str(error).split(' [')[0].splitlines()[0] if str(error) else ''}"[:200]
            raise Failure(f"checkpoint {self._directory / str(step)} can't be read ({reason})") from error


def _listed(look: Callable[[], T]) -> T:
    """Looks at what is there. Orbax lists the steps and then looks at each, which a training beside us may drop in between."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return look()
    return look()


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
    before = sys.unraisablehook
    if hasattr(before, "of_charlm"):
        return

    def hook(unraisable) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        left_behind = code is not None and "orbax" in code.co_filename
        if not left_behind and str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    hook.of_charlm = True
    sys.unraisablehook = hook


def _digests(progress: dict, trees: dict) -> dict[str, str]:
    return {"progress": files.digest(json.dumps(progress)), **{name: _digest(tree) for name, tree in trees.items()}}


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
