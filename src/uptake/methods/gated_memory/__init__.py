"""Remembers edits and reads the nearest before a prompt that is about one; other prompts see the base.

Editing without training, as IKE (Zheng et al. 2023, arXiv:2305.12740) and SERAC's memory (Mitchell et al.
2022, arXiv:2206.06520) do, behind a gate of words: which prompts are about an edit is decided once for
each, before anything is generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.gated import Asked, Gated, Ids, Opened
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.method import (
    Context,
    Evidence,
    MethodSpec,
    State,
    same_base,
    same_length,
)
from uptake.methods.gated_memory.scope import Always, Memory, Scope, Words
from uptake.methods.gated_memory.trained import Trained as Trained  # a scope is found once it is imported
from uptake.methods.gated_memory.vectors import Vectors as Vectors
from uptake.text.types import Passage

PROMPT, TARGET = "{prompt}", "{target}"


@dataclass(frozen=True, kw_only=True)
class MemoryState(State):
    """What was read is the memory."""


@dataclass(frozen=True)
class GatedMemory(FrozenModelMethod[MemoryState]):
    """Before a prompt in `scope` of some edits stand the `k` nearest of them, the nearest next to it.

    Each as `template` writes it. Where no edit is in scope the base answers, bit for bit.
    """

    scope: Scope = field(default_factory=Words)
    k: int = 1
    template: str = "{prompt}{target}\n\n"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BadInput(f"k {self.k}: use 1 or more edits")
        check_template(self.template)

    @classmethod
    def example(cls) -> Self:
        return cls(Always())

    def init(self, lm: LM) -> MemoryState:
        return MemoryState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[MemoryState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[MemoryState]:
        same_length(states, evidence)
        return [
            state.after(read, context) if read.passages else state
            for state, read in zip(states, evidence, strict=True)
        ]

    def around(self, states: Sequence[MemoryState], lm: LM, base: LM) -> LM:
        same_base(states, base)
        memories = [self.scope.memory(state.passages, base) for state in states]
        return NearestBefore(lm, memories, self.k, self.template)


class NearestBefore(Gated):
    """Row i reads before a prompt the k nearest edits of `memories[i]` that the prompt is about."""

    def __init__(self, inner: LM, memories: Sequence[Memory], k: int, template: str) -> None:
        super().__init__(inner)
        self.memories, self.rows = list(memories), len(memories)
        self._k, self._template = k, template

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.memories, self._k, self._template)

    def at(self, rows: Sequence[int]) -> LM:
        some = [self.memories[row] for row in rows]
        return NearestBefore(self.inner.at(rows), some, self._k, self._template)

    def choose(self, asked: Sequence[Asked]) -> LM:
        about = [self.memories[one.row].find(one.text(self.tokenizer), self._k) for one in asked]
        if not any(about):
            return self.inner
        before = [written_out(self, edits, self._template) if edits else None for edits in about]
        return Opened(self.inner, before)


def written_out(lm: LM, edits: Sequence[Passage], template: str) -> Ids:
    """Return the tokens of edits as a template writes them before a prompt, the first next to it."""
    return tuple(lm.tokenizer.encode("".join(written(edit, template) for edit in reversed(edits)))[0])


def written(edit: Passage, template: str) -> str:
    """Return an edit as a template writes it before a prompt."""
    return template.replace(PROMPT, edit.prompt).replace(TARGET, edit.text)


def check_template(template: str) -> None:
    """Raise BadInput for a template that does not hold both parts of an edit."""
    if PROMPT not in template or TARGET not in template:
        raise BadInput(f"template {template!r}: write {PROMPT} and {TARGET} where those of the edit go")


spec = MethodSpec(GatedMemory())
