"""Language models that read neighbours of their text, chunk by chunk: RETRO's forward pass.

A text is cut into chunks of m tokens from the first one of the pass it is read in: a window, or what a
cache began with. What is found with a chunk is attended to from its last token up to the last but one
of the next chunk, so no place ever sees what was found with text beyond it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.examples import Example, at_targets, padded
from uptake.lm.rows import RowCaches, each_row
from uptake.methods.retro.network import RetroParts
from uptake.methods.retro.retrofit import Retrofitted
from uptake.text.chunks.view import listed
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document, stable_hash

_CACHED = 4096  # chunks of a text whose neighbours are cached


class NeighbourSource(Protocol):
    """What neighbours come from: the part of `text.Chunks` that reading needs."""

    @property
    def length(self) -> int: ...

    def search(self, queries: Sequence[str], k: int) -> Tensor: ...

    def sample(self, rows: int, k: int, generator: np.random.Generator) -> Tensor: ...

    def tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]: ...


class ChunkNeighbours:
    """The neighbours of one text's chunks, each searched for once; `drawn` is a seed for random ones."""

    def __init__(
        self, source: NeighbourSource, tokenizer: Tokenizer, k: int, drawn: int | None = None
    ) -> None:
        self.source, self.tokenizer, self.k, self.drawn = source, tokenizer, k, drawn
        self._known: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def length(self) -> int:
        """Tokens of a neighbour: a chunk and the one that continues it."""
        return 2 * self.source.length

    def of(self, chunks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, both [chunks, k, length], for chunks given by their tokens."""
        own = self.tokenizer.opening
        texts = [self.tokenizer.decode([token for token in chunk if token != own]) for chunk in chunks]
        fresh = list(dict.fromkeys(text for text in texts if text not in self._known))
        if fresh:
            found = self.source.tokens(self._search(fresh))
            self._known.update(zip(fresh, zip(*found, strict=True), strict=True))
        pairs = [self._known[text] for text in texts]
        while len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return torch.stack([tokens for tokens, _ in pairs]), torch.stack([mask for _, mask in pairs])

    def _search(self, texts: Sequence[str]) -> Tensor:
        if self.drawn is None:
            return self.source.search(texts, self.k)
        seeds = [stable_hash(str(self.drawn), "chunks", text) for text in texts]
        return torch.cat([self.source.sample(1, self.k, np.random.default_rng(seed)) for seed in seeds])


def chunks_in_memory(
    texts: Sequence[str], tokenizer: Tokenizer, table: Tensor, length: int
) -> NeighbourSource:
    """Return the chunks of a few texts in memory; `table` is a model's token embeddings."""
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    chunks = listed(documents, tokenizer, length, _Averages(tokenizer, table))
    return chunks.bound("", "", Overlap(""), LeakFilter.off())


@dataclass(frozen=True)
class _Averages:
    """A text's vector is the mean of its tokens' embeddings, as long as one."""

    tokenizer: Tokenizer
    table: Tensor  # [tokens, dimensions]

    @property
    def fingerprint(self) -> str:
        return "averages of " + self.tokenizer.fingerprint

    @property
    def dimensions(self) -> int:
        return self.table.shape[1]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        table = self.table.detach().float().cpu()
        ids = [torch.tensor(self.tokenizer.encode(text)[0], dtype=torch.long) for text in texts]
        rows = [table[each].sum(0) for each in ids]
        return nn.functional.normalize(torch.stack(rows), dim=-1).numpy()


class RetroLM(Wrapper):
    """Row i reads `neighbours[i]`, None being nothing; then the model underneath is left as it is.

    `predictions` searches for neighbours of whole chunks of text alone, never of padding.
    """

    def __init__(
        self,
        inner: LM,
        network: RetroParts,
        places: Mapping[int, str],
        neighbours: Sequence[ChunkNeighbours | None],
    ) -> None:
        super().__init__(inner)
        self.network, self.places, self.neighbours = network, places, list(neighbours)
        self.rows = len(self.neighbours)
        self._k = max((one.k for one in self.neighbours if one), default=0)
        self._r = max((one.length for one in self.neighbours if one), default=0)

    @cached_property
    def _fitted(self) -> Retrofitted:
        return Retrofitted(self.inner, self.network, self.places)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.network, self.places, self.neighbours)

    def at(self, rows: Sequence[int]) -> "RetroLM":
        chosen, inner = [self.neighbours[row] for row in rows], self.inner.at(rows)
        some = RetroLM(inner, self.network, self.places, chosen)
        if inner is self.inner:
            some._fitted = self._fitted
        return some

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        raise BadInput("a model that reads neighbours cannot be given tensors: give them to its base")

    def start(self) -> Cache:
        inner = self.inner.start()
        return None if inner is None else (inner, None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        # Chunks begin where a row does: rows that begin in different places are read one by one.
        if lengths is not None or isinstance(cache, RowCaches):
            return each_row(self, ids, cache, lengths)
        return self._step(ids, cache, [ids.shape[1]] * len(ids))

    def _step(self, ids: Tensor, cache: Cache, lengths: Sequence[int]) -> tuple[Tensor, Cache]:
        past = None if cache is None else cache[1]
        whole = ids if past is None else torch.cat([past.ids, ids], 1)
        known = whole.shape[1] - ids.shape[1]
        tokens, seen = self._search(whole, [known + length for length in lengths])
        return self._fitted.step(ids, tokens.to(ids.device), seen.to(ids.device), cache)

    def _search(self, ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the neighbours of every chunk of the rows, as far as these are text."""
        m = self.network.sizes.chunk
        shape = len(ids), ids.shape[1] // m, self._k, self._r
        tokens, seen = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        for row, (neighbours, length) in enumerate(zip(self.neighbours, lengths, strict=True)):
            count = length // m
            if neighbours is not None and count:
                found, mask = neighbours.of(ids[row, : count * m].view(count, m).tolist())
                tokens[row, :count, : found.shape[1], : found.shape[2]] = found
                seen[row, :count, : mask.shape[1], : mask.shape[2]] = mask
        return tokens, seen

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        inputs = [example.inputs for example in examples]
        lengths = [len(each) for each in inputs]
        log_probs, _ = self._step(padded(inputs).to(self.device), None, lengths)
        return at_targets(log_probs, examples)
