"""The feed-forward of a Switch (Fedus et al. 2021) over transformers' weights: all experts in two products.

Versions of transformers differ in what they drop and in what they balance; this is the published layer, and
loops over no experts.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP


class Routing:
    """What the sparse layers of a network noted since `clear`: one entry for every pass of each.

    `balance` is N sum_i f_i P_i, 1 where every expert gets as much: f_i is the share of tokens that chose
    expert i, P_i its mean probability. `taken`, [experts], is the share of all tokens that each had room for.
    """

    def __init__(self, network: nn.Module) -> None:
        self.balance: list[Tensor] = []
        self.taken: list[Tensor] = []
        for part in network.modules():
            if isinstance(part, SwitchTransformersSparseMLP):
                part.forward = partial(self._forward, part)  # type: ignore[method-assign]

    def clear(self) -> None:
        self.balance, self.taken = [], []

    def _forward(self, layer: Any, hidden: Tensor) -> Tensor:
        """Return [rows, time, width]: each token by its likeliest expert, nothing where that one is full."""
        rows, _, width = hidden.shape
        experts = layer.router.num_experts
        # The router decides in float32, whatever the rest is computed in.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = nn.functional.linear(hidden.float(), layer.router.classifier.weight.float())
            probabilities = logits.softmax(-1)
        share, chosen = probabilities.max(-1)
        chose = nn.functional.one_hot(chosen, experts)
        place = chose.cumsum(1).gather(-1, chosen[..., None])[..., 0] - 1
        kept = place < layer.router.expert_capacity
        chosen_share = chose.float().mean((0, 1))
        self.balance.append(experts * (chosen_share * probabilities.mean((0, 1))).sum())
        self.taken.append((chose * kept[..., None]).float().mean((0, 1)).detach())
        # Each expert's seats in each row; what finds none goes to a last seat that nobody reads.
        seats = min(int(place.max()) + 1, layer.router.expert_capacity)
        seat = torch.where(kept, chosen * seats + place, experts * seats)[..., None].expand(-1, -1, width)
        seated = hidden.new_zeros(rows, experts * seats + 1, width).scatter(1, seat, hidden)
        inputs = seated[:, :-1].unflatten(1, (experts, seats)).transpose(0, 1).flatten(1, 2)
        parts = [layer.experts[f"expert_{number}"] for number in range(experts)]
        into, out = (torch.stack([getattr(part, name).weight for part in parts]).mT for name in ("wi", "wo"))
        made = torch.bmm(parts[0].act(torch.bmm(inputs, into)), out)
        made = made.unflatten(1, (rows, seats)).transpose(0, 1).flatten(1, 2)
        made = nn.functional.pad(made, (0, 0, 0, 1)).gather(1, seat)
        return made * share[..., None].to(made.dtype)
