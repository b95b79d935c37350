"""A method's network beside a model in float64: cast to it, kept exactly on disk, or refused in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import conformance
import toys
from conformance import A, Subject, logs, read
from uptake import methods
from uptake.adaptation.delta import Delta
from uptake.errors import BadInput
from uptake.methods.contract.learned import Learned
from uptake.methods.finetune import Finetune

LEARNED = [name for name in methods.names() if isinstance(methods.find(name).method, Learned)]


@pytest.mark.parametrize("name", LEARNED)
def test_a_network_works_beside_a_model_in_float64(name: str) -> None:
    lm, narrow = toys.lm(dtype=torch.float64), toys.lm()
    subject = Subject(conformance.example(methods.find(name)))
    found, plain = (logs(subject, one, read(subject, one, A)) for one in (lm, narrow))
    assert torch.allclose(found, plain, atol=1e-3)


def test_on_top_of_an_adapted_model_too() -> None:
    lm = toys.lm(dtype=torch.float64)
    tune = Finetune.example()
    adapted = tune.adapted([replace(tune.init(lm), delta=Delta(lm.fingerprint))], lm)
    method = methods.find("fwl").method.example()
    assert (
        method.adapted([method.init(adapted)], adapted).step(torch.tensor([[0, 60, 61]]))[0].isfinite().all()
    )


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    lm = toys.lm(dtype=torch.float64)
    method: Any = methods.find("fwl").method
    network = method.fresh(lm)
    with torch.no_grad():
        network.layer.second.add_(1 / 3)
    method.save(network, lm, tmp_path / "network")
    loaded = replace(method, weights=str(tmp_path / "network")).network(lm)
    assert torch.equal(loaded.layer.second, network.layer.second)
    assert loaded.layer.second.dtype == torch.float64


def test_a_narrower_one_in_memory_is_refused() -> None:
    method: Any = methods.find("fwl").method
    held = replace(method, trained=method.fresh(toys.lm()))
    with pytest.raises(
        BadInput, match=r"torch\.float32 in memory beside a model of torch\.float64: give netw"
    ):
        held.init(toys.lm(dtype=torch.float64))
