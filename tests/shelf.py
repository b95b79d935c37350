"""A few texts as a store has them for one query: passages, their tokens and their chunks, all in memory."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.methods.contract.method import Evidence
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.memory import TokenMemory
from uptake.methods.retro.lm import NeighbourSource, chunks_in_memory
from uptake.text.near import Near
from uptake.text.types import Found, Passage, stable_hash

Places = NDArray[np.int64]
Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Shelf:
    """A `Source`: the first passage is the nearest, and nothing is withheld."""

    lm: LM
    passages: tuple[Passage, ...]

    @classmethod
    def of(cls, lm: LM, *texts: str) -> "Shelf":
        return cls(lm, Evidence.of(*texts).passages)

    def again(self, text: str) -> "Shelf":
        return self

    def search(self, k: int) -> Found:
        some = self.passages[:k]
        return Found(
            some,
            tuple(1.0 / (place + 2) for place in range(len(some))),
            (0.0,) * len(some),
            (0.0,) * len(some),
        )

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        order = generator.permutation(len(self.passages))[:k]
        return Found(
            tuple(self.passages[i] for i in order),
            (0.0,) * len(order),
            (0.0,) * len(order),
            (0.0,) * len(order),
        )

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        rows = [np.random.default_rng(key).standard_normal(6) for key in ids]
        return np.stack(rows).astype(np.float32) if rows else np.empty((0, 6), np.float32)

    def query_vector(self) -> NDArray[np.float32]:
        return np.ones(6, np.float32)

    def query_text(self) -> str:
        return "so "

    def tokens(self, fingerprint: str) -> "ShelfTokens":
        keys = TokenKeyer(self.lm)
        assert keys.fingerprint == fingerprint
        read = [keys.read([passage.text])[0] for passage in self.passages]
        lengths = [len(each.values) for each in read]
        return ShelfTokens(
            np.concatenate([np.empty((0, keys.dimensions)), *(each.keys for each in read)]),
            np.concatenate([np.empty(0, np.int64), *(each.values.astype(np.int64) for each in read)]),
            np.repeat(np.array([passage.id for passage in self.passages], np.int64), lengths),
        )

    def chunks(self, fingerprint: str) -> "ShelfChunks":
        assert fingerprint == self.lm.tokenizer.fingerprint
        return ShelfChunks(self.lm, self.passages)


@dataclass(frozen=True)
class ShelfTokens:
    """A `Tokens`: keys [tokens, width], values, and the passage that each token is of."""

    keys: Floats
    values: Places
    of: Places

    @property
    def _memory(self) -> TokenMemory:
        ends = torch.ones(len(self.of), dtype=torch.bool)
        ends[:-1] = torch.from_numpy(self.of[1:] != self.of[:-1])
        return TokenMemory(torch.from_numpy(self.keys), torch.from_numpy(self.values), ends)

    def search(self, keys: Floats, k: int) -> Near:
        return self._memory.search(keys, k)

    def search_each(self, keys: Floats, k: int) -> Near:
        return self._memory.search_each(keys, k)

    @property
    def reads(self) -> Hashable:
        return id(self)

    def measure(self, keys: Floats, places: Places) -> Near:
        return self._memory.measure(keys, places)

    def after(self, places: Places) -> Places:
        return self._memory.after(places)

    def sample(self, k: int, generator: np.random.Generator) -> "ShelfTokens":
        chosen = np.sort(generator.choice(len(self.of), min(k, len(self.of)), replace=False))
        return ShelfTokens(self.keys[chosen], self.values[chosen], self.of[chosen])

    def without(self, passages: Sequence[int]) -> "ShelfTokens":
        left = ~np.isin(self.of, np.asarray(passages, np.int64))
        return ShelfTokens(self.keys[left], self.values[left], self.of[left])


class ShelfChunks:
    """A `Chunks`: those that RETRO itself makes of passages at hand."""

    def __init__(self, lm: LM, passages: Sequence[Passage], length: int = 3) -> None:
        self._lm, self._passages, self.length = lm, passages, length
        self.fingerprint = str(stable_hash(*(passage.text for passage in passages)))
        table = lm.module.get_input_embeddings().weight  # type: ignore[attr-defined]
        texts = [passage.text for passage in passages]
        self._held: NeighbourSource = chunks_in_memory(texts, lm.tokenizer, table, length)

    def search(self, queries: Sequence[str], k: int) -> torch.Tensor:
        return self._held.search(queries, k)

    def sample(self, rows: int, k: int, generator: np.random.Generator) -> torch.Tensor:
        return self._held.sample(rows, k, generator)

    def tokens(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._held.tokens(ids)

    def without(self, passages: Sequence[int]) -> "ShelfChunks":
        left = [passage for passage in self._passages if passage.id not in passages]
        if len(left) == len(self._passages):
            raise BadInput(f"none of {list(passages)} is on the shelf")
        return ShelfChunks(self._lm, left, self.length)
