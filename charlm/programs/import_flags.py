"""The flags of the programs that import weights of other frameworks."""

from absl import flags
from ml_collections import ConfigDict

from charlm.config import load

flags.disclaim_key_flags()  # they belong to the program, whose --help then lists them


def define(kinds_of_file: str) -> None:
    """Defines --weights, --config, --workdir and --symbols."""
    flags.DEFINE_string("weights", None, f"file of weights: {kinds_of_file}", required=True)
    flags.DEFINE_string(
        "config", None, "recipe or config file, with its argument if it takes one: NAME[:ARG] or FILE.py[:ARG]", required=True
    )
    flags.DEFINE_string("workdir", None, "run directory to make", required=True)
    flags.DEFINE_string("symbols", None, "JSON list of the symbols in the order of their ids")


def config(overrides: dict[str, str]) -> ConfigDict:
    """The config that --config names.

    The weights come from float32. A recipe may round its products, so this does not, unless an override says so: rounded
    results would not be those of the original.
    """
    return load.load(flags.FLAGS.config, {"model.dtype": "float32"} | overrides)
