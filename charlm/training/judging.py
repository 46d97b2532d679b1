"""Makes the metrics rows of a training, keeps its best evaluation, detects divergence, and decides when the training ends."""

import math
from typing import Any

import jax
import numpy as np
import optax

from charlm import measures
from charlm.inference import evaluate
from charlm.training.averaging import has_begun, stops_improving
from charlm.training.feeding import learning_rates
from charlm.training.setup import Setup
from charlm.training.state import Progress
from charlm.training.step import StepMetrics

_norm = jax.jit(optax.tree.norm)  # without jit, the first checkpoint would compile dozens of programs


class Diverged(Exception):
    """A loss, gradient or parameter is not finite, or a loss is far too large. The message names the value."""


def add_metrics(progress: Progress, metrics: StepMetrics) -> bool:
    """Adds the metrics of one call of the jitted function to the sums in `progress`. A call may make several steps.

    Returns:
      Whether any process was asked to stop. With a single process, always False.

    Raises:
      Diverged: the loss or the gradient of a step is not finite.
    """
    *values, asked = jax.device_get(metrics)
    steps = np.stack(values, axis=-1, dtype=float).reshape(-1, len(values))
    for number, (nats, chars, loss_nats, loss_weight, grad_norm) in enumerate(steps.tolist()):
        for name, value in (("loss", loss_nats), ("gradient", grad_norm)):
            if not math.isfinite(value):
                raise Diverged(f"the {name} of step {progress.step - len(steps) + number + 1} is not finite")
        for sums in (progress.interval, progress.epoch):
            sums.add(nats, chars, loss_nats, loss_weight, grad_norm)
    return asked is not None and bool(np.any(asked))


def train_row(setup: Setup, progress: Progress) -> dict[str, Any]:
    """The metrics row of the log interval that ends at this step."""
    return {
        **_place(setup, progress, "train"),
        **progress.interval.measures(),
        "learning_rate": float(learning_rates(setup, progress, progress.step - 1, 1)),
        "grad_norm": progress.interval.grad_norm / progress.interval.steps,
        "chars_per_second": progress.interval.chars / max(progress.interval_seconds, 1e-9),
        "seconds": progress.seconds,
    }


def evaluation_rows(setup: Setup, progress: Progress, sums: tuple[float, int], duration: float) -> list[dict[str, Any]]:
    """The metrics rows of one evaluation.

    One row holds the average training loss since the previous evaluation. If the corpus has a validation split, another row
    holds the validation loss. The last row decides which checkpoint is the best. `train.best` sets whether the last row
    holds the training loss or the validation loss.

    In each row, `seconds` is the total time of the run until the loss of this row was known. The difference between
    the two rows is therefore the time that the evaluation took.

    Args:
      sums: (nats, chars) of the validation split; see `requests.Evaluation`.
      duration: the seconds that the evaluation took.
    """
    rows = [{**_place(setup, progress, "train_mean"), **progress.epoch.measures(), "seconds": progress.seconds}]
    if "validation" in setup.encoded:
        nats, chars = sums
        protocol = setup.protocol.named(setup.provenance["sha256"], "validation", chars)
        result = {**measures.of_text(nats, chars, *setup.validation_counts), "protocol": protocol}
        weights = {"weights": "average"} if has_begun(setup.averaging, progress.step, progress.began_at) else {}
        rows.append({**_place(setup, progress, "validation"), **result, **weights, "seconds": progress.seconds + duration})
    return rows if setup.best_by == "validation" else rows[::-1]


def judge(setup: Setup, progress: Progress, row: dict[str, Any]) -> None:
    """Records in `progress` the loss of this evaluation, and whether this evaluation is the best so far.

    Args:
      row: the last row that `evaluation_rows` returned.

    Raises:
      Diverged: the loss is not finite or far too large.
    """
    progress.evaluated = row["nats"]
    check_loss(row["nats"], f"the {setup.best_by} loss at step {progress.step}")
    if progress.best is None or row["nats"] < progress.best["nats"]:
        progress.best = {"step": progress.step, "nats": row["nats"], "split": setup.best_by}
        progress.since_best = 0
    else:
        progress.since_best += 1


def begins_average(setup: Setup, progress: Progress, rows: list[dict[str, Any]]) -> bool:
    """Whether the average of `optim.average=nt_asgd` begins at this evaluation. Records the validation loss in `progress`.

    Every process calls this function with the rows of the first process, so all processes agree.

    Args:
      rows: the rows that `evaluation_rows` returned.
    """
    if setup.averaging is None or setup.averaging.kind != "nt_asgd" or progress.began_at is not None:
        return False
    (loss,) = (row["nats"] for row in rows if row["split"] == "validation")
    if stops_improving(loss, progress.losses, setup.averaging.patience):
        progress.began_at = progress.step
    progress.losses.append(loss)
    return progress.began_at is not None


def check_loss(nats: float, what: str) -> None:
    """Raises Diverged if a loss is not finite or exceeds `measures.MOST_NATS`. `what` names the loss in the message."""
    if not math.isfinite(nats):
        raise Diverged(f"{what} is not finite")
    if nats > measures.MOST_NATS:
        raise Diverged(f"{what} is {nats:,.4f} nats per character; {measures.MOST_NATS:.0f} is the limit")


def check_params(params: Any, step: int) -> None:
    """Raises Diverged if a parameter is not finite."""
    if not math.isfinite(float(_norm(evaluate.on_one_device(params)))):
        raise Diverged(f"a parameter after step {step} is not finite")


def is_evaluation_due(setup: Setup, progress: Progress) -> bool:
    """Whether an evaluation is due at this step and has not been made yet."""
    if progress.step == 0 or progress.evaluated is not None:
        return False
    return progress.step >= setup.total_steps or progress.step % setup.eval_every == 0


def is_evaluation_shown(setup: Setup, progress: Progress) -> bool:
    """Whether the evaluation at this step is printed.

    The evaluation after the last step is printed, and the first evaluation in each interval of `shown_every` steps.
    """
    before, now = (step // setup.shown_every for step in (progress.step - setup.eval_every, progress.step))
    return progress.step >= setup.total_steps or now > before


def is_log_due(setup: Setup, progress: Progress) -> bool:
    """Whether a log interval ends at this step."""
    return progress.step >= setup.total_steps or progress.step % setup.log_every == 0


def is_checkpoint_due(setup: Setup, progress: Progress) -> bool:
    """Whether `train.checkpoint_every` requires a checkpoint at this step. In addition, each evaluation saves a checkpoint."""
    return setup.checkpoint_every > 0 and progress.step % setup.checkpoint_every == 0


def is_finished(setup: Setup, progress: Progress) -> bool:
    """Whether the training has made all its steps, or stops early by `train.patience`. False while an evaluation is due."""
    if is_evaluation_due(setup, progress):
        return False
    return progress.step >= setup.total_steps or 0 < setup.patience <= progress.since_best


def best_in_words(best: dict[str, Any] | None) -> str:
    """The best evaluation as text for a message."""
    return "not evaluated" if best is None else f"{measures.best_in_words(best)}, at step {best['step']}"


def _place(setup: Setup, progress: Progress, split: str) -> dict[str, Any]:
    return {"step": progress.step, "epoch": progress.step / setup.batches.steps_per_epoch, "split": split}
