"""Makes a run directory with one checkpoint from the weights of a Keras 3 model.

To evaluate the model or to draw samples from it, use --checkpoint=latest.

    scripts/import_keras.py --weights=model.keras --config=configs/ag_news_keras.py --workdir=runs/imported

--weights names a .keras or .weights.h5 file. The model must be a stack of recurrent layers with a dense head. The input may be
an embedding, one-hot vectors or scalars. Reading the file needs h5py.

The config must describe the network and its corpus. Matrix products use float32 unless --config.model.dtype sets another type.

--symbols names a JSON file with a list of symbols in the order of their ids. If the model has the symbols <pad>, <eos> or
<unk>, the list must have them too. Without --symbols, the symbols come from the vocabulary that the program `export` stored in
the file. If the file has no vocabulary, this program assumes that the ids follow the sorted order of the symbols of the corpus.
"""

from absl import flags

from charlm import cli
from charlm.config import help_keys
from charlm.programs import import_flags

import_flags.define(".keras or .weights.h5")


def run() -> None:
    cli.run(main, help_keys.help_text)


def main(overrides: dict[str, str]) -> None:
    config = import_flags.config(overrides)
    from charlm.exchange import keras, weights

    weights.write_run(config, flags.FLAGS.workdir, keras.read(flags.FLAGS.weights), flags.FLAGS.symbols)
