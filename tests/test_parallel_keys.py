"""Keys that several processes read are those that one reads, also where some of the processes die."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
import uptake
from uptake.errors import BadInput
from uptake.lm.causal import Causal
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.parallel import ParallelKeyer

TEXTS = ["the cat sat on the mat. " * 9, "a", "", "dogs run over hills and far away. " * 5, "and then? " * 30]


def loaded(folder: Path) -> Causal:
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    lm = uptake.load(str(folder))
    assert isinstance(lm, Causal)
    return lm


def alike(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.values, other.values) and np.array_equal(one.starts, other.starts)
        assert one.keys.shape == other.keys.shape
        np.testing.assert_allclose(one.keys, other.keys, rtol=2e-3, atol=2e-3)


@pytest.mark.long
def test_two_processes_read_what_one_does(tmp_path: Path) -> None:
    lm = loaded(tmp_path / "m")
    expected = TokenKeyer(lm).read(TEXTS)
    with ParallelKeyer(lm, 2) as keys:
        keys.batch_tokens = 128
        assert keys.fingerprint == TokenKeyer(lm).fingerprint
        alike(keys.read(TEXTS), expected)
        (process,) = keys._alive.values()
        alike(keys.read(TEXTS), expected)
        os.kill(process.pid, signal.SIGKILL)
        alike(keys.read(TEXTS), expected)
        assert not keys._alive
        alike(keys.read(TEXTS), expected)
    with ParallelKeyer(lm, 3) as keys:
        keys.batch_tokens = 64
        for place, process in enumerate(keys._alive.values()):
            if place:
                os.kill(process.pid, signal.SIGKILL)
        alike(keys.read(TEXTS), expected)
        assert len(keys._alive) == 1
    assert not keys._alive and not process.is_alive()


@pytest.mark.long
def test_a_model_that_changed_on_the_disk_is_refused(tmp_path: Path) -> None:
    lm = loaded(tmp_path / "m")
    toys.module(seed=1).save_pretrained(tmp_path / "m")
    with ParallelKeyer(lm, 2) as keys, pytest.raises(BadInput, match="changed while it was being read"):
        keys.batch_tokens = 64
        keys.read(TEXTS)


def test_by_itself_it_is_the_plain_one_and_needs_a_name_for_more() -> None:
    lm = toys.lm()
    with ParallelKeyer(lm, 1) as keys:
        for one, other in zip(keys.read(TEXTS), TokenKeyer(lm).read(TEXTS), strict=True):
            assert np.array_equal(one.keys, other.keys)
    with pytest.raises(BadInput, match="use 1 or more"):
        ParallelKeyer(lm, 0)
    bare = Causal(toys.module(), lm.tokenizer)
    with pytest.raises(BadInput, match="several workers each load the model"):
        ParallelKeyer(bare, 2)
