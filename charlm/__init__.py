"""charlm: character-level LSTM language models in JAX.

    import charlm
    model = charlm.load("runs/quickstart")
    model.surprisal("ROMEO:")                 # also: logits, states, score, sample
    charlm.runs("runs")                       # what compare.py sees, as dicts
    charlm.train(config, "runs/first")        # as train.py does

Importing this package imports neither JAX nor NumPy; the first call does.
"""

import os
from typing import TYPE_CHECKING, Any

from charlm.errors import Failure, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from charlm.inference.model import Model

__all__ = ["Failure", "UserError", "load", "runs", "train"]


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


def train(config: "ConfigDict", workdir: str | os.PathLike) -> dict[str, Any]:
    """Trains a config into a run directory, or resumes the run in it, with the checks, devices and cache of train.py.

    `charlm.config.load.load("quickstart", {"model.hidden": 384})` makes a config from a recipe or a file. You can also change
    `charlm.config.keys.defaults()`. The config is copied, so it can be changed again afterwards.

    Devices: on a CPU each core is a device of its own, which must be set up before JAX starts. Call this before other JAX code,
    or a note says that fewer devices are used.

    Returns:
      the status of the run: `state` is "done"; `step` is the last step; `best` has step, nats and split of the best evaluation.

    Raises:
      UserError: the config, the corpus or the directory is wrong; nothing has been written then.
      Failure: the run diverged, or the directory can't be written any more.
      KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM arrived. The state was saved, and the same call resumes.
    """
    from charlm.training import start

    return start.train(config, workdir)
