"""WISE: edits in copies of one late weight, which answer the prompts that move them (Wang et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import relu

from uptake.adaptation.delta import Delta
from uptake.adaptation.editing.shards import random_mask, ties_merge
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.changed_place import ChangedPlace, PlacedText
from uptake.lm.fact_values import Fact
from uptake.lm.feed_forward import LinearPlace, down_projection, layer_at
from uptake.lm.gated import Asked, Gated, Opened
from uptake.lm.key_statistics import OrdinaryText
from uptake.lm.replaced_output import inputs_at
from uptake.lm.wrappers import Routed
from uptake.methods.contract.editor import facts_in, note, only_causal
from uptake.methods.contract.method import (
    Context,
    Evidence,
    Method,
    MethodSpec,
    State,
    charged_by_row,
    same_base,
)

OWNER = "wise"


@dataclass(frozen=True, kw_only=True)
class WiseState(State):
    """Copies of a weight by name, as differences [out, in]; of each the least activation that an edit had.

    `filled` is how many edits went into the newest copy, `begun` how many copies were begun, and `drawn` the
    seed by which it was drawn where the newest one may change: the same for all its edits, whenever made.
    """

    with_processor: ClassVar[frozenset[str]] = frozenset({"copies"})

    copies: dict[str, Tensor] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    filled: int = 0
    begun: int = 0
    drawn: int = 0


class Routing(Gated):
    """Row i is answered by the copy of states[i] that its prompt moves most, or by the base."""

    def __init__(self, inner: Causal, place: LinearPlace, states: Sequence[WiseState], ratio: float) -> None:
        super().__init__(inner)
        self._base, self._place, self._ratio = inner, place, ratio
        self.states, self.rows = list(states), len(states)
        self._made: dict[int, LM] = {}  # by the copy: rows of one state share it

    def at(self, rows: Sequence[int]) -> LM:
        some = Routing(self._base, self._place, [self.states[row] for row in rows], self._ratio)
        some._made = self._made
        return some

    def choose(self, asked: Sequence[Asked]) -> LM:
        if not any(self.states[one.row].copies for one in asked):
            return self.inner
        inputs = inputs_at(self._base, self._place, [one.prompt for one in asked])
        chosen = [self._chosen(one.row, own) for one, own in zip(asked, inputs, strict=True)]
        if not any(chosen):
            return self.inner
        some = [part for part in chosen if part is not None]
        places = iter(range(len(some)))
        seen = [None if part is None else next(places) for part in chosen]
        return Opened(self.inner, [None if part is None else () for part in chosen], Routed(some), seen)

    def _chosen(self, row: int, inputs: Tensor) -> LM | None:
        state = self.states[row]
        moved = {name: activation(inputs[1:], copy) for name, copy in state.copies.items()}
        over = {name: size / state.floors[name] for name, size in moved.items() if state.floors[name] > 0}
        name = max(over, key=over.__getitem__, default="")
        if not name or not over[name] >= self._ratio:
            return None
        copy = state.copies[name]
        if id(copy) not in self._made:
            self._made[id(copy)] = self._base.overlay(_delta(self._base, self._place, copy))
        return self._made[id(copy)]


@dataclass(frozen=True)
class Wise(Method[WiseState]):
    """Each edit trains the newest copy of a late down projection, within a random share of its entries.

    A copy takes `copy_edits` edits, then another is begun; `merged` copies become one as TIES merges. An
    edit's loss is -log p(target) plus how far the activation, the mean length of what the copy adds over the
    prompt's tokens, is from at least `inside` on the edit, at most `outside` on ordinary text and `gap`
    apart, in units of the layer's ordinary output. A prompt goes to a copy whose activation is at least
    `ratio` times the least that any edit in it had; that is decided once a prompt and held.
    """

    depth: float = 0.85
    learning_rate: float = 1.0
    steps: int = 40
    share: float = 0.2
    limit: float = 1.0  # largest change of an entry
    copy_edits: int = 500
    merged: int = 2
    density: float = 1.0  # of what TIES keeps of each copy
    outside: float = 0.25
    inside: float = 1.0
    gap: float = 0.5
    ratio: float = 0.88
    enough: float = 0.05
    ordinary: OrdinaryText = field(default_factory=lambda: OrdinaryText(tokens=512))

    def __post_init__(self) -> None:
        if min(self.steps, self.copy_edits) < 1 or self.merged < 2:
            raise BadInput(
                f"steps {self.steps}, copy_edits {self.copy_edits}, merged {self.merged}: use 1, 1 and 2 or "
                "more"
            )
        for name in ("learning_rate", "limit", "share", "density", "ratio"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{name} {getattr(self, name)}: use a positive number")

    @classmethod
    def example(cls) -> Self:
        return cls(depth=1, learning_rate=5.0, steps=4, ordinary=OrdinaryText(tokens=64, length=32))

    def check(self, lm: LM, source: object = None) -> None:
        super().check(lm)
        self._ordinary(only_causal(lm, "WISE"))

    def init(self, lm: LM) -> WiseState:
        self._place(only_causal(lm, "WISE"))
        return WiseState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[WiseState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WiseState]:
        causal = only_causal(lm, "WISE")

        def learn(row: int, state: WiseState, read: Evidence) -> WiseState:
            return self._adapt(row, state, causal, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[WiseState], lm: LM) -> LM:
        same_base(states, lm)
        causal = only_causal(lm, "WISE")
        if not any(state.copies for state in states):
            return Routed([lm] * len(states))
        return Routing(causal, self._place(causal), states, self.ratio)

    def _adapt(
        self, row: int, state: WiseState, lm: Causal, evidence: Evidence, context: Context
    ) -> WiseState:
        ledger, made = context.ledger(row), state
        for passage, fact in facts_in(row, evidence, (), context):
            target = tuple(lm.tokenizer.encode(fact.target)[0])
            if not context.affords(row, len(target)):
                break
            try:
                made, steps = self._edit(made, lm, fact, target, context)
            except (BadInput, Diverged) as error:
                note(context, row, passage, error)
                continue
            ledger.tokens_trained += steps * len(target)
            ledger.steps += steps
        if not evidence.passages:
            return state
        return state.after(
            evidence,
            context,
            copies=made.copies,
            floors=made.floors,
            filled=made.filled,
            begun=made.begun,
            drawn=made.drawn,
        )

    def _edit(
        self, state: WiseState, lm: Causal, fact: Fact, target: tuple[int, ...], context: Context
    ) -> tuple[WiseState, int]:
        """Return the state after one edit, and how many steps it took."""
        opening, *prompt = lm.tokenizer.opened(fact.prompt)
        if not prompt or not target or 1 + len(prompt) + len(target) > lm.window:
            raise BadInput(
                f"a prompt of {len(prompt):,} and a target of {len(target):,} tokens, where the model reads "
                f"{lm.window:,}: give both, and a shorter prompt"
            )
        place, copies, floors = self._place(lm), dict(state.copies), dict(state.floors)
        filled, begun, drawn = state.filled, state.begun, state.drawn
        if not begun or filled >= self.copy_edits:
            filled, begun, drawn = 0, begun + 1, context.seed
        name, shape = f"copy {begun}", torch.Size((place.width_out, place.width_in))
        mask = random_mask(shape, self.share, Context(drawn).generator("wise", name)).to(lm.device)
        before = copies.get(name)
        weights = torch.zeros(shape, device=lm.device) if before is None else before.to(lm.device)
        text = PlacedText((opening,), (*prompt, *target[:-1]), len(target))
        run = ChangedPlace(lm, place, [text])
        weights, size, steps = self._trained(weights, mask, run, len(prompt), target, self._ordinary(lm))
        copies[name] = weights.cpu()
        floors[name] = min(floors.get(name, float("inf")), size)
        filled += 1
        if filled == self.copy_edits and len(copies) >= self.merged:
            copies = {name: ties_merge(list(copies.values()), self.density)}
            floors = {name: min(floors.values())}
        merged = replace(state, copies=copies, floors=floors, filled=filled, begun=begun, drawn=drawn)
        return merged, steps

    def _trained(
        self,
        weights: Tensor,
        mask: Tensor,
        run: ChangedPlace,
        prompt: int,
        target: Sequence[int],
        ordinary: tuple[Tensor, float],
    ) -> tuple[Tensor, float, int]:
        """Return the copy after an edit's steps, the edit's activation under it, and how many steps."""
        (inputs,), chosen = run.inputs, torch.tensor([*target], device=weights.device)[:, None]
        others, unit = ordinary
        taken = 0
        for taken in range(self.steps + 1):
            leaf = weights.detach().to(inputs).requires_grad_()
            (found,) = run.predictions((inputs @ leaf.T)[None])
            nll = -found.gather(-1, chosen).mean()
            inside, outside = (
                (rows @ leaf.T).norm(dim=-1).mean() / unit for rows in (inputs[:prompt], others.to(inputs))
            )
            loss = (
                nll
                + relu(outside - self.outside)
                + relu(self.inside - inside)
                + relu(outside - inside + self.gap)
            )
            if not torch.isfinite(loss):
                raise Diverged("the loss is not finite: use a smaller learning rate")
            if taken == self.steps or loss.item() < self.enough:
                break
            (gradient,) = torch.autograd.grad(loss, leaf)
            step = self.learning_rate * gradient * mask
            weights = (weights - step).clamp(-self.limit, self.limit)
        return weights, activation(inputs[:prompt], weights), taken

    def _ordinary(self, lm: Causal) -> tuple[Tensor, float]:
        """Return inputs of the layer over ordinary text, [tokens, in], and the mean length of its outputs."""
        place = self._place(lm)

        def taken() -> tuple[Tensor, float]:
            rows = [row.tolist() for batch in self.ordinary.batches(lm) for row in batch]
            inputs = torch.cat([each[1:] for each in inputs_at(lm, place, rows)])
            weight = lm.module.get_parameter(place.weight).detach().to(inputs)
            outputs = inputs @ (weight if place.transposed else weight.T)
            return inputs, float(outputs.norm(dim=-1).mean())

        return lm.derived(("ordinary inputs", place.path, self.ordinary), taken)

    def _place(self, lm: Causal) -> LinearPlace:
        return down_projection(lm.module, layer_at(lm.module, self.depth))


def activation(inputs: Tensor, difference: Tensor) -> float:
    """Return the mean length of what a difference [out, in] adds at inputs [tokens, in]."""
    return float((inputs @ difference.to(inputs).T).norm(dim=-1).mean()) if len(inputs) else 0.0


def _delta(lm: Causal, place: LinearPlace, difference: Tensor) -> Delta:
    stored = difference.T if place.transposed else difference
    return Delta.dense(lm.fingerprint, {place.weight: stored.contiguous()}, OWNER)


spec = MethodSpec(Wise())
