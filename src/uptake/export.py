"""A delta as a stock peft adapter, for whoever serves models and knows nothing of Uptake.

Only what peft can express is exported: low-rank parts on the weight matrices of linear layers (LoRA), scales
of what enters or leaves them ((IA)^3), or a soft prompt (prompt tuning), one kind an adapter.
Everything else is refused with the reason. `Delta.save` writes any delta, in a format of our own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, Dense, LowRank
from uptake.adaptation.delta.prompt import Prompt
from uptake.adaptation.delta.scale import Scale, scaled
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained
from uptake.lm.wrappers import Routed
from uptake.sealed import write_whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMPTY = "the delta is empty and there is no adapter to export: let the model read something first"


def export_peft(delta: Delta, lm: Pretrained, folder: str | Path) -> Path:
    """Write the delta as an adapter that `peft.PeftModel.from_pretrained(base, folder)` loads.

    `folder` must not exist or be empty; it is returned. Weights are float32. A LoRA adapter's scale is
    folded into its weights, padded with zeros to one rank. Raises Mismatch where the delta is of another
    base, BadInput with the reason where it is no adapter of peft's or the folder cannot be written.
    """
    delta.check(lm.fingerprint)
    if delta.kinds == {Scale}:
        config, tensors = _ia3(delta, lm)
    elif delta.kinds == {Prompt}:
        config, tensors = _prompt(delta, lm)
    else:
        config, tensors = _lora(delta, lm)
    folder = check_folder(folder)
    from safetensors.torch import save

    described = {
        name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()
    }
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make {folder}: {error.strerror}; give a folder you may write to") from None
    write_whole(folder / WEIGHTS, save(tensors, {"format": "pt", "uptake_base": delta.base}))
    write_whole(folder / CONFIG, json.dumps(described, indent=2, sort_keys=True).encode())
    return folder


def _lora(delta: Delta, lm: Pretrained) -> tuple[Any, dict[str, Tensor]]:
    """Return the configuration and the tensors of a LoRA adapter."""
    from peft import LoraConfig

    parts = _exportable(delta, lm.module)
    rank = max(part.down.shape[0] for part in parts.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(parts),
        fan_in_fan_out=any(part.transposed for part in parts.values()),
        **_common(lm),
    )
    tensors = {}
    for name, part in parts.items():
        down, up = _padded(part, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    return config, tensors


def _ia3(delta: Delta, lm: Pretrained) -> tuple[Any, dict[str, Tensor]]:
    """Return the configuration and the tensors of an (IA)^3 adapter; scales of several owners multiply."""
    from peft import IA3Config
    from transformers.pytorch_utils import Conv1D

    vectors: dict[str, Tensor] = {}
    into: dict[str, bool] = {}
    for name, part in sorted(delta.parts.items(), key=lambda item: item[0]):
        assert isinstance(part, Scale)
        layer: Any = lm.module.get_submodule(name.path)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise BadInput(
                f"{name.path} is a layer of kind {type(layer).__name__}, and an (IA)^3 adapter scales linear "
                "layers alone: adapt with --set trainable=ia3, or save the delta with Delta.save"
            )
        if into.setdefault(name.path, part.on == "input") != (part.on == "input"):
            raise BadInput(
                f"{name.path} has what enters and what leaves it scaled, and an (IA)^3 adapter does one of "
                "them: remove a part from the delta, or save it with Delta.save"
            )
        turned = isinstance(layer, nn.Linear) != (part.on == "input")
        width = layer.weight.shape[0 if turned else 1]
        ones = vectors.get(name.path, torch.ones(width, device=part.change.device))
        vectors[name.path] = scaled(ones, part.change, part.ranges)
    if all(bool((vector == 1).all()) for vector in vectors.values()):
        raise BadInput(EMPTY)
    config = IA3Config(
        target_modules=list(vectors),
        feedforward_modules=[path for path, enters in into.items() if enters],
        fan_in_fan_out=any(isinstance(lm.module.get_submodule(path), Conv1D) for path in vectors),
        **_common(lm),
    )
    return config, {
        f"base_model.model.{path}.ia3_l": vector[None] if into[path] else vector[:, None]
        for path, vector in vectors.items()
    }


def _prompt(delta: Delta, lm: Pretrained) -> tuple[Any, dict[str, Tensor]]:
    """Return the configuration and the tensors of prompt tuning; several prompts stand in their order."""
    from peft import PromptTuningConfig

    parts = [part for _, part in sorted(delta.parts.items(), key=lambda item: item[0])]
    vectors = torch.cat([part.tensors()["vectors"] for part in parts])
    config = PromptTuningConfig(
        num_virtual_tokens=len(vectors),
        token_dim=vectors.shape[1],
        num_transformer_submodules=1,
        **_common(lm),
    )
    return config, {"prompt_embeddings": vectors}


def _common(lm: Pretrained) -> dict[str, Any]:
    from peft import TaskType

    return {
        "task_type": TaskType.CAUSAL_LM if lm.has_step else TaskType.SEQ_2_SEQ_LM,
        "inference_mode": True,
        "base_model_name_or_path": lm.name or None,
    }


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
    if not isinstance(delta, Delta) or not isinstance(answering, Pretrained):
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
                "adapt with --set trainable=lora (or ia3 or prompt alone), or save the delta with Delta.save"
            )
    low_rank = delta.parts_of(LowRank)
    if not any(bool(part.up.any()) and bool(part.down.any()) for part in low_rank.values()):
        raise BadInput(EMPTY)
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


def _padded(part: LowRank, rank: int) -> tuple[Tensor, Tensor]:
    """Return down [rank, in] and up [out, rank], the scale within; ranks that were not there are zeros."""
    lacking = rank - part.down.shape[0]
    down = nn.functional.pad(part.down.float(), (0, 0, 0, lacking))
    up = nn.functional.pad((part.up * part.scale).float(), (0, lacking))
    return down, up
