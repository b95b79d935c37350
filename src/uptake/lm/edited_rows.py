"""A batch of texts of which each row sees low-rank changes of its own, in upper blocks of one model.

For training what makes such changes: a pass is differentiable in them, and the blocks below the lowest that
is changed are run once for a text, however often it is read. All on a private copy; the model has no hook.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import Hook
from uptake.adaptation.trainable.places import blocks
from uptake.lm.causal import Causal
from uptake.lm.entering import Entering
from uptake.lm.examples import Example, at_targets, of_target, padded
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.gradient_factors import Factors
from uptake.lm.scoring import divergence
from uptake.lm.upper_blocks import Skipped


class Change(NamedTuple):
    """What is added at one place, Σ up downᵀ: up [out, n], down [n, in], and whose each of the n is."""

    up: Tensor
    down: Tensor
    owners: Tensor  # [n]; a row sees those of its own owner alone


@dataclass(frozen=True)
class RowChanges:
    """What is added at each place."""

    parts: tuple[Change, ...]

    def plus(self, other: "RowChanges") -> "RowChanges":
        """Return both, side by side."""
        return RowChanges(
            tuple(
                Change(
                    torch.cat([a.up, b.up], 1), torch.cat([a.down, b.down]), torch.cat([a.owners, b.owners])
                )
                for a, b in zip(self.parts, other.parts, strict=True)
            )
        )

    def detach(self) -> "RowChanges":
        """Return the same as constants."""
        return RowChanges(tuple(Change(*(each.detach() for each in part)) for part in self.parts))


@dataclass(frozen=True)
class ReadRows:
    """Texts with the owner of each: their tokens, and what enters the lowest block that is changed."""

    examples: tuple[Example, ...]
    owners: Tensor  # [rows]
    ids: Tensor  # [rows, time], zeros to the right
    entering: Tensor | None  # [rows, time, width]; None where the first block is changed

    def at(self, rows: Sequence[int]) -> "ReadRows":
        """Return some of the rows."""
        entering = None if self.entering is None else self.entering[[*rows]]
        some = tuple(self.examples[row] for row in rows)
        return ReadRows(some, self.owners[[*rows]], self.ids[[*rows]], entering)


class EditedRows:
    """A causal model, and the linear layers that are changed. For one thread at a time."""

    def __init__(self, lm: Causal, places: Sequence[LinearPlace]) -> None:
        self.lm, self.places = lm, tuple(places)
        lowest = min(place.layer for place in places)
        frozen = lm.frozen_layers(lowest) if lowest else None
        self._now = _Now()
        self._below: Entering | None = None
        self._last: Any = None
        module = skeleton(lm.module)
        if frozen is not None and frozen.supported:
            self._below, stack = Entering(lm, lowest), blocks(module)[1]
            for number in range(lowest):
                stack[number] = Skipped(stack[number], frozen.returns_tuple)
            self._last = stack[lowest - 1]
        for number, place in enumerate(places):
            module.get_submodule(place.path).register_forward_hook(_Change(self._now, number))
        self._upper = lm.around(module)

    def read(self, examples: Sequence[Example], owners: Sequence[int]) -> ReadRows:
        """Return texts as `predictions` takes them; the blocks below all changes are run here."""
        ids = padded([example.inputs for example in examples]).to(self.lm.device)
        entering = None if self._below is None else self._below.of(ids)
        return ReadRows(tuple(examples), torch.tensor(owners, device=ids.device), ids, entering)

    def predictions(self, rows: ReadRows, changes: RowChanges | None = None) -> list[Tensor]:
        """Return log-probabilities [targets, vocabulary] of each text, its owner's changes in place."""
        hidden = self._run(rows, changes)
        parts = at_targets(hidden, rows.examples)
        log_probs = torch.log_softmax(self.lm.unembedding.logits(torch.cat(parts)), -1)
        return list(torch.split(log_probs, [len(part) for part in parts]))

    def token_log_probs(self, rows: ReadRows, changes: RowChanges | None = None) -> list[Tensor]:
        """Return the log-probability of each target token of each text, [targets]."""
        pairs = zip(self.predictions(rows, changes), rows.examples, strict=True)
        return [of_target(log_probs, example) for log_probs, example in pairs]

    def divergences(self, rows: ReadRows, before: RowChanges | None, after: RowChanges) -> list[Tensor]:
        """Return KL(with `before` || with `after`) at each target token of each text, in nats, [targets].

        Gradients go to `after` alone.
        """
        with torch.no_grad():
            old = self.predictions(rows, before)
        pairs = zip(old, self.predictions(rows, after), strict=True)
        return [divergence(p, q) for p, q in pairs]

    def factors(self, rows: ReadRows, changes: RowChanges | None = None) -> list[tuple[Factors, Tensor]]:
        """Return at each place the factors of the gradient of each text's mean loss, and whose they are.

        As `gradient_factors` gives them for each text alone, [tokens, width], without tokens of which either
        is all zero; beside them the owner of each token.
        """
        self._now.seen = [(torch.empty(0), torch.empty(0))] * len(self.places)
        try:
            with torch.enable_grad():
                known = None if changes is None else changes.detach()
                losses = [-each.mean() for each in self.token_log_probs(rows, known)]
                seen = self._now.seen
                gradients = torch.autograd.grad(torch.stack(losses).sum(), [after for _, after in seen])
        finally:
            self._now.seen = None
        ends = torch.tensor([len(example.inputs) for example in rows.examples], device=rows.ids.device)
        within = torch.arange(rows.ids.shape[1], device=rows.ids.device) < ends[:, None]
        found = []
        for (before, _), gradient in zip(seen, gradients, strict=True):
            used = within & (before != 0).any(-1) & (gradient != 0).any(-1)
            owners = rows.owners[:, None].expand_as(used)[used]
            found.append((Factors(wide(before.detach())[used], wide(gradient)[used]), owners))
        return found

    def _run(self, rows: ReadRows, changes: RowChanges | None) -> Tensor:
        self._now.changes, self._now.rows = changes, rows.owners
        if self._last is not None:
            self._last.hidden = rows.entering
        try:
            return self._upper.hidden(rows.ids)[0]
        finally:
            self._now.changes = None
            if self._last is not None:
                self._last.hidden = None


@dataclass
class _Now:
    """What the pass under way sees: changes, the owner of each row; what passed each place, if wanted."""

    changes: RowChanges | None = None
    rows: Tensor = field(default_factory=lambda: torch.empty(0))
    seen: list[tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class _Change(Hook):
    now: _Now
    place: int

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        changes, found = self.now.changes, output
        if changes is not None:
            up, down, owners = changes.parts[self.place]
            mine = (self.now.rows[:, None] == owners).to(up)
            found = (wide(output) + ((wide(inputs[0]) @ down.T) * mine[:, None]) @ up.T).to(output.dtype)
        if self.now.seen is not None:
            # Below the first of the layers nothing asks for gradients: they begin here.
            found = found if found.requires_grad else found.detach().requires_grad_()
            self.now.seen[self.place] = inputs[0], found
        return found
