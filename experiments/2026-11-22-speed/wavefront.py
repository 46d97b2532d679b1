"""Compares two LSTM layers one after the other with a wavefront: one scan in which layer 2 is a step behind layer 1.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false .venv/bin/python experiments/2026-11-22-speed/wavefront.py

The script runs the forward pass and keeps the arrays that a backward pass needs. It uses one core and half the batch of each
benchmark shape. The two forms run in turn.
"""

import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2] / "scripts"))

from peers import measuring

from charlm.models.cells import lstm

ROUNDS = 15


def layered(ids_TB, weights, zeros_BH):
    hidden, kept = ids_TB, []
    for layer in weights:
        residuals, hidden_KNBH = lstm._forward(hidden, layer, (zeros_BH, zeros_BH), jnp.float32, residuals=True)
        hidden = lstm.flat(hidden_KNBH)
        kept.append(residuals)
    return hidden, kept


def wavefront(ids_TB, weights, zeros_BH):
    (table_VG, bias_1, recurrent_1), (input_2, bias_2, recurrent_2) = weights
    from_first = jnp.concatenate([recurrent_1, input_2], axis=1)  # both layers multiply h of layer 1

    def step(carry, ids_B):
        c_1, h_1, c_2, h_2 = carry
        z = h_1 @ from_first
        z_1, z_2 = jnp.split(z, 2, axis=1)
        z_1 = z_1 + jnp.take(table_VG, ids_B, axis=0, mode="clip") + bias_1[None]
        z_2 = z_2 + h_2 @ recurrent_2 + bias_2[None]
        gates = jax.lax.optimization_barrier(lstm._activate(jnp.concatenate([z_1, z_2])))  # layer 1's rows, then layer 2's
        i, f, g, o = jnp.split(gates, 4, axis=1)
        c = f * jnp.concatenate([c_1, c_2]) + i * g
        h = o * jnp.tanh(c)
        (c_1, c_2), (h_1, h_2) = jnp.split(c, 2), jnp.split(h, 2)
        return (c_1, h_1, c_2, h_2), (h, c, gates)

    # Layer 2 processes step t while layer 1 processes step t + 1. At the first step of the scan, layer 2 has no input from the
    # text, so its first output is dropped.
    _, kept = jax.lax.scan(step, (zeros_BH,) * 4, jnp.concatenate([ids_TB, ids_TB[-1:]]))
    return kept[0][1:, len(zeros_BH) :], kept


def main() -> None:
    for name, shape in measuring.SHAPES.items():
        rows, key = shape.batch // 2, jax.random.key(0)
        gates = 4 * shape.hidden
        weights = [
            tuple(0.1 * jax.random.normal(key, size) for size in ((inputs, gates), (gates,), (shape.hidden, gates)))
            for inputs in (measuring.VOCAB, shape.hidden)
        ]
        ids_TB = jax.random.randint(key, (shape.length, rows), 0, measuring.VOCAB)
        zeros_BH = jnp.zeros((rows, shape.hidden))
        forms = {form.__name__: jax.jit(form) for form in (layered, wavefront)}
        seconds = {form: [] for form in forms}
        for _ in range(ROUNDS):
            for form, run in forms.items():
                begin = time.perf_counter()
                for _ in range(5):
                    jax.block_until_ready(run(ids_TB, weights, zeros_BH))
                seconds[form].append((time.perf_counter() - begin) / 5)
        print(name, {form: f"{1000 * statistics.median(taken):.2f} ms" for form, taken in seconds.items()})


if __name__ == "__main__":
    main()
