"""Averages of the weights over the steps of a training.

The training goes on with the raw weights. Evaluations, samples, exports and other runs use the average. A checkpoint has both.

Every average is a running mean. After each step, average += share * (raw weights - average). The number `share` depends on the
kind of average:

- `ema`: an exponential mean with decay rate d. After step n, the share is (1 - d) / (1 - d^n). This is the exponential mean
  that begins at 0, divided by 1 - d^n to correct its start (as Kingma & Ba 2015 do for the moments of Adam).
- `tail`: the plain mean over the last steps of the training. The share is 1 / n, where n counts the steps of the tail.
- `nt_asgd`: the plain mean of the weights after the validation loss stops improving (Merity et al. 2018, arXiv:1708.02182,
  algorithm 1). The share is 1 / n, where n counts the weights in the mean.
- `schedule_free`: the mean of schedule-free training (Defazio et al. 2024, arXiv:2405.15682). The share is r² divided by the
  sum of r² over all steps so far, where r is the largest learning rate up to a step. The gradient is taken at a point between
  the raw weights and the average. `optim.name` chooses this kind, not `optim.average`.

Before the mean of `tail` or `nt_asgd` begins, the average is a copy of the raw weights.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from charlm import progress
from charlm.config import keys, load
from charlm.errors import UserError
from charlm.training import optim

OWN_KEYS = {"ema": "optim.average_decay", "tail": "optim.average_last", "nt_asgd": "optim.average_patience"}


class Average(NamedTuple):
    """The averaged weights.

    Attributes:
      params: the average, a tree like the parameters of the model.
      number: int32 scalar, the number of steps whose raw weights the average contains. 0 if the average has not begun; `params`
        is then a copy of the raw weights.
      rates: with `schedule_free`, the largest learning rate so far and the sum of its squares, as float32 scalars. Otherwise
        empty.
    """

    params: Any
    number: jax.Array
    rates: tuple[jax.Array, ...]


class Averaging(NamedTuple):
    """How the weights are averaged.

    Attributes:
      kind: `ema`, `tail`, `nt_asgd` or `schedule_free`.
      decay: with `ema`, the decay rate.
      before: with `tail`, the number of steps before the tail.
      patience: with `nt_asgd`, the number of latest evaluations that are left out when a new loss is compared with earlier
        losses; see `stops_improving`.
      gradient_share: a number s from 0 to 1. The gradient is taken at the weights (1 - s) * raw weights + s * average.
    """

    kind: str
    decay: float = 0.0
    before: int = 0
    patience: int = 0
    gradient_share: float = 0.0


def of_config(config: ConfigDict, total_steps: int, has_validation: bool, patience: int, best_by: str) -> Averaging | None:
    """The averaging that a config describes, or None.

    Args:
      total_steps: the length of the training.
      has_validation: whether the corpus has a validation split.
      patience: the number of evaluations without a new best loss after which the training ends; 0 if it never ends early.
      best_by: which loss selects the best checkpoint, `validation` or `train`.

    Raises:
      UserError: the keys do not fit together, or `nt_asgd` has no validation loss.
    """
    kind, share = config.optim.average, optim.schedule_free_share(config)
    if share is not None and kind:
        raise UserError(
            f"optim.average={kind} and optim.name=schedule_free_adamw: schedule-free training has its own average, so leave "
            "out optim.average."
        )
    if kind == "nt_asgd" and not has_validation:
        raise UserError(
            "optim.average=nt_asgd: corpus.split leaves no validation text, so no loss tells when the average begins; choose "
            "ema or tail."
        )
    setting = "optim.name=schedule_free_adamw" if share is not None else "optim.average=nt_asgd" if kind == "nt_asgd" else ""
    if setting and not optim.has_constant_rate(config):
        progress.warn(f"{setting} is meant for a learning rate that does not fall: set optim.schedule=constant.")
    if share is not None:
        return Averaging("schedule_free", gradient_share=share)
    if kind == "tail" and patience:
        progress.warn(
            "optim.average=tail and train.patience: if the training ends before the tail begins, there is no average; "
            "optim.average=ema always has one."
        )
    if kind and best_by == "train":
        progress.warn(
            f"train.best=train and optim.average={kind}: the training loss of the raw weights selects the best checkpoint, "
            "but its average is evaluated and sampled."
        )
    tail = max(1, round(config.optim.average_last * total_steps))
    return {
        "": None,
        "ema": Averaging(kind, decay=config.optim.average_decay),
        "tail": Averaging(kind, before=total_steps - tail),
        "nt_asgd": Averaging(kind, patience=config.optim.average_patience),
    }[kind]


def unread_keys(config: ConfigDict) -> dict[str, str]:
    """The keys that are set, although the config's average does not read them; see `optim.unread_keys`."""
    values = load.flatten(config)
    kind = str(values["optim.average"])
    others = [key for own, key in OWN_KEYS.items() if own != kind and values[key] != keys.KEYS[key].default]
    return dict.fromkeys(others, f"optim.average={kind or '(empty)'}")


def initial(averaging: Averaging, params: Any) -> Average:
    """The average before the first step."""
    rates = (jnp.zeros(()), jnp.zeros(())) if averaging.kind == "schedule_free" else ()
    return Average(params, jnp.zeros((), jnp.int32), rates)


def at_gradient(averaging: Averaging | None, params: Any, average: Average | None) -> Any:
    """The weights at which the gradient is taken: the raw weights, unless the training is schedule-free."""
    if averaging is None or average is None or averaging.gradient_share == 0:
        return params
    share = averaging.gradient_share
    return jax.tree.map(lambda raw, mean: (1 - share) * raw + share * mean, params, average.params)


def updated(
    averaging: Averaging | None, average: Average | None, params: Any, step: jax.Array, rate: jax.Array
) -> Average | None:
    """The average after a step. None without averaging.

    Args:
      params: the raw weights after the step.
      step: the number of steps so far, including this step.
      rate: the learning rate of the step.
    """
    if averaging is None or average is None:
        return None
    number, rates = average.number + 1, average.rates
    if averaging.kind == "tail":
        number = jnp.where(step > averaging.before, number, 0)
    elif averaging.kind == "nt_asgd":
        number = jnp.where(average.number > 0, number, 0)
    if averaging.kind == "ema":
        log = math.log(averaging.decay)
        share = math.expm1(log) / jnp.expm1(number * log)  # equals (1 - d) / (1 - d^n), and is accurate even if d is close to 1
    elif averaging.kind == "schedule_free":
        largest = jnp.maximum(average.rates[0], rate)
        rates = (largest, average.rates[1] + largest**2)
        share = jnp.where(rates[1] > 0, largest**2 / rates[1], 1)  # in the first step of a warm-up, the learning rate is 0
    else:
        share = 1 / jnp.maximum(number, 1)
    is_copy = number <= 1
    mean = jax.tree.map(lambda old, raw: jnp.where(is_copy, raw, old + share * (raw - old)), average.params, params)
    return Average(mean, number, rates)


def begun(average: Average) -> Average:
    """The average of `nt_asgd` when it begins. It contains the present weights. Each later step adds its weights."""
    return average._replace(number=average.number + 1)


def stops_improving(loss: float, earlier: list[float], patience: int) -> bool:
    """Whether the average of `nt_asgd` begins at this evaluation.

    The average begins if `loss` is higher than the lowest of the losses in `earlier`. The last `patience` losses in `earlier`
    are left out of this comparison.
    """
    compared = earlier[: max(0, len(earlier) - patience)]
    return bool(compared) and loss > min(compared)


def has_begun(averaging: Averaging | None, step: int, began_at: int | None) -> bool:
    """Whether the weights after `step` steps have an average that differs from a copy of the raw weights.

    Args:
      began_at: with `nt_asgd`, the step at which the average began. None if it has not begun.
    """
    if averaging is None:
        return False
    if averaging.kind == "nt_asgd":
        return began_at is not None and step > began_at
    return step > averaging.before + 1
