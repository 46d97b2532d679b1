"""charlm: character-level LSTM language models in JAX.

    import charlm
    model = charlm.load("runs/quickstart")
    model.surprisal("ROMEO:")                 # also: logits, states, score, sample
    charlm.runs("runs")                       # what compare.py sees, as dicts

Importing this package imports neither JAX nor NumPy; the first call does.
"""

import os
from typing import TYPE_CHECKING

from charlm.errors import Failure, UserError

if TYPE_CHECKING:
    from charlm.inference.model import Model

__all__ = ["Failure", "UserError", "load", "runs"]


def load(workdir: str | os.PathLike, checkpoint: str | int = "best", dtype: str | None = None) -> "Model":
    """The trained model of a run directory.

    Args:
      checkpoint: `best` (by the loss that `train.best` names), `latest`, or a step. If `best` or `latest` can't be read, the
        next one is read instead, with a note on stderr.
      dtype: of the operands of matrix products, `float32` or `bfloat16`; by default that of the training.

    Raises:
      UserError: the directory holds no run, or no such checkpoint.
      Failure: no checkpoint can be read.
    """
    from charlm.inference import model

    return model.load(workdir, checkpoint, dtype)


def runs(*paths: str | os.PathLike) -> list[dict]:
    """All runs below these folders, as compare.py sees them: one dict for each run, all with the same keys.

    `pandas.DataFrame(charlm.runs("runs"))` has a column for each key:

      name, path: of the run directory; the name is what tells it from the others.
      state: incomplete, running, done, diverged, failed, or unknown.
      best, best_step, last: nats per character of the validation split, or of the mean training loss if there is no validation.
      test: nats per character that evaluate.py measured on the test split. train: the latest mean training loss.
      protocol, test_protocol, train_protocol: in words, how those were measured; only figures with the same words compare.
      steps, seconds, chars_per_second: that were done, that it took, and the median speed.
      parameters: of the model.
      model.hidden, and every other config key under its dotted name.
      rows: the rows of metrics.jsonl, a list of dicts. problems: what could not be read, a list of sentences.

    A figure that is not known is None.

    Raises:
      UserError: a path is no directory or holds no runs, or none of them can be read.
    """
    from charlm.compare import listing

    return listing.listed(paths)
