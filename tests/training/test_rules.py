"""Tests the optimisers that are newer than Adam against PyTorch, or against the equations of their papers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm.models import stack
from charlm.training import optim, rules
from configs import base

RNG = np.random.default_rng(0)
SHAPES = {"kernel": (6, 4), "bias": (5,)}
PARAMS = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
GRADS = [{name: RNG.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(4)]
RATE = 0.01


def config_of(**keys):
    config = base.get_config()
    config.optim.update({"clip_norm": 0.0, **keys})
    return config


def trained(params=PARAMS, gradients=GRADS, **keys):
    """The parameters after one step for each tree of gradients, at a constant learning rate."""
    transformation = optim.optimizer(config_of(**keys), 1)

    @jax.jit
    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return jax.tree.map(lambda leaf, update: leaf + RATE * update, params, updates), state

    params, gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, gradients))
    state = transformation.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return jax.tree.map(np.asarray, params)


def assert_close(found, expected, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=rtol, atol=atol), found, expected)


def each(function):
    """The results of a function of (initial values, gradients of all steps), for each parameter."""
    return {name: function(PARAMS[name], [grads[name] for grads in GRADS]) for name in SHAPES}


def test_lion_equals_the_equations_of_its_paper():
    """Chen et al. 2023, program 1. The weight decay is decoupled, and only matrices decay."""

    def lion(w, gradients):
        m, decay = np.zeros_like(w), 0.1 * (w.ndim > 1)
        for g in gradients:
            w = w - RATE * (np.sign(0.8 * m + 0.2 * g) + decay * w)
            m = 0.95 * m + 0.05 * g
        return w

    assert_close(trained(name="lion", beta1=0.8, beta2=0.95, weight_decay=0.1), each(lion))


def test_adan_equals_the_equations_of_its_paper():
    """Xie et al. 2022, algorithm 1, with corrections for bias as in the authors' code.

    `optim.beta3` is for the differences, so it takes the place of the paper's second number.
    """

    def adan(w, gradients):
        b1, b2, b3, eps = 0.9, 0.8, 0.95, 1e-3  # 1 minus the paper's numbers
        m, v, n, before = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), gradients[0]
        for t, g in enumerate(gradients, start=1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * (g - before)
            n = b3 * n + (1 - b3) * (g + b2 * (g - before)) ** 2
            look_ahead = m / (1 - b1**t) + b2 * v / (1 - b2**t)
            w, before = w - RATE * look_ahead / (np.sqrt(n / (1 - b3**t)) + eps), g
        return w

    assert_close(trained(name="adan", beta1=0.9, beta3=0.8, beta2=0.95, eps=1e-3), each(adan))


def adafactor(w, gradients, momentum=0.0):
    """Shazeer & Stern 2018, algorithms 4 and 5. The updates have a running mean only if `momentum` is above 0."""
    row, column, mean = 0.0, 0.0, np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        decay, square = 1 - t**-0.8, g**2 + 1e-30
        if w.ndim > 1:
            row = decay * row + (1 - decay) * square.sum(1, keepdims=True)
            column = decay * column + (1 - decay) * square.sum(0, keepdims=True)
            second = row * column / row.sum()
        else:
            row = second = decay * row + (1 - decay) * square
        update = g / np.sqrt(second)
        update /= max(1, np.sqrt((update**2).mean()))
        update *= max(1e-3, np.sqrt((w**2).mean()))
        mean = momentum * mean + (1 - momentum) * update
        w = w - RATE * mean
    return w


def test_adafactor_equals_the_equations_of_its_paper():
    for momentum in (0.0, 0.7):
        found = trained(name="adafactor", momentum=momentum)
        assert_close(found, each(lambda w, gradients, momentum=momentum: adafactor(w, gradients, momentum)))


def test_adafactor_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.nn.Parameter(torch.tensor(leaf, dtype=torch.float64)) for name, leaf in PARAMS.items()}
    peer = torch.optim.Adafactor(tensors.values(), lr=RATE, weight_decay=0.0)
    for grads in GRADS:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        peer.step()
    assert_close(trained(name="adafactor"), {name: tensor.detach().numpy() for name, tensor in tensors.items()})


NETWORK = {"embedding": (3, 4), "head_kernel": (4, 3), "gru_0": {"input_kernel": (4, 12), "bias": (12,)}}


def network(make):
    return jax.tree.map(make, NETWORK, is_leaf=lambda shape: isinstance(shape, tuple))


def orthogonalised(x):
    """The matrix after five Newton-Schulz steps of Jordan et al. 2024, in float64."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


def test_muon_equals_its_equations_on_the_matrices_of_layers_and_adam_elsewhere():
    """The momentum is Nesterov's, corrected for bias as in Dozat's NAdam. The scale is that of Liu et al. 2025."""
    params = network(lambda shape: RNG.normal(size=shape))
    gradients = [network(lambda shape: RNG.normal(size=shape)) for _ in range(3)]
    found = trained(params, gradients, name="muon", muon_momentum=0.9, weight_decay=0.1)
    w, m, b = params["gru_0"]["input_kernel"], 0.0, 0.9
    for t, g in enumerate((grads["gru_0"]["input_kernel"] for grads in gradients), start=1):
        m = b * m + (1 - b) * g
        look_ahead = b * m / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t)
        w = w - RATE * (0.2 * np.sqrt(max(w.shape)) * orthogonalised(look_ahead) + 0.1 * w)
    np.testing.assert_allclose(found["gru_0"]["input_kernel"], w, rtol=1e-4, atol=1e-5)
    rest = trained(params, gradients, name="adamw", weight_decay=0.1)
    for names in (("embedding",), ("head_kernel",), ("gru_0", "bias")):
        leaf, expected = found, rest
        for name in names:
            leaf, expected = leaf[name], expected[name]
        np.testing.assert_array_equal(leaf, expected)


def test_the_first_step_of_muon_equals_pytorch():
    """PyTorch rounds the iteration to bfloat16, so the tolerance is wide. Later steps differ by the correction for bias."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params = network(lambda shape: RNG.normal(size=shape))
    grads = network(lambda shape: RNG.normal(size=shape))
    tensor = torch.nn.Parameter(torch.tensor(params["gru_0"]["input_kernel"], dtype=torch.float32))
    tensor.grad = torch.tensor(grads["gru_0"]["input_kernel"], dtype=torch.float32)
    torch.optim.Muon([tensor], lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    before, found = params["gru_0"]["input_kernel"], trained(params, [grads], name="muon")["gru_0"]["input_kernel"]
    np.testing.assert_allclose((found - before) / RATE, (tensor.detach().numpy() - before) / RATE, atol=0.02)


def test_without_an_embedding_adam_updates_the_rows_of_the_symbols():
    for encoding in ("onehot", "embedding"):
        config = base.get_config()
        config.model.update({"layers": 2, "hidden": 8, "input": encoding})
        shapes = jax.eval_shape(stack.functions(config, 5).init, jax.random.key(0))
        labels = rules.muon_or_adam(shapes)
        by_muon = {"recurrent_kernel"} | ({"input_kernel"} if encoding == "embedding" else set())
        assert {name for name, label in labels["lstm_0"].items() if label == "muon"} == by_muon
        assert labels["lstm_1"] == {"input_kernel": "muon", "recurrent_kernel": "muon", "bias": "adam"}
        assert {labels[name] for name in labels if not name.startswith("lstm")} == {"adam"}


@pytest.mark.parametrize("name", optim.RULES)
def test_each_rule_reads_the_keys_that_it_lists(name):
    """Another value of a key that the rule lists changes the training. Another value of any other key changes nothing."""
    values = {
        "beta1": 0.9999,
        "beta2": 0.8,
        "beta3": 0.7,
        "eps": 0.1,
        "eps_form": "keras",
        "momentum": 0.6,
        "muon_momentum": 0.6,
    }
    params = network(lambda shape: RNG.normal(size=shape))
    gradients = [network(lambda shape: RNG.normal(size=shape)) for _ in range(3)]
    plain = {eps: trained(params, gradients, name=name, eps=eps) for eps in (1e-8, 0.01)}
    read = set()
    for key, value in values.items():
        eps = 0.01 if key == "eps_form" else 1e-8  # the form of eps has an effect only if eps is not tiny
        changed = jax.tree.leaves(trained(params, gradients, **{"name": name, "eps": eps, key: value}))
        if not all(map(np.array_equal, changed, jax.tree.leaves(plain[eps]))):
            read.add(key)
    # The module `averaging` reads beta1 for the schedule-free method.
    assert read | ({"beta1"} if name == "schedule_free_adamw" else set()) == set(optim.RULES[name].keys)
