"""Checks the user's inputs to a trained model: texts to score, prompts, and the numbers for sampling.

The checks run before JAX is imported, so that a program reports a mistake at once. Messages name the flags of the scripts. If
an argument of a Python method has the name of a flag, a wrong argument raises the same message as a wrong flag.
"""

import codecs
import contextlib
import numbers
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from charlm import files
from charlm.config.rules import ENCODING, MOST
from charlm.data import corpora, documents
from charlm.data.framing import start_ids
from charlm.data.ids import Encoded, encode
from charlm.data.textfiles import Reading
from charlm.data.vocab import EOS, UNK, Vocab, shown
from charlm.errors import UserError
from charlm.hardware import cache
from charlm.progress import counted, warn
from charlm.rundir.run import Run

UNKNOWN = ("error", "skip")  # what to do with symbols of a prompt that are outside the vocabulary
UNKNOWN_IN_TEXT = ("error", "skip", "unk")  # what to do with symbols outside the vocabulary in a text to score
DTYPES = ("float32", "bfloat16")
EMPTY = "give at least one character of the run's vocabulary."
UNKNOWN_BEGINNING = (
    "this model has not learned how documents begin: give at least one character, or train a new model with "
    "batch.start_symbol=True and batch.padding=masked."
)
LINE_BREAK_HINT = " If \\n stands for a line break, write $'A:\\nB' in the shell."


class Number(NamedTuple):
    """The rule that checks a number from the user.

    Attributes:
      is_integer: whether the number must be an integer.
      is_right: a function that returns whether a value is in the allowed range.
      right: the allowed range in words.
    """

    is_integer: bool
    is_right: Callable[[float], bool]
    right: str


_SIZE = Number(True, lambda value: 0 <= value < 2**31, "from 0 to 2147483647")
SAMPLING = {
    "length": _SIZE,
    "temperature": Number(False, lambda value: 0 <= value <= MOST, f"from 0 to {MOST:g}"),
    "top_k": _SIZE,
    "top_p": Number(False, lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "num": Number(True, lambda value: 1 <= value < 2**31, "from 1 to 2147483647"),
    "window": _SIZE,
    "prompt_length": Number(True, lambda value: value >= 1, "1 or more"),
    "seed": Number(True, lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
}


def check_sampling(**values: float | None) -> None:
    """Raises a UserError for the first wrong number. None is allowed and means the value in the run's config."""
    for flag, value in values.items():
        number = SAMPLING[flag]
        if value is None:
            continue
        if not isinstance(value, numbers.Integral if number.is_integer else numbers.Real):
            raise UserError(f"--{flag}={value!r}: must be {'an integer' if number.is_integer else 'a number'}.")
        if not number.is_right(value):
            raise UserError(f"--{flag}={value}: must be {number.right}.")


def check_choice(flag: str, value: str | None, choices: Sequence[str]) -> None:
    """Raises a UserError if a value is not one of the choices. absl has the same message for a wrong flag."""
    if value is not None and value not in choices:
        raise UserError(f"flag --{flag}={value}: value should be one of <{'|'.join(choices)}>")


class ScoredText(NamedTuple):
    """A text to score.

    Attributes:
      text: a running text, or a list of documents.
      sha256: if the text is a split of the run's corpus, the hash of the whole corpus. Otherwise, the hash of the text.
      split: the name of the text in the protocol, which describes how a loss was measured.
      where: the name of the text in messages.
      empty: the number of empty documents that were left out.
      skipped: the number of characters outside the vocabulary that were left out.
    """

    text: corpora.Split
    sha256: str
    split: str
    where: str
    empty: int = 0
    skipped: int = 0

    def encoded(self, vocab: Vocab) -> Encoded:
        """The text as ids. Raises a UserError if the text has unknown symbols and the vocabulary has no `<unk>`."""
        return encode(vocab, self.text, self.where)


def split_to_score(run: Run, split: str | None) -> ScoredText:
    """A split of the run's corpus.

    Args:
      split: the name of the split. None means validation, or train if the run has no validation split.

    Raises:
      UserError: the split does not exist, or the corpus can't be read or has changed.
    """
    corpus = run.corpus()
    if split is None:
        split = "validation" if "validation" in corpus["splits"] else "train"
    check_split(run, "split", split)
    return ScoredText(run.splits()[split], corpus["sha256"], split, f"the {split} split")


def file_to_score(run: Run, path: str, unknown: str | None = None, encoding: str | None = None) -> ScoredText:
    """The text of a file or folder, normalised and divided into documents like the run's corpus.

    If the run's corpus came from TFDS, each line is a document.

    Args:
      path: the file, folder or pipe; `-` is standard input.
      unknown: what to do with characters outside the vocabulary. `error` raises a UserError. `skip` drops them. `unk` reads
        them as `<unk>`. None means `unk` if the vocabulary has `<unk>`, otherwise `error`.
      encoding: the encoding of the text. None means UTF-8 for standard input, and `corpus.encoding` of the run otherwise.

    Raises:
      UserError: the path is empty, the encoding is unknown, the file can't be read, the text has fewer than 2 characters,
        `unknown` refuses a character of the text, or `unknown` is `unk` although the vocabulary has no `<unk>`.
    """
    text, skipped = _text_of_file(run, path, unknown, encoding)
    return _checked_text(text, f"text {path}", f"--text={path}")._replace(skipped=skipped)


def lines_of_file(run: Run, path: str, unknown: str | None = None, encoding: str | None = None) -> list[str]:
    """The lines of a file, without line breaks. If the run's corpus has documents, returns the documents of the file instead.

    Empty lines and empty documents are included.

    See `file_to_score` for the arguments and the errors.
    """
    return lines_of(_text_of_file(run, path, unknown, encoding)[0])


def lines_of(text: corpora.Split) -> list[str]:
    """The lines of a running text, without line breaks. A list of documents is returned unchanged."""
    return text if isinstance(text, list) else documents.lines(str(text))


def _text_of_file(run: Run, path: str, unknown: str | None, encoding: str | None) -> tuple[corpora.Split, int]:
    """The text of a file, and the number of characters that were dropped from it."""
    if not path:
        raise UserError("--text=: must be a file or folder.")
    if files.is_address(path):
        raise UserError(f"--text={path}: must be a file or folder on this machine: download the text first.")
    if encoding is not None and not ENCODING.is_right(encoding):
        raise UserError(f"--encoding={encoding}: must be {ENCODING.words}.")
    reading = Reading.of(run.config())
    reading = reading._replace(encoding=encoding or ("utf-8" if path == "-" else reading.encoding))
    is_read_once = path == "-" or files.is_pipe(path)
    with _copy_of(path) if is_read_once else contextlib.nullcontext(path) as file:
        text, hint = _read(run, file, unknown, reading), _hint_of_utf8(file, reading.encoding)
    return _known(text, run.vocab(), unknown, f"--text={path}", hint)


def _read(run: Run, path: str, unknown: str | None, reading: Reading) -> corpora.Split:
    config, form = run.config(), ""
    if "documents" in run.corpus():
        form = corpora.form_of(config) or "lines"
    # Characters can be dropped only from a text in memory. Without a folder, even a long text is held in memory.
    folder = None if unknown == "skip" else cache.folder_of(config)
    normalise = corpora.Normalisation.of(config)
    try:
        return corpora.read(path, normalise, form, folder, reading, corpora.has_bytes(config))[0]
    except UserError as error:
        raise UserError(str(error).replace("corpus.encoding", "--encoding")) from error


def _hint_of_utf8(path: str, encoding: str) -> str:
    """Advice for a file that looks like UTF-8 but was read in another encoding. Otherwise an empty text."""
    if encoding == "utf-8" or not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    try:
        is_utf8 = not codecs.getincrementaldecoder("utf-8")().decode(head).isascii()
    except UnicodeDecodeError:
        is_utf8 = False
    return " The file looks like UTF-8: set --encoding=utf-8." if is_utf8 else ""


@contextlib.contextmanager
def _copy_of(path: str) -> Iterator[str]:
    """A temporary file with the contents of a pipe or of standard input (`-`), so that all texts are read in the same way."""
    try:
        content = sys.stdin.buffer.read() if path == "-" else files.read(path)
    except OSError as error:
        raise UserError(f"--text={path} can't be read: {error.strerror}.") from error
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "text"
        file.write_bytes(content)
        try:
            yield str(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), "standard input" if path == "-" else path)) from error


def _known(text: corpora.Split, vocab: Vocab, unknown: str | None, where: str, hint: str) -> tuple[corpora.Split, int]:
    """Treats characters outside the vocabulary as `unknown` says. Returns the text and the number of dropped characters.

    Args:
      hint: a sentence that follows the error message about such characters.
    """
    has_unk = vocab.id_of(UNK) is not None
    if unknown == "unk" and not has_unk:
        raise UserError("--unknown=unk: the run's vocabulary has no <unk>: give --unknown=skip to drop unknown characters.")
    unknown_symbols = vocab.missing(corpora.symbols_in(corpora.joined(text)))
    if not unknown_symbols or (unknown is None and has_unk):
        return text, 0
    if unknown in (None, "error"):
        raise UserError(
            f"{where} has {shown(unknown_symbols)}, outside the run's vocabulary: --unknown=skip drops such characters.{hint}"
        )
    if unknown == "unk":
        warn(f"{where}: characters outside the vocabulary count as <unk>: {shown(unknown_symbols)}")
        return text, 0
    table = dict.fromkeys(map(ord, unknown_symbols))
    kept: corpora.Split
    kept = [document.translate(table) for document in text] if isinstance(text, list) else str(text).translate(table)
    skipped = len(corpora.joined(text)) - len(corpora.joined(kept))
    warn(f"{where}: dropped {counted(skipped, 'char')} outside the vocabulary: {shown(unknown_symbols)}")
    return kept, skipped


def string_to_score(run: Run, text: str | Sequence[str]) -> ScoredText:
    """A string, or a sequence of documents, normalised like the run's corpus.

    If the run's corpus has documents, a string is divided into documents like a file of the corpus. If the corpus came from
    TFDS, a CSV file or a JSON Lines file, each line of the string is a document.

    Raises:
      UserError: the text has fewer than 2 characters, or is a sequence although the run's corpus is one running text.
    """
    normalise, has_documents = corpora.Normalisation.of(run.config()), "documents" in run.corpus()
    normalised: corpora.Split
    if has_documents:
        form = corpora.form_of(run.config()) or "lines"
        normalised = [normalise(document) for document in (documents.in_string(text, form) if isinstance(text, str) else text)]
    elif isinstance(text, str):
        normalised = normalise(text)
    else:
        raise UserError("text: must be a string, not a list of documents, because the run's corpus is one running text.")
    return _checked_text(normalised, "text", "the text")


def _checked_text(text: corpora.Split, split: str, where: str) -> ScoredText:
    empty = 0
    if isinstance(text, list):
        not_empty = [document for document in text if document]
        empty, text = len(text) - len(not_empty), not_empty
    joined = corpora.joined(text)
    if len(joined) < 2:
        raise UserError(f"{where} has {counted(len(joined), 'char')}, but scoring needs at least 2.")
    try:
        sha256 = corpora.sha256(text if isinstance(text, list) else [joined])
    except UnicodeEncodeError as error:  # a Python string may have a lone surrogate; a UTF-8 file can't
        raise UserError(f"{where} has half a character (\\u{ord(error.object[error.start]):04x}): remove it.") from error
    return ScoredText(text, sha256, split, where, empty)


def check_split(run: Run, flag: str, split: str) -> None:
    """Raises a UserError if the run's corpus has no split of this name."""
    splits = run.corpus()["splits"]
    if split not in splits:
        raise UserError(f"--{flag}={split} is not one of this run's splits: {', '.join(splits)}.")


def typed_prompt(prompt: str, config: ConfigDict, vocab: Vocab, unknown: str = "error") -> str:
    """A prompt of the user, with case and line breaks normalised like the run's corpus.

    Args:
      unknown: what to do with symbols outside the vocabulary. `error` raises a UserError. `skip` drops these symbols and prints
        a note on stderr.

    Raises:
      UserError: `unknown` is `error` and the prompt has symbols outside the vocabulary; or the prompt is empty, and the model
        has not learned how texts begin.
    """
    return _in_vocabulary(corpora.prompt(prompt, config), config, vocab, unknown)


def stop_texts(stop: str | Sequence[str], config: ConfigDict, vocab: Vocab) -> list[str]:
    """The texts at which a sample ends, normalised like a prompt. If `stop` is a string, it is the only such text.

    Raises:
      UserError: a text is empty, or has symbols outside the vocabulary. No sample can contain such symbols.
    """
    texts = [corpora.prompt(text, config) for text in ([stop] if isinstance(stop, str) else stop)]
    for text in texts:
        if not text:
            raise UserError("--stop=: must be a text of at least one character.")
        if missing := vocab.missing(text):
            raise UserError(
                f"--stop={text!r} has {shown(missing)}, outside the run's vocabulary: no sample can contain this text."
                f"{_line_break_hint(text, missing)}"
            )
    return texts


def own_prompt(run: Run, config: ConfigDict, vocab: Vocab, unknown: str = "error") -> str:
    """The prompt of the samples that are drawn during training; see `corpora.sample_prompt`."""
    return _checked_run_prompt(corpora.sample_prompt(config, run.splits), config, vocab, unknown)


def excerpt_prompt(run: Run, split: str, length: int, seed: int, vocab: Vocab, unknown: str = "error") -> str:
    """A prompt of at most `length` characters from a split, chosen by the seed; see `corpora.excerpt`.

    Raises:
      UserError: the split does not exist, or the corpus can't be read or has changed.
    """
    check_split(run, "prompt_from", split)
    return _checked_run_prompt(corpora.excerpt(run.splits()[split], length, seed), run.config(), vocab, unknown)


def _checked_run_prompt(prompt: str, config: ConfigDict, vocab: Vocab, unknown: str) -> str:
    """Checks a prompt that comes from the run's config or corpus, and returns the prompt.

    If the vocabulary has `<unk>` and `unknown` is `error`, all symbols are allowed, because unknown symbols become `<unk>`.
    """
    if vocab.id_of(UNK) is not None and unknown == "error":
        return prompt
    return _in_vocabulary(prompt, config, vocab, unknown)


def _in_vocabulary(prompt: str, config: ConfigDict, vocab: Vocab, unknown: str) -> str:
    unknown_symbols = vocab.missing(prompt)
    hint = _line_break_hint(prompt, unknown_symbols)
    if unknown_symbols and unknown == "error":
        raise UserError(
            f"the prompt has {shown(unknown_symbols)}, outside the run's vocabulary: --unknown=skip drops such symbols.{hint}"
        )
    prompt = "".join(symbol for symbol in prompt if symbol not in unknown_symbols)
    if not prompt and not start_ids(config, vocab):
        has_documents = vocab.id_of(EOS) is not None
        raise UserError(f"the prompt is empty{f', and {UNKNOWN_BEGINNING}' if has_documents else f': {EMPTY}'}")
    if unknown_symbols:
        warn(f"dropped from the prompt: {shown(unknown_symbols)}{f'.{hint}' if hint else ''}")
    return prompt


def _line_break_hint(text: str, missing: Sequence[str]) -> str:
    """Says how to write a line break in the shell, if the user probably typed `\\n` to get a line break. Otherwise empty.

    This is so if the text has `\\n` (a backslash and an n), and the vocabulary has no backslash.
    """
    return LINE_BREAK_HINT if "\\" in missing and "\\n" in text else ""
