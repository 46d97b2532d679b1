"""A trained model as evaluate and sample need it: read from a run directory, without anything of training."""

import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from charlm.data.vocab import Vocab
from charlm.errors import Failure, UserError
from charlm.models import stack
from charlm.progress import warn
from charlm.rundir.checkpoint import Checkpoints
from charlm.rundir.run import Run


class Trained(NamedTuple):
    """Attributes: config, vocab and corpus (provenance) of the run; the model's functions; parameters of a step."""

    config: ConfigDict
    vocab: Vocab
    corpus: dict
    functions: stack.Functions
    params: dict
    step: int


def load(workdir: str, which: str, dtype: str | None = None) -> Trained:
    """Reads a run and the checkpoint that `which` names: `best` by what `train.best` names, `latest`, or a step.

    Where that one can't be read, or is gone, and no step was named, the next best or the one before it is taken, saying so;
    where no checkpoint has been evaluated yet, the best one is the latest.

    Args:
      dtype: of the products; by default that of the training.

    Raises:
      UserError: no run, or no such checkpoint. Failure: no checkpoint can be read.
    """
    run = Run(workdir)
    run.status()
    config, vocab, corpus = run.config(), run.vocab(), run.corpus()
    if dtype:
        config.model.update({"dtype": dtype})
    functions = stack.functions(config, len(vocab))
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    if not run.checkpoints.is_dir():
        raise UserError(f"--workdir={workdir} has no checkpoint yet: train it for longer.")
    with contextlib.closing(Checkpoints(run.checkpoints, read_only=True)) as checkpoints:
        for _ in range(100):
            try:
                status = run.status()
                for step in (candidates := _candidates(checkpoints, which, status["best"])):
                    with _readable(checkpoints, step):
                        params = checkpoints.restore_params(step, abstract)
                        wanted = _wanted(checkpoints, which, status)
                        if step != wanted and wanted is not None and not run.is_training():
                            gone = "can't be read" if wanted in checkpoints.steps() else "is not there"
                            warn(f"--checkpoint={which}: step {step} is taken, since {wanted} {gone}.")
                        return Trained(config, vocab, corpus, functions, params, step)
                if candidates or not run.is_training():
                    break
            except _Dropped:
                pass
            time.sleep(0.01)
            checkpoints.reload()
        if not checkpoints.steps():
            raise UserError(f"--workdir={workdir} has no checkpoint yet: train it for longer.")
    raise Failure(f"--checkpoint={which}: no such checkpoint of {workdir} can be read; train again or name another one.")


class _Dropped(Exception):
    """A training that goes on beside us has dropped a checkpoint while it was read."""


@contextlib.contextmanager
def _readable(checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Passes over a checkpoint that can't be read, saying so. Raises `_Dropped` where it is no longer there."""
    try:
        yield
    except Failure as error:
        if not checkpoints.exists(step):
            raise _Dropped from error
        warn(f"{error}.")


def _wanted(checkpoints: Checkpoints, which: str, status: dict) -> int | None:
    """The step that `which` names where nothing is damaged or gone; None where that is not known."""
    if which == "best":
        return status["best"]["step"] if status["best"] else None
    if which == "latest":
        saved = status["step"] if status["state"] in ("incomplete", "done") else 0
        return max(saved, checkpoints.steps()[-1])
    return int(which)


def _candidates(checkpoints: Checkpoints, which: str, best: dict | None) -> list[int]:
    """Steps in the order in which to try them. best: of the run, by its status."""
    steps = checkpoints.steps()
    if which == "latest":
        return steps[::-1]
    if which == "best":
        nats = {}
        for step in steps:
            with _readable(checkpoints, step):
                nats[step] = checkpoints.progress(step)["evaluated"]
        evaluated = sorted((step for step in nats if nats[step] is not None), key=nats.get)
        if nats and not evaluated and best is None:
            warn("no evaluation of the training has named a best checkpoint yet: the latest is taken.")
        return [*evaluated, *sorted((step for step in nats if nats[step] is None), reverse=True)] or steps[::-1]
    if which.isdecimal() and int(which) in steps:
        return [int(which)]
    listed = ", ".join(map(str, steps)) or "none yet"
    raise UserError(f"--checkpoint={which} is not there: best, latest or a step would be right (this run has {listed}).")
