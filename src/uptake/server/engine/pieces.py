"""Long work in pieces: it runs in a thread of its own, and only while its owner waits for it."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

MadeT = TypeVar("MadeT")


class Pieces(Generic[MadeT]):
    """Work that calls `pause` whenever it may be interrupted.

    It and the thread that calls `go` take turns: never do both compute, so what is global to a process, such
    as a random state, belongs to one of them at any time.
    """

    def __init__(self, work: Callable[["Pieces[MadeT]"], MadeT]) -> None:
        self._work = work
        self._may, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.done = False
        self._made: list[MadeT] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go(self) -> bool:
        """Let the work run up to its next pause; return whether it is done."""
        self._may.release()
        self._back.acquire()
        return self.done

    def pause(self) -> None:
        """Wait for the next turn. The work calls it."""
        self._back.release()
        self._may.acquire()

    def result(self) -> MadeT:
        """Return what the work made, once it is done, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._made[0]

    def _run(self) -> None:
        self._may.acquire()
        try:
            self._made.append(self._work(self))
        except BaseException as error:
            self._error = error
        self.done = True
        self._back.release()
