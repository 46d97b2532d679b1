"""Scores a run on a whole split of its corpus, or on your own text.

    scripts/evaluate.py --workdir=runs/quickstart --split=validation [--checkpoint=best|latest|STEP] [--framing=stream]
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE

The last line on stdout is one JSON object. In it, nats, bits and perplexity are per character. bits_per_byte is the loss per
byte of the scored text in UTF-8, and can be compared between models with different vocabularies.

A framing says how the text is read: as one stream, or as chunks, windows or documents. In a stream, the recurrent state is
carried from the first character to the last, and all characters except the first are scored. Each chunk, window or document
starts from the zero state. Without --framing, the program uses eval.framing of the run's config. If eval.framing is None, the
program uses the framing of training.

Your own text is normalised like the run's corpus. If the run's corpus has documents, your text is divided into documents in the
same way. If the run's corpus came from TensorFlow Datasets, each line of your text is a document.
"""

import json
import sys

from absl import flags

from charlm import cli, measures
from charlm.config.keys import FRAMINGS
from charlm.data.batches import Encoded, cut_in_words
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import inputs
from charlm.inference.protocol import Protocol
from charlm.progress import counted, warn
from charlm.rundir.run import Run, check_checkpoint_name

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_SPLIT = flags.DEFINE_string(
    "split", None, "train, validation or test; default: validation, or train if the corpus has no validation split"
)
_TEXT = flags.DEFINE_string("text", None, "text file or folder to score instead of a split, read like the run's corpus")
_FRAMING = flags.DEFINE_enum(
    "framing",
    None,
    FRAMINGS,
    "how the text is read; stream: the state is carried through the text; chunks, windows, documents: each of them starts "
    "from the zero state; default: eval.framing of the run's config",
)
_LANES = flags.DEFINE_integer(
    "lanes",
    1,
    "number of pieces (lanes) of a stream that are read in parallel; 1: the result is exact, because the state is carried "
    "through the whole text; more lanes: faster, but the result is approximate",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by the loss that train.best names), latest, or a step")
_VERBOSE = flags.DEFINE_bool("verbose", False, "print the settings of XLA and the C library on stderr")


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    if _SPLIT.value is not None and _TEXT.value is not None:
        raise UserError("--split and --text are given together: give only one of them.")
    if _LANES.value < 1:
        raise UserError(f"--lanes={_LANES.value}: must be 1 or more.")
    check_checkpoint_name(_CHECKPOINT.value)
    run = Run(_WORKDIR.value)
    run.status()
    file = _TEXT.value
    scored = inputs.split_to_score(run, _SPLIT.value) if file is None else inputs.file_to_score(run, file)
    config = run.config()
    protocol = Protocol.of_run(config, _FRAMING.value, _LANES.value)
    settings = devices.prepare_cpu(config, protocol.rows_at_once)
    if _VERBOSE.value:
        print("".join(f"{setting}\n" for setting in settings), end="", file=sys.stderr)

    from charlm.inference import model

    trained = model.load(_WORKDIR.value, _CHECKPOINT.value)
    encoded = scored.encoded(trained.vocab)
    protocol.check(encoded)
    print(f"evaluating step {trained.step} on {_size(scored, encoded, protocol)} …", file=sys.stderr, flush=True)
    result = trained.evaluate(scored, encoded, protocol)
    if "unknown" in result:
        warn(f"{result['unknown']:,} of the {counted(result['chars'], 'scored char')} are outside the vocabulary: <unk>.")
    run.note_evaluation(result)
    print(json.dumps(measures.finite(result)))


def _size(scored: inputs.ScoredText, encoded: Encoded, protocol: Protocol) -> str:
    if not protocol.framing.is_of_documents:
        return counted(len(encoded.ids_N), "char")
    lengths_D, limit = encoded.lengths_D, protocol.framing.length
    if _TEXT.value is not None and (cut := cut_in_words(lengths_D, limit)):
        warn(cut)
    skipped = "" if _TEXT.value is None else f"{scored.empty:,} empty skipped, "  # for a split, training printed it
    cut = f"{(lengths_D > limit).sum():,} cut to batch.length={limit}"
    return f"{counted(int(lengths_D.sum()), 'char')} of {counted(len(lengths_D), 'document')} ({skipped}{cut})"
