"""Cells whose edges each compute one of a few operations, a task's own (TAMS, arXiv 2207.03509)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta.module import Inserted
from uptake.adaptation.delta.overlay import Overlay
from uptake.adaptation.delta.part import Name

# What an edge may compute. The paper has two convolutions over places besides: what entered a cell at the
# places before is in no cache of keys and values, so a text would be continued otherwise than it is scored.
OPERATIONS = ("none", "identity", "linear", "glu")
NODES = 3
EDGES = sum(2 + node for node in range(NODES))  # each node reads both inputs and all nodes before it


@dataclass(frozen=True, eq=False)
class Cell(Inserted):
    """Adds to a module's output what a cell makes of it: two narrow inputs, three nodes, a way back up.

    A node is the sum of its edges, the cell's output the mean of its nodes. `values["mix"]`
    [edges, operations] says how much of each operation an edge computes; one entry a row is 1 where an
    architecture was chosen. It does not train with the rest.
    """

    def build(self) -> nn.Module:
        inner, width = self.values["in0.weight"].shape
        return _Cell(width, inner)

    def run(self, network: nn.Module, output: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        found: Tensor = network(output)
        return output + found.to(output.dtype)

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        found = super().apply(site, name)
        return {key: leaf for key, leaf in found.items() if key != "values/mix"}

    @classmethod
    def fresh(cls, width: int, inner: int, chosen: Sequence[int], generator: torch.Generator) -> Self:
        """Return one that changes nothing yet: what leads out is zero, all else random.

        `chosen` names the operation of each edge, by its number.
        """

        def drawn(*shape: int) -> Tensor:
            bound: float = shape[-1] ** -0.5
            return bound * (2 * torch.rand(shape, generator=generator) - 1)

        values: Mapping[str, Tensor] = {
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
            **{f"in{number}.weight": drawn(inner, width) for number in (0, 1)},
            **{f"in{number}.bias": torch.zeros(inner) for number in (0, 1)},
            **{name: drawn(EDGES, inner, inner) for name in ("linear", "value", "gate")},
            **{f"{name}_bias": torch.zeros(EDGES, inner) for name in ("linear", "value", "gate")},
            "up.weight": torch.zeros(width, inner),
            "up.bias": torch.zeros(width),
            "mix": functional.one_hot(torch.tensor([*chosen]), len(OPERATIONS)).float(),
        }
        return cls(values)


class _Cell(nn.Module):
    linear: Tensor
    value: Tensor
    gate: Tensor
    mix: Tensor

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.in0, self.in1 = nn.Linear(width, inner), nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        for name in ("linear", "value", "gate"):
            self.register_parameter(name, nn.Parameter(torch.empty(EDGES, inner, inner)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(EDGES, inner)))
        self.register_parameter("mix", nn.Parameter(torch.empty(EDGES, len(OPERATIONS))))

    def forward(self, given: Tensor) -> Tensor:
        known = self.norm(given.to(self.up.weight.dtype))
        states = [functional.relu(self.in0(known)), functional.relu(self.in1(known))]
        # Where somebody asks how much an edge should have of each, none may be left out.
        needed = torch.ones_like(self.mix) if self.mix.requires_grad else self.mix
        shares, edge = needed.tolist(), 0
        for _ in range(NODES):
            terms = []
            for state in states:
                terms += self._edge(edge, shares[edge], state)
                edge += 1
            states.append(torch.stack(terms).sum(0) if terms else torch.zeros_like(states[0]))
        found: Tensor = self.up(torch.stack(states[-NODES:]).mean(0))
        return found

    def _edge(self, edge: int, shares: Sequence[float], state: Tensor) -> list[Tensor]:
        """Return what each operation of an edge makes of its input, as much of it as the edge has."""
        made: tuple[Callable[[], Tensor], ...] = (
            lambda: torch.zeros_like(state),
            lambda: state,
            lambda: functional.relu(self._linear("linear", edge, state)),
            lambda: self._linear("value", edge, state) * self._linear("gate", edge, state).sigmoid(),
        )
        return [
            self.mix[edge, number] * operation()
            for number, (share, operation) in enumerate(zip(shares, made, strict=True))
            if share != 0
        ]

    def _linear(self, name: str, edge: int, state: Tensor) -> Tensor:
        return functional.linear(state, getattr(self, name)[edge], getattr(self, f"{name}_bias")[edge])
