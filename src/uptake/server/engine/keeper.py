"""What clients store: files, the stores made of them, memories of people, sessions; and how it is forgotten.

Everything of a tenant lies in a folder of its own, and every store is a folder, so that no filter stands
between two tenants. All of it is done in one thread, in order. `forget(tenant, store, documents)` is the
engine's: it drops whatever was made of a text and returns how much that was.
"""

import contextlib
import functools
import shutil
import sqlite3
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from uptake.cache import sync
from uptake.errors import UptakeError
from uptake.sealed import write_whole
from uptake.server.engine.folders import Folders, Held, unlink
from uptake.server.errors import ApiError, bad, not_found, of
from uptake.server.records import Records, Thing, minted
from uptake.store.datastore import Datastore
from uptake.text.types import Document

MadeT = TypeVar("MadeT")
Forget = Callable[[str, str, Callable[[str], bool]], dict[str, int]]
MOST_MEMORY = 64 << 10


class Keeper:
    """The folder of what clients store."""

    def __init__(self, root: Path, thread: ThreadPoolExecutor, forget: Forget) -> None:
        """`thread` does one thing after another, searches too."""
        self._root, self._thread, self._forget = root, thread, forget
        self._held = Held(root)
        self._at = Folders(root)
        self.records = Records(root / "records.db")
        for path in self._at.of("", "uploads").iterdir():  # of uploads that nobody was told of
            path.unlink()

    def close(self) -> None:
        """Leave the folder to another engine, once what is being done in it has ended."""
        self._thread.shutdown(cancel_futures=True)
        self._held.close()

    def submit(self, do: Callable[[], MadeT]) -> Future[MadeT]:
        """Do something in the keeper's thread, after all that was asked before."""
        return self._thread.submit(do)

    def resume(self) -> None:
        """Finish what a killed process had begun: deletions, then reading. What nobody was told of goes."""
        for kind, tenant, parent, name in self.records.unfinished():
            self._delete(kind, tenant, name, parent)
        known = self.records.ids()
        for path in self._root.glob("*_*/*/*"):
            if path.name not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for tenant, memory in self.records.pending():
            self._remember(tenant, memory)
        for row in self.records.held(status="in_progress"):
            self.submit(functools.partial(self._take_in, row["store"], row["file"]))

    def store_of(self, tenant: str, name: str) -> Datastore:
        """Return a tenant's store. Raises ApiError where there is none."""
        if name.startswith("pe_"):
            self.records.get("person", tenant, name)
        else:
            self.records.get("store", tenant, name)
        return self._at.opened(tenant, name)

    def act(self, what: str, tenant: str, asked: Thing) -> Any:
        """Do what a client asked, in the keeper's thread. Raises ApiError."""
        do = getattr(self, f"_{what}", None) if what in _ACTS else None
        if do is None:
            raise ApiError(404, "there is no such operation", "not_found")
        return do(tenant, asked)

    # Files.

    def _file_add(self, tenant: str, asked: Thing) -> Thing:
        upload = self._at.of("", "uploads") / Path(asked["upload"]).name
        size = upload.stat().st_size
        try:
            if self.records.used(tenant) + size > asked["quota"]:
                raise ApiError(413, "the key's room for files is full: delete some", "store_full", "file")
            name = minted("file")
            kept = self._at.of(tenant, "files") / name
            upload.replace(kept)
            sync(kept.parent)
        finally:
            upload.unlink(missing_ok=True)
        data = {"filename": asked["filename"], "purpose": asked["purpose"]}
        return self.records.make("file", tenant, data, size=size, name=name)

    def _file_get(self, tenant: str, asked: Thing) -> Thing:
        return self.records.get("file", tenant, asked["id"])

    def _file_path(self, tenant: str, asked: Thing) -> str:
        self.records.get("file", tenant, asked["id"])
        return str(self._at.of(tenant, "files") / asked["id"])

    def _file_list(self, tenant: str, asked: Thing) -> list[Thing]:
        return self.records.page("file", tenant, None, asked["limit"], asked["after"], asked["newest_first"])

    def _file_delete(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("file", tenant, asked["id"])
        return self._delete("file", tenant, asked["id"])

    # Stores of files.

    def _store_add(self, tenant: str, asked: Thing) -> Thing:
        for file in asked["file_ids"]:
            self.records.get("file", tenant, file)
        name = minted("store")
        Datastore.create(self._at.store_path(tenant, name), retriever="lexical")
        made = self.records.make(
            "store", tenant, {"name": asked["name"], "metadata": asked["metadata"]}, name=name
        )
        for file in asked["file_ids"]:
            self._hold(name, file)
        return self._counted(made)

    def _store_get(self, tenant: str, asked: Thing) -> Thing:
        return self._counted(self.records.get("store", tenant, asked["id"]))

    def _store_list(self, tenant: str, asked: Thing) -> list[Thing]:
        page = self.records.page("store", tenant, None, asked["limit"], asked["after"], asked["newest_first"])
        return [self._counted(each) for each in page]

    def _store_delete(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("store", tenant, asked["id"])
        return self._delete("store", tenant, asked["id"])

    def _store_search(self, tenant: str, asked: Thing) -> list[Thing]:
        store = self.store_of(tenant, asked["id"])
        if not store.count:
            return []
        (ranked,) = store.search([asked["query"]], asked["k"])
        ids = [int(one) for one in ranked.ids]
        passages, scores = store.passages(ids), [float(score) for score in ranked.scores]
        held = [row["file"] for row in self.records.held(asked["id"])]
        names = {file: self.records.get("file", tenant, file) for file in held}
        return [
            {
                "file_id": file_of(passage.document),
                "filename": names[file_of(passage.document)]["filename"],
                "score": score,
                "text": passage.text,
            }
            for passage, score in zip(passages, scores, strict=True)
        ]

    def _held_add(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("store", tenant, asked["store"])
        self.records.get("file", tenant, asked["file"])
        self._hold(asked["store"], asked["file"])
        return self._held_get(tenant, asked)

    def _held_get(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("store", tenant, asked["store"])
        found = self.records.held(asked["store"], asked["file"])
        if not found:
            raise not_found(f"file {asked['file'][:60]!r} of this vector store")
        return found[0]

    def _held_list(self, tenant: str, asked: Thing) -> list[Thing]:
        self.records.get("store", tenant, asked["store"])
        return self.records.held(asked["store"])

    def _held_delete(self, tenant: str, asked: Thing) -> Thing:
        self._held_get(tenant, asked)
        return self._delete("held", tenant, asked["file"], asked["store"])

    def _hold(self, store: str, file: str) -> None:
        self.records.hold(store, file)
        self.submit(lambda: self._take_in(store, file))

    def _take_in(self, store: str, file: str) -> None:
        """Read a file into a store, unless one of them is gone by now."""
        rows = self.records.held(store, file)
        if not rows or rows[0]["status"] != "in_progress":
            return
        tenant, documents = "", list[Document]()
        try:
            tenant = next(path.parent.parent.name for path in self._root.glob(f"*/stores/{store}"))
            known = self.records.get("file", tenant, file)
            documents = self._at.documents(tenant, file, known["filename"])
            self._at.opened(tenant, store).add(documents)
        except Exception as error:  # a full disk, say: whatever it is, whoever waits hears of it
            message = str(error) if isinstance(error, UptakeError) else self._fault(error)
            with contextlib.suppress(Exception):  # what has come of it already goes
                if documents:
                    self._remove(tenant, store, file, len(documents))
            self.records.came(store, file, "failed", 0, message.replace(str(self._root), "")[:300])
        else:
            self.records.came(store, file, "completed", len(documents))

    def _fault(self, error: Exception) -> str:
        """Return what a client is told of a fault that is not its own; the log says more."""
        if not isinstance(error, ApiError):
            traceback.print_exception(error)
        return of(error).message

    # Memories of a person.

    def _memory_add(self, tenant: str, asked: Thing) -> Thing:
        if len(asked["text"].encode()) > MOST_MEMORY:
            raise bad(f"a memory has at most {MOST_MEMORY:,} bytes: make it shorter", "text")
        if self.records.used(tenant) + len(asked["text"]) > asked["quota"]:
            raise ApiError(413, "the key's room for files is full: delete some", "store_full", "text")
        person = self._person(tenant, asked["user"]) or self._new_person(tenant, asked["user"])
        name = minted("memory")
        write_whole(self._at.of(tenant, "memories") / name, asked["text"].encode())
        sync(self._at.of(tenant, "memories"))
        size = len(asked["text"].encode())
        made = self.records.make("memory", tenant, {"pending": True}, parent=person, size=size, name=name)
        try:
            self._remember(tenant, made)
        except Exception:  # whoever is told of a fault must not find it kept
            with contextlib.suppress(OSError, sqlite3.Error):  # deleting needs room as well
                self._delete("memory", tenant, name, person)
            raise
        return self._memory_get(tenant, {"id": name})

    def _remember(self, tenant: str, memory: Thing) -> None:
        """Let a memory be found, and keep that it can be."""
        name = memory["id"]
        text = (self._at.of(tenant, "memories") / name).read_text("utf8")
        self._at.opened(tenant, memory["parent"]).add([Document(f"{name}/0", text, name)])
        self.records.update("memory", tenant, name, {})

    def _memory_list(self, tenant: str, asked: Thing) -> list[Thing]:
        person = self._person(tenant, asked["user"])
        if person is None:
            return []
        page = self.records.page(
            "memory", tenant, person, asked["limit"], asked["after"], asked["newest_first"]
        )
        return [self._told(tenant, each, asked["user"]) for each in page]

    def _memory_get(self, tenant: str, asked: Thing) -> Thing:
        found = self.records.get("memory", tenant, asked["id"])
        return self._told(tenant, found, self.records.get("person", tenant, found["parent"])["user"])

    def _memory_delete(self, tenant: str, asked: Thing) -> Thing:
        found = self.records.get("memory", tenant, asked["id"])
        return self._delete("memory", tenant, asked["id"], found["parent"])

    def _person_delete(self, tenant: str, asked: Thing) -> Thing:
        person = self._person(tenant, asked["user"])
        if person is None:
            raise not_found("a memory of this user")
        return self._delete("person", tenant, person)

    def person(self, tenant: str, user: str) -> str | None:
        """Return the id of the store of a person's memories, None where there are none."""
        return self._person(tenant, user)

    def _person(self, tenant: str, user: str) -> str | None:
        for each in self.records.page("person", tenant, None, 1 << 30):
            if each["user"] == user:
                return str(each["id"])
        return None

    def _new_person(self, tenant: str, user: str) -> str:
        name = minted("person")
        Datastore.create(self._at.store_path(tenant, name), retriever="lexical")
        return str(self.records.make("person", tenant, {"user": user}, name=name)["id"])

    def _told(self, tenant: str, memory: Thing, user: str) -> Thing:
        text = (self._at.of(tenant, "memories") / memory["id"]).read_text("utf8")
        return {**memory, "user": user, "text": text}

    # Sessions: texts that are read in order, with a way to adapt.

    def _session_add(self, tenant: str, asked: Thing) -> Thing:
        return self.records.make("session", tenant, {"uptake": asked["uptake"]})

    def _session_get(self, tenant: str, asked: Thing) -> Thing:
        found = self.records.get("session", tenant, asked["id"])
        texts = self.records.page("text", tenant, asked["id"], 1 << 30, newest_first=False)
        return {**found, "texts": [{"id": each["id"], "text": each["text"]} for each in texts]}

    def _session_take(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("session", tenant, asked["id"])
        size = sum(len(text.encode()) for text in asked["texts"])
        if self.records.used(tenant) + size > asked["quota"]:
            raise ApiError(413, "the key's room for files is full: delete some", "store_full", "texts")
        made = [
            self.records.make("text", tenant, {"text": text}, asked["id"], len(text.encode()))
            for text in asked["texts"]
        ]
        return {"id": asked["id"], "passages": [each["id"] for each in made]}

    def _session_drop(self, tenant: str, asked: Thing) -> Thing:
        found = self.records.get("text", tenant, asked["passage"])
        if found["parent"] != asked["id"]:
            raise not_found(f"passage {asked['passage'][:60]!r}")
        return self._delete("text", tenant, asked["passage"])

    def _session_delete(self, tenant: str, asked: Thing) -> Thing:
        self.records.get("session", tenant, asked["id"])
        return self._delete("session", tenant, asked["id"])

    def session(self, tenant: str, name: str) -> tuple[Thing, list[tuple[str, str]]]:
        """Return how a session adapts, and the texts that it has read with their ids, in order."""
        found = self._session_get(tenant, {"id": name})
        return found["uptake"], [(each["id"], each["text"]) for each in found["texts"]]

    # Deleting.

    def _delete(self, kind: str, tenant: str, name: str, parent: str = "") -> Thing:
        """Delete a thing and all that was made of it; return what went. Can be done again after a kill."""
        self.records.bury(kind, tenant, name, parent)
        counts = {"passages": 0, "states": 0, "requests": 0, "files": 0, "stores": 0, "texts": 0}

        def forget(store: str, mine: Callable[[str], bool]) -> None:
            for what, count in self._forget(tenant, store, mine).items():
                counts[what] += count

        match kind:
            case "file":
                for row in self.records.held(file=name):
                    forget(row["store"], lambda document: file_of(document) == name)
                    counts["passages"] += self._remove(tenant, row["store"], name, row["documents"])
                counts["files"] += unlink(self._at.of(tenant, "files") / name)
                self.records.gone(name)
            case "held":
                rows = self.records.held(parent, name)
                forget(parent, lambda document: file_of(document) == name)
                counts["passages"] += self._remove(tenant, parent, name, rows[0]["documents"] if rows else 0)
                self.records.gone(name, parent)
            case "store" | "person":
                forget(name, lambda document: True)
                counts["stores"] += self._at.drop(tenant, name)
                memories = self.records.page("memory", tenant, name, 1 << 30) if kind == "person" else []
                for each in memories:
                    counts["texts"] += unlink(self._at.of(tenant, "memories") / each["id"])
                self.records.gone(name)
            case "memory":
                forget(parent, lambda document: file_of(document) == name)
                counts["passages"] += self._remove(tenant, parent, name, 1)
                counts["texts"] += unlink(self._at.of(tenant, "memories") / name)
                self.records.gone(name)
                self.records.gone(name, parent)
            case "text" | "session":
                texts = (
                    self.records.page("text", tenant, name, 1 << 30) if kind == "session" else [{"id": name}]
                )
                names = {each["id"] for each in texts}
                forget("", lambda document: document in names)
                counts["texts"] += len(names)
                self.records.gone(name)
        return {"id": name, "forgotten": {what: count for what, count in counts.items() if count}}

    def _remove(self, tenant: str, store: str, name: str, documents: int) -> int:
        """Remove a thing's documents from a store, its bytes too. A kill may have left a store without it."""
        if not self._at.store_path(tenant, store).exists():
            return 0
        opened = self._at.opened(tenant, store)
        # One that was being read when the process died may hold any number of documents.
        known = documents or self._most_documents(tenant, name)
        return opened.remove([f"{name}/{place}" for place in range(known)], purge=True)

    def _most_documents(self, tenant: str, name: str) -> int:
        path = self._at.of(tenant, "files") / name
        if not path.exists():
            return 1
        try:
            return len(self._at.documents(tenant, name, self.records.get("file", tenant, name)["filename"]))
        except (UptakeError, ApiError):
            return 1

    def _counted(self, store: Thing) -> Thing:
        rows = self.records.held(store["id"])
        counts = dict.fromkeys(("in_progress", "completed", "failed", "cancelled"), 0)
        for row in rows:
            counts[row["status"]] += 1
        return {**store, "file_counts": {**counts, "total": len(rows)}}


_ACTS = frozenset(
    {
        *(f"file_{what}" for what in ("add", "get", "path", "list", "delete")),
        *(f"store_{what}" for what in ("add", "get", "list", "delete", "search")),
        *(f"held_{what}" for what in ("add", "get", "list", "delete")),
        *(f"memory_{what}" for what in ("add", "get", "list", "delete")),
        *(f"session_{what}" for what in ("add", "get", "take", "drop", "delete")),
        "person_delete",
    }
)


def file_of(document: str) -> str:
    """Return the id of the file or memory that a stored document is part of."""
    return document.partition("/")[0]
