"""Makes a run directory of the weights of a Keras 3 model, to be evaluated and sampled like any other.

    scripts/import_keras.py --weights=model.keras --config=configs/ag_news_keras.py --workdir=runs/imported

The model is a stack of LSTM layers and a dense head, over an embedding, one-hot or scalar inputs, as .keras or .weights.h5.
The config says what network and corpus it belongs to; its products are float32 unless --config.model.dtype says otherwise.
--symbols is a JSON list in the order of the ids, with <pad>, <eos> and <unk> where there are such; without it they are taken to
be those of the corpus, sorted. Needs h5py.
"""

from absl import flags

from charlm import cli
from charlm.config import keys, load

_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights: .keras or .weights.h5", required=True)
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

    importing.write_run(checked, _WORKDIR.value, importing.from_keras(_WEIGHTS.value), _SYMBOLS.value, _WEIGHTS.value)
