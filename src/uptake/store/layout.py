"""What store.json says: the store's identity, how it searches, and how each view was made."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged
from uptake.sealed import digest, to_json
from uptake.store.files import plain_errors, read_json, write_atomically
from uptake.store.inventory import STORE, TABLE
from uptake.store.remote.objects import Location
from uptake.text.types import Chunking, Embedder

FORMAT = 1
RETRIEVERS = ("hybrid", "dense", "lexical")
METRICS = ("cosine", "ip", "l2")
INDEXES = ("auto", "flat", "ivf")
# What a search by words finds: words of any script, or only those between spaces.
WORDS = ("any-script", "spaced")


@dataclass(frozen=True, slots=True)
class View:
    """How passages were cut and embedded. `encoder` is empty where it was given as an object."""

    encoder: str
    encoder_fingerprint: str
    dtype: str
    dimensions: int  # 0 without vectors
    characters: int
    metric: Any  # one of METRICS

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise BadInput(f"metric {self.metric!r}: use {', '.join(METRICS)}")
        _ = self.chunking

    @classmethod
    def of(cls, encoder: Embedder | None, chunking: Chunking, metric: str) -> "View":
        """Describe what an encoder (None for none), a chunking and a metric make."""
        if encoder is None:
            return cls("", "", "", 0, chunking.characters, metric)
        spec, dtype = getattr(encoder, "spec", ""), getattr(encoder, "dtype", "")
        return cls(spec, encoder.fingerprint, dtype, encoder.dimensions, chunking.characters, metric)

    @property
    def chunking(self) -> Chunking:
        """How documents are cut."""
        return Chunking(self.characters)

    def fingerprint(self, name: str) -> str:
        """Return 16 hexadecimal digits naming encoder, chunking, metric and the view `name`."""
        parts = [name, self.encoder_fingerprint, self.dimensions, self.characters, self.metric]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Layout:
    """The content of store.json."""

    uid: str
    retriever: str
    index: Any  # one of INDEXES
    views: Mapping[str, View]
    words: Any  # one of WORDS, or "" in a dense store

    def __post_init__(self) -> None:
        for name, value, known in (
            ("retriever", self.retriever, RETRIEVERS),
            ("index", self.index, INDEXES),
            ("words", self.words, ("",) if self.retriever == "dense" else WORDS),
        ):
            if value not in known:
                raise BadInput(f"{name} {value!r}: use {', '.join(known)}")
        if not re.fullmatch("[0-9a-f]{32}", self.uid) or "passages" not in self.views:
            raise BadInput(
                f"uid {self.uid!r}, views {', '.join(self.views)}: use 32 hexadecimal digits, passages"
            )

    def contents(self, table: str) -> str:
        """Name what a store of this layout holds and how it is searched; `table` names its passages."""
        named = json.dumps([plain(self), table], sort_keys=True)
        return hashlib.sha256(named.encode()).hexdigest()[:32]

    @property
    def fingerprint(self) -> str:
        """Names encoder, chunking, metric and how words are cut."""
        return self.views["passages"].fingerprint(f"passages {self.words}".strip())

    def write(self, store: Location) -> None:
        """Write store.json, whole or not at all."""
        write_atomically(store / STORE, self._content)

    @property
    def sums(self) -> dict[str, str]:
        """The SHA-256 of store.json, as it is written."""
        return {STORE: digest(self._content)}

    @property
    def _content(self) -> bytes:
        return to_json({"format": FORMAT, **plain(self)})

    @classmethod
    def read(cls, store: Location) -> "Layout":
        """Read store.json; raises BadInput where there is none or a newer one, Damaged."""
        path = store / STORE
        with plain_errors(path):
            if not path.is_file():
                if (store / TABLE).is_dir():
                    raise Damaged(f"{path}: missing; put it back from a copy or build the store again")
                raise BadInput(f"{store}: not a datastore; make one with `uptake index build {store} CORPUS`")
            data = read_json(path)
        form = data.pop("format", None)
        if isinstance(form, int) and form > FORMAT:
            raise BadInput(f"{path}: format {form} is newer than this Uptake reads ({FORMAT}); update Uptake")
        try:
            if form != FORMAT:
                raise Malformed(f"format is {form!r}")
            return load(cls, data)
        except Malformed as error:
            raise Damaged(f"{path}: not what was written ({error}); put it back from a copy") from error
