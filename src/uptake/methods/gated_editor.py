"""Shows a prompt what an editor made of the edits it is about, and of no other; else the base answers.

SERAC's gate (Mitchell et al. 2022, arXiv 2206.06520) before any editor that can forget: a thousand edits do
not disturb each other, for no prompt sees more than the few that it is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.gated import Gated
from uptake.lm.key_statistics import OrdinaryText
from uptake.lm.scoped import Asked, Scoped
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Method, MethodSpec, State, same_base
from uptake.methods.gated_memory.scope import Always, Memory, Scope, Words
from uptake.methods.memit import Memit


class AboutOne(Scoped):
    """Row i answers a prompt from states[i] with all edits forgotten but those the prompt is about."""

    def __init__(
        self, inner: LM, method: Method[Any], states: Sequence[State], memories: Sequence[Memory], k: int
    ) -> None:
        super().__init__(inner)
        self._method, self._k = method, k
        self.states, self.memories, self.rows = list(states), list(memories), len(states)

    def at(self, rows: Sequence[int]) -> LM:
        some = [self.states[row] for row in rows], [self.memories[row] for row in rows]
        return AboutOne(self.inner, self._method, *some, self._k)

    def choose(self, asked: Sequence[Asked]) -> LM:
        about = [self._about(one) for one in asked]
        if not any(about):
            return self.inner
        states = [self._only(one.row, ids) for one, ids in zip(asked, about, strict=True)]
        return Gated(
            self.inner, [_open if ids else _shut for ids in about], self._method.adapted(states, self.inner)
        )

    def _about(self, one: Asked) -> set[int]:
        ids = list(one.prompt)
        text = self.tokenizer.decode(ids[1:] if ids[:1] == [self.tokenizer.opening] else ids)
        return {edit.id for edit in self.memories[one.row].find(text, self._k)}

    def _only(self, row: int, ids: set[int]) -> State:
        state = self.states[row]
        others = [passage.id for passage in state.passages if passage.id not in ids]
        kept: State = self._method.forget(state, self.inner, others)
        return kept


def _open(prompt: str) -> tuple[int, ...] | None:
    return ()


def _shut(prompt: str) -> tuple[int, ...] | None:
    return None


@dataclass(frozen=True)
class GatedEditor(MethodWrapper[Any]):
    """`editor` makes the edits; a prompt in `scope` of some sees the `k` nearest of them, and no other edit.

    All others see the base, bit for bit. What a prompt is about is decided once, before anything is said.
    The editor should forget cheaply, as closed forms do: everything else is forgotten for each prompt. The
    default one leaves no ordinary text alone, for no other text sees it: the key of a fact then answers in
    other sentences as well.
    """

    editor: Method[Any] = field(default_factory=lambda: Memit(strength=0.1, ordinary=OrdinaryText(tokens=0)))
    scope: Scope = field(default_factory=Words)
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BadInput(f"k {self.k}: use 1 or more edits")

    @property
    def wrapped(self) -> Method[Any]:
        return self.editor

    @classmethod
    def example(cls) -> Self:
        return cls(Memit.example(), Always())

    def adapted(self, states: Sequence[State], lm: LM) -> LM:
        same_base(states, lm)
        if all(not state.history for state in states):
            return self.editor.adapted(states, lm)
        memories = [self.scope.memory(state.passages) for state in states]
        return AboutOne(lm, self.editor, states, memories, self.k)

    def forget(self, state: Any, lm: LM, ids: Sequence[int], context: Context | None = None) -> Any:
        return self.editor.forget(state, lm, ids, context)


spec = MethodSpec(GatedEditor())
