"""Writes a view of a store: appends and commits, or writes it anew without removed documents.

The caller holds the store's lease.
"""

import dataclasses
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uptake.errors import UptakeError
from uptake.store.files import plain_errors
from uptake.store.passages.columns import Ids
from uptake.store.passages.table import Table
from uptake.store.views.view_files import Arrays, Commit, StoredView, ViewKind, ViewMetadata
from uptake.text.types import Passage

COMMIT = 32_768  # tokens: an interruption loses at most the reading of so many, or of one document
SECONDS = 20.0  # or of a batch, where that takes longer than these
CHARACTERS = 65_536  # of whole documents, read in one batch
_DEAD = 0.1  # share of removed passages above which the files are written anew


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """What one reading added to a view: documents and tokens read now, and all tokens there are."""

    documents: int
    tokens: int
    total: int


class ViewFull(Exception):
    """The files of a view may not grow further: what was appended so far is all that comes in."""


class ViewWriter:
    """Appends to one view of a store; the caller holds the store's lease."""

    def __init__(self, store: Path, metadata: ViewMetadata) -> None:
        self.metadata = metadata
        self._store = store
        self._added = {name: hashlib.sha256() for name in metadata.kind.files}
        self._ends = dict(metadata.ends)
        folder = metadata.folder(store)
        with plain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: (folder / name).open("ab") for name in metadata.kind.files}
            for name, file in self._files.items():
                file.truncate(self._ends[name])  # drops what a crash left

    @property
    def uncommitted(self) -> int:
        """How many tokens were appended since the last commit."""
        return (self._ends["values"] - self.metadata.ends["values"]) // 4

    @property
    def bytes(self) -> int:
        """How large the files are."""
        return sum(self._ends.values())

    def append(self, rows: Arrays) -> None:
        """Append rows to every file; a document must be complete before `commit`."""
        with plain_errors(self.metadata.folder(self._store)):
            for name, kind in self.metadata.kind.files.items():
                raw = np.ascontiguousarray(rows[name], kind).tobytes()
                self._files[name].write(raw)
                self._added[name].update(raw)
                self._ends[name] += len(raw)

    def commit(self) -> None:
        """Make everything appended so far valid, in one step."""
        with plain_errors(self.metadata.folder(self._store)):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        made = Commit(dict(self._ends), {name: added.hexdigest() for name, added in self._added.items()})
        self.metadata = dataclasses.replace(self.metadata, commits=(*self.metadata.commits, made))
        self.metadata.write(self._store)
        self._added = {name: hashlib.sha256() for name in self._files}

    def close(self) -> None:
        """Close the files and delete those of replaced versions of the view."""
        for file in self._files.values():
            file.close()
        kind = self.metadata.kind
        current = ViewMetadata.read(kind, self._store)
        for folder in (self._store / kind.name).iterdir():
            if folder.is_dir() and (current is None or folder.name != current.id):
                shutil.rmtree(folder, ignore_errors=True)


def empty_view(metadata: ViewMetadata) -> ViewMetadata:
    """Return the metadata of the same view with no rows, under a new id."""
    return dataclasses.replace(metadata, id=secrets.token_hex(8), commits=())


def extend_view(
    store: Path,
    table: Table,
    empty: ViewMetadata,
    append: Callable[[ViewWriter, list[list[Passage]]], None],
    progress: Callable[[int, int], None],
    wanted: Ids | None = None,
) -> ReadTokens:
    """Append every document of the table that a view lacks; `empty` is the metadata of a new view.

    `append` gets documents, each as its passages in order; those of a view that is read passage by passage
    one at a time, and of these `wanted`, where given, alone. It raises ViewFull, having appended a part of
    them, to end. `progress(done, all)` counts passages. Raises Damaged.
    """
    rewrite_view(empty.kind, store, table, _DEAD)
    writer = ViewWriter(store, ViewMetadata.read(empty.kind, store) or empty_view(empty))
    try:
        before = writer.metadata.tokens
        view = StoredView.mapped(writer.metadata, store)
        live = view.live(table)
        missing = view.missing(live, table)
        if empty.kind.by_passage:
            chosen = missing if wanted is None else missing[np.isin(missing, wanted)]
            left = [chosen[place : place + 1] for place in range(len(chosen))]
        else:
            left = list(_documents(table, missing))
        done, held, read = int(live.sum()), len(view.passages), 0
        every = table.count if wanted is None else done + len(left)
        progress(done, every)
        committed = time.monotonic()
        # What is read passage by passage is a large model's work: an interruption shall lose little of it.
        for batch in _batches(table, left, 1 if empty.kind.by_passage else CHARACTERS):
            try:
                append(writer, batch)
            except ViewFull:
                break
            done, read = done + sum(map(len, batch)), read + len(batch)
            if writer.uncommitted >= COMMIT or time.monotonic() - committed >= SECONDS:
                writer.commit()
                committed = time.monotonic()
            progress(done, every)
        if writer.uncommitted or not writer.metadata.commits:
            writer.commit()
        total = writer.metadata.tokens
        if empty.kind.by_passage:  # the last batch may have come in part
            read = writer.metadata.count("passages") - held
    finally:
        writer.close()
    return ReadTokens(read, total - before, total)


def rewrite_view(kind: ViewKind, store: Path, table: Table, allowed: float = 0.0) -> None:
    """Write a view anew, without removed documents and damaged commits.

    Does nothing where nothing is damaged and at most the share `allowed` of its passages was removed. Files
    are never shortened in place, because a reader may have them mapped. Raises Damaged.
    """
    metadata = ViewMetadata.read(kind, store)
    if metadata is None:
        return
    bad = [number for number, _ in metadata.faults(store)]
    sound = dataclasses.replace(metadata, commits=metadata.commits[: min(bad)]) if bad else metadata
    view = StoredView.mapped(sound, store)
    live = view.live(table)
    if not bad and (~live).sum() <= allowed * len(live):
        return
    writer = ViewWriter(store, empty_view(metadata))
    try:
        for rows in view.documents(live):
            writer.append(rows)
        writer.commit()
    finally:
        writer.close()


def purge_view(kind: ViewKind, store: Path, table: Table) -> None:
    """Erase every byte of removed documents; a view that cannot be written anew is deleted."""
    try:
        rewrite_view(kind, store, table)
    except UptakeError:
        delete_view(kind, store)


def delete_view(kind: ViewKind, store: Path) -> None:
    """Delete a view."""
    shutil.rmtree(store / kind.name, ignore_errors=True)


def _batches(table: Table, left: Sequence[Ids], most: int) -> Iterator[list[list[Passage]]]:
    """Yield documents, each its passages in order, in batches of about so many characters."""
    batch: list[list[Passage]] = []
    characters = 0
    for ids in left:
        document = sorted(table.rows(ids), key=lambda passage: passage.start)
        batch.append(document)
        characters += sum(len(passage.text) for passage in document)
        if characters >= most:
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
