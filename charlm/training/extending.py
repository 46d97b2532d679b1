"""Changes the config of a run that is done or was stopped. Training then continues from its latest checkpoint.

With --extend, the keys in `keys.EXTENDABLE` may change. When a run is resumed without --extend, only the keys in
`keys.resumable` may change. The change is kept in extensions.json. A change is either made as a whole or not at all, even if
the process is killed in between; see `Run.extend`.
"""

import contextlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from charlm import cli
from charlm import progress as messages
from charlm.config import keys, load
from charlm.data.framing import Framing
from charlm.errors import Failure, UserError
from charlm.inference.protocol import Protocol
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run
from charlm.training import judging, setup, state
from charlm.training.setup import Setup
from charlm.training.state import Progress


class Extension(NamedTuple):
    """A checked change of a run.

    Attributes:
      config: the config after the change.
      entry: the entry for extensions.json; see `Run.extensions`.
      status: the run's status.json before the change.
      words: lines that tell the user what the change does.
    """

    config: ConfigDict
    entry: dict[str, Any]
    status: dict[str, Any]
    words: list[str]


def plan(run: Run, config: ConfigDict, made: Setup, extend: bool) -> Extension | None:
    """Checks the change from the run's config to `config`. Returns None if the configs are equal. Writes nothing.

    Args:
      made: the setup of `config`.
      extend: whether --extend is given.

    Raises:
      UserError: the corpus has changed, a process is training the run, or nothing is left to train.
      Failure: no checkpoint can be read.
    """
    old_config = run.config()
    changes = load.differences(load.to_dict(old_config), load.to_dict(config))
    if not changes:
        return None
    if run.is_training():
        raise UserError(f"a process is training {run.workdir}: wait for it or stop it before you change {next(iter(changes))}.")
    run.check_data(made.vocab, made.provenance)
    progress = _latest_progress(run, made)
    old_protocol = Protocol.of(old_config, Framing.of(old_config))
    resets_best = made.best_by == "validation" and old_protocol.named("", "", 0) != made.protocol.named("", "", 0)
    entry = {
        "step": progress.step,
        "rows": progress.rows,
        "before": {name: before for name, (before, _) in changes.items()},
        "after": {name: after for name, (_, after) in changes.items()},
        "resets_best": resets_best,
    }
    if resets_best:
        state.forget_best(progress)
    if judging.is_finished(made, progress) or (extend and progress.step >= made.total_steps):
        raise UserError(_nothing_left(run, made, progress, extend))
    listed = ", ".join(f"{name} {before} → {after}" for name, (before, after) in changes.items())
    if changes.keys() <= keys.RESUMABLE:
        words = [f"changes {run.workdir} from step {progress.step} on: {listed}."]
    else:
        words = [f"extends {run.workdir} from step {progress.step} on, to {made.total_steps} steps: {listed}."]
        words.append(_rates_in_words(old_config, config, made, progress))
    if resets_best:
        words.append("evaluations have another protocol now: the best checkpoint is chosen among the evaluations from now on.")
    return Extension(config, entry, run.status(), words)


def apply(run: Run, extension: Extension) -> None:
    """Makes a planned change. The caller holds the lock of the run.

    Raises:
      UserError: another process has trained or changed the run since `plan` was called.
    """
    before = load.flatten(load.to_dict(run.config()))
    if run.status() != extension.status or any(before[name] != value for name, value in extension.entry["before"].items()):
        raise UserError(f"another process has changed {run.workdir} just now: give the command again.")
    run.extend(extension.entry, extension.config)
    for line in extension.words:
        messages.tell(line)


def _latest_progress(run: Run, made: Setup) -> Progress:
    """The progress at the checkpoint from which the run will go on. A run without a checkpoint begins again at step 0."""
    if not run.checkpoints.is_dir():
        return Progress()
    with contextlib.closing(Checkpoints(run.checkpoints, read_only=True)) as checkpoints:
        if not checkpoints.steps():
            return Progress()
        found = state.latest_checkpoint(made, checkpoints)
        if found is None:
            raise Failure(f"no checkpoint of {run.workdir} can be read: restore one from a copy.")
    return Progress.from_dict(found.progress)


def _nothing_left(run: Run, made: Setup, progress: Progress, extend: bool) -> str:
    if not extend:
        own = f"{cli.command('train')} --workdir={run.workdir}"
        return f"{run.workdir} has no step left to train: resume it with its own config ({own}), or lengthen it with --extend."
    if progress.step >= made.total_steps:
        return (
            f"--extend: {run.workdir} is at step {progress.step}, and this config ends at step {made.total_steps}: set "
            "train.steps to more, or train.epochs if train.steps is 0."
        )
    return (
        f"--extend: train.patience={made.patience} ends {run.workdir} at step {progress.step}, because its last "
        f"{messages.counted(progress.since_best, 'evaluation')} had no new best loss: set train.patience to more, or to 0."
    )


def _rates_in_words(old_config: ConfigDict, config: ConfigDict, made: Setup, progress: Progress) -> str:
    """The learning rate of the last step before the change, and of the next and the last step after the change."""
    epoch, step, total = made.batches.steps_per_epoch, progress.step, made.total_steps
    by_step = {max(step, 1): setup.learning_rates(old_config, epoch)(max(step, 1) - 1, 1)}
    by_step |= {after: made.rates(after - 1, 1) for after in (step + 1, total) if after not in by_step}
    scale = np.float32(0.5**progress.halvings)
    listed = ", ".join(f"{float(rate[0] * scale):.2e} at step {at}" for at, rate in by_step.items())
    halved = f" (halved {messages.counted(progress.halvings, 'time')} after divergences)" if progress.halvings else ""
    jumps = step > 0 and made.rates(step, 1)[0] > 1.01 * by_step[step][0]
    why = "; it rises, because the schedule is computed for the whole length of the run" if jumps else ""
    return f"learning rate{halved}: {listed}{why}."
