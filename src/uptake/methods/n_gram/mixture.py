"""A model's predictions mixed with what followed the last tokens in a memory, by Bayes with switching."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.examples import Example
from uptake.lm.experts import FixedShare
from uptake.methods.n_gram.memory import NO_MATCHES, Continuations, Matches, NGramMemory, Smoothing


@dataclass(frozen=True)
class Mixing:
    """The smoothing, and how the model by itself and the model under each strength share the prediction."""

    smoothing: Smoothing
    sharing: FixedShare  # the model by itself first, then one expert a strength


@dataclass(frozen=True, slots=True)
class _Reached:
    """Where a row goes on: what may follow, the model's own word on that, and the experts' weights."""

    matches: Matches
    next: Continuations
    own: Tensor  # [vocabulary]
    weights: Tensor  # [shares, experts]


class NGramMixture(Wrapper):
    """Row i mixes what `inner` predicts with `memories[i]`.

    A row without a memory is `inner` bit for bit, and so is a place whose last token the memory never saw.
    In `score` only the target's tokens change the experts' weights; in `step` all tokens since the start do.
    """

    def __init__(self, inner: LM, memories: Sequence[NGramMemory | None], mixing: Mixing) -> None:
        super().__init__(inner)
        self.memories, self.mixing = list(memories), mixing
        self.rows = len(self.memories)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.memories, self.mixing)

    def at(self, rows: Sequence[int]) -> "NGramMixture":
        return NGramMixture(self.inner.at(rows), [self.memories[row] for row in rows], self.mixing)

    def start(self) -> Cache:
        inner = self.inner.start()
        return None if inner is None else (inner, [None] * len(self.memories))

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        inner, before = cache if cache is not None else (None, [None] * len(self.memories))
        log_probs, inner = self.inner.step(ids, inner, lengths)
        mixed, after = [], []
        for row in range(len(ids)):
            gap = 0 if lengths is None else ids.shape[1] - lengths[row]
            whole, reached = self._row(row, log_probs[row, gap:], ids[row, gap:].tolist(), before[row])
            mixed.append(torch.cat([log_probs[row, :gap], whole]) if gap else whole)
            after.append(reached)
        return torch.stack(mixed), None if cache is None else (inner, after)

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        found = []
        for row, (example, own) in enumerate(zip(examples, self.inner.predictions(examples), strict=True)):
            following = self._following(row, example)
            if following is None:
                found.append(own)
                continue
            target = torch.tensor(example.target, dtype=torch.long, device=own.device)
            experts = self._experts(own.gather(-1, target[:, None])[:, 0], following, example.target)
            along, _ = self.mixing.sharing.along(self.mixing.sharing.start(own.device), experts)
            found.append(_weighed(own, following, along))
        return found

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        found = []
        for row, (example, own) in enumerate(
            zip(examples, self.inner.token_log_probs(examples), strict=True)
        ):
            following = self._following(row, example)
            if following is not None:
                experts = self._experts(own, following, example.target)
                along, _ = self.mixing.sharing.along(self.mixing.sharing.start(own.device), experts)
                mixed = (along.to(own.dtype) + experts).logsumexp(-1)
                own = torch.where(_any(following, own), mixed, own)
            found.append(own)
        return found

    def _following(self, row: int, example: Example) -> list[Continuations] | None:
        """Return what may follow at each place of the target; None where there is no memory."""
        memory, smoothing = self.memories[row], self.mixing.smoothing
        if memory is None:
            return None
        matches = memory.along(example.context, smoothing.longest)
        return [each for _, each in _walk(memory, matches, example.target[:-1], smoothing)]

    def _row(
        self, row: int, own: Tensor, ids: Sequence[int], before: _Reached | None
    ) -> tuple[Tensor, _Reached | None]:
        """Return one row's predictions after `ids`, and what it goes on from."""
        memory, smoothing, sharing = self.memories[row], self.mixing.smoothing, self.mixing.sharing
        if memory is None:
            return own, None
        matches, weights = NO_MATCHES, sharing.start(own.device)
        if before is not None:
            matches = before.matches
            first = before.own[ids[0]][None]
            weights = sharing.after(before.weights, self._experts(first, [before.next], ids[:1])[0])
        matches = memory.after(matches, ids[0], smoothing.longest)
        walked = [*_walk(memory, matches, ids[1:], smoothing)]
        following = [each for _, each in walked]
        ahead = own[:-1].gather(-1, torch.tensor(ids[1:], dtype=torch.long, device=own.device)[:, None])
        along, weights = sharing.along(weights, self._experts(ahead[:, 0], following[:-1], ids[1:]))
        along = torch.cat([along, weights.logsumexp(-2)[None]])
        reached = _Reached(walked[-1][0], following[-1], own[-1].detach(), weights)
        return _weighed(own, following, along), reached

    def _experts(self, own: Tensor, following: Sequence[Continuations], tokens: Sequence[int]) -> Tensor:
        """Return each expert's log-probability of tokens, [tokens, experts], from the model's, [tokens]."""
        strengths = len(self.mixing.smoothing.strengths)
        rest = np.array([each.rest for each in following]).reshape(-1, strengths)
        right = np.array([each.of(token) for each, token in zip(following, tokens, strict=True)])
        model = own[:, None].double()
        memory = torch.from_numpy(right.reshape(-1, strengths)).to(own.device)
        mixed = torch.logaddexp(torch.from_numpy(rest).to(own.device).log() + model, memory.log())
        return torch.cat([model, mixed], 1)


def _walk(
    memory: NGramMemory, matches: Matches, ids: Iterable[int], smoothing: Smoothing
) -> Iterator[tuple[Matches, Continuations]]:
    """Yield where the text stands and what may follow there, first as it is, then after each of `ids`."""
    yield matches, memory.continuations(matches, smoothing)
    for token in ids:
        matches = memory.after(matches, token, smoothing.longest)
        yield matches, memory.continuations(matches, smoothing)


def _weighed(own: Tensor, following: Sequence[Continuations], along: Tensor) -> Tensor:
    """Return the predictions [places, vocabulary] of all experts, which have these log-weights."""
    weights = along.exp()
    rest = torch.from_numpy(np.stack([each.rest for each in following])).to(weights)
    share = (weights[:, 0] + (weights[:, 1:] * rest).sum(-1)).log().to(own.dtype)
    tokens = torch.from_numpy(np.concatenate([each.tokens for each in following]))
    places = torch.repeat_interleave(
        torch.arange(len(following)), torch.tensor([len(each.tokens) for each in following])
    )
    each = torch.from_numpy(np.concatenate([each.mass for each in following], 1)).to(weights)
    mass = torch.zeros(own.shape, dtype=own.dtype, device=own.device)
    given = (weights[places.to(weights.device), 1:] * each.T).sum(-1).to(own.dtype)
    mass[places.to(own.device), tokens.to(own.device)] = given
    mixed = torch.logaddexp(share[:, None] + own, mass.log())
    return torch.where(_any(following, own)[:, None], mixed, own)


def _any(following: Sequence[Continuations], like: Tensor) -> Tensor:
    """Return [places], whether anything may follow there."""
    return torch.tensor([len(each.tokens) > 0 for each in following], device=like.device)
