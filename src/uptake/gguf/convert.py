"""A GGUF file turned into a folder as transformers writes it: weights dequantised, nothing else changed.

Weights that the file keeps in 16 bit stay so, and all others become float32, so that nothing is lost. One
tensor is in memory at a time, and one file of the folder.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uptake.errors import BadInput
from uptake.gguf.architectures import Target, target_of
from uptake.gguf.header import AGAIN, Header, Stored
from uptake.gguf.vocabulary import tokenizer_of

if TYPE_CHECKING:
    import torch

_SHARD = 1 << 30  # bytes of one file of weights


def quantisation(header: Header) -> str:
    """Return how a file's weights are quantised, the most frequent way first: "Q4_1 79 %, Q8_0 21 %"."""
    counts: Counter[str] = Counter()
    for stored in header.tensors.values():
        counts[stored.kind] += stored.elements
    shares = [(100 * count / counts.total(), kind) for kind, count in counts.most_common()]
    # Norms and biases are left in float32, a fraction of a percent that tells nothing.
    return ", ".join(f"{kind} {share:.0f} %" for share, kind in shares if share >= 0.5)


def bytes_after(header: Header) -> int:
    """Return about how many bytes the converted folder takes."""
    return sum(
        stored.elements * (2 if stored.kind in ("F16", "BF16") else 4) for stored in header.tensors.values()
    )


def convert(header: Header, folder: Path) -> None:
    """Write model, configuration and tokenizer into an empty folder. Raises BadInput."""
    target = target_of(header, lambda stored: [float(x) for x in _weights(header, stored)])
    tokenizer = tokenizer_of(header, target.config.vocab_size, target.config.max_position_embeddings)
    tokenizer.save_pretrained(folder)
    target.config.save_pretrained(folder)
    _write_weights(header, target, folder)


def _write_weights(header: Header, target: Target, folder: Path) -> None:
    from safetensors.torch import save_file

    held: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    size = 0

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(held, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(held, name))
        held.clear()

    for name, stored in header.tensors.items():
        if name not in target.names:
            continue
        weights = target.tensor(stored, _weights(header, stored))
        held[target.names[name]] = weights
        size += weights.nbytes
        if sum(tensor.nbytes for tensor in held.values()) >= _SHARD:
            write()
    write()
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _weights(header: Header, stored: Stored) -> "torch.Tensor":
    """Return a tensor's numbers, in float32 or in the 16 bit they are kept in."""
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.fromfile(header.path, np.uint8, stored.size, offset=stored.offset)
    if len(raw) != stored.size:
        raise BadInput(f"{header.path} became shorter while it was read: leave it alone, and repeat")
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(stored.kind)
    if plain:
        found = torch.from_numpy(raw).view(plain)
    else:
        kind = GGMLQuantizationType[stored.kind]
        try:
            rows = raw.reshape(stored.elements // stored.shape[-1], -1)
            found = torch.from_numpy(dequantize(rows, kind))
        except NotImplementedError:
            raise BadInput(
                f"{header.path}: {stored.name} is quantised as {stored.kind}, which is not read; "
                "give another quantisation of the model"
            ) from None
    if not bool(torch.isfinite(found).all()):
        raise BadInput(f"{header.path}: {stored.name} holds numbers that are not finite; {AGAIN}")
    return found.reshape(stored.shape)
