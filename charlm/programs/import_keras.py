"""Makes a run directory from the weights of a Keras 3 model. It evaluates and samples like any other run.

    scripts/import_keras.py --weights=model.keras --config=configs/ag_news_keras.py --workdir=runs/imported

The model is a stack of recurrent layers and a dense head, over an embedding, one-hot or scalar inputs: .keras or .weights.h5.
The config must describe the network and the corpus that it belongs to. Products are float32 unless --config.model.dtype says
otherwise. --symbols is a JSON list in the order of the ids, with <pad>, <eos> and <unk> where the model has them. Without it,
the ids are taken to be the symbols of the corpus, sorted. Needs h5py.
"""

from absl import flags

from charlm import cli
from charlm.config import keys
from charlm.programs import import_flags

import_flags.define(".keras or .weights.h5")


def run() -> None:
    cli.run(main, keys.help_text)


def main(overrides: dict[str, str]) -> None:
    config = import_flags.config(overrides)
    from charlm.exchange import keras, weights

    weights.write_run(config, flags.FLAGS.workdir, keras.read(flags.FLAGS.weights), flags.FLAGS.symbols)
