"""Rows of a grid that mix in what followed like places, as kNN-LM does: as by themselves, to the last bit."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Own, Seat, own
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.memory import TokenMemory
from uptake.methods.knn_lm.weights import Constant
from uptake.store import Datastore
from uptake.store.views import key_index
from uptake.text.types import Chunking, Document

# Some twice, so that tokens are equally near, and all begin alike.
TEXTS = ["the old cat sat on the mat. ", "the wet dog ran over the hill. ", "the red fish swam. "] * 2
PROMPT = "the old dog sat on "
GOES_ON = list(range(1, 45))  # past 64 places, so that a row changes its table
WAYS = {
    "bayes": KnnLm(neighbours=7, temperature=20.0),
    "share": KnnLm(neighbours=7, temperature=20.0, weight=Constant(0.3)),
    "pointers": KnnLm(neighbours=7, temperature=20.0, pointers=3),
    "passages": KnnLm(neighbours=7, temperature=20.0, over="passages"),
}


def store_for(lm: Causal, path: Path, texts: Sequence[str] = TEXTS) -> Datastore:
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(48))
    store.add([Document(f"d{number}", text) for number, text in enumerate(texts)])
    store.read_tokens(TokenKeyer(lm))
    return store


@dataclass(frozen=True)
class World:
    """A model and two stores that it has read, the second a part of the first."""

    lm: Causal
    store: Datastore
    other: Datastore


@pytest.fixture(name="world", params=toys.SHAPES, scope="module")
def world_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    lm, folder = toys.lm(request.param, window=128), tmp_path_factory.mktemp("mixing")
    return World(lm, store_for(lm, folder / "s"), store_for(lm, folder / "o", TEXTS[:2]))


def answering(
    method: KnnLm, store: Datastore, lm: Causal, inner: LM | None = None, query: str = "the old cat"
) -> LM:
    """The LM that a method makes of a store, around an adapted one where it is given."""
    source = store.source(query, document_id="query")
    (state,) = method.adapt(
        [method.init(lm)], lm, [Evidence(source.search(4), query, source)], Context(), donate=False
    )
    return method.around([state], lm if inner is None else inner, lm)


def of(lm: LM, grid: Grid) -> Own:
    found = own(lm)
    assert found is not None and grid.takes(found)
    return found


def told(grid: Grid, row: Own, ids: Sequence[int], goes_on: Sequence[int]) -> list[torch.Tensor]:
    seat = grid.join(row, ids)
    found = [seat.log_probs]
    for token in goes_on:
        grid.step({seat: token})
        assert seat.failed is None
        found.append(seat.log_probs)
    grid.leave(seat)
    assert grid.seated == 0
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_row_predicts_what_the_library_does(world: World, way: str) -> None:
    lm, store, grid = world.lm, world.store, Grid(world.lm)
    delta = toys.low_rank(lm)[0]
    inners: list[LM] = [lm, lm.overlay(delta), Prefixed(lm, [[0, 5, 6]]), Prefixed(lm.overlay(delta), [[7]])]
    ids = lm.tokenizer.opened(PROMPT)
    for inner in inners:
        mixed = answering(WAYS[way], store, lm, inner)
        plain = inner.step(torch.tensor([[*ids, *GOES_ON]]))[0][0, len(ids) - 1 :]
        with torch.no_grad():
            wanted = mixed.step(torch.tensor([[*ids, *GOES_ON]]))[0][0, len(ids) - 1 :]
        found = torch.stack(told(grid, of(mixed, grid), ids, GOES_ON))
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
        assert (wanted - plain).abs().max() > 0.05, "the memory says nothing here, so nothing was tried"
        # And by itself, as whoever scores with it asks.
        with torch.no_grad():
            alone = grid.alone(of(mixed, grid)).step(torch.tensor([[*ids, *GOES_ON]]))[0][0, len(ids) - 1 :]
        torch.testing.assert_close(alone, wanted, atol=1e-4, rtol=1e-4)


def test_neighbours_change_no_bit_of_a_row_that_mixes_nor_it_of_theirs(world: World) -> None:
    lm, store, other, drawn = world.lm, world.store, world.other, random.Random(0)
    grid, delta = Grid(lm), toys.low_rank(lm)[0]
    parts = {name: part.times(float("nan")) for name, part in of(lm.overlay(delta), grid).parts.items()}
    rows = [of(answering(way, where, lm), grid) for way in WAYS.values() for where in (store, store, other)]
    rows.append(of(answering(WAYS["bayes"], store, lm, lm.overlay(delta)), grid))
    rows.append(replace(rows[-1], parts=parts))
    rows += [Own(), of(lm.overlay(delta), grid), of(Prefixed(lm, [[0, 5]]), grid)]
    # Near to 64 places, so that a row changes its table among its neighbours.
    ids, goes_on = lm.tokenizer.opened(PROMPT * 3), GOES_ON[:12]
    for mine in (rows[0], rows[6], rows[12], Own()):
        alone = told(Grid(lm), mine, ids, goes_on)
        grid, beside = Grid(lm), list[Seat]()
        for _ in range(14):
            beside.append(grid.join(drawn.choice(rows), lm.tokenizer.opened(drawn.choice(TEXTS))))
        seat = grid.join(mine, ids)
        assert torch.equal(seat.log_probs, alone[0])
        for token, wanted in zip(goes_on, alone[1:], strict=True):
            if beside and drawn.random() < 0.4:
                grid.leave(beside.pop(drawn.randrange(len(beside))))
            if drawn.random() < 0.4:
                beside.append(grid.join(drawn.choice(rows), lm.tokenizer.opened(drawn.choice(TEXTS))))
            some = [one for one in beside if drawn.random() < 0.8 and one.length < 120]
            grid.step({**{one: drawn.randrange(257) for one in some}, seat: token})
            assert torch.equal(seat.log_probs, wanted)
        for one in [*beside, seat]:
            grid.leave(one)
        assert grid.seated == 0 and grid.bytes == 0


def test_rows_that_read_alike_are_searched_for_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(window=128)
    store, other = store_for(lm, tmp_path / "s"), store_for(lm, tmp_path / "o", TEXTS[:2])
    grid = Grid(lm)
    calls: list[int] = []
    candidates = key_index.KeyIndex.candidates

    def counted(self: Any, keys: Any, *more: Any) -> Any:
        calls.append(len(keys))
        return candidates(self, keys, *more)

    monkeypatch.setattr(key_index.KeyIndex, "candidates", counted)
    ids = lm.tokenizer.opened(PROMPT)
    # Each asked for by itself, as requests are.
    rows = [of(answering(WAYS["bayes"], store, lm, query=f"query {n}"), grid) for n in range(9)]
    seats = [grid.join(row, ids) for row in [*rows, of(answering(WAYS["bayes"], other, lm), grid)]]
    assert calls == [len(ids)] * 10
    calls.clear()
    grid.step(dict.fromkeys(seats, 3))
    assert sorted(calls) == [1, 9]
    # A share that is the same everywhere needs no more of a prompt than its end.
    calls.clear()
    grid.join(of(answering(WAYS["share"], store, lm), grid), ids)
    assert calls == [1]


@pytest.mark.parametrize("lists", [False, True])
def test_a_search_of_many_keys_is_that_of_each_by_itself(
    lists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(window=128)
    if lists:
        monkeypatch.setattr(key_index, "LARGE", 1)
    store = store_for(lm, tmp_path / "s", [f"{text}{number} " * 2 for number in range(6) for text in TEXTS])
    view = store.source("a").tokens(TokenKeyer(lm).fingerprint)
    with torch.no_grad():
        keys = lm.keys(torch.tensor([lm.tokenizer.opened(TEXTS[0] * 2 + PROMPT)]))[0].numpy()
    keys = np.concatenate([keys[:1], keys[:1], keys])  # where texts begin all tokens are equally near
    memory = TokenMemory(torch.from_numpy(keys), torch.arange(len(keys)), torch.zeros(len(keys)).bool())
    for tokens in (view, memory):
        one_by_one = [tokens.search(keys[row : row + 1], 9) for row in range(len(keys))]
        for count in (1, 2, 15, 16, 17, 40, len(keys)):
            found = tokens.search_each(keys[:count], 9)
            for row, wanted in enumerate(one_by_one[:count]):
                for name in ("places", "distances", "values"):
                    assert np.array_equal(getattr(found, name)[row], getattr(wanted, name)[0])


def test_what_may_be_read_has_a_name_and_other_tokens_another(tmp_path: Path) -> None:
    lm = toys.lm(window=128)
    store, other = store_for(lm, tmp_path / "s"), store_for(lm, tmp_path / "o")
    name = TokenKeyer(lm).fingerprint

    def view(of: Datastore, document: str = "q") -> Any:
        return of.source("a", document_id=document).tokens(name)

    known = view(store)
    assert known.reads == view(store).reads
    sampled = known.sample(3, np.random.default_rng(0))
    others = [view(other), view(store, "d1"), known.without(known.view.stored.passages["id"][:1]), sampled]
    assert len({known.reads, *[each.reads for each in others]}) == 5


def test_a_row_whose_memory_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    lm = toys.lm(window=128)
    grid, ids = Grid(lm), lm.tokenizer.opened(PROMPT)
    store = store_for(lm, tmp_path / "s")
    row = of(answering(WAYS["bayes"], store, lm), grid)
    alone = told(grid, row, ids, GOES_ON[:3])

    class Damaged(TokenMemory):
        def search_each(self, keys: Any, k: int) -> Any:
            raise BadInput("its tokens are damaged")

    memory = Damaged(torch.randn(5, 16), torch.arange(5), torch.zeros(5).bool())
    mixed = row.mixture
    assert mixed is not None
    bad = type(mixed)(lm, lm, [memory], WAYS["bayes"]._mixing)  # type: ignore[call-arg]
    width = TokenKeyer(lm).dimensions
    memory.__init__(torch.randn(5, width), torch.arange(5), torch.zeros(5).bool())  # type: ignore[misc]
    broken, good = grid.join(of(bad, grid), ids), grid.join(row, ids)
    for token, wanted in zip(GOES_ON[:3], alone[1:], strict=True):
        grid.step({broken: token, good: token})
        assert torch.equal(good.log_probs, wanted) and good.failed is None
        assert "damaged" in str(broken.failed)


def test_only_keys_of_the_base_itself_come_out_of_its_pass(tmp_path: Path) -> None:
    lm = toys.lm(window=128)
    store = store_for(lm, tmp_path / "s")
    other = toys.lm(window=128, seed=1)
    found = own(answering(WAYS["bayes"], store, lm))
    assert found is not None and not Grid(other).takes(found)
    # No prefix stands before what is mixed, nor a mixture around a mixture.
    mixed = answering(WAYS["bayes"], store, lm)
    assert own(Prefixed(mixed, [[0]])) is None
    assert own(answering(WAYS["share"], store, lm, mixed)) is None
