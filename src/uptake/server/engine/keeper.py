"""What clients store: files and stores of them, memories, sessions, states; and how it is forgotten.

Everything of a tenant lies in a folder of its own, and every store is a folder, so that no filter stands
between two tenants. All of it is done in one thread, in order, but for the reading of files, which a process
of its own does.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from uptake.lm.causal import Causal
from uptake.server.config import Config
from uptake.server.engine.encoder import Encoder, EncoderProcess
from uptake.server.engine.files import Files, Stores
from uptake.server.engine.folders import Folders, Held
from uptake.server.engine.forgetting import Drop, Forget, Shelf
from uptake.server.engine.handing_over import HandingOver
from uptake.server.engine.intake import Intake, Taking
from uptake.server.engine.keeping import KeptStates
from uptake.server.engine.people import People
from uptake.server.engine.sessions import Sessions
from uptake.server.errors import ApiError
from uptake.server.records import Records, Thing
from uptake.store.datastore import Datastore

MadeT = TypeVar("MadeT")


class Keeper:
    """The folder of what clients store."""

    def __init__(
        self,
        root: Path,
        thread: ThreadPoolExecutor,
        forget: Forget,
        drop: Drop,
        encoding: EncoderProcess | None,
        lm: Causal,
        config: Config,
    ) -> None:
        """`thread` does one thing after another, searches too; `forget` drops what the engine has made.

        `drop` drops one state by its key. `lm` is what states are made for.
        """
        self._root, self._thread = root, thread
        self._held = Held(root)
        self._at = Folders(root, None if encoding is None else Encoder(encoding.link))
        self.records = Records(root / "records.db")
        for path in self._at.of("", "uploads").iterdir():  # of uploads that nobody was told of
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._intake = Intake(self._at, self.records, self._held.file, self._came, encoding)
        self._shelf = Shelf(self._at, self.records, self._intake, forget, drop)
        files, self._stores = Files(self._shelf), Stores(self._shelf)
        self._people, self._sessions = People(self._shelf), Sessions(self._shelf)
        self.states = KeptStates(self._shelf, lm, config.name)
        self._handing = HandingOver(self._shelf, self.states, lm, dict(config.hand_over))
        self._shelf.unload = self._handing.unload
        self._acts = {
            **files.acts,
            **self._stores.acts,
            **self._people.acts,
            **self._sessions.acts,
            **self.states.acts,
            **self._handing.acts,
        }
        self.person, self.session = self._people.person, self._sessions.read

    def close(self) -> None:
        """Leave the folder to another engine, once what is being done in it has ended."""
        self._handing.close()
        self._thread.shutdown(cancel_futures=True)
        self._intake.close()
        self._held.close()

    def submit(self, do: Callable[[], MadeT]) -> Future[MadeT]:
        """Do something in the keeper's thread, after all that was asked before."""
        return self._thread.submit(do)

    def begin(self, what: str, do: Callable[[], None]) -> None:
        """Do what a client asked: in the keeper's thread, but for what waits for a server elsewhere."""
        if what in self._handing.acts:
            self._handing.submit(do)
        else:
            self.submit(do)

    def resume(self) -> None:
        """Finish what a killed process had begun: deletions, then reading. What nobody was told of goes."""
        for kind, tenant, parent, name in self.records.unfinished():
            self._shelf.delete(kind, tenant, name, parent)
        known = self.records.ids()
        for path in self._root.glob("*_*/*/*"):
            if path.name not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._people.resume()
        self._stores.resume()

    def store_of(self, tenant: str, name: str) -> Datastore:
        """Return a tenant's store. Raises ApiError where there is none."""
        self.records.get("person" if name.startswith("pe_") else "store", tenant, name)
        return self._at.opened(tenant, name)

    def act(self, what: str, tenant: str, asked: Thing) -> Any:
        """Do what a client asked, in the thread that `begin` chose. Raises ApiError."""
        if what not in self._acts:
            raise ApiError(404, "there is no such operation", "not_found")
        return self._acts[what](tenant, asked)

    def _came(self, taking: Taking) -> None:
        try:
            self.submit(lambda: self._stores.came(taking))
        except RuntimeError:
            return  # the keeper closes, and the next one reads the file anew
