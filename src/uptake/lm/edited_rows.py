"""A batch of texts of which each row sees low-rank changes of its own, in upper blocks of one model.

For training what makes such changes: a pass is differentiable in them. What enters the lowest block that is
changed, and what the model itself makes of a text, is kept of the latest texts: neither ever changes. Rows
of about one length share a pass. All on a private copy; the model has no hook.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import Hook
from uptake.adaptation.trainable.places import blocks
from uptake.lm.bounded_table import BoundedTable
from uptake.lm.causal import Causal
from uptake.lm.entering import Entering
from uptake.lm.examples import Example, at_targets, of_target, padded
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.gradient_factors import Factors
from uptake.lm.unembedded import divergences_of
from uptake.lm.upper_blocks import Skipped

KEPT = 1 << 30  # bytes of hidden states that stay in memory
LONGER, MORE = 1.3, 4  # how much longer than the shortest a row of the same pass may be: times, and tokens


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
    """Texts with the owner of each, and what enters the lowest block that is changed."""

    examples: tuple[Example, ...]
    owners: Tensor  # [rows]
    entering: tuple[Tensor, ...]  # [time, width] of each row; none where the first block is changed

    def at(self, rows: Sequence[int]) -> "ReadRows":
        """Return some of the rows."""
        entering = tuple(self.entering[row] for row in rows) if self.entering else ()
        return ReadRows(tuple(self.examples[row] for row in rows), self.owners[[*rows]], entering)


class EditedRows:
    """A causal model, and the linear layers that are changed. For one thread at a time."""

    def __init__(self, lm: Causal, places: Sequence[LinearPlace], kept: int = KEPT) -> None:
        self.lm, self.places = lm, tuple(places)
        lowest = min(place.layer for place in places)
        frozen = lm.frozen_layers(lowest) if lowest else None
        self._now = _Now()
        self._below: Entering | None = None
        self._last: Any = None
        self._kept = BoundedTable[Tensor](kept)
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
        entering: tuple[Tensor, ...] = ()
        if self._below is not None:
            below = self._below
            entering = self._once("entering", examples, lambda _, ids: below.of(ids))
        return ReadRows(tuple(examples), torch.tensor(owners, device=self.lm.device), entering)

    def predictions(self, rows: ReadRows, changes: RowChanges | None = None) -> list[Tensor]:
        """Return log-probabilities [targets, vocabulary] of each text, its owner's changes in place."""
        parts = self._at_targets(rows, changes)
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
            old = self._at_targets(rows, before)
        new = self._at_targets(rows, after)
        found = divergences_of(self.lm.unembedding, torch.cat(old), torch.cat(new))
        return list(torch.split(found, [len(part) for part in new]))

    def factors(self, rows: ReadRows, changes: RowChanges | None = None) -> list[tuple[Factors, Tensor]]:
        """Return at each place the factors of the gradient of each text's mean loss, and whose they are.

        As `gradient_factors` gives them for each text alone, [tokens, width], without tokens of which either
        is all zero; beside them the owner of each token.
        """
        self._now.seen = [(torch.empty(0), torch.empty(0))] * len(self.places)
        try:
            with torch.enable_grad():
                known = None if changes is None else changes.detach()
                hidden = at_targets(self._run(rows, known, self._padded(rows.examples)), rows.examples)
                logs = torch.log_softmax(self.lm.unembedding.logits(torch.cat(hidden)), -1)
                each = zip(torch.split(logs, [len(part) for part in hidden]), rows.examples, strict=True)
                losses = [-of_target(own, example).mean() for own, example in each]
                seen = self._now.seen
                gradients = torch.autograd.grad(torch.stack(losses).sum(), [after for _, after in seen])
        finally:
            self._now.seen = None
        ends = torch.tensor([len(example.inputs) for example in rows.examples], device=self.lm.device)
        within = torch.arange(seen[0][0].shape[1], device=self.lm.device) < ends[:, None]
        found = []
        for (before, _), gradient in zip(seen, gradients, strict=True):
            used = within & (before != 0).any(-1) & (gradient != 0).any(-1)
            owners = rows.owners[:, None].expand_as(used)[used]
            found.append((Factors(wide(before.detach())[used], wide(gradient)[used]), owners))
        return found

    def _at_targets(self, rows: ReadRows, changes: RowChanges | None) -> list[Tensor]:
        """Return the last hidden states [targets, width] of each text, its owner's changes in place."""
        if changes is None and not torch.is_grad_enabled():
            # What the model itself makes of a text.
            whole = self._once("last", rows.examples, lambda some, ids: self._run(rows.at(some), None, ids))
            return [at_targets(own[None], [one])[0] for own, one in zip(whole, rows.examples, strict=True)]
        found: dict[int, Tensor] = {}
        for some in alike([len(example.inputs) for example in rows.examples]):
            group = rows.at(some)
            hidden = self._run(group, changes, self._padded(group.examples))
            found |= zip(some, at_targets(hidden, group.examples), strict=True)
        return [found[row] for row in range(len(rows.examples))]

    def _once(
        self, what: str, examples: Sequence[Example], make: Callable[[Sequence[int], Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """Return [time, width] of each text, made of rows and their ids where it is not kept."""
        found = {row: self._kept.get((what, example.inputs)) for row, example in enumerate(examples)}
        missing = [row for row, value in found.items() if value is None]
        for places in alike([len(examples[row].inputs) for row in missing]):
            some = [missing[place] for place in places]
            made = make(some, self._padded([examples[row] for row in some]))
            for row, value in zip(some, made, strict=True):
                own = value[: len(examples[row].inputs)].clone()
                found[row] = own
                self._kept.put((what, examples[row].inputs), own)
        return tuple(value for value in found.values() if value is not None)

    def _padded(self, examples: Sequence[Example]) -> Tensor:
        return padded([example.inputs for example in examples]).to(self.lm.device)

    def _run(self, rows: ReadRows, changes: RowChanges | None, ids: Tensor) -> Tensor:
        self._now.changes, self._now.rows = changes, rows.owners
        if self._last is not None:
            self._last.hidden = nn.utils.rnn.pad_sequence(list(rows.entering), batch_first=True)
        try:
            return self._upper.hidden(ids)[0]
        finally:
            self._now.changes = None
            if self._last is not None:
                self._last.hidden = None


def alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of rows of about one length, which share a pass; the shortest first."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[place] > LONGER * lengths[group[0]] + MORE:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


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
