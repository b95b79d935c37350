"""Where in a transformer something can train: its blocks, their matrices, attention and feed-forward."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from uptake.errors import BadInput

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
# State-space blocks take the weight of this layer out of it and compute with that, so that factors beside it
# would stand idle: peft refuses them.
_STATE_SPACES = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_BARE = "out_proj"
FEED_FORWARD = ("mlp", "feed_forward", "ffn", "fc2")  # of some families the second half alone has a name


def blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the transformer's blocks: the longest module list there is.

    Of an encoder-decoder those of the decoder.
    """
    return _stacks(module)[-1]


def _stacks(module: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the name and the list of blocks of each stack: of an encoder-decoder its encoder's first."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    # A block may be a list itself, or have one, of its parts or its experts.
    lists = [each for each in found if not any(each[0].startswith(f"{name}.") for name, _ in found)]
    if not lists:
        raise BadInput(f"{type(module).__name__} has no list of blocks: use trainable=all instead")
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        sides: Any = (getattr(module, f"get_{side}")() for side in ("encoder", "decoder"))
        within = [[id(part) for part in side.modules()] for side in sides]
        stacks = [[each for each in lists if id(each[1]) in side] for side in within]
        if all(stacks):
            return [max(some, key=lambda each: len(each[1])) for some in stacks]
    return [max(lists, key=lambda each: len(each[1]))]


def upper_blocks(module: nn.Module, layers: int | None) -> dict[str, nn.Module]:
    """Return the last `layers` blocks by name, all if None. Raises BadInput for more than there are.

    Of an encoder-decoder the last ones are the decoder's; all are the encoder's as well.
    """
    if layers is None:
        return {f"{name}.{i}": part for name, stack in _stacks(module) for i, part in enumerate(stack)}
    name, stack = blocks(module)
    count = layers
    if not 1 <= count <= len(stack):
        raise BadInput(f"layers {count}: the model has {len(stack)} blocks, use 1 to {len(stack)}")
    return {f"{name}.{i}": stack[i] for i in range(len(stack) - count, len(stack))}


def block_matrices(module: nn.Module, layers: int | None = None) -> dict[str, bool]:
    """Return the name of every weight matrix in the blocks that takes low-rank factors, and whether it is
    stored [in, out].
    """
    bare = getattr(getattr(module, "config", None), "model_type", None) in _STATE_SPACES
    return {
        f"{path}.weight": transposed
        for prefix, block in upper_blocks(module, layers).items()
        for path, transposed in _matrices(prefix, block).items()
        if not (bare and path.endswith(f".{_BARE}"))
    }


def attention_matrices(module: nn.Module, layers: int | None = None) -> dict[str, bool]:
    """Return the weight matrices of the blocks' attention as `block_matrices` does. Raises BadInput."""
    found = {
        f"{path}.weight": transposed
        for prefix, part in within(module, ATTENTION, layers).items()
        for path, transposed in _matrices(prefix, part).items()
    }
    if not found:
        raise no_place(module, "an attention with linear layers")
    return found


def within(module: nn.Module, names: tuple[str, ...], layers: int | None = None) -> dict[str, nn.Module]:
    """Return of each block the part that has the first of these names, by its path. Raises BadInput."""
    found = {}
    for prefix, block in upper_blocks(module, layers).items():
        name = next((name for name in names if isinstance(getattr(block, name, None), nn.Module)), None)
        if name is None:
            raise no_place(module, f"a part called {', '.join(names[:-1])} or {names[-1]} in every block")
        found[f"{prefix}.{name}"] = getattr(block, name)
    return found


def check_rank(module: nn.Module, rank: int, names: Iterable[str]) -> None:
    """Raise BadInput for a rank that none of these matrices can have: it would cost memory alone."""
    full = max((min(module.get_parameter(name).shape) for name in names), default=rank)
    if rank > full:
        raise BadInput(
            f"rank {rank:,}: no matrix that it is for has a rank above {full:,}; use that or less, such as 16"
        )


def no_place(module: nn.Module, wanted: str) -> BadInput:
    """Return the error for a module of a build that a kind of trainable does not know."""
    return BadInput(
        f"{type(module).__name__} has no place for this trainable, which wants {wanted}: use trainable=lora, "
        "or top"
    )


def is_linear(part: nn.Module) -> bool:
    """Whether a module is a linear layer, stored either way."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(part, nn.Linear | Conv1D)


def sides(part: nn.Module) -> tuple[int, int]:
    """Return the widths that enter and leave a linear layer."""
    weight: Any = part.weight
    into, out = reversed(weight.shape) if isinstance(part, nn.Linear) else weight.shape
    return int(into), int(out)


def width(module: nn.Module) -> int:
    """Return the width of what blocks hand on. Raises BadInput where the module does not say."""
    found = getattr(getattr(module, "config", None), "hidden_size", None)
    if not isinstance(found, int):
        raise no_place(module, "a configuration with a hidden_size")
    return found


def _matrices(prefix: str, part: nn.Module) -> Mapping[str, bool]:
    return {
        f"{prefix}.{name}" if name else prefix: not isinstance(inner, nn.Linear)
        for name, inner in part.named_modules()
        if is_linear(inner)
    }
