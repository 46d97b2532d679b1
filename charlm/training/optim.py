"""The optimiser and its learning-rate schedule, from the config."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLOCK = 1024  # steps of which the learning rates are computed at once


def schedule(config, total_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up from 0, then constant, trapezoid, or cosine, exponential or step decay.

    The decay begins where the warm-up ends, that of trapezoid with the last `optim.decay_steps` steps, in which it is linear
    (Hägele et al. 2024, arXiv:2405.18392). Cosine and trapezoid would be at `optim.final_fraction` of the peak one step after
    the last; exponential and step multiply by `optim.decay_rate` every `optim.decay_steps` steps, gradually or at once.
    """
    peak, warmup = config.optim.learning_rate, config.optim.warmup_steps
    final_fraction = config.optim.final_fraction
    decay_rate, decay_steps = config.optim.decay_rate, config.optim.decay_steps
    match config.optim.schedule:
        case "constant":
            decay = optax.constant_schedule(peak)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup), final_fraction)
        case "trapezoid":
            falling = max(1, min(decay_steps, total_steps - warmup))
            fall = optax.linear_schedule(peak, peak * final_fraction, falling)
            decay = optax.join_schedules([optax.constant_schedule(peak), fall], [total_steps - warmup - falling])
        case "exponential" | "step" as name:
            decay = optax.exponential_decay(peak, decay_steps, decay_rate, staircase=name == "step")
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def rates(by_step: optax.Schedule) -> Callable[[int, int], np.ndarray]:
    """A function (step, count) → float32 (count,): the learning rates of so many steps.

    They are computed in blocks that begin at multiples, so that what the rate of a step is does not depend on the start.
    """
    by_steps = jax.jit(by_step)  # op by op it would compile ten programs

    @functools.lru_cache(maxsize=2)
    def block(number: int) -> np.ndarray:
        computed = np.asarray(by_steps(np.arange(number * BLOCK, (number + 1) * BLOCK)), np.float32)
        return np.broadcast_to(computed, BLOCK)

    def of(step: int, count: int) -> np.ndarray:
        return np.array([block(at // BLOCK)[at % BLOCK] for at in range(step, step + count)])

    return of


def optimizer(config) -> optax.GradientTransformation:
    """Clipping, then the rule, then weight decay. Its updates are for a learning rate of 1; with another they are so many times
    as large, whatever the rule.

    Weight decay touches matrices only, unless `optim.decay_biases`. For `adamw` it is decoupled (Loshchilov & Hutter 2019); for
    the others it is added to the gradient before the rule, as L2 regularisation is in their original systems.

    `optim.eps_form` says where eps stands. `outer`: Adam's textbook form and PyTorch's, m / (sqrt(v) + eps) with both corrected
    for their bias; RMSprop g / (sqrt(v) + eps). `keras`: as Keras and MXNet have it, Adam's eps added to the uncorrected root
    (the form that Kingma & Ba call more efficient), RMSprop's inside the root.
    """
    name, weight_decay = config.optim.name, config.optim.weight_decay
    clip_norm, clip_value = config.optim.clip_norm, config.optim.clip_value
    beta1, beta2, eps = config.optim.beta1, config.optim.beta2, config.optim.eps
    momentum, decay_biases = config.optim.momentum, config.optim.decay_biases
    keras = config.optim.eps_form == "keras"
    adam = _scale_by_keras_adam if keras else optax.scale_by_adam
    rules = {
        "adam": lambda: adam(beta1, beta2, eps),
        "adamw": lambda: adam(beta1, beta2, eps),
        "rmsprop": lambda: optax.scale_by_rms(beta2, eps, eps_in_sqrt=keras),
        "sgd": lambda: optax.trace(momentum) if momentum > 0 else optax.identity(),
    }
    decay = optax.add_decayed_weights(
        weight_decay, lambda params: jax.tree.map(lambda leaf: decay_biases or leaf.ndim > 1, params)
    )
    before, after = (optax.identity(), decay) if name == "adamw" else (decay, optax.identity())
    return optax.chain(
        optax.clip(clip_value) if clip_value > 0 else optax.identity(),
        optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
        before if weight_decay > 0 else optax.identity(),
        rules[name](),
        after if weight_decay > 0 else optax.identity(),
        optax.scale_by_learning_rate(lambda count: 1.0),  # a function, because checkpoints have a count in this place
    )


def _scale_by_keras_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam with eps beside the uncorrected root: optax's form with an eps that shrinks as the correction fades."""

    def init(params):
        return optax.scale_by_adam(beta1, beta2).init(params)

    def update(updates, state, params=None):
        correction = jnp.sqrt(1 - beta2 ** (state.count + 1).astype(jnp.float32))
        return optax.scale_by_adam(beta1, beta2, eps / correction).update(updates, state, params)

    return optax.GradientTransformation(init, update)
