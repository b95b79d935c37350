"""LMs with a gate: who answers a prompt is decided once, and held for all tokens that follow.

Gates decided anew at every token flip in the middle of an answer: with a key-value cache the published code
of several gated editors asks about each new token instead of the prompt (EasyEdit#298, #479).
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.examples import Example
from uptake.lm.few_passes import in_few_passes
from uptake.lm.rows import left_padded
from uptake.lm.wrappers import Prefixed
from uptake.text.tokenizer import Tokenizer

Ids = tuple[int, ...]
_Call = Callable[[LM, Sequence[Example]], list[Tensor]]


class Asked(NamedTuple):
    """The row that a prompt is asked of, and the prompt's tokens, the opening one first."""

    row: int
    prompt: Ids

    def text(self, tokenizer: Tokenizer) -> str:
        """Return the prompt as text."""
        opens = self.prompt[:1] == (tokenizer.opening,)
        return tokenizer.decode(list(self.prompt[1:] if opens else self.prompt))


class Gated(Wrapper):
    """Each row's prompt is answered by the LM that `choose` gives for it.

    The prompt is the context of what is scored, and what is read first where a text is continued; it is
    empty where a whole text is read without a cache, for no place may depend on a later token.
    """

    @abstractmethod
    def choose(self, asked: Sequence[Asked]) -> LM:
        """Return an LM whose row i answers asked[i]; the inner one itself where all are out of scope."""

    def around(self, inner: LM) -> Self:
        raise BadInput("a gate between two models has no one set of weights: train each by itself")

    def start(self) -> Cache:
        return _Held()

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        if cache is None:
            empty = (self.tokenizer.opening,)
            answering = self.choose([Asked(row, empty) for row in range(len(ids))])
            return answering.step(ids, None, lengths)[0], None
        held = self._held(ids, cache, lengths)
        return held.step(ids, lengths), _Held(held)

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is None:
            return super().read_on(ids, None, lengths)
        self._check_rows(len(ids))
        held = self._held(ids, cache, lengths)
        return held.step(ids, lengths, last=True)[:, -1], _Held(held)

    def _held(self, ids: Tensor, cache: "_Held", lengths: Sequence[int] | None) -> "_Reader":
        """Return who answers, chosen by what is read first."""
        if cache.answering is not None:
            return cache.answering
        gaps = [ids.shape[1] - length for length in lengths or [ids.shape[1]] * len(ids)]
        rows = [Asked(row, tuple(ids[row, gap:].tolist())) for row, gap in enumerate(gaps)]
        return _Reader(self.choose(rows))

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answering([example.context for example in examples]).predictions(examples)

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answering([example.context for example in examples]).token_log_probs(examples)

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        prompts = [tuple(self.tokenizer.opened(segment.context)) for segment in segments]
        return self._answering(prompts).score(segments, batch_tokens)

    def _answering(self, prompts: Sequence[Ids]) -> LM:
        self._check_rows(len(prompts))
        return self.choose([Asked(row, prompt) for row, prompt in enumerate(prompts)])


class Opened(Wrapper):
    """Row i is answered behind the tokens of `before[i]`, and where that is None by the inner LM.

    Row `seen[i]` of `opened` answers it; left out, the inner LM answers all rows, after what is let in. For
    the rows that are its own the inner LM is asked in the very batch it would be asked in by itself, so that
    its bits are the same.
    """

    def __init__(
        self,
        inner: LM,
        before: Sequence[Ids | None],
        opened: LM | None = None,
        seen: Sequence[int | None] = (),
    ) -> None:
        super().__init__(inner)
        self.before, self.rows = list(before), len(before)
        self.opened, self.seen = opened, list(seen)
        self.has_step = inner.has_step and (opened is None or opened.has_step)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.before, self.opened, self.seen)

    def at(self, rows: Sequence[int]) -> LM:
        seen = [self.seen[row] for row in rows] if self.seen else ()
        return Opened(self.inner.at(rows), [self.before[row] for row in rows], self.opened, seen)

    def max_input_tokens(self, row: int) -> int:
        own, place = self.inner.max_input_tokens(row), self.seen[row] if self.seen else None
        if self.opened is None or place is None:
            return own
        return min(own, self.opened.max_input_tokens(place))

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answered(examples, lambda lm, some: lm.predictions(some))

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answered(examples, lambda lm, some: lm.token_log_probs(some))

    @property
    def _open(self) -> list[int]:
        return [row for row, tokens in enumerate(self.before) if tokens is not None]

    def _answered(self, examples: Sequence[Example], call: _Call) -> list[Tensor]:
        self._check_rows(len(examples))
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        if len(self._open) < len(examples):
            found = list(call(self.inner, examples))
        if self._open:
            some = [examples[row] for row in self._open]
            answers = call(self._let_in([len(each.inputs) for each in some]), some)
            for row, log_probs in zip(self._open, answers, strict=True):
                found[row] = log_probs
        return found

    def start(self) -> Cache:
        closed = len(self._open) < len(self.before)
        return _Readers(_Reader(self.inner) if closed else None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        return self._each(ids, cache, lengths, False), cache

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        return self._each(ids, cache, lengths, True)[:, -1], cache

    def _each(
        self, ids: Tensor, cache: "_Readers | None", lengths: Sequence[int] | None, last: bool
    ) -> Tensor:
        """Return the log-probabilities of all rows, at the `last` place alone where no other is wanted."""
        self._check_rows(len(ids))
        log_probs = None
        if len(self._open) < len(ids):
            inner = None if cache is None else cache.inner
            log_probs = (
                _read(self.inner, ids, None, lengths, last)[0]
                if inner is None
                else inner.step(ids, lengths, last)
            )
        if self._open:
            found = self._step_open(cache, ids, lengths, last)
            if log_probs is None:
                return found
            # What comes out of a model is its own; the rows that are open take its place in a copy.
            log_probs = log_probs.clone()
            log_probs[self._open] = found
        assert log_probs is not None
        return log_probs

    def _step_open(
        self, cache: "_Readers | None", ids: Tensor, lengths: Sequence[int] | None, last: bool
    ) -> Tensor:
        own = ids[self._open]
        known = None if lengths is None else [lengths[row] for row in self._open]
        sizes = [own.shape[1]] * len(own) if known is None else known
        if cache is None:
            return _read(self._let_in(sizes), own, None, known, last)[0]
        if cache.opened is None:
            cache.opened = _Reader(self._let_in(sizes))
        elif cache.opened.full:
            # The window is full: what was let in gives way to the text itself.
            texts = [[*text, *row.tolist()] for text, row in zip(cache.opened.texts, own, strict=True)]
            cache.opened = _Reader(self._let_in([2 * len(text) for text in texts]))
            padded, known = left_padded(texts, ids.device)
            return cache.opened.step(padded, known, last=True)
        return cache.opened.step(own, known, last)

    def _let_in(self, sizes: Sequence[int]) -> LM:
        """Return the LM of the open rows behind what is let in, as far as it fits beside `sizes` tokens."""
        lm = self.inner.at(self._open)
        if self.opened is not None:
            places = [place for row in self._open if (place := self.seen[row]) is not None]
            lm = in_few_passes(self.opened, places, len(self.before))
        prefixes = []
        for place, (row, size) in enumerate(zip(self._open, sizes, strict=True)):
            tokens, free = self.before[row] or (), lm.max_input_tokens(place) - size
            kept = tokens[max(0, len(tokens) - max(0, free - 1)) :]
            prefixes.append([lm.tokenizer.opening, *kept] if kept else [])
        return Prefixed(lm, prefixes) if any(prefixes) else lm


class _Reader:
    """One LM's way through a batch of texts, with a cache or without; it knows what it has read."""

    def __init__(self, lm: LM) -> None:
        self.lm, self.cache = lm, lm.start()
        self.texts: list[list[int]] = []

    @property
    def full(self) -> bool:
        """Whether one more token would not fit."""
        return any(len(text) >= self.lm.max_input_tokens(row) for row, text in enumerate(self.texts))

    def step(self, ids: Tensor, lengths: Sequence[int] | None, last: bool = False) -> Tensor:
        """Return the log-probabilities after `ids`, or the `last` of them, which go on from what was read."""
        time = ids.shape[1]
        new = [row[time - n :].tolist() for row, n in zip(ids, lengths or [time] * len(ids), strict=True)]
        self.texts = [[*old, *more] for old, more in zip(self.texts or [[] for _ in new], new, strict=True)]
        if self.cache is not None:
            log_probs, self.cache = _read(self.lm, ids, self.cache, lengths, last)
            return log_probs
        whole, known = left_padded(self.texts, ids.device)
        return _read(self.lm, whole, None, known, last)[0][:, -time:]


def _read(
    lm: LM, ids: Tensor, cache: Cache, lengths: Sequence[int] | None, last: bool
) -> tuple[Tensor, Cache]:
    """Return the log-probabilities [rows, time, vocabulary] after `ids`; with `last` time is 1."""
    if not last:
        return lm.step(ids, cache, lengths)
    log_probs, cache = lm.read_on(ids, cache, lengths)
    return log_probs[:, None], cache


@dataclass
class _Held:
    """Who answers, None before the prompts were read."""

    answering: _Reader | None = None


@dataclass
class _Readers:
    """How far the inner LM has read, None where no row is its own, and the LM of the open rows."""

    inner: _Reader | None
    opened: _Reader | None = None
