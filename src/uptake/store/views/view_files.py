"""Views of a store in files beside its table: their metadata, their checksums, and how they are mapped.

STORE/KIND/about.json says how a view was made and how many bytes of the files in STORE/KIND/ID/ are
valid. Files only grow: bytes beyond the last commit were left by a crash. All of it is derived from the
table: documents added since are missing from the view, those removed or changed are ignored.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.sealed import digest
from uptake.store.cache import Stamps
from uptake.store.files import plain_errors, read_json, write_json
from uptake.store.inventory import VIEWS, check_listed
from uptake.store.passages.columns import Ids
from uptake.store.passages.table import Table

FORMAT = 2

# One passage: its id, its document and group (0 for none) as stable hashes, how many tokens and words
# it has, whether a run of text begins with it, and whether its document does; how many runs of letters are
# kept of it for the leak filter, whether its words are written together, and whether those are a sample.
PASSAGE = np.dtype(
    [
        ("id", "<i8"), ("document", "<i8"), ("group", "<i8"), ("tokens", "<i4"), ("words", "<i4"),
        ("run", "<i4"), ("first", "<i4"), ("letters", "<i4"), ("unspaced", "<i4"),
        ("sampled", "<i4"),
    ]
)  # fmt: skip
Records = NDArray[np.void]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ViewKind:
    """One kind of view: its files and their record types. Tokens and chunks have `values` and `passages`."""

    name: str  # of its folder, and of its content in messages
    files: Mapping[str, np.dtype[Any]]
    vectors_file: str  # the largest, and plain numbers
    rebuild: str  # the command that makes it anew, with {store} for the store's path
    repair: str  # the command that mends it after damage
    edges: Callable[[Arrays], dict[str, Ids]]  # where each document's rows of each file begin
    settings: tuple[str, ...] = ()  # the names of the settings it is made with
    by_passage: bool = (
        False  # whether each passage was read by itself, so that one may be here without others
    )

    def rebuild_hint(self, store: Path) -> str:
        """Return how to make a damaged view anew, for an error message."""
        return self.rebuild.format(store=store)


@dataclass(frozen=True)
class Commit:
    """How long each file is, in bytes, and the SHA-256 of what was added since the commit before."""

    bytes: dict[str, int]
    sums: dict[str, str]


@dataclass(frozen=True)
class _SavedMetadata:
    """The content of about.json. `fingerprint` names the model or tokenizer that read the text."""

    id: str
    name: str  # of the model, as given on the command line
    fingerprint: str
    dimensions: int  # of a vector, 0 for none
    settings: Mapping[str, str | int] = field(default_factory=dict)
    commits: tuple[Commit, ...] = ()


@dataclass(frozen=True)
class ViewMetadata(_SavedMetadata):
    """The metadata of one view: the content of its about.json, and its kind."""

    kind: ViewKind = field(kw_only=True, repr=False)

    @property
    def ends(self) -> dict[str, int]:
        """How many bytes of each file are valid."""
        return self.commits[-1].bytes if self.commits else dict.fromkeys(self.kind.files, 0)

    @property
    def contents(self) -> str:
        """Names how the view was made and what its files hold, 32 hexadecimal digits."""
        named = json.dumps(plain(self, _SavedMetadata), sort_keys=True)
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    def vectors_named(self, count: int) -> str:
        """Return what names the first `count` vectors, by their sums; "" where no commit ended there."""
        size = self.kind.files[self.kind.vectors_file].itemsize * max(self.dimensions, 1)
        sums = hashlib.sha256()
        for commit in self.commits:
            sums.update(commit.sums[self.kind.vectors_file].encode())
            if commit.bytes[self.kind.vectors_file] == count * size:
                return sums.hexdigest()[:16]
        return ""

    @property
    def tokens(self) -> int:
        return self.count("values")

    def count(self, name: str) -> int:
        """Return how many numbers, or records, are in one of the files."""
        return self.ends[name] // self.kind.files[name].itemsize

    @classmethod
    def read(cls, kind: ViewKind, store: Path) -> "ViewMetadata | None":
        """Return the metadata of a store's view, None where there is none. Raises Damaged, BadInput."""
        name = f"{kind.name}/about.json"
        path = store / name
        with plain_errors(path):
            # What a store's list names must be there and be the one; elsewhere the file vouches for itself.
            if not (check_listed(store, name) if name in VIEWS else path.is_file()):
                return None
            data = read_json(path, kind.rebuild_hint(store))
        form = data.pop("format", None)
        if type(form) is int and form != FORMAT:
            raise BadInput(f"{path}: format {form} is not {FORMAT}; {kind.rebuild_hint(store)}")
        try:
            if form != FORMAT:
                raise Malformed(f"format is {form!r}")
            metadata = cls(**vars(load(_SavedMetadata, data)), kind=kind)
            metadata.check()
        except Malformed as error:
            raise Damaged(f"{path}: not what was written ({error}); {kind.rebuild_hint(store)}") from error
        return metadata

    def check(self) -> None:
        """Raise Malformed where the metadata cannot belong to a view of this kind."""
        row = {name: type_.itemsize for name, type_ in self.kind.files.items()}
        row[self.kind.vectors_file] *= max(self.dimensions, 1)
        if not self.id.isalnum() or self.dimensions < 0 or self.settings.keys() != set(self.kind.settings):
            raise Malformed("an invalid id, size or setting")
        for each in self.commits:
            if each.bytes.keys() != row.keys() or each.sums.keys() != row.keys():
                raise Malformed("files that this kind of view does not have")
            if any(each.bytes[name] % size or each.bytes[name] < 0 for name, size in row.items()):
                raise Malformed("an invalid size")

    def write(self, store: Path) -> None:
        """Replace about.json by this metadata."""
        write_json(store / self.kind.name / "about.json", {**plain(self, _SavedMetadata), "format": FORMAT})

    def folder(self, store: Path) -> Path:
        return store / self.kind.name / self.id

    def faults(self, store: Path, everything: bool = False) -> list[tuple[int, str]]:
        """Return (commit, file) for each stretch of a file that is not what was written.

        Large files that have not changed since this machine last hashed them are hashed with `everything`
        alone.
        """
        found: list[tuple[int, str]] = []
        with Stamps(self.folder(store), everything) as stamps:
            for name in self.kind.files if self.commits else ():
                path = self.folder(store) / name
                listed = digest(repr([(each.bytes[name], each.sums[name]) for each in self.commits]).encode())
                whole = functools.partial(self._whole, path, name)
                if not path.is_file() or not stamps.holds(path, listed, whole):
                    found += [(number, name) for number in self._torn(path, name)]
        return sorted(found)

    def _whole(self, path: Path, name: str) -> bool:
        return next(self._torn(path, name), None) is None

    def _torn(self, path: Path, name: str) -> Iterator[int]:
        """Yield the commits whose stretch of a file is not what was written."""
        start = 0
        for number, each in enumerate(self.commits):
            if each.sums[name] != _sum(path, start, each.bytes[name]):
                yield number
            start = each.bytes[name]


@dataclass(frozen=True)
class StoredView:
    """A view of a store, mapped from its files; the table's version decides which rows are live."""

    metadata: ViewMetadata
    arrays: Arrays = field(repr=False)

    @classmethod
    def mapped(cls, metadata: ViewMetadata, store: Path) -> Self:
        """Map the valid part of the files without checking their sums. Raises Damaged."""

        def array(name: str) -> NDArray[Any]:
            dtype = kind.files[name]
            count = metadata.ends[name] // dtype.itemsize
            if not count:  # nothing cannot be mapped
                return np.empty(0, dtype)
            found = np.memmap(metadata.folder(store) / name, dtype=dtype, mode="c", shape=(count,))
            return np.array(found) if dtype.names else np.asarray(found)

        kind = metadata.kind
        arrays = {name: array(name) for name in kind.files}
        if metadata.dimensions:
            arrays[kind.vectors_file] = arrays[kind.vectors_file].reshape(-1, metadata.dimensions)
        view = cls(metadata, arrays)
        if any(len(arrays[name]) != edges[-1] for name, edges in view.edges.items()):
            raise Damaged(f"{metadata.folder(store)}: sizes do not agree; {kind.rebuild_hint(store)}")
        return view

    @classmethod
    def open(cls, kind: ViewKind, store: Path) -> Self | None:
        """Check a view's sums and map it; None where there is none. Raises Damaged."""
        metadata = ViewMetadata.read(kind, store)
        if metadata is None:
            return None
        with plain_errors(store / kind.name):
            if faults := metadata.faults(store):
                raise Damaged(f"{metadata.folder(store) / faults[0][1]}: not what was written; {kind.repair}")
            return cls.mapped(metadata, store)

    @property
    def passages(self) -> Records:
        return self.arrays["passages"]

    @property
    def vectors(self) -> NDArray[np.float16]:
        return self.arrays[self.metadata.kind.vectors_file]

    @cached_property
    def edges(self) -> dict[str, Ids]:
        """Where each document's rows of each file begin, and where the last's end: [documents + 1]."""
        return self.metadata.kind.edges(self.arrays)

    def live(self, table: Table) -> NDArray[np.bool_]:
        """Return which passages are live: those of documents that the table still holds unchanged.

        Of a view that was read passage by passage, those that it still holds.
        """
        if not len(self.passages):
            return np.zeros(0, bool)
        here = table.positions(self.passages["id"]) >= 0
        if self.metadata.kind.by_passage:
            return np.asarray(here)
        block = np.cumsum(self.passages["first"]) - 1
        counts = np.bincount(block)
        documents = self.passages["document"][self.passages["first"] == 1]
        keys, sizes = np.unique(table.document_keys, return_counts=True)
        places = np.minimum(np.searchsorted(keys, documents), max(len(keys) - 1, 0))
        whole = np.zeros(len(counts), bool)
        if len(keys):
            whole = (keys[places] == documents) & (sizes[places] == counts)
        return np.asarray((whole & (np.bincount(block, here) == counts))[block])

    def missing(self, live: NDArray[np.bool_], table: Table) -> Ids:
        """Return the keys of the documents that have not been read, in table order.

        Of a view that was read passage by passage, the ids of the passages.
        """
        if self.metadata.kind.by_passage:
            return np.asarray(table.ids[~np.isin(table.ids, self.passages["id"][live])])
        keys, first = np.unique(table.document_keys, return_index=True)
        known = np.isin(keys, self.passages["document"][live])
        return keys[~known][np.argsort(first[~known])]

    def documents(self, chosen: NDArray[np.bool_]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the rows of each chosen document; `chosen` is [passages]."""
        for number in np.flatnonzero(chosen[self.edges["passages"][:-1]]).tolist():
            yield {
                name: array[self.edges[name][number] : self.edges[name][number + 1]]
                for name, array in self.arrays.items()
            }


def documents_of(passages: Records) -> Ids:
    """Return where each document's passages begin, and where the last's end: [documents + 1]."""
    return np.append(np.flatnonzero(passages["first"]), len(passages))


def check_view(kind: ViewKind, store: Path) -> list[str]:
    """Return a line for each fault of a view; none where there is no such view."""
    try:
        metadata = ViewMetadata.read(kind, store)
        faults = metadata.faults(store, everything=True) if metadata else []
    except (UptakeError, OSError) as error:
        return [str(error)]
    names = sorted({name for _, name in faults})
    return [f"{kind.name}/{name}: not what was written; {kind.rebuild_hint(store)}" for name in names]


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
