"""Dynamic evaluation of a run: the statistics over its training text, a grid on its validation split, and the result as a dict.

The module `dynamic` has the method.
"""

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from charlm import measures
from charlm.data import batches
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
    """Raises a UserError if the protocol is not that of a stream, or if there is no split for the grid.

    Args:
      protocol: the protocol of the evaluation without learning.
      splits: a dict whose keys are the names of the run's splits.
      grid: whether a grid is tuned.
    """
    if not protocol.framing.carries_state:
        raise UserError(
            f"--dynamic reads a text as a stream, but the framing is {protocol.framing.kind!r}: add --framing=stream."
        )
    if grid and "validation" not in splits:
        raise UserError("--dynamic_grid needs a validation split, but this run has none: leave it out.")


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
      evaluator: the programs for `trained.functions`. It keeps the statistics for the next call.
      scored: the text.
      settings: the settings.
      grid: whether the learning rate and lambda are chosen on the beginning of the validation split, among `settings.grid()`.
      show: makes the display of the progress.

    Returns:
      The fields of `Model.score`. The protocol also has `method`, which describes the settings. With `grid`, the result also
      has `tuning`: the part of the validation split, and the loss for each setting. If the text is the validation split, `rest`
      has the loss of the characters after this part.

    Raises:
      UserError: a text does not fit, or the corpus of the run can't be read.
      Failure: the loss is not finite.
    """
    begin = time.perf_counter()
    protocol = Protocol.of_run(trained.config, "stream")
    encoded = scored.encoded(trained.vocab)
    dynamic.check_length(encoded.ids_N, settings.segment, scored.where)
    splits = run.splits()
    train = batches.encode(trained.vocab, splits["train"], "the train split").ids_N
    dynamic.check_length(train, settings.segment, "the train split")
    part_N = None
    if grid:
        part_N = _part(batches.encode(trained.vocab, splits["validation"], "the validation split").ids_N)
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
            start = len(part_N) - 1  # the last character of the part is an input of the first character of the rest
            positions = np.arange(start, len(encoded.ids_N))
            assert encoded.sizes_N is not None
            rest = encoded._replace(ids_N=encoded.ids_N[positions], sizes_N=encoded.sizes_N[positions])
            result["rest"] = measures.finite(_measured(trained.vocab, rest, protocol, nats_M[start:]))
    return result


def _measured(vocab: Vocab, encoded: batches.Encoded, protocol: Protocol, nats_M: np.ndarray) -> dict[str, Any]:
    nats = float(nats_M.sum(dtype=np.float64))
    return measures.of_text(nats, len(nats_M), *protocol.counts(encoded, vocab))


def _part(ids_N: batches.Ids) -> np.ndarray:
    """The beginning of the validation split, on which a grid is tuned."""
    return ids_N[np.arange(math.ceil(dynamic.GRID_PART * len(ids_N)))]


def _tuned(
    trained: Trained, evaluator: Evaluator, scales: Any, part_N: np.ndarray, settings: Settings, show: Show
) -> tuple[Settings, dict[str, Any]]:
    """The best settings of the grid on a part of the validation split, and what was tried."""
    grid = settings.grid()
    tried = []
    for number, each in enumerate(grid, start=1):
        what = f"setting {number} of {len(grid)}: learning rate {each.learning_rate:g}, lambda {each.decay:g}"
        with show(what, len(part_N) - 1) as progress:
            try:
                nats = float(evaluator.nats(trained.params, scales, part_N, each, progress).mean(dtype=np.float64))
            except Failure:  # the settings with the highest rate may diverge
                nats = math.inf
        tried.append(nats)
    if min(tried) == math.inf:
        raise Failure("dynamic evaluation diverged with each setting of the grid: give a lower --dynamic_learning_rate.")
    best = grid[tried.index(min(tried))]
    rates = sorted({each.learning_rate for each in grid})
    if len(rates) > 1 and best.learning_rate in (rates[0], rates[-1]):
        end = "lowest" if best.learning_rate == rates[0] else "highest"
        warn(
            f"the best learning rate, {best.learning_rate:g}, is the {end} of the grid: a grid around "
            f"--dynamic_learning_rate={best.learning_rate:g} may find a better one."
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
