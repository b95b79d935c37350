"""What is trained: an argument of every gradient method, not a method of its own.

`copy` gives a private copy of the module with fresh parameters to train; `delta` on what it
returns gives how they have changed. This file knows no language model, only modules.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank, Overlay, Part, skeleton, wide
from uptake.adaptation.delta.delta import WEIGHTS, check_owner
from uptake.adaptation.delta.dense import Dense
from uptake.adaptation.draws import drawing_from
from uptake.errors import BadInput


@dataclass(frozen=True)
class TrainableCopy:
    """A private module and its trainable parameters by name; `delta()` returns the difference."""

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    delta: Callable[[], Delta]


class Trainable(ABC):
    """A choice of what is trained. Its parts of a delta are `owner`'s; those of others stay as they are."""

    owner: str = WEIGHTS
    neutral: bool = True  # a copy that has taken no step computes what the model at its start does
    low_rank: ClassVar[bool] = False  # whether `factors` is all it trains, so that rows can share passes

    @abstractmethod
    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        """Return a private copy of `module` that stands at `start`, ready to train.

        `generator` makes whatever has to begin at random. The module itself is not touched.
        """

    def factors(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> dict[str, LowRank] | None:
        """Return fresh low-rank factors that stand at `start`, by weight; None where it trains more.

        They are what `copy` would train, so that `side_by_side` can train those of many rows at once.
        """
        return None


@dataclass(frozen=True)
class All(Trainable):
    """Every weight of the model."""

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return _open_dense(module, [name for name, _ in module.named_parameters()], start)


@dataclass(frozen=True)
class Top(Trainable):
    """Every weight of the last `layers` blocks."""

    layers: int = 2

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        name, stack = blocks(module)
        if not 1 <= self.layers <= len(stack):
            raise BadInput(f"top layers {self.layers}: the model has {len(stack)}, use 1 to {len(stack)}")
        prefixes = tuple(f"{name}.{i}." for i in range(len(stack) - self.layers, len(stack)))
        return _open_dense(module, [n for n, _ in module.named_parameters() if n.startswith(prefixes)], start)


@dataclass(frozen=True)
class Named(Trainable):
    """Every weight whose name holds `part`, as `layers.1.mlp.down_proj` does for one matrix."""

    part: str = "mlp"

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        names = [name for name, _ in module.named_parameters()]
        if not (some := [name for name in names if self.part in name]):
            raise BadInput(
                f"part {self.part!r}: no weight is called so, use a part of {', '.join(names[:3])}"
            )
        return _open_dense(module, some, start)


@dataclass(frozen=True)
class LoRA(Trainable):
    """A low-rank product added to every weight matrix of the blocks (Hu et al. 2021), by peft."""

    low_rank: ClassVar[bool] = True
    rank: int = 16
    alpha: int = 32
    owner: str = "lora"  # two trainings under two owners stand in one delta

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise BadInput(f"LoRA rank {self.rank}, alpha {self.alpha}: use 1 or more of each")
        check_owner(self.owner)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        from peft import LoraConfig, inject_adapter_in_model

        rest, begun = self._begin(module, start, generator)
        private = rest.without(lambda _, part: part.order > 0).over(module, start.base)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=[name.removesuffix(".weight") for name in begun],
            fan_in_fan_out=any(part.transposed for part in begun.values()),
            init_lora_weights=False,
        )
        # peft's layers draw from the global generator as they are made, though we set their values.
        with drawing_from(torch.Generator()):
            inject_adapter_in_model(config, private, adapter_name="uptake")
        # What stands on a layer stands on the layer with its factors.
        site = Overlay(private)
        rest.without(lambda _, part: part.order == 0).put(site)
        private = site.module
        halves: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, part in begun.items():
            layer: Any = private.get_submodule(name.removesuffix(".weight"))
            for half, value in ((layer.lora_A, part.down), (layer.lora_B, part.up)):
                half["uptake"].to(value.dtype)
                with torch.no_grad():
                    half["uptake"].weight.copy_(value)
            halves[name] = layer.lora_A["uptake"].weight, layer.lora_B["uptake"].weight

        def delta() -> Delta:
            parts = {
                name: LowRank(_value(up), _value(down), self.scale, begun[name].transposed)
                for name, (down, up) in halves.items()
            }
            return rest + Delta.of(start.base, parts, self.owner)

        moving = {id(half) for pair in halves.values() for half in pair}
        parameters = {name: half for name, half in private.named_parameters() if id(half) in moving}
        return TrainableCopy(private, parameters, delta)

    def factors(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> dict[str, LowRank] | None:
        rest, begun = self._begin(module, start, generator)
        return None if rest.parts else begun

    def _begin(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> tuple[Delta, dict[str, LowRank]]:
        """Return what of the start stays under the adapter, and where the adapter's factors begin."""
        matrices = block_matrices(module)
        own = {n: part for n, part in start.parts_of(LowRank, self.owner).items() if n in matrices}
        for name, part in own.items():
            if len(part.down) != self.rank:
                raise BadInput(
                    f"{name} has a part of rank {len(part.down)} that is {self.owner}'s: train at that rank, "
                    f"or give rank {self.rank} an owner of its own, lora(rank={self.rank},owner=second)"
                )
        rest = start.without(lambda name, _: name.owner == self.owner and name.path in own)
        begun = {}
        for name, transposed in matrices.items():
            weight = wide(module.get_parameter(name))
            into, out = weight.shape if transposed else reversed(weight.shape)
            if name in own:
                # Another scale may stand in the start: fold it into `up`.
                down, up = own[name].down, own[name].up * (own[name].scale / self.scale)
            else:
                noise = torch.rand(self.rank, into, generator=generator)
                down, up = (2 * noise - 1) * (1 / math.sqrt(into)), torch.zeros(out, self.rank)
            up, down = up.to(weight, copy=True), down.to(weight, copy=True)
            begun[name] = LowRank(up, down, self.scale, transposed)
        return rest, begun


def factor_names(name: str) -> tuple[str, str]:
    """Return what the two factors, down and up, of a weight's low-rank product are called, as peft does."""
    layer = name.removesuffix(".weight")
    return f"{layer}.lora_A.uptake.weight", f"{layer}.lora_B.uptake.weight"


@dataclass(frozen=True)
class _Frozen(Trainable):
    """No weight at all."""

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return _open_dense(module, [], start)


FROZEN: Trainable = _Frozen()  # for whoever wants a private copy to put something into


def blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the transformer's blocks: the longest module list there is."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise BadInput(f"{type(module).__name__} has no list of blocks: use trainable=all instead")
    return max(lists, key=lambda found: len(found[1]))


def block_matrices(module: nn.Module) -> dict[str, bool]:
    """Return the name of every weight matrix in the blocks, and whether it is stored [in, out]."""
    from transformers.pytorch_utils import Conv1D

    prefix, stack = blocks(module)
    return {
        f"{prefix}.{name}.weight": isinstance(part, Conv1D)
        for name, part in stack.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
    }


def _open_dense(module: nn.Module, names: list[str], start: Delta) -> TrainableCopy:
    own = {path: part.values for path, part in start.parts_of(Dense, WEIGHTS).items() if path in names}
    rest = start.without(lambda name, _: name.owner == WEIGHTS and name.path in own)
    if names and any(part.holds_weights for part in rest.parts.values()):
        raise BadInput(
            "weights cannot be trained under a gated difference of weights: train first, then gate"
        )
    # What of the start is others' stays where it is, under the weights that are trained.
    under = rest.over(module, start.base) if rest.parts else module
    stand = dict(under.named_parameters())
    with torch.no_grad():
        at = {n: wide(stand[n]) + own[n] if n in own else wide(stand[n]).clone() for n in names}
    parameters = {name: nn.Parameter(tensor) for name, tensor in at.items()}

    def delta() -> Delta:
        changed = {name: _value(parameters[name]) - wide(stand[name]) for name in names}
        return rest + Delta.dense(start.base, changed)

    return TrainableCopy(skeleton(under, parameters), parameters, delta)


def open_parts(module: nn.Module, parts: Mapping[str, Part], owner: str, start: Delta) -> TrainableCopy:
    """Return a private copy that stands at `start`, ready to train one owner's parts, of any kinds.

    Parts that the start has of this owner go on; `parts` says, by what they stand on, what others begin
    with. Raises BadInput for a part that has nothing to train.
    """
    begun = {**Delta.of(start.base, parts, owner).parts}
    begun |= {name: part for name, part in start.parts.items() if name in begun}
    site = Overlay(module)
    whole = Delta(start.base, {**start.parts, **begun})
    found = {name: leaves for name, leaves in whole.put(site).items() if name in begun}
    for name, leaves in found.items():
        if not leaves:
            raise BadInput(
                f"{name.path!r}: nothing of a {type(begun[name]).__name__} trains as a part; use All, or LoRA"
            )
        for leaf in leaves.values():
            leaf.requires_grad_()
    known = {id(leaf) for leaves in found.values() for leaf in leaves.values()}
    parameters = {name: leaf for name, leaf in site.module.named_parameters() if id(leaf) in known}

    def delta() -> Delta:
        now = {
            name: begun[name].holding({key: _value(leaf) for key, leaf in leaves.items()})
            for name, leaves in found.items()
        }
        return Delta(start.base, {**start.parts, **now})

    return TrainableCopy(site.module, parameters, delta)


def _value(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone()
