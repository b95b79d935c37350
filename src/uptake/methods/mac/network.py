"""Amortised context memory (Tack et al. 2024): documents as a few vectors each, attended to all at once.

`encode` turns what a language model made of a document into slots, `query` does the same for the
beginnings of a text, `aggregate` lets each beginning attend to all documents, in no order, and
`prefix` turns what it found into keys and values for the language model's own attention. It knows
nothing of tokens, texts or models.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.lm.capabilities import Slots


class BaseShapes(NamedTuple):
    """What a network stands beside: the width of the states that come in, and each layer's heads.

    `layers` holds (heads, width of a key, width of a value) of the language model's cache.
    """

    states: int
    layers: tuple[tuple[int, int, int], ...]


class SetAttention(nn.Module):
    """Multi-head attention from one set of vectors to another, with no order in either."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        for made in (self.queries, self.values, self.out):
            nn.init.orthogonal_(made.weight)
        # Keys begin as queries do: like attends to like from the first step on.
        self.keys.weight.data.copy_(self.queries.weight.data)

    def forward(self, asking: Tensor, asked: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return [batch, n, width] for asking [batch, n, width] and asked [batch, m, width].

        `seen`, [batch, 1 or heads, 1 or n, m], is true where one may attend to the other.
        """
        q, k, v = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (self.queries(asking), self.keys(asked), self.values(asked))
        )
        found = functional.scaled_dot_product_attention(q, k, v, seen)
        return self.out(found.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a feed-forward, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.asking, self.asked, self.between = (nn.LayerNorm(width) for _ in range(3))
        self.attention = SetAttention(width, heads)
        self.forwards = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def begin_as_copy(self) -> None:
        """Let what is read come through as it is, until training says otherwise."""
        self.attention.out.weight.data.copy_(self.attention.values.weight.data.T)
        for parameter in self.forwards[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, asking: Tensor, asked: Tensor, seen: Tensor | None = None) -> Tensor:
        asking = asking + self.attention(self.asking(asking), self.asked(asked), seen)
        return asking + self.forwards(self.between(asking))  # type: ignore[no-any-return]


class Selection(nn.Module):
    """Attention from texts to documents as wholes, each given as slots; what it finds is their slots.

    A slot of the text is compared with the same slot of a document, all of them decide together,
    and no slot is mixed with another: what was read of one document comes through as it is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries, self.keys = (nn.Linear(width, width, bias=False) for _ in range(2))
        nn.init.orthogonal_(self.queries.weight)
        # A text is near the document that shares its words from the first step on.
        self.keys.weight.data.copy_(self.queries.weight.data)
        self.sharpness = nn.Parameter(torch.tensor(10.0).log())

    def scores(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Return the cosines times the sharpness, [batch, n, documents].

        `asking` is [batch, n, slots, width]; `asked`, [batch, n, documents, slots, width], may be 1 in
        its first two.
        """
        q, k = self._direction(asking, self.queries), self._direction(asked, self.keys)
        return self.sharpness.exp() * torch.einsum("bnw,bndw->bnd", q, k)

    def _direction(self, slots: Tensor, made: nn.Linear) -> Tensor:
        return functional.normalize(made(functional.layer_norm(slots, slots.shape[-1:])).flatten(-2), dim=-1)

    def forward(self, asking: Tensor, asked: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return [batch, n, slots, width]; `seen`, [batch, documents], is true for those a row may see."""
        scores = self.scores(asking, asked)
        if seen is not None:
            scores = scores.masked_fill(~seen[:, None], float("-inf"))
        return torch.einsum("bnd,bndsw->bnsw", scores.softmax(-1), asked)


class ContextMemory(nn.Module):
    """The amortisation, input and aggregation networks; documents and questions share the first two.

    `width` is that of a slot, `slots` how many a document becomes, `blocks` how many cross-attention
    blocks read a text.
    """

    def __init__(
        self, sizes: BaseShapes, width: int = 256, slots: int = 4, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.sizes, self.slots = sizes, slots
        self.enter = nn.Linear(sizes.states, width)
        # Small, so that what a text becomes is the text.
        self.latents = nn.Parameter(torch.randn(slots, width) / 50)
        readers = [Block(width, heads) for _ in range(blocks)]
        for block in readers:
            block.begin_as_copy()
        self.readers = nn.ModuleList(readers)
        self.selection = Selection(width)
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, sum(heads * (key + value) for heads, key, value in sizes.layers))

    def encode(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Return the slots of documents, [batch, slots, width], from states [batch, time, states].

        What stands beyond a row's length, [batch], is not read.
        """
        return self.query(states, lengths[:, None] - 1)[:, 0]

    def query(self, states: Tensor, places: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Return [batch, n, slots, width]: for each of the places, [batch, n], the text up to it.

        The first `gaps`, [batch, 1], places of a row are padding, which no place of its text reads.
        """
        text = self.enter(states)
        there = torch.arange(text.shape[1], device=text.device)
        seen = there <= places[..., None]
        if gaps is not None:
            # Padding reads itself: reading nothing would be no number.
            seen = seen & ((there >= gaps[..., None]) | (there == places[..., None]))
        seen = seen.repeat_interleave(self.slots, 1)[:, None]
        read = self.latents.repeat(places.shape[1], 1).expand(len(text), -1, -1)
        for block in self.readers:
            read = block(read, text, seen)
        return read.reshape(*places.shape, *self.latents.shape)

    def aggregate(
        self, asked: Tensor, bank: Tensor, seen: Tensor | None = None, group: int | None = None
    ) -> Tensor:
        """Return what `asked`, [batch, n, slots, width], finds in a bank [documents, slots, width].

        The result is shaped like `asked` and does not depend on the order of the documents. `seen`,
        [batch, documents], is true for those a row may see. With `group`, so many documents at most
        are attended to at once; what each group gave is a document of the next round, until one
        group is left (the paper's hierarchical modulation aggregation).
        """
        every = bank[None, None]
        while group is not None and every.shape[2] > group:
            # From here on every place has a bank of its own.
            every = torch.stack([self.selection(asked, part) for part in torch.split(every, group, 2)], 2)
        return self.selection(asked, every, seen)  # type: ignore[no-any-return]

    def scores(self, asked: Tensor, bank: Tensor) -> Tensor:
        """Return how near each of `asked` is to each document, [batch, n, documents], before a softmax."""
        return self.selection.scores(asked, bank[None, None])

    def prefix(self, found: Tensor) -> Slots:
        """Return keys and values for every layer of the language model, from what `aggregate` gave."""
        shapes = [(heads, width) for heads, *both in self.sizes.layers for width in both]
        made = self.leave(self.norm(found.flatten(1, 2)))
        parts = torch.split(made, [heads * width for heads, width in shapes], -1)
        turned = [
            part.reshape(*part.shape[:2], *shape).transpose(1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return Slots(tuple(turned[::2]), tuple(turned[1::2]), found.shape[2])
