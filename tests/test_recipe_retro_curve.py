"""The recipe of RETRO's curve: its search is BM25, none finds itself, it resumes, its sums are right."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recipe_modules
import toys
from uptake.text.tokenizer import Tokenizer


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    for module in recipe_modules.imported("retro_curve", monkeypatch):
        monkeypatch.setattr(module, "WINDOW", 64)
        monkeypatch.setattr(module, "CHUNK", 8)
        yield module


@pytest.fixture
def world(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    words = ["cat", "dog", "hen", "mat", "hill", "sat", "ran", "red", "blue", "fish"]
    counts = {"train": 6, "valid": 3, "test": 3}
    texts = {part: [" ".join(generator.choice(words, 110)) for _ in range(n)] for part, n in counts.items()}
    recipe_modules.write_pile(tmp_path, texts)
    return tmp_path


def test_search_is_bm25_and_bars_what_is_barred(recipe: Any, world: Path) -> None:
    tokenizer = Tokenizer(toys.tokenizer())
    text = recipe.pile(world / "pile", "train", tokenizer)
    store = recipe.Chunks.of(text, recipe.CHUNK)
    for number in range(0, len(store.tokens), 7):
        own = text.tokens[text.owner == store.owner[number]]
        inside = store.tokens[number][store.tokens[number] >= 0]
        places = range(0, len(own), recipe.CHUNK)
        assert any(np.array_equal(own[at : at + 2 * recipe.CHUNK], inside) for at in places)
    search = recipe.Search(store, len(tokenizer), "cpu")
    queries, barred = store.tokens[:5, : recipe.CHUNK], np.repeat(store.owner[:5, None], 2, 1)
    rows = [[int(t) for t in row[: recipe.CHUNK] if t >= 0] for row in store.tokens]

    def score(query: set[int], row: list[int]) -> float:
        total = 0.0
        for token in query & {*row}:
            held, count = sum(token in each for each in rows), row.count(token)
            rarity = math.log1p((len(rows) - held + 0.5) / (held + 0.5))
            total += rarity * count * 1.9 / (count + 0.9)
        return total

    found = search.nearest(queries, 3, barred)
    for query, owner, best in zip(queries, store.owner[:5], found, strict=True):
        asked = {int(t) for t in query if t >= 0}
        scores = {n: score(asked, row) for n, row in enumerate(rows) if store.owner[n] != owner}
        expected = sorted(scores.values(), reverse=True)[:3]
        assert np.allclose([scores[int(n)] for n in best], expected, rtol=1e-4)


def test_overlap_is_counted_as_a_plain_loop_counts_it(recipe: Any) -> None:
    from retro_search import longest, shared  # beside the recipe, on the path while it is imported

    tokens = np.arange(60, dtype=np.int32) % 41
    owner = np.repeat(np.arange(3, dtype=np.int32), 20)
    text = recipe.Stream(tokens, owner, ("a",) * 3, np.ones(3))
    inside, across, elsewhere = tokens[20:36], tokens[12:28], tokens[40:56]
    found = np.stack([inside, across, elsewhere, np.full(16, -1, np.int32)])[None]
    assert shared(text, found, np.array([[1, 1]]))[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert shared(text, found, np.array([[1, 2]]))[0].tolist() == [1.0, 0.0, 1.0, 0.0]
    coming = np.array([[1, 2, 3, 4, 5], [9, 9, 9, 9, 9]], np.int32)
    read = np.array([[[0, 2, 3, 4, 7], [5, 4, 3, 2, 1]], [[9, 9, 0, 9, 9], [1, 1, 1, 1, 1]]], np.int32)
    assert longest(coming, read).tolist() == [3, 2]


class OneStep:
    """A clock that is over after one step."""

    def __init__(self, seconds: float) -> None:
        self.left = 1

    def save_now(self) -> bool:
        return False

    @property
    def over(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_it_goes_on_where_it_stopped_and_looks_at_every_reading(
    recipe: Any, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "--pile", str(world / "pile"), "--tokenizer", str(world / "tokenizer"), "--size", "toy",
        "--batch", "1", "--valid", "2", "--test", "2", "--every", "1",
    ]  # fmt: skip

    def run(name: str, *more: str) -> dict[str, Any]:
        recipe.main([*command, "--work", str(world / name), "--out", str(world / f"{name}.json"), *more])
        return json.loads((world / f"{name}.json").read_text())

    whole = run("whole", "--steps", "2")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(recipe, "Clock", OneStep)
        assert run("parts", "--steps", "2")["steps"] == 1
    again = run("parts", "--steps", "2")
    timeless = [
        {
            arm: [{key: value for key, value in each.items() if key != "seconds"} for each in course]
            for arm, course in told["courses"].items()
        }
        for told in (whole, again)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]["retro"]) == 2
    assert whole["test"]["ways"] == again["test"]["ways"]
    ways = whole["test"]["ways"]
    assert len(ways) == 1 + 3 * 3 and ways["alone, none"]["gain"] == 0
    for name, each in ways.items():
        base = ways["alone, none"]["nats"]
        assert each["gain"] == pytest.approx(1 - each["nats"] / base, abs=1e-9), name
        counted = sum(count for count, _ in each["overlap"].values())
        assert counted == 2 * (recipe.WINDOW // recipe.CHUNK - 1)


def test_some_networks_alone_with_a_small_vocabulary_of_their_own(recipe: Any, world: Path) -> None:
    work = world / "some"
    command = ["--pile", str(world / "pile"), "--size", "toy", "--batch", "1", "--valid", "2", "--test", "2"]
    command += ["--work", str(work), "--out", str(world / "some.json"), "--steps", "1"]
    recipe.main([*command, "--vocabulary", "270", "--arms", "planted"])
    told = json.loads((world / "some.json").read_text())
    assert [*told["courses"]] == ["alone", "planted"] and [*told["begins"]] == ["planted below alone"]
    learned = recipe.learned_tokenizer(world / "pile", 270, work / "tokenizer")
    assert len(learned) == 270 and learned.opening == learned.inner.convert_tokens_to_ids("<end>")
    text = "The cat, naïve, sat on 12 mats.\n"
    assert learned.inner.decode(learned.inner(text)["input_ids"]) == text


def test_where_a_gain_begins_is_where_it_stays(recipe: Any) -> None:
    def course(*values: float) -> list[dict[str, Any]]:
        return [{"tokens": 10 * n, "nearest": value} for n, value in enumerate(values)]

    alone = [{"tokens": 10 * n, "none": 5.0} for n in range(4)]
    begins = recipe.begins
    assert begins({"retro": course(6, 4, 6, 4), "alone": alone}, "retro", "alone") == 30
    assert begins({"retro": course(6, 4, 4, 4), "alone": alone}, "retro", "alone") == 10
    assert begins({"retro": course(6, 4, 4, 6), "alone": alone}, "retro", "alone") is None


def test_a_lesson_plants_only_for_the_planted_and_only_at_first(recipe: Any, world: Path) -> None:
    tokenizer = Tokenizer(toys.tokenizer())
    text = recipe.pile(world / "pile", "train", tokenizer)
    search = recipe.Search(recipe.Chunks.of(text, recipe.CHUNK), len(tokenizer), "cpu")
    train = recipe.windows_of(text, search, own=True)
    low, high = recipe.owners(text, train.starts).T[:, :, None, None]
    owners = train.store.owner[train.nearest]
    assert not ((owners >= low) & (owners <= high) & (train.nearest >= 0)).any()
    numbers = np.arange(2)
    plain = recipe.lesson("retro", train, numbers, 0).tokens  # the same at every step
    assert not torch.equal(recipe.lesson("planted", train, numbers, 0).tokens, plain)
    assert torch.equal(recipe.lesson("planted", train, numbers, recipe.PLANTED_STEPS).tokens, plain)
    assert recipe.lesson("alone", train, numbers, 0).tokens.shape[2] == 0


def test_a_full_device_is_waited_for_and_not_for_ever(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pretraining  # beside the recipe, on the path while it is imported

    monkeypatch.setattr(pretraining, "PATIENCE", 0.0)
    asked: list[int] = []

    def call(free_at: int) -> str:
        asked.append(1)
        if len(asked) < free_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert pretraining.patiently(lambda: call(3)) == "done" and len(asked) == 3
    asked.clear()
    with pytest.raises(torch.OutOfMemoryError):
        pretraining.patiently(lambda: call(99), tries=4)
    assert len(asked) == 4
