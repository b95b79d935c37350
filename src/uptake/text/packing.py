"""Packed files: recognised by how they begin, unpacked in pieces, never beyond a limit."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from uptake.text.files import SkipError

# Small, because one byte of zstd may stand for 30 KB: what one piece unpacks to has to fit in memory.
_PACKED_BYTES = 2048
_PLAIN_BYTES = 1 << 16


_STEP_BYTES = 1 << 20
_DICTIONARY_BYTES = 256 << 20  # of memory for an .xz; `xz -9` asks for 65 MB


class _Decoder(Protocol):
    """What zlib, bz2, lzma and zstandard agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Stepping:
    """A decoder of bz2 or lzma, 200 bytes of which may stand for a quarter of a gigabyte."""

    def __init__(self, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._decoder = decoder
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def steps(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` stands for, a little at a time."""
        yield self._decoder.decompress(data, _STEP_BYTES)
        while not self._decoder.eof and not self._decoder.needs_input:
            yield self._decoder.decompress(b"", _STEP_BYTES)
        self.unused_data = self._decoder.unused_data


class _Whole:
    """A decoder of zlib or zstandard, for which a small enough piece bounds what comes out."""

    def __init__(self, decoder: _Decoder) -> None:
        self._decoder = decoder

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def steps(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` stands for."""
        yield self._decoder.decompress(data)


def _zstd() -> _Whole:
    import zstandard

    return _Whole(zstandard.ZstdDecompressor().decompressobj())


_Make = Callable[[], _Whole | _Stepping]
_KINDS: dict[bytes, _Make] = {
    b"\x1f\x8b": lambda: _Whole(zlib.decompressobj(wbits=31)),
    b"\xfd7zXZ\0": lambda: _Stepping(lzma.LZMADecompressor(memlimit=_DICTIONARY_BYTES)),
    b"\x28\xb5\x2f\xfd": _zstd,
    **{b"BZh%d1AY&SY" % level: lambda: _Stepping(bz2.BZ2Decompressor()) for level in range(1, 10)},
}
_NAMES = {
    ".gz": b"\x1f\x8b",
    ".gzip": b"\x1f\x8b",
    ".xz": b"\xfd7zXZ\0",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".zstd": b"\x28\xb5\x2f\xfd",
    ".bz2": b"BZh91AY&SY",
}
SUFFIXES = frozenset(_NAMES)


def named(path: Path) -> bool:
    """Whether a file is called packed, whatever is in it."""
    return path.suffix.lower() in SUFFIXES


def unpacked(raw: BinaryIO, size: int, is_named: bool, most: int, beyond: str) -> Iterator[bytes]:
    """Yield the bytes of a file of `size` bytes in pieces, unpacked if they begin as packed files do.

    Raises SkipError with the reason `beyond` past `most` bytes, and where a packed file, or one that
    `is_named` as one, is damaged or cut short. No more than the `size` at the start is read, so that a
    file that grows has an end.
    """
    head = raw.read(16)
    make = next((make for mark, make in _KINDS.items() if head.startswith(mark)), None)
    if make is None:
        if is_named and head:
            raise SkipError("damaged compressed file")
        if is_named:
            raise SkipError("truncated compressed file")
        yield from _bounded(raw, head, size, _PLAIN_BYTES)
    else:
        yield from _decompress(_bounded(raw, head, size, _PACKED_BYTES), make, most, beyond)


def _bounded(raw: BinaryIO, head: bytes, size: int, piece: int) -> Iterator[bytes]:
    """Yield a file's bytes in pieces; one of no size, as the system's own have, is read to its end."""
    if head:
        yield head
    left = size - len(head)
    while left > 0 or not size:
        found = raw.read(piece if not size else min(piece, left))
        if not found:
            return
        left -= len(found)
        yield found


def _decompress(pieces: Iterator[bytes], make: _Make, most: int, beyond: str) -> Iterator[bytes]:
    """Unpack one compressed stream after another, as the command-line tools do."""
    decoder = None
    left = most
    padding = b""  # what may stand before a stream: zeros, but only after another stream
    for piece in pieces:
        while piece:
            if decoder is None:
                piece = piece.lstrip(padding)
                if not piece:
                    break
                decoder = make()
            for plain in _steps(decoder, piece):
                yield plain[:left]
                left -= len(plain)
                if left < 0:
                    raise SkipError(beyond)
            piece = b""
            if decoder.eof:
                piece, decoder, padding = decoder.unused_data, None, b"\0"
    if decoder is not None:
        raise SkipError("truncated compressed file")


def _steps(decoder: _Whole | _Stepping, piece: bytes) -> Iterator[bytes]:
    try:
        yield from decoder.steps(piece)
    except (MemoryError, lzma.LZMAError) as error:
        if isinstance(error, MemoryError) or "emory" in str(error):
            raise SkipError("needs more memory to unpack than a packed file may ask for") from error
        raise SkipError("damaged compressed file") from error
    except SkipError:
        raise
    except Exception as error:  # four libraries, four kinds of error, one meaning
        raise SkipError("damaged compressed file") from error
