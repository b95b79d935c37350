"""Memories of people, each person's in a store of their own."""

import contextlib
import sqlite3

from uptake.cache import sync
from uptake.sealed import write_whole
from uptake.server.engine.files import Act
from uptake.server.engine.forgetting import Shelf
from uptake.server.errors import bad, not_found
from uptake.server.records import Thing, minted
from uptake.text.types import Document

MOST_MEMORY = 64 << 10


class People:
    """Those of whom something is remembered."""

    def __init__(self, shelf: Shelf) -> None:
        self._at, self._records, self._shelf = shelf.at, shelf.records, shelf
        self.acts: dict[str, Act] = {
            "memory_add": self._add,
            "memory_get": self._get,
            "memory_list": self._list,
            "memory_delete": self._delete,
            "person_delete": self._delete_person,
        }

    def resume(self) -> None:
        """Let be found what was kept and could not be yet when the last process ended."""
        for tenant, memory in self._records.pending():
            self._remember(tenant, memory)

    def person(self, tenant: str, user: str) -> str | None:
        """Return the id of the store of a person's memories, None where there are none."""
        for each in self._records.page("person", tenant, None, 1 << 30):
            if each["user"] == user:
                return str(each["id"])
        return None

    def _add(self, tenant: str, asked: Thing) -> Thing:
        size = len(asked["text"].encode())
        if size > MOST_MEMORY:
            raise bad(f"a memory has at most {MOST_MEMORY:,} bytes: make it shorter", "text")
        self._records.room(tenant, size, asked["quota"], "text")
        person = self.person(tenant, asked["user"]) or self._new(tenant, asked["user"])
        name = minted("memory")
        write_whole(self._at.of(tenant, "memories") / name, asked["text"].encode())
        sync(self._at.of(tenant, "memories"))
        made = self._records.make("memory", tenant, {"pending": True}, parent=person, size=size, name=name)
        try:
            self._remember(tenant, made)
        except Exception:  # whoever is told of a fault must not find it kept
            with contextlib.suppress(OSError, sqlite3.Error):  # deleting needs room as well
                self._shelf.delete("memory", tenant, name, person)
            raise
        return self._get(tenant, {"id": name})

    def _remember(self, tenant: str, memory: Thing) -> None:
        """Let a memory be found, and keep that it can be."""
        name = memory["id"]
        text = (self._at.of(tenant, "memories") / name).read_text("utf8")
        self._at.opened(tenant, memory["parent"]).add([Document(f"{name}/0", text, name)])
        self._records.update("memory", tenant, name, {})

    def _list(self, tenant: str, asked: Thing) -> list[Thing]:
        person = self.person(tenant, asked["user"])
        if person is None:
            return []
        where = asked["limit"], asked["after"], asked["newest_first"]
        page = self._records.page("memory", tenant, person, *where)
        return [self._told(tenant, each, asked["user"]) for each in page]

    def _get(self, tenant: str, asked: Thing) -> Thing:
        found = self._records.get("memory", tenant, asked["id"])
        return self._told(tenant, found, self._records.get("person", tenant, found["parent"])["user"])

    def _delete(self, tenant: str, asked: Thing) -> Thing:
        found = self._records.get("memory", tenant, asked["id"])
        return self._shelf.delete("memory", tenant, asked["id"], found["parent"])

    def _delete_person(self, tenant: str, asked: Thing) -> Thing:
        person = self.person(tenant, asked["user"])
        if person is None:
            raise not_found("a memory of this user")
        return self._shelf.delete("person", tenant, person)

    def _new(self, tenant: str, user: str) -> str:
        name = minted("person")
        self._at.made(tenant, name)
        return str(self._records.make("person", tenant, {"user": user}, name=name)["id"])

    def _told(self, tenant: str, memory: Thing, user: str) -> Thing:
        text = (self._at.of(tenant, "memories") / memory["id"]).read_text("utf8")
        return {**memory, "user": user, "text": text}
