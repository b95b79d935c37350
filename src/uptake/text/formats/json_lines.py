"""JSON lines: an object a line, with `text` and, if it likes, `id`, `group` and more."""

from collections.abc import Iterator

from uptake.codec import Malformed, parse
from uptake.text.files import SkipError, read_lines
from uptake.text.reading import File, Format, Item, Reading
from uptake.text.records import detail, document
from uptake.text.types import Document


def read(file: File) -> Iterator[Item]:
    """Yield one item a line that is not blank."""
    yield from read_records(file, file.text_chunks(lines=True))


def read_records(file: File, chunks: Iterator[bytes]) -> Iterator[Item]:
    """Yield one item a line of these bytes that is not blank."""
    empty = True
    # "\u0041" is six bytes for one character.
    for number, line in enumerate(read_lines(chunks, 6 * file.reading.max_document_bytes), start=1):
        where, place = f"{file.where}:{number}", f"line {number}"
        if line is None:
            yield file.reading.too_long, where
        elif line.strip():
            yield record(line, f"{file.name}:{number}", file.reading, place), where
        else:
            continue
        empty = False
    if empty:
        raise SkipError("no record in it")


def record(raw: bytes, name: str, reading: Reading, place: str) -> Document | str:
    """Return the document that one JSON object makes, or the reason why it makes none."""
    try:
        found = parse(reading.decode(raw))
    except UnicodeDecodeError:
        return reading.not_text
    except Malformed as error:
        return f"broken JSON; {detail(error)}"
    return document(found, name, reading, place) if isinstance(found, dict) else "not a JSON object"


format = Format((".jsonl", ".ndjson"), read)
