"""A text that is too long to be held in memory as a Python string. The text is not divided into documents.

The text is encoded once into a file. The file holds one code per character. A code is the index of the character among the
sorted symbols of the text. The codes have the smallest unsigned integer type that can hold all indices. The file is mapped into
memory, so only the parts of the file that are read use memory.

If the vocabulary is of bytes, the file holds the bytes of the text in UTF-8 instead. A short text is then a `LongText` too, but
its bytes stay in memory. Short and long texts of bytes are therefore cut and counted in the same way.

An encoding is a folder in the cache. The folder's name is a hash of the contents of the text files and of the settings of the
normalisation, so a changed text gets a new encoding.

In names of arrays, N is the number of characters of a text.
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import numpy as np

from charlm import files as charlm_files
from charlm import progress
from charlm.data import textfiles
from charlm.data.textfiles import Reading
from charlm.data.vocab import BYTES, NUM_CODE_POINTS, Vocab, code_points, utf8_sizes
from charlm.errors import UserError

LAYOUT = 2  # version of the encoding's files; encodings of other versions are not used
BLOCK = 1 << 22  # the number of characters that are processed at a time


@dataclasses.dataclass(frozen=True)
class LongText:
    """A text, or a slice of a text. `len`, slicing and `str` work as for a string.

    Attributes:
      symbols: the distinct characters of the whole text, sorted. A slice has the same `symbols`, even if some of these
        characters do not occur in the slice.
      codes_N: for each character of the text, its index in `symbols`. The indices are unsigned integers, mapped from disk.
      sha256: the hash of the whole text as UTF-8; None for a slice, or if the hash is not known.
      is_bytes: whether the codes are the bytes of the text in UTF-8. `symbols` is then `vocab.BYTES`. All positions and lengths
        are then in bytes, also those of slices.
    """

    symbols: str
    codes_N: np.ndarray
    sha256: str | None
    is_bytes: bool = False

    @classmethod
    def of_bytes(cls, text: str) -> "LongText":
        """The bytes of a text that is in memory."""
        return cls(BYTES, np.frombuffer(text.encode("utf-8"), np.uint8), None, is_bytes=True)

    def __len__(self) -> int:
        return len(self.codes_N)

    def __getitem__(self, part: slice) -> "LongText":
        return LongText(self.symbols, self.codes_N[part], None, self.is_bytes)

    def __str__(self) -> str:
        """The text. A slice of bytes may begin or end inside a character; such a character is left out."""
        if self.is_bytes:
            return self.codes_N.tobytes().decode("utf-8", "ignore")
        return "".join(self.symbols[code] for code in self.codes_N)

    def start_of_character(self, position: int) -> int:
        """The position of the first byte of the character to which the byte at `position` belongs.

        If the text is not of bytes, the result is `position`.
        """
        while self.is_bytes and 0 < position < len(self) and 0x80 <= self.codes_N[position] < 0xC0:  # not a first byte
            position -= 1
        return position

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Symbol → how often it occurs in this text or slice, sorted by symbol. Each count is at least 1.

        The property is cached, because it reads the whole text or slice.
        """
        counts = np.zeros(len(self.symbols), np.int64)
        for block in self._blocks():
            counts += np.bincount(block, minlength=len(self.symbols))
        return {self.symbols[code]: int(counts[code]) for code in np.flatnonzero(counts)}

    @property
    def symbols_used(self) -> str:
        """The distinct symbols that occur in this text or slice, sorted."""
        return "".join(self.counts)

    def utf8(self) -> Iterator[bytes]:
        """The text as UTF-8, block by block."""
        code_points_of_symbols = code_points(self.symbols)
        for block in self._blocks():
            if self.is_bytes:
                yield block.tobytes()
                continue
            yield code_points_of_symbols[block].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8")

    def encode(self, vocab: Vocab, where: str, advice: str = "") -> "Ids":
        """The (N,) ids of the text, still mapped from disk.

        Args:
          vocab: the vocabulary.
          where, advice: for error messages; see `Vocab.encode`.

        Raises:
          UserError: the text has characters outside the vocabulary, and the vocabulary has no `<unk>`.
        """
        assert vocab.of_bytes == self.is_bytes
        if self.is_bytes:
            assert not vocab.specials  # running text needs no special symbols, so the ids are the bytes
            return self.codes_N
        used = set(self.symbols_used)
        # Symbols that do not occur in this slice may be outside the vocabulary. These symbols get an arbitrary id. This id is
        # never used.
        symbols = "".join(symbol if symbol in used else vocab.symbols[0] for symbol in self.symbols)
        table = vocab.encode(symbols, where, advice)
        if np.array_equal(table, np.arange(len(self.symbols))):
            return self.codes_N
        return Translated(self.codes_N, table)

    @property
    def sizes_N(self) -> "Translated":
        """For each position of the text, the number of bytes that the symbol at this position has in UTF-8."""
        return Translated(self.codes_N, np.ones(256, np.uint8) if self.is_bytes else utf8_sizes(self.symbols))

    def _blocks(self) -> Iterator[np.ndarray]:
        return (self.codes_N[start : start + BLOCK] for start in range(0, len(self.codes_N), BLOCK))


@dataclasses.dataclass(frozen=True)
class Translated:
    """The array of ids `table[codes_N]`. An id is computed only when its position is indexed."""

    codes_N: np.ndarray
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.codes_N)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return self.table[self.codes_N[positions]]


Ids = np.ndarray | Translated  # (N,) ids that can be indexed with an array of positions


def load(
    files: list[pathlib.Path],
    reading: Reading,
    normalise: Callable[[str], str],
    settings: dict,
    folder: pathlib.Path,
    is_bytes: bool = False,
) -> LongText:
    """The text of one or more files, joined. If the cache has no encoding of the text, this function adds the encoding.

    Args:
      files: text files, plain, .gz or .xz.
      reading: how the files are decoded and joined.
      normalise: the function that normalises a text. It is called with one block of a file after the other. The joined
        results must equal the result for the whole file.
      settings: the settings of `normalise` as JSON values. The name of the encoding depends on these settings.
      folder: the folder that holds the encodings.
      is_bytes: whether to encode the text as bytes, not as characters.

    Raises:
      UserError: a file can't be read, can't be decoded, or changes during reading. Or the encoding can't be written.
    """
    if is_bytes:
        settings = settings | {"bytes": True}
    hashes = [hashlib.sha256() for _ in files]
    for file, digest in zip(files, hashes, strict=True):
        for block in textfiles.raw(file):
            digest.update(block)
    file_hashes = [digest.hexdigest() for digest in hashes]
    encoding = folder / hashlib.sha256(json.dumps([LAYOUT, settings, reading, file_hashes]).encode()).hexdigest()[:32]
    about = _read_about(encoding)
    if about is None:
        if encoding.exists():
            progress.warn(f"the encoding in {encoding} is damaged or of an older version: encoding the text again.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{encoding.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # a second process that needs the encoding waits here
                about = _read_about(encoding) or _encode(files, file_hashes, reading, normalise, encoding, is_bytes)
        except OSError as error:
            raise UserError(
                f"the encoding of {files[0]} can't be written to {folder} ({error}): set cache_dir to another folder."
            ) from error
    codes_N = np.memmap(encoding / "codes", np.dtype(about["dtype"]), "r") if about["chars"] else np.zeros(0, np.uint8)
    return LongText(about["symbols"], codes_N, about["sha256"], is_bytes)


def _read_about(encoding: pathlib.Path) -> dict | None:
    """The contents of about.json, or None if the encoding does not exist or is damaged."""
    try:
        about = json.loads((encoding / "about.json").read_text(encoding="utf-8"))
        with (encoding / "codes").open("rb") as codes:
            codes_sha256 = hashlib.file_digest(codes, "sha256").hexdigest()
        if codes_sha256 == about["codes_sha256"]:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _encode(
    files: list[pathlib.Path],
    file_hashes: list[str],
    reading: Reading,
    normalise: Callable[[str], str],
    encoding: pathlib.Path,
    is_bytes: bool,
) -> dict:
    """Writes an encoding and returns the contents of its about.json.

    The files are read twice: first for the symbols, then for the codes. The encoding is written under a temporary name and
    renamed at the end, so every encoding in the cache is complete.

    Args:
      file_hashes: the expected sha256 of each file's bytes.

    Raises:
      UserError: a file has changed, so that its sha256 is no longer the expected one, or a file can't be decoded.
    """
    new = encoding.with_name(f"{encoding.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # a process that died while encoding may have left this folder
    shutil.rmtree(encoding, ignore_errors=True)
    new.mkdir()
    try:
        with progress.megabytes(f"encoding {files[0]} (once)", 2 * sum(file.stat().st_size for file in files)) as advance:
            seen, digest, chars = np.zeros(NUM_CODE_POINTS, bool), hashlib.sha256(), 0
            for text in _normalised_blocks(files, file_hashes, reading, normalise, advance):
                seen[code_points(text)] = True
                utf8 = text.encode("utf-8")
                digest.update(utf8)
                chars += len(utf8) if is_bytes else len(text)
            symbols = BYTES if is_bytes else "".join(map(chr, np.flatnonzero(seen)))
            dtype = np.min_scalar_type(max(0, len(symbols) - 1))
            table = np.zeros(NUM_CODE_POINTS, dtype)
            table[code_points(symbols)] = np.arange(len(symbols), dtype=dtype)
            with (new / "codes").open("wb") as codes:
                codes_digest = hashlib.sha256()
                for text in _normalised_blocks(files, file_hashes, reading, normalise, advance):
                    block = text.encode("utf-8") if is_bytes else table[code_points(text)].tobytes()
                    codes.write(block)
                    codes_digest.update(block)
                codes.flush()
                os.fsync(codes.fileno())
        about = {"symbols": symbols, "dtype": dtype.name, "chars": chars, "sha256": digest.hexdigest()}
        about |= {"codes_sha256": codes_digest.hexdigest()}
        charlm_files.write(new / "about.json", json.dumps(about))
        new.replace(encoding)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about


def _normalised_blocks(
    files: list[pathlib.Path],
    file_hashes: list[str],
    reading: Reading,
    normalise: Callable[[str], str],
    advance: Callable[[int], None],
) -> Iterator[str]:
    """The normalised text of the files, in blocks.

    A block ends after a line feed or a space. Cutting the text there does not change the result, because the normalised text
    after a line feed or a space does not depend on the text before it. A file without line feeds and spaces is one block.
    """
    expected = dict(zip(files, file_hashes, strict=True))
    for blocks in textfiles.texts_of(files, reading, lambda file: _checked_bytes(file, expected[file], advance)):
        rest, is_first = "", True
        for text in blocks:
            rest += text
            end = max(rest.rfind("\n"), rest.rfind(" ")) + 1
            if end:
                yield normalise(rest[:end] if is_first else _protected(rest[:end]))
                rest, is_first = rest[end:], False
        yield normalise(rest if is_first else _protected(rest))


def _protected(text: str) -> str:
    """Doubles U+FEFF at the start of a block that is not the first block of its file.

    At the start of a file, U+FEFF is a byte-order mark. At the start of a later block, U+FEFF is a character of the text.
    The normalisation removes one U+FEFF from the start of every block. The other U+FEFF then remains as the character.
    """
    return "\ufeff" + text if text.startswith("\ufeff") else text


def _checked_bytes(file: pathlib.Path, sha256: str, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of a file, block by block. Raises a UserError at the end if the hash of these bytes is not `sha256`."""
    digest = hashlib.sha256()
    for block in textfiles.raw(file):
        digest.update(block)
        advance(len(block))
        yield block
    if digest.hexdigest() != sha256:
        raise UserError(f"{file} changed while it was read: start again once it is complete.")
