"""Shows a prompt what an editor made of the edits it is about, and of no other; else the base answers.

SERAC's gate (Mitchell et al. 2022, arXiv 2206.06520) before any editor that can forget: a thousand edits do
not disturb each other, for no prompt sees more than the few that it is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.gated import Gate, Gated
from uptake.lm.key_statistics import OrdinaryText
from uptake.lm.scoped import Asked, Scoped
from uptake.lm.wrappers import Routed
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Method, MethodSpec, State, same_base
from uptake.methods.gated_memory import check_template, written
from uptake.methods.gated_memory.scope import Always, Memory, Scope, Words
from uptake.methods.memit import Memit
from uptake.text.types import Passage


class AboutOne(Scoped):
    """Row i answers a prompt from states[i] with all edits forgotten but those the prompt is about.

    `shown` of them are written before the prompt as well, as `template` says.
    """

    def __init__(
        self,
        inner: LM,
        method: Method[Any],
        states: Sequence[State],
        memories: Sequence[Memory],
        k: int,
        shown: int = 0,
        template: str = "",
    ) -> None:
        super().__init__(inner)
        self._method, self._k, self._shown, self._template = method, k, shown, template
        self.states, self.memories, self.rows = list(states), list(memories), len(states)

    def at(self, rows: Sequence[int]) -> LM:
        some = [self.states[row] for row in rows], [self.memories[row] for row in rows]
        return AboutOne(self.inner, self._method, *some, self._k, self._shown, self._template)

    def choose(self, asked: Sequence[Asked]) -> LM:
        about = [self._about(one) for one in asked]
        if not any(about):
            return self.inner
        # Each by itself: which other prompts are in scope changes no bit of a row.
        parts = [
            self._method.adapted([self._only(one.row, {edit.id for edit in edits})], self.inner)
            if edits
            else self.inner
            for one, edits in zip(asked, about, strict=True)
        ]
        return Gated(self.inner, [self._gate(edits) for edits in about], Routed(parts))

    def _gate(self, edits: Sequence[Passage]) -> Gate:
        if not edits:
            return lambda prompt: None
        nearest = reversed(edits[: self._shown])
        text = "".join(written(edit, self._template) for edit in nearest)
        tokens = tuple(self.tokenizer.encode(text)[0])
        return lambda prompt: tokens

    def _about(self, one: Asked) -> list[Passage]:
        ids = list(one.prompt)
        text = self.tokenizer.decode(ids[1:] if ids[:1] == [self.tokenizer.opening] else ids)
        return self.memories[one.row].find(text, self._k)

    def _only(self, row: int, ids: set[int]) -> State:
        state = self.states[row]
        others = [passage.id for passage in state.passages if passage.id not in ids]
        kept: State = self._method.forget(state, self.inner, others)
        return kept


@dataclass(frozen=True)
class GatedEditor(MethodWrapper[Any]):
    """`editor` makes the edits; a prompt in `scope` of some sees the `k` nearest of them, and no other edit.

    All others see the base, bit for bit. What a prompt is about is decided once, before anything is said.
    The editor should forget cheaply, as closed forms do: everything else is forgotten for each prompt. The
    default one leaves no ordinary text alone, for no other text sees it: the key of a fact then answers in
    other sentences as well. `shown` of the `k` also stand before the prompt, each as `template` writes it.
    """

    editor: Method[Any] = field(default_factory=lambda: Memit(strength=0.1, ordinary=OrdinaryText(tokens=0)))
    scope: Scope = field(default_factory=Words)
    k: int = 1
    shown: int = 0
    template: str = "{prompt}{target}\n\n"

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.shown <= self.k:
            raise BadInput(f"k {self.k}, shown {self.shown}: use 1 or more edits, and 0 to k of them shown")
        check_template(self.template)

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
        return AboutOne(lm, self.editor, states, memories, self.k, self.shown, self.template)

    def forget(self, state: Any, lm: LM, ids: Sequence[int], context: Context | None = None) -> Any:
        return self.editor.forget(state, lm, ids, context)


spec = MethodSpec(GatedEditor())
