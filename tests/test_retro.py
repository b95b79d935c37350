"""RETRO's forward pass, to the last digits: what may depend on what, with and without a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import toys
from uptake.lm.attention_hook import find
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods.retro.network import BIAS_SPEED, CrossAttention, RetroParts, RetroSizes
from uptake.methods.retro.retrofit import Retrofitted
from uptake.text.tokenizer import Tokenizer

M, K, R, TIME = 4, 2, 6, 19
WHOLE = TIME // M
SHAPES = ("gpt2", "llama", "qwen2")


def model(shape: str) -> Causal:
    if shape != "qwen2":
        return toys.lm(shape, dtype=torch.float64)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=257, max_position_embeddings=64)
    return Causal(Qwen2ForCausalLM(config).double(), Tokenizer(toys.tokenizer()))


def network(lm: LM, layers: tuple[int, ...] = (0, 1), seed: int = 0) -> RetroParts:
    """New parts as training might leave them: nothing zero, no two heads alike."""
    torch.manual_seed(seed)
    made = RetroParts(RetroSizes(32, 32, layers, 16, 2, M), initial_scale=1.0).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return made.requires_grad_(False)


def fitted(lm: LM, **settings: Any) -> Retrofitted:
    made = network(lm, **settings)
    return Retrofitted(lm, made, find(lm.module, made.sizes.layers))  # type: ignore[attr-defined]


def drawn(batch: int = 1, chunks: int = WHOLE, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return a text, neighbours of its chunks, and their mask, which leaves out the ends of some."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 257, (batch, TIME), generator=generator)
    tokens = torch.randint(1, 257, (batch, chunks, K, R), generator=generator)
    lengths = torch.randint(1, R + 1, (batch, chunks, K, 1), generator=generator)
    return ids, tokens, torch.arange(R) < lengths


def moved(before: Tensor, after: Tensor) -> list[int]:
    """Return the places at which log-probabilities differ."""
    return torch.nonzero((before - after).abs().amax(-1)[0] > 1e-9)[:, 0].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_moves_nothing_before_it(shape: str) -> None:
    lm = fitted(model(shape))
    ids, tokens, seen = drawn()
    before, _ = lm.step(ids, tokens, seen)
    for place in range(TIME):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 7) % 250 + 1
        assert min(moved(before, lm.step(changed, tokens, seen)[0])) == place


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_first_move_the_last_token_of_their_chunk(shape: str) -> None:
    lm = fitted(model(shape))
    ids, tokens, seen = drawn()
    before, _ = lm.step(ids, tokens, seen)
    for chunk in range(WHOLE):
        for k in range(K):
            changed = tokens.clone()
            changed[0, chunk, k] = (tokens[0, chunk, k] + 7) % 250 + 1
            assert min(moved(before, lm.step(ids, changed, seen)[0])) == (chunk + 1) * M - 1
    # With cross-attention in the last block alone, nothing carries them beyond the next chunk.
    lm = fitted(model(shape), layers=(model(shape).module.config.num_hidden_layers - 1,))  # type: ignore[union-attr]
    before, _ = lm.step(ids, tokens, seen)
    changed = tokens.clone()
    changed[0, 1] += 1 - 2 * (tokens[0, 1] == 256)
    assert moved(before, lm.step(ids, changed, seen)[0]) == list(range(2 * M - 1, 3 * M - 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_follows_changes_no_prefix_of_whole_chunks(shape: str) -> None:
    lm = fitted(model(shape))
    ids, tokens, seen = drawn()
    whole, _ = lm.step(ids, tokens, seen)
    for chunks in range(1, WHOLE + 1):
        some, _ = lm.step(ids[:, : chunks * M], tokens[:, :chunks], seen[:, :chunks])
        assert torch.allclose(some, whole[:, : chunks * M], atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_neighbours_it_is_the_base_bit_for_bit(shape: str) -> None:
    lm = model(shape)
    ids, tokens, seen = drawn(batch=2)
    base, _ = lm.step(ids)
    made = fitted(lm)
    assert torch.equal(made.step(ids, tokens, torch.zeros_like(seen))[0], base)
    assert torch.equal(made.step(ids, tokens[:, :, :0], seen[:, :, :0])[0], base)
    assert not torch.allclose(made.step(ids, tokens, seen)[0], base, atol=1e-3)
    # A row with nothing beside a row with something.
    seen[1] = False
    assert torch.equal(made.step(ids, tokens, seen)[0][1], base[1])
    for cross in made.network.cross.values():
        cross.attention.out.weight.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(made.step(ids, tokens, torch.ones_like(seen))[0], base)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_neighbours_does_not_matter(shape: str) -> None:
    lm = fitted(model(shape))
    ids, tokens, seen = drawn()
    before, _ = lm.step(ids, tokens, seen)
    assert moved(before, lm.step(ids, tokens.flip(2), seen.flip(2))[0]) == []
    # More room for neighbours, and longer ones, with nothing in it: the same.
    wide = [torch.nn.functional.pad(each, (0, 3, 1, 1)) for each in (tokens, seen)]
    assert moved(before, lm.step(ids, *wide)[0]) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_reading_on_from_a_cache_is_reading_at_once(shape: str) -> None:
    lm = fitted(model(shape))
    ids, tokens, seen = drawn(batch=2)
    whole, _ = lm.step(ids, tokens, seen)
    for cuts in ([1] * TIME, [TIME], [7, 1, 1, 3, 7], [M, M, M, M, 3], [3, 2, 14], [11, 8], [5, 4, 10]):
        cache: Any = (lm.lm.start(), None)
        parts, at = [], 0
        for cut in cuts:
            done = slice(at // M, (at + cut) // M)
            found, cache = lm.step(ids[:, at : at + cut], tokens[:, done], seen[:, done], cache)
            parts.append(found)
            at += cut
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10), cuts


def test_neighbours_that_are_all_masked_give_no_nan_and_no_gradient() -> None:
    lm = model("llama")
    made = fitted(lm)
    made.network.requires_grad_(True)
    ids, tokens, seen = drawn(batch=2)
    seen[0, :, 1] = False
    seen[1, 1] = False
    found, _ = made.step(ids, tokens, seen)
    (found * torch.rand_like(found)).sum().backward()
    gradients = [parameter.grad for parameter in made.network.parameters()]
    assert torch.isfinite(found).all()
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    # What is masked changes nothing, and rows do not mix.
    other = tokens.clone()
    other[0, :, 1] = 5
    other[1, 1] = 5
    assert torch.equal(made.step(ids, other, seen)[0], found)
    other[1, 0] = tokens[1, 0] % 256 + 1
    after, _ = made.step(ids, other, seen)
    assert torch.equal(after[0], found[0]) and not torch.equal(after[1], found[1])


def naive(part: CrossAttention, hidden: Tensor, states: Tensor, seen: Tensor, heads: int) -> Tensor:
    """Chunked cross-attention place by place; states and mask are [chunks, k, r, ...]."""
    attention, out = part.attention, torch.zeros_like(hidden)
    size = attention.queries.out_features // heads
    for place in range(len(hidden)):
        chunk = (place + 1) // M - 1
        keys = [] if chunk < 0 else [(k, i) for k in range(K) for i in range(R) if seen[chunk, k, i]]
        if not keys:
            continue
        asking = attention.queries(part.norm(hidden[place]))
        read = [part.states_norm(states[chunk, k, i]) for k, i in keys]
        parts = []
        for head in range(heads):
            cut = slice(head * size, (head + 1) * size)
            logits = []
            for (_, i), one in zip(keys, read, strict=True):
                distance = max(-attention.reach, min(attention.reach, place - chunk * M - i))
                bias = BIAS_SPEED * attention.bias[head, distance + attention.reach]
                logits.append(asking[cut] @ attention.keys(one)[cut] / size**0.5 + bias)
            shares = torch.stack(logits).softmax(0)
            parts.append(
                sum(share * attention.values(one)[cut] for share, one in zip(shares, read, strict=True))
            )
        out[place] = BIAS_SPEED * part.gate * attention.out(torch.cat(parts))  # type: ignore[arg-type]
    return out


def test_cross_attention_is_the_naive_loop() -> None:
    made = network(model("llama"))
    part = made.cross["0"]
    assert isinstance(part, CrossAttention)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, TIME, 32, dtype=torch.float64, generator=generator)
    states = torch.randn(1, WHOLE, K, R, 16, dtype=torch.float64, generator=generator)
    _, _, seen = drawn()
    seen[0, 2] = False
    expected = naive(part, hidden[0], states[0], seen[0], 2)
    before = torch.nn.functional.pad(states, (0, 0, 0, 0, 0, 0, 1, 0))
    mask = torch.nn.functional.pad(seen, (0, 0, 0, 0, 1, 0))
    assert torch.allclose(part(hidden, before, mask, 1)[0], expected, atol=1e-12)
    # From within the third chunk on, a few places or all of them.
    for end in (2 * M + 3, TIME):
        some = part(hidden[:, 2 * M + 2 : end], before[:, 2:], mask[:, 2:], 3)
        assert torch.allclose(some[0], expected[2 * M + 2 : end], atol=1e-12)


def test_no_neighbour_sees_another_and_each_sees_its_chunk_and_itself_both_ways() -> None:
    made = network(model("llama"))
    generator = torch.Generator().manual_seed(4)
    embedded = torch.randn(1, 2, K, R, 32, dtype=torch.float64, generator=generator)
    chunks = torch.randn(1, 2, M, 32, dtype=torch.float64, generator=generator)
    seen = torch.ones(1, 2, K, R, dtype=torch.bool)
    before = made.encode(embedded, seen, chunks)
    for where in ((0, 0, 1, 0), (0, 0, 1, R - 1)):
        other = embedded.clone()
        other[where] = -other[where]
        changed = (made.encode(other, seen, chunks) - before).abs().amax(-1) > 1e-9
        assert changed[0, 0, 1].all() and changed.sum() == R
    other = chunks.clone()
    other[0, 1, 2] = -other[0, 1, 2]
    changed = (made.encode(embedded, seen, other) - before).abs().amax(-1) > 1e-9
    assert changed[0, 1].all() and not changed[0, 0].any()
