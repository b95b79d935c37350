"""BAIT: its algebra against dense inverses, its choice against all, its factors against a plain sum."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import toys
import uptake
from shelf import Shelf
from uptake import api
from uptake.errors import BadInput
from uptake.lm.fisher import FisherReader, sketched
from uptake.methods.bait import Bait
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.store.datastore import Datastore
from uptake.text.bait import Field, bait
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document


def trace(
    factors: NDArray,
    chosen: Sequence[int],
    about: NDArray | None,
    noise: float,
    seen: NDArray | None,
    count: int,
) -> float:
    """tr(M^-1 F) by inverting M."""
    dimensions = factors.shape[-1]
    every = factors.reshape(-1, dimensions)
    goal = every.T @ every / len(factors) if about is None else about.T @ about
    matrix, scale = noise * np.eye(dimensions), 1.0
    if seen is not None:
        known = np.mean([one.T @ one for one in seen], 0)
        matrix = matrix + known * len(seen) / (len(seen) + count)
        scale = count / (len(seen) + count)
    for number in chosen:
        matrix = matrix + scale * factors[number].T @ factors[number]
    return float(np.trace(np.linalg.inv(matrix) @ goal))


def made(seed: int, candidates: int = 8, rows: int = 3, dimensions: int = 10) -> NDArray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((candidates, rows, dimensions)) * draw.uniform(0.2, 2, (candidates, 1, 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans(), st.booleans(), st.sampled_from([0.01, 1.0]))
def test_each_addition_and_each_drop_is_the_best_by_dense_inverses(
    seed: int, count: int, query: bool, before: bool, noise: float
) -> None:
    factors = made(seed)
    about = made(seed + 1, 1)[0] if query else None
    seen = made(seed + 2, 2) if before else None
    chosen: list[int] = []
    while len(chosen) < min(2 * count, len(factors)):
        free = [each for each in range(len(factors)) if each not in chosen]
        chosen.append(min(free, key=lambda each: trace(factors, [*chosen, each], about, noise, seen, count)))
    while len(chosen) > count:
        left = {each: [one for one in chosen if one != each] for each in chosen}
        chosen = left[min(left, key=lambda each: trace(factors, left[each], about, noise, seen, count))]
    assert bait(factors, count, about, noise, seen) == chosen


def test_of_three_in_eight_the_choice_is_near_the_best_there_is() -> None:
    ranks = []
    for seed in range(20):
        factors = made(seed)
        every = sorted(
            trace(factors, some, None, 1.0, None, 3) for some in itertools.combinations(range(8), 3)
        )
        own = trace(factors, bait(factors, 3), None, 1.0, None, 3)
        assert own >= every[0] - 1e-9
        ranks.append(sum(value < own - 1e-9 for value in every))
    assert np.median(ranks) == 0 and max(ranks) <= 5


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-3])
def test_updates_stay_at_the_dense_inverse(noise: float) -> None:
    factors, about = made(3, 60, 4, 40), made(4, 1, 6, 40)[0]
    field = Field(factors, 10, about, noise)
    for number in range(50):
        field.add(number)
    matrix = noise * np.eye(40) + sum(each.T @ each for each in factors[:50])
    rows = np.concatenate([factors.reshape(-1, 40), about])
    expected = rows @ np.linalg.inv(matrix) @ rows.T
    assert np.abs(field.products - expected).max() < 1e-9
    held = [*range(12)]
    before = trace(factors, held, about, noise, None, 1)
    after = [trace(factors, [one for one in held if one != each], about, noise, None, 1) for each in held]
    np.testing.assert_allclose(field.losses(held), np.array(after) - before, atol=1e-9)


def test_what_says_the_same_is_not_chosen_twice() -> None:
    draw = np.random.default_rng(5)
    one, other = draw.standard_normal((2, 3, 10))
    factors = np.stack([1.2 * one, 1.19 * one, 1.18 * one, other])
    assert sorted(bait(factors, 2, regularisation=0.01)) == [0, 3]
    # Where one was seen already, what is left tells more.
    assert bait(factors, 1, regularisation=0.01, seen=np.stack([other, other])) == [0]
    # About the other alone, the other is chosen.
    assert bait(factors, 1, about=other, regularisation=0.01) == [3]


def test_few_candidates_and_what_cannot_be() -> None:
    assert bait(np.zeros((0, 3, 4)), 3) == []
    assert sorted(bait(made(1, 2), 3)) == [0, 1]
    with pytest.raises(BadInput, match="regularisation 0"):
        bait(made(1), 1, regularisation=0)
    with pytest.raises(BadInput, match="not finite"):
        bait(made(1) * float("nan"), 1)


def test_rows_of_a_text_are_its_fisher_information_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    probs = torch.softmax(torch.randn(5, 4, generator=generator, dtype=torch.float64), -1)
    exact = torch.zeros(12, 12, dtype=torch.float64)
    for p, h in zip(probs, states, strict=True):
        for number in range(4):
            gradient = torch.outer(torch.eye(4, dtype=torch.float64)[number] - p, h).flatten()
            exact += p[number] * torch.outer(gradient, gradient) / 5
    signs = torch.randn(60_000, 5, 4, generator=generator, dtype=torch.float64)
    rows = sketched(states, probs, signs)
    assert (rows.T @ rows - exact).abs().max() < 0.03 * exact.abs().max()
    # With all the directions there are as signs it is exact.
    whole = torch.eye(20, dtype=torch.float64).view(20, 5, 4) * 20**0.5
    rows = sketched(states, probs, whole)
    torch.testing.assert_close(rows.T @ rows, exact, rtol=0, atol=1e-12)


def test_texts_in_a_batch_read_as_they_do_alone() -> None:
    model = toys.lm(dtype=torch.float32)
    texts = ["the cat sat on the mat", "a dog", "", "the cat " * 40]
    reader = FisherReader(4, 6, 3)
    read = reader.read(model, texts, torch.Generator().manual_seed(0))
    assert [each.factor.shape for each in read] == [(3, 30)] * 4
    for text, found in zip(texts, read, strict=True):
        ids = [model.tokenizer.opening, *model.tokenizer.encode(text)[0]][: model.max_input_tokens(0) + 1]
        with torch.no_grad():
            states, _ = model.hidden(torch.tensor([ids[:-1] or ids]))
            log_probs, _ = model.step(torch.tensor([ids]))
        np.testing.assert_allclose(found.state, states[0].double().mean(0).numpy(), atol=1e-5)
        nats = [-log_probs[0, at, token].item() for at, token in enumerate(ids[1:])]
        assert found.nats == pytest.approx(np.mean(nats) if nats else 0.0, abs=1e-5)
    again = reader.read(model, texts, torch.Generator().manual_seed(0))
    assert all((one.factor == other.factor).all() for one, other in zip(read, again, strict=True))


TEXTS = (
    "the cat sat on the mat.",
    "the cat sat on a mat.",
    "a dog ran over the hill.",
    "one fish, two fish.",
)


def test_the_selection_is_the_algebra_on_what_the_model_reads() -> None:
    model = toys.lm()
    shelf = Shelf.of(model, *TEXTS)
    for about in ("candidates", "query"):
        selection = Bait(about=about, classes=4, width=6, rows=3)  # type: ignore[arg-type]
        found = MethodSpec(Finetune(), selection).choose(model, shelf, 2, np.random.default_rng(7))
        seed = torch.Generator().manual_seed(int(np.random.default_rng(7).integers(1 << 62)))
        read = FisherReader(4, 6, 3).read(model, [*TEXTS, *(["so "] if about == "query" else [])], seed)
        factors = np.stack([each.factor for each in read])
        factors = factors / np.sqrt(np.square(factors[:4]).sum((1, 2)).mean())
        order = bait(factors[:4], 2, factors[4] if about == "query" else None, 0.01)
        assert [passage.text for passage in found.passages] == [TEXTS[number] for number in order]
        assert found.scores == tuple(1.0 / (number + 2) for number in order)
    few = selection.for_model(model).choose(Shelf.of(model), 2, np.random.default_rng(7))
    assert not few.passages


def test_settings_reach_it_and_what_cannot_be_is_refused() -> None:
    spec = api.method_specs(["bait"], ["candidates=50", "about=query", "learning_rate=1e-3"])["bait"]
    assert spec.select == Bait(50, about="query") and spec.searches
    model, source = toys.lm(), Shelf.of(toys.lm(), *TEXTS)
    draw = np.random.default_rng(0)
    for words, make in (
        ("candidates 0", lambda: Bait(candidates=0)),
        ("rows 0", lambda: Bait(rows=0)),
        ("regularisation -1", lambda: Bait(regularisation=-1)),
        ("about 'all'", lambda: Bait(about="all")),  # type: ignore[arg-type]
        ("600 candidates of 16 rows", lambda: Bait(candidates=600)),
        ("set candidates to 300", lambda: Bait().check(source, 300)),
        ("set candidates to 300", lambda: Bait().for_model(model).choose(source, 300, draw)),
        ("by the model", lambda: Bait().choose(source, 1, draw)),
        ("by a language model", lambda: Bait().for_model(None)),
    ):
        with pytest.raises(BadInput, match=words):
            make()


def test_beside_another_method_each_chooses_for_the_model() -> None:
    model = toys.lm()
    spec = api.method_specs(["bait+in-context"], ["bait.candidates=4"])["bait+in-context"]
    found = spec.choose(model, Shelf.of(model, *TEXTS), 2, np.random.default_rng(7))
    alone = MethodSpec(Finetune(), Bait(4)).choose(
        model, Shelf.of(model, *TEXTS), 2, np.random.default_rng(7)
    )
    assert [part.passages for part in found.parts] == [
        alone.passages, Shelf.of(model, *TEXTS).passages[:2],
    ]  # fmt: skip


def test_it_needs_no_vectors(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document(str(n), f"{text} the cat") for n, text in enumerate(TEXTS)])
    results = api.compare(
        toys.lm(window=256), [Document("q", "so the cat sat on the mat and the hill. " * 4)],
        ["base", "ttt-nn", "bait"], store=store, k=2, settings=["learning_rate=1e-2"], leak=LeakFilter.off(),
    )  # fmt: skip
    figures = uptake.summary(results)["methods"]
    assert figures["bait"]["gain"] not in (0, None)
