"""A model reads a store: every document that has no tokens yet gets them, in commits that survive a crash."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uptake.errors import Mismatch
from uptake.overlap import Shingles
from uptake.store.table import Ids, Table
from uptake.store.token_writing import Growing, rewrite
from uptake.store.tokens import FOLDER, RECORD, About, Stored, missing
from uptake.text import Keyed, Keyer, Passage, stable_hash

COMMIT = 32_768  # tokens: an interruption loses at most the reading of so many, or of one document
_CHARACTERS = 65_536  # handed to the model at a time
_RUN = 128  # passages read as one text, so that a huge document needs no huge memory
_DEAD = 0.1  # share of passages that are gone beyond which the files are written anew


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """What a reading did: documents and tokens read now, and tokens there in all."""

    documents: int
    tokens: int
    total: int


def read_tokens(
    store: Path,
    table: Table,
    keyer: Keyer,
    progress: Callable[[int, int], None],
    fresh: bool = False,
) -> ReadTokens:
    """Read every document of the table that has no tokens yet; to be called with the store's lease.

    `progress(done, all)` counts passages. Raises Mismatch where another model has read the store,
    unless `fresh` says to begin anew, and Damaged.
    """
    if fresh:
        shutil.rmtree(store / FOLDER, ignore_errors=True)
    about = About.read(store)
    if about is not None and about.fingerprint != keyer.fingerprint:
        raise Mismatch(
            f"{store}: its tokens were read by {about.name or 'a model'} ({about.fingerprint}), not by "
            f"{keyer.name or 'this one'} ({keyer.fingerprint}); give that model, or --fresh to read them anew"
        )
    rewrite(store, table, _DEAD)
    about = About.read(store)
    growing = (
        Growing(store, about)
        if about
        else Growing.begin(store, keyer.name, keyer.fingerprint, keyer.dimensions)
    )
    try:
        before = growing.about.tokens
        stored = Stored.mapped(growing.about, store)
        live = stored.live(table)
        left = list(_documents(table, missing(stored, live, table)))
        done, every = int(live.sum()), table.count
        progress(done, every)
        for batch in _batches(table, left):
            for document in batch:
                done += len(document)
            _put(growing, batch, keyer)
            if growing.waiting >= COMMIT:
                growing.commit()
            progress(done, every)
        if growing.waiting or not growing.about.commits:
            growing.commit()
        total = growing.about.tokens
    finally:
        growing.close()
    return ReadTokens(len(left), total - before, total)


def _batches(table: Table, left: Sequence[Ids]) -> Iterator[list[list[Passage]]]:
    """Yield documents, each its passages in order, so many that the model has enough to do."""
    batch: list[list[Passage]] = []
    characters = 0
    for ids in left:
        document = sorted(table.rows(ids), key=lambda passage: passage.start)
        batch.append(document)
        characters += sum(len(passage.text) for passage in document)
        if characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _put(growing: Growing, documents: Sequence[list[Passage]], keyer: Keyer) -> None:
    runs = [(place == 0, run) for document in documents for place, run in enumerate(_runs(document))]
    while runs:
        some, size = 0, 0
        while some < len(runs) and size < _CHARACTERS:
            size += sum(len(passage.text) for passage in runs[some][1])
            some += 1
        now, runs = runs[:some], runs[some:]
        texts = ["".join(passage.text for passage in run) for _, run in now]
        for (first, run), keyed in zip(now, keyer.read(texts), strict=True):
            _put_run(growing, run, keyed, first)


def _put_run(growing: Growing, run: Sequence[Passage], keyed: Keyed, first: bool) -> None:
    offsets = np.cumsum([0, *(len(passage.text) for passage in run)])
    # A token that reaches over the end of a passage is that passage's.
    whose = np.searchsorted(offsets[1:], keyed.starts, side="right")
    words = [Shingles(passage.text).words for passage in run]
    records = np.zeros(len(run), RECORD)
    records["id"] = [passage.id for passage in run]
    records["document"] = [stable_hash(passage.document) for passage in run]
    records["group"] = [stable_hash(passage.group) if passage.group else 0 for passage in run]
    records["tokens"] = np.bincount(whose, minlength=len(run))
    records["words"] = [len(each) for each in words]
    records["run"][0] = 1
    records["first"][0] = first
    growing.put(records, keyed.keys, keyed.values, np.concatenate(words))


def _runs(document: Sequence[Passage]) -> Iterator[list[Passage]]:
    """Cut a document where white space was left out between passages, or it grows too long."""
    run: list[Passage] = []
    for passage in document:
        if run and (len(run) == _RUN or run[-1].start + len(run[-1].text) != passage.start):
            yield run
            run = []
        run.append(passage)
    if run:
        yield run


def _documents(table: Table, keys: Ids) -> Iterator[Ids]:
    """Yield the passage ids of each of these documents, in table order."""
    order = np.argsort(table.document_keys, kind="stable")
    sorted_keys = table.document_keys[order]
    for key in keys:
        first, last = (np.searchsorted(sorted_keys, key, side) for side in ("left", "right"))
        yield table.ids[np.sort(order[first:last])]
