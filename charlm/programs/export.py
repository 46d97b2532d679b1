"""Writes the weights of a run into a file for PyTorch, Keras or NumPy, with the vocabulary and the config.

    scripts/export.py --workdir=runs/quickstart --format=safetensors --output=quickstart.safetensors [--checkpoint=best]
    scripts/export.py --workdir=runs/quickstart --format=keras --output=quickstart.keras

The file holds float32 weights. A model that loads these weights gives the same logits as charlm, except for rounding. If the
run was trained with model.dtype=bfloat16, charlm gives these logits only if it also computes matrix products in float32.

The formats safetensors, npz and torch store the state_dict of an embedding (if the run's model has an embedding), an nn.LSTM
and an nn.Linear. The program import_torch reads these files. The program import_keras reads files of the format keras. To write
the format torch, you need PyTorch; to write safetensors, the package safetensors; to write keras, h5py.
"""

import os

from absl import flags

from charlm import cli, files
from charlm.programs import model_flags
from charlm.progress import counted
from charlm.rundir.directory import check_checkpoint_name
from charlm.rundir.run import Run

SUFFIXES = {"safetensors": (".safetensors",), "npz": (".npz",), "torch": (".pt", ".pth"), "keras": (".keras",)}

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_FORMAT = flags.DEFINE_enum("format", None, list(SUFFIXES), "format of the file", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "file to write; an existing file is replaced", required=True)
_CHECKPOINT = model_flags.checkpoint()

_TRUST_CODE = model_flags.trust_code()


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    check_checkpoint_name(_CHECKPOINT.value)
    path = files.check_output("output", _OUTPUT.value, SUFFIXES[_FORMAT.value])
    Run(_WORKDIR.value).status()

    from charlm.exchange import keras, torch, weights
    from charlm.inference import restore
    from charlm.models import stack

    trained = restore.load(_WORKDIR.value, _CHECKPOINT.value, trust_code=_TRUST_CODE.value)
    layout = keras.LAYOUT if _FORMAT.value == "keras" else torch.LAYOUT
    exported = weights.of_params(trained.params, trained.config, trained.vocab, layout, os.fspath(path))
    encoded = (keras if _FORMAT.value == "keras" else torch).encoded(exported, trained.config)
    files.write_output("output", path, encoded)
    size = f"{counted(stack.parameter_count(trained.params), 'parameter')}, vocabulary of {len(trained.vocab)}"
    print(f"wrote {path}: step {trained.step} of {_WORKDIR.value}, {size}.")
