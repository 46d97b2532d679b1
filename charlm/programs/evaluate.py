"""Scores a run on a whole split of its corpus, or on your own text.

    scripts/evaluate.py --workdir=runs/quickstart --split=validation [--checkpoint=best|latest|STEP] [--framing=stream]
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE --per_line > scores.jsonl
    scripts/evaluate.py --workdir=runs/quickstart --text=FILE --per_char=page.html
    scripts/evaluate.py --workdir=runs/quickstart --split=test --dynamic [--dynamic_grid]
    scripts/evaluate.py runs/first runs/second runs/third --ensemble
    scripts/evaluate.py --workdir=runs/quickstart --split=validation --ngram=2..10

The last line on stdout is one JSON object. In it, nats, bits and perplexity are per character. bits_per_byte is the loss in
bits for each byte of the scored text in UTF-8. It can be compared between models with different vocabularies.

A framing says how the text is read: as one stream, or as chunks, windows or documents. In a stream, the recurrent state is
carried from the first character to the last, and all characters except the first are scored. Each chunk, window or document
starts from the zero state. Without --framing, the program uses eval.framing of the run's config. If eval.framing is None, the
program uses the framing of training. --framing=chunks --length=256 scores chunks of 256 characters.

Your own text is normalised like the run's corpus. If the run's corpus has documents, your text is divided into documents in the
same way. If the run's corpus came from TensorFlow Datasets, each line of your text is a document.

--per_line prints one JSON object for each line of the text, in the order of the lines: `line` (its number, from 1), `text`,
`nats` (the sum over its scored characters), `chars` (the number of scored characters) and `bits_per_char` (null if no
character is scored). If the model reads characters of the line as <unk>, `unknown` is their number. Each line is scored alone:
the state is zero before its first character, which is not scored. If the run's corpus has documents, each document is scored
instead of each line. The end of a document is scored too. With batch.start_symbol, the first character of a document is also
scored.

--per_char writes the surprisal of each character, and the five characters that the model finds likeliest at its position. The
state is carried from the first character to the last. If the run's corpus has documents, the state is zero before each
document.

--dynamic is dynamic evaluation (Krause et al. 2018). The text is read as a stream, in segments. After the model has scored a
segment, the weights learn from it. Every character is therefore scored before the model learns from it. The run directory keeps
the trained weights. First, the program computes the mean squared gradient of each weight over the training split.
lambda is the rate at which the weights decay to their trained values. --dynamic_grid tries several pairs of a learning rate and
a lambda on the beginning of the validation split, and then scores the text with the pair that has the lowest loss there. If the
text is the validation split itself, `rest` has the loss of the characters that were not used to choose the pair.

--ensemble scores a text with several runs that have the same vocabulary. The probability of a character is the mean of the
probabilities that the runs give it.

--ngram scores a text with an n-gram instead of the run's model, as a yardstick for the model. The n-gram counts the characters
of the training split and has Witten-Bell smoothing. It scores the same characters as the model with --framing=stream. For a
range of orders, the program prints one JSON object for each order.

In the results of dynamic evaluations, ensembles and n-grams, the object `protocol` has the field `method`. The program compare
leaves out results that have this field.
"""

import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from charlm import cli, files, measures
from charlm.config.keys import FRAMINGS
from charlm.data.framing import cut_in_words
from charlm.data.ids import Encoded
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import inputs
from charlm.inference.protocol import Protocol
from charlm.programs import model_flags
from charlm.progress import characters, counted, warn
from charlm.rundir.directory import check_checkpoint_name
from charlm.rundir.run import Run

if TYPE_CHECKING:
    from charlm.inference.model import Model

MOST_ON_PAGE = 200_000  # characters; browsers are slow with larger pages

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory")
_CHOICE_OF_TEXT = model_flags.text("score")
_TEXT, _SPLIT, _ENCODING, _UNKNOWN = _CHOICE_OF_TEXT
_PER_LINE = flags.DEFINE_bool("per_line", False, "print one JSON object for each line, instead of one for the whole text")
_PER_CHAR = flags.DEFINE_string(
    "per_char",
    None,
    "file that receives the surprisal of each character; .tsv: a table; .html: a page that colours characters; "
    "-: the table on stdout",
)
_FRAMING = flags.DEFINE_enum(
    "framing",
    None,
    FRAMINGS,
    "how the text is read; stream: the state is carried through the text; chunks, windows, documents: the state is zero at "
    "the start of each chunk, window or document; default: eval.framing of the run's config",
)
_LENGTH = flags.DEFINE_integer(
    "length",
    None,
    "chunks, windows: number of characters of a chunk or window; default: batch.length of the run's config",
)
_LANES = flags.DEFINE_integer(
    "lanes",
    1,
    "number of pieces (lanes) of a stream that are read in parallel; 1: the result is exact, because the state is carried "
    "through the whole text; more lanes: faster, but the result is approximate",
)
_DYNAMIC = flags.DEFINE_bool(
    "dynamic", False, "dynamic evaluation: after each segment of the text is scored, the weights learn from it"
)
_SEGMENT = flags.DEFINE_integer("dynamic_segment", None, "number of characters of a segment; default: 20")
_RATE = flags.DEFINE_float("dynamic_learning_rate", None, "learning rate; default: 5e-5 times --dynamic_segment / 5")
_LAMBDA = flags.DEFINE_float(
    "dynamic_lambda", None, "rate of the decay to the trained weights; default: 0.002 times --dynamic_segment / 5"
)
_EPSILON = flags.DEFINE_float("dynamic_epsilon", None, "number added to the root mean squared gradients; default: 2e-5")
_GRID = flags.DEFINE_bool(
    "dynamic_grid",
    False,
    "choose the learning rate and lambda on the beginning of the validation split: try multiples of the values of "
    "--dynamic_learning_rate and --dynamic_lambda, and take the pair with the lowest loss",
)
_ENSEMBLE = flags.DEFINE_bool(
    "ensemble", False, "score the text with several runs together; give their directories as arguments"
)
_NGRAM = flags.DEFINE_string(
    "ngram",
    None,
    "score the text with an n-gram instead of the model; the value is the order, such as 5, or a range such as 2..10",
)
_CHECKPOINT = model_flags.checkpoint()
_TRUST_CODE = model_flags.trust_code()
_VERBOSE = model_flags.verbose()


def run() -> None:
    cli.run(main, takes_arguments=True)


def main(overrides: dict[str, str], workdirs: list[str]) -> None:
    del overrides
    _check_flags(workdirs)
    if _ENSEMBLE.value:
        _score_ensemble([Run(workdir) for workdir in workdirs])
        return
    assert _WORKDIR.value is not None
    run = Run(_WORKDIR.value)
    run.status()
    if _PER_LINE.value or _PER_CHAR.value is not None:
        _score_details(run)
        return
    if _DYNAMIC.value:
        _score_dynamically(run)
        return
    if _NGRAM.value is not None:
        _score_ngrams(run, _NGRAM.value)
        return
    scored = _scored_text(run)
    config = run.config()
    protocol = Protocol.of_run(config, _FRAMING.value, _LANES.value, _LENGTH.value)
    trained = _load_model(run, protocol.rows_at_once)
    encoded = scored.encoded(trained.vocab)
    protocol.check(encoded)
    print(f"evaluating step {trained.step} on {_size(scored, encoded, protocol)} …", file=sys.stderr, flush=True)
    _report(trained.evaluate(scored, encoded, protocol), scored, [run])


def _check_flags(workdirs: list[str]) -> None:
    """Raises a UserError if flags are wrong or do not fit together."""
    ways = {
        "--dynamic": _DYNAMIC.value,
        "--ngram": _NGRAM.value is not None,
        "--per_line": _PER_LINE.value,
        "--per_char": _PER_CHAR.value is not None,
    }
    given = [flag for flag, is_given in ways.items() if is_given]
    dynamic_flags = [flag for flag in (_SEGMENT, _RATE, _LAMBDA, _EPSILON, _GRID) if flag.present]
    if _ENSEMBLE.value:
        _check_workdirs(workdirs)
        if others := [*given, *(["--workdir"] if _WORKDIR.value else [])]:
            raise UserError(f"--ensemble and {others[0]} are given together: leave out {others[0]}.")
    elif workdirs:
        raise UserError(f"{workdirs[0]!r} is not a flag: flags begin with --, and only --ensemble takes run directories.")
    elif _WORKDIR.value is None:
        raise UserError("--workdir is not given: see --help.")
    if dynamic_flags and not _DYNAMIC.value:
        raise UserError(f"--{dynamic_flags[0].name} is given without --dynamic: add --dynamic.")
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} are given together: give only one of them.")
    if given and given[0] in ("--dynamic", "--ngram"):
        for flag, default in ((_LANES, 1), (_LENGTH, None)):
            if flag.value != default:
                raise UserError(f"--{flag.name}={flag.value} has no effect with {given[0]}: leave it out.")
    if _NGRAM.value is not None and _CHECKPOINT.present:
        raise UserError(f"--checkpoint={_CHECKPOINT.value} has no effect with --ngram: leave it out.")
    _CHOICE_OF_TEXT.check()
    if _LANES.value < 1:
        raise UserError(f"--lanes={_LANES.value}: must be 1 or more.")
    check_checkpoint_name(_CHECKPOINT.value)


def _check_workdirs(workdirs: list[str]) -> None:
    """Raises a UserError unless these are at least two different run directories."""
    if len(workdirs) < 2:
        raise UserError(f"--ensemble has {counted(len(workdirs), 'argument')}: give at least two run directories.")
    seen: dict[str, str] = {}
    for workdir in workdirs:
        if (same := seen.setdefault(os.path.realpath(workdir), workdir)) is not workdir:
            raise UserError(f"--ensemble: {same} and {workdir} are the same run directory: give each run once.")
    for workdir in workdirs:
        Run(workdir).status()


def _score_dynamically(run: Run) -> None:
    from charlm.inference import dynamic_run
    from charlm.inference.dynamic import Settings

    settings = Settings.of(_SEGMENT.value, _RATE.value, _LAMBDA.value, _EPSILON.value)
    config = run.config()
    dynamic_run.check(Protocol.of_run(config, _FRAMING.value), run.corpus()["splits"], _GRID.value)
    scored = _scored_text(run)
    trained = _load_model(run, rows=1)
    result = dynamic_run.evaluate(run, trained.trained, trained.dynamic, scored, settings, _GRID.value, characters)
    _report(result, scored, [run])


def _score_ngrams(run: Run, text: str) -> None:
    from charlm.inference import ngram

    orders = ngram.orders_of(text)
    protocol = Protocol.of_run(run.config(), _FRAMING.value)
    ngram.check(protocol)
    scored = _scored_text(run)
    encoded = scored.encoded(run.vocab())
    print(f"evaluating --ngram={text} on {_size(scored, encoded, protocol)} …", file=sys.stderr, flush=True)
    for result in ngram.evaluate(run, scored, encoded, orders):
        _report(result, scored, [run])


def _score_ensemble(runs: list[Run]) -> None:
    # The first run reads the text for all runs: `ensemble.check` makes sure that all runs would prepare it in the same way.
    from charlm.inference import ensemble

    ensemble.check(runs, _FRAMING.value, _LENGTH.value, uses_split=_TEXT.value is None)
    scored = _scored_text(runs[0])
    protocol = Protocol.of_run(runs[0].config(), _FRAMING.value, _LANES.value, _LENGTH.value)
    models = [_load_model(run, protocol.rows_at_once) for run in runs]
    encoded = scored.encoded(models[0].vocab)
    protocol.check(encoded)
    print(f"evaluating {len(runs)} runs on {_size(scored, encoded, protocol)} …", file=sys.stderr, flush=True)
    _report(ensemble.evaluate(models, scored, encoded, protocol), scored, runs)


def _report(result: dict[str, Any], scored: inputs.ScoredText, runs: list[Run]) -> None:
    """Prints a result, and adds it to the run directories."""
    if "unknown" in result:
        warn(f"{result['unknown']:,} of the {counted(result['chars'], 'scored char')} are outside the vocabulary: <unk>.")
    if scored.skipped:
        result["skipped"] = scored.skipped
    for run in runs:
        run.note_evaluation(result)
    print(json.dumps(measures.finite(result)))


def _scored_text(run: Run) -> inputs.ScoredText:
    """The split or the text that the flags name."""
    if _TEXT.value is None:
        return inputs.split_to_score(run, _SPLIT.value)
    return inputs.file_to_score(run, _TEXT.value, _UNKNOWN.value, _ENCODING.value)


def _load_model(run: Run, rows: int) -> "Model":
    """Prepares the devices for this number of rows before JAX starts, and reads the checkpoint that the flags name."""
    settings = devices.prepare(run.config(), rows)
    if _VERBOSE.value:
        print("".join(f"{setting}\n" for setting in settings), end="", file=sys.stderr)

    from charlm.inference import model

    return model.load(run.workdir, _CHECKPOINT.value, trust_code=_TRUST_CODE.value)


def _score_details(run: Run) -> None:
    """Scores each line, or each character, and writes the scores."""
    for flag, default in ((_FRAMING, None), (_LENGTH, None), (_LANES, 1)):
        if flag.value != default:
            detail = "--per_line" if _PER_LINE.value else "--per_char"
            raise UserError(f"--{flag.name}={flag.value} has no effect with {detail}: leave it out.")
    output = _PER_CHAR.value
    path = None if output in (None, "-") else files.check_output("per_char", output, (".tsv", ".html"))
    texts, where = _texts(run)
    length = sum(map(len, texts))
    if path is not None and path.suffix == ".html" and length > MOST_ON_PAGE:
        raise UserError(
            f"--per_char={path}: {where} has {length:,} chars, but a page shows at most {MOST_ON_PAGE:,}: give a .tsv file."
        )
    config = run.config()
    rows = min(Protocol.of_run(config).rows, len(texts)) if _PER_LINE.value else 1
    trained = _load_model(run, rows)
    size = f"{counted(length, 'char')} of {where}"
    print(f"evaluating step {trained.step} on {size} …", file=sys.stderr, flush=True)
    if _PER_LINE.value:
        for score in trained.score_lines(texts):
            print(json.dumps(score))
    else:
        _write_chars(trained, texts, path)


def _write_chars(trained: "Model", texts: list[str], path: pathlib.Path | None) -> None:
    from charlm.inference import per_char

    scored = trained.score_chars(texts, per_char.ALTERNATIVES)
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        sys.stdout.writelines(per_char.table(scored, trained.vocab))
        return
    if path.suffix == ".html":
        content = per_char.page(scored, trained.vocab, f"{trained.run.workdir}, step {trained.step}")
    else:
        content = "".join(per_char.table(scored, trained.vocab))
    files.write_output("per_char", path, content)
    print(f"wrote {path}.")


def _texts(run: Run) -> tuple[list[str], str]:
    """The texts, each of which is scored from the zero state, and the name of their source in messages."""
    if _TEXT.value is not None and _PER_LINE.value:
        texts, where = inputs.lines_of_file(run, _TEXT.value, _UNKNOWN.value, _ENCODING.value), f"--text={_TEXT.value}"
    else:
        scored = _scored_text(run)
        text = scored.text
        texts = inputs.lines_of(text) if _PER_LINE.value or isinstance(text, list) else [str(text)]
        where = scored.where
    if not texts:
        raise UserError(f"{where} has no lines: give a text with at least one line.")
    return texts, where


def _size(scored: inputs.ScoredText, encoded: Encoded, protocol: Protocol) -> str:
    if not protocol.framing.is_of_documents:
        return counted(len(encoded.ids_N), "char")
    lengths_D, limit = encoded.lengths_D, protocol.framing.length
    if _TEXT.value is not None and (cut := cut_in_words(lengths_D, limit)):
        warn(cut)
    skipped = "" if _TEXT.value is None else f"{scored.empty:,} empty skipped, "  # for a split, training printed this number
    cut = f"{(lengths_D > limit).sum():,} cut to batch.length={limit}"
    return f"{counted(int(lengths_D.sum()), 'char')} of {counted(len(lengths_D), 'document')} ({skipped}{cut})"
