"""What one file of each format holds: documents, or the reasons why there are none.

Every function yields (document or reason, where it stood). What ends a file early is raised.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uptake.text.files import SkipError, read_chunks, read_lines, shown
from uptake.text.types import Document

_SNIFF_BYTES = 8192
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SCALARS = str | int | float | bool
_ROWS = 64  # parquet rows decoded at a time


@dataclass(frozen=True, slots=True)
class Limits:
    """The most bytes a document may have as UTF-8, and a file once unpacked."""

    document: int = 64 << 20
    decompressed: int = 16 << 30


# A document, or the reason why there is none; and where it stood.
Item = tuple[Document | str, str]


def text_file(path: Path, name: str, limits: Limits) -> Iterator[Item]:
    """Yield the one document of a file of plain text."""
    raw = bytearray()
    for chunk in read_chunks(path, limits.decompressed):
        raw += chunk
        if raw.find(b"\0", 0, _SNIFF_BYTES) >= 0:
            raise SkipError("binary file")
        if len(raw) > limits.document:
            raise SkipError(f"longer than {limits.document} bytes")
    yield document({"text": bytes(raw.removeprefix(_BYTE_ORDER_MARK))}, name, limits), shown(path)


def json_lines(path: Path, name: str, limits: Limits) -> Iterator[Item]:
    """Yield one item a line that is not blank."""
    # "\u0041" is six bytes for one character.
    lines = read_lines(read_chunks(path, limits.decompressed), 6 * limits.document)
    for number, line in enumerate(lines, start=1):
        where = f"{shown(path)}:{number}"
        if line is None:
            yield f"longer than {limits.document} bytes", where
        elif line.strip():
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            yield _json_document(line, f"{name}:{number}", limits), where


def _json_document(line: bytes, name: str, limits: Limits) -> Document | str:
    try:
        record = json.loads(line.decode("utf8"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "broken JSON"
    return document(record, name, limits) if isinstance(record, dict) else "not a JSON object"


def parquet(path: Path, name: str, limits: Limits) -> Iterator[Item]:
    """Yield one item a row, from the columns text, id and group."""
    number = 0
    for columns in _parquet_columns(path, limits):
        for row in zip(*columns.values(), strict=True):
            number += 1
            record = dict(zip(columns, row, strict=True))
            yield document(record, f"{name}:{number}", limits), f"{shown(path)}:{number}"


def _parquet_columns(path: Path, limits: Limits) -> Iterator[dict[str, list[Any]]]:
    """Yield a few rows at a time as columns; strings come as bytes, so that bad UTF-8 costs its row alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unpacked = 0
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in ("id", "text", "group") if name in file.schema_arrow.names]
            if "text" not in names:
                raise SkipError("no text column")
            for batch in file.iter_batches(_ROWS, columns=names):
                unpacked += batch.nbytes
                if unpacked > limits.decompressed:
                    raise SkipError(f"unpacks to more than {limits.decompressed} bytes")
                columns = {}
                for name in names:
                    column = batch.column(name)
                    if pa.types.is_dictionary(column.type):
                        column = column.dictionary_decode()
                    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                        column = column.cast(pa.large_binary())
                    columns[name] = column.to_pylist()
                yield columns
    except SkipError:
        raise
    except Exception as error:  # Arrow raises as many kinds as it has parts
        raise SkipError("unreadable parquet file") from error


def document(record: Mapping[str, Any], name: str, limits: Limits) -> Document | str:
    """Return the document a record makes, `name` its id if it has none, or the reason why it makes none."""
    if record.get("text") is None:
        return "no text"
    if not isinstance(record["text"], str | bytes):
        return "text is not a string"
    for key in ("id", "group"):
        if not isinstance(record.get(key), _SCALARS | bytes | None):
            return f"{key} is not a string"
    own = {key: value for key in ("text", "id", "group") if (value := record.get(key)) is not None}
    rest = {key: value for key, value in record.items() if key not in own and isinstance(value, _SCALARS)}
    try:
        fields = {key: _string(value) for key, value in (own | rest).items()}
        sizes = [len(part.encode("utf8")) for part in (fields["text"], *fields, *fields.values())]
    except UnicodeDecodeError:
        return "not UTF-8"
    except UnicodeEncodeError:
        return "lone surrogate"
    if any("\0" in part for part in (*fields, *fields.values())):
        return "NUL character"
    if sizes[0] > limits.document:
        return f"longer than {limits.document} bytes"
    text = fields.pop("text")
    if not text.strip():
        return "empty text"
    return Document(fields.pop("id", name), text, fields.pop("group", ""), fields)


def _string(value: str | bytes | float) -> str:
    if isinstance(value, bytes):
        return value.decode("utf8")
    return value if isinstance(value, str) else json.dumps(value)
