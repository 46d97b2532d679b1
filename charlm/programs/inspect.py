"""Shows what a trained model computes inside, as one HTML page that works offline.

    scripts/inspect.py --workdir=runs/quickstart [--html=page.html] [--plots=FOLDER]
    scripts/inspect.py --workdir=runs/quickstart --text=FILE

The page colours the text by the surprisal of its characters, or by a value of any unit, such as its state, a gate or the
candidate of its new state. To see the likeliest next characters, move the mouse pointer over a character, or use the arrow
keys. The page also shows:

- the units that tell a property of the text, such as whether a character is inside quotes
- how often each gate is saturated (close to 0 or close to 1)
- the loss of the whole text, of each symbol, and by the number of characters that the model has read since the zero state
- the losses of n-grams, as a yardstick for the model

Without --text, the page shows the beginning of the run's validation split. Your own text is normalised like the run's corpus.
The model reads at most --read characters. The state is carried from the first character to the last. If the run's corpus has
documents, the state is zero before each document.

A longer text is better for finding the units that tell a property. If your own text has fewer than --read characters, and the
validation split has more characters than your text, these units are searched in the validation split instead of in your text.
"""

import os
import pathlib

from absl import flags

from charlm import cli, files
from charlm.data import corpora
from charlm.errors import UserError
from charlm.hardware import devices
from charlm.inference import inputs, ngram
from charlm.programs import model_flags
from charlm.progress import warn
from charlm.rundir.directory import check_checkpoint_name
from charlm.rundir.run import Run

FILE = "inspect.html"  # in the run directory

_WORKDIR = flags.DEFINE_string("workdir", None, "run directory")
_CHOICE_OF_TEXT = model_flags.text("show")
_TEXT, _SPLIT, _ENCODING, _UNKNOWN = _CHOICE_OF_TEXT
_CHECKPOINT = model_flags.checkpoint()
_TRUST_CODE = model_flags.trust_code()
_HTML = flags.DEFINE_string("html", None, f"file that receives the page; default: {FILE} in the run directory")
_PLOTS = flags.DEFINE_string("plots", None, "folder that receives plots as PNG files; it is made if it does not exist")
_CHARS = flags.DEFINE_integer(
    "chars",
    None,
    "number of characters that the page shows; default: 5000, or fewer if the model is so large that the page would be slow",
)
_READ = flags.DEFINE_integer("read", 50_000, "largest number of characters that the model reads and scores")
_NGRAM = flags.DEFINE_string(
    "ngram", "2..10", "orders of the n-grams, such as 5 or 2..10; with an empty value, no n-gram is computed"
)


def run() -> None:
    cli.run(main)


def main(overrides: dict[str, str]) -> None:
    del overrides
    orders = _check_flags()
    assert _WORKDIR.value is not None
    run = Run(_WORKDIR.value)
    run.status()
    page = files.check_output("html", _HTML.value or os.path.join(_WORKDIR.value, FILE), (".html",))
    folder = None if _PLOTS.value is None else _checked_folder(_PLOTS.value)
    if _TEXT.value is None:
        scored, split = inputs.split_to_score(run, _SPLIT.value), None
    else:
        scored = inputs.file_to_score(run, _TEXT.value, _UNKNOWN.value, _ENCODING.value)
        split = _split(run, scored, has_ngrams=bool(orders))
    devices.prepare(run.config(), 1)

    # These modules import JAX, which reads the settings of `prepare`.
    from charlm.inference import looking, looking_plots, model

    trained = model.load(run.workdir, _CHECKPOINT.value, trust_code=_TRUST_CODE.value).trained
    looked = looking.look(run, trained, scored, split, _READ.value, _CHARS.value, orders)
    content, images = looking.page(looked), {} if folder is None else looking_plots.draw(looked)
    files.write_output("html", page, content)
    print(f"wrote {page}.")
    if folder is not None:
        _write_plots(folder, images)


def _check_flags() -> list[int]:
    """Raises a UserError if flags are wrong or do not fit together. Returns the orders of the n-grams."""
    if _WORKDIR.value is None:
        raise UserError("--workdir is not given: see --help.")
    _CHOICE_OF_TEXT.check()
    for number, least in ((_CHARS, 1), (_READ, 2)):
        if number.value is not None and number.value < least:
            raise UserError(f"--{number.name}={number.value}: must be {least} or more.")
    check_checkpoint_name(_CHECKPOINT.value)
    return ngram.orders_of(_NGRAM.value) if _NGRAM.value else []


def _split(run: Run, scored: inputs.ScoredText, has_ngrams: bool) -> inputs.ScoredText | None:
    """The split in which units are searched if the user's text is short. None if the corpus can't be read.

    Raises:
      UserError: the corpus can't be read, although n-grams have to count its train split.
    """
    try:
        return inputs.split_to_score(run, None)
    except UserError as error:
        if has_ngrams:
            raise UserError(f"{error} Without the corpus, add --ngram= to compute no n-grams.") from error
        if len(corpora.joined(scored.text)) < _READ.value:
            warn(f"units are searched only in --text, because no split can be read: {error}")
        return None


def _checked_folder(folder: str) -> pathlib.Path:
    path = pathlib.Path(folder)
    existing = path if path.exists() else path.parent
    if not folder or not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"--plots={folder} can't be written: give a folder, or a new folder inside one that exists.")
    return path


def _write_plots(folder: pathlib.Path, images: dict[str, bytes]) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--plots={folder} can't be made ({error.strerror}): choose another folder.") from error
    for name, image in images.items():
        files.write_output("plots", folder / name, image)
        print(f"wrote {folder / name}.")
