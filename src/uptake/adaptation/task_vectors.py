"""Task vectors (Ilharco et al. 2022, arXiv 2212.04089): what fine-tuning changed, added, scaled, taken away.

A task vector is a delta of dense parts over every weight that differs. It is kept in float32 or wider
whatever the model's type: scaled down in bfloat16 it would vanish. Where the published code prints a warning
(weights that one model lacks) or looks away (types, buffers, tied weights), this refuses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank, wide
from uptake.adaptation.delta.part import WeightPart
from uptake.errors import BadInput, Mismatch

OWNER = "task-vector"


def task_vector(module: nn.Module, tuned: nn.Module, base: str, exact: bool = False) -> Delta:
    """Return tuned - base as a delta on `base`, the fingerprint of `module`; equal weights have no part.

    With `exact` differences are float64 and the delta gives every weight of `tuned` back to the bit where its
    two values are within 2^29 of each other; else they are as wide as the weights, at least float32, and a
    weight may be off by a rounding. Raises Mismatch where the two models do not have the same weights.
    """
    before, after = dict(module.named_parameters()), dict(tuned.named_parameters())
    _same_names("parameter", before, after)
    _same_names("buffer", dict(module.named_buffers()), dict(tuned.named_buffers()))
    found = {}
    with torch.no_grad():
        for name, old in before.items():
            new = after[name]
            if old.shape != new.shape:
                raise Mismatch(
                    f"{name!r} is {tuple(old.shape)} in the base and {tuple(new.shape)} in the tuned model: "
                    "give a model that was tuned from this base"
                )
            if torch.equal(old, new.to(old.dtype)) and old.dtype == new.dtype:
                continue
            kind = torch.float64 if exact else torch.promote_types(wide(old).dtype, wide(new).dtype)
            found[name] = new.to(kind) - old.to(new.device, kind)
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, tuned.get_buffer(name).to(buffer.device)):
            raise Mismatch(
                f"buffer {name!r} differs between base and tuned model: a task vector holds weights alone"
            )
    return Delta.dense(base, found, OWNER)


def added(deltas: Sequence[Delta], overlap: Literal["sum", "refuse"] = "sum") -> Delta:
    """Return the sum of deltas. With `overlap` "refuse" no two of them may change the same weight.

    Sums of dense parts do not depend on the order of two of them, of more up to rounding. Raises BadInput for
    none, Mismatch for deltas of different bases or kinds, or an overlap that is refused.
    """
    if not deltas:
        raise BadInput("no delta to add: give at least one")
    if overlap not in ("sum", "refuse"):
        raise BadInput(f"overlap {overlap!r}: use sum or refuse")
    total = deltas[0]
    for delta in deltas[1:]:
        shared = sorted(total.names & delta.names)
        if overlap == "refuse" and shared:
            raise Mismatch(
                f"{len(shared)} weights are changed by two deltas, {shared[0]!r} among them: let them be "
                "summed, or leave one out"
            )
        total = total + delta
    return total


def analogy(a: Delta, b: Delta, c: Delta) -> Delta:
    """Return c + b - a: what b is to a, done to c."""
    return added([c, b - a])


@dataclass(frozen=True)
class PartInfo:
    """One part of a delta, for people: `size` is the Frobenius norm of a weight's change, None for others."""

    owner: str
    path: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    size: float | None
    bytes: int


def info(delta: Delta) -> list[PartInfo]:
    """Return what a delta holds, a row a part, in the order of their names."""
    rows = []
    for name, part in sorted(delta.parts.items(), key=lambda item: item[0]):
        change = part.difference() if isinstance(part, WeightPart) else None
        rows.append(
            PartInfo(
                name.owner,
                name.path,
                type(part).__name__,
                () if change is None else tuple(change.shape),
                part.down.shape[0] if isinstance(part, LowRank) else None,
                None if change is None else float(change.double().norm()),
                sum(tensor.nbytes for tensor in part.tensors().values()),
            )
        )
    return rows


def _same_names(what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    only = sorted(before.keys() ^ after.keys())
    if only:
        where = "base" if only[0] in before else "tuned model"
        raise Mismatch(
            f"{len(only)} {what}s are in one of the two models alone, {only[0]!r} in the {where}: give a "
            "model that was tuned from this base"
        )
