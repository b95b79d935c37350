"""RETRO's new parts (Borgeaud et al. 2021, arXiv 2112.04426): neighbour encoder, chunked cross-attention.

A text is cut into chunks of m tokens, each with neighbours of r tokens. `encode` reads the neighbours
of a chunk beside what a language model makes of that chunk; `attend` lets the places after it look at
what came of them. It knows nothing of language models, searches or texts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

BIAS_SPEED = (
    10.0  # biases are numbers by themselves where dot products are sums of many: let them move as fast
)


class RetroSizes(NamedTuple):
    """What the network stands beside, and its own measures.

    `model` is the width of the model's hidden states, `embedding` that of its token embeddings,
    `layers` the blocks with cross-attention, counted from 0.
    """

    model: int
    embedding: int
    layers: tuple[int, ...]
    width: int
    heads: int
    chunk: int = 64
    encoder: int = 2  # layers of the encoder


class DistanceAttention(nn.Module):
    """Multi-head attention from one set of vectors to another, with a bias for each head and distance.

    Distances beyond `reach` count as `reach`.
    """

    def __init__(self, asking: int, asked: int, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.queries = nn.Linear(asking, width, bias=False)
        self.keys, self.values = (nn.Linear(asked, width, bias=False) for _ in range(2))
        self.out = nn.Linear(width, asking, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * reach + 1))
        for made in (self.queries, self.values, self.out):
            nn.init.orthogonal_(made.weight)
        if asking == asked:
            # Like attends to like from the first step on: how a token finds itself in a neighbour.
            self.keys.weight.data.copy_(self.queries.weight.data)

    def near(self) -> None:
        """Begin with heads that look one place on, the last of several one back, whatever stands there."""
        nn.init.zeros_(self.keys.weight)  # or like would attend to like, which nowhere is more than itself
        distances = torch.arange(-self.reach, self.reach + 1)
        for head in range(self.heads):
            sought = 1 if head and head == self.heads - 1 else -1
            self.bias.data[head] = -2.0 * (distances - sought).abs().clamp(max=8) / BIAS_SPEED

    def forward(self, asking: Tensor, asked: Tensor, distance: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return [batch, n, width of asking] for asking [batch, n, ...] and asked [batch, s, ...].

        `distance`, [n, s], is the place of the asking less that of the asked; `seen`, [batch, s], is true
        where something may be attended to. A row that may see nothing gets some finite number.
        """
        q, k, v = (
            made.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (self.queries(asking), self.keys(asked), self.values(asked))
        )
        bias = (
            BIAS_SPEED * self.bias[:, distance.clamp(-self.reach, self.reach) + self.reach].to(q.dtype)[None]
        )
        if seen is not None:
            # The least number and not minus infinity, which would make a row without anything NaN.
            bias = bias.masked_fill(~seen[:, None, None], torch.finfo(bias.dtype).min)
        found = functional.scaled_dot_product_attention(q, k, v, bias)
        return self.out(found.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention within a neighbour, both ways; attention to the chunk it was found for; a feed-forward."""

    def __init__(self, sizes: RetroSizes) -> None:
        super().__init__()
        width, reach = sizes.width, 2 * sizes.chunk
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.chunk_norm = nn.LayerNorm(sizes.model)
        self.within = DistanceAttention(width, width, width, sizes.heads, reach)
        self.within.near()
        self.to_chunk = DistanceAttention(width, sizes.model, width, sizes.heads, reach)
        self.forwards = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, states: Tensor, chunk: Tensor, seen: Tensor) -> Tensor:
        """Return states [batch, r, width], given the chunks [batch, m, model] and the mask [batch, r]."""
        places = torch.arange(states.shape[1], device=states.device)
        own = torch.arange(chunk.shape[1], device=states.device)
        normed = self.norms[0](states)
        states = states + self.within(normed, normed, places[:, None] - places, seen)
        states = states + self.to_chunk(self.norms[1](states), self.chunk_norm(chunk), places[:, None] - own)
        return states + self.forwards(self.norms[2](states))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Chunked cross-attention of one block; before training what it adds is zero times `initial_scale`."""

    def __init__(self, sizes: RetroSizes, initial_scale: float) -> None:
        super().__init__()
        self.chunk = sizes.chunk
        self.norm, self.states_norm = nn.LayerNorm(sizes.model), nn.LayerNorm(sizes.width)
        self.attention = DistanceAttention(
            sizes.model, sizes.width, sizes.width, sizes.heads, 2 * sizes.chunk
        )
        self.gate = nn.Parameter(torch.full((sizes.model,), initial_scale / BIAS_SPEED))

    def forward(self, hidden: Tensor, states: Tensor, seen: Tensor, lead: int) -> Tensor:
        """Return what to add to hidden [batch, time, model].

        Place t attends, in one softmax, to everything in group (lead + t) // m of `states`,
        [batch, groups, k, r, width], as far as `seen`, [batch, groups, k, r], lets it; where that is
        nothing, zero is added. Group 0 stands for the chunk before the one in which `lead` counts.
        """
        m, (batch, time, _), r = self.chunk, hidden.shape, states.shape[3]
        first, last = lead // m, (lead + time - 1) // m
        before, groups = lead % m, last - first + 1
        # Only where several groups are asked need their places stand in rows of m.
        after = groups * m - before - time if groups > 1 else 0
        before_pad = before if groups > 1 else 0
        rows = functional.pad(self.norm(hidden), (0, 0, before_pad, after)).reshape(
            batch * groups, -1, hidden.shape[-1]
        )
        read = self.states_norm(states[:, first : last + 1]).reshape(batch * groups, -1, states.shape[-1])
        masks = seen[:, first : last + 1].reshape(batch * groups, -1)
        places = torch.arange(rows.shape[1], device=hidden.device) + (before - before_pad)
        # A chunk's last token is the first place that attends to its neighbours.
        asked = torch.arange(read.shape[1], device=hidden.device) % r
        found = self.attention(rows, read, m - 1 + places[:, None] - asked, masks)
        found = torch.where(masks.any(-1)[:, None, None], BIAS_SPEED * self.gate * found, 0.0)
        return found.reshape(batch, -1, hidden.shape[-1])[:, before_pad : before_pad + time]


class RetroParts(nn.Module):
    """The neighbour encoder, and a cross-attention for each of the chosen blocks."""

    def __init__(self, sizes: RetroSizes, initial_scale: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes
        # Embeddings come in at all sizes; without the norm attention would drown small ones.
        self.enter = nn.Sequential(nn.LayerNorm(sizes.embedding))
        if sizes.embedding != sizes.width:
            self.enter.append(nn.Linear(sizes.embedding, sizes.width, bias=False))
        self.encoder = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.encoder))
        self.cross = nn.ModuleDict(
            {str(layer): CrossAttention(sizes, initial_scale) for layer in sizes.layers}
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def encode(self, embedded: Tensor, seen: Tensor, chunks: Tensor) -> Tensor:
        """Return states [batch, chunks, k, r, width] of neighbours given as embeddings of the same shape.

        `seen`, [batch, chunks, k, r], is false for padding; `chunks`, [batch, chunks, m, model], is what
        the language model makes of each chunk. No neighbour sees another.
        """
        shape = seen.shape
        states: Tensor = self.enter(embedded).reshape(-1, shape[3], self.sizes.width)
        own = chunks[:, :, None].expand(-1, -1, shape[2], -1, -1).reshape(len(states), *chunks.shape[2:])
        masks = seen.reshape(-1, shape[3])
        for layer in self.encoder:
            states = layer(states, own, masks)
        return states.reshape(*shape, -1)

    def attend(self, layer: int, hidden: Tensor, states: Tensor, seen: Tensor, lead: int) -> Tensor:
        """Return what to add to a block's hidden states; see CrossAttention."""
        return self.cross[str(layer)](hidden, states, seen, lead)  # type: ignore[no-any-return]


def standardise(norm: nn.LayerNorm, inputs: Tensor) -> None:
    """Set a norm so that over these inputs, [n, width], each dimension has mean 0 and variance 1."""
    with torch.no_grad():
        bare = functional.layer_norm(inputs, inputs.shape[-1:], eps=norm.eps)
        deviation = bare.std(0).clamp(min=1e-3)
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-bare.mean(0) / deviation)
