"""The PyTorch CharRNN of Udacity's course: Anna Karenina in 128 lanes, one-hot, 2 LSTM layers of 512, dropout 0.5, 20 epochs.

    scripts/train.py --config=configs/anna_pytorch.py --workdir=runs/anna_pytorch
    scripts/sample.py --workdir=runs/anna_pytorch
    scripts/train.py --config=configs/anna_pytorch.py:original --workdir=runs/anna_original

Time: 36 min on 2 CPU cores that did other work too.
Result: validation 1.4091 nats/char after 5 epochs, 1.2976 after 20, best 1.2928 after 17.

Differences from the original: matrix products use bfloat16, and the learning rate rises to 0.003 and falls by a cosine to a
hundredth of that, instead of staying at 0.001. With the argument `original` the rate stays at 0.001: 1.5912 after 5 epochs,
1.3146 after 20.

All figures are for the whole validation text. The original leaves out its last 6,523 characters, which are a licence, and so
scores about 0.03 less: see experiments/2026-11-22-recipes.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "original"):
        raise UserError(f"--config=anna_pytorch:{arg}: the argument must be original, or left out.")
    config = base.get_config()
    config.corpus.name = "anna"
    config.vocab.source = "corpus"
    config.batch.size = 128
    config.batch.length = 100
    config.batch.shift = False
    config.model.input = "onehot"
    config.model.hidden = 512
    config.model.dropout = 0.5
    config.model.init = "pytorch"
    config.model.head_scale = 1.0
    config.model.forget_bias = 0.0
    config.model.dtype = "bfloat16"  # of matrix products; faster on processors with native bfloat16
    if arg == "original":
        config.optim.learning_rate = 1e-3
        config.optim.schedule = "constant"
    else:
        config.optim.learning_rate = 3e-3
        config.optim.warmup_steps = 50
    config.optim.clip_norm = 5.0
    config.train.epochs = 20.0
    config.sample.prompt = "Anna"
    config.sample.length = 1000
    config.sample.temperature = 1.0
    config.sample.top_k = 5
    config.eval.lanes = 16  # approximate; scripts/evaluate.py computes the exact figure
    return config
