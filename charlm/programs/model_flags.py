"""The flags of several programs that use a trained model. Each function defines one or more flags."""

from typing import NamedTuple

from absl import flags

from charlm.errors import UserError
from charlm.inference import inputs

flags.disclaim_key_flags()  # absl then lists these flags in the --help of the program that calls a function


class Text(NamedTuple):
    """The flags that choose a text."""

    text: flags.FlagHolder
    split: flags.FlagHolder
    encoding: flags.FlagHolder
    unknown: flags.FlagHolder

    def check(self) -> None:
        """Raises a UserError if the flags do not fit together."""
        if self.split.value is not None and self.text.value is not None:
            raise UserError("--split and --text are given together: give only one of them.")
        if self.unknown.value is not None and self.text.value is None:
            raise UserError("--unknown is given without --text: the symbols of a split are in the vocabulary.")
        if self.encoding.value is not None and self.text.value is None:
            raise UserError("--encoding is given without --text: a split is read in the encoding of the corpus.")


def checkpoint() -> flags.FlagHolder:
    return flags.DEFINE_string("checkpoint", "best", "best (by the loss that train.best names), latest, or a step")


def trust_code() -> flags.FlagHolder:
    return flags.DEFINE_bool(
        "trust_code",
        False,
        "if the cell of a run is in a file of its own (model.cell=FILE.py:NAME), run the code in this file; give this flag "
        "only if you trust the file",
    )


def verbose() -> flags.FlagHolder:
    return flags.DEFINE_bool("verbose", False, "print the settings of XLA and the C library on stderr")


def text(use: str) -> Text:
    """Defines --text, --split, --encoding and --unknown.

    Args:
      use: what the program does with the text, such as `score`.
    """
    return Text(
        flags.DEFINE_string(
            "text", None, f"text file or folder to {use} instead of a split, read like the run's corpus; -: standard input"
        ),
        flags.DEFINE_string(
            "split", None, "train, validation or test; default: validation, or train if the corpus has no validation split"
        ),
        flags.DEFINE_string(
            "encoding", None, "encoding of --text; default: corpus.encoding of the run's config, or utf-8 for standard input"
        ),
        flags.DEFINE_enum(
            "unknown",
            None,
            inputs.UNKNOWN_IN_TEXT,
            "characters of --text outside the vocabulary; error: stop with a message; skip: drop them; unk: read them as "
            "<unk>; default: unk if the vocabulary has <unk>, otherwise error",
        ),
    )
