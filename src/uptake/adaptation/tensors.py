"""Tensors with a few words about them in one safetensors file: the only format of ours that holds weights.

The words hold a sum over the tensors, for safetensors itself does not notice a byte that has changed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from uptake.codec import write_whole
from uptake.errors import BadInput, Damaged, Mismatch


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and words, whole or not at all. Raises BadInput where the file cannot be written."""
    from safetensors.torch import save

    words = {**about, "sum": digest(sorted(tensors.items()))}
    write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, words))


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the words and the tensors of a file whose `format` is `uptake-{what}-1`.

    Raises BadInput where there is no such file or it holds something else, Damaged if it cannot be read or
    its tensors are not those that were written.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadInput(f"no {what} at {path}: give the file that it was saved to")
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise Damaged(
            f"{path} is no readable {what} ({error}): restore it from a copy, or make it anew"
        ) from error
    if about.get("format") != f"uptake-{what}-1":
        raise BadInput(f"{path} holds no {what}: give the file that it was saved to")
    if about.pop("sum", None) not in (None, digest(sorted(tensors.items()))):  # older files have none
        raise Damaged(f"{path} is not the {what} that was written: restore it from a copy, or make it anew")
    return about, tensors


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return 16 hexadecimal digits that change whenever any value, name, shape or type does."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in named:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(raw.numpy().data)
    return found.hexdigest()


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network. Raises Mismatch where they are of another shape."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise Mismatch(
            f"{path} was trained with other settings ({reason}): give the settings it was trained with"
        ) from None
