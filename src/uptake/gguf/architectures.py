"""What a GGUF file calls things, and what transformers calls them: settings and tensors of each architecture.

A setting that changes what the model computes and that is not known here is refused, never left out.
Source: the names and layouts that llama.cpp's converter writes (its documentation and gguf-py's constants).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uptake.errors import BadInput
from uptake.gguf.header import AGAIN, FOLDER, Header, Stored, in_short

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture: transformers' name for it, and how its tensors differ from the plain ones."""

    model_type: str
    permuted: bool = False  # rows of query and key stand in pairs of neighbours, not in halves
    fixed: Mapping[str, Any] = field(default_factory=dict)  # settings that the file does not carry


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),  # Mistral, SmolLM and many others go by this name as well
    "qwen2": Architecture("qwen2", fixed={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", fixed={"use_sliding_window": False}),
}

_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FACTORS = "rope_freqs.weight"
# Settings that say nothing about what is computed, or say again what tensors and other settings say.
_INERT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.value_length"}


@dataclass(frozen=True)
class Target:
    """The model that a GGUF file holds, before any weight is read."""

    config: Any  # transformers' configuration
    names: dict[str, str]  # a tensor's name in the file -> its name in the model
    heads: dict[str, int]  # tensors whose rows are permuted -> heads that they are made of

    def tensor(self, stored: Stored, weights: "torch.Tensor") -> "torch.Tensor":
        """Return dequantised weights in the layout of transformers."""
        heads = self.heads.get(stored.name)
        if heads is None:
            return weights
        pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
        return pairs.transpose(1, 2).reshape(weights.shape).contiguous()


def target_of(header: Header, factors: Callable[[Stored], list[float]]) -> Target:
    """Return the model that a file holds; its tensors have the shapes that its settings promise.

    `factors` reads a small tensor of numbers. Raises BadInput for an architecture, setting or tensor that
    is not known, or where they do not agree.
    """
    name = header.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise BadInput(
            f"{header.path} is of architecture {name[:40]!r}: those of {', '.join(ARCHITECTURES)} are read; "
            f"{FOLDER}"
        )
    if (parts := header.get("split.count", int, 1)) > 1:
        raise BadInput(f"{header.path} is one of {parts:,} parts: join them with llama-gguf-split --merge")
    architecture = ARCHITECTURES[name]
    names = dict(_names(header))
    config = _config(header, name, architecture, factors)
    _check_shapes(header, names, config)
    counts = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    heads = {
        stored: counts[part]
        for stored in names
        if architecture.permuted and (part := stored.split(".")[-2]) in counts
    }
    return Target(config, names, heads)


def _names(header: Header) -> Iterator[tuple[str, str]]:
    for stored in header.tensors:
        if stored == _ROPE_FACTORS:
            continue
        if found := re.fullmatch(r"(\w+)\.(weight|bias)", stored):
            outer = _OUTER.get(found[1])
            target = f"{outer}.{found[2]}" if outer else None
        else:
            found = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)", stored)
            inner = _TENSORS.get(found[2]) if found else None
            target = f"model.layers.{found[1]}.{inner}.{found[3]}" if found and inner else None
        if target is None:
            raise BadInput(f"{header.path} has a tensor {stored[:60]!r} that is not known: {FOLDER}")
        yield stored, target


def _config(
    header: Header, name: str, architecture: Architecture, factors: Callable[[Stored], list[float]]
) -> Any:
    """Return transformers' configuration, every setting of the file in it."""
    from transformers import AutoConfig

    settings = _Settings(header, name)
    layers, width = settings.count("block_count"), settings.count("embedding_length")
    heads = settings.count("attention.head_count")
    own = settings.count("attention.key_length", default=max(1, width // heads))
    rotated = settings.count("rope.dimension_count", default=own)
    if rotated != own:
        raise BadInput(f"{header.path}: {rotated:,} of {own:,} dimensions of a head are rotated; all must be")
    base = settings.number("rope.freq_base", 10_000.0)
    length = settings.count("context_length")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadInput(
            f"{header.path} has no embedding of tokens: give a GGUF file of a whole language model"
        )
    fields = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": settings.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.count("attention.head_count_kv", default=heads),
        "head_dim": own,
        "rms_norm_eps": settings.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": length,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": {"rope_theta": base, **_rope(settings, length, own, factors)},
        "architectures": [],
    }
    if architecture.model_type == "llama":
        fields["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        fields["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    settings.check_all_used()
    for token in ("bos", "eos"):
        fields[f"{token}_token_id"] = header.get(f"tokenizer.ggml.{token}_token_id", int)
    fields["pad_token_id"] = header.get("tokenizer.ggml.padding_token_id", int)
    try:
        return AutoConfig.for_model(architecture.model_type, **{**fields, **architecture.fixed})
    except Exception as error:  # configurations are refused in many ways
        raise BadInput(f"{header.path}: its settings do not fit ({in_short(error)}); {AGAIN}") from error


def _rope(
    settings: "_Settings", length: int, width: int, factors: Callable[[Stored], list[float]]
) -> dict[str, Any]:
    """Return how transformers is told of scaled rotary positions."""
    header = settings.header
    kind = settings.text("rope.scaling.type", "none")
    factor = settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))
    original = settings.count("rope.scaling.original_context_length", default=length)
    if stored := header.tensors.get(_ROPE_FACTORS):
        if kind != "none" or stored.shape != (width // 2,):
            raise BadInput(f"{header.path}: {_ROPE_FACTORS} does not go with its other settings of positions")
        found = factors(stored)
        # Llama 3 divides each frequency by its own factor: what "longrope" does, here at every length.
        return {
            "rope_type": "longrope",
            "short_factor": found,
            "long_factor": found,
            "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }
    if kind == "linear" or (kind == "none" and factor != 1):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if kind != "none":
        raise BadInput(f"{header.path}: positions scaled by {kind[:40]!r} are not known; {FOLDER}")
    return {"rope_type": "default"}


class _Settings:
    """The settings of one architecture in a file; remembers which were asked for."""

    def __init__(self, header: Header, name: str) -> None:
        self.header, self._prefix = header, f"{name}."
        self._used = set(_INERT)

    def count(self, name: str, default: int | None = None) -> int:
        found = self._value(name, int, default)
        if not 1 <= found < 1 << 31:
            raise BadInput(f"{self.header.path}: {self._prefix}{name} is {found:,}; {AGAIN}")
        return int(found)

    def number(self, name: str, default: float | None = None) -> float:
        found = float(self._value(name, float, default))
        if not 0 < found < 1e12:
            raise BadInput(f"{self.header.path}: {self._prefix}{name} is {found:g}; {AGAIN}")
        return found

    def text(self, name: str, default: str) -> str:
        return str(self._value(name, str, default))

    def check_all_used(self) -> None:
        """Raise BadInput for a setting that nobody asked for."""
        for name in self.header.values:
            if name.startswith(self._prefix) and name.removeprefix(self._prefix) not in self._used:
                raise BadInput(f"{self.header.path}: {name[:60]} is a setting that is not known; {FOLDER}")

    def _value(self, name: str, kind: type[Any], default: Any) -> Any:
        self._used.add(name)
        if default is None:
            return self.header.need(self._prefix + name, kind)
        return self.header.get(self._prefix + name, kind, default)


def _check_shapes(header: Header, names: Mapping[str, str], config: Any) -> None:
    """Raise BadInput unless the file holds each weight of the model and no other, in its shape."""
    import torch
    from transformers import AutoModelForCausalLM

    layers = {int(name.split(".")[1]) for name in names if name.startswith("blk.")}
    if layers != set(range(len(layers))) or len(layers) != config.num_hidden_layers:
        raise BadInput(f"{header.path} does not hold its {config.num_hidden_layers:,} layers; {AGAIN}")
    widths = (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    if max(widths) > max(stored.elements for stored in header.tensors.values()):
        raise BadInput(f"{header.path}: its settings promise more than its tensors hold; {AGAIN}")
    try:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # configurations are refused in many ways
        raise BadInput(f"{header.path}: its settings do not fit ({in_short(error)}); {AGAIN}") from error
    promised = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if config.tie_word_embeddings:
        promised.pop("lm_head.weight", None)
    found = {target: header.tensors[name].shape for name, target in names.items()}
    for name in sorted(promised.keys() | found.keys()):
        if promised.get(name) != found.get(name):
            raise BadInput(
                f"{header.path}: {name} is of shape {_shape(found.get(name))}, where its settings promise "
                f"{_shape(promised.get(name))}; {AGAIN}"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
