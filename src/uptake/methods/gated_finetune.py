"""Makes edits by training and shows them to prompts about one alone; any other prompt sees the base.

The gate of `gated-memory` before any editor: what training does to other text never shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.gated import Gated
from uptake.methods.breadth_first import BreadthFirst
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Method, MethodSpec, State
from uptake.methods.gated_memory import check_template, gates
from uptake.methods.gated_memory.scope import Always, Scope, Words


@dataclass(frozen=True)
class GatedFinetune(MethodWrapper[Any]):
    """`editor` makes the edits; prompts in `scope` of one see what it made, all others the base, bit for bit.

    With `k` the nearest edits stand before the prompt as well, each as `template` writes it. There is no KL
    term by default (`editor.stay`): the gate keeps other text as it is.
    """

    editor: Method[Any] = field(default_factory=lambda: BreadthFirst(stay=0.0))
    scope: Scope = field(default_factory=Words)
    k: int = 0
    template: str = "{prompt}{target}\n\n"

    def __post_init__(self) -> None:
        if self.k < 0:
            raise BadInput(f"k {self.k}: use 0 or more edits")
        check_template(self.template)

    @property
    def wrapped(self) -> Method[Any]:
        return self.editor

    @classmethod
    def example(cls) -> Self:
        return cls(BreadthFirst.example(), Always())

    def adapted(self, states: Sequence[State], lm: LM) -> LM:
        opened = self.editor.adapted(states, lm)
        if all(not state.history for state in states):
            return opened
        return Gated(lm, gates(lm, self.scope, states, self.k, self.template), opened)

    def forget(self, state: Any, lm: LM, ids: Sequence[int], context: Context | None = None) -> Any:
        return self.editor.forget(state, lm, ids, context)


spec = MethodSpec(GatedFinetune())
