"""An LM with a gate before it: which of two models answers a prompt is decided once, and held to the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.examples import Example
from uptake.lm.rows import left_padded
from uptake.lm.wrappers import Prefixed, Routed

# Whether a prompt is in scope: None where it is not, else the tokens to read before it, which may be none.
Gate = Callable[[str], tuple[int, ...] | None]
_Call = Callable[[LM, Sequence[Example]], list[Tensor]]


class Gated(Wrapper):
    """Row i is answered by `opened` where `gates[i]` opens for its prompt, and else by the inner LM.

    Where a gate is closed the inner LM is asked in the very batch it would be asked in by itself, so that its
    bits are the same. A prompt is what stands before a text that is scored or goes on; a text that nothing
    stands before has an empty one. Without `opened` the inner LM answers both, after what the gate lets in.
    """

    def __init__(self, inner: LM, gates: Sequence[Gate], opened: LM | None = None) -> None:
        super().__init__(inner)
        self.gates, self.opened, self.rows = list(gates), opened, len(gates)
        self.has_step = inner.has_step and (opened is None or opened.has_step)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.gates, self.opened)

    def at(self, rows: Sequence[int]) -> LM:
        opened = None if self.opened is None else self.opened.at(rows)
        return Gated(self.inner.at(rows), [self.gates[row] for row in rows], opened)

    def overlay(self, delta: Delta) -> LM:
        opened = None if self.opened is None else self.opened.overlay(delta)
        return Gated(self.inner.overlay(delta), self.gates, opened)

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        if self.opened is not None:
            raise BadInput("a gate between two models has no one set of weights: train each by itself")
        return super().trainable_copy(trainable, start, generator)

    def max_input_tokens(self, row: int) -> int:
        own = self.inner.max_input_tokens(row)
        return own if self.opened is None else min(own, self.opened.max_input_tokens(row))

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answered(examples, lambda lm, some: lm.predictions(some))

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        return self._answered(examples, lambda lm, some: lm.token_log_probs(some))

    def _answered(self, examples: Sequence[Example], call: _Call) -> list[Tensor]:
        self._check_rows(len(examples))
        let_in = [gate(self._text(each.context)) for gate, each in zip(self.gates, examples, strict=True)]
        rows = [row for row, tokens in enumerate(let_in) if tokens is not None]
        found: list[Tensor] = (
            call(self.inner, examples) if len(rows) < len(examples) else [torch.empty(0)] * len(rows)
        )
        if rows:
            some = [examples[row] for row in rows]
            lm = self._open(rows, [let_in[row] or () for row in rows], [len(each.inputs) for each in some])
            for row, log_probs in zip(rows, call(lm, some), strict=True):
                found[row] = log_probs
        return found

    def start(self) -> Cache:
        return _Held()

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        """As `LM.step`; the prompt is what is read first into a cache, and empty where there is none."""
        self._check_rows(len(ids))
        held = _Held() if cache is None else cache
        if held.let_in is None:
            rows = [
                row[len(row) - n :].tolist()
                for row, n in zip(ids, lengths or [ids.shape[1]] * len(ids), strict=True)
            ]
            prompts = [[]] * len(rows) if cache is None else rows
            held = _Held([gate(self._text(own)) for gate, own in zip(self.gates, prompts, strict=True)])
            if cache is not None:
                held = replace(held, inner=_Reader(self.inner) if len(held.rows) < len(rows) else None)
        log_probs = None
        if len(held.rows) < len(ids):
            log_probs = (
                self.inner.step(ids, None, lengths)[0]
                if held.inner is None
                else held.inner.step(ids, lengths)
            )
        if held.rows:
            found = self._step_open(held, ids, lengths, cache is not None)
            if log_probs is None:
                log_probs = found
            else:
                # What comes out of a model is its own; the rows that are open take its place in a copy.
                log_probs = log_probs.clone()
                log_probs[held.rows] = found
        assert log_probs is not None
        return log_probs, None if cache is None else held

    def _step_open(self, held: "_Held", ids: Tensor, lengths: Sequence[int] | None, keeps: bool) -> Tensor:
        rows, own = held.rows, ids[held.rows]
        known = None if lengths is None else [lengths[row] for row in rows]
        sizes = [own.shape[1]] * len(rows) if known is None else known
        let_in = [(held.let_in or [])[row] or () for row in rows]
        if not keeps:
            return self._open(rows, let_in, sizes).step(own, None, known)[0]
        if held.opened is None:
            held.opened = _Reader(self._open(rows, let_in, sizes))
        elif held.opened.full:
            # The window is full: what was let in gives way to the text itself.
            texts = [[*text, *row.tolist()] for text, row in zip(held.opened.texts, own, strict=True)]
            held.opened = _Reader(self._open(rows, let_in, [2 * len(text) for text in texts]))
            padded, known = left_padded(texts, ids.device)
            return held.opened.step(padded, known)[:, -1:]
        return held.opened.step(own, known)

    def _open(self, rows: Sequence[int], let_in: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> LM:
        """Return the LM of these rows behind what is let in, as far as it fits beside `sizes` tokens."""
        lm = self.inner.at(rows)
        if self.opened is not None:
            # Each by itself: which others are open is no matter of a row's bits.
            lm = Routed([self.opened.at([row]) for row in rows])
        prefixes = []
        for row, (tokens, size) in enumerate(zip(let_in, sizes, strict=True)):
            free = lm.max_input_tokens(row) - size
            kept = tokens[max(0, len(tokens) - max(0, free - 1)) :]
            prefixes.append([lm.tokenizer.opening, *kept] if kept else [])
        return Prefixed(lm, prefixes) if any(prefixes) else lm

    def _text(self, ids: Sequence[int]) -> str:
        own = list(ids)
        return self.tokenizer.decode(own[1:] if own[:1] == [self.tokenizer.opening] else own)


class _Reader:
    """One LM's way through a batch of texts, with a cache or without; it knows what it has read."""

    def __init__(self, lm: LM) -> None:
        self.lm, self.cache = lm, lm.start()
        self.texts: list[list[int]] = []

    @property
    def full(self) -> bool:
        """Whether one more token would not fit."""
        return any(len(text) >= self.lm.max_input_tokens(row) for row, text in enumerate(self.texts))

    def step(self, ids: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """Return the log-probabilities after `ids`, which go on from what was read before."""
        time = ids.shape[1]
        new = [row[time - n :].tolist() for row, n in zip(ids, lengths or [time] * len(ids), strict=True)]
        self.texts = [[*old, *more] for old, more in zip(self.texts or [[] for _ in new], new, strict=True)]
        if self.cache is not None:
            log_probs, self.cache = self.lm.step(ids, self.cache, lengths)
            return log_probs
        whole, known = left_padded(self.texts, ids.device)
        return self.lm.step(whole, None, known)[0][:, -time:]


@dataclass
class _Held:
    """What was decided for each row once its prompt was read, and how far both models have read."""

    let_in: list[tuple[int, ...] | None] | None = None
    inner: _Reader | None = None
    opened: _Reader | None = None

    @property
    def rows(self) -> list[int]:
        """The rows that are open."""
        return [row for row, tokens in enumerate(self.let_in or ()) if tokens is not None]
