"""Makes a run directory from the weights of a PyTorch CharRNN. It evaluates and samples like any other run.

    scripts/import_torch.py --weights=rnn.pt --config=configs/anna_pytorch.py --workdir=runs/imported

The weights are a state_dict, or Udacity's dict with `state_dict` and `tokens`: .pt (needs PyTorch) or .safetensors (needs
safetensors). The config must describe the network and the corpus that they belong to. Products are float32 unless
--config.model.dtype says otherwise. --symbols is a JSON list in the order of the ids. Without it and without `tokens`, the ids
are taken to be the symbols of the corpus, sorted.
"""

from absl import flags

from charlm import cli
from charlm.config import keys
from charlm.programs import import_flags

import_flags.define(".pt, .pth, .net or .safetensors")


def run() -> None:
    cli.run(main, keys.help_text)


def main(overrides: dict[str, str]) -> None:
    config = import_flags.config(overrides)
    from charlm.exchange import torch, weights

    weights.write_run(config, flags.FLAGS.workdir, torch.read(flags.FLAGS.weights), flags.FLAGS.symbols)
