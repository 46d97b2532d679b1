"""The notebook of Axon, an Elixir library: Alice in Wonderland in windows of 100 characters, LSTM with 256 units, 20 epochs.

    scripts/train.py --config=configs/alice_axon.py --workdir=runs/alice_axon
    scripts/sample.py --workdir=runs/alice_axon
    scripts/train.py --config=configs/alice_axon.py:2 --workdir=runs/alice_axon_2

The network reads the id of each character as one number. `:2` after the file name selects the notebook's second variant: two
LSTM layers with 256 units each, batches of 64 windows, 50 epochs. Samples start from the notebook's prompt and always take the
most probable character. As in the notebook, the windows keep the order of the text. The initial weights also have the
distribution of the notebook's initial weights.

Time: 4 min 10 s to 4 min 40 s per epoch with `--config.model.dtype=float32`, on 2 CPU cores without AVX-512.
Result: training loss 1.9051 after 20 epochs (float32).

Differences from the original:
- The text is only the book, without Project Gutenberg's header and licence.
- Each window starts at the zero state. Axon draws a random state.
- Matrix products use bfloat16.
- The last batch of an epoch can have fewer windows than the other batches. Nx fills its last batch up to the full size.
"""

from charlm.errors import UserError
from configs import base


def get_config(arg: str | None = None):
    if arg not in (None, "1", "2"):
        raise UserError(f"--config=alice_axon:{arg}: the argument must be 1 or 2, the number of layers.")
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
    config.model.dtype = "bfloat16"  # for matrix products; faster on processors with native bfloat16
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
