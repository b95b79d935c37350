"""Where what clients store lies: a folder a tenant, a folder a store, and files under their ids."""

import fcntl
import os
import shutil
import time
from pathlib import Path

from uptake.cache import sync
from uptake.errors import BadInput, UptakeError
from uptake.store.datastore import Datastore
from uptake.text.files import Skipped
from uptake.text.formats import by_suffix
from uptake.text.readers import read
from uptake.text.reading import Reading
from uptake.text.types import Document

PATIENCE = 30.0  # seconds for the engine of a server that was killed to end


class Held:
    """The right of one engine at a time to a folder; it ends with the process, however that dies."""

    def __init__(self, root: Path) -> None:
        """Take it. Raises BadInput where another engine has it and keeps it."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    self.close()
                    raise BadInput(
                        f"--data {root}: another server has this folder; stop it, or give another folder"
                    ) from None
                time.sleep(0.05)

    def close(self) -> None:
        """Give it back."""
        os.close(self._handle)


class Folders:
    """The folders below one root. Names below it are ids that the server minted, never a client's."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root
        self._open: dict[str, Datastore] = {}

    def documents(self, tenant: str, file: str, filename: str) -> list[Document]:
        """Return the documents in a file, each named by the file's id; the name given says its format."""
        suffix = Path(filename).suffix.lower()
        suffix = suffix if suffix in by_suffix() else ".txt"
        path = self.of("", "uploads") / f"{file}{suffix}"
        path.unlink(missing_ok=True)
        os.link(self.of(tenant, "files") / file, path)
        try:
            skipped = Skipped()
            found = list(read(path, skipped=skipped, reading=Reading(max_parse_bytes=2 << 30, fixed=True)))
        except UptakeError as error:
            raise type(error)(str(error).replace(str(path), "the file")) from None
        finally:
            path.unlink()
        if not found:
            raise BadInput("the file holds no text that can be read")
        return [
            Document(f"{file}/{place}", each.text, file, {}, each.places) for place, each in enumerate(found)
        ]

    def drop(self, tenant: str, store: str) -> int:
        """Delete a store, whole; return 1, or 0 where there was none."""
        self._open.pop(store, None)
        path = self.store_path(tenant, store)
        there = path.exists()
        if there:
            shutil.rmtree(path)
            sync(path.parent)
        return int(there)

    def of(self, tenant: str, name: str) -> Path:
        """Return a folder of a tenant, or of the server itself."""
        found = self.root / tenant / name if tenant else self.root / name
        found.mkdir(parents=True, exist_ok=True, mode=0o700)
        return found

    def store_path(self, tenant: str, name: str) -> Path:
        """Return where a store lies."""
        return self.of(tenant, "stores") / name

    def opened(self, tenant: str, name: str) -> Datastore:
        """Return a store, open."""
        if name not in self._open:
            self._open[name] = Datastore.open(self.store_path(tenant, name))
        return self._open[name]


def unlink(path: Path) -> int:
    """Delete a file for good; return 1, or 0 where there was none."""
    there = path.exists()
    path.unlink(missing_ok=True)
    sync(path.parent)
    return int(there)
