"""The recipe that asks which facts to look up: budgets, no look at right answers, figures from its rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recipe_modules
import toys
import uptake

NAMES = ("cat", "dog", "fish", "mat", "sleep", "return", "store", "def")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("choosing_edits", monkeypatch)


def facts(path: Path, count: int) -> Path:
    rows = [
        {
            "id": f"fact {n}",
            "prompt": f"number {n} sat on the",
            "target": NAMES[(n + 1) % 8],
            "old": NAMES[(n + 3) % 8],
        }
        for n in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def rows_of(recipe: Any, path: Path) -> list[Any]:
    """Return the rows of a run, behind their sums."""
    lines = path.read_text().splitlines()[1:]
    return [recipe.load(recipe.Asked, json.loads(line.split(" ", 1)[1])) for line in lines]


def test_half_of_each_pool_is_looked_up_and_an_interrupted_run_goes_on(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    toys.module(window=128).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    command = [
        "run", "--model", str(model), "--name", "toy", "--facts", str(facts(tmp_path / "facts.jsonl", 14)),
        "--work", str(tmp_path), "--pools", "2", "--pool", "6", "--half", "3",
        "--settings", "trainable=all", "passes=2", "learning_rate=1e-2",
    ]  # fmt: skip
    asked = recipe._replies
    left = [9]

    def interrupted(*given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return asked(*given)

    monkeypatch.setattr(recipe, "_replies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(command)
    kept = rows_of(recipe, tmp_path / "edits-toy.jsonl")
    assert 0 < len(kept) < 14
    monkeypatch.setattr(recipe, "_replies", asked)
    recipe.main(command)
    rows = rows_of(recipe, tmp_path / "edits-toy.jsonl")
    assert rows[: len(kept)] == kept and len(rows) == 2 * (2 + len(recipe.WAYS)) == 14
    pools = [set(row.facts) for row in rows if row.way == recipe.NOTHING]
    assert all(len(pool) == 6 for pool in pools) and not pools[0] & pools[1]
    for row in rows:
        assert len(row.asked) == {recipe.NOTHING: 0, recipe.ALL: 6}.get(row.way, 3)
    recipe.main(["table", "--work", str(tmp_path), "--json", str(tmp_path / "told.json")])
    assert "2 pools of 6 facts" in capsys.readouterr().out
    told = json.loads((tmp_path / "told.json").read_text())["toy"]
    nats = {
        way: np.array([row.nats for row in rows if row.way == way]).sum() for way in told["ways"]
    }  # fmt: skip
    base = nats[recipe.NOTHING]
    for way, own in told["ways"].items():
        assert own["saved"]["value"] == pytest.approx(1 - nats[way] / base)
        if way not in (recipe.NOTHING, recipe.RANDOM):
            beyond = own[f"beyond {recipe.RANDOM}"]["saved"][0]
            assert beyond == pytest.approx((nats[recipe.RANDOM] - nats[way]) / base)
    assert told["ways"][recipe.ALL]["saved"]["value"] > 0.1, "what is learnt is likelier"
    assert (
        told["ways"][recipe.ALL]["found"]["value"] == 1
        and told["ways"][recipe.NOTHING]["found"]["value"] == 0
    )


def test_what_is_looked_up_depends_on_no_right_answer(recipe: Any, tmp_path: Path) -> None:
    lm = toys.lm(window=128)
    old = recipe.facts_of(facts(tmp_path / "facts.jsonl", 8), now=False, together=1)
    new = recipe.facts_of(tmp_path / "facts.jsonl", now=True, together=1)
    assert [one.prompt for one in old] == [one.prompt for one in new]
    assert all(one.target != other.target for one, other in zip(old, new, strict=True))
    prompts = [one.prompt for one in old]
    some = recipe.choices(lm, prompts, recipe._replies(lm, old), 4, 7)
    assert some == recipe.choices(lm, prompts, recipe._replies(lm, new), 4, 7)
    assert set(some) == set(recipe.WAYS)
    assert all(len(set(chosen)) == 4 for chosen in some.values())


def test_most_alike_stay_in_one_cluster(recipe: Any) -> None:
    random = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 8), [6, 3, 3], axis=0)
    states = centres + 0.01 * random.standard_normal(centres.shape)
    assert set(recipe.most_alike(states, 6)) == set(range(6))


def test_pools_hold_as_many_known_facts_as_asked_for(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = recipe.facts_of(facts(tmp_path / "facts.jsonl", 24), now=True, together=1)
    known = {one.id for one in some[::4]}
    monkeypatch.setattr(
        recipe, "_replies", lambda _, asked: [recipe.Reply("", one.id in known) for one in asked]
    )
    pools = recipe.pools_of(None, some, 2, recipe.Sizes(6, 3, 2))
    assert [sum(one.id in known for one in pool) for pool in pools] == [2, 2]
    assert [len(pool) for pool in pools] == [6, 6]
    with pytest.raises(uptake.UptakeError, match="too few for 4 pools of 6 of which the model has 2 right"):
        recipe.pools_of(None, some, 4, recipe.Sizes(6, 3, 2))


def test_facts_beside_each_other_stay_together(recipe: Any, tmp_path: Path) -> None:
    found = recipe.facts_of(facts(tmp_path / "facts.jsonl", 14), now=True, together=4)
    numbers = [int(one.id.split()[1]) for one in found]
    assert len(numbers) == 12, "what is left over makes no pool"
    assert all(numbers[n : n + 4] == [*range(numbers[n], numbers[n] + 4)] for n in range(0, 12, 4))
    assert numbers != sorted(numbers) or numbers[0] == 0
