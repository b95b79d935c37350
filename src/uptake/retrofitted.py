"""A language model with RETRO's new parts in its blocks, given the neighbours that it is to read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.delta import Delta
from uptake.lm import LM, Cache
from uptake.moves import STILL, All
from uptake.nets.retro import Retro
from uptake.placed import Placed, find


class Past(NamedTuple):
    """What a chunk that is not yet whole still needs, and the neighbours of the one before it."""

    ids: Tensor  # [batch, time], time < m
    hidden: Tensor  # [batch, time, model], after self-attention in the first of the layers
    states: Tensor  # [batch, 1, k, r, width]
    seen: Tensor  # [batch, 1, k, r]


class Retrofitted:
    """A language model with a network's cross-attention in its blocks, given the neighbours to read."""

    def __init__(self, lm: LM, network: Retro, places: Mapping[int, str]) -> None:
        self.lm, opened = lm.open(STILL, Delta(lm.fingerprint), torch.Generator())
        self.network, self._placed = network, Placed(opened.module, places)
        self._embed: Any = opened.module.get_input_embeddings()  # type: ignore[operator]

    @property
    def embedding(self) -> Tensor:
        """The model's token embeddings, [vocabulary, width]."""
        return self._embed.weight  # type: ignore[no-any-return]

    def step(self, ids: Tensor, tokens: Tensor, seen: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        """Return log-probabilities as LM.step does, and the cache.

        `tokens` and `seen`, [batch, chunks, k, r], are the neighbours of every chunk that is whole once
        `ids` have been read; what is not `seen` is not there.
        """
        inner, past = (None, None) if cache is None else cache
        run = _Run(self.network, self._embed, ids, tokens, seen, past)
        with self._placed.adding(run.add):
            log_probs, inner = self.lm.step(ids, inner)
        return log_probs, None if cache is None else (inner, run.past())


class _Run:
    """One forward pass: neighbours are encoded where the first layer comes by, and read in every layer."""

    def __init__(
        self, network: Retro, embed: Any, ids: Tensor, tokens: Tensor, seen: Tensor, past: Past | None
    ) -> None:
        self.network, self.embed, self.tokens, self.before = network, embed, tokens, past
        self.ids = ids if past is None else torch.cat([past.ids, ids], 1)
        self.lead = 1 + self.ids.shape[1] - ids.shape[1]
        nothing = seen.new_zeros(len(seen), 1, *seen.shape[2:]) if past is None else past.seen
        self.seen = torch.cat([nothing, seen], 1)
        self.any = bool(self.seen.any())

    def add(self, layer: int, hidden: Tensor) -> Tensor | None:
        network = self.network
        hidden = hidden.to(network.dtype)
        if layer == network.sizes.layers[0]:
            self._encode(hidden)
        return network.attend(layer, hidden, self.states, self.seen, self.lead) if self.any else None

    def _encode(self, hidden: Tensor) -> None:
        before, (batch, count, k, r), m = self.before, self.tokens.shape, self.network.sizes.chunk
        self.hidden = hidden if before is None else torch.cat([before.hidden.to(hidden), hidden], 1)
        width = self.network.sizes.width
        last = hidden.new_zeros(batch, 1, k, r, width) if before is None else before.states
        if not self.any or not count:
            new = hidden.new_zeros(batch, count, k, r, width)
        else:
            fresh = self.seen[:, 1:]
            embedded = self.embed(self.tokens.masked_fill(~fresh, 0)).to(hidden.dtype)
            chunks = self.hidden[:, : count * m].reshape(batch, count, m, -1)
            new = self.network.encode(embedded, fresh, chunks)
        self.states = torch.cat([last.to(hidden), new], 1)

    def past(self) -> Past:
        done = self.tokens.shape[1] * self.network.sizes.chunk
        return Past(self.ids[:, done:], self.hidden[:, done:], self.states[:, -1:], self.seen[:, -1:])


class Network(nn.Module):
    """The new parts, and the weights of the base that were trained along, if any."""

    def __init__(self, lm: LM, parts: Retro, base: str) -> None:
        super().__init__()
        self.parts, self.kind, self._opened = parts, base, None
        under, moved = lm, dict[str, nn.Parameter]()
        if base != "frozen":
            under, self._opened = lm.open(All(), Delta(lm.fingerprint), torch.Generator())
            moved = dict(self._opened.parameters)
            if base == "fresh":
                _initialise(self._opened.module)
        self.places = find(module_of(under), parts.sizes.layers)
        self.fitted = Retrofitted(under, parts, self.places)
        self.moved = nn.ParameterDict({name.replace(".", "/"): own for name, own in moved.items()})

    def under(self, lm: LM) -> LM:
        """Return the LM that the new parts stand in: this one, with the base as it was trained along."""
        return lm if self._opened is None else lm.overlay(self._opened.delta())


def module_of(lm: LM) -> Any:
    """Return a private copy of the module underneath."""
    return lm.open(STILL, Delta(lm.fingerprint), torch.Generator())[1].module


def _initialise(module: Any) -> None:
    """Give a module the weights it would have before any training; what is random is torch's."""
    fresh = dict(type(module)(module.config).named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(fresh[name])
