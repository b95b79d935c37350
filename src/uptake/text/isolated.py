"""Runs a format's parser in a process of its own, which has a bound of memory and can be given up.

A parser written for good files may hang on a bad one, ask for all memory or crash; here that costs one
file, and it is counted. Processes are used again and end by themselves when idle. What comes back is
JSON: nothing of a child is executed.
"""

import atexit
import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from uptake.text.files import SkipError
from uptake.text.reading import File, Item, Reading
from uptake.text.types import Document

_START_SECONDS = 120.0  # on a machine with too much to do
_FRAME = 4  # bytes that hold the length of a message


def items(file: File, format_name: str) -> Iterator[Item]:
    """Yield what the format called `format_name` reads in a file. Raises SkipError where it is given up."""
    while True:
        worker, done = _take(), False
        try:
            yield from worker.read(file, format_name)
            done = True
            return
        except _GoneIdle:
            continue
        except SkipError:
            done = worker.is_sound
            raise
        finally:  # an abandoned iterator leaves a parser at work
            if done:
                _idle.append(worker)
            else:
                worker.kill()


class _GoneIdle(Exception):
    """A process that had nothing to do ended in the moment in which it was asked."""


_idle: list["_Worker"] = []  # list's own append and pop are atomic
_starting = threading.Lock()


def _take() -> "_Worker":
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            with _starting:  # one after another: a process starts by reading many files
                _end_at_exit()
                return _Worker()
        if worker.is_usable:
            return worker
        worker.kill()


@cache
def _end_at_exit() -> None:
    """Let those that wait for work end with this process; registered once."""

    def end() -> None:
        while _idle:
            _idle.pop().kill()

    atexit.register(end)


class _Worker:
    """One child and the pipes to it."""

    def __init__(self) -> None:
        paths = [path for path in sys.path if path]  # "" would be whatever folder the corpus is in
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "uptake.text.isolated_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self._held = bytearray()
        self._is_used = False
        self.is_sound = True
        if self._message(_START_SECONDS) is None:
            self.kill()
            raise SkipError("parser that cannot be started")

    @property
    def is_usable(self) -> bool:
        """Whether it lives, belongs to this process and waits for work."""
        return self.is_sound and self._owner == os.getpid() and self._process.poll() is None

    def read(self, file: File, format_name: str) -> Iterator[Item]:
        """Yield what the child reads. Raises SkipError where the file or the child ends early."""
        asked = {
            "format": format_name,
            "path": os.fspath(file.path.absolute()),
            "where": file.where,
            "name": file.name,
            "reading": dataclasses.asdict(file.reading),
        }
        used, self._is_used = self._is_used, True
        self.is_sound = False  # until it has said that it is done
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended, and then says nothing
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        message = None
        while True:
            silent = message is None
            message = self._message(file.reading.max_parse_seconds)
            if message is None:
                code = self._code()
                if used and silent and code == 0:
                    raise _GoneIdle
                raise SkipError(_why(code, file.reading))
            if "end" in message:
                self.is_sound = message["end"] == "done"
                if message["reason"]:
                    raise SkipError(message["reason"])
                return
            if "where" in message:
                yield _item(message), message["where"]

    def kill(self) -> None:
        """End it, whatever it is at."""
        self.is_sound = False
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _code(self) -> int | None:
        """Return what the child ended with, None while it lives."""
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return None

    def _message(self, seconds: float) -> dict[str, Any] | None:
        """Return the child's next message, None where it has ended or says nothing for so long."""
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._out, select.POLLIN | select.POLLHUP)
        while True:
            if len(self._held) >= _FRAME:
                end = _FRAME + int.from_bytes(self._held[:_FRAME], "big")
                if len(self._held) >= end:
                    found: dict[str, Any] = json.loads(self._held[_FRAME:end])
                    del self._held[:end]
                    return found
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return None
            piece = os.read(self._out, 1 << 20)
            if not piece:
                return None
            self._held += piece
            until = max(until, time.monotonic() + min(seconds, 1.0))  # what comes is no standstill


def _why(code: int | None, reading: Reading) -> str:
    if code is None:
        allows = reading.allows_more("max_parse_seconds").replace(";", ":")
        return f"parser that hangs; it got nowhere for {reading.max_parse_seconds:g} s{allows}"
    return f"parser that crashes; it ended with {f'signal {-code}' if code < 0 else f'code {code}'}"


def _item(message: dict[str, Any]) -> Document | str:
    if "reason" in message:
        return str(message["reason"])
    places = tuple((start, place) for start, place in message["places"])
    return Document(message["id"], message["text"], message["group"], message["meta"], places)
