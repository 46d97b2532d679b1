"""Measures the training speed of a cell of charlm and of the same cell written plainly in Flax, in turn in one process.

    .venv/bin/python experiments/2026-11-28-cells/against_flax.py [--cells=NAME,...] [--shapes=S,M,L] [--rounds=5]

Letters: T time, B batch.

Both networks have an embedding, two layers and a head. One measurement is the time of the loss and its gradient for one batch.
The shapes are those of the benchmark: S = 2 x 128, batch 50 x 50; M = 2 x 256, batch 32 x 32; L = 2 x 512, batch 128 x 100. The
plain cell is a Flax module of a single step that `nn.scan` runs over the window, and JAX derives its gradient. Prints the
characters per second of both, as the median over the rounds, and the median ratio. Before it measures, the command checks that
both networks have the same number of parameters.
"""

import os
import pathlib
import statistics
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from charlm.data.batches import Batch
from charlm.models import objective, stack

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2]))
from configs import base

SHAPES = {"S": (128, 50, 50), "M": (256, 32, 32), "L": (512, 128, 100)}  # hidden, batch, length
VOCABULARY = 65
OPTIONS = {
    "layernorm_lstm": {},
    "mogrifier_lstm": {},
    "mogrifier_lstm:rank=40": {"rank": 40},
    "slstm": {},
    "slstm:heads=4": {"heads": 4},
    "mingru": {},
    "minlstm": {},
}

CELLS = flags.DEFINE_list("cells", list(OPTIONS), "cells to measure, with their options")
SIZES = flags.DEFINE_list("shapes", ["S", "M", "L"], "shapes to measure")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each network is measured")
DTYPE = flags.DEFINE_string("dtype", "float32", "dtype of the operands of matrix products: float32 or bfloat16")
CPU_TIME = flags.DEFINE_bool("cpu_time", False, "measure the CPU time of the process, for a machine that has other work too")
SECONDS = flags.DEFINE_float("seconds", 1.0, "length of one measurement")


class LayerNormLSTM(nn.Module):
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state, x):
        c, h = state
        wide = 4 * self.hidden
        from_x = nn.LayerNorm(epsilon=1e-5, use_bias=True)(nn.Dense(wide, use_bias=False, dtype=self.dtype)(x))
        from_h = nn.LayerNorm(epsilon=1e-5, use_bias=False)(nn.Dense(wide, use_bias=False, dtype=self.dtype)(h))
        i, f, g, o = jnp.split((from_x + from_h).astype(jnp.float32), 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(nn.LayerNorm(epsilon=1e-5)(c))
        return (c, h), h


class MogrifierLSTM(nn.Module):
    hidden: int
    dtype: jnp.dtype
    rounds: int = 5
    rank: int = 0

    @nn.compact
    def __call__(self, state, x):
        c, h = state
        for k in range(self.rounds):
            source, target = (h, x) if k % 2 == 0 else (x, h)
            if self.rank:
                source = nn.Dense(self.rank, use_bias=False, dtype=self.dtype)(source)
            scaled = 2 * nn.sigmoid(nn.Dense(target.shape[-1], dtype=self.dtype)(source)) * target
            x, h = (scaled, h) if k % 2 == 0 else (x, scaled)
        z = nn.Dense(4 * self.hidden, dtype=self.dtype)(x) + nn.Dense(4 * self.hidden, use_bias=False, dtype=self.dtype)(h)
        i, f, g, o = jnp.split(z.astype(jnp.float32), 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


class SLSTM(nn.Module):
    hidden: int
    dtype: jnp.dtype
    heads: int = 1

    @nn.compact
    def __call__(self, state, x):
        c, n, h, m = state
        rows, units = x.shape[0], self.hidden // self.heads
        from_x = nn.Dense(4 * self.hidden, dtype=self.dtype)(x).reshape(rows, 4, self.heads, units)
        kernel = self.param("recurrent", nn.initializers.lecun_normal(), (self.heads, units, 4, units))
        by_head = h.reshape(rows, self.heads, units)
        from_h = jnp.einsum("bnd,ndgk->bgnk", by_head.astype(self.dtype), kernel.astype(self.dtype))
        u = (from_x + from_h).astype(jnp.float32).reshape(rows, 4, self.hidden)
        log_f = nn.log_sigmoid(u[:, 1]) + jnp.where(n == 0, -jnp.inf, m)
        m = jnp.maximum(log_f, u[:, 0])
        i, f = jnp.exp(u[:, 0] - m), jnp.exp(log_f - m)
        c, n = f * c + i * jnp.tanh(u[:, 2]), f * n + i
        h = nn.sigmoid(u[:, 3]) * c / n
        return (c, n, h, m), h


class MinGRU(nn.Module):
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state, x):
        (h,) = state
        z, v = jnp.split(nn.Dense(2 * self.hidden, dtype=self.dtype)(x).astype(jnp.float32), 2, axis=-1)
        z = nn.sigmoid(z)
        h = (1 - z) * h + z * candidate(v)
        return (h,), h


class MinLSTM(nn.Module):
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state, x):
        (h,) = state
        f, i, v = jnp.split(nn.Dense(3 * self.hidden, dtype=self.dtype)(x).astype(jnp.float32), 3, axis=-1)
        f, i = nn.sigmoid(f), nn.sigmoid(i)
        h = f / (f + i) * h + i / (f + i) * candidate(v)
        return (h,), h


def candidate(v):
    return jnp.where(v >= 0, v + 0.5, nn.sigmoid(v))


MODULES = {
    "layernorm_lstm": LayerNormLSTM,
    "mogrifier_lstm": MogrifierLSTM,
    "slstm": SLSTM,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
}
STATES = {"slstm": 4, "mingru": 1, "minlstm": 1}  # number of arrays in the state, if it is not 2


class Plain(nn.Module):
    """An embedding, two plain layers and a head."""

    cell: type[nn.Module]
    options: dict
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs_BT, carry):
        x, new_carry = nn.Embed(VOCABULARY, self.hidden)(inputs_BT), []
        layer = nn.scan(self.cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        for state in carry:
            state, x = layer(hidden=self.hidden, dtype=self.dtype, **self.options)(state, x)
            new_carry.append(state)
        return nn.Dense(VOCABULARY, dtype=self.dtype)(x).astype(jnp.float32), tuple(new_carry)


def charlm_function(name, options, hidden, batch):
    """charlm's parameters, and its jitted function from parameters to (loss, gradient)."""
    config = base.get_config()
    config.model.update({"cell": name, "hidden": hidden, "embedding": hidden, "dtype": DTYPE.value})
    config.model.update({f"{name.removesuffix('_lstm')}_{key}": value for key, value in options.items()})
    functions = stack.functions(config, VOCABULARY)
    rows = batch.inputs_BT.shape[0]

    def loss(params, carry):
        logits, carry = functions.apply(params, batch, carry)
        nats, count = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS)
        return nats / count, carry

    carry = functions.zero_carry(rows)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return functions.init(jax.random.key(0)), lambda params: gradient(params, carry)


def plain_function(name, options, hidden, batch):
    """The same for the plain Flax network."""
    rows, states = batch.inputs_BT.shape[0], STATES.get(name, 2)
    model = Plain(MODULES[name], options, hidden, jnp.dtype(DTYPE.value))
    carry = tuple(tuple(jnp.zeros((rows, hidden)) for _ in range(states)) for _ in range(2))

    def loss(params, carry):
        logits, carry = model.apply(params, batch.inputs_BT, carry)
        nats, count = objective.nats_and_count(logits, batch.targets_BS, batch.weights_BS)
        return nats / count, carry

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.jit(model.init)(jax.random.key(0), batch.inputs_BT, carry), lambda params: gradient(params, carry)


def seconds_of(function, params):
    """The mean time of a call, over SECONDS seconds and at least one call."""
    clock = time.process_time if CPU_TIME.value else time.perf_counter
    start, calls = clock(), 0
    while calls == 0 or clock() - start < SECONDS.value:
        jax.block_until_ready(function(params))
        calls += 1
    return (clock() - start) / calls


def main(_):
    print(f"{'cell':<24} {'shape':<6} {'charlm':>10} {'flax':>10} {'ratio':>6}   {DTYPE.value}, characters per second")
    for cell in CELLS.value:
        name = cell.partition(":")[0]
        for shape in SIZES.value:
            hidden, rows, steps = SHAPES[shape]
            ids = np.random.default_rng(0).integers(0, VOCABULARY, (rows, steps + 1)).astype(np.int32)
            batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, steps), np.float32), np.zeros(rows, bool))
            both = [make(name, OPTIONS[cell], hidden, batch) for make in (charlm_function, plain_function)]
            counts = [stack.parameter_count(params) for params, _ in both]
            assert counts[0] == counts[1], counts
            for params, function in both:
                jax.block_until_ready(function(params))
            seconds = [[seconds_of(function, params) for params, function in both] for _ in range(ROUNDS.value)]
            ours, plain = (rows * steps / statistics.median(each) for each in zip(*seconds, strict=True))
            ratio = statistics.median(plain / ours for ours, plain in seconds)
            print(f"{cell:<24} {shape:<6} {ours:>10,.0f} {plain:>10,.0f} {ratio:>6.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
