"""The most memory a stretch of work held: exactly on Linux and on a GPU, else since the process began."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch


def reset_peak() -> None:
    """Let the next `peak_bytes` speak of what happens from now on, where the system can."""
    # What was freed but is still held by the allocator belongs to whoever ran before.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # no such file, or not allowed: the peak is then the process's


def peak_bytes() -> int:
    """Return the largest resident set since the last reset, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def reset_gpu_peak(device: torch.device) -> None:
    """Let the next `gpu_peak_bytes` speak of what happens from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_peak_bytes(device: torch.device) -> int:
    """Return the most bytes that tensors held on a GPU since the last reset; 0 for another device."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0
