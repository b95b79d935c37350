"""Tensors with a few words about them in one safetensors file: the only format of ours that holds weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from uptake.errors import BadInput, Damaged, Mismatch
from uptake.plain import write_whole


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and words, whole or not at all. Raises BadInput where the file cannot be written."""
    from safetensors.torch import save

    write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(about)))


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the words and the tensors of a file whose `format` is `uptake-{what}-1`.

    Raises BadInput where there is no such file or it holds something else, Damaged if unreadable.
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
    return about, tensors


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a network. Raises Mismatch where they are of another shape."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise Mismatch(
            f"{path} was trained with other settings ({reason}): give the settings it was trained with"
        ) from None
