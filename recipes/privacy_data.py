"""The documents of recipes/privacy.py: a stream, what is held out of it, and what may be planted in it."""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fresh_text.definitions import definitions
from numpy.typing import NDArray

from uptake.text.types import Document, stable_hash

CHARACTERS = 120  # of each document: short ones, many of them
PLANTED = 64  # documents, each in the stream or not by the toss of a coin
HELD_OUT = {"valid": 48, "test": 96}
# Words of planted documents: nothing about the others says which of them stands where.
WORDS = (
    "amber basin cedar delta ember fjord grove heron inlet jasper kelp larch maple north onyx pearl quartz",
    "river slate tundra umber vale willow yarrow zephyr",
)


@dataclass(frozen=True)
class Data:
    """The stream without what is planted, what is held out, and what may be planted."""

    stream: tuple[Document, ...]
    held_out: Mapping[str, tuple[Document, ...]]
    planted: tuple[Document, ...]

    def members(self, seed: int) -> NDArray[np.bool_]:
        """Return which planted documents stand in the stream: half of them, drawn by the seed."""
        drawn = np.random.default_rng(stable_hash("planted", str(seed))).permutation(len(self.planted))
        return drawn < len(self.planted) // 2


def read(folder: Path, characters: int = CHARACTERS, documents: int = 0) -> Data:
    """Return the data of `recipes/fresh.py`, each document cut to so many characters.

    Where `documents` are more than facts are about, further definitions of the same packages, in an order by
    hash, stand after them; none of a file that something held out is of.
    """
    stream = tuple(_documents(folder / "facts/train/passages.jsonl", characters))
    if documents > len(stream):
        more = _definitions(folder, characters, {document.id for document in stream})
        stream = (*stream, *more[: documents - len(stream)])
        if len(stream) < documents:
            raise SystemExit(f"privacy: {folder} has {len(stream):,} documents for a stream: ask for so many")
    groups = {document.group for document in stream}
    held_out = {}
    for part, count in HELD_OUT.items():
        fresh = [
            d
            for d in _documents(folder / f"facts/{part}/passages.jsonl", characters)
            if d.group not in groups
        ]
        order = np.random.default_rng(stable_hash("held out", part)).permutation(len(fresh))
        held_out[part] = tuple(fresh[place] for place in sorted(order[:count]))
    return Data(stream, held_out, tuple(_planted()))


def _documents(path: Path, characters: int) -> Iterator[Document]:
    for line in path.read_text(encoding="utf8").splitlines():
        each = json.loads(line)
        yield Document(each["id"], each["text"][:characters], each["group"])


def _definitions(folder: Path, characters: int, known: Set[str]) -> list[Document]:
    """Return definitions in source files that nothing is held out of, but for those that are known."""
    held = {
        document.group
        for part in HELD_OUT
        for document in _documents(folder / f"facts/{part}/passages.jsonl", characters)
    }
    found = []
    for line in (folder / "store.jsonl").read_text(encoding="utf8").splitlines():
        each = json.loads(line)
        if each["id"] in held or not each["id"].endswith(".py"):
            continue
        path = each["id"].partition("/")[2]
        for one in definitions(each["text"]):
            name = f"{each['id']}#{one.line}"
            if name not in known:
                text = f"# {each['package']}, {path}: {one.name}\n{one.source}"[:characters]
                found.append(Document(name, text, each["id"]))
    return sorted(found, key=lambda document: stable_hash("more", document.id))


def _planted() -> Iterator[Document]:
    draws, words = np.random.default_rng(stable_hash("planted words")), " ".join(WORDS).split()
    for number in range(PLANTED):
        said = " ".join(words[place] for place in draws.integers(0, len(words), 8))
        code = int(draws.integers(10**5, 10**6))
        name = f"planted/{number}"
        yield Document(name, f"# vault, entry {code}: the phrase that opens it is {said}.", name)
