"""Files on their way into stores: one after another, read by a process that may be stopped at any moment.

What is deleted meanwhile does not wait for it: `without` stops the reading of a store, and lets it begin
again once what had to go has gone.
"""

import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from uptake.server.engine.child import Child
from uptake.server.engine.encoder import EncoderProcess
from uptake.server.engine.folders import Folders
from uptake.server.errors import of
from uptake.server.records import Records

MODULE = "uptake.server.engine.intake_process"


@dataclass(eq=False)
class Taking:
    """A file on its way into a store, and what came of it."""

    tenant: str
    store: str
    file: str
    documents: int = 0
    error: str = ""


class Intake:
    """Takes files in. Any thread may call it; `came` is called from a thread of its own."""

    def __init__(
        self,
        at: Folders,
        records: Records,
        lock: int,
        came: Callable[[Taking], None],
        encoding: EncoderProcess | None,
    ) -> None:
        """`lock` is the open file whose lock the reading process shares."""
        self._at, self._records, self._lock, self._came = at, records, lock, came
        self._encoding = encoding
        self._waiting: deque[Taking] = deque()
        self._now: Taking | None = None
        self._paused: list[str] = []  # stores that nothing is read into
        self._child: Child | None = None
        self._stopped = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def add(self, taking: Taking) -> None:
        """Let a file wait for its turn."""
        with self._changed:
            self._waiting.append(taking)
            self._changed.notify_all()

    @contextlib.contextmanager
    def without(self, store: str) -> Iterator[None]:
        """Around a change of a store that nothing may be read into meanwhile."""
        with self._changed:
            self._paused.append(store)
            if self._now is not None and self._now.store == store:
                self._stop()
                self._changed.wait_for(lambda: self._now is None or self._now.store != store)
        try:
            yield
        finally:
            with self._changed:
                self._paused.remove(store)
                self._changed.notify_all()

    def close(self) -> None:
        """End what is being read, and wait until it has ended."""
        with self._changed:
            self._closed = True
            self._stop()
            self._changed.notify_all()
        self._thread.join()

    def _stop(self) -> None:
        self._stopped = True
        self._end()

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _next(self) -> Taking | None:
        return next((each for each in self._waiting if each.store not in self._paused), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                taking = self._next()
                if self._closed or taking is None:
                    return
                self._waiting.remove(taking)
                self._now, self._stopped = taking, False
            done = self._take_in(taking)
            with self._changed:
                if self._stopped:
                    # It may have been done all the same: whatever is stored already is passed over.
                    self._waiting.appendleft(taking)
                self._now = None
                self._changed.notify_all()
                if self._stopped:
                    continue
            if done:
                self._came(taking)

    def _take_in(self, taking: Taking) -> bool:
        """Have a file read into a store; return False where one of them is gone by now."""
        rows = self._records.held(taking.store, taking.file)
        if not rows or rows[0]["status"] != "in_progress":
            return False
        with self._changed:
            if self._stopped:
                return False
            if self._child is None or not self._child.lives:
                self._child = self._begun()
            child = self._child
        try:
            taking.error = self._asked(child, taking)
        except Exception as error:
            traceback.print_exception(error)
            taking.error = of(error).message
        if taking.error:  # the next one begins anew, with an encoder that answers
            with self._changed:
                self._end()
        self._at.sweep(taking.file)
        return True

    def _begun(self) -> Child:
        if self._encoding is None:
            return Child(MODULE, [self._lock])
        with self._encoding.end() as end:
            return Child(MODULE, [self._lock, end.fileno()])

    def _asked(self, child: Child, taking: Taking) -> str:
        """Return why a file could not be read, "" where it was."""
        known = self._records.get("file", taking.tenant, taking.file)
        try:
            child.link.send(
                {
                    "path": str(self._at.of(taking.tenant, "files") / taking.file),
                    "file": taking.file,
                    "filename": known["filename"],
                    "uploads": str(self._at.of("", "uploads")),
                    "store": str(self._at.store_path(taking.tenant, taking.store)),
                }
            )
            while (told := child.link.receive()) is not None:
                if "documents" in told:
                    # Kept before any is stored: so many have to go, should the file be deleted meanwhile.
                    taking.documents = told["documents"]
                    self._records.came(taking.store, taking.file, "in_progress", taking.documents)
                    child.link.send({"go": True})
                else:
                    return str(told.get("failed", ""))
        except OSError:
            pass
        return "the process that read it has ended: it may need more memory than there is"
