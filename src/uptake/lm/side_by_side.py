"""Private adaptations of one language model side by side: a batch whose rows each have a delta of their own.

`side_by_side` answers from many deltas, `train_side_by_side` trains many; both take one pass for all rows
where the deltas are low rank, and say so or take the loop where they are not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank, Part
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.optimizers import Optimizer, OptimizerState
from uptake.adaptation.side_by_side import (
    FEWEST,
    RowTraining,
    Stack,
    as_parameters,
    gradient_descent_side_by_side,
    leaves_of,
    stacking,
)
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.adaptation.transforms import GradientTransform
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.capabilities import HiddenStates, Unembedding, capability
from uptake.lm.causal import Causal
from uptake.lm.examples import Piece, of_targets, padded
from uptake.lm.scoring import weighted
from uptake.lm.wrappers import Routed

# The length of a row is rounded up to a multiple of this while training, so that rows of like length share a
# pass and a row's bits depend on its own length alone.
PLACES = 16
# Log-probabilities of one pass while training: what a CPU's cache holds, or 256 MB elsewhere.
ON_CPU, ELSEWHERE = 1 << 22, 1 << 26


class SideBySide(Wrapper, HiddenStates):
    """Row i is answered by `base` with `deltas[i]` on it, low rank and scales alone: one pass for all rows.

    With `slots` every pass has that many rows, idle ones among them, so that at one length a row's bits do
    not depend on how many others there are. Left out, only passes of few tokens and those that keep a cache
    are filled up, to the fewest rows whose bits agree with those of more rows on a CPU.
    """

    def __init__(self, base: Causal, deltas: Sequence[Delta], slots: int = 0) -> None:
        stack = Stack(base.module, sorted({name for delta in deltas for name in delta.names}))
        stack.put([stacking(delta) or {} for delta in deltas], max(slots, FEWEST))
        super().__init__(base.around(stack.module))
        self.base, self.deltas, self.slots = base, list(deltas), slots
        self.rows = len(self.deltas)
        self._alone: dict[int, LM] = {}

    def around(self, inner: LM) -> Self:
        raise NotImplementedError("rows with deltas of their own stand on a base, not around an LM")

    def at(self, rows: Sequence[int]) -> LM:
        if list(rows) == list(range(len(self.deltas))):
            return self
        if len(rows) > 1:
            return side_by_side(self.base, [self.deltas[row] for row in rows], self.slots)
        # A row by itself is asked for again with every token where it stands within another LM.
        (row,) = rows
        if row not in self._alone:
            self._alone[row] = side_by_side(self.base, [self.deltas[row]], self.slots).at([0])
        return self._alone[row]

    def overlay(self, delta: Delta) -> LM:
        return side_by_side(self.base, [own + delta for own in self.deltas], self.slots)

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        return self._apart.trainable_copy(trainable, start, generator)

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        return self._apart.with_parameters(parameters)

    @property
    def unembedding(self) -> Unembedding:
        return capability(self._apart, HiddenStates).unembedding

    @property
    def _apart(self) -> Routed:
        return Routed([self.base.overlay(delta) for delta in self.deltas])

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        filled = self._filled(ids, cache)
        log_probs, cache = self.inner.step(filled, cache, _filled(lengths, filled))
        return log_probs[: len(ids)], cache

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        filled = self._filled(ids, cache)
        log_probs, cache = self.inner.read_on(filled, cache, _filled(lengths, filled))
        return log_probs[: len(ids)], cache

    def hidden(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        filled = self._filled(ids, cache)
        inner = capability(self.inner, HiddenStates)
        hidden, cache = inner.hidden(filled, cache, _filled(lengths, filled))
        return hidden[: len(ids)], cache

    def _filled(self, ids: Tensor, cache: Cache) -> Tensor:
        """Return the ids with idle rows below them, up to the grid."""
        self._check_rows(len(ids))
        few = cache is not None or ids.numel() < FEWEST
        idle = (self.slots or (FEWEST if few else 0)) - len(ids)
        return nn.functional.pad(ids, (0, 0, 0, idle)) if idle > 0 else ids


def _filled(lengths: Sequence[int] | None, ids: Tensor) -> list[int] | None:
    """Return the lengths of rows with those of idle rows below them."""
    return None if lengths is None else [*lengths, *[ids.shape[1]] * (len(ids) - len(lengths))]


def side_by_side(lm: LM, deltas: Sequence[Delta], slots: int = 0) -> LM:
    """Return an LM whose row i answers with `deltas[i]` on `lm`: in one pass if that can be, else in a loop.

    It can be where a causal model has several rows (or `slots`) and every delta has low rank and scales
    alone, or nothing, on linear layers that see each row apart. Raises Mismatch for a delta of another base.
    """
    for delta in deltas:
        delta.check(lm.fingerprint)
    if isinstance(lm, Causal) and (len(deltas) > 1 or slots) and any(delta.parts for delta in deltas):
        parts = [stacking(delta) for delta in deltas]
        if all(each is not None for each in parts) and stands(lm, [each or {} for each in parts]):
            return SideBySide(lm, deltas, slots)
    return Routed([lm.overlay(delta) for delta in deltas])


def train_side_by_side(
    lm: LM,
    trainable: Trainable,
    starts: Sequence[Delta],
    generators: Iterable[torch.Generator],
    pieces: Sequence[Iterable[Piece]],
    optimizer: Optimizer,
    transforms: Sequence[GradientTransform] = (),
    optimizer_states: Sequence[OptimizerState] = (),
    draws: Sequence[torch.Generator] = (),
    slots: int = 0,
) -> list[tuple[Delta, RowTraining]] | None:
    """Train row i from `starts[i]` on `pieces[i]`, a step a piece, all together; return where they ended.

    None, and nothing done, where more would train than stacks, or `lm` cannot have rows apart.
    What `transforms` of row i's gradients draw comes from `draws[i]`.
    Each row ends as it would by itself, through `lm.trainable_copy` and `gradient_descent`, up to rounding.
    On a CPU its bits depend on its own pieces alone; elsewhere `slots`, the rows of every pass, fixes the
    grid for that.
    """
    if not isinstance(lm, Causal):
        return None
    begun = []
    for start, generator in zip(starts, generators, strict=True):
        start.check(lm.fingerprint)
        parts = trainable.stackable(lm.module, start, generator)
        if parts is None or not stands(lm, [parts]):
            return None
        begun.append(as_parameters(parts))
    stack = Stack(lm.module, sorted({name for row in begun for name in row}))
    private = lm.around(stack.module)
    most = (ON_CPU if lm.device.type == "cpu" else ELSEWHERE) // len(lm.tokenizer)

    def length(piece: Piece) -> int:
        return min(-(-len(piece.example.inputs) // PLACES) * PLACES, lm.window)

    def passes_of(drawn: Mapping[int, Piece]) -> Iterator[list[int]]:
        alike: dict[int, list[int]] = {}
        for row, piece in drawn.items():
            alike.setdefault(length(piece), []).append(row)
        for time, rows in alike.items():
            each = slots or max(1, most // time)
            yield from (rows[start : start + each] for start in range(0, len(rows), each))

    def losses_of(batch: Sequence[Piece]) -> Tensor:
        ids = torch.zeros(max(len(batch), slots), length(batch[0]), dtype=torch.long, device=lm.device)
        examples = [piece.example for piece in batch]
        inputs = padded([example.inputs for example in examples])
        ids[: inputs.shape[0], : inputs.shape[1]] = inputs
        return weighted(of_targets(private.step(ids)[0], examples), [piece.weights for piece in batch])

    ended = gradient_descent_side_by_side(
        stack,
        begun,
        pieces,
        losses_of,
        passes_of,
        optimizer,
        transforms,
        optimizer_states,
        draws,
        slots,
        trainable.owner,
    )
    deltas = [
        Delta.of(start.base, {path: _still(part) for path, part in row.items()}, trainable.owner)
        for start, row in zip(starts, begun, strict=True)
    ]
    return list(zip(deltas, ended, strict=True))


def stands(lm: Causal, rows: Sequence[Mapping[str, Part]]) -> bool:
    """Whether rows of a batch may differ in what these parts stand on, and the parts are of its shape."""
    scales: dict[str, set[object]] = {}
    for row in rows:
        for path, part in row.items():
            if isinstance(part, LowRank):
                if lm.by_row.get(path) != part.transposed:
                    return False
                if lm.module.get_parameter(path).shape != part.shape:
                    return False
            elif isinstance(part, Scale):
                if f"{path}.weight" not in lm.by_row:
                    return False
                scales.setdefault(path, set()).add((part.on, part.ranges, len(part.change)))
    return all(len(alike) == 1 for alike in scales.values())


def _still(part: Part) -> Part:
    return part.holding({key: leaf.detach() for key, leaf in leaves_of(part).items()})
