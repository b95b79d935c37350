"""Squared norms of each unit's gradient at one layer, from what entered it and the gradient of its output.

A row belongs to one unit, a unit may have several rows, and its gradient is their sum: terms between rows of
one unit count. Exact; sums are in float64. Source: Goodfellow 2015 (arXiv 1510.01799) and Li et al. 2021
(arXiv 2110.05679), "ghost clipping". It knows no model and no pass, only tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

_FORMED = 1 << 24  # numbers of gradients that are formed at once


@dataclass(frozen=True)
class Rows:
    """Which unit each row of a pass belongs to: `owners[row]`, from 0 to `count` - 1."""

    owners: tuple[int, ...]

    @cached_property
    def count(self) -> int:
        return max(self.owners) + 1

    @cached_property
    def alone(self) -> bool:
        """Whether row i is the whole of unit i."""
        return self.owners == tuple(range(len(self.owners)))

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The rows of each unit."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        for row, owner in enumerate(self.owners):
            found[owner].append(row)
        return tuple(map(tuple, found))

    def index(self, device: torch.device) -> Tensor:
        """Return the owners as a tensor, [rows]."""
        return torch.tensor(self.owners, device=device)

    def blocks(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return tensors [rows, time, ...] as blocks [units, time of all its rows, ...], in order of units.

        Units of equal numbers of rows that follow one another share a block.
        """
        if self.alone:
            return [tensors]
        found = []
        for rows in self.groups:
            picked = [tensor[list(rows)] for tensor in tensors]
            found.append(tuple(each.reshape(1, -1, *each.shape[2:]) for each in picked))
        return found


def rows_of(tensor: Tensor, rows: Rows) -> Tensor:
    """Return a layer's tensor as [rows, time, width]; some models flatten rows and time into one."""
    return tensor.reshape(len(rows.owners), -1, tensor.shape[-1])


def matrix(inputs: Tensor, outputs: Tensor, rows: Rows) -> Tensor:
    """Return the squared norm of each unit's sum_t b_t a_t^T, [units]; a are inputs, b gradients of outputs.

    By the products of all pairs of places, or by the matrix itself, whichever is smaller.
    """
    inputs, outputs = rows_of(inputs, rows), rows_of(outputs, rows)
    return torch.cat([_matrices(a, b) for a, b in rows.blocks(inputs, outputs)])


def _matrices(a: Tensor, b: Tensor) -> Tensor:
    a, b = _common(a, b)
    time, size = a.shape[1], a.shape[-1] * b.shape[-1]
    if 2 * time * time < size:
        return (a @ a.mT * (b @ b.mT)).sum((1, 2), dtype=torch.float64)
    each = max(1, _FORMED // size)
    parts = zip(torch.split(a, each), torch.split(b, each), strict=True)
    return torch.cat([(y.mT @ x).square().sum((1, 2), dtype=torch.float64) for x, y in parts])


def bias(outputs: Tensor, rows: Rows) -> Tensor:
    """Return the squared norm of each unit's sum of output gradients, [units]."""
    return vectors(rows_of(outputs, rows).sum(1, dtype=wide_sum(outputs)), rows)


def vectors(gradients: Tensor, rows: Rows) -> Tensor:
    """Return the squared norm of each unit's sum of the rows' gradients [rows, ...], [units]."""
    flat = gradients.flatten(1).double()
    summed = flat.new_zeros(rows.count, flat.shape[1])
    return summed.index_add_(0, rows.index(flat.device), flat).square().sum(1)


def embedding(ids: Tensor, outputs: Tensor, rows: Rows, left_out: int | None = None) -> Tensor:
    """Return the squared norm of each unit's gradient of an embedding, [units].

    `ids` are [rows, time]; a token that comes twice in a unit has one sum. `left_out` is a token that never
    gets a gradient (`padding_idx`).
    """
    outputs = rows_of(outputs, rows)
    ids = ids.reshape(len(rows.owners), -1)
    owners = rows.index(ids.device)[:, None].expand_as(ids)
    kept = torch.ones_like(ids, dtype=torch.bool) if left_out is None else ids != left_out
    pairs = torch.stack([owners[kept], ids[kept]])
    found, place = torch.unique(pairs, dim=1, return_inverse=True)
    sums = outputs.new_zeros(found.shape[1], outputs.shape[-1], dtype=wide_sum(outputs))
    sums.index_add_(0, place, outputs[kept].to(sums.dtype))
    squares = sums.square().sum(1, dtype=torch.float64)
    return squares.new_zeros(rows.count).index_add_(0, found[0], squares)


@dataclass(frozen=True)
class Tied:
    """What the output side of a weight that is also an embedding leaves for the other side.

    `inputs` are what entered it and `gradients` those of its outputs at the tokens of each unit alone, a pair
    a unit: [places, width] and [places, tokens of the unit].
    """

    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    @classmethod
    def of(cls, ids: Tensor, inputs: Tensor, outputs: Tensor, rows: Rows) -> "Tied":
        inputs, outputs = rows_of(inputs, rows), rows_of(outputs, rows)
        ids = ids.reshape(len(rows.owners), -1)
        blocks = rows.blocks(ids, inputs, outputs)
        singles = [(i[unit], a[unit], b[unit]) for i, a, b in blocks for unit in range(len(i))]
        return cls(tuple(a for _, a, _ in singles), tuple(b[:, i] for i, _, b in singles))

    def cross(self, outputs: Tensor, rows: Rows, kept: Tensor) -> Tensor:
        """Return twice the inner product of the two sides' gradients, [units].

        `outputs` are the gradients of what the embedding gave; `kept`, [rows, time], are the tokens that get
        one at all.
        """
        outputs = rows_of(outputs, rows) * kept[..., None]
        each = [own[unit] for (own,) in rows.blocks(outputs) for unit in range(len(own))]
        found = []
        for a, b, e in zip(self.inputs, self.gradients, each, strict=True):
            a, e = _common(a, e)
            found.append((b.to(a.dtype) * (a @ e.mT)).sum(dtype=torch.float64))
        return 2 * torch.stack(found)


def own(module: nn.Module, inputs: Tensor, outputs: Tensor, names: Sequence[str], rows: Rows) -> Tensor:
    """Return the squared norm of each unit's gradient of a layer's small parameters, [units].

    For layers that see each row apart and are cheap to run again, such as normalisations: row by row, by
    autograd. Raises ValueError where the layer does not use one of them.
    """
    parameters = [module.get_parameter(name) for name in names]
    total = torch.zeros(rows.count, dtype=torch.float64, device=outputs.device)
    each: list[list[Tensor]] = []
    with torch.enable_grad():
        for row in range(len(rows.owners)):
            again = type(module).forward(module, inputs[row : row + 1].detach())
            found = torch.autograd.grad(again, parameters, outputs[row : row + 1], allow_unused=True)
            if any(gradient is None for gradient in found):
                raise ValueError("is used outside of its layer")
            each.append([gradient for gradient in found if gradient is not None])
    for gradients in zip(*each, strict=True):
        total += vectors(torch.stack(gradients), rows)
    return total


def wide_sum(tensor: Tensor) -> torch.dtype:
    """Return the type that many numbers of a tensor are summed in: float32 or wider."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one type, float32 or wider."""
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(kind), b.to(kind)
