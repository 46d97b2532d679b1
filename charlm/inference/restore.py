"""Reads a trained model from a run directory: its config, its vocabulary and the parameters of one checkpoint."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from charlm.data.vocab import Vocab
from charlm.errors import Failure, UserError
from charlm.hardware import accelerators
from charlm.models import stack
from charlm.models.cells import own
from charlm.progress import warn
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run

ATTEMPTS = 100  # the number of attempts to read a checkpoint while a training deletes old checkpoints


class Trained(NamedTuple):
    """A checkpoint with the data of its run.

    Attributes:
      config: the config of the run.
      vocab: the vocabulary of the run.
      corpus: the provenance of the corpus, as in corpus.json.
      functions: the model as pure functions.
      params: the parameters, a tree of float32 arrays.
      step: the step at which the checkpoint was saved.
    """

    config: ConfigDict
    vocab: Vocab
    corpus: dict
    functions: stack.Functions
    params: Any
    step: int


def load(
    workdir: str | os.PathLike, which: str, dtype: str | None = None, given_as: str | None = None, trust_code: bool = False
) -> Trained:
    """Reads a run and one of its checkpoints.

    If the best checkpoint can't be read, the second best checkpoint is read, and so on. If the latest checkpoint can't be read,
    the previous checkpoint is read, and so on. A note on stderr tells the user. If no checkpoint has been evaluated yet, `best`
    stands for the latest checkpoint.

    Args:
      workdir: the run directory. A training may write to the directory at the same time.
      which: `best`, `latest` or a step. `best` is the checkpoint with the lowest validation loss or
        training loss; `train.best` says which of the two losses.
      dtype: the type of the operands of matrix products. None stands for the type that the training used.
      given_as: what messages call the run and the checkpoint, for example `train.init_from=runs/first`. With None, messages
        name the flags --workdir and --checkpoint.
      trust_code: whether the user trusts the code of the run's cell, if this cell is in a file of the user.

    Raises:
      UserError: the directory has no run, or the run has no checkpoint `which`, or its cell can't be loaded; see `own.trusted`.
      Failure: the checkpoint can't be read, and no other checkpoint can be read instead.
    """
    run_text, checkpoint_text = (given_as, given_as) if given_as else (f"--workdir={workdir}", f"--checkpoint={which}")
    accelerators.leave_out_missing()
    run = Run(workdir)
    run.status()
    config, vocab, corpus = run.config(), run.vocab(), run.corpus()
    own.load(config, own.trusted(run, trust_code, run_text))
    if dtype:
        config.model.update({"dtype": dtype})
    functions = stack.functions(config, len(vocab))
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    if not run.checkpoints.is_dir():
        raise UserError(f"{run_text} has no checkpoint yet: train it for longer.")
    with contextlib.closing(Checkpoints(run.checkpoints, read_only=True)) as checkpoints:
        for _ in range(ATTEMPTS):
            try:
                status = run.status()
                candidates = _candidates(checkpoints, which, status["best"], checkpoint_text)
                for step in candidates:
                    with _skipping_unreadable(checkpoints, step):
                        params = checkpoints.restore_params(step, abstract)
                        named = _named_step(checkpoints, which, status)
                        if step != named and named is not None and not run.is_training():
                            reason = "can't be read" if named in checkpoints.steps() else "does not exist"
                            warn(f"{checkpoint_text}: using step {step}, because step {named} {reason}.")
                        return Trained(config, vocab, corpus, functions, params, step)
                if candidates or not run.is_training():
                    break
            except _Deleted:
                pass
            time.sleep(0.01)
            checkpoints.reload()
        if not checkpoints.steps():
            raise UserError(f"{run_text} has no checkpoint yet: train it for longer.")
    raise Failure(f"{checkpoint_text}: no such checkpoint of {workdir} can be read; train again or name another one.")


class _Deleted(Exception):
    """A training in another process deleted the checkpoint during reading."""


@contextlib.contextmanager
def _skipping_unreadable(checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Prints a note if a checkpoint can't be read. Raises `_Deleted` if the checkpoint no longer exists."""
    try:
        yield
    except Failure as error:
        if not checkpoints.exists(step):
            raise _Deleted from error
        warn(f"{error}.")


def _named_step(checkpoints: Checkpoints, which: str, status: dict) -> int | None:
    """The step that `which` would give if no checkpoint were damaged or missing. None if this step is not known."""
    if which == "best":
        return status["best"]["step"] if status["best"] else None
    if which == "latest":
        saved = status["step"] if status["state"] in ("incomplete", "done") else 0
        return max(saved, checkpoints.steps()[-1])
    return int(which)


def _candidates(checkpoints: Checkpoints, which: str, best: dict | None, checkpoint_text: str) -> list[int]:
    """The steps of the checkpoints that `load` should try to read, the preferred step first.

    Args:
      best: the run's best evaluation, from status.json. None if the run has no evaluation yet.
      checkpoint_text: what messages call the checkpoint, for example `--checkpoint=best`.
    """
    steps = checkpoints.steps()
    if which == "latest":
        return steps[::-1]
    if which == "best":
        nats: dict[int, float] = {}  # step of an evaluated checkpoint → its loss in nats/char
        unevaluated = []
        for step in steps:
            with _skipping_unreadable(checkpoints, step):
                evaluated = checkpoints.progress(step)["evaluated"]
                if evaluated is None:
                    unevaluated.append(step)
                else:
                    nats[step] = evaluated
        if unevaluated and not nats and best is None:
            warn("no checkpoint has been evaluated yet: using the latest checkpoint.")
        # The recorded best step comes first, even if another checkpoint has a lower loss. After --extend, older losses may have
        # another protocol.
        ranked = sorted(nats, key=lambda step: (best is None or step != best["step"], nats[step]))
        return [*ranked, *reversed(unevaluated)] or steps[::-1]
    if which.isdecimal() and int(which) in steps:
        return [int(which)]
    listed = ", ".join(map(str, steps)) or "none yet"
    raise UserError(f"{checkpoint_text}: no such checkpoint; must be best, latest or one of the run's steps ({listed}).")
