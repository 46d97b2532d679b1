"""Makes a run directory with one checkpoint from the weights of a PyTorch CharRNN.

A CharRNN is a recurrent network that predicts the next character. To evaluate the model or to draw samples from it, use
--checkpoint=latest.

    scripts/import_torch.py --weights=rnn.pt --config=configs/anna_pytorch.py --workdir=runs/imported

--weights names a .pt, .pth or .net file (needs PyTorch), a .safetensors file (needs safetensors) or an .npz file. The file must
hold a state_dict. A .pt, .pth or .net file may instead hold a dict with `state_dict` and `tokens`. The CharRNN notebook of
Udacity, which configs/anna_pytorch.py rebuilds, saves such a dict.

The config must describe the network and its corpus. Matrix products use float32 unless --config.model.dtype sets another type.

--symbols names a JSON file with a list of symbols in the order of their ids. Without --symbols, the symbols come from the
`tokens` in the file of weights, or from the vocabulary that the program `export` stored in it. If the file has no `tokens` and
no vocabulary, this program assumes that the ids follow the sorted order of the symbols of the corpus.
"""

from absl import flags

from charlm import cli
from charlm.config import help_keys
from charlm.programs import import_flags

import_flags.define(".pt, .pth, .net, .safetensors or .npz")


def run() -> None:
    cli.run(main, help_keys.help_text)


def main(overrides: dict[str, str]) -> None:
    config = import_flags.config(overrides)
    from charlm.exchange import torch, weights

    weights.write_run(config, flags.FLAGS.workdir, torch.read(flags.FLAGS.weights), flags.FLAGS.symbols)
