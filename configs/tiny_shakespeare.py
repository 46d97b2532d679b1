"""Tiny Shakespeare: 2 LSTM layers of 512 units with activation regularisation, 3 epochs.

    scripts/train.py --config=configs/tiny_shakespeare.py --workdir=runs/tiny_shakespeare

Time: 4 min on 2 CPU cores with native bfloat16.
Result: validation 1.4023 ± 0.0004 nats/char (perplexity 4.06), mean and standard error of three seeds.
The first 90 % of the text are for training, the last 10 % for validation. The state is carried through the whole validation
split.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 32
    config.batch.length = 64
    config.model.layers = 2
    config.model.hidden = 512
    config.model.ar = 2.0
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 4e-3
    config.train.epochs = 3.0
    config.eval.lanes = 128  # approximates the loss during training; scripts/evaluate.py computes it exactly
    config.eval.burn_in = 100
    return config
