"""Views of a store that are kept in files beside its table: what they hold and how far it is good.

STORE/KIND/about.json says how a view was made and how far the files in STORE/KIND/ID/ are good. Files
only grow: what stands beyond the last commit is what a crash left. All of it is derived from the table:
documents added since are missing, those removed or changed are passed over.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.store.files import plain_errors, read_json, write_json
from uptake.store.passages.table import Ids, Table

FORMAT = 1

# One passage: its id, its document and group (0 for none) as stable hashes, how many tokens and words
# it has, whether a run of text begins with it, and whether its document does.
PASSAGE = np.dtype(
    [
        ("id", "<i8"), ("document", "<i8"), ("group", "<i8"), ("tokens", "<i4"), ("words", "<i4"),
        ("run", "<i4"), ("first", "<i4"),
    ]
)  # fmt: skip
Records = NDArray[np.void]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of view, or of what else grows so. A view has `values`, its tokens, and `passages`."""

    name: str  # of its folder, and what people call what it holds
    files: Mapping[str, np.dtype[Any]]
    wide: str  # the file of vectors: the largest, and plain numbers, so `verify` alone sums it
    fresh: str  # what makes it anew, and what mends it
    mend: str
    edges: Callable[[Arrays], dict[str, Ids]]  # where each document's rows of each file begin
    settings: tuple[str, ...] = ()  # what decides how it is made, besides what reads the text

    def anew(self, store: Path) -> str:
        """Say how a view that is damaged is mended."""
        return self.fresh.format(store=store)


@dataclass(frozen=True)
class Commit:
    """How long each file is, in bytes, and the SHA-256 of what was added since the commit before."""

    bytes: dict[str, int]
    sums: dict[str, str]


@dataclass(frozen=True)
class _Written:
    """The content of about.json. `fingerprint` is of what read the text, `settings` what else decides."""

    id: str
    name: str  # of the model, as a person would give it again
    fingerprint: str
    dimensions: int  # of a vector, 0 for none
    settings: Mapping[str, str | int] = field(default_factory=dict)
    commits: tuple[Commit, ...] = ()


@dataclass(frozen=True)
class About(_Written):
    """What is known of one view: what its about.json says, and which kind it is of."""

    kind: Kind = field(kw_only=True, repr=False)

    @property
    def ends(self) -> dict[str, int]:
        """How many bytes of each file are good."""
        return self.commits[-1].bytes if self.commits else dict.fromkeys(self.kind.files, 0)

    @property
    def tokens(self) -> int:
        return self.count("values")

    def count(self, name: str) -> int:
        """Return how many numbers, or records, are in one of the files."""
        return self.ends[name] // self.kind.files[name].itemsize

    @classmethod
    def read(cls, kind: Kind, store: Path) -> "About | None":
        """Return what is told of a store's view, None where there is none. Raises Damaged, BadInput."""
        path = store / kind.name / "about.json"
        if not path.is_file():
            return None
        with plain_errors(path):
            data = read_json(path)
        form = data.pop("format", None)
        if type(form) is int and form != FORMAT:
            raise BadInput(f"{path}: format {form} is not {FORMAT}; {kind.anew(store)}")
        try:
            if form != FORMAT:
                raise Malformed(f"format is {form!r}")
            about = cls(**vars(load(_Written, data)), kind=kind)
            about.check()
        except Malformed as error:
            raise Damaged(f"{path}: not what was written ({error}); {kind.anew(store)}") from error
        return about

    def check(self) -> None:
        """Raise Malformed for what no view of this kind can be."""
        row = {name: type_.itemsize for name, type_ in self.kind.files.items()}
        row[self.kind.wide] *= max(self.dimensions, 1)
        if not self.id.isalnum() or self.dimensions < 0 or self.settings.keys() != set(self.kind.settings):
            raise Malformed("an id, a size or a setting that cannot be")
        for each in self.commits:
            if each.bytes.keys() != row.keys() or each.sums.keys() != row.keys():
                raise Malformed("other files than there can be")
            if any(each.bytes[name] % size or each.bytes[name] < 0 for name, size in row.items()):
                raise Malformed("a size that cannot be")

    def write(self, store: Path) -> None:
        """Replace about.json: from here on this is what the view is."""
        write_json(store / self.kind.name / "about.json", {**plain(self, _Written), "format": FORMAT})

    def folder(self, store: Path) -> Path:
        return store / self.kind.name / self.id

    def faults(self, store: Path, everything: bool = False) -> list[tuple[int, str]]:
        """Return (commit, file) for each stretch of a file that is not what was written."""
        found = []
        before = dict.fromkeys(self.kind.files, 0)
        for number, commit in enumerate(self.commits):
            for name in self.kind.files:
                if (
                    (everything or name != self.kind.wide)
                    and commit.sums[name] != _sum(self.folder(store) / name, before[name], commit.bytes[name])
                ) or _length(self.folder(store) / name) < commit.bytes[name]:
                    found.append((number, name))
            before = commit.bytes
        return found


@dataclass(frozen=True)
class Kept:
    """A view of a store, mapped; which of it counts depends on the table's version."""

    about: About
    arrays: Arrays = field(repr=False)

    @classmethod
    def mapped(cls, about: About, store: Path) -> Self:
        """Map the files as far as they are told to be good, without looking into them. Raises Damaged."""

        def array(name: str) -> NDArray[Any]:
            kind = about.kind.files[name]
            count = about.ends[name] // kind.itemsize
            if not count:  # nothing cannot be mapped
                return np.empty(0, kind)
            found = np.memmap(about.folder(store) / name, dtype=kind, mode="c", shape=(count,))
            return np.array(found) if kind.names else np.asarray(found)

        arrays = {name: array(name) for name in about.kind.files}
        wide = about.kind.wide
        arrays[wide] = arrays[wide].reshape(-1, about.dimensions) if about.dimensions else arrays[wide]
        kept = cls(about, arrays)
        if any(len(arrays[name]) != edges[-1] for name, edges in kept.edges.items()):
            raise Damaged(f"{about.folder(store)}: sizes do not agree; {about.kind.anew(store)}")
        return kept

    @classmethod
    def open(cls, kind: Kind, store: Path) -> Self | None:
        """Map a view after a look at its checksums; None where there is none. Raises Damaged."""
        about = About.read(kind, store)
        if about is None:
            return None
        with plain_errors(store / kind.name):
            if faults := about.faults(store):
                raise Damaged(f"{about.folder(store) / faults[0][1]}: not what was written; {kind.mend}")
            return cls.mapped(about, store)

    @property
    def passages(self) -> Records:
        return self.arrays["passages"]

    @property
    def vectors(self) -> NDArray[np.float16]:
        return self.arrays[self.about.kind.wide]

    @cached_property
    def edges(self) -> dict[str, Ids]:
        """Where each document's rows of each file begin, and where the last's end: [documents + 1]."""
        return self.about.kind.edges(self.arrays)

    def live(self, table: Table) -> NDArray[np.bool_]:
        """Return which passages count: those of documents that are in the table just as they were read."""
        if not len(self.passages):
            return np.zeros(0, bool)
        block = np.cumsum(self.passages["first"]) - 1
        here = table.positions(self.passages["id"]) >= 0
        counts = np.bincount(block)
        documents = self.passages["document"][self.passages["first"] == 1]
        keys, sizes = np.unique(table.document_keys, return_counts=True)
        places = np.minimum(np.searchsorted(keys, documents), max(len(keys) - 1, 0))
        whole = np.zeros(len(counts), bool)
        if len(keys):
            whole = (keys[places] == documents) & (sizes[places] == counts)
        return np.asarray((whole & (np.bincount(block, here) == counts))[block])

    def missing(self, live: NDArray[np.bool_], table: Table) -> Ids:
        """Return the keys of the documents that have not been read, in table order."""
        keys, first = np.unique(table.document_keys, return_index=True)
        known = np.isin(keys, self.passages["document"][live])
        return keys[~known][np.argsort(first[~known])]

    def parts(self, kept: NDArray[np.bool_]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the rows of each document that is kept; `kept` says so of every passage."""
        for number in np.flatnonzero(kept[self.edges["passages"][:-1]]).tolist():
            yield {
                name: array[self.edges[name][number] : self.edges[name][number + 1]]
                for name, array in self.arrays.items()
            }


def documents_of(passages: Records) -> Ids:
    """Return where each document's passages begin, and where the last's end: [documents + 1]."""
    return np.append(np.flatnonzero(passages["first"]), len(passages))


def check(kind: Kind, store: Path) -> list[str]:
    """Return a line for each fault of a view; none where there is no such view."""
    try:
        about = About.read(kind, store)
        faults = about.faults(store, everything=True) if about else []
    except (UptakeError, OSError) as error:
        return [str(error)]
    names = sorted({name for _, name in faults})
    return [f"{kind.name}/{name}: not what was written; {kind.anew(store)}" for name in names]


def _sum(path: Path, start: int, end: int) -> str:
    digest = hashlib.sha256()
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (some := file.read(min(left, 1 << 20))):
            digest.update(some)
            left -= len(some)
    return digest.hexdigest() if not left else ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
