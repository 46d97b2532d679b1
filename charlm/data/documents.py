"""Divides the text of a file into documents. The config key `corpus.documents` names the form in which a file stores them.

lines             each line is a document
blank             documents are separated by blank lines
separator:TEXT    documents are separated by TEXT
files             each file is a document
csv:COLUMN        each cell of a CSV column is a document
jsonl:FIELD       each line is a JSON object, and this field of the object is a document

To add a form, add a case to `in_file` and extend the rule DOCUMENTS in `charlm/config/rules.py`.
"""

import csv
import io
import itertools
import json
import os
import pathlib
import re

from charlm.errors import UserError
from charlm.progress import counted

LINE_BREAK = "(?>\r\n|\r|\n)"  # an atomic group: the CR and LF of a CRLF never match as two line breaks


def in_file(text: str, form: str, file: str | os.PathLike) -> list[str]:
    """The documents of a file, in order. Some of them may be empty.

    Args:
      text: the text of the file.
      form: the value of `corpus.documents`.
      file: the name of the file in messages.

    Raises:
      UserError: the file does not have this form.
    """
    kind, _, argument = form.partition(":")
    match kind:
        case "lines":
            return lines(text)
        case "blank":
            return blocks(text)
        case "separator":
            return separated(text, argument)
        case "files":
            return [_without_outer_breaks(text)]
        case "csv":
            return _csv_column(pathlib.Path(file), text, argument)
        case "jsonl":
            numbered = enumerate(text.split("\n"), start=1)
            return [_json_field(pathlib.Path(file), number, line, argument) for number, line in numbered if line.strip()]
    raise ValueError(f"unknown form of documents {form!r}")


def in_string(text: str, form: str) -> list[str]:
    """The documents of a string. The string is divided in the same way as a file of this form.

    The forms csv and jsonl are exceptions: each line of the string is then a document.
    """
    return lines(text) if form.startswith(("csv:", "jsonl:")) else in_file(text, form, "the text")


def check_several(form: str, path: str) -> None:
    """Called for a corpus that has only one document. Raises a UserError with the reason if the form needs several documents.

    These forms are blank, separator and files.

    Args:
      form: the value of `corpus.documents`.
      path: the file or folder of the corpus.
    """
    kind, _, separator = form.partition(":")
    reasons = {
        "blank": "it has no blank line between two documents",
        "separator": f"it does not have the text {separator!r} between two documents",
        "files": "give a folder, in which each file is a document",
    }
    if kind in reasons:
        raise UserError(f"corpus.documents={form!r}: {path} is only one document: {reasons[kind]}.")


def blocks(text: str) -> list[str]:
    """The blocks of lines between blank lines. A line is blank if it has no character or only whitespace."""
    found = itertools.groupby(io.StringIO(text, newline=""), key=lambda line: not line.strip())
    return [_without_outer_breaks("".join(block)) for is_blank, block in found if not is_blank]


def separated(text: str, separator: str) -> list[str]:
    """The pieces of a text between the occurrences of a separator.

    A line break in the separator matches CRLF, CR and LF in the text. Line breaks at the start and the end of a piece are left
    out, so the separator may stand on a line of its own.
    """
    pattern = LINE_BREAK.join(map(re.escape, re.split(LINE_BREAK, separator)))
    found = [_without_outer_breaks(piece) for piece in re.split(pattern, text)]
    return found if found[-1] else found[:-1]  # a separator at the end of the text starts no new document


def _without_outer_breaks(text: str) -> str:
    return text.strip("\r\n")


def lines(text: str) -> list[str]:
    """The lines of a text. Each CRLF, CR or LF ends a line."""
    found = re.split(LINE_BREAK, text)
    return found if found[-1] else found[:-1]  # a line break at the end of the text starts no new line


def _csv_column(file: pathlib.Path, text: str, field: str) -> list[str]:
    """The values of one CSV column.

    Args:
      field: the name of the column, which the first row of the file must contain. If the file has no row of names, `field` is
        the number of the column, counted from 0.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise UserError(f"{file} is not a CSV file: {error}.") from error
    names = rows[0] if rows else []
    if field.isascii() and field.isdigit() and len(field) < 10:
        column = int(field)
    elif field in names:
        column, rows = names.index(field), rows[1:]
    else:
        raise UserError(
            f"{file} has no column {field!r}: its first row has {', '.join(map(repr, names)) or 'nothing'}; for a file without "
            "column names, give the column's number, counted from 0."
        )
    for number, row in enumerate(rows, start=1):
        if column >= len(row):
            raise UserError(f"{file} row {number} has no column {field}: it has {counted(len(row), 'column')}, counted from 0.")
    return [row[column] for row in rows]


def _json_field(file: pathlib.Path, number: int, line: str, field: str) -> str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} line {number} is not JSON ({error}): each line must be one JSON object.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{file} line {number} has no field {field!r}: it is not a JSON object.")
    if field not in fields:
        raise UserError(f"{file} line {number} has no field {field!r}: it has {', '.join(map(repr, fields)) or 'none'}.")
    if not isinstance(fields[field], str):
        raise UserError(f"{file} line {number}: field {field!r} is {fields[field]!r}, but must be a string.")
    if surrogate := re.search("[\ud800-\udfff]", fields[field]):
        raise UserError(
            f"{file} line {number}: field {field!r} has half a character (\\u{ord(surrogate[0]):04x}): correct that line."
        )
    return fields[field]
