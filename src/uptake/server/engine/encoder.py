"""The encoder of a server, in a process of its own: whoever writes does not wait for what is embedded.

Those who embed, such as the process that reads files, ask it over a socket each, and take turns by the piece.
"""

import base64
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Busy, Missing
from uptake.server.engine.child import Child
from uptake.server.errors import bad
from uptake.server.link import Link

MODULE = "uptake.server.engine.encoder_process"
PIECE = 16  # texts that are embedded at a turn
_ENDED = "the encoder has ended: try again soon, and see the server's log"


Opened = tuple[Link, dict[str, Any]]  # a link to the encoder, and what it is


def opened(link: Link) -> Opened:
    """Return a link that is new, with what the encoder says of itself first. Raises Busy."""
    about = link.receive()
    if about is None:
        raise Busy(_ENDED)
    return link, about


class Encoder:
    """The encoder as stores embed with it. Threads take turns.

    Raises Busy where its process has ended, ApiError for what it refuses.
    """

    def __init__(self, connect: Callable[[], Opened]) -> None:
        self._connect, self._lock = connect, threading.Lock()
        self._link: Link | None = None
        about = self._connected()[1]
        self.spec: str = about["spec"]
        self.dtype: str = about["dtype"]
        self.fingerprint: str = about["fingerprint"]
        self.dimensions: int = about["dimensions"]
        self.window: int = about["window"]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a text, what exceeds the window left out."""
        parts = [vectors for vectors, _ in self.pieces(texts)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def pieces(
        self, given: Sequence[str | list[int]], whole: bool = False, alone: bool = False
    ) -> Iterator[tuple[NDArray[np.float32], int]]:
        """Yield the vectors of some texts, or tokens, and how many tokens those have, piece by piece.

        With `whole` a text that exceeds the window is refused, by its place unless it was sent `alone`.
        """
        for start in range(0, len(given), PIECE):
            told = self._answer({"texts": list(given[start : start + PIECE]), "whole": whole})
            if "refused" in told:
                place = [] if alone else [start + told["place"]]
                raise bad(told["refused"], ".".join(map(str, ["input", *place, *told["within"]])))
            if "failed" in told:
                raise BadInput(told["failed"])
            raw = np.frombuffer(base64.b64decode(told["vectors"]), "<f4")
            yield raw.reshape(-1, self.dimensions), int(told["tokens"])

    def close(self) -> None:
        """Ask no more."""
        if self._link is not None:
            self._link.close()

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            for link in (self._link, None):  # one that has ended is started again, once
                try:
                    link = link or self._connected()[0]
                    link.send(asked)
                    if (told := link.receive()) is not None:
                        return told
                except OSError:
                    pass
        raise Busy(_ENDED)

    def _connected(self) -> Opened:
        self._link, about = self._connect()
        if about["fingerprint"] != getattr(self, "fingerprint", about["fingerprint"]):
            raise Busy(_ENDED)
        return self._link, about


class EncoderProcess:
    """The process of an encoder, started again where it has ended. Any thread may call it."""

    def __init__(self, spec: str, device: str, threads: int | None) -> None:
        """Start it; `wait` says whether it can answer."""
        self._asked = {"spec": spec, "device": device, "threads": threads}
        self._lock = threading.Lock()
        self._child = self._begun()

    def wait(self) -> None:
        """Wait until it can answer. Raises Missing where the encoder cannot be loaded."""
        told = self._child.link.receive()
        if told is None or "failed" in told:
            self._child.kill()
            raise Missing("the encoder ended before it could answer" if told is None else told["failed"])

    def link(self) -> Opened:
        """Return a link of one's own to it. Raises Busy, Missing."""
        try:
            return opened(Link(self.end()))
        except (Busy, OSError):  # it was ending, which its system had not told yet
            with self._lock:
                self._child.kill()
            return opened(Link(self.end()))

    def end(self) -> socket.socket:
        """Return the socket of such a link, for a process to ask over."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            if not self._child.lives:
                self._child = self._begun()
                self.wait()
            self._child.link.give(theirs)
        return ours

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._child.pid

    def close(self) -> None:
        """End it."""
        self._child.kill()

    def _begun(self) -> Child:
        child = Child(MODULE)
        child.link.send(self._asked)
        return child
