"""Keys of an API: 256 random bits each, stored as their SHA-256 alone, with scopes, a tenant and limits."""

import functools
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uptake.errors import BadInput

SCOPES = ("infer", "stores", "metrics", "admin")
PREFIX = "up-"


@dataclass(frozen=True)
class Limits:
    """What one key may have: counts a minute, requests at once, bytes of stores and of kept states."""

    requests: int = 600
    tokens: int = 200_000  # read and written
    trained: int = 2_000_000  # tokens that were trained on
    concurrency: int = 64
    store_bytes: int = 1 << 30
    state_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise BadInput(f"limit {name} {value}: use 1 or more")


@dataclass(frozen=True)
class Key:
    """A key as everything but the client knows it. `tenant` owns what is stored with it."""

    id: str
    tenant: str
    scopes: tuple[str, ...] = SCOPES
    limits: Limits = field(default_factory=Limits)
    created: float = 0.0
    revoked: float | None = None
    note: str = ""

    def may(self, scope: str) -> bool:
        """Whether it has a scope; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Key("key_local", "ten_local")  # whoever asks a server without keys, which listens on loopback alone


class Keys:
    """The keys in one SQLite file; any process may read and change it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, make: bool = False) -> None:
        """Open the file, or make it. Raises BadInput where it is not there or is something else."""
        if not make and not path.is_file():
            raise BadInput(
                f"keys {path}: there is no such file; make a first key with "
                f"`uptake keys add TENANT --keys {path}`"
            )
        self.path, self._clock = path, clock
        self._reading: sqlite3.Connection | None = None
        try:
            with self._open() as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, digest TEXT UNIQUE NOT NULL, "
                    "tenant TEXT NOT NULL, scopes TEXT NOT NULL, limits TEXT NOT NULL, "
                    "created REAL NOT NULL, revoked REAL, note TEXT NOT NULL)"
                )
                database.execute(
                    "CREATE TABLE IF NOT EXISTS tenants (name TEXT PRIMARY KEY, id TEXT NOT NULL)"
                )
        except sqlite3.DatabaseError as error:
            raise BadInput(f"keys {path}: no file of keys ({error}); name another") from None
        path.chmod(0o600)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=10)
        try:
            database.execute("PRAGMA synchronous=FULL")
            with database:
                yield database
        finally:
            database.close()

    def add(
        self,
        tenant: str,
        scopes: Sequence[str] = ("infer", "stores"),
        limits: Limits | None = None,
        note: str = "",
    ) -> tuple[Key, str]:
        """Make a key of a tenant; return it, and the secret, which nobody can be shown again."""
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise BadInput(f"scope {unknown[0]!r}: use {', '.join(SCOPES)}")
        if not scopes or not tenant.strip() or len(tenant) > 200:
            raise BadInput("a key needs a scope, and the name of its tenant in at most 200 characters")
        secret = PREFIX + secrets.token_urlsafe(32)
        name = f"key_{secrets.token_hex(8)}"
        with self._open() as database:
            database.execute(
                "INSERT OR IGNORE INTO tenants VALUES (?, ?)", (tenant, f"ten_{secrets.token_hex(8)}")
            )
            (owner,) = database.execute("SELECT id FROM tenants WHERE name = ?", (tenant,)).fetchone()
            found = Key(name, owner, tuple(scopes), limits or Limits(), self._clock(), None, note)
            database.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
                (
                    name,
                    digest(secret),
                    owner,
                    ",".join(scopes),
                    json.dumps(asdict(found.limits)),
                    found.created,
                    note,
                ),
            )
        return found, secret

    def list(self) -> list[tuple[Key, str]]:
        """Return every key, revoked ones too, with the name of its tenant; the oldest first."""
        with self._open() as database:
            rows = database.execute(
                "SELECT keys.id, tenant, scopes, limits, created, revoked, note, tenants.name FROM keys JOIN "
                "tenants ON tenants.id = tenant ORDER BY created, keys.id"
            ).fetchall()
        return [(_key(row[:7]), row[7]) for row in rows]

    def revoke(self, name: str) -> None:
        """End a key for good. Raises BadInput where there is none of this id."""
        with self._open() as database:
            changed = database.execute(
                "UPDATE keys SET revoked = coalesce(revoked, ?) WHERE id = ?", (self._clock(), name)
            ).rowcount
        if not changed:
            raise BadInput(f"key {name!r}: there is none; `uptake keys list` shows their ids")

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, None where there is none or it was revoked."""
        return self._one("digest = ?", digest(secret))

    def still(self, name: str) -> bool:
        """Whether a key of this id is there and not revoked."""
        return self._one("id = ?", name) is not None

    def _one(self, where: str, value: str) -> Key | None:
        # Kept open, for every request asks; each question sees what any process has committed by then.
        if self._reading is None:
            self._reading = sqlite3.connect(self.path, timeout=10, check_same_thread=False)
        row = self._reading.execute(
            "SELECT id, tenant, scopes, limits, created, revoked, note FROM keys "
            "WHERE revoked IS NULL AND " + where,
            (value,),
        ).fetchone()
        return row and _key(row)

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode("utf8", "surrogatepass")).hexdigest()


@functools.lru_cache(1024)
def _key(row: tuple[Any, ...]) -> Key:
    name, tenant, scopes, limits, created, revoked, note = row
    return Key(name, tenant, tuple(scopes.split(",")), Limits(**json.loads(limits)), created, revoked, note)
