"""Three toy methods of different kinds, to show that the contract fits each: memory, weights, routing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.rows import each_row
from uptake.lm.wrappers import Routed
from uptake.methods.contract.method import Context, Evidence, Method, State, same_length
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune


@dataclass(frozen=True, kw_only=True)
class Counts(State):
    counts: Tensor


class Unigram(Wrapper):
    """Mixes each row's counts of tokens read with what the inner model says."""

    def __init__(self, inner: LM, counts: Tensor, share: float) -> None:
        super().__init__(inner)
        self.counts, self.share, self.rows = counts, share, len(counts)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.counts, self.share)

    def at(self, rows: Sequence[int]) -> LM:
        return Unigram(self.inner.at(rows), self.counts[list(rows)], self.share)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        log_probs, cache = self.inner.step(ids, cache, lengths)
        total = self.counts.sum(-1, keepdim=True)
        share = torch.where(total > 0, self.share, 0.0)[:, None]
        memory = (self.counts / total.clamp(min=1))[:, None]
        mixed = torch.logaddexp((1 - share).log() + log_probs, share.log() + memory.log())
        return torch.where(share > 0, mixed, log_probs), cache


@dataclass(frozen=True)
class Memory(Method[Counts]):
    """Remembers how often each token was read."""

    share: float = 0.3

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> Counts:
        return Counts(base=lm.fingerprint, counts=torch.zeros(257))

    def adapt(
        self,
        states: Sequence[Counts],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Counts]:
        same_length(states, evidence)
        out = []
        for state, found in zip(states, evidence, strict=True):
            ids = [token for passage in found.passages for token in lm.tokenizer.encode(passage.text)[0]]
            added = torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=257)
            counts = state.counts.add_(added) if donate else state.counts + added
            out.append(state.after(found, context, counts=counts))
        return out

    def adapted(self, states: Sequence[Counts], lm: LM) -> LM:
        return Unigram(lm, torch.stack([state.counts for state in states]), self.share)


@dataclass(frozen=True, kw_only=True)
class Shift(State):
    delta: Delta


@dataclass(frozen=True)
class Weights(Method[Shift]):
    """Moves one weight matrix by a fixed amount for every token read, without any gradient."""

    amount: float = 0.05

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> Shift:
        return Shift(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[Shift],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Shift]:
        same_length(states, evidence)
        out = []
        for state, found in zip(states, evidence, strict=True):
            delta = state.delta
            for passage in found.passages:
                ids = lm.tokenizer.encode(passage.text)[0]
                weight = lm.module.get_parameter("model.embed_tokens.weight")  # type: ignore[attr-defined]
                step = torch.zeros_like(weight)
                step[ids] = self.amount
                delta = delta + Delta.dense(lm.fingerprint, {"model.embed_tokens.weight": step})
            out.append(state.after(found, context, delta=delta) if found.passages else state)
        return out

    def adapted(self, states: Sequence[Shift], lm: LM) -> LM:
        return Routed([lm.overlay(state.delta) for state in states])


class Gate(Wrapper):
    """From the first token in scope on, the expert answers; before it, the inner model, bit for bit."""

    def __init__(self, inner: LM, experts: LM, scope: Sequence[frozenset[int]]) -> None:
        super().__init__(inner)
        self.experts, self.scope, self.rows = experts, list(scope), len(scope)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.experts, self.scope)

    def at(self, rows: Sequence[int]) -> LM:
        return Gate(self.inner.at(rows), self.experts.at(rows), [self.scope[row] for row in rows])

    def start(self) -> Cache:
        return None

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if lengths is not None:
            return each_row(self, ids, cache, lengths)
        hit = torch.tensor(
            [[int(token) in scope for token in row] for row, scope in zip(ids, self.scope, strict=True)]
        )
        inside = hit.cumsum(-1) > 0
        return torch.where(inside[..., None], self.experts.step(ids)[0], self.inner.step(ids)[0]), None


@dataclass(frozen=True, kw_only=True)
class Scoped(State):
    expert: WeightState
    scope: tuple[int, ...] = ()


@dataclass(frozen=True)
class Router(Method[Scoped]):
    """Fine-tunes an expert on what it reads and asks it only where a token it read comes up."""

    expert: Finetune = field(default_factory=Finetune.example)

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> Scoped:
        return Scoped(base=lm.fingerprint, expert=self.expert.init(lm))

    def adapt(
        self,
        states: Sequence[Scoped],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Scoped]:
        experts = self.expert.adapt([state.expert for state in states], lm, evidence, context)
        out = []
        for state, expert, found in zip(states, experts, evidence, strict=True):
            read = {token for passage in found.passages for token in lm.tokenizer.encode(passage.text)[0]}
            after = replace(state, expert=expert, scope=tuple(sorted({*state.scope, *read})))
            out.append(after.after(found, context) if found.passages else state)
        return out

    def adapted(self, states: Sequence[Scoped], lm: LM) -> LM:
        experts = self.expert.adapted([state.expert for state in states], lm)
        return Gate(lm, experts, [frozenset(state.scope) for state in states])
