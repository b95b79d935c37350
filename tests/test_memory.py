"""Peak memory is that of the stretch of work, not of the whole process."""

import sys

import numpy as np
import pytest
import torch

from uptake.evaluation.cost_meter import CostMeter
from uptake.evaluation.memory import gpu_peak_bytes, peak_bytes, reset_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the peak be reset")
def test_a_peak_is_seen_and_forgotten() -> None:
    reset_peak()
    before = peak_bytes()
    block = np.ones(25_000_000)
    del block
    assert 150e6 < peak_bytes() - before < 400e6
    reset_peak()
    assert abs(peak_bytes() - before) < 100e6


class FakeGpu:
    """What torch.cuda says of a GPU that `hold` takes memory of, and whose events are a second apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = self.now = 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr("uptake.evaluation.cost_meter.GpuClock", self.clock)

    def reset(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.peak = 0

    def hold(self, count: int) -> None:
        self.peak = max(self.peak, count)
        self.now += 1

    def clock(self, device: torch.device) -> object:
        started = self.now
        return lambda: float(self.now - started)


def test_memory_and_seconds_of_a_gpu_are_noted_by_method(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, meter = FakeGpu(monkeypatch), CostMeter(torch.device("cuda:0"))
    for method, most in (("ttt-nn", 700), ("base", 300), ("ttt-nn", 500)):
        spent: list[float] = []
        with meter.memory(method), meter.seconds([], spent):
            gpu.hold(most)
            gpu.hold(most - 100)
        assert spent == [2.0]
    assert meter.gpu_peaks == {"ttt-nn": 700, "base": 300} and meter.peaks.keys() == meter.gpu_peaks.keys()
    meter.clear()
    assert not meter.gpu_peaks and not meter.peaks


def test_where_there_is_no_gpu_none_is_asked() -> None:
    meter, spent = CostMeter(), list[float]()
    with meter.memory("base"), meter.seconds([], spent):
        pass
    assert spent == [0.0] and meter.gpu_peaks == {} and meter.peaks["base"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_memory_of_a_real_gpu() -> None:
    device, meter, spent = torch.device("cuda"), CostMeter(torch.device("cuda")), list[float]()
    with meter.memory("base"), meter.seconds([], spent):
        held = torch.ones(25_000_000, device=device)
        del held
    assert meter.gpu_peaks["base"] >= 100_000_000 == gpu_peak_bytes(device) // 10**8 * 10**8
    assert spent[0] > 0
