"""A language model with RETRO's new parts in its blocks, given the neighbours that it is to read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, wide
from uptake.adaptation.trainable import All
from uptake.adaptation.trainable.opening import FROZEN
from uptake.lm.attention_hook import AttentionHook, find
from uptake.lm.base import LM, Cache
from uptake.methods.retro.network import DistanceAttention, RetroParts, standardise

_ROWS, _PLACES, _TIMES = 24, 512, 2  # of the text from which hidden states are known
_RIDGE = 1e-2  # of the least squares
_SHARP = 4.0  # so much surer is a match than its dot product, for a state holds more than can be guessed


class Past(NamedTuple):
    """What a chunk that is not yet whole still needs, and the neighbours of the one before it."""

    ids: Tensor  # [batch, time], time < m
    hidden: Tensor  # [batch, time, model], after self-attention in the first of the layers
    states: Tensor  # [batch, 1, k, r, width]
    seen: Tensor  # [batch, 1, k, r]


class Retrofitted:
    """A language model with a network's cross-attention in its blocks, given the neighbours to read."""

    def __init__(self, lm: LM, network: RetroParts, places: Mapping[int, str]) -> None:
        self.lm, opened = lm.trainable_copy(FROZEN, Delta(lm.fingerprint), torch.Generator())
        self.network, self._placed = network, AttentionHook(opened.module, places)
        self._embed: Any = opened.module.get_input_embeddings()  # type: ignore[operator]
        self._unembed: Any = opened.module.get_output_embeddings()  # type: ignore[operator]

    @property
    def embedding(self) -> Tensor:
        """The model's token embeddings, [vocabulary, width]."""
        return self._embed.weight  # type: ignore[no-any-return]

    @property
    def directions(self) -> Tensor:
        """Where a hidden state goes to make a token likelier, of size 1 a dimension: [vocabulary, model]."""
        matrix: Tensor = wide(self._unembed.weight.detach())
        apart = matrix - matrix.mean(0)
        return apart / apart.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)

    def likely(self, rows: int, places: int) -> Tensor:
        """Return tokens, [rows, places], that the model holds for likely, each after the one before it.

        All places are drawn at once, and anew after those drawn before; nearly text after a few times.
        """
        return torch.stack([self._likely(places) for _ in range(rows)])

    def _likely(self, places: int) -> Tensor:
        ids = torch.randint(len(self.embedding), (places,)).to(self.embedding.device)
        with torch.no_grad():
            for _ in range(_TIMES):
                log_probs, _ = self.lm.step(ids[None])
                below = log_probs[0, :-1].exp().cumsum(-1)
                drawn = below[:, -1:] * torch.rand(places - 1, 1).to(below)
                ids = torch.cat([ids[:1], torch.searchsorted(below, drawn)[:, 0]])
        return ids.clamp(max=len(self.embedding) - 1)

    def visit(self, ids: Tensor, see: Callable[[int, Tensor], None]) -> None:
        """Read ids without neighbours, and show the hidden states of every place that the network has."""
        with self._placed.adding(see):
            self.lm.step(ids)

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
        self, network: RetroParts, embed: Any, ids: Tensor, tokens: Tensor, seen: Tensor, past: Past | None
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


class RetroNetwork(nn.Module):
    """The new parts, and the weights of the base that were trained along, if any."""

    def __init__(self, lm: LM, parts: RetroParts, base: str) -> None:
        super().__init__()
        self.parts, self.kind, self._opened = parts, base, None
        under, moved = lm, dict[str, nn.Parameter]()
        if base != "frozen":
            under, self._opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
            moved = dict(self._opened.parameters)
            if base == "fresh":
                _initialise(self._opened.module)
        self.places = find(module_of(under), parts.sizes.layers)
        self.fitted = Retrofitted(under, parts, self.places)
        self.moved = nn.ParameterDict({name.replace(".", "/"): own for name, own in moved.items()})

    def under(self, lm: LM) -> LM:
        """Return the LM that the new parts stand in: this one, with the base as it was trained along."""
        return lm if self._opened is None else lm.overlay(self._opened.delta())


def initialise_from_base(network: RetroNetwork) -> None:
    """Let the new parts begin as what finds the words read last in a neighbour and reads off the next one.

    Trained models put most of a hidden state's size into a few dimensions that hardly tell tokens apart;
    beside those, like does not find like, and steps as small as training's never get there. So the norms
    are set to make each dimension vary alike; what asks begins as the best linear guess of the state that
    a neighbour of the same words has there; and what is found begins as the best linear guess, in the
    hidden states' size, of where the token after it lies. All by least squares, over text such as the
    model takes for likely. Ours, not the paper's.
    """
    parts, fitted = network.parts, network.fitted
    table, found = fitted.embedding.detach(), dict[int, Tensor]()
    parts.to(table.device)
    m = parts.sizes.chunk
    with torch.no_grad():
        standardise(parts.enter[0], table.to(parts.dtype))  # type: ignore[arg-type]
        places = min(_PLACES, fitted.lm.window)
        ids = fitted.likely(max(_ROWS, -(-8 * m // places)), places)
        fitted.visit(ids, lambda layer, hidden: found.update({layer: hidden.to(parts.dtype).flatten(0, 1)}))
        count = ids.numel() // (2 * m) * (2 * m)
        read, first = ids.flatten()[:count], found[parts.sizes.layers[0]][:count]
        tokens = parts.enter(table[read].to(parts.dtype))
        for layer in parts.encoder:
            own = _guess(layer.chunk_norm, first, tokens)  # type: ignore[arg-type]
            layer.to_chunk.keys.weight.copy_(layer.to_chunk.queries.weight @ own)  # type: ignore[union-attr, operator]
        # Each stretch as the neighbour of a chunk that has nothing to do with it.
        chunks = first.reshape(1, -1, 2 * m, first.shape[-1])[:, :, :m].roll(1, 1)
        neighbours = read.reshape(1, -1, 1, 2 * m)
        seen = torch.ones_like(neighbours, dtype=torch.bool)
        states = parts.encode(table[neighbours].to(parts.dtype), seen, chunks).flatten(0, -2)
        inner = torch.arange(count, device=read.device) % (2 * m) < 2 * m - 1
        coming = fitted.directions[read.roll(-1)[inner]]
        for name, cross in parts.cross.items():
            hidden, normed = found[int(name)][:count], cross.states_norm(states)  # type: ignore[operator]
            own = _SHARP * _guess(cross.norm, hidden, normed)  # type: ignore[arg-type]
            attention: DistanceAttention = cross.attention  # type: ignore[assignment]
            attention.queries.weight.copy_(attention.keys.weight @ own)
            values = attention.values(normed[inner])
            attention.out.weight.copy_(hidden.pow(2).mean().sqrt() * _map(values, coming.to(values)))


def _guess(norm: nn.LayerNorm, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Set the norm for these hidden states, [n, model], and return the map from it to tokens, [n, width]."""
    standardise(norm, hidden)
    return _map(norm(hidden), tokens)


def _map(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the linear map, [outputs, inputs], from [n, inputs] to [n, outputs], by least squares."""
    given, wanted = inputs.cpu().double(), outputs.cpu().double()
    squares = given.T @ given + _RIDGE * len(given) * torch.eye(given.shape[1], dtype=given.dtype)
    found: Tensor = torch.linalg.solve(squares, given.T @ wanted)
    return found.T.to(outputs)


def module_of(lm: LM) -> Any:
    """Return a private copy of the module underneath."""
    return lm.trainable_copy(FROZEN, Delta(lm.fingerprint), torch.Generator())[1].module


def _initialise(module: Any) -> None:
    """Give a module the weights it would have before any training; what is random is torch's."""
    fresh = dict(type(module)(module.config).named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(fresh[name])
