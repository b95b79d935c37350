"""States on disk: one safetensors file, tensors as tensors and the rest as JSON beside them.

Nothing is unpickled: a state is read back by the type hints of its class.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor

from uptake.adaptation.delta.delta import Delta, PackedDelta
from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM
from uptake.methods.contract.method import State

StateT = TypeVar("StateT", bound=State)
FORMAT = "uptake-state-1"


def save_state(state: State, path: Path) -> None:
    """Write a state, with all it has read, into one file."""
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    about = {"format": FORMAT, "kind": type(state).__name__, "state": json.dumps(tree, default=_no_data)}
    write_tensors(path, tensors, about)


def load_state(kind: type[StateT], path: Path, lm: LM) -> StateT:
    """Read a state of class `kind`; Mismatch unless made on `lm`, BadInput or Damaged if unreadable."""
    metadata, tensors = read_tensors(path, "state")
    if metadata.get("kind") != kind.__name__:
        raise Mismatch(
            f"{path} holds a {metadata.get('kind')}, not a {kind.__name__}: load it with its own method"
        )
    state: StateT = _decode(kind, json.loads(metadata["state"]), tensors)
    if state.base != lm.fingerprint:
        raise Mismatch(f"{path} was made on model {state.base}, not {lm.fingerprint}: load that model")
    return state


def _no_data(value: object) -> object:
    raise BadInput(
        f"the state holds a {type(value).__name__} of a store, which is searched and not saved: take the "
        "text up again from that store"
    )


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().contiguous().clone()
        return name
    if isinstance(value, Delta):
        value = value.packed()  # parts of many kinds as plain data
    if dataclasses.is_dataclass(value):
        return {
            f.name: _encode(getattr(value, f.name), f"{name}/{f.name}", tensors)
            for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _encode(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    return value


def _decode(hint: Any, tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if hint is Tensor:
        return tensors[tree]
    if hint is Delta:
        return Delta.unpacked(_decode(PackedDelta, tree, tensors))
    if dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        return hint(**{name: _decode(hints[name], part, tensors) for name, part in tree.items()})  # type: ignore[operator]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and arguments[-1] is Ellipsis:
        return tuple(_decode(arguments[0], part, tensors) for part in tree)
    if origin is tuple:
        return tuple(_decode(each, part, tensors) for each, part in zip(arguments, tree, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(arguments[1], part, tensors) for key, part in tree.items()}
    return tree
