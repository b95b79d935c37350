"""The usual size of every weight's training gradients: counted once for a base model, read from one file.

Dynamic evaluation's rule (Krause et al. 2018) divides by it; `uptake train dynamic-evaluation` counts it.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from uptake.adaptation.tensors import NetworkAbout, from_metadata, read_tensors
from uptake.errors import BadInput, Damaged, Mismatch

KIND = "GradientCounting"  # what a file of a network says it is of


class GradientStatistics(nn.Module):
    """Sums of squared gradients of every weight of a base model, and how many were added."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(parameters)
        self.register_buffer("count", torch.zeros(()))
        for name, parameter in parameters.items():
            self.register_buffer(_buffer(name), torch.zeros_like(parameter, requires_grad=False))

    def add(self, gradients: Iterable[Tensor | None]) -> None:
        """Count one gradient, given in the order of the names."""
        self.get_buffer("count").add_(1)
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient is not None:
                self.get_buffer(_buffer(name)).addcmul_(gradient, gradient)

    def rms(self, name: str) -> Tensor:
        """Return the root mean square of a weight's gradients."""
        return (self.get_buffer(_buffer(name)) / self.get_buffer("count")).sqrt()


def read_rms(path: Path, base: str) -> dict[str, Tensor]:
    """Return the root mean square of each weight's gradients, as a file has them for the model `base`.

    Raises BadInput, Damaged, or Mismatch where they are another model's.
    """
    if not path.is_file():
        raise BadInput(f"statistics={path}: no such file; count them with `uptake train dynamic-evaluation`")
    found = path.stat()
    return _read_rms(path.resolve(), base, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _read_rms(path: Path, base: str, changed: int, size: int) -> dict[str, Tensor]:
    metadata, tensors = read_tensors(path, "network")
    about = from_metadata(NetworkAbout, metadata, path, "network")
    if about.kind != KIND:
        raise Mismatch(
            f"{path} is a network of {about.kind}, no gradient statistics: count them with "
            "`uptake train dynamic-evaluation`"
        )
    if about.base != base:
        raise Mismatch(
            f"{path} was counted on model {about.base}, not {base}: load that model, or count again on "
            "this one"
        )
    if "count" not in tensors:
        raise Damaged(f"{path} lacks the tensor 'count': count again with `uptake train dynamic-evaluation`")
    count = tensors.pop("count")
    return {buffer.replace("/", "."): (squares / count).sqrt() for buffer, squares in tensors.items()}


def _buffer(name: str) -> str:
    # A buffer's name may hold no dot.
    return name.replace(".", "/")
