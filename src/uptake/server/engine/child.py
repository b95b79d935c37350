"""Processes that the engine starts for work that must hold nobody up; each is at one end of a socket."""

import socket
import subprocess
import sys
from collections.abc import Sequence

from uptake.server.link import Link


class Child:
    """A process that runs a module of ours, given the numbers of its socket and of other open files."""

    def __init__(self, module: str, files: Sequence[int] = ()) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            given = [theirs.fileno(), *files]
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, given)], pass_fds=given, stdin=subprocess.DEVNULL
            )
        self.link = Link(ours)

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def kill(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self.link.close()
