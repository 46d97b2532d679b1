"""The optimiser and its learning-rate schedule, from the config."""

import jax
import optax


def schedule(config, total_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up from 0, then constant, cosine, exponential or step decay.

    The decay begins where the warm-up ends. Cosine ends with the last step at `optim.final_fraction` of the peak; the other
    two multiply by `optim.decay_rate` every `optim.decay_steps` steps, gradually (exponential) or at once (step).
    """
    peak, warmup = config.optim.learning_rate, config.optim.warmup_steps
    final_fraction = config.optim.final_fraction
    decay_rate, decay_steps = config.optim.decay_rate, config.optim.decay_steps
    match config.optim.schedule:
        case "constant":
            decay = optax.constant_schedule(peak)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup), final_fraction)
        case "exponential" | "step" as name:
            decay = optax.exponential_decay(peak, decay_steps, decay_rate, staircase=name == "step")
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def optimizer(config, total_steps: int) -> optax.GradientTransformation:
    """Clipping, then the rule, then weight decay, then the schedule.

    Weight decay touches matrices only, never biases. For `adamw` it is decoupled (Loshchilov & Hutter 2019); for the others it
    is added to the gradient before the rule, as L2 regularisation is in their original systems.
    """
    name, weight_decay = config.optim.name, config.optim.weight_decay
    clip_norm, clip_value = config.optim.clip_norm, config.optim.clip_value
    beta1, beta2, eps = config.optim.beta1, config.optim.beta2, config.optim.eps
    momentum = config.optim.momentum
    rules = {
        "adam": lambda: optax.scale_by_adam(beta1, beta2, eps),
        "adamw": lambda: optax.scale_by_adam(beta1, beta2, eps),
        "rmsprop": lambda: optax.scale_by_rms(beta2, eps, eps_in_sqrt=False),
        "sgd": lambda: optax.trace(momentum) if momentum > 0 else optax.identity(),
    }
    decay = optax.add_decayed_weights(weight_decay, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))
    before, after = (optax.identity(), decay) if name == "adamw" else (decay, optax.identity())
    return optax.chain(
        optax.clip(clip_value) if clip_value > 0 else optax.identity(),
        optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
        before if weight_decay > 0 else optax.identity(),
        rules[name](),
        after if weight_decay > 0 else optax.identity(),
        optax.scale_by_learning_rate(schedule(config, total_steps)),
    )
