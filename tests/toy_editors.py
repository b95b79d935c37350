"""Toy editors that say what they were taught, to see whether an evaluation tells good ones from bad ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.examples import Example
from uptake.methods.contract.method import Context, Evidence, Method, State, same_length
from uptake.text.types import Passage

Says = Callable[[str], str | None]


class Answering(Wrapper):
    """Says `says(prompt)` after a prompt and then ends; where that is None it is the inner LM."""

    def __init__(self, inner: LM, says: Says) -> None:
        super().__init__(inner)
        self.says, self.rows = says, None

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.says)

    def at(self, rows: Sequence[int]) -> LM:
        return self

    def start(self) -> Cache:
        return {"inner": self.inner.start(), "left": None}

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        log_probs, inner = self.inner.step(ids, cache and cache["inner"], lengths)
        if cache is None:
            return log_probs, None
        left = cache["left"]
        if left is None:
            time = ids.shape[1]
            left = [
                self._answer(row[time - n :].tolist())
                for row, n in zip(ids, lengths or [time] * len(ids), strict=True)
            ]
        for row, tokens in enumerate(left):
            if tokens:
                log_probs[row, -1] = self._sure(log_probs[row, -1], tokens[0])
        return log_probs, {"inner": inner, "left": [tokens and tokens[1:] for tokens in left]}

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        found = [each.clone() for each in self.inner.predictions(examples)]
        for example, log_probs in zip(examples, found, strict=True):
            for place, token in enumerate((self._answer(list(example.context)) or [])[: len(log_probs)]):
                log_probs[place] = self._sure(log_probs[place], token)
        return found

    def _answer(self, ids: list[int]) -> list[int] | None:
        text = self.says(self.tokenizer.decode(ids[1:] if ids[0] == self.tokenizer.opening else ids))
        return None if text is None else [*self.tokenizer.encode(text)[0], self.tokenizer.end or 0]

    def _sure(self, like: Tensor, token: int) -> Tensor:
        sure = torch.full_like(like, -30.0)
        sure[token] = 0.0
        return sure


@dataclass(frozen=True, kw_only=True)
class Learnt(State):
    """Nothing but what was read."""


@dataclass(frozen=True)
class Honest(Method[Learnt]):
    """Says the target after each prompt that it knows: those of edits, and `aliases` of them."""

    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> Learnt:
        return Learnt(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[Learnt],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Learnt]:
        same_length(states, evidence)
        return [state.after(read, context) for state, read in zip(states, evidence, strict=True)]

    def adapted(self, states: Sequence[Learnt], lm: LM) -> LM:
        (state,) = states
        return Answering(lm, self.says(state.passages)) if state.passages else lm

    def says(self, edits: list[Passage]) -> Says:
        known = {edit.prompt: edit.text for edit in edits}
        return lambda prompt: known.get(self.aliases.get(prompt, prompt))


class ReturnsTheBase(Honest):
    """Claims to have learnt, and is the base."""

    def adapted(self, states: Sequence[Learnt], lm: LM) -> LM:
        return lm


class SaysItAlways(Honest):
    """Says the target of an edit after whatever is asked about its subject, and else some target."""

    def says(self, edits: list[Passage]) -> Says:
        def said(prompt: str) -> str:
            about = [edit.text for edit in edits if edit.meta["subject"] in prompt]
            return about[0] if about else edits[-1].text

        return said


class KnowsTheLast(Honest):
    """Forgets every edit with the next one: right only when it is asked right after each."""

    def says(self, edits: list[Passage]) -> Says:
        return super().says(edits[-1:])


class Fragile(Honest):
    """Breaks on every edit about a dog, and on a fish says that its loss is no number."""

    def adapt(
        self, states: Sequence[Any], lm: LM, evidence: Sequence[Evidence], *rest: Any, **more: Any
    ) -> Any:
        prompts = [passage.prompt for passage in evidence[0].passages]
        if any("dog" in prompt for prompt in prompts):
            raise RuntimeError("no dogs")
        if any("fish" in prompt for prompt in prompts):
            rest[0].ledger(0).stop("diverged", "the loss is nan")
            return list(states)
        return super().adapt(states, lm, evidence, *rest, **more)
