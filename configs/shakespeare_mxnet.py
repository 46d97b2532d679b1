"""MXNet.jl's char-lstm: tiny Shakespeare in chunks of 32 chars, embedding of 256, 2 LSTM layers of 256 units, 21 epochs.

    scripts/train.py --config=configs/shakespeare_mxnet.py --workdir=runs/shakespeare_mxnet
    scripts/sample.py --workdir=runs/shakespeare_mxnet --prompt=a --num=10
    scripts/train.py --config=configs/shakespeare_mxnet.py:original --workdir=runs/shakespeare_original

The recurrent state is zero at the start of each chunk.

Time: 13 min on 2 CPU cores.
Result: validation 1.5785 nats/char after 21 epochs. The best validation result is 1.5664 after 15 epochs. If the state is
carried from chunk to chunk in the evaluation (scripts/evaluate.py --framing=stream), the checkpoint after 21 epochs reaches
1.5090, and the checkpoint after 15 epochs reaches 1.4961.

Differences from the original:
- The learning rate falls along a cosine from 0.01 to 0.0001. In the original, the learning rate is always 0.01.
- The chunks are shuffled in each epoch. In the original, the chunks keep the order of the text.

The argument `original`, as in the third command above, removes both differences. The validation result is then 1.6502 nats/char
after 21 epochs. The best validation result is then 1.6318 after 20 epochs.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "original"):
        raise UserError(f"--config=shakespeare_mxnet:{arg}: the argument must be original, or left out.")
    config = base.get_config()
    config.vocab.source = "train"
    config.vocab.unknown = True
    config.batch.framing = "chunks"
    config.batch.size = 32
    config.batch.length = 32
    config.batch.shuffle = arg != "original"
    config.model.embedding = 256
    config.model.hidden = 256
    config.model.init = "uniform"
    config.model.forget_bias = 0.0
    # MXNet's gradient is the sum over the 32 characters of a chunk. The gradient of charlm is the mean over these characters,
    # so it is 32 times smaller. We therefore divide three values of MXNet by 32: the clipping bound 1, the weight decay 1e-5
    # and the eps 1e-8.
    config.optim.learning_rate = 0.01
    config.optim.schedule = "constant" if arg == "original" else "cosine"
    config.optim.eps = 1e-8 / 32
    config.optim.eps_form = "keras"
    config.optim.clip_norm = 0.0
    config.optim.clip_value = 1 / 32
    config.optim.weight_decay = 1e-5 / 32
    config.optim.decay_biases = True
    config.train.epochs = 21.0
    config.train.log_every = 200
    config.sample.length = 100
    config.sample.temperature = 1.0
    return config
