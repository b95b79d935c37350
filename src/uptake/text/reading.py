"""What reading files is: the settings and limits, a file under way, and what a format is.

A limit that stops something is named in the reason, with the option that moves it.
"""

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from uptake.errors import BadInput
from uptake.text import packing
from uptake.text.files import SkipError, open_regular
from uptake.text.types import Document

ROOM = 64 << 20  # bytes that any file may unpack to, however small it is
_SNIFF_BYTES = 8192
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read, and what they may cost; `--text-key` and the like on the command line."""

    text_key: str = "text"  # the key or column that holds the text of a record
    encoding: str = "utf-8"  # of what is not UTF-8 and has no byte order mark
    max_document_bytes: int = 64 << 20  # of one document's text, as UTF-8
    max_unpacked_bytes: int = 16 << 30  # of what one file unpacks to
    max_expansion: int = 1000  # times its size that a file may unpack to, beyond ROOM
    max_parse_seconds: float = 60.0  # that a parser may work on a file without getting on
    max_parse_bytes: int = 4 << 30  # of memory for a parser in a process of its own
    fixed: bool = False  # whoever is told what is wrong with a file cannot change any of these

    def __post_init__(self) -> None:
        for name in ("max_document_bytes", "max_unpacked_bytes", "max_expansion", "max_parse_seconds"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name} {getattr(self, name)}: use more than 0")
        if self.max_parse_bytes < 1 << 30:
            raise BadInput(f"max_parse_bytes {self.max_parse_bytes}: use 1 GiB (1073741824) or more")
        if not self.text_key:
            raise BadInput("text_key is empty: name the key that holds the text")
        try:
            plain = "\n{}".encode(self.encoding) == b"\n{}"
        except (LookupError, UnicodeError):
            plain = False
        if not plain:
            raise BadInput(
                f"encoding {self.encoding!r}: name one that extends ASCII, such as cp1252 or shift_jis"
            )

    def decode(self, raw: bytes) -> str:
        """Return bytes as text: UTF-8, else the encoding that was named. Raises UnicodeDecodeError."""
        try:
            return raw.decode("utf8")
        except UnicodeDecodeError:
            if codecs.lookup(self.encoding).name == "utf-8":
                raise
            return raw.decode(self.encoding)

    def most_unpacked(self, size: int) -> tuple[int, str]:
        """Return how many bytes a file of `size` bytes may unpack to, and the reason beyond."""
        expanded = max(ROOM, self.max_expansion * size)
        if expanded < self.max_unpacked_bytes:
            allows = self.allows_more("max_expansion")
            return expanded, f"unpacks to more than {self.max_expansion} times its size{allows}"
        allows = self.allows_more("max_unpacked_bytes")
        return self.max_unpacked_bytes, f"unpacks to more than {self.max_unpacked_bytes} bytes{allows}"

    def allows_more(self, name: str) -> str:
        """The cure for what is beyond a limit, behind what parts it from the reason; "" where it is fixed."""
        return "" if self.fixed else f"; --{name.replace('_', '-')} allows more"

    @property
    def other_encoding(self) -> str:
        """The cure for bytes of an unknown encoding."""
        return "save it as UTF-8" if self.fixed else "--encoding names another one"

    @property
    def other_key(self) -> str:
        """The cure for a record without its text."""
        return f"call one {self.text_key!r}" if self.fixed else "name one with --text-key"

    @property
    def not_text(self) -> str:
        """The reason for bytes that are no text in any encoding that was named."""
        return f"not {self.encoding.upper()}; {self.other_encoding}"

    @property
    def too_long(self) -> str:
        """The reason for a document beyond the limit."""
        return f"longer than {self.max_document_bytes} bytes{self.allows_more('max_document_bytes')}"


# A document, or the reason why there is none; and where it stood. None: nothing yet, but work goes on.
Item = tuple[Document | str, str]
Step = Item | None


@dataclass(frozen=True, slots=True)
class File:
    """One file under way: `name` becomes the id of its document and begins the ids of its records.

    `where` is its path as messages show it.
    """

    path: Path
    name: str
    where: str
    reading: Reading

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in pieces, unpacked where they are packed. Raises SkipError and OSError.

        Everything before what is damaged or beyond a limit has been yielded by then.
        """
        with open_regular(self.path) as (raw, size):
            most, beyond = self.reading.most_unpacked(size)
            yield from packing.unpacked(raw, size, packing.named(self.path), most, beyond)

    def text_chunks(self, lines: bool = False) -> Iterator[bytes]:
        """Yield the same as UTF-8 where a byte order mark says what it is, without that mark.

        Raises SkipError for what is no text; of `lines` that stand for themselves, one may be none.
        """
        chunks = self.chunks()
        head = b""
        for chunk in chunks:
            head += chunk
            if len(head) >= _SNIFF_BYTES:
                break
        mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
        head = head[len(mark) :]
        if mark and _MARKS[mark] != "utf-8":
            yield from _recoded(head, chunks, _MARKS[mark])
            return
        sniffed = head[:_SNIFF_BYTES]
        if zeros := sniffed.count(0):
            wide = len(sniffed) > 3 and max(sniffed[::2].count(0), sniffed[1::2].count(0)) == zeros
            wide = wide and zeros > len(sniffed) // 4
            if wide or not lines:
                raise SkipError("UTF-16 without a byte order mark" if wide else "binary file")
        yield head
        yield from chunks

    def whole(self, most: int) -> bytes:
        """Return all bytes. Raises SkipError where they are more than `most`."""
        raw = bytearray()
        for chunk in self.chunks():
            raw += chunk
            if len(raw) > most:
                raise SkipError(f"a file of more than {most} bytes")
        return bytes(raw)

    def whole_text(self) -> bytes:
        """Return all of a text, as UTF-8 unless it is in another encoding without saying so."""
        raw = bytearray()
        for chunk in self.text_chunks():
            raw += chunk
            if len(raw) > self.reading.max_document_bytes:
                raise SkipError(self.reading.too_long)
        return bytes(raw)


@dataclass(frozen=True, slots=True)
class Format:
    """One format: which files are of it, and what reads one.

    `read` yields items; what ends a file early it raises as SkipError. Isolated, it works in a process
    of its own, bounded in memory and given up when it hangs, and may yield None to show that it gets on.
    """

    suffixes: tuple[str, ...]
    read: Callable[[File], Iterator[Step]]
    isolated: bool = False
    extra: str = field(default="", kw_only=True)  # the one of Uptake that brings what it needs


def _recoded(head: bytes, chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        yield decoder.decode(head).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise SkipError(f"not {encoding[:6].upper()}, though it begins with its mark") from error
