"""Times four ways to compute the states of a minGRU layer and their gradients, without the matrix product.

    .venv/bin/python experiments/2026-11-28-cells/min_scans.py [SECONDS]

The ways take turns for SECONDS (default 15) at each size. Each line has T, H and the fewest milliseconds of each way, with 32
rows. `log space` is the parallel scan of the paper.
"""

import functools
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, os.fspath(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from charlm.models.cells import blend  # noqa: E402

SIZES = ((64, 256), (64, 512), (256, 384), (512, 512))
ROWS = 32


def usual(u, v, h):
    return blend.blended(jax.nn.sigmoid(u), blend.candidate(v), h)


def usual_with(scan, u, v, h):
    """`usual` with another scan, whose gradient JAX derives."""
    z = jax.nn.sigmoid(u)
    return scan(1 - z, z * blend.candidate(v), h, reverse=False)


def log_space(u, v, h):
    log_keep, log_add = -jax.nn.softplus(u), -jax.nn.softplus(-u) + jnp.log(blend.candidate(v))
    log_add = log_add.at[0].set(jnp.logaddexp(log_add[0], log_keep[0] + jnp.log(h)))

    def joined(earlier, later):
        return earlier[0] + later[0], jnp.logaddexp(later[0] + earlier[1], later[1])

    return jnp.exp(jax.lax.associative_scan(joined, (log_keep, log_add))[1])


WAYS = {
    "usual": usual,
    "loop, derived gradient": functools.partial(usual_with, blend._by_loop),
    "parallel, derived gradient": functools.partial(usual_with, blend._in_parallel),
    "log space": log_space,
}


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    for steps, hidden in SIZES:
        u, v, weights = jax.random.normal(jax.random.key(0), (3, steps, ROWS, hidden))
        h = jnp.full((ROWS, hidden), 0.5)
        losses = {name: lambda u, v, h, way=way, weights=weights: (way(u, v, h) * weights).sum() for name, way in WAYS.items()}
        gradients = {name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))) for name, loss in losses.items()}
        fewest = dict.fromkeys(WAYS, float("inf"))
        for gradient in gradients.values():
            jax.block_until_ready(gradient(u, v, h))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, gradient in gradients.items():
                start = time.perf_counter()
                jax.block_until_ready(gradient(u, v, h))
                fewest[name] = min(fewest[name], time.perf_counter() - start)
        print(steps, hidden, {name: round(1e3 * each, 2) for name, each in fewest.items()}, flush=True)


if __name__ == "__main__":
    main()
