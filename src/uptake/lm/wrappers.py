"""LMs made of other LMs: a text before the text, mixtures, another model for each row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM, LMT, Cache, Scores, Segment, Wrapper
from uptake.lm.examples import Example, padded
from uptake.lm.rows import left_padded, row_by_row


class Prefixed(Wrapper):
    """Row i reads `prefixes[i]`, token ids, before its own text.

    A prefix stands where the opening token would, so it brings its own if it wants one.
    """

    def __init__(self, inner: LM, prefixes: Sequence[Sequence[int]]) -> None:
        super().__init__(inner)
        self.prefixes = [list(prefix) for prefix in prefixes]
        self.rows = len(self.prefixes)
        longest = max(map(len, self.prefixes), default=0)
        if longest >= self.window:
            raise BadInput(
                f"a prefix of {longest} tokens fills the window of {self.window}: use a shorter one"
            )

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.prefixes)

    def at(self, rows: Sequence[int]) -> LM:
        return Prefixed(self.inner.at(rows), [self.prefixes[row] for row in rows])

    def max_input_tokens(self, row: int) -> int:
        return self.inner.max_input_tokens(row) - len(self.prefixes[row])

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self.inner.predictions(self._prefixed(examples))

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        return self.inner.token_log_probs(self._prefixed(examples))

    def _prefixed(self, examples: Sequence[Example]) -> list[Example]:
        self._check_rows(len(examples))
        return [
            replace(example, context=tuple(self._joined(row, example.context)))
            for row, example in enumerate(examples)
        ]

    def start(self) -> Cache:
        inner = self.inner.start()
        return None if inner is None else _PrefixCache(inner)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is not None and cache.begun:
            log_probs, inner = self.inner.step(ids, cache.inner)
            return log_probs, _PrefixCache(inner, True)
        time = ids.shape[1]
        gaps = [time - length for length in lengths or [time] * len(ids)]
        whole = [self._joined(row, ids[row, gap:].tolist()) for row, gap in enumerate(gaps)]
        if cache is not None or lengths is not None:
            joined, known = left_padded(whole, ids.device)
            log_probs, inner = self.inner.step(joined, cache and cache.inner, known)
            missing = max(0, time - joined.shape[1])
            return pad(log_probs[:, -time:], (0, 0, missing, 0)), cache and _PrefixCache(inner, True)
        log_probs, _ = self.inner.step(padded(whole).to(ids.device))
        ends = [len(each) for each in whole]
        return torch.stack([log_probs[row, end - time : end] for row, end in enumerate(ends)]), None

    def _joined(self, row: int, ids: Sequence[int]) -> list[int]:
        prefix = self.prefixes[row]
        return [*prefix, *(ids[1:] if prefix and ids[0] == self.tokenizer.opening else ids)]


@dataclass(frozen=True, slots=True)
class _PrefixCache:
    """The inner LM's cache, and whether the prefixes have been read into it."""

    inner: Cache
    begun: bool = False


class Mixed(Wrapper):
    """A mixture of LMs over one tokenizer, token by token: log sum_i w_i p_i."""

    def __init__(self, parts: Sequence[LM], weights: Sequence[float]) -> None:
        if len(parts) != len(weights) or not parts or min(weights) < 0 or not math.isclose(sum(weights), 1.0):
            raise BadInput(
                f"mixture weights {list(weights)} for {len(parts)} models: give one each, adding up to 1"
            )
        super().__init__(parts[0])
        self.parts, self.weights = list(parts), list(weights)
        self.rows = next((part.rows for part in parts if part.rows is not None), None)
        self.has_step = all(part.has_step for part in parts)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]], self.weights)

    def overlay(self, delta: Delta) -> LM:
        return Mixed([part.overlay(delta) for part in self.parts], self.weights)

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        raise BadInput("a mixture has no one set of weights to train: train its parts, then mix them")

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        raise BadInput("a mixture has no one set of weights: give them to its parts")

    def at(self, rows: Sequence[int]) -> LM:
        return Mixed([part.at(rows) for part in self.parts], self.weights)

    def max_input_tokens(self, row: int) -> int:
        return min(part.max_input_tokens(row) for part in self.parts)

    def start(self) -> Cache:
        return _all_or_none([part.start() for part in self.parts])

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        caches = cache if cache is not None else [None] * len(self.parts)
        stepped = [part.step(ids, kept, lengths) for part, kept in zip(self.parts, caches, strict=True)]
        mixed = self._mixed([log_probs for log_probs, _ in stepped])
        return mixed, None if cache is None else [kept for _, kept in stepped]

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        parts = [part.predictions(examples) for part in self.parts]
        return [self._mixed(each) for each in zip(*parts, strict=True)]

    def _mixed(self, parts: Sequence[Tensor]) -> Tensor:
        logs = [
            log_probs + math.log(weight)
            for log_probs, weight in zip(parts, self.weights, strict=True)
            if weight > 0
        ]
        return torch.logsumexp(torch.stack(logs), 0)


class Routed(Wrapper):
    """Row i is answered by `parts[i]`: many private models side by side, in one batch."""

    def __init__(self, parts: Sequence[LM]) -> None:
        super().__init__(parts[0])
        self.parts = list(parts)
        self.rows = len(self.parts)
        self.has_step = all(part.has_step for part in parts)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]])

    def at(self, rows: Sequence[int]) -> LM:
        chosen = [self.parts[row] for row in rows]
        # Rows that are all one model are that model, in one batch.
        alike = all(part is chosen[0] for part in chosen) and chosen[0].rows is None
        return chosen[0] if alike else Routed(chosen)

    def max_input_tokens(self, row: int) -> int:
        return self.parts[row].max_input_tokens(0)

    def overlay(self, delta: Delta) -> LM:
        return Routed([part.overlay(delta) for part in self.parts])

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        return self._only.trainable_copy(trainable, start, generator)

    def capable(self, kind: type[LMT]) -> LMT | None:
        return self._only.capable(kind)

    @property
    def _only(self) -> LM:
        if len(self.parts) != 1:
            raise BadInput(f"{len(self.parts)} rows have no weights in common: pick one row with at()")
        return self.parts[0]

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        return Routed([part.with_parameters(parameters) for part in self.parts])

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        pairs = zip(self.parts, examples, strict=True)
        return [log_probs for part, example in pairs for log_probs in part.predictions([example])]

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        pairs = zip(self.parts, examples, strict=True)
        return [log_probs for part, example in pairs for log_probs in part.token_log_probs([example])]

    def start(self) -> Cache:
        return _all_or_none([part.start() for part in self.parts])

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        caches = cache if cache is not None else [None] * len(self.parts)
        log_probs, after = row_by_row(self._step_row, ids, caches, lengths)
        return log_probs, None if cache is None else after

    def _step_row(self, row: int, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self.parts[row].step(ids, cache)


class Bayes(Wrapper):
    """A base and an adapted LM as one mixture whose weights follow the tokens seen, by Bayes' rule.

    The probability of a text is `(1 - prior) * base + prior * adapted`, as whole texts. In `score`
    and `predictions` only the target's tokens change the weights, so a text costs at most
    log2(1 / (1 - prior)) bits more than under the base; in `step`, and so in generation, every token
    since the start does.
    """

    def __init__(self, inner: LM, adapted: LM, prior: float) -> None:
        super().__init__(inner)
        self.adapted, self.prior = adapted, prior
        self.rows = adapted.rows if inner.rows is None else inner.rows
        self.has_step = inner.has_step and adapted.has_step

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.adapted, self.prior)

    def at(self, rows: Sequence[int]) -> LM:
        return Bayes(self.inner.at(rows), self.adapted.at(rows), self.prior)

    def max_input_tokens(self, row: int) -> int:
        return min(self.inner.max_input_tokens(row), self.adapted.max_input_tokens(row))

    def overlay(self, delta: Delta) -> LM:
        return Bayes(self.inner.overlay(delta), self.adapted.overlay(delta), self.prior)

    def start(self) -> Cache:
        both = _all_or_none([self.inner.start(), self.adapted.start()])
        return None if both is None else [*both, None]

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        caches = cache if cache is not None else [None, None, None]
        base, base_cache = self.inner.step(ids, caches[0], lengths)
        adapted, adapted_cache = self.adapted.step(ids, caches[1], lengths)
        ahead = (adapted - base)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        if lengths is not None:
            # No token of padding was predicted, nor was a row's first one.
            gaps = ids.shape[1] - torch.tensor(lengths, device=ids.device)[:, None]
            ahead = torch.where(torch.arange(1, ids.shape[1], device=ids.device) > gaps, ahead, 0.0)
        if caches[2] is None:
            first = torch.full_like(base[:, 0, 0], self._logit)
        else:
            odds, before = caches[2]
            first = odds + before.gather(-1, ids[:, :1])[:, 0]
        odds = torch.cat([first[:, None], ahead], 1).cumsum(1)
        mixed = _mix(base, adapted, odds[..., None])
        kept = [base_cache, adapted_cache, (odds[:, -1], (adapted - base)[:, -1])]
        return mixed, None if cache is None else kept

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        parts = self.inner.predictions(examples), self.adapted.predictions(examples)
        found = []
        for example, base, adapted in zip(examples, *parts, strict=True):
            targets = torch.tensor(example.target, dtype=torch.long, device=base.device)
            ahead = (adapted - base).gather(-1, targets[:, None])[:, 0]
            odds = self._logit + ahead.cumsum(0) - ahead
            found.append(_mix(base, adapted, odds[:, None]))
        return found

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        """As LM.score; the weights start at the prior with each segment and follow its tokens alone."""
        pairs = zip(
            self.inner.score(segments, batch_tokens), self.adapted.score(segments, batch_tokens), strict=True
        )
        out = []
        for base, adapted in pairs:
            ahead = adapted.log_probs - base.log_probs
            odds = self._logit + ahead.cumsum(0) - ahead
            out.append(Scores(_mix(base.log_probs, adapted.log_probs, odds), base.spans, base.bytes))
        return out

    @property
    def _logit(self) -> float:
        return math.log(self.prior / (1 - self.prior))


def _all_or_none(caches: list[Cache]) -> list[Cache] | None:
    """Return the caches, or None where one of the LMs keeps none: then all of them read everything again."""
    return None if any(cache is None for cache in caches) else caches


def _mix(base: Tensor, adapted: Tensor, odds: Tensor) -> Tensor:
    """Return log(sigmoid(-odds) exp(base) + sigmoid(odds) exp(adapted)), the base where both agree."""
    mixed = torch.logaddexp(logsigmoid(-odds) + base, logsigmoid(odds) + adapted)
    return torch.where(adapted == base, base, mixed)
