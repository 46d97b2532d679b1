"""A running text too long to hold as a Python string: encoded once, block by block, into a file that is mapped into memory.

The file holds for each character its place among the sorted symbols of the text, in the smallest unsigned type that fits; only
the pages that are read take memory. It stands in the cache folder under a hash of the files and of what was done to them,
so that another text never meets it.

Letters: N characters.
"""

import codecs
import dataclasses
import fcntl
import functools
import gzip
import hashlib
import json
import lzma
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from charlm import files as charlm_files
from charlm import progress
from charlm.data.vocab import NUM_CODE_POINTS, Vocab, code_points
from charlm.errors import UserError

LAYOUT = 2  # of the files in the cache folder; another number makes old ones unused
BLOCK = 1 << 22  # bytes read, or characters looked at, together


@dataclasses.dataclass(frozen=True)
class LongText:
    """A text, or a piece of one; `len`, slicing and `str` are those of a string.

    Attributes:
      symbols: all characters of the text that this is a piece of, sorted.
      codes_N: unsigned, mapped from disk: the place of each character in `symbols`.
      sha256: of the whole text as UTF-8; None for a piece.
    """

    symbols: str
    codes_N: np.ndarray
    sha256: str | None

    def __len__(self) -> int:
        return len(self.codes_N)

    def __getitem__(self, stretch: slice) -> "LongText":
        return LongText(self.symbols, self.codes_N[stretch], None)

    def __str__(self) -> str:
        return "".join(self.symbols[code] for code in self.codes_N)

    @functools.cached_property
    def symbols_used(self) -> str:
        """The distinct characters of this piece, sorted; counted once, since that reads all of it."""
        counts = np.zeros(len(self.symbols), np.int64)
        for block in self._blocks():
            counts += np.bincount(block, minlength=len(self.symbols))
        return "".join(self.symbols[code] for code in np.flatnonzero(counts))

    def utf8(self) -> Iterator[bytes]:
        """The piece as UTF-8, block by block."""
        codes_of_symbols = code_points(self.symbols)
        for block in self._blocks():
            yield codes_of_symbols[block].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8")

    def encode(self, vocab: Vocab, where: str) -> "np.ndarray | Translated":
        """The piece as ids of a vocabulary; mapped from disk still.

        Raises:
          UserError: as `Vocab.encode` does.
        """
        used = set(self.symbols_used)
        # Symbols that this piece has not may be outside the vocabulary: any id will do for them.
        table = vocab.encode("".join(symbol if symbol in used else vocab.symbols[0] for symbol in self.symbols), where)
        if np.array_equal(table, np.arange(len(self.symbols))):
            return self.codes_N
        return Translated(self.codes_N, table)

    def _blocks(self) -> Iterator[np.ndarray]:
        return (self.codes_N[start : start + BLOCK] for start in range(0, len(self.codes_N), BLOCK))


@dataclasses.dataclass(frozen=True)
class Translated:
    """Codes read through a table, as an array of ids that is never made as a whole."""

    codes_N: np.ndarray
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.codes_N)

    def __getitem__(self, places) -> np.ndarray:
        return self.table[self.codes_N[places]]


def load(files: list[pathlib.Path], normalise: Callable[[str], str], how: dict, folder: pathlib.Path) -> LongText:
    """The text of some files joined, from the cache folder; encoded into it where it is not there yet.

    Args:
      normalise: applied to each file as if it were read as a whole.
      how: what `normalise` does, for the name of the encoding.
      folder: of the cache.

    Raises:
      UserError: a file can't be read or is not UTF-8.
    """
    hashes = [hashlib.sha256() for _ in files]
    for file, digest in zip(files, hashes, strict=True):
        for block in raw(file):
            digest.update(block)
    content = [digest.hexdigest() for digest in hashes]
    place = folder / hashlib.sha256(json.dumps([LAYOUT, how, content]).encode()).hexdigest()[:32]
    about = _about(place)
    if about is None:
        if place.exists():
            progress.warn(f"the encoding in {place} is damaged or of an older version: it is made anew.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{place.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # of two that want the same encoding one makes it
                about = _about(place) or _encode(files, content, normalise, place)
        except OSError as error:
            raise UserError(
                f"the encoding of {files[0]} can't be kept in {folder} ({error}): cache_dir names another."
            ) from error
    codes_N = np.memmap(place / "codes", np.dtype(about["dtype"]), "r") if about["chars"] else np.zeros(0, np.uint8)
    return LongText(about["symbols"], codes_N, about["sha256"])


def _about(place: pathlib.Path) -> dict | None:
    """What is known of an encoding that is as it was written; None where there is none."""
    try:
        about = json.loads((place / "about.json").read_text(encoding="utf-8"))
        with (place / "codes").open("rb") as codes:
            found = hashlib.file_digest(codes, "sha256").hexdigest()
        if found == about["codes_sha256"]:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _encode(files: list[pathlib.Path], content: list[str], normalise: Callable[[str], str], place: pathlib.Path) -> dict:
    """Writes the encoding and says what it is of; its folder appears when it is whole.

    Args:
      content: sha256 of each file's bytes, which must stay so while they are read.
    """
    new = place.with_name(f"{place.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a process that died amid it
    shutil.rmtree(place, ignore_errors=True)
    new.mkdir()
    try:
        with progress.megabytes(f"encoding {files[0]} (once)", 2 * sum(file.stat().st_size for file in files)) as advance:
            seen, digest, chars = np.zeros(NUM_CODE_POINTS, bool), hashlib.sha256(), 0
            for text in _pieces(files, content, normalise, advance):
                seen[code_points(text)] = True
                digest.update(text.encode("utf-8"))
                chars += len(text)
            symbols = "".join(map(chr, np.flatnonzero(seen)))
            dtype = np.min_scalar_type(max(0, len(symbols) - 1))
            table = np.zeros(NUM_CODE_POINTS, dtype)
            table[code_points(symbols)] = np.arange(len(symbols), dtype=dtype)
            with (new / "codes").open("wb") as codes:
                written = hashlib.sha256()
                for text in _pieces(files, content, normalise, advance):
                    block = table[code_points(text)].tobytes()
                    codes.write(block)
                    written.update(block)
                codes.flush()
                os.fsync(codes.fileno())
        about = {"symbols": symbols, "dtype": dtype.name, "chars": chars, "sha256": digest.hexdigest()}
        about |= {"codes_sha256": written.hexdigest()}
        charlm_files.write(new / "about.json", json.dumps(about))
        new.replace(place)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about


def _pieces(
    files: list[pathlib.Path], content: list[str], normalise: Callable[[str], str], advance: Callable[[int], None]
) -> Iterator[str]:
    """The normalised text of files in pieces that end where normalising does not look across: at a line feed or a space.

    A file without either is one piece.
    """
    for file, sha256 in zip(files, content, strict=True):
        rest, first = "", True
        for text in _decoded(file, sha256, advance):
            rest += text
            end = max(rest.rfind("\n"), rest.rfind(" ")) + 1
            if end:
                yield normalise(rest[:end] if first else _kept(rest[:end]))
                rest, first = rest[end:], False
        yield normalise(rest if first else _kept(rest))


def _kept(text: str) -> str:
    """Normalising drops a byte-order mark at the beginning of a file; one at the beginning of a later piece is a character."""
    return "\ufeff" + text if text.startswith("\ufeff") else text


def _decoded(file: pathlib.Path, sha256: str, advance: Callable[[int], None]) -> Iterator[str]:
    decoder, offset, digest = codecs.getincrementaldecoder("utf-8")(), 0, hashlib.sha256()
    try:
        for block in raw(file):
            waiting = len(decoder.getstate()[0])  # bytes of a character that the block before began
            yield decoder.decode(block)
            offset += len(block)
            digest.update(block)
            advance(len(block))
        waiting = len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(file, error, offset - waiting) from error
    if digest.hexdigest() != sha256:
        raise UserError(f"{file} has changed while it was read: start again once it is complete.")


def raw(file: pathlib.Path) -> Iterator[bytes]:
    """A file's bytes, unpacked where its name ends in .gz or .xz, block by block.

    Raises:
      UserError: it can't be read.
    """
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    try:
        with opened(file, "rb") as stream:
            while block := stream.read(BLOCK):
                yield block
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file} can't be read: {error}.") from error


def not_utf8(file: pathlib.Path, error: UnicodeDecodeError, offset: int = 0) -> UserError:
    """What to tell the user; `offset` is where in the file the bytes stand that the error is about."""
    byte, place = error.object[error.start], offset + error.start
    return UserError(f"{file} is not UTF-8: byte 0x{byte:02x} at offset {place:,}; convert it, for example with iconv.")
