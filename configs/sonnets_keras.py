"""The Keras notebook after Brownlee: Shakespeare's sonnets in windows of 100, the id as one number, 4 x LSTM 256, 30 epochs.

    scripts/train.py --config=configs/sonnets_keras.py --workdir=runs/sonnets_keras [--config.corpus.path=FILE]
    scripts/sample.py --workdir=runs/sonnets_keras --prompt_from=train
    scripts/train.py --config=configs/sonnets_keras.py:original --workdir=runs/sonnets_original

Time: 2 h 27 min on 2 CPU cores.
Result: training loss 1.8896 after 9 epochs and 1.3523 after 30, on a text that was put together after the notebook's.

Text: without corpus.path, the edition in a package of the Python Package Index, 93,718 characters of 39 symbols. The
notebook's text has 94,630 characters of 48 symbols, among them digits and brackets. Only losses on that text compare with the
notebook's. experiments/2026-11-22-recipes says what is known of it.

Differences from the original: its initial weights, and its learning rate, which stays at 0.001. Here the rate falls to a
hundredth in the last five epochs. The argument `original` selects the original's weights and rate. Glorot's weights for the
single input are so small that the loss stays at that of single characters, 3.03, for about an epoch. LeCun's, used here, leave
it after 250 steps.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "original"):
        raise UserError(f"--config=sonnets_keras:{arg}: the argument must be original, or left out.")
    config = base.get_config()
    config.corpus.name = "sonnets"
    config.corpus.split = (1.0,)
    config.corpus.lowercase = True
    config.batch.framing = "windows"
    config.batch.size = 64
    config.batch.length = 100
    config.model.input = "scalar"
    config.model.layers = 4
    config.model.hidden = 256
    config.model.dropout = 0.2
    config.model.init = "glorot" if arg == "original" else "orthogonal"
    config.model.dtype = "bfloat16"  # of matrix products; faster on processors with native bfloat16
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant" if arg == "original" else "trapezoid"
    config.optim.decay_steps = 7_385  # the last 5 epochs; with a cosine over all epochs the loss ends at 1.4532
    config.optim.eps = 1e-7
    config.optim.eps_form = "keras"
    config.optim.clip_norm = 0.0
    config.train.epochs = 30.0
    config.train.best = "train"
    config.sample.length = 200
    config.sample.temperature = 0.0
    return config
