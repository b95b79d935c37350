"""Frames between the server's processes: JSON behind its length, over a socket. Nothing is unpickled."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, cast

MOST = 256 << 20  # bytes of a frame
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_LENGTH = struct.Struct(">I")


def packed(frame: dict[str, Any]) -> bytes:
    """Return a frame as it is sent."""
    raw = encode(frame).encode("utf8", "replace")
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


class Frames(asyncio.Protocol):
    """The other end of a `Link`, for an event loop: `came` is called with each frame as soon as it is there.

    `gone` is done once the other end is gone.
    """

    def __init__(self, came: Callable[[dict[str, Any]], None]) -> None:
        self._came, self._held = came, bytearray()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Another event loop than the standard library's has classes of its own.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        held, start = self._held, 0
        held += data
        while len(held) >= (begin := start + _LENGTH.size):
            (length,) = _LENGTH.unpack_from(held, start)
            if length > MOST:
                self.close()
                return
            if len(held) < begin + length:
                break
            start = begin + length
            self._came(json.loads(held[begin:start].decode()))
        del held[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame; nobody hears of one that the other end was gone for."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed(frame))

    def close(self) -> None:
        """Close this end."""
        if self._transport is not None:
            self._transport.close()
