"""The search for settings, on made-up measurements and once for real."""

import json
import math
from pathlib import Path

import pytest

import toys
from test_evaluate import SMALL, sentence
from uptake import api, methods
from uptake.errors import BadInput, Damaged
from uptake.evaluation.tune import Recipe, Space, Trial, Tuning, tune
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.store.datastore import Datastore
from uptake.text.types import Chunking, Document

COST = {"all": 1.0, "top(layers=2)": 0.5, "lora(rank=16)": 0.7}
PEAK = {"all": 3e-4, "top(layers=2)": 1e-3, "lora(rank=16)": 1e-5}


def made_up(settings: tuple[str, ...]) -> list[Trial]:
    """Gain with one peak over the learning rate, more of it with more neighbours and one lucky setting."""
    told = dict(setting.split("=", 1) for setting in settings)
    away = abs(math.log(float(told["learning_rate"]) / PEAK[told["trainable"]]))
    luck = 0.01 if "own_prefix" in told else 0.0
    top = {"all": 0.10, "top(layers=2)": 0.08, "lora(rank=16)": 0.05}[told["trainable"]]
    return [
        Trial(settings, k, top - 0.02 * away + luck + 0.001 * k, COST[told["trainable"]] * k, 10)
        for k in (1, 5, 20)
    ]


def test_the_peak_is_found_for_each_choice_of_what_moves() -> None:
    search = Tuning(made_up, Space())
    best = search.run()
    assert best.settings == ("trainable=all", "learning_rate=0.0003", "own_prefix=true") and best.k == 20
    tried = {trial.settings[:2] for trials in search.trials.values() for trial in trials}
    assert ("trainable=lora(rank=16)", "learning_rate=1.11e-05") in tried
    assert ("trainable=top(layers=2)", "learning_rate=0.0009") in tried


def test_a_budget_is_kept_to_or_said_to_be_too_small() -> None:
    best = Tuning(made_up, Space(), budget=10.5).run()
    assert best.seconds <= 10.5 and best.settings[0] == "trainable=all" and best.k == 5
    with pytest.raises(BadInput, match=r"the cheapest took 0\.50 s"):
        Tuning(made_up, Space(), budget=0.1).run()


def test_the_frontier_holds_what_no_other_beats() -> None:
    search = Tuning(made_up, Space())
    search.run()
    frontier = search.frontier()
    assert [t.seconds for t in frontier] == sorted(t.seconds for t in frontier)
    assert [t.gain for t in frontier] == sorted(t.gain for t in frontier)
    every = [trial for trials in search.trials.values() for trial in trials]
    for trial in every:
        beaten = any(o.gain >= trial.gain and o.seconds < trial.seconds for o in every)
        assert not (beaten and trial in frontier)


def test_a_recipe_survives_the_disk_and_junk_is_refused(tmp_path: Path) -> None:
    recipe = Recipe("ttt-nn", 5, ("trainable=lora(rank=8)",), {"gain": 0.1})
    recipe.write(tmp_path / "r.json")
    assert Recipe.read(tmp_path / "r.json") == recipe
    for junk in ("", "[]", "{}", '{"format": "uptake recipe 1"}', '{"format": 1, "k": "x"}'):
        (tmp_path / "junk").write_text(junk)
        with pytest.raises(Damaged, match="no recipe"):
            Recipe.read(tmp_path / "junk")
    with pytest.raises(BadInput, match="cannot be read"):
        Recipe.read(tmp_path / "none")


def test_a_real_search_gives_a_recipe_that_runs(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(characters=100))
    store.add([Document(f"train/{i}", sentence(100 + i)) for i in range(8)])
    documents = [Document(f"valid/{i}", sentence(i)) for i in range(2)]
    space = Space(trainable=("all", "lora(rank=2)"), start=3e-3, climbs=1, ks=(1, 3), others=("passes=2",))
    seen: list[int] = []
    recipe, search = tune(
        toys.lm(),
        documents,
        store=store,
        space=space,
        settings=["clip=0.5"],
        protocol=SMALL,
        progress=lambda made, best: seen.append(made),
    )
    assert (
        recipe.settings[0] == "clip=0.5"
        and recipe.k in (1, 3)
        and seen == list(range(1, len(search.trials) + 1))
    )
    again = api.compare(
        toys.lm(),
        documents,
        [recipe.method],
        store=store,
        k=recipe.k,
        settings=recipe.settings,
        protocol=SMALL,
    )
    bits, base = (sum(getattr(row, name) for row in again.rows) for name in ("bits", "base_bits"))
    assert (base - bits) / base == pytest.approx(recipe.chosen["gain"], rel=1e-4)


def test_a_method_that_names_its_choices_has_those_tried(tmp_path: Path) -> None:
    lm = toys.lm()
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(characters=100))
    store.add([Document(f"train/{i}", sentence(100 + i)) for i in range(8)])
    store.read_tokens(TokenKeyer(lm))
    documents = [Document(f"valid/{i}", sentence(i)) for i in range(2)]
    recipe, search = tune(lm, documents, "knn-lm", store=store, protocol=SMALL)
    groups = methods.find("knn-lm").method.tuning_choices
    assert len(search.trials) == 1 + sum(map(len, groups)) and () in search.trials
    assert recipe.method == "knn-lm" and recipe.k == 1
    best = search.best()
    assert recipe.settings == best.settings and best.gain == max(t.gain for t in search.frontier())
    again = api.compare(
        lm, documents, ["knn-lm"], store=store, k=recipe.k, settings=recipe.settings, protocol=SMALL
    )
    bits, base = (sum(getattr(row, name) for row in again.rows) for name in ("bits", "base_bits"))
    assert (base - bits) / base == pytest.approx(best.gain, rel=1e-4)


@pytest.mark.parametrize(("given", "k"), [((), 0), (("neighbours=8",), 0), (("neighbours=8",), 5)])
def test_the_table_marks_the_choice_whatever_it_reads(
    given: tuple[str, ...], k: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from uptake.cli.tune import _show

    # A method that reads no passages is measured at k 0 and its recipe retrieves with 1.
    gains = {(): 0.3, ("temperature=3",): 0.2}
    search = Tuning(
        lambda changed: [Trial(changed, k, gains[changed], 1.0 + gains[changed], 4)],
        Space(choices=(("temperature=3",),)),
    )
    best = search.run()
    recipe = Recipe("knn-lm", max(best.k, 1), (*given, *best.settings))
    _show(recipe, search, as_json=False)
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith(">")]
    (line,) = marked
    assert "30.0 %" in line and " 0 " not in line
    _show(recipe, search, as_json=True)
    frontier = json.loads(capsys.readouterr().out)["frontier"]
    assert [trial["chosen"] for trial in frontier] == [False, True]
