"""What a state holds is read back to where its method works with it: by the model, or by the processor."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import conformance
import toys
from conformance import A, B, Subject, read
from uptake import methods
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.transforms import Mask
from uptake.methods.contract.state import load_state, save_state

# What numpy reads, or what is joined to tensors that a method has brought from the device: it stays.
STAYS = {
    "knn-lm": {"keys", "values", "ends"},
    "n-gram": {"tokens"},
    "grace": {"keys", "values"},
    "memit": {"keys", "changes"},
    "wise": {"copies"},
    "ultraedit": {"moments"},
}
FOLLOWS = ("mac", "fwl", "hidden-state-optimisation", "ttt-nn", "mend", "slag", "ttt-nn+knn-lm")


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor within, by the name of the field of a state that it is in."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Delta):
        for part in value.parts.values():
            yield from ((name, each) for each in part.tensors().values())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            yield from tensors(inner, field.name if hasattr(value, "history") else name)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each, name)
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors(each, name)


@pytest.mark.parametrize("name", [*STAYS, *FOLLOWS])
def test_a_state_is_read_back_beside_its_model(name: str, tmp_path: Path) -> None:
    lm = toys.lm()
    subject = Subject(conformance.example(methods.find(name)))
    state = read(subject, lm, A, B)
    save_state(state, tmp_path / "state")
    elsewhere: Any = SimpleNamespace(fingerprint=lm.fingerprint, device=torch.device("meta"))
    found = [*tensors(load_state(type(state), tmp_path / "state", elsewhere))]
    stays = {field for part in name.split("+") for field in STAYS.get(part, ())}
    assert {field for field, _ in found} >= stays and len(found) == len([*tensors(state)]) > 0
    for field, tensor in found:
        assert tensor.device.type == ("cpu" if field in stays else "meta"), field


def test_what_a_mask_remembers_goes_on_beside_its_parameters() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="meta"))
    descent = GradientDescent({"a": parameter}, AdamW(1e-3), [Mask()], {"a|mask_kept": torch.ones(3)})
    assert descent.optimizer_state["a|mask_kept"].device.type == "meta"
