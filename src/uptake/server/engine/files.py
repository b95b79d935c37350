"""Files, and the vector stores made of them, as clients ask for them."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uptake.cache import sync
from uptake.server.engine.forgetting import Shelf, file_of
from uptake.server.engine.intake import Taking
from uptake.server.errors import not_found
from uptake.server.records import Thing, minted

Act = Callable[[str, Thing], Any]


class Files:
    """What clients send as files."""

    def __init__(self, shelf: Shelf) -> None:
        self._at, self._records, self._shelf = shelf.at, shelf.records, shelf
        self.acts: dict[str, Act] = {
            "file_add": self._add,
            "file_get": self._get,
            "file_path": self._path,
            "file_list": self._list,
            "file_delete": self._delete,
        }

    def _add(self, tenant: str, asked: Thing) -> Thing:
        upload = self._at.of("", "uploads") / Path(asked["upload"]).name
        size = upload.stat().st_size
        try:
            self._records.room(tenant, size, asked["quota"], "file")
            name = minted("file")
            kept = self._at.of(tenant, "files") / name
            upload.replace(kept)
            sync(kept.parent)
        finally:
            upload.unlink(missing_ok=True)
        data = {"filename": asked["filename"], "purpose": asked["purpose"]}
        return self._records.make("file", tenant, data, size=size, name=name)

    def _get(self, tenant: str, asked: Thing) -> Thing:
        return self._records.get("file", tenant, asked["id"])

    def _path(self, tenant: str, asked: Thing) -> str:
        self._records.get("file", tenant, asked["id"])
        return str(self._at.of(tenant, "files") / asked["id"])

    def _list(self, tenant: str, asked: Thing) -> list[Thing]:
        return self._records.page("file", tenant, None, asked["limit"], asked["after"], asked["newest_first"])

    def _delete(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("file", tenant, asked["id"])
        return self._shelf.delete("file", tenant, asked["id"])


class Stores:
    """Stores of files, and which of them each holds."""

    def __init__(self, shelf: Shelf) -> None:
        self._at, self._records, self._shelf = shelf.at, shelf.records, shelf
        self._taking: dict[tuple[str, str], Taking] = {}
        self.acts: dict[str, Act] = {
            "store_add": self._add,
            "store_get": self._get,
            "store_list": self._list,
            "store_delete": self._delete,
            "store_search": self._search,
            "held_add": self._held_add,
            "held_get": self._held_get,
            "held_list": self._held_list,
            "held_delete": self._held_delete,
        }

    def resume(self) -> None:
        """Read on whatever was on its way when the last process ended."""
        for row in self._records.held(status="in_progress"):
            owner = self._records.owner("store", row["store"])
            if owner is not None:
                self._take_in(owner, row["store"], row["file"])

    def came(self, taking: Taking) -> None:
        """Take note of what came of reading a file, in the keeper's thread."""
        if self._taking.get((taking.store, taking.file)) is not taking:
            return  # it was asked for again meanwhile
        del self._taking[taking.store, taking.file]
        self._at.changed(taking.store)
        if not taking.error:
            self._records.came(taking.store, taking.file, "completed", taking.documents)
            return
        left = taking.documents
        with contextlib.suppress(Exception), self._shelf.intake.without(taking.store):
            # What has come of it already goes; where the disk has no room even for that, with the file.
            self._shelf.remove(taking.tenant, taking.store, taking.file, taking.documents)
            left = 0
        told = taking.error.replace(str(self._at.root), "")[:300]
        self._records.came(taking.store, taking.file, "failed", left, told)

    def _add(self, tenant: str, asked: Thing) -> Thing:
        for file in asked["file_ids"]:
            self._records.get("file", tenant, file)
        name = minted("store")
        self._at.made_by_meaning(tenant, name)
        encoder = self._at.encoder
        data = {"name": asked["name"], "metadata": asked["metadata"]}
        data["encoder"] = None if encoder is None else encoder.fingerprint
        made = self._records.make("store", tenant, data, name=name)
        for file in asked["file_ids"]:
            self._hold(tenant, name, file)
        return self._counted(made)

    def _get(self, tenant: str, asked: Thing) -> Thing:
        return self._counted(self._records.get("store", tenant, asked["id"]))

    def _list(self, tenant: str, asked: Thing) -> list[Thing]:
        where = asked["limit"], asked["after"], asked["newest_first"]
        return [self._counted(each) for each in self._records.page("store", tenant, None, *where)]

    def _delete(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("store", tenant, asked["id"])
        return self._shelf.delete("store", tenant, asked["id"])

    def _search(self, tenant: str, asked: Thing) -> list[Thing]:
        self._records.get("store", tenant, asked["id"])
        store = self._at.opened(tenant, asked["id"])
        if not store.count:
            return []
        (ranked,) = store.search([asked["query"]], asked["k"])
        passages = store.passages([int(one) for one in ranked.ids])
        names = {
            row["file"]: self._records.get("file", tenant, row["file"])["filename"]
            for row in self._records.held(asked["id"])
        }
        return [
            {
                "file_id": file_of(passage.document),
                "filename": names[file_of(passage.document)],
                "score": float(score),
                "text": passage.text,
            }
            for passage, score in zip(passages, ranked.scores, strict=True)
        ]

    def _held_add(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("store", tenant, asked["store"])
        self._records.get("file", tenant, asked["file"])
        self._hold(tenant, asked["store"], asked["file"])
        return self._held_get(tenant, asked)

    def _held_get(self, tenant: str, asked: Thing) -> Thing:
        self._records.get("store", tenant, asked["store"])
        found = self._records.held(asked["store"], asked["file"])
        if not found:
            raise not_found(f"file {asked['file'][:60]!r} of this vector store")
        return found[0]

    def _held_list(self, tenant: str, asked: Thing) -> list[Thing]:
        self._records.get("store", tenant, asked["store"])
        return self._records.held(asked["store"])

    def _held_delete(self, tenant: str, asked: Thing) -> Thing:
        self._held_get(tenant, asked)
        return self._shelf.delete("held", tenant, asked["file"], asked["store"])

    def _hold(self, tenant: str, store: str, file: str) -> None:
        self._records.hold(store, file)
        self._take_in(tenant, store, file)

    def _take_in(self, tenant: str, store: str, file: str) -> None:
        self._taking[store, file] = taking = Taking(tenant, store, file)
        self._shelf.intake.add(taking)

    def _counted(self, store: Thing) -> Thing:
        rows = self._records.held(store["id"])
        counts = dict.fromkeys(("in_progress", "completed", "failed", "cancelled"), 0)
        for row in rows:
            counts[row["status"]] += 1
        encoder = self._at.encoder
        meant = encoder is not None and encoder.fingerprint == store["encoder"]
        searched = "words and meaning" if meant else "words"
        return {**store, "file_counts": {**counts, "total": len(rows)}, "searched": searched}
