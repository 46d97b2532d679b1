"""Tests learning-rate schedules and update rules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from charlm.config import keys
from charlm.training import optim
from configs import base

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -1.0])}
GRADS = {"kernel": jnp.array([[0.1, -0.2], [0.3, 0.0]]), "bias": jnp.array([0.5, -4.0])}


def config_of(**keys):
    config = base.get_config()
    config.optim.update({"learning_rate": 0.1, "schedule": "constant", "clip_norm": 0.0, **keys})
    return config


def updates(grads=GRADS, steps=1, **keys):
    """The last of `steps` updates at a learning rate of 0.1. Every update gets the same gradients and the same parameters."""
    transformation = optim.optimizer(config_of(**keys), 1)
    state = transformation.init(PARAMS)
    for _ in range(steps):
        result, state = transformation.update(grads, state, PARAMS)
    return {name: 0.1 * np.asarray(leaf) for name, leaf in result.items()}


@pytest.mark.parametrize(
    ("keys", "by_step"),
    [
        ({"schedule": "constant"}, {0: 0.1, 99: 0.1}),
        ({"schedule": "constant", "warmup_steps": 10}, {0: 0.0, 5: 0.05, 10: 0.1, 99: 0.1}),
        ({"schedule": "cosine", "final_fraction": 0.2}, {0: 0.1, 50: 0.06, 100: 0.02, 200: 0.02}),
        ({"schedule": "cosine", "final_fraction": 0.0, "warmup_steps": 20}, {10: 0.05, 20: 0.1, 60: 0.05, 100: 0.0}),
        ({"schedule": "trapezoid", "decay_steps": 40, "final_fraction": 0.2}, {0: 0.1, 60: 0.1, 80: 0.06, 100: 0.02}),
        (
            {"schedule": "trapezoid", "decay_steps": 500, "warmup_steps": 20, "final_fraction": 0.0},
            {10: 0.05, 20: 0.1, 60: 0.05},
        ),
        ({"schedule": "step", "decay_rate": 0.5, "decay_steps": 30}, {29: 0.1, 30: 0.05, 59: 0.05, 60: 0.025}),
        ({"schedule": "exponential", "decay_rate": 0.5, "decay_steps": 30}, {0: 0.1, 15: 0.1 * 0.5**0.5, 30: 0.05}),
        ({"schedule": "step", "decay_steps": 30, "decay_after": 10}, {9: 0.1, 10: 0.05, 39: 0.05, 40: 0.025, 70: 0.0125}),
        ({"schedule": "step", "decay_steps": 10, "decay_after": 50}, {49: 0.1, 50: 0.05, 59: 0.05, 60: 0.025, 70: 0.0125}),
        ({"schedule": "step", "decay_epochs": 1.5, "decay_after": 2.0}, {39: 0.1, 40: 0.05, 69: 0.05, 70: 0.025}),
        ({"schedule": "step", "decay_epochs": 2.0}, {39: 0.1, 40: 0.05, 79: 0.05, 80: 0.025}),
        ({"schedule": "step", "decay_epochs": 1.0, "decay_after": 1.0, "warmup_steps": 10}, {5: 0.05, 29: 0.1, 30: 0.05}),
        (
            {"schedule": "exponential", "decay_epochs": 1.0, "decay_after": 2.0},
            {0: 0.1, 40: 0.1, 50: 0.1 * 0.5**0.5, 60: 0.05, 80: 0.025},
        ),
        ({"schedule": "trapezoid", "decay_epochs": 2.0, "final_fraction": 0.2}, {60: 0.1, 80: 0.06, 100: 0.02}),
    ],
)
def test_schedules(keys, by_step):
    schedule = optim.schedule(config_of(**keys), total_steps=100, steps_per_epoch=20)
    for step, expected in by_step.items():
        assert float(schedule(step)) == pytest.approx(expected, abs=1e-8)
        assert optim.rates(schedule)(step, 1) == pytest.approx([expected], abs=1e-8)


def test_the_schedule_of_char_rnn():
    """Compares with the loop in char-rnn's train.lua.

    In this loop, the first iteration has the number 1, and the learning rate changes at the end of an iteration.
    """
    steps_per_epoch, decay, decay_after = 7, 0.97, 10
    rate, expected = 2e-3, []
    for i in range(1, 15 * steps_per_epoch + 1):
        expected.append(rate)
        if i % steps_per_epoch == 0 and i / steps_per_epoch >= decay_after:
            rate *= decay
    keys = {"learning_rate": 2e-3, "schedule": "step", "decay_rate": decay, "decay_epochs": 1.0, "decay_after": decay_after}
    schedule = optim.schedule(config_of(**keys), len(expected), steps_per_epoch)
    np.testing.assert_allclose(optim.rates(schedule)(0, len(expected)), expected, rtol=1e-6)


@pytest.mark.parametrize("keys", [{"schedule": "constant"}, {"schedule": "cosine", "warmup_steps": 1000}])
def test_the_rate_of_a_step_is_the_same_in_every_call_that_returns_it(keys):
    schedule = optim.schedule(config_of(**keys), total_steps=4000, steps_per_epoch=20)
    rates = optim.rates(schedule)
    whole = rates(0, 3000)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole[::97], [schedule(step) for step in range(0, 3000, 97)], rtol=1e-6)
    for step, count in ((1020, 10), (1023, 1), (1024, 1), (2000, 100)):
        np.testing.assert_array_equal(optim.rates(schedule)(step, count), whole[step : step + count])


def test_adam_equals_its_formula():
    # Every step has the same gradient g. After bias correction, the mean is g and the mean square is g².
    for steps in (1, 2):
        for name, update in updates(name="adam", steps=steps, eps=1e-3).items():
            g = np.asarray(GRADS[name])
            np.testing.assert_allclose(update, -0.1 * g / (np.abs(g) + 1e-3), rtol=1e-4)


@pytest.mark.parametrize("eps_form", ["outer", "keras"])
def test_adam_decays_means_by_beta1_and_squares_by_beta2(eps_form):
    transformation = optim.optimizer(config_of(name="adam", beta1=0.6, beta2=0.9, eps=1e-2, eps_form=eps_form), 1)
    state = transformation.init({"w": jnp.zeros(2)})
    gradients = [np.array([0.3, -1.0]), np.array([-0.5, 2.0]), np.array([0.1, 0.0])]
    for gradient in gradients:
        update, state = transformation.update({"w": jnp.asarray(gradient)}, state, {"w": jnp.zeros(2)})
    mean = 0.4 * (0.36 * gradients[0] + 0.6 * gradients[1] + gradients[2]) / (1 - 0.6**3)
    square = 0.1 * (0.81 * gradients[0] ** 2 + 0.9 * gradients[1] ** 2 + gradients[2] ** 2) / (1 - 0.9**3)
    eps = 1e-2 / math.sqrt(1 - 0.9**3) if eps_form == "keras" else 1e-2
    np.testing.assert_allclose(update["w"], -mean / (np.sqrt(square) + eps), rtol=1e-5)


def test_rmsprop_equals_its_formula():
    # RMSprop has no bias correction. After two steps, the mean square is g² (1 - beta2²).
    for name, update in updates(name="rmsprop", steps=2, beta2=0.9, eps=1e-2).items():
        g = np.asarray(GRADS[name])
        np.testing.assert_allclose(update, -0.1 * g / (np.sqrt(g**2 * (1 - 0.81)) + 1e-2), rtol=1e-5)


def test_the_keras_form_of_eps_equals_its_formula():
    # With eps_form="keras", Adam adds eps to the root of the mean square without bias correction. RMSprop adds eps inside the
    # root. Keras and MXNet do the same.
    for steps in (1, 3):
        correction = math.sqrt(1 - 0.999**steps)
        for name, update in updates(name="adam", steps=steps, eps=1e-3, eps_form="keras").items():
            g = np.asarray(GRADS[name])
            np.testing.assert_allclose(update, -0.1 * correction * g / (correction * np.abs(g) + 1e-3), rtol=1e-4)
    for name, update in updates(name="rmsprop", beta2=0.9, eps=1e-2, eps_form="keras").items():
        g = np.asarray(GRADS[name])
        np.testing.assert_allclose(update, -0.1 * g / np.sqrt(g**2 * 0.1 + 1e-2), rtol=1e-5)


def test_sgd_with_and_without_momentum_equals_its_formula():
    for name, update in updates(name="sgd", steps=3, momentum=0.5).items():
        np.testing.assert_allclose(update, -0.1 * np.asarray(GRADS[name]) * (1 + 0.5 + 0.25), rtol=1e-6)
    np.testing.assert_allclose(updates(name="sgd")["bias"], [-0.05, 0.4], rtol=1e-6)


def test_clipping_by_norm_and_by_value():
    norm = math.sqrt(0.01 + 0.04 + 0.09 + 0.25 + 16)
    np.testing.assert_allclose(updates(name="sgd", clip_norm=1.0)["bias"], [-0.05 / norm, 0.4 / norm], rtol=1e-5)
    np.testing.assert_allclose(updates(name="sgd", clip_norm=10.0)["bias"], [-0.05, 0.4], rtol=1e-6)
    np.testing.assert_allclose(updates(name="sgd", clip_value=0.25)["bias"], [-0.025, 0.025], rtol=1e-6)


def test_weight_decay_skips_biases_by_default_and_is_decoupled_only_for_adamw():
    kernel = np.asarray(PARAMS["kernel"])
    plain, decayed = updates(name="adamw"), updates(name="adamw", weight_decay=0.01)
    np.testing.assert_allclose(decayed["kernel"] - plain["kernel"], -0.1 * 0.01 * kernel, atol=1e-7)
    np.testing.assert_array_equal(decayed["bias"], plain["bias"])
    decayed = updates(name="sgd", weight_decay=0.01)
    np.testing.assert_allclose(decayed["kernel"], -0.1 * (np.asarray(GRADS["kernel"]) + 0.01 * kernel), rtol=1e-6)
    biases = updates(name="sgd", weight_decay=0.01, decay_biases=True)["bias"]
    np.testing.assert_allclose(biases, -0.1 * (np.asarray(GRADS["bias"]) + 0.01 * np.asarray(PARAMS["bias"])), rtol=1e-6)
    adam = updates(name="adam", weight_decay=0.01)["kernel"]
    np.testing.assert_allclose(adam, -0.1 * np.sign(np.asarray(GRADS["kernel"]) + 0.01 * kernel), rtol=1e-4)


def test_weight_decay_epochs_is_the_time_in_which_the_decay_alone_divides_the_weights_by_e():
    steps_per_epoch, epochs = 400, 2.5
    transformation = optim.optimizer(config_of(name="adamw", weight_decay=7.0, weight_decay_epochs=epochs), steps_per_epoch)
    params, nothing = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    state, update = transformation.init(params), jax.jit(transformation.update)
    for _ in range(round(epochs * steps_per_epoch)):
        result, state = update(nothing, state, params)
        params = jax.tree.map(lambda leaf, update: leaf + 0.1 * update, params, result)
    np.testing.assert_allclose(params["kernel"], np.asarray(PARAMS["kernel"]) / math.e, rtol=1e-3)
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    sgd = config_of(name="sgd", weight_decay=7.0, weight_decay_epochs=epochs)
    assert optim.weight_decay(sgd, steps_per_epoch) == 7.0
    assert optim.unread_keys(sgd) == {"optim.weight_decay_epochs": "optim.name=sgd"}
    both = config_of(name="adamw", weight_decay=7.0, weight_decay_epochs=epochs)
    assert optim.unread_keys(both) == {"optim.weight_decay": "optim.weight_decay_epochs=2.5"}


def test_with_weight_rms_the_peak_rate_is_the_one_at_which_random_updates_keep_the_weights_at_this_size():
    steps_per_epoch, settings = 400, {"name": "adamw", "weight_decay_epochs": 0.5, "weight_rms": 0.15}
    config = config_of(**settings)
    peak, factor = optim.peak_rate(config, steps_per_epoch), optim.weight_decay(config, steps_per_epoch)
    weights, draw = np.zeros(20_000), np.random.default_rng(0)
    for _ in range(1_000):  # five times the time of weight decay
        weights -= peak * (draw.standard_normal(weights.size) + factor * weights)
    assert np.sqrt(np.mean(weights**2)) == pytest.approx(0.15, rel=0.02)
    assert 1 / (peak * factor) == pytest.approx(200)
    for schedule in optim.SCHEDULES:
        by_step = optim.schedule(config_of(**settings, schedule=schedule, warmup_steps=10), 1_000, steps_per_epoch)
        assert float(by_step(10)) == pytest.approx(peak), schedule
        assert float(by_step(5)) == pytest.approx(peak / 2), schedule
    assert optim.peak_rate(config, 4 * steps_per_epoch) == pytest.approx(peak / 2)
    without = {"name": "sgd"}, {"weight_decay_epochs": 0.0}, {"weight_rms": 0.0}
    assert [optim.peak_rate(config_of(**(settings | each)), steps_per_epoch) for each in without] == [0.1] * 3


def test_weight_rms_and_the_learning_rate_that_it_replaces_are_named_if_nothing_reads_them():
    settings = {"name": "adamw", "weight_decay_epochs": 0.5, "weight_rms": 0.15}
    assert optim.unread_keys(config_of(**settings)) == {"optim.learning_rate": "optim.weight_rms=0.15"}
    assert optim.unread_keys(config_of(**settings, learning_rate=3e-3)) == {}
    without = optim.unread_keys(config_of(**(settings | {"weight_decay_epochs": 0.0})))
    assert without == {"optim.weight_rms": "optim.weight_decay_epochs=0"}
    assert optim.unread_keys(config_of(**(settings | {"name": "sgd"})))["optim.weight_rms"] == "optim.name=sgd"


def test_rules_and_schedules_have_the_names_that_the_config_keys_allow():
    assert tuple(optim.RULES) == keys.KEYS["optim.name"].rule.options
    assert tuple(optim.SCHEDULES) == keys.KEYS["optim.schedule"].rule.options


def descends(name: str) -> bool:
    """Whether one step of this optimiser with a small learning rate lowers a quadratic loss."""
    loss = lambda params: sum((leaf**2).sum() for leaf in jax.tree.leaves(params))  # noqa: E731
    transformation = optim.optimizer(config_of(name=name), 1)
    result, _ = transformation.update(jax.grad(loss)(PARAMS), transformation.init(PARAMS), PARAMS)
    moved = jax.tree.map(lambda leaf, update: leaf + 1e-3 * update, PARAMS, result)
    return bool(loss(moved) < loss(PARAMS))


@pytest.mark.parametrize("name", optim.RULES)
def test_every_optimiser_descends(name):
    assert descends(name), f"optim.name={name} increases the loss: the rule in RULES must not include the minus sign"


def test_a_rule_that_includes_the_minus_sign_does_not_descend(monkeypatch):
    # `optax.sgd` includes the minus sign. The `scale_by_…` functions do not.
    monkeypatch.setitem(optim.RULES, "sgd", optim.Rule(lambda config: optax.sgd(1.0)))
    assert not descends("sgd")


def test_keys_that_the_schedule_or_the_optimiser_does_not_read_are_listed():
    assert optim.unread_keys(config_of(schedule="cosine")) == {}
    with_both = {"decay_after": 2.0, "decay_epochs": 1.0}
    unread = optim.unread_keys(config_of(schedule="cosine", **with_both))
    assert unread == dict.fromkeys(["optim.decay_after", "optim.decay_epochs"], "optim.schedule=cosine")
    assert list(optim.unread_keys(config_of(schedule="trapezoid", **with_both))) == ["optim.decay_after"]
    assert optim.unread_keys(config_of(schedule="step", **with_both)) == {}
    of_rules = {
        "beta1": 0.8,
        "beta2": 0.8,
        "beta3": 0.8,
        "eps": 0.1,
        "eps_form": "keras",
        "momentum": 0.1,
        "muon_momentum": 0.1,
    }
    for name, unread in (
        ("lion", {"beta3", "eps", "eps_form", "momentum", "muon_momentum"}),
        ("adafactor", set(of_rules) - {"momentum"}),
        ("muon", {"beta3", "momentum"}),
        ("schedule_free_adamw", {"beta3", "eps_form", "momentum", "muon_momentum"}),
    ):
        assert optim.unread_keys(config_of(name=name, **of_rules)) == {f"optim.{key}": f"optim.name={name}" for key in unread}
