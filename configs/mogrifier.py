"""The Mogrifier LSTM (Melis et al. 2020, arXiv:1909.01792) on tiny Shakespeare: 2 layers of 512 units, 5 rounds of rank 40.

    scripts/train.py --config=configs/mogrifier.py --workdir=runs/mogrifier

Result: 1.4308 nats/char (2.0641 bits/char) on the last tenth of the text, with the carried state.
Time: 38 min on 2 CPU cores.

Published: 1.120 bits/char on the characters of Penn Treebank, with 24 million parameters and 100,000 steps.
Differences from the published training:
- The text is tiny Shakespeare. The training has 16 epochs and a learning rate that falls along a cosine.
- There are 5 rounds of rank 40 instead of 4 rounds of rank 24, and the state is never set to zero at random. In the published
  training, this happens with a probability of 0.01.
- The two layers have 512 units instead of about 1,200. A batch has 64 rows of 100 characters instead of 64 rows of 150.
- The published training drops a fraction of 0.17 of the recurrent state. Here, weight drop drops the same fraction of the
  recurrent kernel. The other dropout rates are larger than the published rates, because the text is smaller: 0.3 before the
  first layer, between layers and before the head.
- The head reads the output of the last layer, not the sum of the outputs of all layers. The published code limits the input
  gate to at most 1 - f, where f is the forget gate. The cell of charlm has no such limit.
- There is no L2 regularisation. The average of the weights is the plain mean over the last fifth of the steps.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch.size = 64
    config.batch.length = 100
    config.model.cell = "mogrifier_lstm"
    config.model.mogrifier_rounds = 5
    config.model.mogrifier_rank = 40
    config.model.layers = 2
    config.model.hidden = 512
    config.model.dropout_kind = "variational"
    config.model.dropout = 0.3
    config.model.dropout_input = 0.3
    config.model.weight_drop = 0.17
    config.model.dtype = "bfloat16"
    config.optim.beta1 = 0.0
    config.optim.clip_norm = 10.0
    config.optim.learning_rate = 3.74e-3
    config.optim.average = "tail"
    config.optim.average_last = 0.2
    config.train.epochs = 16.0
    config.eval.lanes = 128  # approximates the loss during training; scripts/evaluate.py computes it exactly
    config.eval.burn_in = 100
    return config
