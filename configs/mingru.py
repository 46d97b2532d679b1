"""The minGRU and the minLSTM (Feng et al. 2024, arXiv:2410.01201) on tiny Shakespeare: 3 layers of 384 units.

    scripts/train.py --config=configs/mingru.py --workdir=runs/mingru
    scripts/train.py --config=configs/mingru.py:minlstm --workdir=runs/minlstm

Published: 1.548 nats/char (minGRU) and 1.555 nats/char (minLSTM) on random windows of the last tenth of the text.
Result: the published losses are not reached. With `--config.train.epochs=3`, the minGRU has a validation loss of 1.6505
nats/char after 3 min 26 s on 2 busy CPU cores. All 10 epochs have not been trained, and the minLSTM has not been trained with
this config: see experiments/2026-11-28-cells/min.md.

Differences from the published network and training:
- A layer of the paper is a block of several parts, with a dense network (MLP), skip connections and normalisation around the
  cell. Here a layer is the cell alone.
- The paper trains in the framework of nanoGPT, on random windows that begin with the zero state. Here the text is read in
  streams that carry their state, in small batches. The learning rate is ours.
- Dropout is 0.1 instead of 0.2.
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
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 1e-2
    config.optim.warmup_steps = 50
    config.train.epochs = 10.0
    config.eval.lanes = 16  # approximates the loss during training; scripts/evaluate.py computes it exactly
    return config
