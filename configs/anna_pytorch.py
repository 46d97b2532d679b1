"""The PyTorch CharRNN of Udacity's course: Anna Karenina, 2 LSTM layers of 512, 20 epochs.

    scripts/train.py --config=configs/anna_pytorch.py --workdir=runs/anna_pytorch
    scripts/sample.py --workdir=runs/anna_pytorch
    scripts/train.py --config=configs/anna_pytorch.py:original --workdir=runs/anna_original

The text is cut into 128 pieces (lanes), which are read in parallel. The input is one-hot, and dropout is 0.5.

Time: 36 min on 2 CPU cores, on which other programs ran at the same time.
Result: validation 1.4091 nats/char after 5 epochs, 1.2976 after 20 epochs. The lowest loss is 1.2928 after 17 epochs.

Differences from the original:
- Matrix products use bfloat16.
- The learning rate rises to 0.003 and then falls along a cosine to 0.00003. The learning rate of the original is always
  0.001. With the argument `original`, this config also uses 0.001. Validation is then 1.5912 nats/char after 5 epochs and
  1.3146 after 20 epochs.

All losses above are measured on the whole validation text. The original leaves out the last 6,523 characters of this text,
which are a licence and hard to predict. A loss measured as in the original is therefore about 0.03 lower: see
experiments/2026-11-22-recipes.
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
    config.model.dtype = "bfloat16"  # for matrix products; faster on processors that multiply bfloat16 natively
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
    config.eval.lanes = 16  # validation during training is approximate; scripts/evaluate.py computes the exact loss
    return config
