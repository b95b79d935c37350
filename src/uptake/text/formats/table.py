"""CSV and TSV: each row below the names of the columns is a document, if one of them is the text's.

Commas, semicolons, tabs and bars divide columns, whichever do so in the first row.
"""

import csv
import re
from collections.abc import Iterator
from itertools import chain

from uptake.text.files import SkipError
from uptake.text.reading import File, Format, Item
from uptake.text.records import document, missing_text

_DELIMITERS = ",;\t|"
_END = re.compile(rb"\r\n|\n|\r")
_SEPARATOR = re.compile(r"sep=(.)\s*")  # Excel's own first line


def read(file: File) -> Iterator[Item]:
    """Yield one item a row that is not blank, numbered as a spreadsheet numbers them."""
    # Of this process alone: the format is isolated.
    csv.field_size_limit(6 * file.reading.max_document_bytes)
    lines = _lines(file)
    first = next(lines, "")
    named = _SEPARATOR.fullmatch(first)
    if named:
        first = next(lines, "")
    delimiter = named[1] if named else _delimiter(first, file.reading.text_key)
    rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header, number, found = list[str](), 0, False
    while True:
        number += 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            reason = file.reading.too_long if "larger" in str(error) else f"broken CSV row; {error}"
            yield reason, f"{file.where}:{number}"
            found = True
            continue
        if row is None:
            break
        if not header:
            header = [name.strip() for name in row]
            if file.reading.text_key not in header:
                raise SkipError(missing_text(dict.fromkeys(header), file.reading))
        elif row:
            found = True
            yield _item(file, header, row, number)
    if not found:
        raise SkipError("no record in it")


def _item(file: File, header: list[str], row: list[str], number: int) -> Item:
    where = f"{file.where}:{number}"
    if len(row) != len(header):
        return f"row that does not fit its columns; it has {len(row)} cells of {len(header)}", where
    try:
        "".join(row).encode("utf8")
    except UnicodeEncodeError:
        return file.reading.not_text, where
    record = {name: cell for name, cell in zip(header, row, strict=True) if cell}
    record.setdefault(file.reading.text_key, "")
    return document(record, f"{file.name}:{number}", file.reading, f"row {number}"), where


def _delimiter(first: str, text_key: str) -> str:
    """Return what divides the first row into columns of which one is the text's, else into the most."""

    def fits(delimiter: str) -> tuple[bool, int]:
        try:
            columns = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            columns = []
        return text_key in [column.strip() for column in columns], len(columns)

    return max(_DELIMITERS, key=fits)


def _lines(file: File) -> Iterator[str]:
    """Yield lines with their ends, whichever ends they have; bytes that are no text become surrogates."""
    parts, size = list[bytes](), 0  # of the line under way
    for chunk in file.text_chunks():
        if parts and parts[-1].endswith(b"\r"):  # the "\n" after it may be here
            last = parts.pop()
            size -= len(last)
            chunk = last + chunk
        at = 0
        for end in _END.finditer(chunk):
            if end[0] == b"\r" and end.end() == len(chunk):
                break
            yield _decoded(b"".join([*parts, chunk[at : end.end()]]), file)
            parts, size, at = [], 0, end.end()
        if at < len(chunk):
            parts.append(chunk[at:])
            size += len(chunk) - at
        if size > 6 * file.reading.max_document_bytes:
            raise SkipError(file.reading.too_long)
    if parts:
        yield _decoded(b"".join(parts), file)


def _decoded(line: bytes, file: File) -> str:
    try:
        return file.reading.decode(line)
    except UnicodeDecodeError:
        return line.decode("utf8", "surrogateescape")


format = Format((".csv", ".tsv"), read, isolated=True)
