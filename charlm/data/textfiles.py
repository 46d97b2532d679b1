"""Finds the files of a corpus, and decodes them block by block."""

import codecs
import gzip
import itertools
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from charlm.data import encodings
from charlm.errors import UserError
from charlm.files import is_pipe
from charlm.progress import counted, warn

BLOCK = 1 << 22  # the number of bytes that are read at a time
HEAD = 1 << 16  # the number of bytes at the start of a file that are tested to see whether the file is binary
WINDOW = 1 << 15  # the encoding is guessed from this number of bytes before a wrong byte and after it
LISTED = 10  # the maximum number of files that a note lists
NEED_A_MARK = ("utf-16", "utf-32")  # without a byte-order mark, these encodings do not say in which order the bytes are
MAY_GIVE_SURROGATES = ("utf-7", "raw-unicode-escape")  # encodings that can encode a lone surrogate, which is half a character


class Reading(NamedTuple):
    """How files become text.

    Attributes:
      encoding: the encoding of a file without a byte-order mark. A byte-order mark has priority.
      folder: how a folder is read, `tree` or `flat`; see the key `corpus.folder`.
    """

    encoding: str = "utf-8"
    folder: str = "tree"

    @classmethod
    def of(cls, config: ConfigDict) -> "Reading":
        return cls(config.corpus.encoding, config.corpus.folder)


DEFAULT = Reading()


def listed(path: pathlib.Path, reading: Reading) -> list[pathlib.Path]:
    """The files of a path in the order in which they are read. If the path is a folder, a note on stderr lists its files.

    With `reading.folder=flat`, there is no such note.

    Raises:
      UserError: the path is no file or folder, the folder has no text files, or a folder or file can't be read.
    """
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # unlike the methods of pathlib, these functions never raise
    if is_file:
        return [path]
    if is_pipe(os.fspath(path)):
        raise UserError(
            f"{path} is a pipe, which can be read only once: write its text to a file, and give the path of the file."
        )
    if not is_folder:
        raise UserError(f"{path} is not a file or folder: give the path of a text file or of a folder of text files.")
    files, skipped = (_flat if reading.folder == "flat" else _tree)(path, reading.encoding)
    omitted = f"; skipped {_names(skipped)}" if skipped else ""
    if not files:
        raise UserError(f"folder {path} has no text files (plain, .gz or .xz){omitted}.")
    if reading.folder == "tree":
        names = [os.fspath(file.relative_to(path)) for file in files]
        warn(f"folder {path}: read {counted(len(files), 'file')} in natural order: {_names(names)}{omitted}.")
    return files


def _flat(folder: pathlib.Path, encoding: str) -> tuple[list[pathlib.Path], list[str]]:
    """The files directly in a folder, sorted by name. Hidden files are left out without a note."""
    del encoding  # not needed: files are not checked here, and decoding a file that is no text raises an error later
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")), []


def _tree(folder: pathlib.Path, encoding: str) -> tuple[list[pathlib.Path], list[str]]:
    """Returns (files, skipped) of a folder.

    `files` are the text files in the folder and its subfolders, in natural order. `skipped` has the name
    of each skipped file or folder, followed by the reason.
    """
    files: list[pathlib.Path] = []
    skipped: list[tuple[pathlib.Path, str]] = []
    visited = set()
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            status = os.stat(current)
            entries = sorted(current.iterdir())
        except OSError as error:
            raise UserError(f"{current} can't be read: {error}.") from error
        if (status.st_dev, status.st_ino) in visited:  # a symbolic link leads to a folder that was read already
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            reason = _reason_to_skip(entry, encoding)
            if reason:
                skipped.append((entry, reason))
            elif os.path.isdir(entry):
                folders.append(entry)
            else:
                files.append(entry)
    in_order = sorted(skipped, key=lambda pair: natural_order(pair[0].relative_to(folder)))
    reasons = [f"{entry.relative_to(folder)} ({reason})" for entry, reason in in_order]
    return sorted(files, key=lambda file: natural_order(file.relative_to(folder))), reasons


def _reason_to_skip(entry: pathlib.Path, encoding: str) -> str:
    if entry.name.startswith("."):
        return "hidden"
    if os.path.isdir(entry):
        return ""
    if not os.path.isfile(entry):
        return "not a regular file"
    return "not text" if encodings.is_binary(_part(entry, 0, HEAD), encoding) else ""


def natural_order(path: pathlib.PurePath) -> tuple:
    """A sort key for paths. Numbers in the names are compared by value, so `2.txt` comes before `10.txt`."""
    pieces = [re.split("([0-9]+)", part) for part in path.parts]
    # re.split returns text and digits in turn, so that text is only compared with text and a number with a number.
    numbers = tuple(tuple(int(piece) if index % 2 else piece for index, piece in enumerate(part)) for part in pieces)
    return numbers, path.parts


def _names(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


def text_of(file: pathlib.Path, reading: Reading) -> str:
    """The decoded text of one file."""
    return "".join(decoded(file, reading.encoding))


def texts_of(
    files: list[pathlib.Path], reading: Reading, blocks_of: Callable[[pathlib.Path], Iterable[bytes]] | None = None
) -> Iterator[Iterator[str]]:
    """For each file, its decoded text in blocks.

    A line break follows the text of each file except the last, if the text does not end with a line break. With
    `reading.folder=flat`, no line break is added.

    Args:
      blocks_of: returns the bytes of a file in blocks. None stands for `raw`.
    """
    for number, file in enumerate(files, start=1):
        blocks = decoded(file, reading.encoding, blocks_of(file) if blocks_of else None)
        yield blocks if number == len(files) or reading.folder == "flat" else _with_line_break(blocks)


def _with_line_break(blocks: Iterator[str]) -> Iterator[str]:
    end = ""  # the last two characters
    for text in blocks:
        end = (end + text)[-2:]
        yield text
    if end not in ("", "\ufeff") and end[-1] not in "\r\n":  # a file that has only a byte-order mark is empty
        yield "\n"


def decoded(file: pathlib.Path, encoding: str, blocks: Iterable[bytes] | None = None) -> Iterator[str]:
    """The text of a file, block by block. A byte-order mark remains in the text.

    Args:
      file: the file. Its name is in the messages.
      encoding: the encoding if the file has no byte-order mark.
      blocks: the bytes of the file. None stands for `raw(file)`.

    Raises:
      UserError: the file can't be read, is no text, or is not in its expected encoding.
    """
    remaining = iter(blocks if blocks is not None else raw(file))
    head = b""
    while len(head) < encodings.MARK_BYTES and (block := next(remaining, b"")):
        head += block
    mark = encodings.marked(head)
    encoding = mark or encoding
    codec = codecs.lookup(encoding)
    if head and not mark and codec.name in NEED_A_MARK:
        raise _without_mark(file, codec.name)
    decoder, offset, nuls = codec.incrementaldecoder(), 0, encodings.Nuls()
    has_halves = codec.name in MAY_GIVE_SURROGATES
    end: list[bytes | None] = [None]
    for piece in itertools.chain([head], remaining, end):
        pending = len(decoder.getstate()[0])  # the number of bytes of a character that began in the previous block
        try:
            text = decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            raise _not_decoded(file, encoding, mark is not None, error, offset - pending) from error
        except UnicodeError as error:  # some codecs do not say which byte is wrong
            raise UserError(f"{file} is not {encoding} ({error}): set corpus.encoding to the encoding of the file.") from error
        if has_halves and (half := re.search("[\ud800-\udfff]", text)):
            raise UserError(f"{file} has half a character (\\u{ord(half[0]):04x}): correct the file.")
        offset += len(piece or b"")
        nuls.add(text)
        yield text
    likely = nuls.encoding()
    if nuls.are_most() and not likely:
        raise UserError(f"{file} is no text: {nuls.number:,} of {nuls.chars:,} characters are NULs.")
    if likely:
        raise UserError(
            f"{file} is full of NULs ({nuls.number:,} of {nuls.chars:,} characters), like UTF-16 or UTF-32 that is read in "
            f"another encoding: set corpus.encoding={likely} instead of {encoding}, or convert the file to {_name(encoding)}."
        )


def _not_decoded(
    file: pathlib.Path, encoding: str, is_marked: bool, error: UnicodeDecodeError, decoder_offset: int
) -> UserError:
    """The error for a file that is not in the expected encoding. Names the wrong byte and the likely encoding.

    Args:
      error: what the decoder raised.
      decoder_offset: the position in the file at which the decoder started to read.
    """
    position = decoder_offset + error.start
    name = _name(encoding)
    what = f"{file} is not {name}: byte 0x{error.object[error.start]:02x} at offset {position:,}"
    if is_marked:
        return UserError(f"{what}, although the byte-order mark at the start of the file names {name}: the file is damaged.")
    start = max(0, position - WINDOW) // 2 * 2
    likely = encodings.guess(_part(file, start, position + WINDOW), start == 0)
    if likely == "utf-8" == encoding:
        return UserError(
            f"{what}, but the text near this byte is UTF-8: the file is damaged, or parts of it have another encoding."
        )
    if likely:
        return UserError(f"{what}; the file looks like {likely}: set corpus.encoding={likely}, or convert the file to {name}.")
    return UserError(f"{what}: set corpus.encoding to the encoding of the file, or convert the file to {name}.")


def _without_mark(file: pathlib.Path, encoding: str) -> UserError:
    """The error for a file that has no byte-order mark, although `encoding` needs this mark (see NEED_A_MARK)."""
    likely = encodings.guess(_part(file, 0, WINDOW)) or f"{encoding}-le, {encoding}-be or the encoding of the file"
    return UserError(f"{file} has no byte-order mark, which corpus.encoding={encoding} needs: set corpus.encoding={likely}.")


def _name(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8" else encoding


def _part(file: pathlib.Path, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of a file."""
    found, offset = b"", 0
    for block in raw(file):
        found += block[max(0, start - offset) : max(0, end - offset)]
        offset += len(block)
        if offset >= end:
            break
    return found


def raw(file: pathlib.Path) -> Iterator[bytes]:
    """The bytes of a file, block by block. Files whose names end in .gz or .xz are decompressed.

    Raises:
      UserError: the file can't be read.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    open_file = openers.get(file.suffix, open)
    try:
        with open_file(file, "rb") as stream:
            while block := stream.read(BLOCK):
                yield block
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{file} can't be read: {error}.") from error
