"""Writing a view of a store: appended and committed, or written anew without what is gone.

Whoever calls this holds the store's lease.
"""

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uptake.errors import UptakeError
from uptake.store.files import plain_errors
from uptake.store.passages.table import Ids, Table
from uptake.store.views.stored import About, Arrays, Commit, Kept, Kind
from uptake.text.types import Passage

COMMIT = 32_768  # tokens: an interruption loses at most the reading of so many, or of one document
CHARACTERS = 65_536  # of whole documents, handed on to be read at a time
_DEAD = 0.1  # share of passages that are gone beyond which the files are written anew


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """What a reading did: documents and tokens read now, and tokens there in all."""

    documents: int
    tokens: int
    total: int


class Growing:
    """A view of a store while somebody who holds its lease adds to it."""

    def __init__(self, store: Path, about: About) -> None:
        self.about = about
        self._store = store
        self._added = {name: hashlib.sha256() for name in about.kind.files}
        self._ends = dict(about.ends)
        folder = about.folder(store)
        with plain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (folder / name).open("ab") for name in about.kind.files}
            for name, file in self._files.items():
                file.truncate(self._ends[name])  # what a crash left

    @property
    def waiting(self) -> int:
        """How many tokens have been put since the last commit."""
        return (self._ends["values"] - self.about.ends["values"]) // 4

    def put(self, rows: Arrays) -> None:
        """Add to every file; a document must be whole before `commit`."""
        with plain_errors(self.about.folder(self._store)):
            for name, kind in self.about.kind.files.items():
                raw = np.ascontiguousarray(rows[name], kind).tobytes()
                self._files[name].write(raw)
                self._added[name].update(raw)
                self._ends[name] += len(raw)

    def commit(self) -> None:
        """Make what was put so far good, whole or not at all."""
        with plain_errors(self.about.folder(self._store)):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        made = Commit(dict(self._ends), {name: added.hexdigest() for name, added in self._added.items()})
        self.about = dataclasses.replace(self.about, commits=(*self.about.commits, made))
        self.about.write(self._store)
        self._added = {name: hashlib.sha256() for name in self._files}

    def close(self) -> None:
        """Close the files and delete those of what has been replaced."""
        for file in self._files.values():
            file.close()
        kind = self.about.kind
        current = About.read(kind, self._store)
        for folder in (self._store / kind.name).iterdir():
            if folder.is_dir() and (current is None or folder.name != current.id):
                shutil.rmtree(folder, ignore_errors=True)


def begin(about: About) -> About:
    """Return the same view with nothing in it, under an id of its own."""
    return dataclasses.replace(about, id=secrets.token_hex(8), commits=())


def grow(
    store: Path,
    table: Table,
    empty: About,
    put: Callable[[Growing, list[list[Passage]]], None],
    progress: Callable[[int, int], None],
) -> ReadTokens:
    """Let `put` read every document of the table that a view lacks; `empty` tells of a view without any.

    `put` is given documents, each its passages in order. `progress(done, all)` counts passages.
    Raises Damaged.
    """
    rewrite(empty.kind, store, table, _DEAD)
    growing = Growing(store, About.read(empty.kind, store) or begin(empty))
    try:
        before = growing.about.tokens
        kept = Kept.mapped(growing.about, store)
        live = kept.live(table)
        left = list(_documents(table, kept.missing(live, table)))
        done, every = int(live.sum()), table.count
        progress(done, every)
        for batch in _batches(table, left):
            put(growing, batch)
            done += sum(map(len, batch))
            if growing.waiting >= COMMIT:
                growing.commit()
            progress(done, every)
        if growing.waiting or not growing.about.commits:
            growing.commit()
        total = growing.about.tokens
    finally:
        growing.close()
    return ReadTokens(len(left), total - before, total)


def rewrite(kind: Kind, store: Path, table: Table, bear: float = 0.0) -> None:
    """Write a view anew, without documents that are gone and what is damaged.

    Left alone where nothing is damaged and at most the share `bear` of the passages are gone. Files
    are never cut in place, for somebody may have them mapped. Raises Damaged.
    """
    about = About.read(kind, store)
    if about is None:
        return
    bad = [number for number, _ in about.faults(store)]
    sound = dataclasses.replace(about, commits=about.commits[: min(bad)]) if bad else about
    kept = Kept.mapped(sound, store)
    live = kept.live(table)
    if not bad and (~live).sum() <= bear * len(live):
        return
    growing = Growing(store, begin(about))
    try:
        for rows in kept.parts(live):
            growing.put(rows)
        growing.commit()
    finally:
        growing.close()


def purge(kind: Kind, store: Path, table: Table) -> None:
    """Leave no byte of what is gone: a view that cannot be written anew is deleted, to be read again."""
    try:
        rewrite(kind, store, table)
    except UptakeError:
        forget(kind, store)


def forget(kind: Kind, store: Path) -> None:
    """Delete a view."""
    shutil.rmtree(store / kind.name, ignore_errors=True)


def _batches(table: Table, left: Sequence[Ids]) -> Iterator[list[list[Passage]]]:
    """Yield documents, each its passages in order, so many that whoever reads them has enough to do."""
    batch: list[list[Passage]] = []
    characters = 0
    for ids in left:
        document = sorted(table.rows(ids), key=lambda passage: passage.start)
        batch.append(document)
        characters += sum(len(passage.text) for passage in document)
        if characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _documents(table: Table, keys: Ids) -> Iterator[Ids]:
    """Yield the passage ids of each of these documents, in table order."""
    order = np.argsort(table.document_keys, kind="stable")
    sorted_keys = table.document_keys[order]
    for key in keys:
        first, last = (np.searchsorted(sorted_keys, key, side) for side in ("left", "right"))
        yield table.ids[np.sort(order[first:last])]
