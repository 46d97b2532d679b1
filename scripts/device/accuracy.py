"""Compares every cell and kernel on this device with `textbook`: NumPy in float64.

Each case trains two steps, scores a text and draws a greedy sample, with charlm's own functions. These errors are measured:

    loss        the difference of the mean nats of a training step; the larger one of both steps
    gradient    |g - g'| / |g'| for the gradient g of the first step and the textbook's gradient g'
    step        the same for the change of the parameters by both steps of Adam
    evaluation  the difference of the mean nats of a text that is read in windows with a carried state
    sample      how far the logit of a drawn character is below the largest logit; see `Network.regret`

|x| is the norm of the array of a parameter. The largest error of all arrays counts. An array whose gradient is much smaller
than the whole gradient would have a large relative error, so |g'| is at least SMALLEST times the norm of the whole gradient.

Each error may be at most a u + b v. u is the relative error of rounding the operands of products (0 for float32), and v is that
of float32, in which everything else is computed. ALLOWED has a and b.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from charlm.config import keys, load
from charlm.data import batches
from charlm.data.framing import Framing
from charlm.data.ids import Encoded
from charlm.data.vocab import Vocab
from charlm.hardware import devices
from charlm.inference import evaluate, sample
from charlm.inference.protocol import Protocol
from charlm.models import stack
from charlm.training import optim, state
from charlm.training.step import make_train_step
from device import textbook
from device.reporting import Job, Report

# The largest relative error of an operand. bfloat16 has 8 significant bits, and TF32 has 11. Some devices cut off the other
# bits instead of rounding.
ROUNDING = {"float32": 0.0, "tf32": 2.0**-10, "bfloat16": 2.0**-7}
OF_FLOAT32 = 2.0**-24
# Error → (a, b). On a CPU, the largest errors of all cells are 7, 26, 140, 5 and 0 times 2^-24 in float32, and 0.1, 4.5, 5, 0.1
# and 0 times 2^-7 in bfloat16. Operands that are rounded to TF32 by mistake give a gradient of float32 an error of about 5e-4,
# and b allows 2.4e-5. The error of `step` includes the rounding of the parameters, which are larger than their changes.
ALLOWED = {"loss": (0.5, 100), "gradient": (15, 400), "step": (15, 2000), "evaluation": (0.5, 100), "sample": (5, 200)}
SMALLEST = 0.01
VOCAB = 65
ADAM = textbook.Adam(rate=0.05, beta1=0.9, beta2=0.999, eps=0.01, clip_norm=0.5, weight_decay=0.01)
OPTIM = {
    "optim.learning_rate": ADAM.rate,
    "optim.eps": ADAM.eps,  # large, so that Adam does not turn the rounding errors of small gradients into large steps
    "optim.clip_norm": ADAM.clip_norm,
    "optim.weight_decay": ADAM.weight_decay,
}


class Sizes(NamedTuple):
    """The sizes of the networks, the batches and the texts."""

    layers: int
    hidden: int
    embedding: int
    rows: int
    length: int
    drawn: int


ON_CPU = Sizes(layers=2, hidden=24, embedding=12, rows=4, length=12, drawn=20)
# Products of small matrices may not use the matrix units of a GPU.
ON_ACCELERATOR = Sizes(layers=2, hidden=128, embedding=96, rows=32, length=32, drawn=60)


class Case(NamedTuple):
    """A cell and how it is computed.

    Attributes:
      precision: how operands of products are rounded: a key of ROUNDING.
      kernel, input, unroll: the values of the keys of `model`.
    """

    cell: str
    precision: str = "float32"
    kernel: str = "xla"
    input: str = "embedding"
    unroll: int = 1

    def __str__(self) -> str:
        onehot = ", one-hot input" if self.input == "onehot" else ""
        unroll = f", unroll {self.unroll}" if self.unroll > 1 else ""
        return f"{self.cell}, kernel {self.kernel}, {self.precision}{onehot}{unroll}"


def run(job: Job, report: Report) -> None:
    """Checks all cases, the most important ones first."""
    sizes = ON_CPU if job.is_cpu else ON_ACCELERATOR
    longest = 0.0
    for case in cases(job.platform, job.is_cuda):
        if job.seconds_left() < 1.5 * longest:
            report.left_out(str(case))
            continue
        begin = time.monotonic()
        try:
            errors = measured(case, sizes)
        except Exception as error:  # the other cases can still be checked
            report.wrong(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        longest = max(longest, time.monotonic() - begin)
        report.figure(**case._asdict(), **errors, seconds=time.monotonic() - begin)
        for line in wrong(case, errors):
            report.wrong(line)


def cases(platform: str, is_cuda: bool) -> Iterator[Case]:
    """The cases for a device. On a CPU, `tf32` is float32."""
    kernels = ("xla", "cudnn") if is_cuda else ("xla",)
    yield from (Case("lstm", kernel=kernel) for kernel in kernels)
    yield from (Case(cell) for cell in textbook.CELLS if cell != "lstm")
    if platform != "cpu":
        yield from (Case("lstm", "tf32", kernel) for kernel in kernels)
    yield Case("lstm", "bfloat16")
    yield from (Case("lstm", kernel=kernel, input="onehot") for kernel in kernels)
    for precision in ("bfloat16",) if platform == "cpu" else ("bfloat16", "tf32"):
        yield from (Case(cell, precision) for cell in textbook.CELLS if cell != "lstm")
    yield from (Case(cell, unroll=8) for cell in ("lstm", "gru"))


def wrong(case: Case, errors: dict[str, float]) -> list[str]:
    """A line for each error that is too large."""
    limits = {name: a * ROUNDING[case.precision] + b * OF_FLOAT32 for name, (a, b) in ALLOWED.items()}
    return [
        f"{case}: {name} differs by {errors[name]:.1e}, allowed {limit:.1e}"
        for name, limit in limits.items()
        if not errors[name] <= limit  # also true for nan
    ]


def measured(case: Case, sizes: Sizes) -> dict[str, float]:
    """The errors of a case."""
    config = _config(case, sizes)
    functions = stack.functions(config, VOCAB)
    abstract = jax.eval_shape(functions.init, jax.random.key(0))
    params = _random_params(abstract)
    network = textbook.Network(case.cell, sizes.layers, sizes.hidden)
    flat = {name: array.astype(np.float64) for name, array in _flat(params).items()}
    rng = np.random.default_rng(1)
    two_batches = [_batch(rng, sizes, step) for step in range(2)]
    expected = textbook.training_steps(network, ADAM, flat, two_batches)
    text_N = rng.integers(0, VOCAB, 4 * sizes.length + 3)
    prompt_ids = rng.integers(0, VOCAB, 10)
    losses, gradient, updates = _two_steps(functions, config, params, two_batches)
    nats, chars = evaluate.evaluator(functions)(
        params, Encoded(text_N), Protocol(Framing.of(config), sizes.rows, sizes.length, lanes=1, burn_in=0)
    )
    generate = sample.sampler(functions, Vocab("".join(map(chr, range(VOCAB)))))
    pieces = generate(params, prompt_ids, 2, sizes.drawn, 0.0, jax.random.key(0))
    drawn_BN = np.concatenate(list(pieces), axis=1)
    both = {name: expected[0].updates[name] + expected[1].updates[name] for name in flat}
    return {
        "loss": max(abs(loss - step.loss) for loss, step in zip(losses, expected, strict=True)),
        "gradient": _relative(gradient, expected[0].gradient),
        "step": _relative(updates, both),
        "evaluation": abs(nats / chars - network.loss_of_text(flat, text_N)),
        "sample": network.regret(flat, prompt_ids, drawn_BN),
    }


def _config(case: Case, sizes: Sizes):
    config = keys.defaults()
    model = {
        "cell": case.cell,
        "layers": sizes.layers,
        "hidden": sizes.hidden,
        "embedding": sizes.embedding,
        "input": case.input,
        "kernel": case.kernel,
        "unroll": case.unroll,
        "dtype": "bfloat16" if case.precision == "bfloat16" else "float32",
        "precision": "tf32" if case.precision == "tf32" else "float32",
        "slstm_heads": 2,
    }
    overrides = {f"model.{name}": value for name, value in model.items()}
    for name, value in (overrides | OPTIM | {"batch.size": sizes.rows, "batch.length": sizes.length}).items():
        load.override(config, name, value)
    return load.checked(config)


def _two_steps(functions, config, params, two_batches):
    """The losses of two training steps, the gradient of the first step, and the change of the parameters by both steps."""
    rows = len(two_batches[0].reset_B)
    mesh = devices.mesh(rows, 1)
    optimizer = optax.chain(_kept_gradient(), optim.optimizer(config, 1))
    train_step = jax.jit(make_train_step(functions, optimizer, mesh))
    now = state.placed(state.state_with(params, optimizer, functions.zero_carry(rows), None), mesh)
    losses, gradients = [], []
    for batch in two_batches:
        now, metrics = train_step(now, batch, np.float32(ADAM.rate), np.uint32(0))
        losses.append(float(metrics.nats) / float(metrics.chars))
        gradients.append(_flat(now.opt_state[0]))
    before, after = _flat(params), _flat(now.params)
    return losses, gradients[0], {name: after[name].astype(np.float64) - before[name] for name in before}


def _kept_gradient() -> optax.GradientTransformation:
    """Changes nothing. Its state is the latest gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, _, params=None: (gradient, gradient)
    )


def _random_params(abstract):
    """Random parameters that depend only on the names and shapes. No parameter is zero, so each one matters."""
    rng = np.random.default_rng(0)

    def array(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if len(leaf.shape) > 1 and name != "embedding":
            bound = leaf.shape[0] ** -0.5
            return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
        middle = 1.0 if name.endswith("gain") else 0.0
        return rng.uniform(middle - 0.5, middle + 0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(array, abstract)


def _batch(rng: np.random.Generator, sizes: Sizes, step: int) -> batches.Batch:
    """A batch of random ids. In the second batch, only the rows with odd numbers start from the zero state."""
    window_BT = rng.integers(0, VOCAB, (sizes.rows, sizes.length + 1)).astype(np.int32)
    weights_BT = (rng.uniform(size=(sizes.rows, sizes.length)) < 0.9).astype(np.float32)
    reset_B = np.ones(sizes.rows, bool) if step == 0 else np.arange(sizes.rows) % 2 == 1
    return batches.Batch(window_BT[:, :-1], window_BT[:, 1:], weights_BT, reset_B)


def _flat(tree) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _relative(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative error of an array; see the top of this file."""
    floor = SMALLEST * np.sqrt(sum((array**2).sum() for array in expected.values()))
    return max(
        float(np.linalg.norm(found[name] - array) / max(np.linalg.norm(array), floor)) for name, array in expected.items()
    )
