"""Makes a run directory of a PyTorch CharRNN's weights, to be evaluated and sampled like any other.

    scripts/import_torch.py --weights=rnn.pt --config=configs/anna_pytorch.py --workdir=runs/imported

The weights are a state_dict, or Udacity's dict with `state_dict` and `tokens`, as .pt (needs PyTorch) or .safetensors (needs
safetensors). The config says what network and corpus they belong to; its products are float32 unless --config.model.dtype says
otherwise. --symbols is a JSON list in the order of the ids; without it and without `tokens` they are taken to be those of the
corpus, sorted.
"""

from absl import flags

from charlm import cli
from charlm.config import keys, load

_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights: .pt, .pth, .net or .safetensors", required=True)
_CONFIG = flags.DEFINE_string(
    "config", None, "recipe or config file, with its argument if it takes one: NAME[:ARG] or FILE.py[:ARG]", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory to make", required=True)
_SYMBOLS = flags.DEFINE_string("symbols", None, "JSON list of the symbols in the order of their ids")


def run() -> None:
    cli.run(main, keys.help_text)


def main(overrides: dict[str, str]) -> None:
    # The weights come from float32; the products of a recipe may be rounded, and then its figures are not the original's.
    checked = load.load(_CONFIG.value, {"model.dtype": "float32"} | overrides)
    from charlm.exchange import importing

    params, tokens = importing.from_torch(_WEIGHTS.value)
    importing.write_run(checked, _WORKDIR.value, params, _SYMBOLS.value or tokens, _WEIGHTS.value)
