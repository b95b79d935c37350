"""Writes to a store under its lease: adds in whole batches, replaces, removes, tidies up."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from uptake import arguments
from uptake.store.inventory import Recorder
from uptake.store.passages.columns import as_ids
from uptake.store.passages.table import Table
from uptake.store.unfinished import Adding
from uptake.text.types import Chunking, Document, Passage, stable_hash
from uptake.text.utf8 import storable

Embed = Callable[[Sequence[str]], NDArray[np.float32] | None]

BATCH = 2048  # passages a commit: an interruption loses at most the embedding of so many
_BATCH_CHARACTERS = 64_000_000
_RETAINED = timedelta(days=7)  # for readers that are still at work on an older version
_MINI_BATCH = 256  # passages embedded between two reports of progress


@dataclass(frozen=True, slots=True)
class Added:
    """The counts of one `add`: documents read, passages stored, passages that were there already."""

    documents: int
    passages: int
    already: int


class StoreWriter:
    """Changes the newest version of a store. `table` is what has been committed so far.

    `check` raises Busy where the lease was lost: it is called before each change.
    """

    def __init__(
        self, table: Table, recorder: Recorder, check: Callable[[], None], *, text_index: bool
    ) -> None:
        self.table = table
        self.check = check
        self.purged = False
        self.adding = Adding()
        self._recorder = recorder
        self._text_index = text_index

    def add(
        self,
        documents: Iterable[Document],
        embed: Embed,
        chunking: Chunking,
        progress: Callable[[int, int], None] | None,
        whole: bool = False,
    ) -> Added:
        """See Datastore.add; `embed` gives None where passages get no vectors."""
        adding = _Adding(self, embed, progress or (lambda done, known: None), whole)
        if progress and isinstance(documents, Sequence):
            adding.known = sum(1 for document in documents for _ in chunking.split(document.text))
        for document in documents:
            adding.put(storable_document(document), chunking)
        adding.flush(last=True)
        return Added(adding.documents, adding.stored, adding.already)

    def remove(self, document_keys: Sequence[int], passages: Sequence[int], purge: bool) -> int:
        """See Datastore.remove; documents are given by the stable hash of their ids."""
        before = self.table
        gone = np.isin(before.document_keys, as_ids(document_keys)) | np.isin(before.ids, as_ids(passages))
        self.check()
        if gone.any():
            self.commit(before.delete(before.ids[gone]))
        if purge:
            self.purged = True
            self.commit(self.table.rewritten(self._text_index))
            self._recorder.deleting(all_older=True)
            self.table.drop_older()
            self._recorder.record(self.table.version)
        return int(gone.sum())

    def tidy(self, fragments: int) -> None:
        """Update the text index, join small pieces of the table, delete versions replaced long ago."""
        self.check()
        if self._text_index:
            self.table.check_text_index(self._recorder.inventory)
        if self.table.fragments > fragments:
            self.commit(self.table.compact())
        if self._text_index:
            self.commit(self.table.index_text())
        self._recorder.check_versions()
        if outlived := self.table.outlived(_RETAINED):
            self._recorder.deleting()
            self.table.drop(outlived)

    def commit(self, table: Table, sums: Mapping[str, str] | None = None) -> None:
        """Go on from the version that was just made; `sums` are those known of its data files, by name."""
        self.check()
        self._recorder.record(table.version, sums or {})
        self.table = table


class _Adding:
    """The passages waiting for the next commit, and the counts of one `add`."""

    def __init__(
        self, writing: StoreWriter, embed: Embed, progress: Callable[[int, int], None], whole: bool
    ) -> None:
        self.documents = self.stored = self.already = self.known = 0
        self._writing = writing
        self._embed = embed
        self._progress = progress
        self._waiting: dict[int, Passage] = {}
        self._characters = 0
        self._stale: set[int] = set()
        self._drafts: list[str] | None = [] if whole else None
        self._here = DocumentPassages(writing.table)

    def put(self, document: Document, chunking: Chunking) -> None:
        """Make the store hold exactly this document's passages, after the next flush at the latest."""
        key = stable_hash(document.id)
        before = self._here.passages(key)
        now = set()
        for passage in chunking.passages(document):
            now.add(passage.id)
            if passage.id in before:
                self.already += 1
            elif passage.id in self._stale:  # the text was replaced and is back
                self._stale.remove(passage.id)
                self.already += 1
            else:
                self._waiting[passage.id] = passage
                self._characters += len(passage.text)
            if len(self._waiting) >= BATCH or self._characters >= _BATCH_CHARACTERS:
                self.flush()
        for old in before - now:
            if self._waiting.pop(old, None) is None:
                self._stale.add(old)
        self._here.changed[key] = now
        self.documents += 1

    def flush(self, last: bool = False) -> None:
        """Store what waits, then drop what it replaces; all that is stored whole, once the last has come."""
        if self._waiting:
            waiting = list(self._waiting.values())
            vectors = embedded([passage.text for passage in waiting], self._embed, self._report)
            self._writing.check()
            if self._drafts is None:
                self._writing.adding.begin()
                self._writing.commit(self._writing.table.append(waiting, vectors))
            else:
                self._drafts += self._writing.table.draft(waiting, vectors)
            self.stored += len(waiting)
        self._waiting, self._characters = {}, 0
        if last and self._drafts:
            self._writing.check()
            self._writing.adding.begin()
            self._writing.commit(self._writing.table.commit(self._drafts))
        if self._stale and (last or self._drafts is None):
            self._writing.check()
            self._writing.adding.begin()
            self._writing.commit(self._writing.table.delete(sorted(self._stale)))
            self._stale = set()
        self._report(0)

    def _report(self, embedded: int) -> None:
        done = self.stored + self.already + embedded
        self._progress(done, max(self.known, done, self.stored + self.already + len(self._waiting)))


def embedded(
    texts: Sequence[str], embed: Embed, report: Callable[[int], None] = lambda done: None
) -> NDArray[np.float32] | None:
    """Return one row a text, or None where passages get no vectors; `report` gets how many are done."""
    # Texts of like length side by side: little is wasted on padding.
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    parts = []
    for start in range(0, len(order), _MINI_BATCH):
        some = order[start : start + _MINI_BATCH]
        vectors = embed([texts[place] for place in some])
        if vectors is None:
            return None
        parts.append(vectors)
        report(start + len(some))
    return np.concatenate(parts)[np.argsort(order)]


class DocumentPassages:
    """The passages of each document: those in the table at the start, and those added since."""

    def __init__(self, table: Table) -> None:
        order = np.argsort(table.document_keys, kind="stable")
        self._keys, self._ids = table.document_keys[order], table.ids[order]
        self.changed: dict[int, set[int]] = {}

    def passages(self, document_key: int) -> set[int]:
        """Return the ids of a document's passages; the document is given by the stable hash of its id."""
        if document_key in self.changed:
            return self.changed[document_key]
        first, last = (np.searchsorted(self._keys, document_key, side) for side in ("left", "right"))
        return set(self._ids[first:last].tolist())


def lacks(table: Table, chunking: Chunking) -> Callable[[Document], bool]:
    """Return what says of a document whether the table does not hold all of it just as it is."""
    here = DocumentPassages(table)

    def lacking(document: Document) -> bool:
        clean = storable_document(document)
        return {p.id for p in chunking.passages(clean)} != here.passages(stable_hash(clean.id))

    return lacking


def storable_document(document: Document) -> Document:
    """Return a document whose every string can be stored. Raises BadInput for what is none."""
    arguments.records("documents", [document], "meta", "documents, as uptake.read(FILE) gives them")
    meta = {storable(name): storable(value) for name, value in document.meta.items()}
    return replace(
        document,
        id=storable(document.id),
        text=storable(document.text),
        group=storable(document.group),
        meta=meta,
    )
