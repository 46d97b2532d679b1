"""The Axon notebook: Alice in Wonderland, windows of 100, the id as one number, LSTM 256, 20 epochs.

scripts/train.py --config=configs/alice_axon.py --workdir=runs/alice_axon
scripts/sample.py --workdir=runs/alice_axon
scripts/train.py --config=configs/alice_axon.py:2 --workdir=runs/alice_axon_2

Training loss 1.9051 after 20 epochs, 4 min 10 s to 4 min 40 s each, with `--config.model.dtype=float32` on 2 CPU cores without
AVX-512. The argument 2 is the notebook's second variant: 2 x LSTM 256, batch 64, 50 epochs. The sample is greedy, from the
notebook's prompt. The order of the windows and the initial weights are the notebook's too. What differs: the text is the book
alone, without Project Gutenberg's header and licence; every window begins at the zero state, where Axon draws a random one;
products are rounded to bfloat16; and the last batch of an epoch is short, where Nx fills it up.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "1", "2"):
        raise UserError(f"configs/alice_axon.py:{arg}: the argument is the number of layers, 1 or 2.")
    config = base.get_config()
    config.corpus.name = "alice"
    config.corpus.split = (1.0,)
    config.corpus.lowercase = True
    config.corpus.keep = "abcdefghijklmnopqrstuvwxyz .\n"
    config.batch.framing = "windows"
    config.batch.size = 64 if arg == "2" else 128
    config.batch.length = 100
    config.batch.shuffle = False
    config.model.input = "scalar"
    config.model.layers = 2 if arg == "2" else 1
    config.model.hidden = 256
    config.model.dropout = 0.2
    config.model.init = "axon"
    config.model.forget_bias = 0.0
    config.model.dtype = "bfloat16"  # of products only; faster where the processor multiplies it natively
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.clip_norm = 0.0
    config.train.epochs = 50.0 if arg == "2" else 20.0
    config.train.best = "train"
    config.sample.prompt = (
        "not like to drop the jar for fear\nof killing somebody underneath so managed to put it into one of the\n"
        "cupboards as she fell past it."
    )
    config.sample.length = 100
    config.sample.temperature = 0.0
    return config
