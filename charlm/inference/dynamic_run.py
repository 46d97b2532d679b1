"""Dynamic evaluation of a run.

This module computes the statistics over the run's training text, chooses the settings on the run's validation split if the user
wants this, and returns the result as a dict. The module `dynamic` explains and implements the method.
"""

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from charlm import measures
from charlm.data.ids import Encoded, encode
from charlm.data.longtext import Ids
from charlm.data.vocab import Vocab
from charlm.errors import Failure, UserError
from charlm.inference import dynamic
from charlm.inference.dynamic import Evaluator, Progress, Settings
from charlm.inference.inputs import ScoredText
from charlm.inference.protocol import Protocol
from charlm.inference.restore import Trained
from charlm.progress import counted, warn
from charlm.rundir.run import Run

Show = Callable[[str, int], AbstractContextManager[Progress]]  # see `progress.characters`


def silent(what: str, total: int) -> AbstractContextManager[Progress]:
    """Shows no progress."""
    del what, total
    return contextlib.nullcontext(lambda chars, nats: None)


def check(protocol: Protocol, splits: dict[str, Any], grid: bool) -> None:
    """Raises a UserError if the protocol does not read a text as a stream, or if a grid has no validation split.

    Args:
      protocol: the protocol under which the text would be scored without dynamic evaluation.
      splits: a dict whose keys are the names of the run's splits.
      grid: whether a grid is tuned.
    """
    if not protocol.framing.carries_state:
        raise UserError(
            f"--dynamic reads a text as a stream, but the framing is {protocol.framing.kind!r}: add --framing=stream."
        )
    if grid and "validation" not in splits:
        raise UserError("--dynamic_grid needs a validation split, but this run has none: leave out --dynamic_grid.")


def evaluate(
    run: Run,
    trained: Trained,
    evaluator: Evaluator,
    scored: ScoredText,
    settings: Settings,
    grid: bool = False,
    show: Show = silent,
) -> dict[str, Any]:
    """Scores a text by dynamic evaluation.

    Args:
      run: the run directory, from which the training split is read.
      trained: the trained model. Its parameters are not changed.
      evaluator: the compiled programs for `trained.functions`. The statistics are stored in it for the next call.
      scored: the text.
      settings: the settings. With `grid`, multiples of their learning rate and lambda are tried.
      grid: whether to try all settings of `settings.grid()` on the beginning of the validation split, and to score the text
        with the settings that have the lowest loss there.
      show: returns a context manager that shows the progress, such as `progress.characters`.

    Returns:
      The fields of `Model.score`. The protocol also has `method`, which describes the settings. With `grid`, the result also
      has `tuning`, which names the part of the validation split that was used to choose the settings, the chosen settings, and
      the loss of all settings that were tried. If the text is the validation split itself, `rest` has the loss of the
      characters after this part.

    Raises:
      UserError: a text is shorter than one segment or has unknown symbols, or the corpus of the run can't be read.
      Failure: the loss is not a finite number, because the learning rate is too high.
    """
    begin = time.perf_counter()
    protocol = Protocol.of_run(trained.config, "stream")
    encoded = scored.encoded(trained.vocab)
    dynamic.check_length(encoded.ids_N, settings.segment, scored.where)
    splits = run.splits()
    train = encode(trained.vocab, splits["train"], "the train split").ids_N
    dynamic.check_length(train, settings.segment, "the train split")
    part_N = None
    if grid:
        part_N = _part(encode(trained.vocab, splits["validation"], "the validation split").ids_N)
        dynamic.check_length(part_N, settings.segment, "the part of the validation split for --dynamic_grid")

    if (scales := evaluator.known_scales.get(settings.segment)) is None:
        with show("gradients of the train split", len(train) - 1) as progress:
            scales = evaluator.statistics(trained.params, train, settings.segment, progress)
        evaluator.known_scales[settings.segment] = scales
    lanes = counted(dynamic.lanes_of(train, settings.segment), "lane")
    tuning: dict[str, Any] = {}
    if part_N is not None:
        settings, tuning = _tuned(trained, evaluator, scales, part_N, settings, show)
    with show(f"dynamic evaluation of {scored.where}", len(encoded.ids_N) - 1) as progress:
        nats_M = evaluator.nats(trained.params, scales, encoded.ids_N, settings, progress)

    result = _measured(trained.vocab, encoded, protocol, nats_M)
    named = protocol.named(scored.sha256, scored.split, len(nats_M))
    named["method"] = f"{settings.in_words()}, gradients of the train split in {lanes}"
    if part_N is not None:
        named["tuned"] = tuning["in_words"]
    result |= {"step": trained.step, "seconds": round(time.perf_counter() - begin, 3), "protocol": named}
    if part_N is not None:
        result["tuning"] = {key: value for key, value in tuning.items() if key != "in_words"}
        if scored.split == "validation" and len(part_N) < len(encoded.ids_N):
            start = len(part_N) - 1  # the last character of the part is read before the first scored character of the rest
            positions = np.arange(start, len(encoded.ids_N))
            assert encoded.sizes_N is not None
            rest = encoded._replace(ids_N=encoded.ids_N[positions], sizes_N=encoded.sizes_N[positions])
            result["rest"] = measures.finite(_measured(trained.vocab, rest, protocol, nats_M[start:]))
    return result


def _measured(vocab: Vocab, encoded: Encoded, protocol: Protocol, nats_M: np.ndarray) -> dict[str, Any]:
    nats = float(nats_M.sum(dtype=np.float64))
    return measures.of_text(nats, len(nats_M), *protocol.counts(encoded, vocab))


def _part(ids_N: Ids) -> np.ndarray:
    """The beginning of the validation split, on which a grid is tuned."""
    return ids_N[np.arange(math.ceil(dynamic.GRID_PART * len(ids_N)))]


def _tuned(
    trained: Trained, evaluator: Evaluator, scales: Any, part_N: np.ndarray, settings: Settings, show: Show
) -> tuple[Settings, dict[str, Any]]:
    """Returns the settings of the grid with the lowest loss on `part_N`, and a dict for the field `tuning` of the result.

    The dict also has `in_words`, which the protocol needs.
    """
    grid = settings.grid()
    tried = []
    for number, each in enumerate(grid, start=1):
        what = f"setting {number} of {len(grid)}: learning rate {each.learning_rate:g}, lambda {each.decay:g}"
        with show(what, len(part_N) - 1) as progress:
            try:
                nats = float(evaluator.nats(trained.params, scales, part_N, each, progress).mean(dtype=np.float64))
            except Failure:  # settings with a high learning rate may diverge
                nats = math.inf
        tried.append(nats)
    if min(tried) == math.inf:
        raise Failure("dynamic evaluation diverged with each setting of the grid: give a lower --dynamic_learning_rate.")
    best = grid[tried.index(min(tried))]
    rates = sorted({each.learning_rate for each in grid})
    if len(rates) > 1 and best.learning_rate in (rates[0], rates[-1]):
        end, beyond = ("lowest", "lower") if best.learning_rate == rates[0] else ("highest", "higher")
        warn(
            f"the best learning rate, {best.learning_rate:g}, is the {end} of the grid, so a {beyond} learning rate may be "
            f"better: run again with --dynamic_learning_rate={best.learning_rate:g}, whose grid also has {beyond} values."
        )
    decays = sorted({each.decay for each in grid})
    words = (
        f"on the first {len(part_N):,} chars of the validation split: learning rate among {_listed(rates)}, "
        f"lambda among {_listed(decays)}"
    )
    entries = [
        {"learning_rate": each.learning_rate, "lambda": each.decay, "nats": nats if nats < math.inf else None}
        for each, nats in zip(grid, tried, strict=True)
    ]
    return best, {
        "in_words": words,
        "split": "validation",
        "first_char": 1,
        "last_char": len(part_N),
        "learning_rate": best.learning_rate,
        "lambda": best.decay,
        "tried": entries,
    }


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
