"""MEND's network (Mitchell et al. 2021, arXiv 2110.11309): makes an edit's factors of a gradient's.

A weight's gradient is the sum over tokens of δ uᵀ. The network standardises [u; δ], passes it through two
low-rank blocks shared by all layers of one shape, and gives new factors: W becomes W - α Σ δ̃ ũᵀ. Here α is
subtracted; the published code adds it, so that it ascends until training has made α negative (mend#15).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uptake.adaptation.editing.moments import Moments

SPEED = 100.0  # how much faster rates learn than blocks, as in the paper: one optimizer steps both


class Blocks(nn.Module):
    """The network of one shape of weight, [out, in], for `layers` layers of it.

    A block is h + max(0, s ⊙ (U V h + b) + o), s and o a layer's own. U, b and o begin at zero and s at one,
    so that factors come out as they went in. The bound is a clamp, whose slope at zero is one: with a relu
    nothing would ever be learnt.
    """

    def __init__(self, width_in: int, width_out: int, layers: int, rank: int) -> None:
        super().__init__()
        width = width_in + width_out
        rank = min(rank, width)
        self.width_in = width_in
        self.down = nn.Parameter(torch.randn(2, rank, width))
        self.up = nn.Parameter(torch.zeros(2, width, rank))
        self.bias = nn.Parameter(torch.zeros(2, width))
        self.scale = nn.Parameter(torch.ones(2, layers, width))
        self.offset = nn.Parameter(torch.zeros(2, layers, width))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def moments(self) -> Moments:
        """Mean and spread of what the network has seen in training."""
        return Moments(self.get_buffer("mean"), self.get_buffer("squares"), int(self.get_buffer("count")))

    def see(self, rows: Tensor) -> None:
        """Take rows [tokens, in + out] into the statistics."""
        merged = self.moments.merged(Moments.of(rows))
        with torch.no_grad():
            self.get_buffer("mean").copy_(merged.mean)
            self.get_buffer("squares").copy_(merged.squares)
            self.get_buffer("count").fill_(merged.count)

    def forward(self, rows: Tensor, layer: int, standardised: bool = True) -> Tensor:
        """Return new rows [tokens, in + out] for one of the layers."""
        hidden = self.moments.standardised(rows) if standardised else rows
        for block in range(2):
            inner = hidden @ self.down[block].T @ self.up[block].T + self.bias[block]
            hidden = hidden + (self.scale[block, layer] * inner + self.offset[block, layer]).clamp(min=0)
        return hidden


class MendNetwork(nn.Module):
    """Blocks for each shape among some weights, and a rate α for each weight.

    `shapes` are (in, out) of each weight; tokens come as (u [tokens, in], δ [tokens, out]) for each. One
    optimizer steps all: a rate learns `speed` times as fast as a weight.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        rank: int,
        alpha: float,
        standardise: bool,
        speed: float = SPEED,
    ) -> None:
        super().__init__()
        self.standardise = standardise
        self._keys = [f"{into}x{out}" for into, out in shapes]
        self._layers = [self._keys[:place].count(key) for place, key in enumerate(self._keys)]
        self.blocks = nn.ModuleDict(
            {
                f"{into}x{out}": Blocks(into, out, self._keys.count(f"{into}x{out}"), rank)
                for into, out in dict.fromkeys(shapes)
            }
        )
        self.slow_alpha = nn.Parameter(torch.full((len(self._keys),), alpha / speed))
        # It goes into the file: rates are read back as they were learnt, whatever the setting says then.
        self.register_buffer("speed", torch.tensor(speed, dtype=torch.float64))

    @property
    def alpha(self) -> Tensor:
        """The rate of each weight, [weights]."""
        return self.slow_alpha * float(self.get_buffer("speed"))

    def see(self, tokens: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take the tokens of an edit into the statistics of their shapes."""
        for key, (u, delta) in zip(self._keys, tokens, strict=True):
            self._of(key).see(torch.cat([u, delta], 1))

    def forward(self, tokens: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Return for each weight the low-rank factors (up [out, tokens], down [tokens, in]) of its edit."""
        found = []
        for place, (key, (u, delta)) in enumerate(zip(self._keys, tokens, strict=True)):
            blocks = self._of(key)
            rows = blocks(torch.cat([u, delta], 1), self._layers[place], self.standardise)
            down, up = rows[:, : blocks.width_in], rows[:, blocks.width_in :]
            found.append((-self.alpha[place] * up.T, down))
        return found

    def _of(self, key: str) -> Blocks:
        blocks = self.blocks[key]
        assert isinstance(blocks, Blocks)
        return blocks
