"""LoRA: low-rank products added to weight matrices, trained in peft's layers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uptake.adaptation.delta import Delta, LowRank, Overlay, Part, wide
from uptake.adaptation.delta.delta import check_owner
from uptake.adaptation.draws import drawing_from
from uptake.adaptation.trainable.opening import value_of
from uptake.adaptation.trainable.places import block_matrices, check_rank
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput


@dataclass(frozen=True)
class LoRA(Trainable):
    """A low-rank product added to every weight matrix of the (upper) blocks (Hu et al. 2021), by peft."""

    rank: int = 16
    alpha: int = 32
    owner: str = "lora"  # two trainings under two owners stand in one delta
    layers: int | None = None  # of how many upper blocks; none: of all

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise BadInput(f"LoRA rank {self.rank}, alpha {self.alpha}: use 1 or more of each")
        check_owner(self.owner)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / self.rank

    @property
    def stacks(self) -> bool:
        # With frozen blocks below, each row by itself leaves those out.
        return self.layers is None

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
        rest.without(lambda _, part: part.order <= 0).put(site)
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
                name: LowRank(value_of(up), value_of(down), self.scale, begun[name].transposed)
                for name, (down, up) in halves.items()
            }
            return rest + Delta.of(start.base, parts, self.owner)

        moving = {id(half) for pair in halves.values() for half in pair}
        parameters = {name: half for name, half in private.named_parameters() if id(half) in moving}
        return TrainableCopy(private, parameters, delta)

    def stackable(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> Mapping[str, Part] | None:
        if not self.stacks:
            return None
        rest, begun = self._begin(module, start, generator)
        return None if rest.parts else begun

    def _begin(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> tuple[Delta, dict[str, LowRank]]:
        """Return what of the start stays under the adapter, and where the adapter's factors begin."""
        matrices = block_matrices(module, self.layers)
        check_rank(module, self.rank, matrices)
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
