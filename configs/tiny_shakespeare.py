"""The best recipe known here for tiny Shakespeare, 90/10: two LSTM layers of 512 with dropout, eight epochs.

scripts/train.py --config=configs/tiny_shakespeare.py --workdir=runs/tiny_shakespeare

7 minutes on 2 CPU cores that multiply bfloat16 natively; validation 1.437 nats/char (perplexity 4.21) on 90/10, the whole
split, state carried.
"""

from configs import base


def get_config(arg: str | None = None):
    config = base.get_config(arg)
    config.batch.size = 64
    config.batch.length = 64
    config.model.layers = 2
    config.model.hidden = 512
    config.model.dropout = 0.4
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 4e-3
    config.train.epochs = 8.0
    config.eval.lanes = 128  # the exact figure is that of scripts/evaluate.py
    config.eval.burn_in = 100
    return config
