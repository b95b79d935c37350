"""The files of one version of a table, checked before Lance reads them, and what Lance raises as one line."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from uptake.errors import BadInput, Damaged, UptakeError
from uptake.store.files import one_line, plain_errors
from uptake.store.inventory import Inventory, manifest, settled
from uptake.store.remote.objects import Location, ObjectPath

OpenedT = TypeVar("OpenedT")


class TableFiles:
    """Which files of a table are unchecked yet; none where this process has just written them."""

    def __init__(self, path: Location, inventory: Inventory | None = None, rows: Sequence[str] = ()) -> None:
        self._path, self.inventory, self._rows = path, inventory, rows

    def of(self, pieces: Sequence[Any]) -> "TableFiles":
        """Return those of some of its pieces alone."""
        return TableFiles(self._path, self.inventory, data_files(pieces) if self._rows else ())

    def check_rows(self) -> None:
        """Raise Damaged unless the rows' files are what was written; of objects `verify` alone does."""
        if self._rows and self.inventory and isinstance(self._path, Path):
            names = [f"{self._path.name}/data/{each}" for each in self._rows]
            self.inventory.check(self._path.parent, names)
        self._rows = ()

    def check_index(self, parts: Sequence[str], inventory: Inventory | None = None) -> None:
        """Do the same for the parts of the full-text index; `inventory` is a newer list."""
        listed = inventory or self.inventory
        if listed and isinstance(self._path, Path):
            for part in parts:
                folder = f"{self._path.name}/_indices/{part}/"
                listed.check(self._path.parent, listed.files(folder) or [folder])


def open_checked(
    path: Location, version: int | None, uid: str, opened: Callable[[int, Inventory], OpenedT]
) -> OpenedT:
    """Return what `opened` makes of a version, once the file that says what is in it is found to be sound.

    Raises BadInput where that version is gone, Damaged.
    """
    while True:
        inventory = settled(path.parent, uid)
        wanted = inventory.version if version is None else version
        if wanted != inventory.version and wanted not in (stored := inventory.versions):
            raise BadInput(f"{path}: version {wanted} is not stored; {stored[0]} to {stored[-1]} may be")
        try:
            inventory.check(path.parent, [manifest(wanted)])
            return opened(wanted, inventory)
        except Damaged:
            if Inventory.read(path.parent) == inventory:  # else a writer has purged that version meanwhile
                raise


def check_deletions(path: Location, inventory: Inventory, pieces: Sequence[Any]) -> None:
    """Raise Damaged unless the files that say which rows are gone are what was written."""
    inventory.check(path.parent, [f"{path.name}/{mark}" for mark in _marks(pieces)])


def data_files(pieces: Sequence[Any]) -> list[str]:
    """Return the names of the files that the rows of these pieces lie in."""
    return [file.path for piece in pieces for file in piece.data_files()]


def _marks(pieces: Sequence[Any]) -> Iterator[str]:
    for piece in pieces:
        if mark := piece.metadata.deletion_file:
            yield mark.path(piece.fragment_id)


@contextlib.contextmanager
def lance_errors(path: Location) -> Iterator[None]:
    """Turn whatever Lance and Arrow raise into one line."""
    try:
        with plain_errors(path):
            yield
    except UptakeError:
        raise
    except BaseException as error:
        # A panic inside Rust arrives as a BaseException of its own; others of those are not ours.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(path, ObjectPath) and "LanceError(IO)" in str(error):  # no answer, or a refusal
            raise UptakeError(f"{path}: {one_line(error)}") from error
        raise Damaged(
            f"{path}: cannot be read ({one_line(error)}); `uptake index verify` says more"
        ) from error


@contextlib.contextmanager
def reading(path: Location, version: int) -> Iterator[None]:
    """Do as `lance_errors` does around reading a version; raises BadInput where it was purged meanwhile."""
    try:
        with lance_errors(path):
            yield
    except UptakeError as error:
        try:
            inventory = Inventory.read(path.parent)
        except UptakeError:
            raise error from None
        # While a writer deletes, older versions are listed still of which files have gone already.
        stored = () if inventory.state == "deleting" else inventory.versions
        if version in (inventory.version, *stored):
            raise
        raise BadInput(
            f"{path}: version {version} was purged while it was open; open the store again"
        ) from error
