"""What a server remembers for its tenants, in one SQLite file: ids, owners, jobs and what has to be deleted.

Every change is on the disk before it is answered. What is deleted is overwritten, in the log as well. A thing
of another tenant is not there, in the same words.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uptake.errors import Damaged
from uptake.server.errors import ApiError, not_found

KINDS = {
    "file": "file",
    "store": "vs",
    "memory": "mem",
    "session": "se",
    "person": "pe",
    "text": "tx",
    "state": "st",
    "upload": "up",
}
NAMES = {"file": "file", "store": "vector store", "memory": "memory", "session": "session", "text": "passage"}
_TABLES = """
CREATE TABLE IF NOT EXISTS things (id TEXT PRIMARY KEY, kind TEXT NOT NULL, tenant TEXT NOT NULL,
  parent TEXT NOT NULL, created INTEGER NOT NULL, size INTEGER NOT NULL, data TEXT NOT NULL,
  place INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS owned ON things (tenant, kind, parent, place);
CREATE TABLE IF NOT EXISTS held (store TEXT NOT NULL, file TEXT NOT NULL, created INTEGER NOT NULL,
  status TEXT NOT NULL, documents INTEGER NOT NULL, error TEXT NOT NULL, PRIMARY KEY (store, file));
CREATE TABLE IF NOT EXISTS tombstones (id TEXT PRIMARY KEY, kind TEXT NOT NULL, tenant TEXT NOT NULL,
  parent TEXT NOT NULL, done INTEGER NOT NULL);
"""
Thing = dict[str, Any]


class Records:
    """The file, opened by the one process that writes it; its threads share it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it. Raises Damaged where it is something else."""
        self._lock, self._clock = threading.RLock(), clock
        self._unwritten: dict[tuple[str, str], tuple[str, int, str]] = {}
        self._database = sqlite3.connect(path, timeout=10, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._database.close()
            told = f"{path} holds no records of a server ({error}): restore the folder from a copy, whole"
            raise Damaged(told) from None
        path.chmod(0o600)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def make(
        self, kind: str, tenant: str, data: Thing, parent: str = "", size: int = 0, name: str | None = None
    ) -> Thing:
        """Keep a new thing under an id that nobody has had; return it."""
        made = name or minted(kind)
        created = int(self._clock())
        with self._change() as database:
            (place,) = database.execute("SELECT coalesce(max(place), 0) + 1 FROM things").fetchone()
            row = (made, kind, tenant, parent, created, size, json.dumps(data), place)
            database.execute("INSERT INTO things VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return {"id": made, "created": created, "size": size, "parent": parent, **data}

    def get(self, kind: str, tenant: str, name: str) -> Thing:
        """Return a thing of a tenant. Raises ApiError where there is none, or it is somebody else's."""
        with self._lock:
            row = self._database.execute(
                "SELECT id, created, size, parent, data FROM things WHERE id = ? AND kind = ? AND tenant = ?",
                (name, kind, tenant),
            ).fetchone()
        if row is None:
            raise not_found(f"{NAMES.get(kind, kind)} {name[:60]!r}")
        return _thing(row)

    def some(self, kind: str, tenant: str, name: str) -> list[Thing]:
        """Return a thing of a tenant, alone in a list, which is empty where there is none."""
        try:
            return [self.get(kind, tenant, name)]
        except ApiError:
            return []

    def page(
        self,
        kind: str,
        tenant: str,
        parent: str | None = None,
        limit: int = 20,
        after: str | None = None,
        newest_first: bool = True,
    ) -> list[Thing]:
        """Return a page of a tenant's things, and one more where there are more."""
        where, values = "kind = ? AND tenant = ?", [kind, tenant]
        if parent is not None:
            where, values = where + " AND parent = ?", [*values, parent]
        with self._lock:
            if after is not None:
                found = self._database.execute(
                    f"SELECT place FROM things WHERE id = ? AND {where}", (after, *values)
                ).fetchone()
                if found is None:
                    raise not_found(f"{NAMES.get(kind, kind)} {after[:60]!r}", "after")
                where += f" AND place {'<' if newest_first else '>'} {found[0]:d}"
            rows = self._database.execute(
                f"SELECT id, created, size, parent, data FROM things WHERE {where} ORDER BY place "
                f"{'DESC' if newest_first else 'ASC'} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        return [_thing(row) for row in rows]

    def update(self, kind: str, tenant: str, name: str, data: Thing) -> Thing:
        """Keep other data of a thing."""
        self.get(kind, tenant, name)
        with self._change() as database:
            database.execute("UPDATE things SET data = ? WHERE id = ?", (json.dumps(data), name))
        return self.get(kind, tenant, name)

    def change(self, kind: str, tenant: str, name: str, **data: Any) -> Thing:
        """Keep some data of a thing beside what is kept already."""
        with self._lock:
            row = self._database.execute("SELECT data FROM things WHERE id = ?", (name,)).fetchone()
            known = {} if row is None else json.loads(row[0])
            return self.update(kind, tenant, name, {**known, **data})

    def ids(self) -> set[str]:
        """Return the ids of all things there are."""
        with self._lock:
            return {row[0] for row in self._database.execute("SELECT id FROM things")}

    def pending(self) -> list[tuple[str, Thing]]:
        """Return (tenant, memory) of what was kept and cannot be found yet."""
        with self._lock:
            rows = self._database.execute(
                "SELECT tenant, id, created, size, parent, data FROM things WHERE kind = 'memory'"
            ).fetchall()
        found = [(tenant, _thing(row)) for tenant, *row in rows]
        return [(tenant, each) for tenant, each in found if each.get("pending")]

    def used(self, tenant: str) -> int:
        """Return the bytes that a tenant stores."""
        with self._lock:
            row = self._database.execute(
                "SELECT coalesce(sum(size), 0) FROM things WHERE tenant = ?", (tenant,)
            )
            return int(row.fetchone()[0])

    def room(self, tenant: str, size: int, quota: int, param: str) -> None:
        """Raise ApiError where a tenant has no room for so many bytes more."""
        if self.used(tenant) + size > quota:
            told = "the key's room for files, memories and states is full: delete some"
            raise ApiError(413, told, "store_full", param)

    def owner(self, kind: str, name: str) -> str | None:
        """Return the tenant that has a thing, None where there is no such thing."""
        with self._lock:
            row = self._database.execute(
                "SELECT tenant FROM things WHERE id = ? AND kind = ?", (name, kind)
            ).fetchone()
        return None if row is None else str(row[0])

    # Which files a store holds, and how far they have come.

    def hold(self, store: str, file: str) -> None:
        """Keep that a store is to hold a file, until it does."""
        self._unwritten.pop((store, file), None)
        with self._change() as database:
            database.execute(
                # One that is read again may hold as many documents as it did.
                "INSERT INTO held VALUES (?, ?, ?, 'in_progress', 0, '') ON CONFLICT DO UPDATE SET "
                "created = excluded.created, status = excluded.status, error = ''",
                (store, file, int(self._clock())),
            )

    def came(self, store: str, file: str, status: str, documents: int, error: str = "") -> None:
        """Keep what came of reading a file into a store.

        Where the disk has no room for it, it is told all the same, and written with the next.
        """
        with self._lock:
            self._unwritten[store, file] = status, documents, error
            with self._change() as database:
                database.executemany(
                    "UPDATE held SET status = ?, documents = ?, error = ? WHERE store = ? AND file = ?",
                    [(*what, *which) for which, what in self._unwritten.items()],
                )
            self._unwritten.clear()

    def held(
        self, store: str | None = None, file: str | None = None, status: str | None = None
    ) -> list[Thing]:
        """Return what stores hold, by any of the three; the oldest first."""
        wanted = {"store": store, "file": file, "status": status}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        with self._lock:
            rows = self._database.execute(
                "SELECT store, file, created, status, documents, error FROM held WHERE "
                f"{where} ORDER BY created, rowid",
                tuple(given.values()),
            ).fetchall()
        names = ("store", "file", "created", "status", "documents", "error")
        told = [(*row[:3], *self._unwritten.get((row[0], row[1]), row[3:])) for row in rows]
        return [dict(zip(names, row, strict=True)) for row in told]

    # Deleting: first a tombstone, then all that was made of the thing, then the rows themselves.

    def bury(self, kind: str, tenant: str, name: str, parent: str = "") -> None:
        """Keep that a thing is to go, whatever happens meanwhile."""
        with self._change() as database:
            database.execute(
                "INSERT OR IGNORE INTO tombstones VALUES (?, ?, ?, ?, 0)",
                (f"{parent}/{name}", kind, tenant, parent),
            )

    def unfinished(self) -> list[tuple[str, str, str, str]]:
        """Return (kind, tenant, parent, id) of what was to go and may not have gone."""
        with self._lock:
            rows = self._database.execute("SELECT kind, tenant, parent, id FROM tombstones WHERE done = 0")
            return [
                (kind, tenant, parent, key.removeprefix(f"{parent}/")) for kind, tenant, parent, key in rows
            ]

    def gone(self, name: str, parent: str = "", also: Sequence[str] = ()) -> None:
        """Drop a thing's rows for good, and what is kept under it."""
        with self._change() as database:
            for one in (name, *also):
                if not parent:
                    database.execute("DELETE FROM things WHERE id = ? OR parent = ?", (one, one))
                    database.execute("DELETE FROM held WHERE store = ? OR file = ?", (one, one))
                else:
                    database.execute("DELETE FROM held WHERE store = ? AND file = ?", (parent, one))
            database.execute("UPDATE tombstones SET done = 1 WHERE id = ?", (f"{parent}/{name}",))
        with self._lock:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def minted(kind: str) -> str:
    """Return an id that nobody has had and that is no path."""
    return f"{KINDS[kind]}_{secrets.token_hex(12)}"


def _thing(row: Sequence[Any]) -> Thing:
    name, created, size, parent, data = row
    return {"id": name, "created": created, "size": size, "parent": parent, **json.loads(data)}
