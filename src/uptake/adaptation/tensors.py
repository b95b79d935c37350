"""Tensors with a few words about them in one safetensors file: the only format of ours that holds weights.

Among the words is the SHA-256 of the whole file, taken with zeros in its own place. It is checked before
safetensors parses a byte: a setting that has changed in the words is found as a weight is.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from uptake.codec import dumps, load, parse
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.sealed import FIELD, write_whole

AboutT = TypeVar("AboutT")
_NO_SUM = "0" * 64  # what stands in the place of the sum while it is taken
_SUM = re.compile(f'"{FIELD}":"([0-9a-f]{{64}})"'.encode())


@dataclass(frozen=True)
class NetworkAbout:
    """What the file of a trained network holds besides its tensors."""

    kind: str  # the class of its method
    base: str  # fingerprint of the model it was trained on
    settings: Mapping[str, Any]  # of its method, as `describe` gives them
    about: Mapping[str, str]  # what the network is made by, before the tensors go in
    format: str = "uptake-network-1"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Write tensors and words, whole or not at all, and return the sum. Raises BadInput where it cannot.

    Tensors that share memory are each written in full, and share none when they are read again.
    """
    from safetensors.torch import save

    content = memoryview(save(_separate(tensors), {**about, FIELD: _NO_SUM}))
    header = bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    (found,) = _SUM.finditer(header)  # in a text of `about` its quotes would be escaped
    total = hashlib.sha256(content).hexdigest()
    write_whole(path, content[: found.start(1)], total.encode(), content[found.end(1) :])
    return total


def read_tensors(path: Path, what: str, expected: str = "") -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the words and the tensors of a file whose `format` is `uptake-{what}-1`.

    Raises BadInput where there is no such file or it holds something else, Damaged if it is not what was
    written, or its sum does not begin as `expected`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadInput(f"no {what} at {path}: give the file that it was saved to")
    try:
        total = _sum_of(path)
        if not total or not total.startswith(expected):
            raise Damaged(
                f"{path} is not the {what} that was written: restore it from a copy, or make it anew"
            )
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise Damaged(
            f"{path} is no readable {what} ({error}): restore it from a copy, or make it anew"
        ) from error
    if about.get("format") != f"uptake-{what}-1":
        raise BadInput(f"{path} holds no {what}: give the file that it was saved to")
    del about[FIELD]
    return about, tensors


def _sum_of(path: Path) -> str:
    """Return the sum that a file holds, "" unless it is that of its bytes."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > path.stat().st_size - 8:
            return ""
        header = file.read(length)
        found = list(_SUM.finditer(header))
        if len(found) != 1:
            return ""
        first, last = found[0].span(1)
        whole = hashlib.sha256(start + header[:first] + _NO_SUM.encode() + header[last:])
        total = hashlib.file_digest(file, lambda: whole).hexdigest()
    return total if total.encode() == found[0][1] else ""


def to_metadata(about: Any) -> dict[str, str]:
    """Return a dataclass as `write_tensors` takes it: texts as they are, the rest as JSON."""
    hints = get_type_hints(type(about))
    named = {name: getattr(about, name) for name in hints}
    return {name: value if hints[name] is str else dumps(value) for name, value in named.items()}


def from_metadata(kind: type[AboutT], about: Mapping[str, str], path: Path, what: str) -> AboutT:
    """Return what a file holds besides its tensors as the dataclass it was. Raises Damaged."""
    hints = get_type_hints(kind)
    try:
        return load(
            kind,
            {name: text if hints.get(name, str) is str else parse(text) for name, text in about.items()},
        )
    except (ValueError, RecursionError) as error:
        raise Damaged(
            f"{path} is no readable {what} ({error}): restore it from a copy, or make it anew"
        ) from None


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return 16 hexadecimal digits that change whenever any value, name, shape or type does."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in named:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(raw.numpy().data)
    return found.hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory: safetensors refuses any that do."""
    found: dict[str, Tensor] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        storage = whole.device, whole.untyped_storage().data_ptr()
        found[name] = whole.clone() if storage in storages else whole
        storages.add(storage)
    return found


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network. Raises Mismatch where they are of another shape."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise Mismatch(
            f"{path} was trained with other settings ({reason}): give the settings it was trained with"
        ) from None
