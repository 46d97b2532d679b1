"""A first model: tiny Shakespeare, one LSTM layer with 256 hidden units, 2 epochs.

    scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Time: 1 min on 2 CPU cores.
Result: validation 1.5020 ± 0.0044 nats/char (perplexity 4.49), mean and standard error of three seeds.
The first 90% of the text is for training, the last 10% is for validation. In validation, the state is carried from the
beginning to the end of the split.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 32
    config.batch.length = 32
    config.model.layers = 1
    config.model.hidden = 256
    config.model.ar = 1.0
    config.optim.learning_rate = 1e-2
    config.optim.warmup_steps = 100
    config.optim.beta2 = 0.99
    config.train.epochs = 2.0
    return config
