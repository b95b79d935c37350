"""Edits made by themselves, behind a gate: the same words as a gate before all of them lets through."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
from recipe_modules import imported
from uptake.lm.fact_values import ValueSearch
from uptake.lm.key_statistics import OrdinaryText
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.gated_editor import GatedEditor
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.scope import Always, Words
from uptake.methods.gated_memory.trained import Trained
from uptake.methods.memit import Memit
from uptake.methods.mend import Mend
from uptake.tasks.asking import generate
from uptake.tasks.edits import Edit, Probe
from uptake.text.types import Document, Found

NAMES = ("Anna", "Boris", "Cindy", "Boris Anna")
EDITS = tuple(
    Edit(
        name, f"the home of {name} is", " x", name, rephrases=(f"so {name} lives in",),
        loose=(f"it is. {name} lives in",),
        # One of these neighbours names another edit's subject: it opens to that one.
        neighbours=(Probe("the home of Dora is", " y"), Probe(f"the home of {NAMES[n - 1]} is", " y")),
    )
    for n, name in enumerate(NAMES)
)  # fmt: skip
MEMIT = Memit(
    depth=0,
    strength=0.1,
    values=ValueSearch(steps=4, contexts=1, limit=50.0),
    ordinary=OrdinaryText(tokens=0),
)
MEND = replace(Mend.example(), alpha=1.0)
TEXTS = (Document("one", "so it is, and Anna is at home"), Document("two", "a cat"))


@pytest.fixture(name="recipe")
def recipe_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported("edits_alone", monkeypatch)


def said_by(method: Any, lm: Any, prompts: list[str]) -> list[str]:
    """Return what a method says that has made all edits at once."""
    read = Evidence(Found(tuple(edit.passage() for edit in EDITS), (0.0,) * len(EDITS)))
    (state,) = method.adapt([method.init(lm)], lm, [read], Context())
    return generate(method.adapted([state], lm), prompts, 8)


def test_what_is_said_behind_a_gate_is_what_the_gate_before_all_edits_lets_through(
    recipe: Any, tmp_path: Path
) -> None:
    lm = toys.lm("llama")
    gates = {
        "words": Words(),
        "trained": Trained(weights="untrained", size=4, threshold=0.5),
        "always": Always(),
    }
    kinds = (*recipe.KINDS, "loose")
    table = recipe.Alone(lm, EDITS, len(EDITS), tmp_path, TEXTS, gates, kinds)
    prompts = [one.prompt for _, one in table.asked]
    ways = {
        "memory": (GatedMemory(Always()), GatedMemory),
        "memit": (MEMIT, lambda scope: GatedEditor(MEMIT, scope, shown=0)),
        "mend": (MEND, lambda scope: GatedEditor(MEND, scope, shown=0)),
        "shown": (GatedEditor(MEMIT, Always()), lambda scope: GatedEditor(MEMIT, scope)),
    }
    for name, (alone, gated) in ways.items():
        figures = table.of(name, alone, drifts=False)
        kept = table._said(name, alone, table.wanted)
        for gate, scope in gates.items():
            told = [table.base[n] if at is None else kept[at, n] for n, at in enumerate(table.ways[gate])]
            assert told == said_by(gated(scope), lm, prompts)
            assert figures[f"{name} behind {gate}"]["edits"] == len(EDITS)
        assert told != table.base  # behind the gate that is always open
    assert table.ways["words"].count(None) == len(EDITS)
    words = figures["shown behind words"]
    # Half of the neighbours name another edit's subject; unrelated text is read behind no prompt.
    assert words["same"]["share"] >= 0.5 and words["kl"] == 0.0
    assert (words["opens_elsewhere"], words["elsewhere"]) == (1, 2)
    assert figures["shown behind always"]["kl"] is None
    base = table.of_base()
    assert base["same"]["share"] == 1.0 and set(base) >= {"success", "tight", "loose", "same", "leak"}


def test_fine_tuning_stands_behind_a_gate_and_nothing_is_asked_twice(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, method = toys.lm("llama"), replace(Finetune.example(), passes=3)
    table = recipe.Alone(lm, EDITS, 2, tmp_path, TEXTS, {"words": Words()})
    assert {own for own, _ in table.asked} == {0, 1}
    found = table.of("tuned", method)
    assert found["tuned"]["kl"] > 0 and found["tuned behind words"]["kl"] == 0.0
    # The first edit's neighbour names the last edit, which is asked although no prompt of its own is.
    assert table.ways["words"][3] == 3
    alone = recipe.made_alone(method, lm, [EDITS[3]])
    assert (
        table._said("tuned", method, {(3, 3)})[3, 3]
        == generate(alone, ["the home of Boris Anna is"], 8, rows=[0])[0]
    )
    monkeypatch.setattr(recipe, "made_alone", lambda *_: pytest.fail("an edit was made again"))
    monkeypatch.setattr(recipe, "generate", lambda *_: pytest.fail("a prompt was asked again"))
    again = recipe.Alone(lm, EDITS, 2, tmp_path, TEXTS, {"words": Words()})
    assert again.of("tuned", method) == found
    assert again.ahead("tuned", "tuned", "words")["success"] == {"share": 0.0, "interval": [0.0, 0.0]}


def test_two_shares_are_compared_edit_by_edit(recipe: Any) -> None:
    mine, theirs = [[True, True], [True], []] * 10, [[True, False], [False], []] * 10
    told = recipe.apart(mine, theirs)
    assert told["share"] == pytest.approx(20 / 30, abs=1e-3)
    low, high = told["interval"]
    assert 0.5 <= low <= told["share"] <= high <= 1.0  # each edit is one half or one ahead
    assert recipe.apart([[]], [[]]) == {"share": None, "interval": None}


@pytest.mark.parametrize("power", [1.0, 2.1, 3.0])
def test_the_rate_of_equal_drift_is_found_in_few_tries(recipe: Any, power: float) -> None:
    def drift(rate: float) -> float:
        return 4e4 * rate**power / (1 + rate)

    wanted = drift(7e-4)
    rate, tried = recipe.rate_at(wanted, drift, (1e-5, 1e-2))
    assert len(tried) <= 4 and [rate, drift(rate)] == tried[-1]
    assert abs(drift(rate) / wanted - 1) <= recipe.KL_NEAR
    # Out of reach: the nearest that there is, within the bounds.
    rate, tried = recipe.rate_at(1e9, drift, (1e-5, 1e-2), tries=3)
    assert rate == max(tried)[0] and all(1e-5 < one < 1e-2 for one, _ in tried)
