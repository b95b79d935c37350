"""Peak memory is that of the stretch of work, not of the whole process."""

import sys

import numpy as np
import pytest

from uptake.evaluation.memory import peak_bytes, reset_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the peak be reset")
def test_a_peak_is_seen_and_forgotten() -> None:
    reset_peak()
    before = peak_bytes()
    block = np.ones(25_000_000)
    del block
    assert 150e6 < peak_bytes() - before < 400e6
    reset_peak()
    assert abs(peak_bytes() - before) < 100e6
