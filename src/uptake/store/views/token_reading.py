"""A model reads a store: every document that has no tokens yet gets them, in commits that survive a crash."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.errors import Mismatch
from uptake.store.passages.table import Table
from uptake.store.views.tokens import TOKENS
from uptake.store.views.view_files import PASSAGE, Records, ViewMetadata
from uptake.store.views.view_writer import CHARACTERS, ReadTokens, ViewWriter, delete_view, extend_view
from uptake.text.collection import Collected
from uptake.text.types import Keyed, Keyer, Passage, stable_hash

_RUN = 128  # passages read as one text, so that a huge document needs no huge memory


def read_tokens(
    store: Path, table: Table, keyer: Keyer, progress: Callable[[int, int], None], fresh: bool = False
) -> ReadTokens:
    """Read every document of the table that has no tokens yet; to be called with the store's lease.

    `progress(done, all)` counts passages. Raises Mismatch where another model has read the store,
    unless `fresh` says to begin anew, and Damaged.
    """
    if fresh:
        delete_view(TOKENS, store)
    metadata = ViewMetadata.read(TOKENS, store)
    if metadata is not None and metadata.fingerprint != keyer.fingerprint:
        raise Mismatch(
            f"{store}: its tokens were read by {metadata.name or 'a model'} ({metadata.fingerprint}), not by "
            f"{keyer.name or 'this one'} ({keyer.fingerprint}); give that model, or --fresh to read them anew"
        )
    empty = ViewMetadata("", keyer.name, keyer.fingerprint, keyer.dimensions, kind=TOKENS)
    return extend_view(
        store, table, empty, lambda writer, documents: _append(writer, documents, keyer), progress
    )


def _append(writer: ViewWriter, documents: Sequence[list[Passage]], keyer: Keyer) -> None:
    found = [(place == 0, run) for document in documents for place, run in enumerate(runs(document))]
    while found:
        some, size = 0, 0
        while some < len(found) and size < CHARACTERS:
            size += sum(len(passage.text) for passage in found[some][1])
            some += 1
        now, found = found[:some], found[some:]
        texts = ["".join(passage.text for passage in run) for _, run in now]
        for (first, run), keyed in zip(now, keyer.read(texts), strict=True):
            _append_run(writer, run, keyed, first)


def _append_run(writer: ViewWriter, run: Sequence[Passage], keyed: Keyed, first: bool) -> None:
    kept = Collected.of([passage.text for passage in run])
    records = passage_records(run, keyed.starts, first)
    records["words"], records["letters"] = kept.word_counts, kept.run_counts
    records["unspaced"], records["sampled"] = kept.unspaced, kept.sampled
    writer.append(
        {
            "keys": keyed.keys,
            "values": keyed.values,
            "passages": records,
            "words": kept.words,
            "letters": kept.runs,
        }
    )


def passage_records(run: Sequence[Passage], starts: NDArray[np.int64], first: bool) -> Records:
    """Return the records, of PASSAGE, of a run of text whose tokens begin at these of its characters."""
    offsets = np.cumsum([len(passage.text) for passage in run])
    # A token that reaches over the end of a passage is that passage's.
    whose = np.searchsorted(offsets, starts, side="right")
    records = np.zeros(len(run), PASSAGE)
    records["id"] = [passage.id for passage in run]
    records["document"] = [stable_hash(passage.document) for passage in run]
    records["group"] = [stable_hash(passage.group) if passage.group else 0 for passage in run]
    records["tokens"] = np.bincount(whose, minlength=len(run))
    records["run"][0] = 1
    records["first"][0] = first
    return records


def runs(document: Sequence[Passage]) -> Iterator[list[Passage]]:
    """Cut a document where white space was left out between passages, or it grows too long."""
    run: list[Passage] = []
    for passage in document:
        if run and (len(run) == _RUN or run[-1].start + len(run[-1].text) != passage.start):
            yield run
            run = []
        run.append(passage)
    if run:
        yield run
