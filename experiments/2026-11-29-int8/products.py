"""Times products of one row and a matrix on XLA:CPU with weights in float32, bfloat16 and int8, as in sampling one text.

    .venv/bin/python experiments/2026-11-29-int8/products.py [HIDDEN] [ROUNDS]

A step of the loop makes the two products of 2 layers with one-hot input: (1, H) x (H, 4H) and (1, 2H) x (2H, 4H). Each product
needs the result of the product before it. Each line has the microseconds of a step: the lowest wall time and the lowest CPU
time of the rounds, in which the forms take turns. With multi-threaded products, the CPU time can be twice the wall time.

Letters: K rows and G = 4H columns of a kernel, W words of 32 bits.
"""

import os
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")  # as charlm sets it for one text

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 64
BLOCK = 32  # rows of the kernel in one iteration of the loop in `in_blocks`


def by_gates(x_K, kernel_gKH, scale_G=None):
    """The form of charlm; see `chunks.gate_products`."""
    x_g1K = jnp.broadcast_to(x_K[None, None, :], (4, 1, len(x_K)))
    z_G = jnp.matmul(x_g1K, kernel_gKH.astype(jnp.float32)).reshape(-1)
    return z_G if scale_G is None else z_G * scale_G


def plain(x_K, kernel_KG, scale_G=None):
    z_G = (x_K[None, :] @ kernel_KG.astype(jnp.float32))[0]
    return z_G if scale_G is None else z_G * scale_G


def summed(x_K, kernel_KG, scale_G=None):
    """A fused multiplication and sum instead of a product, so that no converted kernel is stored."""
    z_G = (x_K[:, None] * kernel_KG.astype(jnp.float32)).sum(0)
    return z_G if scale_G is None else z_G * scale_G


def summed_rows(x_K, kernel_GK, scale_G):
    """Like `summed`, with the kernel transposed."""
    return (x_K[None, :] * kernel_GK.astype(jnp.float32)).sum(1) * scale_G


def in_blocks(x_K, kernel_nbG, scale_G=None):
    """A loop over blocks of rows. Each iteration adds the rows of a block one by one in one fused operation."""

    def block(z_G, arrays):
        x_b, kernel_bG = arrays
        for row in range(BLOCK):
            z_G = z_G + x_b[row] * kernel_bG[row].astype(jnp.float32)
        return z_G, None

    z_G, _ = jax.lax.scan(block, jnp.zeros(kernel_nbG.shape[-1]), (x_K.reshape(-1, BLOCK), kernel_nbG))
    return z_G if scale_G is None else z_G * scale_G


def bytes_of_words(x_K, words_WG, scale_G):
    """Each word holds the int8 weights of four rows, so that the conversion needs only operations on 32 bits."""
    x_W4 = x_K.reshape(-1, 4)
    parts = (x_W4[:, j, None] * ((words_WG << (24 - 8 * j)) >> 24).astype(jnp.float32) for j in range(4))
    return sum(parts).sum(0) * scale_G


def halves_of_words(x_K, words_WG):
    """Each word holds the bfloat16 weights of two rows."""
    x_W2 = x_K.reshape(-1, 2)
    bits = (words_WG << 16, words_WG & jnp.uint32(0xFFFF0000))
    return sum(x_W2[:, j, None] * jax.lax.bitcast_convert_type(bits[j], jnp.float32) for j in range(2)).sum(0)


def int8_activations(x_K, kernel_GK, scale_G):
    """The activations are quantised too, so the product has int8 operands and int32 sums."""
    largest = jnp.abs(x_K).max() / 127
    x_K = jnp.round(x_K / largest).astype(jnp.int8)
    z_G = jax.lax.dot_general(kernel_GK, x_K, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return z_G.astype(jnp.float32) * (scale_G * largest)


def quantised(kernel_KG):
    """int8 weights and the scale of each column."""
    scale_G = np.abs(kernel_KG).max(0) / 127
    return np.round(kernel_KG / scale_G).astype(np.int8), scale_G


def gate_by_gate(kernel_KG):
    return np.ascontiguousarray(kernel_KG.reshape(len(kernel_KG), 4, -1).swapaxes(0, 1))


def words(kernel_KG, dtype):
    """The kernel with the weights of several rows in one word."""
    rows = 4 // kernel_KG.dtype.itemsize
    together = kernel_KG.reshape(-1, rows, kernel_KG.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(together).view(dtype)[..., 0]


def forms(kernels):
    """Name → (function, the arguments after x for each of the two products)."""
    int8 = [quantised(kernel) for kernel in kernels]
    bfloat16 = [np.asarray(jnp.asarray(kernel, jnp.bfloat16)) for kernel in kernels]
    blocks = lambda kernel: kernel.reshape(-1, BLOCK, kernel.shape[1])  # noqa: E731
    return {
        "float32, by gates (charlm)": (by_gates, [(gate_by_gate(kernel),) for kernel in kernels]),
        "float32, plain": (plain, [(kernel,) for kernel in kernels]),
        "float32, summed": (summed, [(kernel,) for kernel in kernels]),
        "float32, in blocks": (in_blocks, [(blocks(kernel),) for kernel in kernels]),
        "bfloat16, by gates": (by_gates, [(gate_by_gate(kernel),) for kernel in bfloat16]),
        "bfloat16, summed": (summed, [(kernel,) for kernel in bfloat16]),
        "bfloat16, words": (halves_of_words, [(words(kernel.view(np.uint16), np.uint32),) for kernel in bfloat16]),
        "int8, by gates": (by_gates, [(gate_by_gate(kernel), scale) for kernel, scale in int8]),
        "int8, plain": (plain, int8),
        "int8, summed": (summed, int8),
        "int8, summed over rows": (summed_rows, [(np.ascontiguousarray(kernel.T), scale) for kernel, scale in int8]),
        "int8, in blocks": (in_blocks, [(blocks(kernel), scale) for kernel, scale in int8]),
        "int8, words": (bytes_of_words, [(words(kernel, np.int32), scale) for kernel, scale in int8]),
        "int8, int8 activations": (int8_activations, [(np.ascontiguousarray(kernel.T), scale) for kernel, scale in int8]),
    }


def loop(multiply, hidden):
    @jax.jit
    def run(x_H, weights):
        def step(x_H, _):
            # Without the barrier, XLA converts the weights once, before the loop, and the loop reads float32 weights.
            (first, second), x_H = jax.lax.optimization_barrier((weights, x_H))
            y_H = jnp.tanh(multiply(x_H, *first)[:hidden])
            z_G = multiply(jnp.concatenate([y_H, x_H]), *second)
            return jnp.tanh(z_G[:hidden] + z_G[hidden : 2 * hidden]), None

        return jax.lax.scan(step, x_H, None, length=STEPS)[0]

    return run


def main() -> None:
    hidden, rounds = ([int(value) for value in sys.argv[1:]] + [512, 9][len(sys.argv) - 1 :])[:2]
    random = np.random.default_rng(0)
    kernels = [(random.normal(size=(rows, 4 * hidden)) / 30).astype(np.float32) for rows in (hidden, 2 * hidden)]
    x_H = jnp.asarray(random.normal(size=hidden).astype(np.float32))
    runs, lowest = {}, {}
    for name, (multiply, weights) in forms(kernels).items():
        weights = jax.tree.map(jnp.asarray, weights)
        exact = x_H @ kernels[0]
        error = float(jnp.abs(jax.jit(multiply)(x_H, *weights[0]) - exact).max() / jnp.abs(exact).max())
        run = loop(multiply, hidden)
        jax.block_until_ready(run(x_H, weights))
        megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) / 1e6
        runs[name], lowest[name] = (run, weights, megabytes, error), [float("inf")] * 2
    for _ in range(rounds):
        for name, (run, weights, _, _) in runs.items():
            jax.block_until_ready(run(x_H, weights))  # fills the caches
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run(x_H, weights))
            end = time.perf_counter(), time.process_time()
            lowest[name] = [min(low, b - a) for low, a, b in zip(lowest[name], begin, end, strict=True)]
    print(f"{'form':28s} {'MB':>5s} {'error':>8s} {'wall':>8s} {'CPU':>8s}")
    for name, (_, _, megabytes, error) in runs.items():
        wall, cpu = (1e6 * seconds / STEPS for seconds in lowest[name])
        print(f"{name:28s} {megabytes:5.1f} {error:8.1e} {wall:8.1f} {cpu:8.1f}")


if __name__ == "__main__":
    main()
