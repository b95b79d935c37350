"""States on disk: one safetensors file, tensors as tensors and the rest as JSON beside them.

Nothing is unpickled: a state is read back by the type hints of its class.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from cattrs import Converter
from torch import Tensor

from uptake.adaptation.delta.delta import Delta, PackedDelta
from uptake.adaptation.tensors import from_metadata, read_tensors, to_metadata, write_tensors
from uptake.codec import Malformed, converter, load
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.lm.base import LM
from uptake.methods.contract.method import Reading, State

StateT = TypeVar("StateT", bound=State)
FORMAT = "uptake-state-1"


@dataclass(frozen=True)
class _About:
    """What the file says beside the tensors; in `state` a tensor is the name it has in the file."""

    kind: str
    state: Any
    format: str = FORMAT


def save_state(state: State, path: Path) -> None:
    """Write a state, with all it has read, into one file. Raises BadInput for what cannot be saved."""
    tensors: dict[str, Tensor] = {}
    tree = _converter(tensors).unstructure(state)
    write_tensors(path, tensors, to_metadata(_About(type(state).__name__, tree)))


def load_state(kind: type[StateT], path: Path, lm: LM) -> StateT:
    """Read a state of class `kind`; Mismatch unless made on `lm`, BadInput or Damaged if unreadable.

    Its tensors come to where the model is, but for those that its class keeps with the processor.
    """
    metadata, tensors = read_tensors(path, "state")
    about = from_metadata(_About, metadata, path, "state")
    if about.kind != kind.__name__:
        raise Mismatch(f"{path} holds a {about.kind}, not a {kind.__name__}: load it with its own method")
    try:
        state = load(kind, about.state, _converter(tensors))
    except Malformed as error:
        raise Damaged(f"{path} holds no {about.kind} that can be read ({error}): make it anew") from None
    if state.base != lm.fingerprint:
        raise Mismatch(f"{path} was made on model {state.base}, not {lm.fingerprint}: load that model")
    placed: StateT = _placed(state, lm.device)
    return placed


def _placed(value: Any, device: torch.device) -> Any:
    """Return a value with the tensors in it on a device, but for what a state keeps with the processor."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Delta):
        parts = {
            name: part.holding({key: each.to(device) for key, each in part.tensors().items()})
            for name, part in value.parts.items()
        }
        return Delta(value.base, parts)
    if isinstance(value, Mapping):
        return {name: _placed(each, device) for name, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_placed(each, device) for each in value))
    if isinstance(value, tuple):
        return tuple(_placed(each, device) for each in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, Reading)):
        return value
    stays = value.with_processor if isinstance(value, State) else ()
    changed = {
        field.name: _placed(getattr(value, field.name), device)
        for field in dataclasses.fields(value)
        if field.init and field.name not in stays
    }
    return dataclasses.replace(value, **changed)


def _converter(tensors: dict[str, Tensor]) -> Converter:
    """Return a converter for states that puts tensors aside by name, and takes them from there."""
    made = converter(_no_data)

    def write(tensor: Tensor) -> str:
        name = str(len(tensors))
        tensors[name] = tensor.detach().contiguous().clone()
        return name

    def read(name: Any, _: Any) -> Tensor:
        if not isinstance(name, str) or name not in tensors:
            raise Malformed(f"is {name!r:.60}, and there is no such tensor")
        return tensors[name]

    made.register_unstructure_hook(Tensor, write)
    made.register_structure_hook(Tensor, read)
    # Parts of many kinds as plain data.
    made.register_unstructure_hook(Delta, lambda delta: made.unstructure(delta.packed()))
    made.register_structure_hook(Delta, lambda data, _: Delta.unpacked(made.structure(data, PackedDelta)))
    return made


def _no_data(value: object) -> NoReturn:
    raise BadInput(
        f"the state holds a {type(value).__name__} of a store, which is searched and not saved: take the "
        "text up again from that store"
    )
