"""What writers have begun to add and not ended, so that half a store is not taken for a whole.

STORE/unfinished.json is there from the first commit of an `add` to its end. It says what was being added:
the corpus as given on the command line, or nothing where documents came from Python.
"""

from dataclasses import dataclass
from pathlib import Path

from uptake.codec import Malformed, load, plain
from uptake.errors import Damaged
from uptake.store.files import plain_errors, read_json, write_json
from uptake.store.remote.objects import Location

NAME = "unfinished.json"
_UNREADABLE = "what cannot be read"  # somebody had begun: what, is lost


@dataclass(frozen=True)
class _Begun:
    begun: tuple[str, ...]


def unfinished(store: Location) -> tuple[str, ...]:
    """Return what was begun to be added to a store and has not ended; empty where all was."""
    path = store / NAME
    try:
        with plain_errors(path):
            if not path.is_file():
                return ()
            data = read_json(path)
        return load(_Begun, data).begun
    except FileNotFoundError:  # it has ended this moment
        return ()
    except (Damaged, Malformed):
        return (_UNREADABLE,)


class Adding:
    """One `add` under way; without a `store` nothing is noted."""

    def __init__(self, store: Location | None = None, what: str = "") -> None:
        self._store, self._what = store, what
        self._begun = False

    def begin(self) -> None:
        """Note it, before anything of it is stored."""
        if self._store is None or self._begun:
            return
        before = unfinished(self._store)
        if self._what not in before:
            _write(self._store, (*before, self._what))
            self._begun = True

    def end(self) -> None:
        """Note that all of it is stored."""
        if self._store is None:
            return
        before = unfinished(self._store)
        left = tuple(each for each in before if each not in (self._what, _UNREADABLE))
        if left != before:
            _write(self._store, left)

    def withdraw(self) -> None:
        """Note that nothing of it was stored: what an earlier call had begun stays begun."""
        if self._begun:
            self.end()


def said(begun: tuple[str, ...]) -> str:
    """Return in a line what is unfinished, and the cure; empty where nothing is."""
    if not begun:
        return ""
    named = ", ".join(what or "documents given from Python" for what in begun)
    return f"unfinished: the adding of {named} was interrupted; run it again"


def _write(store: Location, begun: tuple[str, ...]) -> None:
    path = store / NAME
    if not begun and isinstance(path, Path):
        with plain_errors(path):
            path.unlink(missing_ok=True)
    else:
        write_json(path, plain(_Begun(begun)))
