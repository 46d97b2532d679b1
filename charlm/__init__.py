"""charlm: character-level LSTM language models in JAX.

    import charlm
    model = charlm.load("runs/quickstart")
    model.surprisal("ROMEO:")                 # other methods: logits, states, score, sample
    charlm.runs("runs")                       # the runs that compare.py reads, as dicts
    charlm.train(config, "runs/first")        # trains like train.py

Importing this package does not import JAX or NumPy. They are imported when one of these functions is called for the first time.
"""

import os
from typing import TYPE_CHECKING, Any

from charlm.errors import Failure, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from charlm.inference.model import Model

__all__ = ["Failure", "UserError", "load", "runs", "train"]


def load(
    workdir: str | os.PathLike, checkpoint: str | int = "best", dtype: str | None = None, trust_code: bool = False
) -> "Model":
    """Loads the trained model of a run directory.

    Args:
      workdir: the run directory.
      checkpoint: `best`, `latest` or a step. `best` is the checkpoint with the lowest loss. The config key `train.best` says
        whether this is the validation loss or the mean training loss. If the best checkpoint can't be read, the second best is
        read instead. If the latest can't be read, the previous checkpoint is read instead. A note on stderr tells you so.
      dtype: the type of the operands of matrix products, `float32` or `bfloat16`. The default is the type used in training.
      trust_code: whether to run the code of the run's cell, if the cell is in a file of the user (`model.cell=FILE.py:NAME`).
        The file must be unchanged since the run began. Set this only if you trust the file.

    Raises:
      UserError: the directory holds no run, or the run has no such checkpoint, or the run's cell can't be loaded.
      Failure: no checkpoint can be read.
    """
    from charlm.inference import model

    return model.load(workdir, checkpoint, dtype, trust_code)


def runs(*paths: str | os.PathLike) -> list[dict]:
    """Reads all runs below these folders, like compare.py, and returns one dict for each run.

    All dicts have the same keys. `pandas.DataFrame(charlm.runs("runs"))` has one column for each key:

      name: the run's path, relative to the folder that contains all these runs.
      path: the absolute path of the run directory.
      state: incomplete, running, done, diverged, failed, pruned, or unknown.
      best: the lowest loss on the validation split, in nats per character. Without validation, the lowest mean training loss.
      best_step: the step of `best`.
      bits_per_byte: `best` in bits per byte of the scored UTF-8 text. Runs with different vocabularies can be compared by it.
      last: the latest loss of the same kind as `best`, in nats per character.
      test: the loss that evaluate.py measured on the test split, in nats per character.
      train: the latest mean training loss, in nats per character.
      protocol: how `best` and `last` were measured, in words. Losses with different protocols are not comparable.
      test_protocol, train_protocol: how `test` and `train` were measured, in words.
      steps: the number of steps trained.
      seconds: the time spent on training and evaluating.
      chars_per_second: the median training speed.
      parameters: the number of parameters.
      parent: the run directory and the step of the checkpoint whose parameters the run began with (`train.init_from`), or None.
      extended: the changes that `train.py --extend` made to the config of the run, in words, or None.
      model.hidden and all other config keys: the value of the key.
      rows: the rows of metrics.jsonl, as a list of dicts.
      problems: descriptions of data that could not be read, as a list of sentences.

    An unknown value is None.

    Raises:
      UserError: a path is not a directory or contains no runs, or no run can be read.
    """
    from charlm.compare import listing

    return listing.listed(paths)


def train(config: "ConfigDict", workdir: str | os.PathLike, extend: bool = False, trust_code: bool = False) -> dict[str, Any]:
    """Trains a model in a run directory, or resumes the run in this directory.

    The function makes the same checks as train.py, and uses the same devices and the same cache.

    `charlm.config.load.load("quickstart", {"model.hidden": 384})` makes a config from a recipe or a file. You can also change
    `charlm.config.keys.defaults()`. The config is copied, so you can change your config after the call.

    On a CPU, charlm makes up to one JAX device per core. These devices must be set up before JAX starts. Therefore, call this
    function before other JAX code. Otherwise, fewer devices are used and a note is printed.

    Args:
      config: the config.
      workdir: the run directory.
      extend: whether `config` may differ from the config of the run in this directory. If so, the config of the run is changed,
        and the run is trained on, as with `train.py --extend`.
      trust_code: whether to run the code of a cell in a file of the user, if a run directory names this file. A new run needs
        this only for the cell of `train.init_from`.

    Returns:
      The status of the run. `state` is "done". `step` is the last step. `best` is a dict with the step, nats and split of the
      best evaluation.

    Raises:
      UserError: the config, the corpus or the directory is wrong. Nothing was written.
      Failure: the run diverged, or the directory can no longer be written.
      KeyboardInterrupt: Ctrl-C was pressed. The state was saved, and the same call resumes the run.
      SystemExit: SIGTERM arrived. The state was saved, and the same call resumes the run.
    """
    from charlm.training import start

    return start.train(config, workdir, extend, trust_code)
