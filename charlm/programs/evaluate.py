"""Evaluates a run on a whole split of its corpus, or on a text of your own; the last line on stdout is one JSON object.

    scripts/evaluate.py --workdir=runs/quickstart --split=validation [--checkpoint=best|latest|STEP] [--framing=stream]
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE

Characters are scored as the run's config asks, by default as it was trained: a stream is scored from its second character on,
with the LSTM state carried from the first to the last; chunks, windows and documents each begin at the zero state. nats, bits
and perplexity are per character. A text of your own is normalised, and split into documents, as the run's corpus was; each line
is a document where that came from TFDS.
"""

import json
import sys
import time

from absl import flags

from charlm import cli
from charlm.config.load import FRAMINGS
from charlm.data import batches, corpora
from charlm.errors import UserError
from charlm.hardware import cache, devices
from charlm.inference.protocol import Protocol
from charlm.rundir.run import Run, check_checkpoint_name

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_SPLIT = flags.DEFINE_string("split", None, "train, validation or test; by default validation, or train where there is none")
_TEXT = flags.DEFINE_string("text", None, "UTF-8 text file or folder to evaluate instead of a split")
_FRAMING = flags.DEFINE_enum("framing", None, FRAMINGS, "stream carries the state; by default eval.framing of the run's config")
_LANES = flags.DEFINE_integer(
    "lanes", 1, "of a stream, read side by side; 1 is exact, more are faster: see eval.lanes in base.py"
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by train.best), latest, or a step")


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    if _SPLIT.value is not None and _TEXT.value is not None:
        raise UserError("--split and --text are both given: one of them would be right.")
    if _TEXT.value == "":
        raise UserError("--text= is empty: a file or folder would be right.")
    if _LANES.value < 1:
        raise UserError(f"--lanes={_LANES.value} is not right: it must be 1 or more.")
    check_checkpoint_name(_CHECKPOINT.value)
    run = Run(_WORKDIR.value)
    run.status()
    splits = run.corpus()["splits"]
    split = _SPLIT.value or ("validation" if "validation" in splits else "train")
    if _TEXT.value is None and split not in splits:
        raise UserError(f"--split={split} is none of this run's splits: {', '.join(splits)}.")
    text, sha256, empty = _text(run, split)
    config = run.config()
    protocol = Protocol.of(config, batches.Framing.of(config))._replace(lanes=_LANES.value)
    if _FRAMING.value:
        protocol = protocol._replace(framing=protocol.framing._replace(kind=_FRAMING.value))
    set_here = devices.prepare_cpu(config, protocol.rows_at_once)
    cache.keep_compiled(cache.user_folder(config))

    from charlm import measures
    from charlm.inference import evaluate, restore

    trained = restore.load(_WORKDIR.value, _CHECKPOINT.value)
    encoded = batches.encode(trained.vocab, text, f"--text={_TEXT.value}" if _TEXT.value else f"the {split} split")
    protocol.check(encoded)
    size = f"{len(encoded.ids_N):,} chars"
    if protocol.framing.kind == "documents":
        lengths_D, limit = encoded.lengths_D, protocol.framing.length
        skipped = f"{empty:,} empty skipped, " if _TEXT.value else ""  # of the run's corpus its training says so
        cut = f"{(lengths_D > limit).sum():,} cut to batch.length={limit}"
        size = f"{lengths_D.sum():,} chars of {len(lengths_D):,} documents ({skipped}{cut})"
    for line in set_here:
        print(line, file=sys.stderr)
    print(f"evaluating step {trained.step} on {size} …", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    mesh = devices.mesh(protocol.rows_at_once, devices.wanted(config))
    nats, chars = evaluate.evaluator(trained.functions, mesh)(trained.params, encoded, protocol)
    result = {
        **measures.of_nats(nats / chars),
        "chars": chars,
        "step": trained.step,
        "seconds": round(time.perf_counter() - begin, 3),
        "protocol": protocol.named(sha256, f"text {_TEXT.value}" if _TEXT.value else split, chars),
    }
    run.note_evaluation(result)
    print(json.dumps(measures.finite(result)))


def _text(run: Run, split: str) -> tuple[corpora.Split, str, int]:
    """The text or documents to score, the hash of the corpus that they belong to, and how many empty ones were left out."""
    if _TEXT.value is None:
        return run.splits()[split], run.corpus()["sha256"], 0
    config, form = run.config(), ""
    if "documents" in run.corpus():
        form = corpora.form_of(config) or "lines"
    text, _ = corpora.read(_TEXT.value, corpora.Normalisation.of(config), form, cache.folder_of(config))
    empty = sum(not document for document in text) if form else 0
    text = [document for document in text if document] if form else text
    if (size := len(corpora.joined(text))) < 2:
        raise UserError(f"--text={_TEXT.value} has {size} chars, but scoring needs at least 2.")
    return text, corpora.sha256(text if form else [text]), empty
