"""Parquet: each row is a document, from the columns of the text, `id` and `group`."""

from collections.abc import Iterator
from typing import Any

from uptake.text.files import SkipError, open_regular
from uptake.text.reading import File, Format, Item
from uptake.text.records import document, missing_text

_ROWS = 64  # decoded at a time
_ROW_BYTES = 64  # that a row costs however short its text is


def read(file: File) -> Iterator[Item]:
    """Yield one item a row."""
    number = 0
    for columns in _columns(file):
        for row in zip(*columns.values(), strict=True):
            number += 1
            record = dict(zip(columns, row, strict=True))
            place = f"row {number}"
            yield document(record, f"{file.name}:{number}", file.reading, place), f"{file.where}:{number}"
    if not number:
        raise SkipError("no record in it")


def _columns(file: File) -> Iterator[dict[str, list[Any]]]:
    """Yield a few rows at a time as columns; strings come as bytes, so that bad UTF-8 costs its row alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    key = file.reading.text_key
    try:
        with (
            open_regular(file.path) as (raw, size),
            # Pages are read one by one, and nothing ahead of need.
            pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as opened,
        ):
            names = [name for name in ("id", key, "group") if name in opened.schema_arrow.names]
            if key not in names:
                raise SkipError(missing_text(dict.fromkeys(opened.schema_arrow.names), file.reading))
            most, beyond = file.reading.most_unpacked(size)
            if _declared(opened.metadata, names) > most:
                raise SkipError(beyond)
            unpacked = 0
            for batch in opened.iter_batches(_ROWS, columns=names, use_threads=False):
                unpacked += batch.nbytes + _ROW_BYTES * len(batch)
                if unpacked > most:
                    raise SkipError(beyond)
                columns = {}
                for name in names:
                    column = batch.column(name)
                    if pa.types.is_dictionary(column.type):
                        # Decoded whole, a thousand rows of one long text would be a thousand texts.
                        unpacked += _decoded_bytes(column)
                        if unpacked > most:
                            raise SkipError(beyond)
                        column = column.dictionary_decode()
                    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                        column = column.cast(pa.large_binary())
                    columns[name] = column.to_pylist()
                yield columns
    except (SkipError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError):
            raise SkipError("unreadable parquet file") from error  # Arrow has OSErrors of its own
        raise
    except Exception as error:  # Arrow raises as many kinds as it has parts
        raise SkipError("unreadable parquet file") from error


def _declared(metadata: Any, names: list[str]) -> int:
    """Return what the columns unpack to, as the file says before anything is unpacked."""
    total = _ROW_BYTES * int(metadata.num_rows)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for place in range(row_group.num_columns):
            column = row_group.column(place)
            if column.path_in_schema.partition(".")[0] in names:
                total += max(0, int(column.total_uncompressed_size))
    return total


def _decoded_bytes(column: Any) -> int:
    """Return how many bytes a dictionary column has once decoded."""
    import pyarrow.compute as pc

    try:
        lengths = pc.binary_length(column.dictionary)
    except Exception:  # of numbers
        return 8 * len(column)
    return int(pc.sum(pc.take(lengths, column.indices).cast("int64")).as_py() or 0)


format = Format((".parquet",), read, isolated=True)
