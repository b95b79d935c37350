"""What moved: the difference between an adapted model and its base, as one plain value.

An edit, an adaptation to a document and test-time training on neighbours all end as a Delta.
It can be added, scaled, negated, saved and put over the base it came from, and refuses any
other base. The base is never touched: `skeleton` copies a module tree and shares every tensor
that did not move.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.tensors import digest, read_tensors, write_tensors
from uptake.errors import Mismatch

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FORMAT = "uptake-delta-1"


@dataclass(frozen=True)
class LowRank:
    """A difference `scale * up @ down`; up is [out, rank], down [rank, in].

    `transposed` says that the weight it belongs to is stored [in, out], as in GPT-2's Conv1D.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    transposed: bool = False

    def dense(self) -> Tensor:
        product = (self.up @ self.down) * self.scale
        return product.T if self.transposed else product


@dataclass(frozen=True)
class Delta:
    """Differences by parameter name, with the fingerprint of the base they belong to.

    A name may have a dense and a low-rank part; they add.
    """

    base: str
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return self.dense.keys() | self.low_rank.keys()

    def difference(self, name: str) -> Tensor:
        """Return what to add to parameter `name`; KeyError if it did not move."""
        if name not in self.low_rank:
            return self.dense[name]
        product = self.low_rank[name].dense()
        return self.dense[name] + product if name in self.dense else product

    def over(self, module: ModuleT, base: str) -> ModuleT:
        """Return a copy of `module` with this delta on it, sharing all that did not move.

        Moved parameters are float32 or wider, so that a small step on a bfloat16 base is not lost.
        Raises Mismatch where `base`, the module's fingerprint, is not the one the delta names.
        """
        self.check(base)
        parameters = dict(module.named_parameters())
        unknown = self.names - parameters.keys()
        if unknown:
            raise Mismatch(
                f"delta moves {sorted(unknown)[0]!r}, which the model lacks: use the base it was made on"
            )
        with torch.no_grad():
            moved = {name: wide(parameters[name]) + self.difference(name) for name in sorted(self.names)}
        return skeleton(module, {name: nn.Parameter(t, requires_grad=False) for name, t in moved.items()})

    def check(self, base: str) -> None:
        """Raise Mismatch unless `base` is the fingerprint this delta was made on."""
        if base != self.base:
            raise Mismatch(
                f"delta belongs to base model {self.base}, not {base}: load the model it was made on"
            )

    def __add__(self, other: "Delta") -> "Delta":
        other.check(self.base)
        dense = dict(self.dense)
        for name, tensor in other.dense.items():
            dense[name] = dense[name] + tensor if name in dense else tensor
        low_rank = dict(self.low_rank)
        for name, part in other.low_rank.items():
            low_rank[name] = _stack(low_rank[name], part) if name in low_rank else part
        return Delta(self.base, dense, low_rank)

    def __mul__(self, factor: float) -> "Delta":
        low_rank = {
            name: LowRank(part.up, part.down, part.scale * factor, part.transposed)
            for name, part in self.low_rank.items()
        }
        return Delta(self.base, {name: tensor * factor for name, tensor in self.dense.items()}, low_rank)

    __rmul__ = __mul__

    def __neg__(self) -> "Delta":
        return self * -1.0

    def __sub__(self, other: "Delta") -> "Delta":
        return self + -other

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        tensors = {f"dense/{name}": tensor for name, tensor in self.dense.items()}
        scales = {}
        for name, part in self.low_rank.items():
            tensors[f"up/{name}"], tensors[f"down/{name}"] = part.up, part.down
            scales[name] = [part.scale, part.transposed]
        write_tensors(path, tensors, {"format": FORMAT, "base": self.base, "low_rank": json.dumps(scales)})

    @classmethod
    def load(cls, path: Path, base: str) -> "Delta":
        """Read a delta; Mismatch unless it belongs to `base`, BadInput or Damaged if it cannot be read."""
        metadata, tensors = read_tensors(path, "delta")
        dense = {name.removeprefix("dense/"): t for name, t in tensors.items() if name.startswith("dense/")}
        low_rank = {
            name: LowRank(tensors[f"up/{name}"], tensors[f"down/{name}"], scale, transposed)
            for name, (scale, transposed) in json.loads(metadata["low_rank"]).items()
        }
        delta = cls(metadata["base"], dense, low_rank)
        delta.check(base)
        return delta


def _stack(first: LowRank, second: LowRank) -> LowRank:
    """Add two products exactly, by putting their ranks side by side."""
    if first.transposed != second.transposed:
        raise Mismatch(
            "two low-rank parts of one weight disagree on its orientation: they are of different models"
        )
    up = torch.cat([first.up * first.scale, second.up * second.scale], dim=1)
    return LowRank(up, torch.cat([first.down, second.down]), 1.0, first.transposed)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def skeleton(module: ModuleT, replaced: Mapping[str, nn.Parameter] | None = None) -> ModuleT:
    """Copy a module tree, sharing every tensor but the `replaced` parameters; ties between weights stay."""
    memo: dict[int, object] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    parameters = dict(module.named_parameters())
    for name, new in (replaced or {}).items():
        memo[id(parameters[name])] = new
    return copy.deepcopy(module, memo)


def fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that change whenever any weight, name or type does."""
    return digest(sorted((*module.named_parameters(), *module.named_buffers())))
