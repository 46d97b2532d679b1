"""Measures the speed of charlm's training step, evaluation or sampler, for scripts/benchmark.py.

The docstring of worker.py describes the input and output of this program. The training step, the evaluation and the sampler are
built from a config, with the same functions that the programs `charlm train`, `charlm evaluate` and `charlm sample` use.
"""

import os
import pathlib
import sys

import worker

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, os.fspath(ROOT))


def config_of(job: dict):
    from charlm.config import load as config

    overrides = {
        "model.cell": job.get("cell", "lstm"),
        "model.layers": job["layers"],
        "model.hidden": job["hidden"],
        "model.input": "embedding" if job["embedding"] else "onehot",
        "model.embedding": job["embedding"] or 1,
        "model.dtype": job["dtype"],
        "model.precision": job.get("precision", "tf32"),
        "model.kernel": job.get("kernel", "auto"),
        "model.unroll": job.get("unroll", 1),
        "command_buffers": job.get("command_buffers", False),
        "batch.size": job["batch"],
        "batch.length": job["length"],
        "devices": job.get("devices", 0),
        "train.steps": 1_000_000,
    }
    return config.load(os.fspath(ROOT / "configs/base.py"), {key: str(value) for key, value in overrides.items()})


def main() -> None:
    job = worker.job()
    config = config_of(job)
    from charlm.hardware import devices

    rows = job["batch"]
    if job["task"] == "train":
        devices.use_huge_pages()
    elif job["task"] == "sample":
        from charlm.models import stack

        rows = devices.rows_to_share(config, stack.layer_operations(config), rows, job["dtype"])
    devices.prepare(config, rows)
    {"train": train, "evaluate": evaluate, "sample": sample}[job["task"]](job, config, rows)


def train(job: dict, config, rows: int) -> None:
    import jax
    import numpy as np

    from charlm.data import batches
    from charlm.data.framing import Framing
    from charlm.data.ids import Encoded
    from charlm.hardware import devices
    from charlm.models import stack
    from charlm.training import optim, setup
    from charlm.training import state as state_module
    from charlm.training.step import make_train_step, several

    del rows
    ids_N = np.random.default_rng(0).integers(0, job["vocab"], 1_000_000).astype(np.uint8)
    framing = Framing.of(config)
    data = batches.training_batches(framing, Encoded(ids_N), seed=0)
    functions, optimizer = stack.functions(config, job["vocab"]), optim.optimizer(config, 1)
    mesh = devices.mesh(data.rows, devices.wanted(config))
    step = jax.jit(several(make_train_step(functions, optimizer, mesh)), donate_argnums=0)
    together = setup.steps_per_call(config.train.steps_per_call, framing, functions)
    rates = optim.rates(optim.schedule(config, 1_000_000, data.steps_per_epoch))
    initial = jax.jit(lambda: state_module.initial_state(functions, optimizer, data.rows, 0))
    state, done = state_module.placed(initial(), mesh), 0

    def run(steps: int) -> int:
        nonlocal state, done
        metrics = None
        for _ in range(-(-steps // together)):
            previous = metrics
            batches_K = jax.tree.map(lambda *each: np.stack(each), *(data.batch_at(done + k) for k in range(together)))
            state, metrics = step(state, batches_K, rates(done, together), np.uint32(0))
            done += together
            if previous is not None:  # read a call's metrics during the next call, as charlm train does
                jax.device_get(previous)
        jax.block_until_ready((state, metrics))
        return -(-steps // together) * together * data.rows * framing.length

    def peak_device_bytes() -> int | None:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    worker.serve(run, peak_device_bytes, devices=mesh.size, parameters=stack.parameter_count(state.params))


def evaluate(job: dict, config, rows: int) -> None:
    import jax
    import numpy as np

    from charlm.data.ids import Encoded
    from charlm.hardware import devices
    from charlm.inference.evaluate import evaluator
    from charlm.inference.protocol import Protocol
    from charlm.models import stack

    functions = stack.functions(config, job["vocab"])
    params = jax.jit(functions.init)(jax.random.key(0))
    mesh = devices.mesh(rows, devices.wanted(config))
    protocol = Protocol.of_run(config, lanes=rows)._replace(length=job["length"], burn_in=0)
    score, ids_N = evaluator(functions, mesh), np.random.default_rng(0).integers(0, job["vocab"], 1_000_000).astype(np.uint8)

    def run(windows: int) -> int:
        text_N = np.resize(ids_N, windows * job["length"] * rows + 1)
        return score(params, Encoded(text_N), protocol)[1]

    worker.serve(run, devices=mesh.size, parameters=stack.parameter_count(params))


def sample(job: dict, config, rows: int) -> None:
    import jax
    import numpy as np

    from charlm.data.vocab import Vocab
    from charlm.hardware import devices
    from charlm.inference import sample
    from charlm.models import stack

    functions = stack.functions(config, job["vocab"])
    params = jax.jit(functions.init)(jax.random.key(0))
    mesh = devices.mesh(rows, devices.wanted(config))
    generate = sample.sampler(functions, Vocab("".join(map(chr, range(job["vocab"])))), mesh=mesh)
    drawn = 0

    def run(chunks: int) -> int:
        nonlocal drawn
        drawn += 1
        key = jax.random.fold_in(jax.random.key(0), drawn)
        pieces = generate(params, np.zeros(1, np.uint8), job["batch"], chunks * sample.CHUNK, 0.8, key)
        return sum(piece.size for piece in pieces)

    worker.serve(run, devices=mesh.size, parameters=stack.parameter_count(params))


if __name__ == "__main__":
    main()
