"""Measures the training speed of scripts/train.py and of a loop with Flax's LSTM, in turn on one machine.

    .venv/bin/python experiments/2026-11-22-first-figures/train_against_flax.py [rounds]

Shapes: S = 2 x 128, batch 50 x 50; M = 2 x 256, batch 32 x 32; L = 2 x 512, batch 128 x 100. The Flax loop has the same
embedding, head, carried state, donated arguments and data. It has the same optimiser: global-norm clip, then Adam. The Flax
loop does not log or evaluate. The figure of scripts/train.py is the median of `chars_per_second` in its log. The figure of the
Flax loop is the median over its steps.
"""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {"S": (128, 50, 50, 60), "M": (256, 32, 32, 60), "L": (512, 128, 100, 8)}  # hidden, batch, length, steps
ROOT = pathlib.Path(__file__).parents[2]


def script_rate(hidden: int, batch: int, length: int, steps: int) -> float:
    keys = {
        "model.hidden": hidden,
        "model.embedding": hidden,
        "batch.size": batch,
        "batch.length": length,
        "train.steps": steps,
        "train.log_every": max(1, steps // 8),
        "train.checkpoint_every": 0,
        "sample.length": 0,
        "eval.lanes": 16,
    }
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        command = [sys.executable, os.fspath(ROOT / "scripts/train.py"), f"--config={ROOT / 'configs/base.py'}", *flags]
        subprocess.run([*command, f"--workdir={workdir}"], check=True, stdout=subprocess.DEVNULL)
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return statistics.median(row["chars_per_second"] for row in rows if row["split"] == "train")


def flax_rate(hidden: int, batch: int, length: int, steps: int) -> float:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, inputs_BT, carry):
            x, new = nn.Embed(65, hidden)(inputs_BT), []
            for state in carry:
                state, x = nn.RNN(nn.OptimizedLSTMCell(hidden), return_carry=True)(x, initial_carry=state)
                new.append(state)
            return nn.Dense(65)(x), new

    model, optimizer = Stack(), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    carry = [(jnp.zeros((batch, hidden)), jnp.zeros((batch, hidden))) for _ in range(2)]
    ids = np.random.default_rng(0).integers(0, 65, (steps + 1, batch, length + 1)).astype(np.int32)
    params = model.init(jax.random.key(0), ids[0, :1, :1], jax.tree.map(lambda leaf: leaf[:1], carry))

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, window_BT):
        params, opt_state, carry = state

        def loss(params):
            logits, new = model.apply(params, window_BT[:, :-1], carry)
            return optax.softmax_cross_entropy_with_integer_labels(logits, window_BT[:, 1:]).mean(), new

        grads, carry = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carry

    state = jax.block_until_ready(train_step((params, optimizer.init(params), carry), ids[0]))
    seconds = []
    for window_BT in ids[1:]:
        begin = time.perf_counter()
        state = jax.block_until_ready(train_step(state, window_BT))
        seconds.append(time.perf_counter() - begin)
    return batch * length / statistics.median(seconds)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for name, shape in SHAPES.items():
        pairs = []
        for _ in range(rounds):
            here = pathlib.Path(__file__)
            code = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as m; print(m.flax_rate{shape})"
            flax = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            pairs.append((script_rate(*shape), float(flax.stdout)))
        mine, flax = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"{name}: script {mine:,.0f} chars/s, Flax loop {flax:,.0f} chars/s, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
