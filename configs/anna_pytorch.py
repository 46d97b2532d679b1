"""The PyTorch CharRNN of Udacity's course: Anna Karenina in 128 lanes, one-hot, 2 x LSTM 512 with dropout 0.5, 20 epochs.

scripts/train.py --config=configs/anna_pytorch.py --workdir=runs/anna_pytorch
scripts/sample.py --workdir=runs/anna_pytorch
scripts/train.py --config=configs/anna_pytorch.py:original --workdir=runs/anna_original

All is as in the original but the number type of products and the learning rate, which rises to 0.003 and falls to a hundredth
of that by a cosine instead of staying at 0.001: validation 1.4091 after 5 epochs, 1.2976 after 20, best 1.2928 after 17, in 36
minutes on 2 CPU cores with other work beside. The argument `original` leaves the rate there: 1.5912 after 5 epochs, 1.3146
after 20. All on the whole validation text; the original leaves out the last 6,523 characters of it, which are licence, and so
scores some 0.03 less: experiments/2026-11-22-recipes.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "original"):
        raise UserError(f"configs/anna_pytorch.py:{arg}: the argument is 'original', for a constant rate, or nothing.")
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
    config.model.dtype = "bfloat16"  # of products only; faster where the processor multiplies it natively
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
    config.eval.lanes = 16  # the exact figure is that of scripts/evaluate.py
    return config
