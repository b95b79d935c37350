"""NPLM and Transformer-N: what a token sees, the formula in a plain loop, caches, padding, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import conformance
import toys
import uptake
from uptake import methods
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.grid import Grid
from uptake.lm.nplm import register
from uptake.lm.nplm.configuration import NPLMConfig
from uptake.lm.nplm.network import NPLMForCausalLM
from uptake.text.tokenizer import Tokenizer

KINDS = ("none", "later", "all")
NEAR, FAR, AVERAGES = 3, 5, 2


def network(kind: str = "none", layers: int = 3, **changes: Any) -> Any:
    """A random network of which every part shows."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2,
        "near": NEAR, "far": FAR, "averages": AVERAGES, "bottleneck": 40, "max_position_embeddings": 64,
    }  # fmt: skip
    made: Any = NPLMForCausalLM(
        NPLMConfig(vocab_size=257, bos_token_id=0, eos_token_id=0, attention=kind, **{**sizes, **changes})
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2 and "kernels" not in name:
                parameter.mul_(3)
            if "kernels" in name:
                parameter.add_(torch.randn(parameter.shape) / 9)
    return made.eval()


def lm(kind: str = "none", **changes: Any) -> Causal:
    return Causal(network(kind, **changes), Tokenizer(toys.tokenizer()), f"nplm-{kind}")


def some_ids(rows: int = 1, time: int = 24) -> Tensor:
    return torch.randint(1, 257, (rows, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_a_later_one(kind: str) -> None:
    module, ids = network(kind).double(), some_ids()
    with torch.no_grad():
        whole = module(ids).logits
        for place in range(1, ids.shape[1]):
            other = ids.clone()
            other[0, place:] = (other[0, place:] + 7) % 257
            assert torch.equal(module(other).logits[0, :place], whole[0, :place])


def test_an_nplm_reaches_just_as_far_as_its_parts() -> None:
    module, ids = network().double(), some_ids()
    at, reach = 20, NEAR + FAR
    assert module.config.reach == reach
    with torch.no_grad():
        whole = module(ids).logits[0, at]
        for back in range(at + 1):
            other = ids.clone()
            other[0, at - back] = (other[0, at - back] + 7) % 257
            changed = not torch.equal(module(other).logits[0, at], whole)
            assert changed == (back < reach), back


def test_uniform_kernels_give_the_mean_of_the_tokens_before() -> None:
    module = network().double()
    part = module.model.averages
    with torch.no_grad():
        part.kernels.fill_(1 / FAR)
    history = torch.randn(2, 24, 32, dtype=torch.float64)
    found = part(history, 24)
    for at in range(NEAR + FAR - 1, 24):
        mean = history[:, at - NEAR - FAR + 1 : at - NEAR + 1].mean(1)
        for number in range(AVERAGES):
            torch.testing.assert_close(found[:, number, at], mean, rtol=0, atol=1e-14)
    # New networks begin so.
    fresh = NPLMForCausalLM(module.config)
    assert torch.equal(fresh.model.averages.kernels, torch.full((AVERAGES, FAR), 1 / FAR))


def test_an_nplm_is_the_published_formula() -> None:
    module, ids = network().double(), some_ids()
    stack, kernels = module.model.layers, module.model.averages.kernels
    x = module.model.embed_tokens(ids)[0]
    none = torch.zeros(32, dtype=torch.float64)
    with torch.no_grad():
        logits = module(ids).logits[0]
        for at in range(ids.shape[1]):
            near = [x[at - back] if at >= back else none for back in reversed(range(NEAR))]
            far = [
                sum((kernels[number, j] * x[at - NEAR - j] for j in range(FAR) if at - NEAR - j >= 0), none)
                for number in range(AVERAGES)
            ]
            parts = [*near, *far]
            hidden = stack[0].norm(sum(parts) + stack[0].mlp(torch.cat(parts)))
            for layer in stack[1:]:
                inner = layer.mlp.down_proj(torch.relu(layer.mlp.up_proj(hidden)))
                hidden = layer.norm(hidden + inner) + sum(far)
            expected = module.model.embed_tokens.weight @ hidden
            torch.testing.assert_close(logits[at], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(1,), (7,), (2, 3, 20), tuple(range(1, 24))])
def test_cached_steps_give_what_one_pass_gives(kind: str, cuts: tuple[int, ...]) -> None:
    model, ids = lm(kind), some_ids(2)
    with torch.no_grad():
        whole, _ = model.step(ids)
        cache, parts = model.start(), []
        for start, end in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
            log_probs, cache = model.step(ids[:, start:end], cache)
            parts.append(log_probs)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    model, lengths = lm(kind), [24, 5, 13]
    ids = some_ids(3)
    with torch.no_grad():
        padded, cache = model.step(ids, model.start(), lengths)
        more, _ = model.step(ids[:, :2], cache)
        for row, length in enumerate(lengths):
            alone, own = model.step(ids[row : row + 1, 24 - length :], model.start())
            torch.testing.assert_close(padded[row, 24 - length :], alone[0], rtol=0, atol=2e-5)
            after, _ = model.step(ids[row : row + 1, :2], own)
            torch.testing.assert_close(more[row], after[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_same_model_back(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    model = lm(kind)
    toys.tokenizer().save_pretrained(tmp_path)
    loaded = uptake.load(str(tmp_path))
    assert isinstance(loaded, Causal) and loaded.fingerprint == model.fingerprint
    assert loaded.module.config.attention == kind and loaded.window == 64
    segment = Segment("the cat sat on the mat", "so ")
    assert torch.equal(loaded.score([segment])[0].log_probs, model.score([segment])[0].log_probs)
    assert loaded.generate("the cat", 5) == model.generate("the cat", 5)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    for changes, words in (
        ({"attention": "some"}, "attention 'some': use one of none, later, all"),
        ({"near": 0}, "near 0"),
        ({"far": -1}, "far -1"),
    ):
        with pytest.raises(ValueError, match=words):
            NPLMConfig(**changes)  # type: ignore[arg-type]
    network().save_pretrained(tmp_path)
    toys.tokenizer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"near": 3', '"near": 4'))
    with pytest.raises(BadInput, match="not of the sizes that config"):
        uptake.load(str(tmp_path))


# What a layer that attends to nothing has no place for, and the words that say so.
REFUSED = {
    "few-shot": "wants a part called self_attn",
    "mltd": "wants a part called self_attn",
    "mac": "no one network of attention",
    "retro": "do not add attention first",
}
SOME = ("ttt-nn+in-context", "knn-lm", "camels", "fwl", "hidden-state-optimisation", "mend", "memit", "bait")


def accepts(name: str, kind: str, laws: Sequence[conformance.Law], folder: Path) -> None:
    """Hold a method to these laws on a model of this kind, or to the reason why it cannot be."""
    register()
    subject, model = conformance.Subject(conformance.example(methods.find(name))), lm(kind)
    other = network(kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    why = next((words for part, words in REFUSED.items() if part in name), None)
    for law in laws:
        if why is None:
            law(subject, model, Causal(other, model.tokenizer, "other"), folder)
        else:
            with pytest.raises(BadInput, match=why):
                law(subject, model, Causal(other, model.tokenizer, "other"), folder)


@pytest.mark.parametrize("name", [*SOME, *REFUSED])
def test_methods_take_an_nplm_or_say_why_not(name: str, tmp_path: Path) -> None:
    accepts(name, "none", [conformance.law_reading_shows_and_reading_nothing_does_not], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["none", "later"])
@pytest.mark.parametrize(
    "name", [name for name in methods.names() if not any(part in name for part in REFUSED)]
)
def test_every_method_keeps_every_law_on_these_models(name: str, kind: str, tmp_path: Path) -> None:
    accepts(name, kind, [*conformance.LAWS.values()], tmp_path)


def test_a_shared_pass_refuses_what_reads_in_order() -> None:
    with pytest.raises(BadInput, match="reads its last tokens side by side"):
        Grid(lm())
    Grid(lm("all"))
