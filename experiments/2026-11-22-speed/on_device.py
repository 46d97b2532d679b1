"""Compares batches that the host cuts, as in scripts/train.py, with batches cut on the device from the corpus.

    .venv/bin/python experiments/2026-11-22-speed/on_device.py [rounds]

Each call makes several steps in float32. The two forms train on the same batches in turn. For every shape of the benchmark, the
script prints the median milliseconds per step of the two forms, and the ratio of the two medians.
"""

import os
import pathlib
import statistics
import sys
import time

from charlm.config import load as config
from charlm.hardware import devices

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parents[2] / "scripts"))

from peers import measuring

STEPS = {"S": 100, "M": 100, "L": 4}  # steps of one measurement


def main() -> None:
    devices.use_huge_pages()
    devices.prepare_cpu(config.defaults(), measuring.SHAPES["S"].batch)
    for name in measuring.SHAPES:
        measure(name, int(sys.argv[1]) if len(sys.argv) > 1 else 5)


def measure(name: str, rounds: int) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from charlm.data import batches
    from charlm.data.framing import Framing
    from charlm.data.ids import Encoded
    from charlm.models import stack
    from charlm.training import optim, setup, state
    from charlm.training import step as step_module

    shape, keys = measuring.SHAPES[name], config.defaults()
    keys.model.update({"layers": shape.layers, "hidden": shape.hidden, "embedding": shape.embedding or 1})
    keys.model.input = "embedding" if shape.embedding else "onehot"
    keys.batch.update({"size": shape.batch, "length": shape.length, "shift": False})
    ids_N = np.random.default_rng(0).integers(0, measuring.VOCAB, 1_000_000).astype(np.uint8)
    framing = Framing.of(keys)
    stream = batches.training_batches(framing, Encoded(ids_N), seed=0)
    functions, optimizer = stack.functions(keys, measuring.VOCAB), optim.optimizer(keys, 1)
    mesh = devices.mesh(shape.batch, 0)
    train_step = step_module.make_train_step(functions, optimizer, mesh)
    together = setup.steps_per_call(0, framing, functions)
    rate, seed = np.float32(keys.optim.learning_rate), np.uint32(0)
    lane = stream.steps_per_epoch * shape.length

    def cut(ids_N, step):
        at = step % stream.steps_per_epoch
        places_BT = (at * shape.length + jnp.arange(shape.batch) * lane)[:, None] + jnp.arange(shape.length + 1)[None, :]
        window_BT = jnp.take(ids_N, places_BT).astype(jnp.int32)
        ones_BT = jnp.ones((shape.batch, shape.length))
        return batches.Batch(window_BT[:, :-1], window_BT[:, 1:], ones_BT, jnp.full(shape.batch, at == 0))

    jax.tree.map(np.testing.assert_array_equal, jax.jit(cut)(ids_N, 7), stream.batch_at(7))

    def from_device(now, ids_N):
        return jax.lax.scan(lambda now, _: train_step(now, cut(ids_N, now.step), rate, seed), now, length=together)

    initial = jax.jit(lambda: state.initial_state(functions, optimizer, shape.batch, 0))
    stacked, on_device = (jax.jit(form, donate_argnums=0) for form in (step_module.several(train_step), from_device))
    corpus = jax.device_put(ids_N, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def host(now, first):
        each = [stream.batch_at(first + number) for number in range(together)]
        return stacked(now, jax.tree.map(lambda *leaves: np.stack(leaves), *each), np.full(together, rate), seed)

    forms = {"host": host, "device": lambda now, first: on_device(now, corpus)}
    states = {form: state.placed(initial(), mesh) for form in forms}
    milliseconds = {form: [] for form in forms}
    done, calls = 0, STEPS[name] // together
    for number in range(rounds + 1):
        for form, call in forms.items():
            begin, before = time.perf_counter(), None
            for first in range(done, done + calls * together, together):
                states[form], metrics = call(states[form], first)
                if before is not None:  # as in the training loop: read the previous metrics while this call runs
                    jax.device_get(before)
                before = metrics
            jax.block_until_ready(states[form])
            if number:  # round 0 compiles, so its time is not used
                milliseconds[form].append(1000 * (time.perf_counter() - begin) / (calls * together))
        done += calls * together
    host_ms, device_ms = (statistics.median(milliseconds[form]) for form in forms)
    print(f"{name}, {together} steps a call: host {host_ms:.2f} ms, device {device_ms:.2f} ms, ratio {host_ms / device_ms:.3f}")


if __name__ == "__main__":
    main()
