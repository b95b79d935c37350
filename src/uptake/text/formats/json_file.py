"""JSON: a list of records, one record, or a record a line, whichever the file turns out to be."""

import itertools
import re
from collections.abc import Iterator

from uptake.text.files import SkipError
from uptake.text.formats import json_lines
from uptake.text.reading import File, Format, Item

_OUTSIDE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'["\\]')
_SPACE = b" \t\r\n"


def read(file: File) -> Iterator[Item]:
    """Yield one item a record; a broken one in a list costs itself alone."""
    chunks = file.text_chunks(lines=True)
    head = b""
    for chunk in chunks:
        head += chunk
        if b"\n" in head.lstrip(_SPACE) or len(head) > 1 << 16:
            break
    chunks = itertools.chain([head], chunks)
    first = head.lstrip(_SPACE).partition(b"\n")[0]
    if first.startswith(b"{") and b"\n" in head.strip(_SPACE) and _is_whole(first):
        yield from json_lines.read_records(file, chunks)
        return
    number = 0
    for raw in values(chunks, 6 * file.reading.max_document_bytes):
        number += 1
        where = f"{file.where}:{number}"
        if raw is None:
            yield file.reading.too_long, where
        else:
            yield json_lines.record(raw, f"{file.name}:{number}", file.reading, f"record {number}"), where
    if not number:
        raise SkipError("no record in it")


def _is_whole(line: bytes) -> bool:
    """Whether a line is an object from its first bracket to its last."""
    try:
        found = [*itertools.islice(values(iter([line]), len(line)), 2)]
    except SkipError:  # cut short: it goes on in the next line
        return False
    return len(found) == 1 and found[0] is not None and found[0].rstrip(_SPACE).endswith(b"}")


def values(chunks: Iterator[bytes], most: int) -> Iterator[bytes | None]:
    """Yield the raw values of a list, or of a file of several, None in the place of one longer than `most`.

    They are told apart by brackets and commas alone, without being understood: memory holds one.
    Raises SkipError where a list or a value in it has no end.
    """
    held, long = bytearray(), False
    depth, in_list, in_string, escaped = 0, False, False, False

    def ended() -> Iterator[bytes | None]:
        nonlocal long
        if long or held.strip(_SPACE):
            yield None if long else bytes(held)
        held.clear()
        long = False

    for chunk in chunks:
        at = 0  # up to here the chunk has been understood, from `start` on it is not held yet
        start = 0
        if escaped and chunk:
            at, escaped = 1, False
        while match := (_IN_STRING if in_string else _OUTSIDE).search(chunk, at):
            mark, at = match[0], match.end()
            if in_string:
                if mark == b'"':
                    in_string = False
                elif at < len(chunk):
                    at += 1
                else:
                    escaped = True
                continue
            if mark == b'"':
                in_string = True
            elif (
                mark == b"["
                and not depth
                and not in_list
                and not held.strip(_SPACE)
                and not (chunk[start : at - 1].strip(_SPACE))
            ):
                in_list, start = True, at
            elif mark in b"[{":
                depth += 1
            elif mark in b"]}" and depth:
                depth -= 1
                if not depth and not in_list:
                    held += chunk[start:at]
                    start = at
                    yield from ended()
            elif in_list and not depth and mark in b",]":
                held += chunk[start : at - 1]
                start = at
                yield from ended()
                in_list = mark == b","
        if len(held) + len(chunk) - start > most:
            long = True
            held.clear()
        if not long:
            held += chunk[start:]
    if not depth and not in_string:
        yield from ended()
    if in_list or depth or in_string:
        raise SkipError("JSON that is cut short")


format = Format((".json",), read)
