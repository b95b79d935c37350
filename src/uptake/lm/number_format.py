"""Which number format a model is computed in where nobody says: float32, or bfloat16 where that is faster.

A small model always takes float32. On a processor a larger one takes what a one-off probe says, which is kept
in the cache: bfloat16 may be three times as fast, or seven times slower where nothing computes it natively.
"""

import contextlib
import platform
import time
from pathlib import Path

import torch
from torch import nn

from uptake.adaptation.by_size import SMALL
from uptake.kept import cache_of, keep, read_kept

AUTO = "auto"
WORTH = 0.8  # of float32's time: what bfloat16 must stay below, for it is coarser
_FIRST_OF = 3  # runs, of which the fastest counts


def format_for(device: str, weights: int) -> str:
    """Return the number format for a model of so many weights on a device, measured once on a CPU."""
    if weights <= SMALL:
        return "float32"
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device != "cpu":
        return "float32"
    return "bfloat16" if _measured() < WORTH else "float32"


def _measured() -> float:
    """Return the time that bfloat16 takes here, in shares of float32's; from the cache if it is there."""
    here = f"{_processor()} {torch.__version__} {torch.get_num_threads()}"
    folder = cache_of("formats")
    share = (read_kept(folder, here) or {}).get("share")
    if not isinstance(share, float):
        share = probe()
        keep(folder, here, {"share": share})
    return share


def probe() -> float:
    """Return the time of a block and an unembedding in bfloat16, there and back, in shares of float32's."""
    took = []
    for dtype in (torch.float32, torch.bfloat16):
        blocks, inputs = _blocks().to(dtype), torch.ones(1, 256, 512, dtype=dtype)
        took.append(min(_seconds(blocks, inputs, dtype) for _ in range(_FIRST_OF)))
    return took[1] / took[0]


def _seconds(blocks: nn.Module, inputs: torch.Tensor, dtype: torch.dtype) -> float:
    started = time.process_time()
    # As a model of less than float32 is computed: lm/causal.py.
    with torch.autocast("cpu", dtype) if dtype.itemsize < 4 else contextlib.nullcontext():
        out = blocks(inputs)
    out.float().sum().backward()
    return time.process_time() - started


def _blocks() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(512, 8, 1536, dropout=0.0, batch_first=True)
        return nn.Sequential(layer, nn.Linear(512, 8192))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
