"""A Keras notebook based on Brownlee's: Shakespeare's sonnets in windows of 100 characters, 4 LSTM layers of 256, 30 epochs.

    scripts/train.py --config=configs/sonnets_keras.py --workdir=runs/sonnets_keras [--config.corpus.path=FILE]
    scripts/sample.py --workdir=runs/sonnets_keras --prompt_from=train
    scripts/train.py --config=configs/sonnets_keras.py:original --workdir=runs/sonnets_original

The input of the network is one number per character, made from the id of the character.

Time: 2 h 27 min on 2 CPU cores.
Result: training loss 1.8896 after 9 epochs and 1.3523 after 30 epochs. The text was rebuilt from the notebook's description.

Text: Without corpus.path, the recipe uses an edition from the Python Package Index. It has 93,718 characters of 39 symbols. The
notebook's text has 94,630 characters of 48 symbols, which include digits and brackets. Losses on these two texts can't be
compared. The result above was measured on a text that we rebuilt from the notebook's description; see
experiments/2026-11-22-recipes.

Differences from the original:
- The learning rate falls from 0.001 to 0.00001 in the last five epochs. The original keeps 0.001.
- The initial weights are LeCun's. The original uses Glorot's, which are very small for a layer with a single input. With
  Glorot's weights, the loss therefore stays for about an epoch at 3.03, the entropy of single characters. With LeCun's weights,
  the loss stays at this value for only 250 steps.

The argument `original` selects the original's weights and learning rate.
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
    config.model.init = "glorot" if arg == "original" else "orthogonal"  # orthogonal: LeCun's weights for the inputs
    config.model.dtype = "bfloat16"  # for matrix products; faster on processors with native bfloat16
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant" if arg == "original" else "trapezoid"
    config.optim.decay_steps = 7_385  # the last 5 epochs; a cosine over all epochs gave a loss of 1.4532
    config.optim.eps = 1e-7
    config.optim.eps_form = "keras"
    config.optim.clip_norm = 0.0
    config.train.epochs = 30.0
    config.train.best = "train"
    config.sample.length = 200
    config.sample.temperature = 0.0
    return config
