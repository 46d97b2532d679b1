"""The Keras notebook after Brownlee: Shakespeare's sonnets, windows of 100, the id as one number, 4 x LSTM 256, 30 epochs.

scripts/train.py --config=configs/sonnets_keras.py --workdir=runs/sonnets_keras
scripts/train.py --config=configs/sonnets_keras.py:FILE --workdir=runs/sonnets_keras

Without an argument on the edition that a package of the index carries (93,718 chars); the notebook's (94,630) is an argument.
"""

from configs import base


def get_config(arg: str | None = None):
    config = base.get_config()
    config.corpus.name = "sonnets"
    config.corpus.path = arg
    config.corpus.split = (1.0,)
    config.corpus.lowercase = True
    config.batch.framing = "windows"
    config.batch.size = 64
    config.batch.length = 100
    config.model.input = "scalar"
    config.model.layers = 4
    config.model.hidden = 256
    config.model.dropout = 0.2
    config.model.init = "glorot"
    config.model.dtype = "bfloat16"  # of products only; faster where the processor multiplies it natively
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.eps = 1e-7
    config.optim.eps_form = "keras"
    config.optim.clip_norm = 0.0
    config.train.epochs = 30.0
    config.train.best = "train"
    config.sample.length = 200
    config.sample.temperature = 0.0
    return config
