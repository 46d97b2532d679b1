"""The optimiser and the learning-rate schedule of a config.

To add an optimiser, add a line to RULES, and its name to the choices of `optim.name` in `charlm/config/keys.py`. To add a
schedule, add a line to SCHEDULES, and its name to the choices of `optim.schedule` in the same file. The module `rules` has the
rules that Optax does not have as a single function.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from charlm.config import keys, load
from charlm.config.packs import is_on
from charlm.training import rules

BLOCK = 1024  # number of learning rates computed in one call


class Rule(NamedTuple):
    """An update rule.

    Attributes:
      make: a function that makes the rule from a config. The rule is for a learning rate of 1 and has no minus sign, as in
        Optax's `scale_by_…` functions. `optimizer` adds the minus sign, and the training step multiplies by the learning rate.
        tests/training/test_optim.py checks that every rule lowers a loss.
      decoupled_decay: if True, weight decay is added after the rule (Loshchilov & Hutter 2019). If False, weight decay is
        added to the gradient before the rule (L2 regularisation).
      keys: the keys that the rule reads, without `optim.`.
    """

    make: Callable[[ConfigDict], optax.GradientTransformation]
    decoupled_decay: bool = False
    keys: tuple[str, ...] = ()


OF_ADAM = ("beta1", "beta2", "eps", "eps_form")
RULES = {
    "adam": Rule(lambda config: _adam(config), keys=OF_ADAM),
    "adamw": Rule(lambda config: _adam(config), decoupled_decay=True, keys=OF_ADAM),
    "rmsprop": Rule(
        lambda config: optax.scale_by_rms(config.optim.beta2, config.optim.eps, eps_in_sqrt=_has_keras_eps(config)),
        keys=("beta2", "eps", "eps_form"),
    ),
    "sgd": Rule(
        lambda config: optax.trace(config.optim.momentum) if config.optim.momentum > 0 else optax.identity(), keys=("momentum",)
    ),
    "lion": Rule(
        lambda config: optax.scale_by_lion(config.optim.beta1, config.optim.beta2),
        decoupled_decay=True,
        keys=("beta1", "beta2"),
    ),
    "adafactor": Rule(lambda config: rules.adafactor(config.optim.momentum), decoupled_decay=True, keys=("momentum",)),
    "adan": Rule(
        lambda config: rules.adan(config.optim.beta1, config.optim.beta2, config.optim.beta3, config.optim.eps),
        decoupled_decay=True,
        keys=("beta1", "beta2", "beta3", "eps"),
    ),
    "muon": Rule(
        lambda config: rules.muon(config.optim.muon_momentum, _adam(config)),
        decoupled_decay=True,
        keys=(*OF_ADAM, "muon_momentum"),
    ),
    # The module `averaging` does the rest of the schedule-free method: it takes the gradient between the weights and their
    # average. This replaces the running mean of the gradient in Adam.
    "schedule_free_adamw": Rule(
        lambda config: optax.scale_by_rms(config.optim.beta2, config.optim.eps, eps_in_sqrt=False, bias_correction=True),
        decoupled_decay=True,
        keys=("beta1", "beta2", "eps"),
    ),
}

# Each function takes the config, the number of steps after the warm-up, and the number of steps of an epoch. It returns the
# schedule of the steps after the warm-up.
SCHEDULES: dict[str, Callable[[ConfigDict, int, int], optax.Schedule]] = {
    "constant": lambda config, steps, epoch: optax.constant_schedule(peak_rate(config, epoch)),
    "cosine": lambda config, steps, epoch: optax.cosine_decay_schedule(
        peak_rate(config, epoch), max(1, steps), config.optim.final_fraction
    ),
    "trapezoid": lambda config, steps, epoch: _trapezoid(config, steps, epoch),
    "exponential": lambda config, steps, epoch: _exponential(config, epoch, staircase=False),
    "step": lambda config, steps, epoch: _exponential(config, epoch, staircase=True),
}


def schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate by step: a linear warm-up from 0 to `peak_rate`, then the schedule that `optim.schedule` names.

    `constant` keeps the peak rate. `cosine` falls along half a cosine from the peak rate. `trapezoid` is constant and then
    falls linearly over the last `optim.decay_steps` steps (Hägele et al. 2024, arXiv:2405.18392). One step after
    the last step, `cosine` and `trapezoid` would reach exactly `optim.final_fraction` of the peak rate.

    `exponential` and `step` multiply the rate by `optim.decay_rate` every `optim.decay_steps` steps. `exponential` lowers
    the rate a little at every step. `step` keeps the rate constant between two multiplications.

    With `optim.decay_after`, `exponential` and `step` first keep the rate constant for this time. Directly after this time,
    `exponential` begins to lower the rate, and `step` multiplies it for the first time. `optim.decay_epochs=1` with
    `optim.decay_after=10` and `optim.decay_rate=0.97` is the schedule of char-rnn (Karpathy 2015): 10 epochs at the peak rate,
    and the rate of each later epoch is 0.97 times the rate of the epoch before it. Times in epochs are rounded to whole steps.
    """
    warmup = config.optim.warmup_steps
    after = SCHEDULES[config.optim.schedule](config, total_steps - warmup, steps_per_epoch)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak_rate(config, steps_per_epoch), warmup), after], [warmup])


def unread_keys(config: ConfigDict) -> dict[str, str]:
    """The keys that are set, although the schedule or the optimiser does not read them.

    Returns:
      key → the setting because of which the key has no effect, such as `optim.schedule=cosine`.
    """
    schedule, name, unread = config.optim.schedule, config.optim.name, {}
    if config.optim.decay_after and schedule not in ("exponential", "step"):
        unread["optim.decay_after"] = f"optim.schedule={schedule}"
    if config.optim.decay_epochs and schedule not in ("exponential", "step", "trapezoid"):
        unread["optim.decay_epochs"] = f"optim.schedule={schedule}"
    if config.optim.weight_decay_epochs and not RULES[name].decoupled_decay:
        unread["optim.weight_decay_epochs"] = f"optim.name={name}"
    elif config.optim.weight_decay and config.optim.weight_decay_epochs:
        unread["optim.weight_decay"] = f"optim.weight_decay_epochs={config.optim.weight_decay_epochs:g}"
    if config.optim.weight_rms and not RULES[name].decoupled_decay:
        unread["optim.weight_rms"] = f"optim.name={name}"
    elif config.optim.weight_rms and not config.optim.weight_decay_epochs:
        unread["optim.weight_rms"] = "optim.weight_decay_epochs=0"
    elif config.optim.weight_rms and config.optim.learning_rate != keys.KEYS["optim.learning_rate"].default:
        unread["optim.learning_rate"] = f"optim.weight_rms={config.optim.weight_rms:g}"
    values = load.flatten(config)
    of_rules = dict.fromkeys(f"optim.{key}" for rule in RULES.values() for key in rule.keys)
    for key in of_rules:
        if values[key] != keys.KEYS[key].default and key.removeprefix("optim.") not in RULES[name].keys:
            unread[key] = f"optim.name={name}"
    return unread


def has_constant_rate(config: ConfigDict) -> bool:
    """Whether the learning rate is constant after the warm-up."""
    return config.optim.schedule == "constant"


def schedule_free_share(config: ConfigDict) -> float | None:
    """For a schedule-free optimiser, the value of `Averaging.gradient_share` in the module `averaging`. Otherwise None."""
    return config.optim.beta1 if config.optim.name == "schedule_free_adamw" else None


def rates(by_step: optax.Schedule) -> Callable[[int, int], np.ndarray]:
    """Returns a function (step, count) → the learning rates of `count` steps, starting at `step`: float32 (count,).

    The rates are computed in blocks that start at multiples of BLOCK. The rate of a step is always computed in the same
    block. A resumed run therefore has, bit for bit, the same rates as an uninterrupted run.
    """
    by_steps = jax.jit(by_step)  # without jit, JAX would compile ten programs for the parts of the schedule

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        computed = np.asarray(by_steps(np.arange(number * BLOCK, (number + 1) * BLOCK)), np.float32)
        return np.broadcast_to(computed, BLOCK)

    def rates_of(step: int, count: int) -> np.ndarray:
        return np.array([block(at // BLOCK)[at % BLOCK] for at in range(step, step + count)])

    return rates_of


def optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimiser: gradient clipping, the rule that `optim.name` names, and weight decay.

    The updates are for a learning rate of 1. The training step multiplies the updates by the learning rate.

    Weight decay acts on matrices only, unless `optim.decay_biases` is set. `adam`, `rmsprop` and `sgd` add the decay to the
    gradient before the rule (L2 regularisation). The other rules add decoupled weight decay after the rule. Its factor may be
    given as a time in epochs; see `weight_decay`.

    `optim.eps_form` says where eps is added. Here g is the gradient, m is the running mean of g, and v is the running mean of
    g squared:
    - `outer` is the form of textbooks and PyTorch. The update of Adam is m / (sqrt(v) + eps), with m and v corrected for bias.
      The update of RMSprop is g / (sqrt(v) + eps).
    - `keras` is the form of Keras and MXNet. Adam adds eps to the root of v before v is corrected for bias. Kingma & Ba call
      this form more efficient. RMSprop adds eps to v inside the root.
    """
    rule, factor, decay_biases = RULES[config.optim.name], weight_decay(config, steps_per_epoch), config.optim.decay_biases
    clip_norm, clip_value = config.optim.clip_norm, config.optim.clip_value
    nothing = optax.identity()
    decay = nothing
    if is_on(factor):
        decay = optax.add_decayed_weights(
            factor, lambda params: jax.tree.map(lambda leaf: decay_biases or leaf.ndim > 1, params)
        )
    return optax.chain(
        optax.clip(clip_value) if clip_value > 0 else nothing,
        optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else nothing,
        nothing if rule.decoupled_decay else decay,
        rule.make(config),
        decay if rule.decoupled_decay else nothing,
        # Adds the minus sign. The argument is a function instead of a number, because the optimiser state then has a step
        # count. Saved checkpoints contain this count and could not be restored without it.
        optax.scale_by_learning_rate(lambda count: 1.0),
    )


def weight_decay(config: ConfigDict, steps_per_epoch: int) -> float:
    """The factor of weight decay: `optim.weight_decay`, or the factor that `optim.weight_decay_epochs` describes.

    At the peak learning rate, decoupled weight decay multiplies the weights by 1 - rate * factor in each step. The decay alone
    therefore divides them by e in 1 / (rate * factor) steps. The weights are a mean of the updates over about this time. In
    epochs, the best time stays about the same if the text or the batch grows (Wang & Aitchison 2024, arXiv:2405.13698).
    """
    if (steps := _weight_decay_steps(config, steps_per_epoch)) is not None:
        return 1 / (peak_rate(config, steps_per_epoch) * steps)
    return config.optim.weight_decay


def peak_rate(config: ConfigDict, steps_per_epoch: int) -> float:
    """The peak learning rate: `optim.learning_rate`, or the rate that `optim.weight_rms` describes.

    Let n be the time of weight decay in steps. In a step, the weights are multiplied by 1 - 1 / n, and an update is added.
    Updates of Adam have a root mean square of about 1 times the learning rate. If they were independent, the root mean square
    of the weights would therefore settle at rate * sqrt(n / 2) (Kosson et al. 2023, arXiv:2305.17212). With a fixed rate it
    would grow with the length of the text, because the best n grows with the length.
    """
    if is_on(rms := config.optim.weight_rms) and (steps := _weight_decay_steps(config, steps_per_epoch)) is not None:
        return rms * (2 / steps) ** 0.5
    return config.optim.learning_rate


def _weight_decay_steps(config: ConfigDict, steps_per_epoch: int) -> float | None:
    """The time of weight decay in steps, if the config gives it in epochs and the optimiser has decoupled weight decay."""
    if RULES[config.optim.name].decoupled_decay and is_on(epochs := config.optim.weight_decay_epochs):
        return epochs * steps_per_epoch
    return None


def _decay_steps(config: ConfigDict, steps_per_epoch: int) -> tuple[int, int]:
    """Two times in steps: the decay time, which is at least 1, and the time before the decay (`optim.decay_after`).

    The decay time is `optim.decay_epochs` if this key is set, otherwise `optim.decay_steps`.
    """
    if epochs := config.optim.decay_epochs:
        return max(1, round(epochs * steps_per_epoch)), round(config.optim.decay_after * steps_per_epoch)
    return config.optim.decay_steps, round(config.optim.decay_after)


def _trapezoid(config: ConfigDict, steps: int, steps_per_epoch: int) -> optax.Schedule:
    decay_steps, _ = _decay_steps(config, steps_per_epoch)
    peak, falling = peak_rate(config, steps_per_epoch), max(1, min(decay_steps, steps))
    fall = optax.linear_schedule(peak, peak * config.optim.final_fraction, falling)
    return optax.join_schedules([optax.constant_schedule(peak), fall], [steps - falling])


def _exponential(config: ConfigDict, steps_per_epoch: int, staircase: bool) -> optax.Schedule:
    every, after = _decay_steps(config, steps_per_epoch)
    decay = optax.exponential_decay(peak_rate(config, steps_per_epoch), every, config.optim.decay_rate, staircase=staircase)
    if after == 0:
        return decay
    begin = after - every if staircase else after  # a staircase makes its first multiplication `every` steps after it starts
    return lambda step: decay(jnp.maximum(step - begin, 0) * (step >= after))


def _has_keras_eps(config: ConfigDict) -> bool:
    return config.optim.eps_form == "keras"


def _adam(config: ConfigDict) -> optax.GradientTransformation:
    scale_by_adam = rules.keras_adam if _has_keras_eps(config) else optax.scale_by_adam
    return scale_by_adam(config.optim.beta1, config.optim.beta2, config.optim.eps)
