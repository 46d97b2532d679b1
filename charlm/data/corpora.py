"""Reads the corpus that a config names, and cuts it into splits.

A corpus is either one running text or a list of documents. Its provenance describes where it comes from and what it contains.

Named corpora and TFDS datasets come from `sources`. All other corpora are files or folders of the user.
"""

import collections
import dataclasses
import fractions
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from charlm.data import documents, longtext, sources, textfiles
from charlm.data.framing import Framing
from charlm.data.longtext import LongText
from charlm.data.textfiles import Reading
from charlm.data.vocab import Vocab, counts_of, is_odd, symbols_of
from charlm.errors import UserError
from charlm.hardware import cache
from charlm.progress import counted

SPLIT_NAMES = ("train", "validation", "test")
LONG_TEXT_BYTES = 50_000_000  # a running text in files of at least this size is encoded on disk, not held in memory

Split = str | LongText | list[str]  # a running text, or a list of documents


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The splits of a running text or of a list of documents, and their provenance.

    Attributes:
      splits: split name → text (a `LongText` for large files) or list of documents, in the order train[, validation[, test]].
      provenance: a description of the corpus, as JSON values. It has the name, source, files, licence and normalisation. It
        also has the sha256 of the normalised text, the number of chars, the number of distinct symbols, the number of each odd
        symbol (see `vocab.is_odd`), and the number of chars in each split. For a corpus of documents, it also has the number of
        documents in each split.
    """

    splits: dict[str, Split]
    provenance: dict

    @property
    def is_text(self) -> bool:
        """Whether the corpus is a running text, not documents."""
        return not isinstance(self.splits["train"], list)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """The changes that are made to every text before it is used.

    Attributes:
      newlines: whether CRLF and CR become LF.
      lowercase: whether the text is lower-cased.
      keep: the characters to keep; other characters are deleted. If `keep` is empty, all characters are kept.
    """

    newlines: bool
    lowercase: bool
    keep: str

    @classmethod
    def of(cls, config: ConfigDict) -> "Normalisation":
        return cls(config.corpus.newlines, config.corpus.lowercase, config.corpus.keep)

    def __call__(self, text: str) -> str:
        text = text.removeprefix("\ufeff")  # the byte-order mark is not a character of the text
        if self.newlines and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self.lowercase:
            text = text.lower()
        if self.keep:
            text = re.sub(f"[^{re.escape(self.keep)}]+", "", text)
        return text


def load(config: ConfigDict) -> Corpus:
    """The corpus that the config names, cut into its splits.

    Raises:
      UserError: the corpus is missing, unreadable, not in its expected encoding, or empty. Or a split would have fewer than
        2 chars.
    """
    normalise, shares = Normalisation.of(config), config.corpus.split
    splits, provenance = _load_source(config, normalise)
    splits, empty_documents = _without_empty_documents(splits)
    is_bytes = has_bytes(config)
    if is_bytes:  # the splits are cut at positions of bytes, and their lengths are numbers of bytes
        splits = {name: LongText.of_bytes(split) if isinstance(split, str) else split for name, split in splits.items()}
    _check_text(splits["train"], provenance["name"], empty_documents)
    if len(splits) > 1 and len(shares) == 3:
        raise UserError(
            f"corpus.split={shares} has a third fraction for a test split, but {provenance['name']} comes with its own splits "
            f"({', '.join(splits)}): give two fractions."
        )
    # Hashing a long text is slow, so the hash that a `LongText` already has is reused. If the source has several splits, the
    # hash of the joined splits is not known yet.
    known_sha256 = splits["train"].sha256 if isinstance(splits["train"], LongText) and len(splits) == 1 else None
    if "validation" not in splits:
        splits = cut(splits.pop("train"), shares) | splits  # the source may have a test split of its own
    texts = {name: joined(split) for name, split in splits.items()}
    if is_bytes:
        texts = {name: LongText.of_bytes(text) if isinstance(text, str) else text for name, text in texts.items()}
    for name, text in texts.items():
        if len(text) < 2:
            raise UserError(
                f"the {name} split has {counted(len(text), 'char')} but needs at least 2: give a longer corpus or another "
                "corpus.split."
            )
    provenance |= {
        "sha256": known_sha256 or sha256(texts.values()),
        "chars": sum(map(len, texts.values())),
        "symbols": len(symbols_of("".join(map(symbols_in, texts.values())))),
        "odd_symbols": odd_symbols(texts.values()),
        "splits": {name: len(text) for name, text in texts.items()},
        "normalisation": dataclasses.asdict(normalise),
    }
    if isinstance(splits["train"], list):
        provenance["documents"] = {"splits": {name: len(split) for name, split in splits.items()}, "empty": empty_documents}
    return Corpus(splits, provenance)


def has_bytes(config: ConfigDict) -> bool:
    """Whether the symbols of the vocabulary are bytes, not characters."""
    return config.vocab.source == "bytes"


def vocabulary(config: ConfigDict, corpus: Corpus) -> Vocab:
    """The vocabulary of a corpus.

    Raises:
      UserError: `vocab.unknown` is set, but the symbols are bytes.
    """
    source, unknown = config.vocab.source, config.vocab.unknown
    if has_bytes(config):
        if unknown:
            raise UserError("vocab.unknown=True: must be False with vocab.source=bytes, because no byte is unknown.")
        return Vocab.all_bytes(documents=not corpus.is_text)
    names = {"train": ["train"], "corpus": list(corpus.splits)}[source]
    symbols = "".join(symbols_in(joined(corpus.splits[name])) for name in names)
    return Vocab.of(symbols, unknown, documents=not corpus.is_text)


def _load_source(config: ConfigDict, normalise: Normalisation) -> tuple[dict[str, Split], dict]:
    """The normalised splits of the source, and its provenance. The split `train` always exists."""
    path, dataset, form = config.corpus.path, config.corpus.tfds, form_of(config)
    data_dir = sources.data_dir_of(config.corpus.data_dir)
    if dataset is not None:
        documents_of, provenance = sources.of_tfds(dataset, data_dir)
        return {name: [normalise(document) for document in texts] for name, texts in documents_of.items()}, provenance
    if path is None and form:
        raise UserError(f"corpus.documents={form!r} is set, but corpus.path is not: set it to the file of the documents.")
    if path is None:
        text, provenance = sources.named(config.corpus.name, data_dir)
        return {"train": normalise(text)}, provenance
    folder, reading, is_bytes = cache.folder_of(config), Reading.of(config), has_bytes(config)
    train, provenance = read(path, normalise, form, folder, reading, is_bytes)
    if form and len(train) == 1:
        documents.check_several(form, path)
    splits = {"train": train}
    for name, split_path in (("validation", config.corpus.validation_path), ("test", config.corpus.test_path)):
        if split_path is not None:
            splits[name], split_provenance = read(split_path, normalise, form, folder, reading, is_bytes)
            provenance["files"] += split_provenance["files"]
    return splits, provenance


def _without_empty_documents(splits: dict[str, Split]) -> tuple[dict[str, Split], int]:
    """The splits without their empty documents, and the number of empty documents."""
    kept: dict[str, Split] = {}
    empty = 0
    for name, split in splits.items():
        if isinstance(split, list):
            kept[name] = [document for document in split if document]
            empty += len(split) - len(kept[name])
        else:
            kept[name] = split
    return kept, empty


def _check_text(train: Split, name: str, empty_documents: int) -> None:
    if not train and not empty_documents:
        raise UserError(f"corpus {name} has no text left: the file is empty or corpus.keep removes all of it.")
    if isinstance(train, list) and max(map(len, train), default=0) < 2:
        raise UserError(
            f"corpus {name} has no document of at least 2 chars ({len(train)} shorter, {empty_documents} empty): "
            "give another file, or another corpus.documents or corpus.keep."
        )


def joined(split: Split) -> str | LongText:
    """A split as one text: a running text is returned unchanged, and documents are joined."""
    return "".join(split) if isinstance(split, list) else split


def symbols_in(text: str | LongText) -> str:
    """The distinct characters of a text, sorted."""
    return text.symbols_used if isinstance(text, LongText) else symbols_of(text)


def odd_symbols(texts: Iterable[str | LongText]) -> dict[str, int]:
    """Odd symbol → how often the symbol occurs in the texts, sorted by symbol. `vocab.is_odd` says which symbols are odd.

    A text of bytes is skipped, because a single byte is not a character.
    """
    total: collections.Counter[str] = collections.Counter()
    for text in texts:
        if isinstance(text, LongText) and text.is_bytes:
            continue
        odd = [symbol for symbol in symbols_in(text) if is_odd(symbol)]
        counts = text.counts if isinstance(text, LongText) else counts_of(text, odd)
        total.update({symbol: counts[symbol] for symbol in odd})
    return dict(sorted(total.items()))


def prompt(text: str, config: ConfigDict) -> str:
    """A prompt, normalised like the corpus except that no character is deleted.

    Characters that `corpus.keep` would delete stay in the prompt, so that the caller can report them as unknown symbols.
    """
    return dataclasses.replace(Normalisation.of(config), keep="")(text)


def sample_prompt(config: ConfigDict, splits: Callable[[], dict[str, Split]]) -> str:
    """The prompt of the samples during training: `sample.prompt`, or the opening of the corpus if `sample.prompt` is not set.

    If the model learns how documents begin (see `batch.start_symbol`), the prompt is not the opening, but empty.

    The opening is the first char of the validation split. With the framing `windows`, the opening is the first window instead.
    If there is no validation split, the opening comes from the training split.

    Args:
      splits: returns the splits. It is called only if the prompt comes from the corpus.
    """
    if config.sample.prompt is not None:
        return prompt(config.sample.prompt, config)
    has_documents = form_of(config) or config.corpus.tfds is not None
    if has_documents and Framing.of(config).start_symbol:
        return ""
    texts = splits()
    text = joined(texts["validation" if "validation" in texts else "train"])
    length = Framing.of(config).window or 1
    return _beginning(text, length)


def _beginning(text: str | LongText, length: int) -> str:
    """The first characters of a text, at most `length`."""
    # If the text is indexed by bytes, the first `length` characters have at most 4 * length bytes.
    return str(text[: 4 * length])[:length]


def excerpt(split: Split, length: int, seed: int) -> str:
    """An excerpt of at most `length` chars, chosen by the seed.

    In a running text, the excerpt can begin at any position. In a corpus of documents, the excerpt is the beginning of one
    document. It has at most half the chars of this document (rounded up).
    """
    number = int.from_bytes(hashlib.sha256(f"excerpt {seed}".encode()).digest()[:8], "big")
    if isinstance(split, list):
        document = split[number % len(split)]
        return document[: min(length, (len(document) + 1) // 2)]
    start = number % max(1, len(split) - length + 1)
    if isinstance(split, LongText):
        start = split.start_of_character(start)
    return _beginning(split[start:], length)


def form_of(config: ConfigDict) -> str:
    """How the user's files store documents, such as `lines` for one document per line. The result is "" for a running text."""
    return config.corpus.documents


def read(
    path: str,
    normalise: Normalisation,
    form: str = "",
    folder: pathlib.Path | None = None,
    reading: Reading = textfiles.DEFAULT,
    is_bytes: bool = False,
) -> tuple[Split, dict]:
    """The normalised text or documents of a file or folder, and its provenance: name, source, files and licence.

    Args:
      path: a text file (plain, .gz or .xz), or a folder of such files.
      normalise: applied to each file, or to each document.
      form: the value of `corpus.documents`; empty for a running text. The module `documents` lists the possible values.
      folder: the cache folder, in which a long text is stored in encoded form. If None, even a long text is held in memory.
      reading: how files are decoded, and how the files of a folder are found and joined.
      is_bytes: whether a long text is stored as bytes, not as characters.

    Raises:
      UserError: a file is missing, unreadable or not in its expected encoding, or does not have the given form.
    """
    files = textfiles.listed(pathlib.Path(path), reading)
    text: Split
    if form:
        text = [normalise(document) for file in files for document in _documents(file, form, reading)]
    elif folder is not None and sum(file.stat().st_size for file in files) >= LONG_TEXT_BYTES:
        text = longtext.load(files, reading, normalise, dataclasses.asdict(normalise), folder / "corpora", is_bytes)
    else:
        text = "".join(normalise("".join(blocks)) for blocks in textfiles.texts_of(files, reading))
    return text, {
        "name": pathlib.Path(path).name,
        "source": os.path.abspath(path),
        "files": [os.path.abspath(file) for file in files],
        "licence": "unknown",
    }


def _documents(file: pathlib.Path, form: str, reading: Reading) -> list[str]:
    return documents.in_file(textfiles.text_of(file, reading).removeprefix("\ufeff"), form, file)


def cut(text: Split, shares: tuple[float, ...]) -> dict[str, Split]:
    """Cuts a running text, or a list of documents, into contiguous splits.

    Args:
      text: the text, or the documents.
      shares: the fractions of train[, validation[, test]]. The position of each cut is rounded down. For example, (0.9, 0.1)
        cuts 1,115,394 chars into 1,003,854 and 111,540. A text of bytes is cut at the start of a character.
    """
    # Decimal fractions are exact. In binary floating point, 0.9 + 0.05 is not 0.95.
    exact = [fractions.Fraction(str(share)) for share in shares]
    ends = [int(sum(exact[: k + 1]) * len(text)) for k in range(len(exact) - 1)] + [len(text)]
    if isinstance(text, LongText):
        ends = [text.start_of_character(end) for end in ends]
    return {name: text[begin:end] for name, begin, end in zip(SPLIT_NAMES, [0, *ends], ends, strict=False)}


def sha256(texts: Iterable[str | LongText]) -> str:
    """The hash of the joined texts as UTF-8.

    The hash does not depend on where documents and splits begin. The check for a changed corpus therefore compares not only the
    hash, but also the number of chars and the number of documents in each split.
    """
    digest, block = hashlib.sha256(), longtext.BLOCK
    for text in texts:
        if isinstance(text, LongText):
            blocks = text.utf8()
        else:
            blocks = (text[start : start + block].encode("utf-8") for start in range(0, len(text), block))
        for piece in blocks:
            digest.update(piece)
    return digest.hexdigest()
