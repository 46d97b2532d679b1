"""Describes a training, opens its run directory, goes back to a checkpoint after a divergence, and records a failure."""

import contextlib
import functools
import json
import os
from collections.abc import Callable

from ml_collections import ConfigDict

from charlm import progress as messages
from charlm.config import keys, load
from charlm.data.framing import Framing
from charlm.errors import Failure, UserError
from charlm.hardware import devices, processes
from charlm.models import drawing, kernels, stack
from charlm.models.cells import own
from charlm.rundir import directory
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import extending, inheriting
from charlm.training.judging import Diverged, best_in_words
from charlm.training.setup import Setup, describe, set_up
from charlm.training.state import Progress, TrainState, resumed


def has_ended(run: Run, config: ConfigDict, extend: bool = False) -> bool:
    """Whether the directory holds a finished run of this config. If so, prints the result of the run.

    Args:
      extend: whether the config may change the run. If true, a run that the config would change has not ended.

    Raises:
      UserError: the directory can't be used.
      Failure: the run in the directory has diverged.
    """
    if not directory.exists(str(run.workdir), config, extend):
        if extend:
            raise UserError(f"--extend: --workdir={run.workdir} holds no run: leave out --extend to begin one.")
        return False
    status = run.status()
    if status["state"] == "diverged":
        raise Failure(f"{run.workdir} has diverged ({status['message']}): change the config and train into another directory.")
    different = load.differences(load.to_dict(run.config()), load.to_dict(config))
    if extend and different:
        return False
    if status["state"] == "done":
        if different:
            messages.warn(f"{load.in_words(different)}: nothing changes, because the run is done; --extend trains it further.")
        if extend:
            messages.warn("--extend changes nothing, because the run already has this config.")
        messages.tell(f"{run.workdir} is done at step {status['step']}: {best_in_words(status['best'])}.")
    return status["state"] == "done"


def describe_only(
    config: ConfigDict, graph: str, graph_steps: int, workdir: str | None = None, trust_code: bool = False
) -> int:
    """Prints the description of a config and all parameters, and writes a picture of the network. Returns the exit status.

    Args:
      workdir: the run directory. If it holds a run of this config, the recorded parent of the run is named. Otherwise, the
        parent that `train.init_from` names is read.
      trust_code: whether the user trusts the code of cells in files, if a run directory names these files.
    """
    run = Run(workdir) if workdir is not None and os.path.exists(os.path.join(workdir, "status.json")) else None
    own.load(config, trusted_cells(run, config, trust_code) if run else None)
    setup = set_up(config)
    if run and not load.differences(load.to_dict(run.config()), load.to_dict(config)):
        parent = run.parent()
    else:
        inheritance = inheriting.read(config, setup, trust_code=trust_code)
        parent = inheritance and inheritance.parent
    describe(setup, setup.abstract_params, verbose=True)
    if parent:
        inheriting.tell(parent)
    dot = drawing.unrolled(setup.functions.shape, graph_steps, last_only=Framing.of(config).window > 0)
    print(f"written: {', '.join(drawing.write(dot, graph))}")
    return 0


def identical_setup(run: Run, config: ConfigDict, trust_code: bool, make_setup: Callable[[ConfigDict], Setup]) -> Setup:
    """The setup of a config, as `make_setup` makes it. Also loads the cells of the config that are in files of the user.

    Raises:
      UserError: the processes of this training made different setups, or a cell can't be loaded, or the user does not trust the
        cells of the run that the directory holds, or this machine or the model does not have the kernel of the config.
    """
    recorded = processes.run_on_first_process(trusted_cells, run, config, trust_code)

    def make() -> Setup:
        own.load(config, recorded)
        kernels.check(config)
        return make_setup(config)

    return processes.make_identical(make, functools.partial(_fingerprint, config))


def trusted_cells(run: Run, config: ConfigDict, trust_code: bool) -> dict[str, str] | None:
    """The result of `own.trusted` if the directory holds a run with the cells of the config, otherwise None."""
    is_of_run = (run.workdir / "status.json").exists() and own.names(run.config()) == own.names(config)
    return own.trusted(run, trust_code, f"--workdir={run.workdir}") if is_of_run else None


def open_run(
    run: Run, config: ConfigDict, setup: Setup, stack_of_contexts: contextlib.ExitStack, extend: bool, trust_code: bool
) -> bool:
    """Locks the directory, and begins a run if the directory holds none. Returns whether the run is already finished.

    Args:
      stack_of_contexts: holds the lock. Closing the stack releases the lock.
      extend: whether the config may change the run that the directory holds.
      trust_code: whether the user trusts the code of the cell of `train.init_from`, if this cell is in a file.
    """
    begun = directory.exists(str(run.workdir), config, extend)
    extension = extending.plan(run, config, setup, extend) if begun else None
    inheritance = inheriting.for_run(run, config, setup, begun, trust_code)
    directory.make(str(run.workdir))
    stack_of_contexts.enter_context(run.locked())
    # Check again, because another process could begin or end the run before this process held the lock.
    if extension:
        extending.apply(run, extension)
    if not directory.exists(str(run.workdir), config):
        run.begin(config, setup.vocab, setup.provenance, inheritance and inheritance.parent, own.digests(config))
    elif has_ended(run, config):
        return True
    elif load.differences(load.to_dict(run.config()), load.to_dict(config)):
        raise UserError(f"another process has changed {run.workdir} just now: give the command again.")
    run.check_data(setup.vocab, setup.provenance)
    if own.names(config) and run.cells() != own.digests(config):
        raise UserError(f"another process has begun {run.workdir} just now with another cell: give the command again.")
    run.note_start(
        device=devices.in_words(setup.mesh.devices.flat),
        parameters=stack.parameter_count(setup.abstract_params),
        total_steps=setup.total_steps,
        kernel=setup.kernel,
    )
    if inheritance:
        inheriting.save(run, inheritance)
    return False


def go_back(
    error: Diverged, setup: Setup, run: Run, checkpoints: Checkpoints | None, progress: Progress
) -> tuple[TrainState, Progress]:
    """Restores the last checkpoint and halves the learning rate. Returns the restored state and progress.

    If the process is killed before the next checkpoint, the halved rate is lost. The resumed run then diverges at the same
    step, and calls this function again.

    Args:
      checkpoints: None in every process except the first.

    Raises:
      Failure: the learning rate was already halved `train.halvings` times. The state in status.json is then `diverged`.
    """
    if checkpoints:
        checkpoints.wait()
    if progress.halvings >= setup.halvings:
        if checkpoints:
            run.write_status("diverged", progress.step, progress.best, str(error), progress.rows)
        raise Failure(f"{error}: the run is marked diverged, and its last good checkpoint is kept; try a lower learning rate.")
    if checkpoints:
        messages.warn(f"{error}: going back to the last checkpoint and halving the learning rate.")
    state, restored = resumed(setup, run, checkpoints)
    restored.halvings = progress.halvings + 1
    return state, restored


def mark_failed(run: Run, progress: Progress, error: Exception) -> None:
    """Writes to status.json that the training failed. Ignores an error of the disk."""
    with contextlib.suppress(OSError):
        run.write_status("failed", progress.step, progress.best, f"{type(error).__name__}: {error}", progress.rows)


def _fingerprint(config: ConfigDict, setup: Setup) -> str:
    """Text that must be the same in all processes.

    It has the config keys that change the result, the vocabulary, the corpus, and the digests of files with the user's cells.
    """
    fields = load.flatten(load.to_dict(config))
    same = {key: value for key, value in fields.items() if key not in keys.CHANGE_NO_RESULT}
    data = [setup.vocab.to_dict(), setup.provenance["sha256"], setup.provenance["splits"]]
    return json.dumps([same, *data, own.digests(config)], sort_keys=True)
