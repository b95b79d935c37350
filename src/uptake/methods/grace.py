"""GRACE: a codebook at one layer answers prompts near an edit with its value (Hartvigsen et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from uptake.adaptation.editing.codebook import Codebook
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.fact_values import Fact, ValueSearch
from uptake.lm.feed_forward import LinearPlace, down_projection, layer_at
from uptake.lm.gated import Asked, Gated
from uptake.lm.replaced_output import ReplacedOutput, inputs_at
from uptake.lm.wrappers import Routed
from uptake.methods.contract.editor import facts_in, only_causal, written_in
from uptake.methods.contract.method import (
    Context,
    Evidence,
    Method,
    MethodSpec,
    State,
    charged_by_row,
    same_base,
)


@dataclass(frozen=True, kw_only=True)
class GraceState(State):
    """Of every edit, by the passage's id and in the order made: key [in], value [out], and its target."""

    with_processor: ClassVar[frozenset[str]] = frozenset({"keys", "values"})

    keys: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def codebook(self, radius: float) -> Codebook:
        """Return the codebook that these edits make one after another."""
        edits = ((int(name), key, self.labels[name]) for name, key in self.keys.items())
        return Codebook.of(edits, radius)


class Keyed(Gated):
    """Row i answers prompts near an edit of states[i] with the edit's value, any other as the base does."""

    def __init__(
        self, inner: Causal, place: LinearPlace, states: Sequence[GraceState], radius: float
    ) -> None:
        super().__init__(inner)
        self._base, self._place, self._radius = inner, place, radius
        self.states, self.rows = list(states), len(states)
        self._books = [state.codebook(radius) for state in states]

    def at(self, rows: Sequence[int]) -> LM:
        return Keyed(self._base, self._place, [self.states[row] for row in rows], self._radius)

    def choose(self, asked: Sequence[Asked]) -> LM:
        some = [one for one in asked if self._books[one.row].entries]
        if not some:
            return self.inner
        keys = inputs_at(self._base, self._place, [one.prompt for one in some])
        values: dict[int, Tensor] = {}
        for one, key in zip(some, keys, strict=True):
            found = self._books[one.row].hit(key[-1].cpu())
            if found is not None:
                values[one.row] = self.states[one.row].values[str(found.edit)]
        if not values:
            return self.inner
        prompts, chosen = [one.prompt for one in asked], [values.get(one.row) for one in asked]
        return ReplacedOutput(self._base, self._place, prompts, chosen)


@dataclass(frozen=True)
class Grace(Method[GraceState]):
    """Keys are what enters a down projection at the prompt's last token; radii follow the three rules.

    The value takes the place of what leaves it there, and was found by Adam, each edit by itself. Whether a
    prompt is near an edit is decided once, at its last token, and held. No subject is needed.
    """

    depth: float = 0.7
    radius: float = 1.0  # of a new entry
    values: ValueSearch = field(
        default_factory=lambda: ValueSearch(50, 0.5, kl=0.0, decay=0.0, limit=20.0, contexts=1)
    )

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise BadInput(f"radius {self.radius}: use a positive number")

    @classmethod
    def example(cls) -> Self:
        few = ValueSearch(steps=5, kl=0.0, decay=0.0, limit=20.0, contexts=1)
        return cls(depth=0, radius=1e-3, values=few)

    def init(self, lm: LM) -> GraceState:
        self._place(only_causal(lm, "GRACE"))
        return GraceState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[GraceState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[GraceState]:
        causal = only_causal(lm, "GRACE")

        def learn(row: int, state: GraceState, read: Evidence) -> GraceState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[GraceState], lm: LM) -> LM:
        same_base(states, lm)
        causal = only_causal(lm, "GRACE")
        if not any(state.keys for state in states):
            return Routed([lm] * len(states))
        return Keyed(causal, self._place(causal), states, self.radius)

    def forget(
        self, state: GraceState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> GraceState:
        gone = {str(each) for each in ids}

        def left(known: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value for name, value in known.items() if name not in gone}

        labels = {name: label for name, label in state.labels.items() if name not in gone}
        return replace(
            state,
            history=state.history_without(ids),
            keys=left(state.keys),
            values=left(state.values),
            labels=labels,
        )

    def _adapt(
        self, row: int, state: GraceState, lm: Causal, evidence: Evidence, context: Context
    ) -> GraceState:
        place = self._place(lm)
        keys, values, labels = dict(state.keys), dict(state.values), dict(state.labels)
        facts = [
            (passage, Fact(fact.prompt, fact.target, len(fact.prompt)))
            for passage, fact in facts_in(row, evidence, [int(name) for name in keys], context)
        ]
        targets = {passage.id: fact.target for passage, fact in facts}
        for passage, found in written_in(row, lm, place, facts, self.values, context):
            name = str(passage.id)
            keys[name], values[name] = found.key.cpu(), (found.output + found.change).cpu()
            labels[name] = targets[passage.id]
        if not evidence.passages:
            return state
        return state.after(evidence, context, keys=keys, values=values, labels=labels)

    def _place(self, lm: Causal) -> LinearPlace:
        return down_projection(lm.module, layer_at(lm.module, self.depth))


spec = MethodSpec(Grace())
