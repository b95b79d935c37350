"""Toy models made in the test: GPT-2, Llama and NeoX shapes over a byte-level tokenizer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.trainable.ia3 import IA3
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.seq2seq import Seq2Seq
from uptake.text.tokenizer import Tokenizer

SHAPES = ("gpt2", "llama", "neox")
END = "<|end|>"


@cache
def tokenizer() -> Any:
    """One token a byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({END: 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END)


def module(shape: str = "llama", seed: int = 0, window: int = 64, dtype: torch.dtype = torch.float32) -> Any:
    """A random two-layer transformer of the given shape."""
    common = {"vocab_size": 257, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(seed)
    if shape == "gpt2":
        made: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=window, **common))
    elif shape == "llama":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = LlamaForCausalLM(
            LlamaConfig(**sizes, max_position_embeddings=window, tie_word_embeddings=True, **common)
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, max_position_embeddings=window, **common))
    # Larger weights than at a real initialisation, so that reading shows.
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return made.to(dtype)


def seq2seq_module(
    kind: str = "t5", seed: int = 0, window: int = 64, dtype: torch.dtype = torch.float32
) -> Any:
    """A random encoder-decoder of two layers a side: t5, switch or bart."""
    common: Any = {
        "vocab_size": 257, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 48, "num_layers": 2,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 0, "dropout_rate": 0.0,
        "n_positions": window,
    }  # fmt: skip
    torch.manual_seed(seed)
    if kind == "t5":
        made: Any = T5ForConditionalGeneration(T5Config(**common))
    elif kind == "switch":
        sparse = {"num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
        made = SwitchTransformersForConditionalGeneration(
            SwitchTransformersConfig(**common, **sparse, num_experts=3)
        )
    else:
        sides = {
            f"{side}_{name}": value for side in ("encoder", "decoder")
            for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
        }  # fmt: skip
        made = BartForConditionalGeneration(
            BartConfig(
                vocab_size=257, d_model=32, max_position_embeddings=window, decoder_start_token_id=0,
                pad_token_id=0, bos_token_id=0, eos_token_id=0, forced_eos_token_id=None, dropout=0.0,
                **sides,
            )
        )  # fmt: skip
    return made.to(dtype)


def seq2seq(kind: str = "t5", seed: int = 0, window: int = 64, dtype: torch.dtype = torch.float32) -> Seq2Seq:
    return Seq2Seq(seq2seq_module(kind, seed, window, dtype), Tokenizer(tokenizer()), f"toy-{kind}")


def lm(shape: str = "llama", seed: int = 0, window: int = 64, dtype: torch.dtype = torch.float32) -> Causal:
    return Causal(module(shape, seed, window, dtype), Tokenizer(tokenizer()), f"toy-{shape}")


def low_rank(lm: Causal, ranks: Sequence[int] = (3, 1, 5, 2), seed: int = 0) -> list[Delta]:
    """Random low-rank deltas over the blocks, of different ranks and scales."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place, rank in enumerate(ranks):
        begun = LoRA(rank).stackable(lm.module, Delta(lm.fingerprint), generator)
        assert begun is not None
        parts = {
            name: replace(
                part, up=torch.randn(part.up.shape, generator=generator).to(part.up) / 9, scale=1 + place / 2
            )
            for name, part in begun.items()
        }
        made.append(Delta.of(lm.fingerprint, parts, "lora"))
    return made


def mixed(parts: Sequence[LM], weights: Sequence[float]) -> Experts:
    """Return the mixture of models at the same weights at every token."""
    return Experts(parts, FixedShare(tuple(weights), (1.0,)))


def scales(lm: Causal, count: int = 2, seed: int = 0) -> list[Delta]:
    """Random scale vectors where (IA)^3 has them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        begun = IA3().stackable(lm.module, Delta(lm.fingerprint), generator)
        assert begun is not None
        parts = {
            path: part.holding({"change": torch.randn(value.shape, generator=generator).to(value) / 3})
            for path, part in begun.items()
            for value in part.tensors().values()
        }
        made.append(Delta.of(lm.fingerprint, parts, "ia3"))
    return made
