"""Many small adaptations of one module side by side: each row of a batch has its own, one pass runs all.

A weight W with the product `scale * up @ down` on it gives `W x + scale * up (down x)`; a scale vector
multiplies what enters or leaves. `Stack` is a private copy of a module that computes this for a whole batch,
with the parts of all rows stacked; the base's own
products are shared. `gradient_descent_side_by_side` trains rows together, each with its own loss, gradient
transforms, optimizer state, number of steps and end. No operation mixes rows, so that at a fixed grid
(slots, time, rank) a row's bits do not depend on its neighbours, broken ones included. This file knows
no language model.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank, Part, skeleton, wide
from uptake.adaptation.delta.scale import Ranges, Scale, key_of, scaled
from uptake.adaptation.inner_loop import GradientDescent, check_loss
from uptake.adaptation.optimizers import Optimizer, OptimizerState
from uptake.adaptation.trainable.lora import factor_names
from uptake.adaptation.transforms import GradientTransform
from uptake.errors import BadInput, Diverged

BatchT = TypeVar("BatchT")
Parts = Mapping[str, Part]  # of one row, low rank or scales, by the weight or the layer they stand on

# Matrix products over fewer places (rows times time) than this take other kernels, with other last bits.
FEWEST = 4


def stacking(delta: Delta) -> dict[str, Part] | None:
    """Return the parts of a delta as a `Stack` takes them, None where it cannot hold them all.

    It holds low rank, of all owners added, and one scale a layer.
    """
    scales = [name.path for name, part in delta.parts.items() if isinstance(part, Scale)]
    if not delta.kinds <= {LowRank, Scale} or len(set(scales)) < len(scales):
        return None
    return {**delta.parts_of(LowRank), **delta.parts_of(Scale)}


class Stack:
    """A private copy of `module` in which each row of a batch has low-rank products and scales of its own.

    `paths` are what rows may have parts on: weights of linear layers that see their input as [rows, time,
    width] (`by_row` finds them), or such layers. Until `put` or `lead` is called there are no rows.
    """

    def __init__(self, module: nn.Module, paths: Iterable[str]) -> None:
        self.module = skeleton(module)
        self._layers: dict[str, _Stacked] = {}
        for layer in sorted({path.removesuffix(".weight") for path in paths}):
            self._layers[layer] = _Stacked(self.module.get_submodule(layer))
            self.module.set_submodule(layer, self._layers[layer])
        self._leaves: dict[tuple[str, str], int] = {}

    def put(self, rows: Sequence[Parts], slots: int = 0) -> None:
        """Let row i of a batch have `rows[i]`, and rows up to `slots` nothing, to be read and not trained."""
        for name, layer in self._layers.items():
            low, scales = _of_layer(name, rows)
            layer.hold([part and _without_scale(part) for part in low], scales, slots, layer.weight.dtype)

    def lead(self, rows: Sequence[Parts], slots: int = 0) -> list[Tensor]:
        """As `put`, to be trained: return the stacked tensors.

        Row i of a gradient, as far as its rank goes, belongs to `rows[i]`: `gradients_of` picks it.
        """
        leaves: list[Tensor] = []
        for name, layer in self._layers.items():
            layer.hold(*_of_layer(name, rows), slots, wide(layer.weight).dtype)
            for path, key, tensor in layer.tensors(name):
                self._leaves[path, key] = len(leaves)
                leaves.append(tensor.requires_grad_())
        return leaves

    def gradients_of(self, row: int, parts: Parts, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return one row's part of the gradients of what `lead` gave, in the order of `leaves_of`."""
        own: list[Tensor | None] = []
        for path, part in parts.items():
            for key, tensor in leaves_of(part).items():
                found = gradients[self._leaves[path, key]]
                # Of a part with a smaller rank than others in the batch what is its own.
                own.append(found if found is None else found[row][*map(slice, tensor.shape)])
        return own


def _of_layer(name: str, rows: Sequence[Parts]) -> tuple[list[LowRank | None], list[Scale | None]]:
    low = [cast(LowRank | None, row.get(f"{name}.weight")) for row in rows]
    return low, [cast(Scale | None, row.get(name)) for row in rows]


class _Stacked(nn.Module):
    """A linear layer of the base plus low-rank products and scales, one for each row of the batch."""

    down: Tensor | None = None  # [slots, rank, in]; None where no row has a product
    up: Tensor  # [slots, out, rank]
    scale: Tensor | None  # of products: [slots, 1, 1], or None where all are 1
    change: Tensor | None = None  # of scale vectors: [slots, width]
    on_input: bool  # whether they scale what enters
    ranges: Ranges

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight: nn.Parameter = layer.weight  # type: ignore[assignment]
        self.bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]
        self.transposed = not isinstance(layer, nn.Linear)

    def forward(self, inputs: Tensor) -> Tensor:
        change = None if self.change is None else self.change[: len(inputs), None]
        if change is not None and self.on_input:
            inputs = scaled(inputs, change, self.ranges)
        found = self._product(inputs)
        if change is not None and not self.on_input:
            found = scaled(found, change, self.ranges)
        return found

    def _product(self, inputs: Tensor) -> Tensor:
        weight, down = self.weight, self.down
        base = nn.functional.linear(inputs, weight.T if self.transposed else weight, self.bias)
        if down is None:
            return base
        up, scale = self.up, self.scale
        if len(inputs) != len(down):
            down, up = down[: len(inputs)], up[: len(inputs)]
            scale = None if scale is None else scale[: len(inputs)]
        # With one place a row, a matrix times a vector is quicker than a vector times a matrix.
        single = inputs.shape[1] == 1
        within = torch.bmm(down, inputs.mT).mT if single else torch.bmm(inputs, down.mT)
        if scale is not None:
            within = within * scale
        if base.dtype == up.dtype:
            return base.baddbmm_(within, up.mT)  # nothing else has seen `base`
        return torch.baddbmm(base, within, up.mT)  # autocast, which does not reach what is done in place

    def hold(
        self,
        low: Sequence[LowRank | None],
        scales: Sequence[Scale | None],
        slots: int,
        dtype: torch.dtype,
    ) -> None:
        """Have these parts, one a row, with zeros up to the largest rank and for rows that have none."""
        slots = max(slots, len(low))
        self.down = self.scale = self.change = None
        if any(low):
            self._hold_products(low, slots, dtype)
        if some := [part for part in scales if part]:
            self.on_input, self.ranges = some[0].on == "input", some[0].ranges
            # As wide as on a row by itself.
            wanted = wide(self.weight.detach())
            self.change = wanted.new_zeros(slots, len(some[0].change))
            for row, part in enumerate(scales):
                if part:
                    self.change[row] = part.change.detach()

    def _hold_products(self, parts: Sequence[LowRank | None], slots: int, dtype: torch.dtype) -> None:
        rank = max((part.down.shape[0] for part in parts if part), default=0)
        into, out = self.weight.shape if self.transposed else reversed(self.weight.shape)
        self.down = torch.zeros(slots, rank, into, dtype=dtype, device=self.weight.device)
        self.up = torch.zeros(slots, out, rank, dtype=dtype, device=self.weight.device)
        scales = [part.scale if part else 1.0 for part in parts] + [1.0] * (slots - len(parts))
        if set(scales) != {1.0}:
            self.scale = torch.tensor(scales, dtype=dtype, device=self.weight.device)[:, None, None]
        for row, part in enumerate(parts):
            if part:
                own = part.down.shape[0]
                self.down[row, :own], self.up[row, :, :own] = part.down.detach(), part.up.detach()

    def tensors(self, name: str) -> Iterator[tuple[str, str, Tensor]]:
        """Yield what it holds: of which path, which tensor of a part there, and the stack of it."""
        if self.down is not None:
            yield f"{name}.weight", "down", self.down
            yield f"{name}.weight", "up", self.up
        if self.change is not None:
            yield name, "change", self.change


def _without_scale(part: LowRank) -> LowRank:
    return LowRank(part.up * part.scale, part.down, 1.0, part.transposed)


def by_row(module: nn.Module, run: Callable[[nn.Module, Tensor], object]) -> dict[str, bool]:
    """Return the weights that rows of a batch may differ in, and whether each is stored [in, out].

    `run(module, ids)` runs the module on ids [2, 3]. The weight of a linear layer is among them if whatever
    enters the layer is [2, 3, width], so that rows stay apart there, and if it stands in no other place.
    """
    from transformers.pytorch_utils import Conv1D

    private = skeleton(module)
    layers = {name: part for name, part in private.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    seen: dict[str, set[torch.Size]] = {name: set() for name in layers}
    for name, layer in layers.items():
        shapes = seen[name]
        layer.register_forward_pre_hook(lambda _, given, shapes=shapes: shapes.add(given[0].shape[:-1]))
    with torch.no_grad():
        run(private, torch.zeros(2, 3, dtype=torch.long))
    places = Counter(id(parameter) for _, parameter in private.named_parameters(remove_duplicate=False))
    return {
        f"{name}.weight": isinstance(layer, Conv1D)
        for name, layer in layers.items()
        if seen[name] == {torch.Size((2, 3))} and places[id(layer.weight)] == 1
    }


def as_parameters(parts: Parts) -> dict[str, Part]:
    """Return the parts with copies of their tensors as parameters of their own."""
    return {
        path: part.holding(
            {key: nn.Parameter(tensor.detach().clone()) for key, tensor in leaves_of(part).items()}
        )
        for path, part in parts.items()
    }


def leaves_of(part: Part) -> dict[str, Tensor]:
    """Return the tensors of a part that train, in the order in which their names are listed."""
    if isinstance(part, LowRank):
        return {"down": part.down, "up": part.up}
    return part.tensors()


@dataclass(frozen=True)
class RowTraining:
    """How the training of one row ended: the optimizer's state, and why it stopped before its batches did."""

    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    stopped: str = ""


def gradient_descent_side_by_side(
    stack: Stack,
    rows: Sequence[Parts],
    batches: Sequence[Iterable[BatchT]],
    losses_of: Callable[[Sequence[BatchT]], Tensor],
    passes_of: Callable[[Mapping[int, BatchT]], Iterable[Sequence[int]]],
    optimizer: Optimizer,
    transforms: Sequence[GradientTransform] = (),
    optimizer_states: Sequence[OptimizerState] = (),
    draws: Sequence[torch.Generator] = (),
    slots: int = 0,
    owner: str = "lora",
) -> list[RowTraining]:
    """Train `rows[i]`, made by `as_parameters`, on `batches[i]`, in place, together; return how each ended.

    What `inner_loop.gradient_descent` does for one row, for all: a step a batch, each row with its own loss,
    transforms that draw from `draws[i]`, optimizer state and number of batches, each of one document.
    Whenever every row has drawn its next batch, `passes_of` says which
    rows run in one pass, and `losses_of` returns the losses of these rows' batches, [rows], from
    `stack.module`. A row whose loss or gradient is not finite takes no further step; the others do not
    notice. `slots` is the least number of rows of a pass, idle ones among them: give it to fix the grid.
    `owner` is whose the parts are, by which optimizer states name them.
    """
    states = optimizer_states or [{}] * len(rows)
    if not len(rows) == len(batches) == len(states):
        raise BadInput(
            f"{len(rows)} rows, {len(batches)} with batches, {len(states)} optimizer states: give one each"
        )
    generators: Sequence[torch.Generator | None] = draws or [None] * len(rows)
    descents = [
        GradientDescent(_named(row, owner), optimizer, transforms, state, generator)
        for row, state, generator in zip(rows, states, generators, strict=True)
    ]
    remaining: dict[int, Iterator[BatchT]] = {row: iter(own) for row, own in enumerate(batches)}
    stopped: dict[int, str] = {}
    while remaining:
        drawn: dict[int, BatchT] = {}
        for row, own in list(remaining.items()):
            batch = next(own, None)
            if batch is None:
                del remaining[row]
            else:
                drawn[row] = batch
        for together in passes_of(drawn):
            with ExitStack() as reading:
                for row in together:
                    reading.enter_context(descents[row].reading())
                leaves = stack.lead([rows[row] for row in together], slots)
                losses = losses_of([drawn[row] for row in together])
                gradients = torch.autograd.grad(losses, leaves, torch.ones_like(losses), allow_unused=True)
                for place, row in enumerate(together):
                    try:
                        check_loss(losses[place])
                        descents[row].apply(stack.gradients_of(place, rows[row], gradients))
                    except Diverged as error:
                        stopped[row] = str(error)
                        del remaining[row]
    return [
        RowTraining(descent.optimizer_state, stopped.get(row, "")) for row, descent in enumerate(descents)
    ]


def _named(parts: Parts, owner: str) -> dict[str, nn.Parameter]:
    """Return trainable parts as parameters by the names that they have in a row by itself."""
    found: dict[str, nn.Parameter] = {}
    for path, part in parts.items():
        names = factor_names(path) if isinstance(part, LowRank) else (f"{path}.{key_of(owner)}",)
        leaves = leaves_of(part).values()
        found |= {name: cast(nn.Parameter, leaf) for name, leaf in zip(names, leaves, strict=True)}
    return found
