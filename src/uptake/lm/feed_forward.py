"""Finds the linear layers of a block's feed-forward by what families of models call them.

Whether a weight is stored [in, out] is told by the class of its layer, never by its shape: a square weight
looks the same either way.
"""

from typing import Any, NamedTuple

from torch import nn

from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput

# Llama, Qwen, Mistral, Gemma and Phi-3; GPT-2; NeoX and Falcon; GPT-J; Phi; OPT.
_LEAVING = (
    "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc_out", "mlp.fc2", "fc2",
)  # fmt: skip
_ENTERING = (
    "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.c_fc", "mlp.dense_h_to_4h", "mlp.fc_in",
    "mlp.fc1", "fc1",
)  # fmt: skip


class LinearPlace(NamedTuple):
    """A linear layer within a model: its path, the number of its block, and how its weight is stored."""

    path: str
    layer: int
    transposed: bool  # stored [in, out], as in GPT-2's Conv1D
    width_in: int
    width_out: int

    @property
    def weight(self) -> str:
        """The name of its weight."""
        return f"{self.path}.weight"


def layer_at(module: nn.Module, depth: float) -> int:
    """Return the number of the block at a relative depth, 0 the first and 1 the last. Raises BadInput."""
    _, stack = blocks(module)
    if not 0 <= depth <= 1:
        raise BadInput(f"depth {depth}: use 0 for the first layer to 1 for the last")
    return round(depth * (len(stack) - 1))


def down_projection(module: nn.Module, layer: int) -> LinearPlace:
    """Return the layer that leads out of a block's feed-forward. Raises BadInput where there is none."""
    found = _found(module, layer, _LEAVING)
    if len(found) != 1:
        raise BadInput(
            f"{type(module).__name__}: block {layer} has no one linear layer that leads out of its "
            f"feed-forward, by the names known ({', '.join(_LEAVING)}): use a GPT-2, Llama or NeoX shape"
        )
    return found[0]


def entering_projections(module: nn.Module, layer: int) -> list[LinearPlace]:
    """Return the layers that lead into a block's feed-forward, gate and up. Raises BadInput for none."""
    found = _found(module, layer, _ENTERING)
    if not found:
        raise BadInput(
            f"{type(module).__name__}: block {layer} has no linear layer that leads into its "
            f"feed-forward, by the names known ({', '.join(_ENTERING)}): use a GPT-2, Llama or NeoX shape"
        )
    return found


def feed_forward_places(module: nn.Module, count: int, above: int = 0) -> list[LinearPlace]:
    """Return all layers of the feed-forwards of `count` blocks under the last `above`. Raises BadInput."""
    total = len(blocks(module)[1])
    if count + above > total:
        raise BadInput(f"blocks {count} under the last {above}: the model has {total}")
    return [
        place
        for layer in range(total - above - count, total - above)
        for place in (*entering_projections(module, layer), down_projection(module, layer))
    ]


def _found(module: nn.Module, layer: int, names: tuple[str, ...]) -> list[LinearPlace]:
    from transformers.pytorch_utils import Conv1D

    prefix, stack = blocks(module)
    parts: dict[str, Any] = dict(stack[layer].named_modules())
    found = []
    for name in names:
        part = parts.get(name)
        if isinstance(part, nn.Linear | Conv1D):
            transposed = isinstance(part, Conv1D)
            out, into = reversed(part.weight.shape) if transposed else part.weight.shape
            found.append(LinearPlace(f"{prefix}.{layer}.{name}", layer, transposed, into, out))
    return found
