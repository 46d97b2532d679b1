"""The AWD-LSTM of Merity et al. (2018, arXiv:1803.08240) for tiny Shakespeare: 3 LSTM layers, weight drop 0.5.

    scripts/train.py --config=configs/awd_lstm.py --workdir=runs/awd_lstm

Result: 1.5004 nats/char (2.1646 bits/char) on the last tenth of the text, with the carried state.
Time: 1 h 08 min on 2 CPU cores.

Published: 1.175 bits/char on the characters of Penn Treebank. With this much regularisation, 40 epochs seem to be too few: the
training loss of the last epoch is 1.3740 nats. A 2 x LSTM 512 with plain dropout of 0.4 reaches a validation loss of 1.4367
nats in 8 epochs, with a training loss of 1.24 nats.

The dropout, the weight drop, Adam's learning rate, the window of 150 characters and the schedule are taken from the paper's
training on the characters of Penn Treebank. The learning rate is divided by 10 after 60 % and after 80 % of the training. The
penalties AR and TAR are 0, as in the paper's recipes for characters.

Differences from the original:
- The first two layers have 512 units instead of 1000, and the training has 40 epochs instead of 500, so that the training
  takes about an hour on 2 CPU cores. As in the original, the last layer is as wide as the embedding (200), and the head uses
  the weights of the embedding.
- A batch has 64 rows instead of 128, so that the 40 epochs have twice as many steps.
- Every window has 150 characters. In the original, the length of a window varies at random.
- The initial weights and the clipping of the gradient are charlm's defaults, and there is no weight decay.
- Matrix products use bfloat16.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 64
    config.batch.length = 150
    config.model.embedding = 200
    config.model.layers = 3
    config.model.widths = (512, 512, 200)
    config.model.tie = True
    config.model.dropout_kind = "variational"
    config.model.dropout_input = 0.1
    config.model.dropout_hidden = 0.25
    config.model.dropout_output = 0.1
    config.model.weight_drop = 0.5
    config.model.dtype = "bfloat16"
    config.optim.learning_rate = 2e-3
    config.optim.schedule = "step"
    config.optim.decay_rate = 0.1
    config.optim.decay_after = 24.0
    config.optim.decay_epochs = 8.0
    config.train.epochs = 40.0
    config.eval.lanes = 128  # approximates the loss during training; scripts/evaluate.py computes it exactly
    config.eval.burn_in = 100
    return config
