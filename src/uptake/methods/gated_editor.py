"""Shows a prompt what an editor made of the edits it is about, and of no other; else the base answers.

SERAC's gate (Mitchell et al. 2022, arXiv 2206.06520) before any editor that can forget: a thousand edits do
not disturb each other, for no prompt sees more than the few that it is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.gated import Asked, Gated, Ids, Opened
from uptake.lm.key_statistics import OrdinaryText
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Method, MethodSpec, State, same_base
from uptake.methods.gated_memory import check_template, written_out
from uptake.methods.gated_memory.scope import Always, Memory, Scope, Words
from uptake.methods.memit import Memit
from uptake.text.types import Passage, Source


class AboutOne(Gated):
    """Row i answers a prompt from states[i] with all edits forgotten but the k that the prompt is about.

    With k = 0 nothing is forgotten. `shown` of them also stand before the prompt, as `template` says.
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
        # Rows of one state share what is made of it, by the state and the edits that are seen.
        self._left: dict[tuple[int, Ids], State] = {}
        self._lms: dict[tuple[int, ...], LM] = {}
        self._blank = method.init(inner)

    def at(self, rows: Sequence[int]) -> LM:
        some = [self.states[row] for row in rows], [self.memories[row] for row in rows]
        made = AboutOne(self.inner, self._method, *some, self._k, self._shown, self._template)
        made._left, made._lms, made._blank = self._left, self._lms, self._blank
        return made

    def max_input_tokens(self, row: int) -> int:
        own = self.inner.max_input_tokens(row)
        if not self._method.takes_input_tokens:
            return own
        return min(own, self._made([self.states[row]]).max_input_tokens(0))

    def choose(self, asked: Sequence[Asked]) -> LM:
        about = [self._about(one) for one in asked]
        if not any(about):
            return self.inner
        before = [
            written_out(self, edits[: self._shown], self._template) if edits else None for edits in about
        ]
        states = [
            self._seen(self.states[one.row], edits) if edits else None
            for one, edits in zip(asked, about, strict=True)
        ]
        # States hold tensors: they are told apart by what they are, not by what they hold.
        different = list({id(state): state for state in states if state is not None}.values())
        if len(asked) > 1 and any(state is not self.states[0] for state in (*self.states, *different)):
            # Side by side with one that sees no edit: how many others there are is no matter of a row's bits.
            different.append(self._blank)
        places = {id(state): place for place, state in enumerate(different)}
        seen = [None if state is None else places[id(state)] for state in states]
        return Opened(self.inner, before, self._made(different), seen)

    def _about(self, one: Asked) -> list[Passage]:
        return self.memories[one.row].find(one.text(self.tokenizer), self._k or max(1, self._shown))

    def _seen(self, state: State, edits: Sequence[Passage]) -> State:
        """Return a state with all edits forgotten but these; with k = 0 as it is."""
        if not self._k:
            return state
        ids = tuple(sorted({edit.id for edit in edits}))
        if (id(state), ids) not in self._left:
            others = [passage.id for passage in state.passages if passage.id not in ids]
            self._left[id(state), ids] = self._method.forget(state, self.inner, others)
        return self._left[id(state), ids]

    def _made(self, states: Sequence[State]) -> LM:
        """Return the LM whose rows these states make; the latest are kept."""
        key = tuple(id(state) for state in states)
        if key not in self._lms:
            self._lms.clear()
            self._lms[key] = self._method.adapted(states, self.inner)
        return self._lms[key]


@dataclass(frozen=True)
class GatedEditor(MethodWrapper[Any]):
    """`editor` makes the edits; a prompt in `scope` of some sees the `k` nearest of them, and no other edit.

    All others see the base, bit for bit. What a prompt is about is decided once, before anything is said.
    The editor should forget cheaply, as closed forms do: everything else is forgotten for each prompt. One
    that does not shows all its edits to a prompt about any, with `k=0`. The default one leaves no ordinary
    text alone, for no other text sees it: the key of a fact then answers in other sentences as well. `shown`
    of the edits a prompt is about also stand before it, each as `template` writes it.
    """

    editor: Method[Any] = field(default_factory=lambda: Memit(strength=0.1, ordinary=OrdinaryText(tokens=0)))
    scope: Scope = field(default_factory=Words)
    k: int = 1
    shown: int = 1
    template: str = "{prompt}{target}\n\n"

    def __post_init__(self) -> None:
        if self.k < 0 or self.shown < 0 or 0 < self.k < self.shown:
            raise BadInput(
                f"k {self.k}, shown {self.shown}: use 1 or more edits (0: all), and 0 to k of them shown"
            )
        check_template(self.template)

    @property
    def wrapped(self) -> Method[Any]:
        return self.editor

    @classmethod
    def example(cls) -> Self:
        # What stands before a row makes it longer: its bits are those of a batch of that length.
        return cls(Memit.example(), Always(), shown=0)

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        self.scope.memory([], lm)

    def adapted(self, states: Sequence[State], lm: LM) -> LM:
        same_base(states, lm)
        if all(not state.history for state in states):
            return self.editor.adapted(states, lm)
        memories = [self.scope.memory(state.passages, lm) for state in states]
        return AboutOne(lm, self.editor, states, memories, self.k, self.shown, self.template)

    def forget(self, state: Any, lm: LM, ids: Sequence[int], context: Context | None = None) -> Any:
        return self.editor.forget(state, lm, ids, context)


spec = MethodSpec(GatedEditor())
