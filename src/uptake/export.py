"""A delta as a stock peft LoRA adapter, for whoever serves models and knows nothing of Uptake.

Only what peft's LoRA can express is exported: low-rank parts on the weight matrices of linear layers.
Everything else is refused with the reason. `Delta.save` writes any delta, in a format of our own.
"""

import json
from pathlib import Path

import torch
from torch import nn

from uptake.adaptation.delta import Delta, Dense, LowRank
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.wrappers import Routed
from uptake.sealed import write_whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export_peft(delta: Delta, lm: Causal, folder: str | Path) -> Path:
    """Write the delta as a LoRA adapter that `peft.PeftModel.from_pretrained(base, folder)` loads.

    `folder` must not exist or be empty; it is returned. The adapter's scale is folded into its
    weights, float32, padded with zeros to one rank. Raises Mismatch where the delta is of another
    base, BadInput with the reason where it is no LoRA adapter or the folder cannot be written.
    """
    delta.check(lm.fingerprint)
    parts = _exportable(delta, lm.module)
    folder = check_folder(folder)
    from peft import LoraConfig, TaskType
    from safetensors.torch import save

    rank = max(part.down.shape[0] for part in parts.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(parts),
        fan_in_fan_out=any(part.transposed for part in parts.values()),
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        base_model_name_or_path=lm.name or None,
    )
    settings = config.to_dict()  # type: ignore[no-untyped-call]
    described = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    tensors = {}
    for name, part in parts.items():
        down, up = _padded(part, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make {folder}: {error.strerror}; give a folder you may write to") from None
    write_whole(folder / WEIGHTS, save(tensors, {"format": "pt", "uptake_base": delta.base}))
    write_whole(folder / CONFIG, json.dumps(described, indent=2, sort_keys=True).encode())
    return folder


def check_folder(folder: str | Path) -> Path:
    """Return the folder as a path; BadInput unless it is new or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: already there; give a new or an empty folder")
    return folder


def only_delta(state: object, answering: LM) -> Delta:
    """Return the delta of a state whose LM, `answering`, is its base with that delta and nothing else.

    Raises BadInput where the method changes more than weights: a context, a memory, a mixture.
    """
    while isinstance(answering, Routed) and len(answering.parts) == 1:
        answering = answering.parts[0]
    delta = getattr(state, "delta", None)
    if not isinstance(delta, Delta) or not isinstance(answering, Causal):
        raise BadInput(
            f"the method changes more than weights ({type(answering).__name__}), which no adapter can hold: "
            "choose a method that changes weights alone, such as ttt-nn"
        )
    return delta


def _exportable(delta: Delta, module: nn.Module) -> dict[str, LowRank]:
    """Return the low-rank parts by the name of their layer, or BadInput that says what cannot be exported."""
    from transformers.pytorch_utils import Conv1D

    for place, other in sorted(delta.parts.items(), key=lambda item: item[0]):
        if not isinstance(other, LowRank):
            what = "has a dense difference" if isinstance(other, Dense) else f"has a {type(other).__name__}"
            raise BadInput(
                f"{place.path or 'the model'} {what} and a LoRA adapter holds low-rank parts only: "
                "adapt with --set trainable=lora, or save the delta with Delta.save"
            )
    low_rank = delta.parts_of(LowRank)
    if not any(bool(part.up.any()) and bool(part.down.any()) for part in low_rank.values()):
        raise BadInput(
            "the delta is empty and there is no adapter to export: let the model read something first"
        )
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    head = getattr(module, "get_output_embeddings", lambda: None)()
    parts = {}
    for name, part in sorted(low_rank.items()):
        layer = name.removesuffix(".weight")
        weight = module.get_parameter(name)
        if head is not None and weight is head.weight:
            raise BadInput(
                f"{name} is the output embedding, which an exported adapter does not change: "
                "adapt with --set trainable=lora, which trains the blocks alone"
            )
        if len(names[id(weight)]) > 1:
            raise BadInput(
                f"{name} is tied to {next(n for n in names[id(weight)] if n != name)} and a LoRA adapter "
                "would change one of them alone: remove its part from the delta"
            )
        if layer == name or not isinstance(module.get_submodule(layer), nn.Linear | Conv1D):
            kind = type(module.get_submodule(name.rpartition(".")[0])).__name__
            raise BadInput(
                f"{name} belongs to a layer of kind {kind}, and an exported adapter changes linear "
                "layers alone: adapt with --set trainable=lora"
            )
        parts[layer] = part
    return parts


def _padded(part: LowRank, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return down [rank, in] and up [out, rank], the scale within; ranks that were not there are zeros."""
    lacking = rank - part.down.shape[0]
    down = nn.functional.pad(part.down.detach().float().cpu(), (0, 0, 0, lacking))
    up = nn.functional.pad((part.up.detach() * part.scale).float().cpu(), (0, lacking))
    return down.contiguous(), up.contiguous()
