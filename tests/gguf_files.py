"""GGUF files from toy models, as llama.cpp's converter lays them out, and a bare writer for bad ones."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from uptake.gguf.header import read_header

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
TEXT = (
    "def f2024(x_1, y=3.14159):\n\t\treturn  x_1 + 1234567  # it's we'll THE parseURL HTTPServer\r\n\n"
    "naïve café Straße 日本語のテキスト 한국어 ½ ² ٣٤ «quoted» a/b...c !!?? <|im_start|>hi<|im_end|>   \n"
)
# Names in the file, as the GGUF specification gives them for transformers' names.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tokenizer(pattern: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose merges cross every boundary, so that any other way of cutting shows."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT, TEXT.replace(" ", "  "), TEXT.upper(), "0123456789 " * 9], trainer)
    if pattern is not None:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated"), level]
        )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[1], eos_token=SPECIAL[2], unk_token=SPECIAL[0]
    )


def module(kind: str = "llama", tokens: int = 512, seed: int = 0, **settings: Any) -> Any:
    """A random two-layer model with grouped queries."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {
        "num_key_value_heads": 2,
        "vocab_size": tokens,
        "max_position_embeddings": 128,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **common, **settings}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.eval()


def write(
    path: Path,
    model: Any,
    tokens: PreTrainedTokenizerFast | None,
    kind: str = "F32",
    pre: str | None = "gpt-2",
    values: dict[str, Any] | None = None,
    architecture: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write a model as GGUF, its matrices as `kind`; `values` and `extra` add settings and tensors."""
    config = model.config
    name = architecture or config.model_type
    writer = GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    for setting, value in (values or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(setting, value)
    if tokens is not None:
        _write_tokenizer(writer, tokens, pre)
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    for full, tensor in state.items():
        writer_name = _name(full)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        part = writer_name.split(".")[-2]
        if name == "llama" and part in heads:
            tensor = paired(tensor, heads[part])
        _add(writer, writer_name, tensor, kind)
    for full, tensor in (extra or {}).items():
        _add(writer, full, tensor, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def paired(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as the Llama layout has them: the two halves that a rotation takes together stand side by side."""
    half = tensor.shape[0] // heads // 2
    rows = [
        head * 2 * half + place + side * half
        for head in range(heads)
        for place in range(half)
        for side in (0, 1)
    ]
    return tensor[rows]


def _name(full: str) -> str:
    stem, ending = full.rsplit(".", 1)
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{ending}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER[inner]}.{ending}"


def _add(writer: GGUFWriter, name: str, tensor: torch.Tensor, kind: str) -> None:
    data = tensor.detach().float().numpy()
    # As the converters do: vectors stay in float32.
    quantised = GGMLQuantizationType["F32" if data.ndim == 1 else kind]
    writer.add_tensor(name, quantize(np.ascontiguousarray(data), quantised), raw_dtype=quantised)


def _write_tokenizer(writer: GGUFWriter, tokens: PreTrainedTokenizerFast, pre: str | None) -> None:
    model = json.loads(tokens.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)


def sentencepiece(path: Path, prefixed: bool = True) -> Path:
    """A Llama with a SentencePiece vocabulary: bytes, letters, and pieces with scores."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    words = ["▁the", "▁th", "he", "th", "▁t", "in", "ing", "▁s", "▁ing", "▁▁", "▁thing", "é", "er", "ere"]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    scores = [0.0] * len(pieces) + [-float(place) for place in range(len(words))] + [-1e6] * len(letters)
    pieces += words + letters
    kinds += [1] * (len(words) + len(letters))
    model = module(tokens=len(pieces))
    writer_path = write(path, model, None)
    return with_values(
        writer_path,
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_space_prefix": prefixed,
        },
    )


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(of: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str | bytes):
        return struct.pack("<I", 8) + text(of)
    kinds = {str: 8, int: 5, float: 6}
    kind = kinds[type(of[0])]
    each = {8: text, 5: lambda one: struct.pack("<i", one), 6: lambda one: struct.pack("<f", one)}[kind]
    return struct.pack("<IIQ", 9, kind, len(of)) + b"".join(map(each, of))


def head(values: dict[str, Any], tensors: list[bytes], version: int = 3) -> bytes:
    """The head of a file; `tensors` are entries that `entry` made."""
    kept = b"".join(text(name) + value(of) for name, of in values.items())
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + kept + b"".join(tensors)


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def with_values(path: Path, values: dict[str, Any]) -> Path:
    """Put other values into a file's head, and take away those that are None."""
    header = read_header(path)
    raw = path.read_bytes()
    data = min(stored.offset for stored in header.tensors.values())
    entries = [
        entry(stored.name, stored.shape, int(GGMLQuantizationType[stored.kind]), stored.offset - data)
        for stored in header.tensors.values()
    ]
    kept = {name: one for name, one in (header.values | values).items() if one is not None}
    begin = head(kept, entries)
    path.write_bytes(begin + b"\0" * (-len(begin) % 32) + raw[data:])
    return path
