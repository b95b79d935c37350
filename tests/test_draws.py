"""What draws without a generator draws from ours: the same numbers, the global generator left alone."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.draws import drawing_from, seed_of_draws
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune

SEED = 11


def by_hand(draw: Callable[[], Any]) -> Any:
    """What the global generator would have drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return draw()


def ours(draw: Callable[[], Any]) -> Any:
    before = torch.get_rng_state()
    with drawing_from(torch.Generator().manual_seed(SEED)):
        found = draw()
    assert torch.equal(before, torch.get_rng_state()), "the global generator was drawn from"
    return found


DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5),
    "randint": lambda: torch.randint(9, (5,)),
    "randperm": lambda: torch.randperm(9),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 4),
    "normal_": lambda: torch.empty(5).normal_(1, 2),
    "linear": lambda: torch.cat([p.flatten() for p in nn.Linear(3, 4).parameters()]),
    "embedding": lambda: nn.Embedding(5, 3).weight.detach(),
    "xavier": lambda: nn.init.xavier_uniform_(torch.empty(3, 4)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(9)),
    "dropout": lambda: functional.dropout(torch.ones(99), 0.3),
    "dropout in place": lambda: functional.dropout(torch.ones(99), 0.3, inplace=True),
    "layer": lambda: nn.Dropout(0.5)(torch.ones(99)),
    "no dropout": lambda: functional.dropout(torch.ones(9), 0.3, training=False),
    "seed": lambda: torch.tensor(seed_of_draws()),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_those_of_a_seeded_global_generator(name: str) -> None:
    assert torch.equal(ours(DRAWS[name]), by_hand(DRAWS[name]))


@pytest.mark.parametrize("kind", ["causal", "added", "barred"])
@pytest.mark.parametrize("heads", [4, 2])
def test_attention_drops_what_torch_would(kind: str, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, heads, 6, 8, generator=generator, dtype=torch.float64)
    masks = {
        "causal": None,
        "added": torch.randn(6, 6, generator=generator, dtype=torch.float64),
        "barred": torch.ones(6, 6, dtype=torch.bool).tril(-1) | torch.eye(6, dtype=torch.bool),
    }
    mask, causal = masks[kind], kind == "causal"

    def attend(dropout: float = 0.4) -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, causal, scale=0.3, enable_gqa=heads == 2
        )

    assert torch.allclose(ours(attend), by_hand(attend), atol=1e-12)
    assert not torch.allclose(ours(attend), attend(0.0), atol=1e-3)
    assert torch.equal(ours(lambda: attend(0.0)), attend(0.0))


def test_kinds_of_dropout_that_cannot_be_seeded_are_refused() -> None:
    with pytest.raises(BadInput, match="alpha_dropout"):
        ours(lambda: functional.alpha_dropout(torch.ones(3), training=True))


def test_blocks_within_blocks_draw_for_themselves() -> None:
    with drawing_from(torch.Generator().manual_seed(1)):
        with drawing_from(torch.Generator().manual_seed(2)):
            inner = torch.rand(3)
            assert seed_of_draws() == 2
        assert seed_of_draws() == 1
        outer = torch.rand(3)
    assert torch.equal(inner, torch.rand(3, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(outer, torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert seed_of_draws() == torch.initial_seed()


def test_lora_layers_are_made_without_the_global_generator() -> None:
    lm, before = toys.lm(), torch.get_rng_state()

    def made() -> dict[str, Tensor]:
        _, opened = lm.trainable_copy(LoRA(rank=2), Delta(lm.fingerprint), torch.Generator().manual_seed(3))
        return {name: value.detach() for name, value in opened.parameters.items()}

    first, second = made(), made()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def learnt(lm: LM, dropout: bool, seed: int = 0) -> Tensor:
    method = replace(Finetune(optimizer=SGD(0.05)), dropout=dropout)
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("the cat sat on the mat")], Context(seed))
    return torch.cat([part.flatten() for part in state.delta.differences.values()])


def test_dropout_in_training_is_seeded_and_leaves_the_global_generator_alone() -> None:
    lm = toys.lm("gpt2")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = learnt(lm, dropout=True)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, learnt(lm, dropout=True))
    assert not torch.equal(first, learnt(lm, dropout=False))
    assert not torch.equal(first, learnt(lm, dropout=True, seed=1))


def test_threads_draw_for_themselves() -> None:
    def walk(seed: int) -> list[Tensor]:
        with drawing_from(torch.Generator().manual_seed(seed)):
            layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
            return [layer(torch.rand(4, 8)).detach() for _ in range(100)]

    alone = {seed: walk(seed) for seed in (1, 2)}
    together: dict[int, list[Tensor]] = {}
    start = threading.Barrier(3)

    def run(seed: int) -> None:
        start.wait()
        together[seed] = walk(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    before = torch.get_rng_state()
    start.wait()
    for thread in threads:
        thread.join()
    assert torch.equal(before, torch.get_rng_state())
    for seed, steps in alone.items():
        assert all(torch.equal(one, other) for one, other in zip(steps, together[seed], strict=True))


def test_a_model_of_transformers_is_made_without_the_global_generator() -> None:
    """While it initialises a model, transformers puts functions of its own in the place of torch's."""

    def made(seed: int) -> list[torch.Tensor]:
        with drawing_from(torch.Generator().manual_seed(seed)):
            return [*type(module)(module.config).parameters()]

    module = toys.module()
    before = torch.get_rng_state()
    first, again, other = made(0), made(0), made(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
