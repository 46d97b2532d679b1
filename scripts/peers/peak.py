"""Measures how fast JAX multiplies matrices with shapes from LSTM training. worker.py describes the input and output.

The program first finds the element of SHAPES with the highest speed, and then measures only products of this element. `run`
returns a number of floating-point operations instead of a number of characters, so chars_per_second is in FLOP/s.
"""

import jax
import jax.numpy as jnp
import worker

SHAPES = ((2048, 2048, 2048), (1280, 512, 2048), (3200, 256, 1024))  # rows, inner dimension, columns


def main() -> None:
    dtype = jnp.dtype(worker.job()["dtype"])
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    pairs = [(jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)) for m, k, n in SHAPES]
    rates = {}
    for (m, k, n), pair in zip(SHAPES, pairs, strict=True):
        jax.block_until_ready(multiply(*pair))
        rates[m, k, n] = _rate(multiply, pair, 2 * m * k * n, 0.1)
    fastest = max(rates, key=rates.get)
    pair = pairs[SHAPES.index(fastest)]

    def run(products: int) -> int:
        for _ in range(products):
            jax.block_until_ready(multiply(*pair))
        m, k, n = fastest
        return 2 * products * m * k * n

    worker.serve(run, shape=fastest)


def _rate(multiply, pair, flop: int, seconds: float) -> float:
    import time

    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        jax.block_until_ready(multiply(*pair))
        done += flop
    return done / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
