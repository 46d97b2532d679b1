"""Prints a digest of the program of the LSTM's training step, before XLA compiles it, for the sizes S, M and L.

    PYTHONPATH=CHECKOUT python experiments/2026-11-28-cells/program.py

CHECKOUT is the root of a checkout of charlm, such as the folder that `git worktree add --detach CHECKOUT 840b25f` makes. If two
checkouts print the same digests, they train with the same programs, and so at the same speed.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from charlm.data.batches import Batch
from charlm.models import stack
from charlm.training import optim, step
from configs import base

SHAPES = {"S": ("onehot", 128, 50, 50), "M": ("embedding", 256, 32, 32), "L": ("onehot", 512, 128, 100)}


def program(inputs: str, hidden: int, rows: int, length: int, dtype: str) -> str:
    config = base.get_config()
    config.model.update({"dtype": dtype, "layers": 2, "hidden": hidden, "input": inputs, "embedding": 256})
    functions, optimizer = stack.functions(config, 65), optim.optimizer(config, 1)
    params = jax.eval_shape(functions.init, jax.random.key(0))
    ids_BT = np.zeros((rows, length), np.int32)
    batch = Batch(ids_BT, ids_BT, np.ones((rows, length), np.float32), np.zeros(rows, bool))
    state = step.TrainState(jnp.int32(0), params, jax.eval_shape(optimizer.init, params), functions.zero_carry(rows))
    train_step = step.make_train_step(functions, optimizer, Mesh(np.array(jax.devices()[:1]), ("rows",)))
    return jax.jit(train_step, donate_argnums=0).trace(state, batch, np.float32(1), np.uint32(0)).lower().as_text()


def main() -> None:
    for dtype in ("float32", "bfloat16"):
        for name, shape in SHAPES.items():
            print(dtype, name, hashlib.sha256(program(*shape, dtype).encode()).hexdigest()[:16])


if __name__ == "__main__":
    main()
