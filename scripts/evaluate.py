"""Evaluates a run on a whole split of its corpus, or on a text of your own; the last line on stdout is one JSON object.

    scripts/evaluate.py --workdir=runs/quickstart --split=validation [--checkpoint=best|latest|STEP]
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE

Every character but the first is scored once, with the LSTM state carried from the first to the last. nats, bits and perplexity
are per character. A text of your own is normalised as the run's corpus was.
"""

import json
import math
import sys
import time

from absl import flags

from charlm import cli, corpora
from charlm.errors import UserError
from charlm.run import Run

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
_SPLIT = flags.DEFINE_string("split", None, "train, validation or test; validation where no text is given")
_TEXT = flags.DEFINE_string("text", None, "UTF-8 text file or folder to evaluate instead of a split")
_LANES = flags.DEFINE_integer(
    "lanes", 1, "pieces read side by side; 1 is exact, more are faster: see eval.lanes in configs/base.py"
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation nats), latest, or a step")


def main(overrides: dict[str, str]) -> None:
    del overrides
    if _SPLIT.value is not None and _TEXT.value is not None:
        raise UserError("--split and --text are both given: one of them would be right.")
    if _LANES.value < 1:
        raise UserError(f"--lanes={_LANES.value} is not right: it must be 1 or more.")
    if _CHECKPOINT.value not in ("best", "latest") and not _CHECKPOINT.value.isdigit():
        raise UserError(f"--checkpoint={_CHECKPOINT.value} is not right: it must be best, latest or a step.")
    run = Run(_WORKDIR.value)
    run.status()
    split = _SPLIT.value or "validation"
    if _TEXT.value is None and split not in run.corpus()["splits"]:
        raise UserError(f"--split={split} is none of this run's splits: {', '.join(run.corpus()['splits'])}.")
    text, sha256 = _text(run, split)

    from charlm import evaluate, objective, restore

    trained = restore.load(_WORKDIR.value, _CHECKPOINT.value)
    ids_N = trained.vocab.encode(text, f"--text={_TEXT.value}" if _TEXT.value else f"the {split} split")
    protocol = evaluate.Protocol.of(trained.config)._replace(lanes=_LANES.value)
    print(f"evaluating step {trained.step} on {len(ids_N):,} chars …", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    nats, chars = evaluate.evaluator(trained.functions)(trained.params, ids_N, protocol)
    result = {
        **objective.measures(nats / chars),
        "chars": chars,
        "step": trained.step,
        "seconds": round(time.perf_counter() - begin, 3),
        "protocol": protocol.named(sha256, f"text {_TEXT.value}" if _TEXT.value else split, chars),
    }
    print(json.dumps({key: None if value == math.inf else value for key, value in result.items()}))


def _text(run: Run, split: str) -> tuple[str, str]:
    """The text to score, and the hash of the corpus that it belongs to."""
    config = run.config()
    if _TEXT.value is not None:
        text, _ = corpora.read(_TEXT.value, corpora.Normalisation.of(config))
        if len(text) < 2:
            raise UserError(f"--text={_TEXT.value} has {len(text)} chars, but scoring needs at least 2.")
        return text, corpora.sha256([text])
    corpus = corpora.load(config)
    if corpus.provenance["sha256"] != run.corpus()["sha256"]:
        raise UserError(f"corpus {corpus.provenance['name']} has changed since this run was trained: restore its text.")
    return corpus.splits[split], corpus.provenance["sha256"]


if __name__ == "__main__":
    cli.run(main)
