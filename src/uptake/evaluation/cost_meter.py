"""What work costs: the one place where an evaluation measures seconds and memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from uptake.evaluation.memory import gpu_peak_bytes, peak_bytes, reset_gpu_peak, reset_peak
from uptake.methods.contract.spending import GpuClock, cpu_seconds
from uptake.preparation import prepared


@dataclass
class CostMeter:
    """Measures stretches of work in this process, and on its GPU where `device` is one.

    `peaks` is the most bytes of memory each method has held, `gpu_peaks` the most on the GPU.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    peaks: dict[str, int] = field(default_factory=dict)
    gpu_peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def seconds(self, into: list[float], gpu: list[float] | None = None) -> Iterator[None]:
        """Append the CPU seconds of the block, over all threads, to `into`, the GPU's to `gpu`."""
        clock = GpuClock(self.device) if gpu is not None and self.device.type == "cuda" else None
        with cpu_seconds(into):
            yield
        if gpu is not None:
            gpu.append(clock() if clock else 0.0)

    @contextmanager
    def preparation(self, into: list[float]) -> Iterator[None]:
        """Append the CPU seconds that the block spends on what is done once to `into`."""
        before = prepared().cpu
        try:
            yield
        finally:
            into.append(prepared().cpu - before)

    @contextmanager
    def memory(self, method: str) -> Iterator[None]:
        """Note the most memory that the block holds under the name of a method."""
        self.start()
        try:
            yield
        finally:
            self.note(method)

    def start(self) -> None:
        """Begin a stretch of work whose memory will be noted."""
        reset_peak()
        reset_gpu_peak(self.device)

    def note(self, method: str) -> None:
        """Note the most memory held since the start under the name of a method."""
        self.peaks[method] = max(self.peaks.get(method, 0), peak_bytes())
        if self.device.type == "cuda":
            self.gpu_peaks[method] = max(self.gpu_peaks.get(method, 0), gpu_peak_bytes(self.device))

    def clear(self) -> None:
        """Forget the memory that was noted."""
        self.peaks.clear()
        self.gpu_peaks.clear()
