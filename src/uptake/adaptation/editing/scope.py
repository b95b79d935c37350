"""How near a prompt is to what an edit is about, by a trained network over what a model makes of both.

SERAC's measure (Mitchell et al. 2022, arXiv 2206.06520), p = exp(-d²), with d² of two kinds: between what two
texts come to as a whole, as published, or of the edit's tokens from the nearest of the prompt's (Khattab and
Zaharia 2020, arXiv 2004.12832), each weighed by how much it says of what the edit is about.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ReadTexts:
    """Of texts: a unit vector for each token, [texts, time, size], and its weight, which are 0 at padding."""

    vectors: Tensor
    weights: Tensor  # [texts, time]; a text's come to 1

    def wide(self) -> "ReadTexts":
        """Return them in float64."""
        return ReadTexts(self.vectors.double(), self.weights.double())


class ScopeNetwork(nn.Module):
    """Makes vectors of hidden states [texts, time, width], and d² of two sets of them."""

    def __init__(self, width: int, size: int, by_tokens: bool) -> None:
        super().__init__()
        self.by_tokens = by_tokens
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, size, bias=False)
        self.weigh = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.ones(()))
        self.kept: OrderedDict[str, ReadTexts] = OrderedDict()  # texts that were read, once it is trained

    def forward(self, hidden: Tensor, lengths: Tensor) -> ReadTexts:
        """Return texts of these lengths; what stands behind a text's end is padding."""
        normed = self.norm(hidden.to(self.log_scale.dtype))
        within = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        logits = self.weigh(normed)[..., 0].masked_fill(~within, float("-inf"))
        # A text without tokens weighs nothing.
        weights = torch.softmax(logits, -1).nan_to_num(0.0)
        vectors = functional.normalize(self.project(normed), dim=-1) * within[..., None]
        if not self.by_tokens:
            whole = functional.normalize((vectors * weights[..., None]).sum(1), dim=-1)
            return ReadTexts(whole[:, None], (lengths > 0).to(whole)[:, None])
        return ReadTexts(vectors, weights)

    def distances(self, edits: ReadTexts, prompts: ReadTexts) -> Tensor:
        """Return d² of each edit from each prompt, [edits, prompts]; infinite where one is empty."""
        if not prompts.weights.shape[1]:
            return edits.weights.new_full((len(edits.weights), len(prompts.weights)), float("inf"))
        alike = torch.einsum("ets,pus->eptu", edits.vectors, prompts.vectors)
        there = prompts.weights > 0
        alike = alike.masked_fill(~there[None, :, None], -1.0).amax(-1)
        apart = ((2 - 2 * alike) * edits.weights[:, None]).sum(-1) * self.log_scale.to(alike).exp()
        empty = (edits.weights.sum(-1) == 0)[:, None] | ~there.any(-1)
        return apart.clamp(min=0).masked_fill(empty, float("inf"))
