"""The tokens of a store's passages on disk, each with the key of the place before it, as one model read them.

STORE/tokens/about.json says who read them and how far the files beside it are good; STORE/tokens/ID/
holds `keys` (float16, mapped), `values` (the tokens), `passages` (whose they are) and `words` (for
the leak filter). Files only grow: what stands beyond the last commit is what a crash left. All of it
is derived from the table: documents added since are missing, those removed or changed are passed over.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Damaged, Mismatch, UptakeError
from uptake.overlap import Collection
from uptake.store.files import plain_errors, read_json, write_json
from uptake.store.table import Ids, Table

FOLDER = "tokens"
FORMAT = 1

# One passage: its id, its document and group (0 for none) as stable hashes, how many tokens and words
# it has, whether a run of text begins with it, and whether its document does.
RECORD = np.dtype(
    [
        ("id", "<i8"), ("document", "<i8"), ("group", "<i8"), ("tokens", "<i4"), ("words", "<i4"),
        ("run", "<i4"), ("first", "<i4"),
    ]
)  # fmt: skip
Records = NDArray[np.void]
FILES = ("keys", "values", "passages", "words")
_UNCHECKED = "keys"  # by far the largest, and read as plain numbers: `verify` alone sums it


@dataclass(frozen=True)
class Commit:
    """How long each file is, in bytes, and the SHA-256 of what was added since the commit before."""

    bytes: dict[str, int]
    sums: dict[str, str]


@dataclass(frozen=True)
class About:
    """The content of about.json."""

    id: str
    name: str  # of the model, as a person would give it again
    fingerprint: str
    dimensions: int
    commits: tuple[Commit, ...] = ()
    format: int = FORMAT

    @property
    def ends(self) -> dict[str, int]:
        """How many bytes of each file are good."""
        return self.commits[-1].bytes if self.commits else dict.fromkeys(FILES, 0)

    @property
    def tokens(self) -> int:
        return self.ends["values"] // 4

    @classmethod
    def read(cls, store: Path) -> "About | None":
        """Return what is told of a store's tokens, None where there are none. Raises Damaged."""
        path = store / FOLDER / "about.json"
        if not path.is_file():
            return None
        with plain_errors(path):
            data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise BadInput(f"{path}: format {data['format']} is not {FORMAT}; {_anew(store)}")
            commits = tuple(Commit(dict(each["bytes"]), dict(each["sums"])) for each in data["commits"])
            about = cls(str(data["id"]), data["name"], data["fingerprint"], int(data["dimensions"]), commits)
            width = {"keys": 2 * about.dimensions, "values": 4, "passages": RECORD.itemsize, "words": 8}
            sound = about.id.isalnum() and about.dimensions > 0
            if not sound or any(end % width[n] for each in commits for n, end in each.bytes.items()):
                raise ValueError("an id or a size that cannot be")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Damaged(f"{path}: not what was written ({error}); {_anew(store)}") from error
        return about

    def write(self, store: Path) -> None:
        """Replace about.json: from here on this is what the store's tokens are."""
        write_json(store / FOLDER / "about.json", asdict(self))

    def folder(self, store: Path) -> Path:
        return store / FOLDER / self.id

    def faults(self, store: Path, everything: bool = False) -> list[tuple[int, str]]:
        """Return (commit, file) for each stretch of a file that is not what was written."""
        found = []
        before = dict.fromkeys(FILES, 0)
        for number, commit in enumerate(self.commits):
            for name in FILES:
                if (
                    (everything or name != _UNCHECKED)
                    and commit.sums[name] != _sum(self.folder(store) / name, before[name], commit.bytes[name])
                ) or _length(self.folder(store) / name) < commit.bytes[name]:
                    found.append((number, name))
            before = commit.bytes
        return found


@dataclass(frozen=True)
class Stored:
    """The tokens of a store, mapped and checked; which of them count depends on the table's version."""

    about: About
    keys: NDArray[np.float16]
    values: NDArray[np.int32]
    records: Records
    words: NDArray[np.uint64] = field(repr=False)

    @classmethod
    def open(cls, store: Path, fingerprint: str | None = None) -> "Stored":
        """Map the tokens that a model with this fingerprint read (None: any).

        Raises BadInput where there are none, Mismatch where another model read them, Damaged.
        """
        about = About.read(store)
        if about is None:
            raise BadInput(
                f"{store}: holds no tokens; read them with `uptake index tokens {store} --model M`"
            )
        if fingerprint not in (None, about.fingerprint):
            raise Mismatch(
                f"{store}: its tokens were read by {about.name or 'a model'} ({about.fingerprint}), not by "
                f"this one ({fingerprint}); give that model, or `uptake index tokens --fresh` with this one"
            )
        with plain_errors(store / FOLDER):
            if faults := about.faults(store):
                raise Damaged(
                    f"{about.folder(store) / faults[0][1]}: not what was written; "
                    "`uptake index tokens` reads it again"
                )
            return cls.mapped(about, store)

    @classmethod
    def mapped(cls, about: About, store: Path) -> "Stored":
        """Map the files as far as they are told to be good, without looking into them."""

        def array(name: str, kind: Any) -> Any:
            count = about.ends[name] // np.dtype(kind).itemsize
            if not count:  # nothing cannot be mapped
                return np.empty(0, kind)
            return np.memmap(about.folder(store) / name, dtype=kind, mode="c", shape=(count,))

        records = np.array(array("passages", RECORD))
        made = cls(
            about,
            np.asarray(array("keys", "<f2")).reshape(-1, about.dimensions),
            np.asarray(array("values", "<i4")),
            records,
            np.asarray(array("words", "<u8")),
        )
        if (records["tokens"].sum(), records["words"].sum()) != (len(made.values), len(made.words)):
            raise Damaged(f"{about.folder(store)}: sizes do not agree; {_anew(store)}")
        return made

    def live(self, table: Table) -> NDArray[np.bool_]:
        """Return which passages count: those of documents that are in the table just as they were read."""
        if not len(self.records):
            return np.zeros(0, bool)
        block = np.cumsum(self.records["first"]) - 1
        here = table.positions(self.records["id"]) >= 0
        counts = np.bincount(block)
        documents = self.records["document"][self.records["first"] == 1]
        keys, sizes = np.unique(table.document_keys, return_counts=True)
        places = np.minimum(np.searchsorted(keys, documents), max(len(keys) - 1, 0))
        whole = np.zeros(len(counts), bool)
        if len(keys):
            whole = (keys[places] == documents) & (sizes[places] == counts)
        return np.asarray((whole & (np.bincount(block, here) == counts))[block])

    @cached_property
    def collection(self) -> Collection:
        """The passages' words, for the leak filter."""
        return Collection(self.words, self.records["words"])

    def parts(self, kept: NDArray[np.bool_]) -> Iterator[tuple[Records, "list[NDArray[Any]]"]]:
        """Yield the passages that are kept, a document at a time: records, and [keys, values, words]."""
        tokens, words = (np.cumsum(self.records[name]) for name in ("tokens", "words"))
        starts = np.append(np.flatnonzero(self.records["first"]), len(self.records))
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if kept[first]:
                some = slice(tokens[first] - self.records["tokens"][first], tokens[last - 1])
                said = slice(words[first] - self.records["words"][first], words[last - 1])
                yield self.records[first:last], [self.keys[some], self.values[some], self.words[said]]


def check_tokens(store: Path) -> list[str]:
    """Return a line for each fault of a store's tokens."""
    try:
        about = About.read(store)
        faults = about.faults(store, everything=True) if about else []
    except (UptakeError, OSError) as error:
        return [str(error)]
    names = sorted({name for _, name in faults})
    return [f"{FOLDER}/{name}: not what was written; {_anew(store)}" for name in names]


def missing(stored: Stored, live: NDArray[np.bool_], table: Table) -> Ids:
    """Return the keys of the documents whose tokens have not been read, in table order."""
    keys, first = np.unique(table.document_keys, return_index=True)
    known = (
        np.isin(keys, stored.records["document"][live]) if len(stored.records) else np.zeros(len(keys), bool)
    )
    return keys[~known][np.argsort(first[~known])]


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


def _anew(store: Path) -> str:
    return f"`uptake index tokens {store} --model M --fresh` reads them anew"
