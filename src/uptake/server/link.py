"""Frames between the server's processes: JSON behind its length, over a socket. Nothing is unpickled."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from typing import Any

MOST = 256 << 20  # bytes of a frame
_LENGTH = struct.Struct(">I")


def packed(frame: dict[str, Any]) -> bytes:
    """Return a frame as it is sent."""
    raw = json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode("utf8", "replace")
    if len(raw) > MOST:
        raise ValueError(f"a frame of {len(raw):,} bytes is more than {MOST:,}")
    return _LENGTH.pack(len(raw)) + raw


class Link:
    """One end of a socket between two processes, for threads: one reads, any may send."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._file, self._lock = end, end.makefile("rb"), threading.Lock()

    def send(self, *frames: dict[str, Any]) -> None:
        """Send frames, whole and in one go. Raises OSError where the other end is gone."""
        raw = b"".join(map(packed, frames))
        with self._lock:
            self._socket.sendall(raw)

    def receive(self) -> dict[str, Any] | None:
        """Return the next frame, None where the other end is gone."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(head)
            raw = self._file.read(length) if length <= MOST else b""
        except OSError:  # it was killed before it read all that it was sent
            return None
        return json.loads(raw) if len(raw) == length else None

    def give(self, other: socket.socket) -> None:
        """Give a socket away. Raises OSError where the other end is gone."""
        with self._lock:
            socket.send_fds(self._socket, [b"s"], [other.fileno()])

    def taken(self) -> socket.socket | None:
        """Return the next socket that the other end gives, None where it is gone; it sends no frames then."""
        try:
            _, files, _, _ = socket.recv_fds(self._socket, 1, 1)
        except OSError:
            return None
        return socket.socket(fileno=files[0]) if files else None

    def close(self) -> None:
        """Close this end; whoever reads from it or from the other finds nobody there."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


async def receive(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next frame from a stream, None where the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return json.loads(await reader.readexactly(length)) if length <= MOST else None
    except (asyncio.IncompleteReadError, OSError):
        return None
