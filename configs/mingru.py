"""The minGRU and the minLSTM (Feng et al. 2024, arXiv:2410.01201) on tiny Shakespeare: 6 blocks of 256 units.

    scripts/train.py --config=configs/mingru.py --workdir=runs/mingru
    scripts/train.py --config=configs/mingru.py:minlstm --workdir=runs/minlstm

Published: 1.548 nats/char (minGRU) and 1.555 nats/char (minLSTM), on random windows of 256 characters of the last tenth.
Result: 1.5381 and 1.5344 nats/char on consecutive windows of 256 characters of the last tenth, each from the zero state, and
1.5009 and 1.4947 nats/char on the whole last tenth with the carried state (experiments/2026-11-28-cells/min.md).
Time: 17 min 31 s and 18 min 41 s on 2 CPU cores.

A block consists of RMSNorm, the cell and a skip connection, followed by a second RMSNorm, a feed-forward network (MLP) and a
second skip connection.

Differences from the published network and training:
- The published network has 3 blocks of 384 units. The public code also has a convolution over 4 characters before each cell,
  and its cells are wider than its blocks.
- The paper trains in the framework of nanoGPT, on random windows that begin with the zero state. Here the text is read in
  streams that carry their state, in small batches. We chose the learning rate ourselves.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "minlstm"):
        raise UserError(f"--config=mingru:{arg}: the argument must be minlstm, or left out.")
    config = base.get_config()
    config.batch.size = 16
    config.batch.length = 128
    config.model.cell = arg or "mingru"
    config.model.layers = 6
    config.model.hidden = 256
    config.model.embedding = 256
    config.model.residual = True
    config.model.norm = True
    config.model.mlp = 4
    config.model.dropout = 0.2
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 50
    config.train.epochs = 6.0
    config.eval.lanes = 16  # approximates the loss during training; scripts/evaluate.py computes it exactly
    return config
