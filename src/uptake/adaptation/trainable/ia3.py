"""(IA)^3: vectors that scale keys, values and the inner feed-forward (Liu et al. 2022, arXiv 2205.05638)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uptake.adaptation.delta import Delta, Part
from uptake.adaptation.delta.delta import check_owner
from uptake.adaptation.delta.scale import Ranges, Scale
from uptake.adaptation.trainable.opening import going_on, open_parts
from uptake.adaptation.trainable.places import (
    ATTENTION,
    FEED_FORWARD,
    is_linear,
    no_place,
    sides,
    upper_blocks,
    within,
)
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy

KEYS, VALUES = ("k_proj", "key_proj"), ("v_proj", "value_proj")
INTO_FEED_FORWARD_OUTPUT = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
# Layers that make queries, keys and values at once: all queries first, or the three of each head together.
QUERIES_FIRST = {"gpt2": "c_attn", "phi3": "qkv_proj"}
BY_HEAD = {"gpt_neox": "query_key_value", "bloom": "query_key_value"}


@dataclass(frozen=True)
class IA3(Trainable):
    """Scales of keys, values (before any rotation) and what enters the feed-forward's last layer; ones at
    first.

    `layers` says of how many upper blocks, all if none. They can be merged into the weights.
    """

    layers: int | None = None
    owner: str = "ia3"

    def __post_init__(self) -> None:
        check_owner(self.owner)

    @property
    def stacks(self) -> bool:
        # With frozen blocks below, each row by itself leaves those out.
        return self.layers is None

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return open_parts(module, self._begun(module), self.owner, start)

    def stackable(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> Mapping[str, Part] | None:
        begun = going_on(self._begun(module), self.owner, start)
        if not self.stacks or start.parts.keys() - begun.keys():
            return None
        return {name.path: part for name, part in begun.items()}

    def _begun(self, module: nn.Module) -> dict[str, Part]:
        found: dict[str, Part] = {}
        attention = within(module, ATTENTION, self.layers)
        inner = within(module, FEED_FORWARD, self.layers)
        for block, of_attention, of_feed_forward in zip(
            upper_blocks(module, self.layers), attention.items(), inner.items(), strict=True
        ):
            for path, ranges in _keys_and_values(module, *of_attention):
                found[path] = _ones(module, path, ranges=ranges)
            last = _linear(*of_feed_forward, INTO_FEED_FORWARD_OUTPUT)
            if last is None:
                raise no_place(module, f"a last layer of the feed-forward of {block} by a known name")
            found[last] = _ones(module, last, into=True)
        return found


def _keys_and_values(module: Any, path: str, part: nn.Module) -> Iterator[tuple[str, Ranges]]:
    """Yield the layers that make keys and values, and which of their entries those are."""
    keys, values = _linear(path, part, KEYS), _linear(path, part, VALUES)
    if keys and values:
        yield keys, ()
        yield values, ()
        return
    config = module.config
    kind: str = config.model_type
    fused = _linear(path, part, (QUERIES_FIRST.get(kind) or BY_HEAD.get(kind) or "",))
    if fused is None:
        raise no_place(module, "layers that make keys and values, known by their names")
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    _, out = sides(module.get_submodule(fused))
    if kind in BY_HEAD:
        yield fused, tuple((head * 3 * size + size, head * 3 * size + 3 * size) for head in range(heads))
    else:
        yield fused, ((heads * size, out),)


def _linear(path: str, part: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the path of the linear layer within a part, or the part, that has one of these names."""
    inner = ((name, layer) for name, layer in part.named_modules(prefix=path) if is_linear(layer))
    return next((name for name, _ in inner if name.rpartition(".")[2] in names), None)


def _ones(module: nn.Module, path: str, into: bool = False, ranges: Ranges = ()) -> Scale:
    width = sides(module.get_submodule(path))[0 if into else 1]
    count = sum(end - start for start, end in ranges) or width
    weight = next(module.parameters())
    kind = torch.promote_types(weight.dtype, torch.float32)
    change = torch.zeros(count, dtype=kind, device=weight.device)
    return Scale(change, "input" if into else "output", ranges)
