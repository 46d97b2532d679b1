"""The flags of the programs that import weights of other frameworks."""

from absl import flags
from ml_collections import ConfigDict

from charlm.config import load

flags.disclaim_key_flags()  # absl then lists these flags in the --help of the program that calls `define`


def define(kinds_of_file: str) -> None:
    """Defines --weights, --config, --workdir and --symbols."""
    flags.DEFINE_string("weights", None, f"file of weights: {kinds_of_file}", required=True)
    flags.DEFINE_string(
        "config",
        None,
        "recipe or config file, as NAME or FILE.py; if the config takes an argument, NAME:ARG or FILE.py:ARG",
        required=True,
    )
    flags.DEFINE_string("workdir", None, "run directory to make", required=True)
    flags.DEFINE_string("symbols", None, "JSON file with a list of the symbols in the order of their ids")


def config(overrides: dict[str, str]) -> ConfigDict:
    """Returns the config that --config names, with model.dtype=float32 and model.precision=float32.

    The imported weights come from a float32 model. With bfloat16 or TF32 matrix products, the results would differ from the
    results of the original model. Overrides of the two keys are kept.
    """
    return load.load(flags.FLAGS.config, {"model.dtype": "float32", "model.precision": "float32"} | overrides)
