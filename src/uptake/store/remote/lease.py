"""The right to write to a store, held by one process at a time and freed even by its death."""

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from uptake.errors import Busy
from uptake.store.files import plain_errors
from uptake.store.remote.objects import ChangedError, Location, ObjectPath, Tag

_RENEWED = 10.0  # seconds after which a holder renews its lease
_LIFE = 30.0  # seconds without a renewal after which the holder counts as dead


class HeldLease(Protocol):
    """A lease that this process holds."""

    def check(self) -> None:
        """Raise Busy where it was lost meanwhile: call it before each change."""
        ...


def lease(path: Location) -> AbstractContextManager[HeldLease]:
    """Return the lease at `path`, a context manager; entering it raises Busy where another process has it."""
    return FileLease(path) if isinstance(path, Path) else ObjectLease(path)


class FileLease:
    """A lock on a file, which the operating system takes from the dead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def __enter__(self) -> Self:
        with plain_errors(self._path):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode("utf8", "replace").strip()
            os.close(handle)
            raise _busy(self._path, holder) from None
        with contextlib.suppress(OSError):  # the name is a courtesy: a full disk must not stop a removal
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{_myself()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def check(self) -> None:
        """Do nothing: it cannot be lost."""


class ObjectLease:
    """An object that its holder writes again and again; empty, or silent for half a minute, it is free.

    Every write is conditional on what the writer has seen, so of several one succeeds; nobody's
    clock is compared with another's. A process that stood still for longer, and then finds that
    another has taken the lease, is told by `check`.
    """

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._name = f"{_myself()}\n{secrets.token_hex(8)}"
        self._tag: Tag = {}
        self._writing = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        with plain_errors(self._path):
            self._acquire()
        self._over.clear()
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:
            self._over.set()
            with contextlib.suppress(OSError):
                self._tag = self._path.write_if(b"", self._tag)

    def check(self) -> None:
        """Say that this holder lives; raises Busy where another has taken the lease, UptakeError."""
        with plain_errors(self._path):
            try:
                with self._writing:
                    self._write()
            except ChangedError:
                raise _busy(self._path, self._holder()[0]) from None

    def _acquire(self) -> None:
        end = time.monotonic() + _LIFE
        holder, seen = self._holder()
        while holder:
            if time.monotonic() > end:
                break
            time.sleep(_RENEWED / 10)
            last = seen
            holder, seen = self._holder()
            if holder and seen != last:  # it lives
                raise _busy(self._path, holder)
        try:
            self._tag = seen
            self._write()
        except ChangedError:  # another was first
            raise _busy(self._path, self._holder()[0]) from None

    def _holder(self) -> tuple[str, Tag]:
        """Return the holder, "" where there is none, and the tag of what says so."""
        try:
            data, tag = self._path.read()
        except FileNotFoundError:
            return "", {}
        return "\n".join(data.decode("utf8", "replace").splitlines()[:2]), tag

    def _write(self) -> None:
        beat = f"{self._name}\n{secrets.token_hex(8)}\n"
        try:
            self._tag = self._path.write_if(beat.encode(), self._tag)
        except ChangedError:
            holder, tag = self._holder()
            if holder != self._name:
                raise
            self._tag = tag  # it was written, and only the answer was lost

    def _renew(self) -> None:
        while not self._over.wait(_RENEWED):
            with self._writing:
                if self._over.is_set():  # it was given back this moment
                    return
                try:
                    self._write()
                except ChangedError:
                    return  # `check` raises
                except OSError:
                    continue  # no answer now; there may be one in time


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _busy(path: Location, holder: str) -> Busy:
    name = holder.partition("\n")[0] or "another process"
    return Busy(f"{path.parent}: {name} is writing to this store; wait for it or end it")
