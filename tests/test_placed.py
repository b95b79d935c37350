"""What is put behind attention: at the right place of every shape of block, or nowhere."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPTJConfig,
    GPTNeoXConfig,
    Olmo2Config,
    OPTConfig,
    PreTrainedConfig,
)

import toys
from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.lm.attention_hook import AttentionHook, find

IDS = torch.tensor([[3, 1, 4, 1, 5]])
SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
OPT = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}
SEQUENTIAL: dict[str, PreTrainedConfig] = {
    "neox, sequential": GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "opt": OPTConfig(**OPT),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=1),
    "olmo2": Olmo2Config(**SIZES),
}
OTHERS: dict[str, PreTrainedConfig] = {
    "neox": GPTNeoXConfig(**SIZES),
    "gpt-j": GPTJConfig(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, rotary_dim=4),
    "opt with norms behind": OPTConfig(**OPT, do_layer_norm_before=False),
}


def made(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in module.parameters():
        parameter.data += torch.randn_like(parameter) / 10
    return module


def outputs(module: Any, number: int, add: Any = None) -> tuple[Tensor, Tensor]:
    """Return what goes into a block and comes out of it."""
    placed, seen = AttentionHook(skeleton(module), find(module, [number])), {}

    def watch(block: Any, inputs: Any, named: Any, output: Any) -> None:
        seen["x"] = inputs[0] if inputs else named["hidden_states"]
        seen["out"] = output[0] if isinstance(output, tuple) else output

    blocks(placed.module)[1][number].register_forward_hook(watch, with_kwargs=True)
    with placed.adding(add or (lambda number, h: None)):
        placed.module(input_ids=IDS)
    return seen["x"], seen["out"]


def by_hand(module: Any, number: int, x: Tensor, add: Any) -> Tensor:
    """The block as its paper has it, from its parts."""
    block = blocks(module)[1][number]
    kind = type(block).__name__
    norms = {
        "GPT2Block": ("attn", "ln_2", "mlp", None),
        "LlamaDecoderLayer": ("self_attn", "post_attention_layernorm", "mlp", None),
        "Gemma2DecoderLayer": (
            "post_attention_layernorm", "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"
        ),
        "Olmo2DecoderLayer": ("post_attention_layernorm", None, "mlp", "post_feedforward_layernorm"),
    }[kind]  # fmt: skip
    kept: list[Tensor] = []

    def keep(part: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = getattr(block, norms[0]).register_forward_hook(keep)
    module(input_ids=IDS)
    handle.remove()
    h = x + kept[0]
    h = h + add(number, h)
    normed = getattr(block, norms[1])(h) if norms[1] else h
    grown = getattr(block, norms[2])(normed)
    return h + (getattr(block, norms[3])(grown) if norms[3] else grown)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_what_is_added_stands_between_attention_and_the_feed_forward(name: str) -> None:
    module = made(SEQUENTIAL[name]) if name in SEQUENTIAL else toys.module(name, dtype=torch.float64).eval()

    def add(number: int, h: Tensor) -> Tensor:
        return torch.sin(3 * h)

    for number in (0, 1):
        x, out = outputs(module, number, add)
        assert torch.allclose(out, by_hand(module, number, x, add), atol=1e-10)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_blocks_of_all_sorts_have_a_place(name: str) -> None:
    module = made(SEQUENTIAL[name])
    x, base = outputs(module, 1)
    seen: list[Tensor] = []

    def add(number: int, h: Tensor) -> Tensor:
        seen.append(h)
        # Taking h away leaves the next part nothing: what comes out is the feed-forward of zero.
        return -h

    _, out = outputs(module, 1, add)
    assert seen[0].shape == x.shape and not torch.allclose(seen[0], x)
    # No place sees another any more, and none its own token: all rows come out alike.
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-10)
    assert not torch.allclose(base, base[:, :1].expand_as(base), atol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_without_such_a_place_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="no place between; use a GPT-2, Llama or Qwen shape"):
        find(made(OTHERS[name]), [0])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_whose_input_dwarfs_what_it_adds_has_a_place(name: str, dtype: torch.dtype) -> None:
    # As in trained models: one entry of the stream is thousands of times what a block adds to it.
    module = toys.module(name, dtype=dtype).eval()
    usual = find(module, [0, 1])
    with torch.no_grad():
        module.get_input_embeddings().weight[:, 0] = 3e4
    assert find(module, [0, 1]) == usual


def test_a_block_there_is_not_is_refused() -> None:
    with pytest.raises(BadInput, match="layer 3: the model has 2 blocks"):
        find(toys.module("llama"), [2])


def test_nothing_is_added_outside_its_context() -> None:
    module = toys.module("gpt2").eval()
    placed = AttentionHook(skeleton(module), find(module, [0]))
    with torch.no_grad():
        base = module(input_ids=IDS).logits
        with pytest.raises(ZeroDivisionError), placed.adding(lambda number, h: h):
            assert not torch.equal(placed.module(input_ids=IDS).logits, base)
            raise ZeroDivisionError
        assert torch.equal(placed.module(input_ids=IDS).logits, base)
