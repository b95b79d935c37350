"""Where what clients store lies: a folder a tenant, a folder a store, and files under their ids."""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from uptake.cache import sync
from uptake.errors import BadInput, UptakeError
from uptake.server.engine.encoder import Encoder
from uptake.store.datastore import Datastore
from uptake.store.layout import Layout
from uptake.store.passages.index_cache import delete_base_indexes

PATIENCE = 30.0  # seconds for the engine of a server that was killed to end


class Held:
    """The right of one engine at a time to a folder; it ends with the process, however that dies."""

    def __init__(self, root: Path) -> None:
        """Take it. Raises BadInput where another engine has it and keeps it."""
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            told = f"--data {root}: {error.strerror}; give a folder that this server may write to"
            raise BadInput(told) from None
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

    @property
    def file(self) -> int:
        """The open file that holds the right, for a process that writes there as well."""
        return self._handle

    def close(self) -> None:
        """Give it back."""
        os.close(self._handle)


class Folders:
    """The folders below one root. Names below it are ids that the server minted, never a client's."""

    def __init__(self, root: Path, encoder: Encoder | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root, self.encoder = root, encoder
        self._open: dict[str, Datastore] = {}

    def drop(self, tenant: str, store: str) -> int:
        """Delete a store, whole; return 1, or 0 where there was none."""
        self._open.pop(store, None)
        path = self.store_path(tenant, store)
        there = path.exists()
        if there:
            with contextlib.suppress(
                UptakeError
            ):  # of a store that a kill has left in part, nothing was made
                delete_base_indexes(Layout.read(path).uid)
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

    def sweep(self, file: str) -> None:
        """Delete what a reading of a file that was stopped has left."""
        for path in self.of("", "uploads").glob(f"{file}.*"):
            path.unlink(missing_ok=True)

    def made(self, tenant: str, name: str) -> None:
        """Make an empty store."""
        Datastore.create(self.store_path(tenant, name), retriever="lexical")

    def made_by_meaning(self, tenant: str, name: str) -> None:
        """Make an empty store whose texts are embedded as well, if there is an encoder."""
        if self.encoder is None:
            self.made(tenant, name)
        else:
            Datastore.create(self.store_path(tenant, name), encoder=self.encoder)

    def changed(self, name: str) -> None:
        """Have a store opened anew when it is wanted next: another process has added to it."""
        self._open.pop(name, None)

    def opened(self, tenant: str, name: str) -> Datastore:
        """Return a store, open."""
        if name not in self._open:
            self._open[name] = opened(self.store_path(tenant, name), self.encoder)
        return self._open[name]


def opened(path: Path, encoder: Encoder | None) -> Datastore:
    """Return a store, searched by meaning and words where it was made with this encoder, else by words."""
    view = Layout.read(path).views["passages"]
    if not view.dimensions:
        return Datastore.open(path)
    if encoder is None or encoder.fingerprint != view.encoder_fingerprint:
        return Datastore.open(path, search_by="lexical")
    return Datastore.open(path, encoder=encoder, search_by="sum")


def unlink(path: Path) -> int:
    """Delete a file for good; return 1, or 0 where there was none."""
    there = path.exists()
    path.unlink(missing_ok=True)
    sync(path.parent)
    return int(there)
