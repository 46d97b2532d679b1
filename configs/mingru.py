"""The minGRU and the minLSTM (Feng et al. 2024, arXiv:2410.01201) on tiny Shakespeare: 3 blocks of 384 units.

    scripts/train.py --config=configs/mingru.py --workdir=runs/mingru
    scripts/train.py --config=configs/mingru.py:minlstm --workdir=runs/minlstm

Published: 1.548 nats/char (minGRU) and 1.555 nats/char (minLSTM) on random windows of the last tenth of the text.
Result: not measured yet; see experiments/2026-11-28-cells/min.md.

A block consists of RMSNorm, the cell and a skip connection, followed by a second RMSNorm, a feed-forward network (MLP) and a
second skip connection.

Differences from the published network and training:
- The public code also has a convolution over 4 characters before each cell, its cells are wider than its blocks,
  and its feed-forward network has four times the units of the block. Here it has twice the units.
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
    config.model.layers = 3
    config.model.hidden = 384
    config.model.embedding = 384
    config.model.residual = True
    config.model.norm = True
    config.model.mlp = 2
    config.model.dropout = 0.3
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 4e-3
    config.optim.warmup_steps = 50
    config.train.epochs = 10.0
    config.eval.lanes = 16  # approximates the loss during training; scripts/evaluate.py computes it exactly
    return config
