"""A picture of samples and energies in the plane, as PNG, from counts that a run has written down."""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aloe_data as data
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SIDE = 48  # cells of a panel, each way
SHOWN = 0.8  # of the largest coordinate: the margin is empty
CELL, GAP = 2, 4  # pixels


def counted(bits: Tensor, largest: float) -> list[int]:
    """Return how many samples [N, 32] fall in each cell, row by row from the top."""
    return _binned(data.to_points(bits.numpy().astype(np.int8), largest), largest)


def _binned(points: NDArray[np.float64], largest: float) -> list[int]:
    edge = SHOWN * largest
    found, _, _ = np.histogram2d(-points[:, 1], points[:, 0], SIDE, [[-edge, edge], [-edge, edge]])
    return [int(count) for count in found.astype(int).ravel()]


@torch.no_grad()
def heat(energy: nn.Module, largest: float) -> list[int]:
    """Return exp(f) in each cell, the mean over 16 points of it, as a share of the largest, of 255."""
    fine = SIDE * 4
    middles = (np.arange(fine) + 0.5) / fine * 2 - 1
    across, up = np.meshgrid(middles * SHOWN * largest, -middles * SHOWN * largest)
    bits = data.to_bits(np.stack([across.ravel(), up.ravel()], 1), largest)
    score = energy(torch.from_numpy(bits).float()).double()
    share = (score - score.max()).exp().view(SIDE, 4, SIDE, 4).mean((1, 3))
    return [int(value) for value in (255 * share / share.max()).round().ravel()]


SHOWN_ROWS = [(method, kind) for method in ("ALOE", "PCD") for kind in ("sampler", "scores")]
SHOWN_ROWS += [("ratio matching", "scores")]


def drawn(panels: Mapping[str, Sequence[int]], sets: Mapping[str, Callable[..., Any]]) -> bytes:
    """Return a PNG: a column a set; data above, then samples and energies of each way of training."""
    lines = [[_binned(make(2000, np.random.default_rng(7)), data.reach(name)) for name, make in sets.items()]]
    lines += [[list(panels[f"{name} {method} {kind}"]) for name in sets] for method, kind in SHOWN_ROWS]
    return png(np.block([[_panel(values) for values in line] for line in lines]))


def _panel(values: Sequence[int]) -> NDArray[np.uint8]:
    shown = np.sqrt(np.array(values, np.float64).reshape(SIDE, SIDE) / max(1, max(values)))
    dark = (255 * (1 - shown)).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    return np.pad(dark, GAP // 2, constant_values=200)


def png(grey: NDArray[np.uint8]) -> bytes:
    """Return a grey picture [height, width] as a PNG file."""
    height, width = grey.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b"".join(b"\0" + row.tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole
