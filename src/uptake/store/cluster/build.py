"""Adding a corpus by many workers: they read, cut, embed and write fragments; the driver commits once.

The corpus comes in groups of pieces (files), each of which any machine can read. First every group
is read for the ids of its passages, from which the driver alone decides what is new, what is there
and which document was read before. Then the new passages are embedded block by block: a worker
reads the group again, which costs little beside embedding, writes one Lance fragment, and notes it
in STORE/building under a name made of the block's ids. That note is what resuming goes by: after
the death of any worker or of the driver the same blocks are cut again, and those noted are done.
Readers see nothing of it before the one commit.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uptake.codec import Malformed, load, parse, plain
from uptake.errors import BadInput, Damaged
from uptake.store.cluster.pool import Pool
from uptake.store.files import delete_below, plain_errors, read_json, sha256, write_json
from uptake.store.inventory import TABLE
from uptake.store.layout import View
from uptake.store.passages.columns import Ids
from uptake.store.passages.encoding import Encoding
from uptake.store.passages.table import Table
from uptake.store.passages.writing import Added, DocumentPassages, StoreWriter, embedded, storable_document
from uptake.store.remote.objects import Location
from uptake.text.types import Document, Embedder, Passage, stable_hash

Piece = Callable[[], Iterable[tuple[Document | str, str]]]  # as readers.pieces makes them

BUILDING = "building"
_BLOCK = 2048  # passages a fragment: what a lost worker has to embed again
_GROUP = 256  # pieces read in one go, at the most


@dataclass(frozen=True)
class Group:
    """Pieces that are read one after another."""

    number: int
    pieces: Sequence[Piece]

    def items(self) -> Iterator[tuple[Document | str, str]]:
        """Yield what they hold: documents, or reasons why there is none, and where."""
        for piece in self.pieces:
            yield from piece()


class GroupIds(NamedTuple):
    """The ids of a group: `keys` names each document, `counts` how many of `passages` are its own, in order.

    `places` tells people where each document stood, `left_out` what else the group holds: reasons, and where.
    """

    keys: Ids
    counts: Ids
    passages: Ids
    places: list[str]
    left_out: list[tuple[str, str]]


@dataclass(frozen=True)
class Block:
    """Passages to embed: those of `ids` among the documents `first` up to `stop` of a group."""

    group: Group
    first: int
    stop: int
    ids: Ids

    @property
    def note(self) -> str:
        """The name of the note that says it is done."""
        return f"{hashlib.sha256(self.ids.astype('<i8').tobytes()).hexdigest()[:32]}.json"


@dataclass(frozen=True)
class _Note:
    """What says that a block is done: the fragments it was written into, and the SHA-256 of their files."""

    fragments: tuple[str, ...]
    sums: dict[str, str]

    @classmethod
    def of(cls, store: Location, fragments: Sequence[str]) -> "_Note":
        """Return the note of fragments that were just written."""
        files = [file["path"] for text in fragments for file in parse(text)["files"]]
        return cls(tuple(fragments), {file: sha256(store / TABLE / "data" / file) for file in files})


class Builder:
    """A worker: reads groups and embeds blocks."""

    def __init__(self, store: Location, view: View, encoder: Embedder | str | None, device: str) -> None:
        self._store = store
        self._view = view
        self._encoder = encoder
        self._device = device
        self._reading: tuple[int, int, Iterator[Document]] | None = None  # group, documents read, the rest

    def ready(self) -> None:
        """Load what embeds, with one thread: there is a worker for each core."""
        if self._view.dimensions and self._device == "cpu":
            import torch

            torch.set_num_threads(1)
        self._encoding = Encoding(self._store, self._view, self._encoder, self._device)
        if self._view.dimensions:
            _ = self._encoding.encoder

    def read(self, group: Group) -> GroupIds:
        """Return what a group holds, as ids."""
        keys, counts, passages, places, left_out = [], [], list[int](), [], []
        for found, where in group.items():
            if isinstance(found, str):
                left_out.append((found, where))
                continue
            document = storable_document(found)
            own = [passage.id for passage in self._view.chunking.passages(document)]
            keys.append(stable_hash(document.id))
            counts.append(len(own))
            passages += own
            places.append(where)
        ids = [np.array(each, np.int64) for each in (keys, counts, passages)]
        return GroupIds(ids[0], ids[1], ids[2], places, left_out)

    def write(self, block: Block) -> int:
        """Embed a block, write its fragment and the note of it; return how many passages it holds."""
        wanted, found = set(block.ids.tolist()), dict[int, Passage]()
        for passage in self._passages(block):
            if passage.id in wanted:
                found.setdefault(passage.id, passage)  # of a document that is there twice, the first
        if len(found) != len(wanted):
            raise BadInput(f"{self._store}: the corpus changed meanwhile; give the same command again")
        passages = list(found.values())
        vectors = embedded([passage.text for passage in passages], self._embed)
        fragments = Table.open(self._store / TABLE).draft(passages, vectors)
        write_json(self._store / BUILDING / block.note, plain(_Note.of(self._store, fragments)))
        return len(passages)

    def _passages(self, block: Block) -> Iterator[Passage]:
        """Yield the passages of a block's documents; blocks of one group are best asked for in order."""
        if self._reading is None or self._reading[0] != block.group.number or self._reading[1] > block.first:
            items = block.group.items()
            every = (storable_document(found) for found, _ in items if not isinstance(found, str))
            self._reading = block.group.number, 0, every
        _, read, documents = self._reading
        self._reading = None  # what breaks off here must not be gone on with
        for document in itertools.islice(documents, block.first - read, block.stop - read):
            yield from self._view.chunking.passages(document)
        self._reading = block.group.number, block.stop, documents

    def _embed(self, texts: Sequence[str]) -> np.ndarray | None:
        return self._encoding.embed(texts) if self._view.dimensions else None


def add(
    writing: StoreWriter,
    store: Location,
    pieces: Sequence[Piece],
    pool: Pool,
    progress: Callable[[int, int], None],
    left_out: Callable[[str, str], object],
) -> Added:
    """Add the documents of all pieces, as `StoreWriter.add` does; the caller holds the lease."""
    size = max(1, min(_GROUP, len(pieces) // 64))
    starts = range(0, len(pieces), size)
    groups = [Group(number, pieces[start : start + size]) for number, start in enumerate(starts)]
    reads = {group.number: read for group, read in pool.share("read", groups)}
    plan = _Plan(DocumentPassages(writing.table), left_out)
    blocks = [block for group in groups for block in plan.blocks(group, reads.pop(group.number))]
    if not plan.documents:
        raise BadInput(f"{store}: the corpus holds no text that can be read; nothing was stored")
    building = store / BUILDING
    if isinstance(building, Path):
        with plain_errors(store):
            building.mkdir(exist_ok=True)
    used = writing.table.data_files
    left = [block for block in blocks if _noted(store, block, used) is None]
    known = plan.already + sum(len(block.ids) for block in blocks)
    done = known - sum(len(block.ids) for block in left)
    progress(done, known)
    for block, _ in pool.share("write", left):
        done += len(block.ids)
        progress(done, known)
    # Their files are listed by the sums that the workers took, so that nothing need be read again.
    notes = [note for block in blocks if (note := _noted(store, block, used, read=False))]
    if len(notes) < len(blocks):
        raise Damaged(f"{building}: what was written is not there; give the same command again")
    writing.check()
    if notes:
        made = writing.table.commit([text for note in notes for text in note.fragments])
        writing.commit(made, {file: total for note in notes for file, total in note.sums.items()})
    if plan.stale:
        writing.commit(writing.table.delete(sorted(plan.stale)))
    delete_below(building)
    return Added(plan.documents, known - plan.already, plan.already)


class _Plan:
    """What is new: decided in the order of the corpus, whoever read it first."""

    def __init__(self, here: DocumentPassages, left_out: Callable[[str, str], object]) -> None:
        self.documents = self.already = 0
        self.stale: set[int] = set()
        self._here = here
        self._left_out = left_out
        self._seen: set[int] = set()

    def blocks(self, group: Group, read: GroupIds) -> Iterator[Block]:
        """Yield the blocks of what is new in a group."""
        for reason, where in read.left_out:
            self._left_out(reason, where)
        wanted, first = list[int](), 0
        ends = np.cumsum(read.counts)
        for place, (key, count, end) in enumerate(zip(read.keys.tolist(), read.counts, ends, strict=True)):
            if key in self._seen:
                self._left_out("duplicate id", read.places[place])
                continue
            self._seen.add(key)
            self.documents += 1
            own = read.passages[end - count : end].tolist()
            before = self._here.passages(key)
            self.already += len(before.intersection(own))
            self.stale |= before.difference(own)
            wanted += [passage for passage in own if passage not in before]
            if len(wanted) >= _BLOCK:
                yield Block(group, first, place + 1, np.array(wanted, np.int64))
                wanted, first = [], place + 1
        if wanted:
            yield Block(group, first, len(read.keys), np.array(wanted, np.int64))


def _noted(store: Location, block: Block, used: set[str], read: bool = True) -> _Note | None:
    """Return a block's note if it and the files it names are there, these in no table yet; else None.

    With `read` these files must also be what was written.
    """
    try:
        note = load(_Note, read_json(store / BUILDING / block.note))
    except (FileNotFoundError, Malformed, Damaged):
        return None
    files = {file: store / TABLE / "data" / file for file in note.sums}
    with plain_errors(store):
        whole = all(path.is_file() for path in files.values())
        whole = whole and not (read and any(sha256(files[file]) != note.sums[file] for file in files))
    return note if whole and used.isdisjoint(files) else None
