"""Bytes and lines out of files nobody vouches for: bounded, decompressed, and found in folders.

It knows nothing of documents. Whatever ends the reading of a file early is raised as `SkipError`,
which readers.py counts.
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

COMPRESSIONS = frozenset({".gz", ".xz", ".zst"})
RECORDS = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".parquet"})
# What people write. What machines write (.json, .csv, .xml, .lock, .ipynb ...) is left out: one such
# file can outweigh all the sources around it.
_WRITTEN = """
    adoc bash c cc cfg clj cpp cs css cu cuh cxx erl ex go h hpp hs html ini java jl js jsx kt lua md mjs
    ml org php pl proto py pyi pyx r rb rs rst scala scss sh sql swift tex toml ts tsx txt yaml yml
"""
TEXTS = frozenset(f".{name}" for name in _WRITTEN.split())
FORMATS = RECORDS | TABLES | TEXTS

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
SKIPPED_SUFFIXES = frozenset({".dist-info", ".egg-info"})

# Small, because one byte of zstd may stand for 30 KB: what one piece unpacks to has to fit in memory.
_PACKED_BYTES = 2048
_PLAIN_BYTES = 1 << 16


class SkipError(Exception):
    """A file, or the rest of it, that cannot be read; the message is the reason to count."""


@dataclass(slots=True)
class Skipped:
    """What a read left out: how many by reason, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)  # "path:line: reason", the first 20

    def add(self, reason: str, where: str) -> None:
        """Count one thing at `where` ("path" or "path:line") that was left out for `reason`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.examples) < 20:
            self.examples.append(f"{where}: {reason}")

    @property
    def total(self) -> int:
        """How many were left out."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return "nothing skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"skipped {self.total}: {reasons} (first: {self.examples[0]})"


def shown(path: Path | str) -> str:
    """Return a path as printable text of one line, whatever bytes its name is made of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def suffix(path: Path) -> str:
    """Return the suffix that names the format, in lower case, without that of a compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSIONS else name.suffix


def walk(root: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the files below `root` that hold text, in sorted order.

    Hidden files and folders, installed packages, virtual environments and caches are passed
    over; links to folders and folders that cannot be opened are counted.
    """

    def unreadable(error: OSError) -> None:
        skipped.add("unreadable folder", shown(error.filename))

    for name, folders, files in os.walk(root, onerror=unreadable):
        here = Path(name)
        if here != root and "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = sorted(folder for folder in folders if not _passed_over(folder))
        for folder in folders:
            if (here / folder).is_symlink():
                skipped.add("link to a folder", shown(here / folder))
        for file in sorted(files):
            if not file.startswith(".") and suffix(here / file) in FORMATS:
                yield here / file


def read_chunks(path: Path, max_decompressed_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, decompressed where its suffix says so.

    Raises SkipError where it is truncated or damaged or unpacks to more than `max_decompressed_bytes`,
    and OSError where it cannot be read; everything before that has been yielded by then.
    """
    compression = path.suffix.lower()
    with path.open("rb") as raw:
        if compression in COMPRESSIONS:
            packed = iter(lambda: raw.read(_PACKED_BYTES), b"")
            yield from _decompress(packed, compression, max_decompressed_bytes)
        else:
            yield from iter(lambda: raw.read(_PLAIN_BYTES), b"")


def read_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | None]:
    r"""Yield lines without their "\n", None in the place of one longer than `max_bytes`."""
    held = bytearray()
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            held += end
            yield bytes(held) if len(held) <= max_bytes else None
            held.clear()
        if len(held) <= max_bytes:  # past it the rest of the line is dropped, so memory stays bounded
            held += rest
    if held:
        yield bytes(held) if len(held) <= max_bytes else None


class _Decoder(Protocol):
    """What zlib, lzma and zstandard agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _decoder(compression: str) -> _Decoder:
    if compression == ".gz":
        return zlib.decompressobj(wbits=31)
    if compression == ".xz":
        import lzma

        return lzma.LZMADecompressor()
    import zstandard

    decoder: _Decoder = zstandard.ZstdDecompressor().decompressobj()
    return decoder


def _decompress(pieces: Iterator[bytes], compression: str, max_bytes: int) -> Iterator[bytes]:
    """Unpack one compressed stream after another, as the command-line tools do."""
    decoder = None
    left = max_bytes
    padding = b""  # what may stand before a stream: zeros, but only after another stream
    for piece in pieces:
        while piece:
            if decoder is None:
                piece = piece.lstrip(padding)
                if not piece:
                    break
                decoder = _decoder(compression)
            try:
                plain = decoder.decompress(piece)
            except Exception as error:  # three libraries, three kinds of error, one meaning
                raise SkipError("damaged compressed file") from error
            yield plain[:left]
            left -= len(plain)
            if left < 0:
                raise SkipError(f"unpacks to more than {max_bytes} bytes")
            piece = b""
            if decoder.eof:
                piece, decoder, padding = decoder.unused_data, None, b"\0"
    if decoder is not None:
        raise SkipError("truncated compressed file")


def _passed_over(folder: str) -> bool:
    name = Path(folder)
    return folder.startswith(".") or folder in SKIPPED_FOLDERS or name.suffix in SKIPPED_SUFFIXES
