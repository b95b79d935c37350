"""Deleting: a thing, all that was made of it, and the rows that name it. Can be done again after a kill."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from uptake.server.engine.folders import Folders, unlink
from uptake.server.engine.intake import Intake
from uptake.server.records import Records, Thing

# Drops what the engine has made of the documents of a store ("" for texts that came with a request).
Forget = Callable[[str, str, Callable[[str], bool]], dict[str, int]]
Unload = Callable[[str, str], bool]  # unloads an adapter from a target, and says whether it has gone
Drop = Callable[[str], None]  # drops a state from the engine's memory, by its key
_COUNTED = ("passages", "states", "kept_states", "adapters", "requests", "files", "stores", "texts")


@dataclass
class Shelf:
    """What the parts of the keeper share: folders, records, files on their way in, and how things go."""

    at: Folders
    records: Records
    intake: Intake
    forget: Forget
    drop: Drop
    counts: dict[str, int] = field(default_factory=dict)
    left: list[Thing] = field(default_factory=list)  # adapters that another server did not unload
    unload: Unload = lambda target, name: False

    def delete(self, kind: str, tenant: str, name: str, parent: str = "") -> Thing:
        """Delete a thing for good, and tell how much of each kind went."""
        self.records.bury(kind, tenant, name, parent)
        self.counts, self.left = dict.fromkeys(_COUNTED, 0), []
        match kind:
            case "file":
                self._file(tenant, name)
            case "held":
                self._held(tenant, parent, name)
            case "store" | "person":
                self._store(kind, tenant, name)
            case "memory":
                self._forget(tenant, parent, lambda document: file_of(document) == name)
                self.counts["passages"] += self.remove(tenant, parent, name, 1)
                self.counts["texts"] += unlink(self.at.of(tenant, "memories") / name)
                self.records.gone(name)
                self.records.gone(name, parent)
            case "state":
                self._state(tenant, name)
            case "text" | "session":
                inner = self.records.page("text", tenant, name, 1 << 30) if kind == "session" else []
                names = {name} if kind == "text" else {each["id"] for each in inner}
                self._forget(tenant, "", lambda document: document in names)
                self.counts["texts"] += len(names)
                self.records.gone(name)
        counted = {what: count for what, count in self.counts.items() if count}
        return {"id": name, "forgotten": counted, "left": self.left}

    def remove(self, tenant: str, store: str, name: str, documents: int) -> int:
        """Remove a thing's documents from a store, their bytes too. A kill may have left no store."""
        if not documents or not self.at.store_path(tenant, store).exists():
            return 0
        opened = self.at.opened(tenant, store)
        return opened.remove([f"{name}/{place}" for place in range(documents)], purge=True)

    def _file(self, tenant: str, name: str) -> None:
        rows = self.records.held(file=name)
        with contextlib.ExitStack() as stopped:
            for row in rows:
                stopped.enter_context(self.intake.without(row["store"]))
            self.at.sweep(name)
            # What is being read has told meanwhile how much of it there is.
            for row in self.records.held(file=name):
                self._forget(tenant, row["store"], lambda document: file_of(document) == name)
                self.counts["passages"] += self.remove(tenant, row["store"], name, row["documents"])
            self.counts["files"] += unlink(self.at.of(tenant, "files") / name)
            self.records.gone(name)

    def _held(self, tenant: str, store: str, name: str) -> None:
        with self.intake.without(store):
            self.at.sweep(name)
            for row in self.records.held(store, name):
                self._forget(tenant, store, lambda document: file_of(document) == name)
                self.counts["passages"] += self.remove(tenant, store, name, row["documents"])
            self.records.gone(name, store)

    def _store(self, kind: str, tenant: str, name: str) -> None:
        with self.intake.without(name):
            self._forget(tenant, name, lambda document: True)
            self.counts["stores"] += self.at.drop(tenant, name)
            memories = self.records.page("memory", tenant, name, 1 << 30) if kind == "person" else []
            for each in memories:
                self.counts["texts"] += unlink(self.at.of(tenant, "memories") / each["id"])
            self.records.gone(name)

    def _forget(self, tenant: str, store: str, mine: Callable[[str], bool]) -> None:
        for what, count in self.forget(tenant, store, mine).items():
            self.counts[what] += count
        for state in self.records.page("state", tenant, None, 1 << 30):
            if (not store or state["store"] == store) and any(map(mine, state["documents"])):
                self._state(tenant, state["id"])

    def _state(self, tenant: str, name: str) -> None:
        """Delete a state that was kept."""
        for state in self.records.some("state", tenant, name):
            self.drop(state["key"])
            handed = state.get("handed", [])
            for each in [*handed, *(one for one in state.get("handing", []) if one not in handed)]:
                if self.unload(each["target"], each["name"]):
                    self.counts["adapters"] += 1
                else:
                    self.left.append(each)
        shutil.rmtree(self.at.of(tenant, "adapters") / name, ignore_errors=True)
        self.counts["kept_states"] += unlink(self.at.of(tenant, "states") / name)
        self.records.gone(name)


def file_of(document: str) -> str:
    """Return the id of the file or memory that a stored document is part of."""
    return document.partition("/")[0]
