"""UltraEdit: a closed-form step for many edits at once, from one backward pass (Gu et al. 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta, Dense, LowRank, Part
from uptake.adaptation.editing.moments import Moments
from uptake.adaptation.editing.ultra import Turn
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, encode
from uptake.lm.feed_forward import LinearPlace, entering_projections, layer_at
from uptake.lm.gradient_factors import Factors, gradient_factors
from uptake.lm.side_by_side import side_by_side
from uptake.methods.contract.editor import facts_in, note, only_causal
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, State, charged_by_row

OWNER = "ultraedit"


@dataclass(frozen=True, kw_only=True)
class UltraState(State):
    """The change of the weights, and the moments of [input; gradient] at each layer, over all turns."""

    with_processor: ClassVar[frozenset[str]] = frozenset({"moments"})

    delta: Delta
    moments: dict[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class UltraEdit(Method[UltraState]):
    """Turns of at most `turn` edits, each a step on the layers that lead into late feed-forwards.

    At the tokens that predict an answer the layer's input k and output gradient v are standardised by
    moments over all turns so far; Δᵀ = (KᵀK + I)⁻¹ Kᵀ C with c = -η |k̂|² v̂, η being `learning_rate`. The
    layers are those from relative depth `first` to `last`. No subject is needed. `together` edits share
    a backward pass: quicker on a GPU. Turns build on each other, so their order matters; to forget is to make
    the others again.
    """

    trains_weights_only: ClassVar[bool] = True

    learning_rate: float = 1e-4
    first: float = 0.62
    last: float = 0.9
    turn: int = 100
    together: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf") or min(self.turn, self.together) < 1:
            raise BadInput(
                f"learning rate {self.learning_rate}, turn {self.turn}, together {self.together}: use "
                "positive numbers"
            )
        if not 0 <= self.first <= self.last <= 1:
            raise BadInput(
                f"layers from {self.first} to {self.last}: use depths from 0 to 1, the lower first"
            )

    @property
    def incremental(self) -> bool:
        return False

    @classmethod
    def example(cls) -> Self:
        return cls(learning_rate=1e-3, first=0, last=1)

    def init(self, lm: LM) -> UltraState:
        self._places(only_causal(lm, "UltraEdit"))
        return UltraState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[UltraState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[UltraState]:
        causal = only_causal(lm, "UltraEdit")

        def learn(row: int, state: UltraState, read: Evidence) -> UltraState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[UltraState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def _adapt(
        self, row: int, state: UltraState, lm: Causal, evidence: Evidence, context: Context
    ) -> UltraState:
        ledger, made = context.ledger(row), state
        examples = []
        for passage, fact in facts_in(row, evidence, (), context):
            example = encode(lm.tokenizer, fact.prompt, fact.target)
            if not example.target or len(example.inputs) > lm.window:
                size = f"{len(example.inputs):,} tokens, where the model reads {lm.window:,}"
                note(context, row, passage, BadInput(f"{size}: give a shorter prompt, and a target"))
                continue
            examples.append(example)
        for start in range(0, len(examples), self.turn):
            some = examples[start : start + self.turn]
            tokens = sum(len(example.target) for example in some)
            if not context.affords(row, tokens):
                break
            made = self._turn(made, lm, some)
            if not all(torch.isfinite(value).all() for value in made.delta.differences.values()):
                ledger.stop("diverged", "a turn of edits is not finite: use a smaller learning rate")
                return state
            ledger.tokens_trained += tokens
            ledger.steps += 1
        return made.after(evidence, context) if evidence.passages else state

    def _turn(self, state: UltraState, lm: Causal, examples: Sequence[Example]) -> UltraState:
        """Return the state after a closed-form step on each layer, by gradients of the model as it is now."""
        places = self._places(lm)
        now = lm.overlay(state.delta)
        found: list[list[Factors]] = [[] for _ in places]
        for start in range(0, len(examples), self.together):
            some = examples[start : start + self.together]
            _, each = gradient_factors(now, places, partial(_loss, some))
            for kept, factors in zip(found, each, strict=True):
                for row, example in enumerate(some):
                    answer = slice(len(example.inputs) - len(example.target), len(example.inputs))
                    kept.append(Factors(factors.inputs[row, answer], factors.gradients[row, answer]))
        moments, parts = dict(state.moments), {}
        before = state.delta.parts_of(Part)
        for place, each in zip(places, found, strict=True):
            turn = Turn(
                torch.cat([factors.inputs for factors in each]).double().cpu(),
                torch.cat([factors.gradients for factors in each]).double().cpu(),
            )
            known = moments.get(place.path, Moments.empty(place.width_in + place.width_out))
            moments[place.path] = known.merged(Moments.of(turn.joined))
            step = turn.dual(turn.wanted(moments[place.path], self.learning_rate))
            parts[place.weight] = _joined(place, before.get(place.weight), step)
        return replace(state, delta=Delta.of(lm.fingerprint, parts, OWNER), moments=moments)

    def _places(self, lm: Causal) -> list[LinearPlace]:
        first, last = (layer_at(lm.module, depth) for depth in (self.first, self.last))
        return [place for layer in range(first, last + 1) for place in entering_projections(lm.module, layer)]


def _loss(examples: Sequence[Example], lm: LM) -> Tensor:
    """Return the sum of the examples' mean losses: no example's gradients go by another's."""
    return -torch.stack([each.mean() for each in lm.token_log_probs(examples)]).sum()


def _joined(place: LinearPlace, before: Part | None, step: LowRank) -> Part:
    """Return the change before and a step more: low rank while that is the smaller way to hold it."""
    more = LowRank(step.up.float(), step.down.float(), step.scale, place.transposed)
    if isinstance(before, Dense):
        return before.plus(Dense(more.difference()))
    whole = before.plus(more) if isinstance(before, LowRank) else more
    rank, sides = whole.up.shape[1], (place.width_in, place.width_out)
    return whole if rank * sum(sides) <= sides[0] * sides[1] else Dense(whole.difference())


spec = MethodSpec(UltraEdit())
