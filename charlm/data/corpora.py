"""From the config to a running text, or documents, by split, with its provenance.

A named corpus and a dataset of TFDS come from `sources`; everything else is a file or folder of the user's.
"""

import csv
import dataclasses
import fractions
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable

from charlm.data import longtext, sources
from charlm.data.longtext import LongText
from charlm.data.vocab import symbols_of
from charlm.errors import UserError
from charlm.hardware import cache

SPLIT_NAMES = ("train", "validation", "test")
LONG = 50_000_000  # bytes of files from which a running text is encoded on disk instead of held in memory

Split = str | LongText | list[str]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A running text or documents by split, and where they came from.

    Attributes:
      splits: the split's name → its text (a LongText where files are large), or the list of its documents, in the order
        train[, validation[, test]].
      provenance: name, source, files, sha256 of the text as used, licence, chars, symbols, chars by split, normalisation, and
        the number of documents.
    """

    splits: dict[str, Split]
    provenance: dict

    @property
    def is_text(self) -> bool:
        return not isinstance(self.splits["train"], list)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What is done to a text before anything else sees it."""

    newlines: bool
    lowercase: bool
    keep: str

    @classmethod
    def of(cls, config) -> "Normalisation":
        return cls(config.corpus.newlines, config.corpus.lowercase, config.corpus.keep)

    def __call__(self, text: str) -> str:
        text = text.removeprefix("\ufeff")  # the byte-order mark is no character of the text
        if self.newlines and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self.lowercase:
            text = text.lower()
        if self.keep:
            text = re.sub(f"[^{re.escape(self.keep)}]+", "", text)
        return text


def load(config) -> Corpus:
    """The corpus that the config names, cut into its splits.

    Raises:
      UserError: it is missing, unreadable, not UTF-8, empty, or a split of it would be empty.
    """
    normalise, fractions_of = Normalisation.of(config), config.corpus.split
    splits, provenance = _uncut(config, normalise)
    empty = sum(not document for split in splits.values() if isinstance(split, list) for document in split)
    splits = {name: [text for text in split if text] if isinstance(split, list) else split for name, split in splits.items()}
    known_sha256 = splits["train"].sha256 if isinstance(splits["train"], LongText) and len(splits) == 1 else None
    _check_text(splits["train"], provenance["name"], empty)
    if len(splits) > 1 and len(fractions_of) == 3:
        raise UserError(
            f"corpus.split={fractions_of} has a third share, of a test split, but {provenance['name']} comes with splits "
            f"of its own ({', '.join(splits)}): two shares would be right."
        )
    if "validation" not in splits:
        splits = cut(splits.pop("train"), fractions_of) | splits  # beside a test split that came with the corpus
    texts = {name: joined(split) for name, split in splits.items()}
    for name, text in texts.items():
        if len(text) < 2:
            raise UserError(
                f"the {name} split has {len(text)} chars but needs at least 2: give a longer corpus or another corpus.split."
            )
    provenance |= {
        "sha256": known_sha256 or sha256(texts.values()),
        "chars": sum(map(len, texts.values())),
        "symbols": len(symbols_of("".join(map(symbols_in, texts.values())))),
        "splits": {name: len(text) for name, text in texts.items()},
        "normalisation": dataclasses.asdict(normalise),
    }
    if isinstance(splits["train"], list):
        provenance["documents"] = {"splits": {name: len(split) for name, split in splits.items()}, "empty": empty}
    return Corpus(splits, provenance)


def _uncut(config, normalise: Normalisation) -> tuple[dict, dict]:
    """The splits as their source has them, normalised: at least `train`; and where they came from."""
    form, path, dataset, name = form_of(config), config.corpus.path, config.corpus.tfds, config.corpus.name
    data_dir = sources.data_dir_of(config.corpus.data_dir)
    own_paths = {"validation": config.corpus.validation_path, "test": config.corpus.test_path}
    if dataset is not None:
        splits, provenance = sources.of_tfds(dataset, data_dir)
        return {split: [normalise(document) for document in documents] for split, documents in splits.items()}, provenance
    if path is None and form:
        raise UserError(f"corpus.documents={form!r} is set, but corpus.path is not: give the file of the documents there.")
    if path is None:
        text, provenance = sources.named(name, data_dir)
        return {"train": normalise(text)}, provenance
    folder = cache.folder_of(config)
    text, provenance = read(path, normalise, form, folder)
    splits = {"train": text}
    for split, own_path in own_paths.items():
        if own_path is not None:
            splits[split], own = read(own_path, normalise, form, folder)
            provenance["files"] += own["files"]
    return splits, provenance


def _check_text(train: Split, name: str, empty: int) -> None:
    if not train and not empty:
        raise UserError(f"corpus {name} has no text left: the file is empty or corpus.keep removes all of it.")
    if isinstance(train, list) and max(map(len, train), default=0) < 2:
        raise UserError(
            f"corpus {name} has no document of 2 chars ({len(train)} shorter, {empty} empty): "
            "give another file, or another corpus.documents or corpus.keep."
        )


def joined(split: Split) -> str | LongText:
    """A running text as it is, documents one after another."""
    return "".join(split) if isinstance(split, list) else split


def symbols_in(text: str | LongText) -> str:
    """The distinct characters of a text, sorted."""
    return text.symbols_used if isinstance(text, LongText) else symbols_of(text)


def prompt(text: str, config) -> str:
    """A prompt with the case and line breaks that the corpus has; what its vocabulary has not is told, not dropped."""
    return dataclasses.replace(Normalisation.of(config), keep="")(text)


def opening(splits: dict[str, Split], length: int) -> str:
    """The prompt where a config names none: the first chars of validation, or of train where there is no validation."""
    return str(joined(splits["validation" if "validation" in splits else "train"])[:length])


def excerpt(split: Split, length: int, seed: int) -> str:
    """At most `length` chars, chosen by the seed: a window of a text, or of a document at most its first half, rounded up."""
    number = int.from_bytes(hashlib.sha256(f"excerpt {seed}".encode()).digest()[:8], "big")
    if isinstance(split, list):
        document = split[number % len(split)]
        return document[: min(length, (len(document) + 1) // 2)]
    start = number % max(1, len(split) - length + 1)
    return str(split[start : start + length])


def form_of(config) -> str:
    """How the user's file holds documents; empty where it is one running text."""
    return config.corpus.documents


def read(path: str, normalise: Normalisation, form: str = "", folder: pathlib.Path | None = None) -> tuple[Split, dict]:
    """The normalised text, or documents, of a file or folder, and its name, source and files.

    Args:
      form: `corpus.documents`: empty for a running text, else how a file holds documents.
      folder: of the cache, for the encoding of a long text; None holds it in memory however long it is.
    """
    files = _files(pathlib.Path(path))
    if form:
        text = [normalise(document) for file in files for document in _documents(file, form)]
    elif folder is not None and sum(file.stat().st_size for file in files) >= LONG:
        text = longtext.load(files, normalise, dataclasses.asdict(normalise), folder / "corpora")
    else:
        text = "".join(normalise(_decoded(file)) for file in files)
    return text, {
        "name": pathlib.Path(path).name,
        "source": os.path.abspath(path),
        "files": [os.path.abspath(file) for file in files],
        "licence": "unknown",
    }


def _documents(file: pathlib.Path, form: str) -> list[str]:
    text = _decoded(file).removeprefix("\ufeff")
    kind, _, field = form.partition(":")
    if kind == "lines":
        return lines(text)
    if kind == "csv":
        return _csv_column(file, text, field)
    return [_json_field(file, number, line, field) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def lines(text: str) -> list[str]:
    """The lines of a text, which the usual three line breaks end."""
    found = re.split("\r\n|\r|\n", text)
    return found if found[-1] else found[:-1]  # the last line break ends a line, and begins none


def _csv_column(file: pathlib.Path, text: str, field: str) -> list[str]:
    """A column by its name in the first row, or by its number, counted from 0, where there is no row of names."""
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise UserError(f"{file} is no CSV file: {error}.") from error
    names = rows[0] if rows else []
    if field.isascii() and field.isdigit() and len(field) < 10:
        column, rows = int(field), rows
    elif field in names:
        column, rows = names.index(field), rows[1:]
    else:
        raise UserError(
            f"{file} has no column {field!r}: its first row has {', '.join(map(repr, names)) or 'nothing'}; a number, from 0, "
            "takes a column of a file without names."
        )
    for number, row in enumerate(rows, start=1):
        if column >= len(row):
            raise UserError(f"{file} has no column {field} in row {number}, which has {len(row)}: columns are counted from 0.")
    return [row[column] for row in rows]


def _json_field(file: pathlib.Path, number: int, line: str, field: str) -> str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} line {number} is not JSON ({error}): one object a line would be right.") from error
    if not isinstance(fields, dict) or field not in fields:
        have = ", ".join(map(repr, fields)) if isinstance(fields, dict) else "no object"
        raise UserError(f"{file} line {number} has no field {field!r}: it has {have}.")
    if not isinstance(fields[field], str):
        raise UserError(f"{file} line {number}: field {field!r} is {fields[field]!r}, not a text.")
    if lone := re.search("[\ud800-\udfff]", fields[field]):
        raise UserError(
            f"{file} line {number}: field {field!r} has half a character (\\u{ord(lone[0]):04x}), as cut texts do: mend it."
        )
    return fields[field]


def cut(text: Split, split: tuple[float, ...]) -> dict[str, Split]:
    """Cuts a text, or a list of documents, at the given fractions, each cut rounded down.

    (0.9, 0.1) of 1,115,394 chars gives 1,003,854 and 111,540.
    """
    # As written, not as the nearest binary float: 0.9 + 0.05 is to be 0.95.
    shares = [fractions.Fraction(str(share)) for share in split]
    ends = [int(sum(shares[: k + 1]) * len(text)) for k in range(len(shares) - 1)] + [len(text)]
    return {name: text[begin:end] for name, begin, end in zip(SPLIT_NAMES, [0, *ends], ends, strict=False)}


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # which do without an error for names that can't be
    if is_file:
        return [path]
    if is_folder:
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise UserError(f"folder {path} has no files: put UTF-8 text files there (plain, .gz or .xz).")
        return files
    raise UserError(f"{path} is no file or folder: give the path of a UTF-8 text file or of a folder of them.")


def _decoded(file: pathlib.Path) -> str:
    try:
        return b"".join(longtext.raw(file)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise longtext.not_utf8(file, error) from error


def sha256(texts: Iterable[str | LongText]) -> str:
    """Of texts joined, as UTF-8. Where documents begin is not in it; that is compared by their number and length."""
    digest, block = hashlib.sha256(), longtext.BLOCK
    for text in texts:
        if isinstance(text, LongText):
            blocks = text.utf8()
        else:
            blocks = (text[start : start + block].encode("utf-8") for start in range(0, len(text), block))
        for piece in blocks:
            digest.update(piece)
    return digest.hexdigest()
