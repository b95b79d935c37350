"""Streams with counterfactual documents among them: arms differ in one thing, figures are of their rows."""

import json
from typing import Any

import numpy as np
import pytest

import recipe_modules
import toys
import uptake


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("counterfactuals", monkeypatch)


def test_arms_differ_in_the_second_documents_alone(recipe: Any) -> None:
    import counterfactual_streams

    arms, asked, changed = counterfactual_streams.streams(6, 3)
    once = [each.id for each in arms["once"]]
    assert len(once) == 6 and {one.document for one in asked} == set(once)
    assert len(changed) == 6 and changed < {one.id for one in asked}
    texts = {each.id: each.text for each in arms["once"]}
    for name in counterfactual_streams.ARMS[1:]:
        assert len(arms[name]) == 12 and [each.id for each in arms[name] if each.id in texts] == once
        assert [each.id in texts for each in arms[name]] == [each.id in texts for each in arms["more"]]
    again = [each for each in arms["duplicates"] if each.id not in texts]
    assert sorted(each.text for each in again) == sorted(texts.values())
    false = [each for each in arms["counterfactual"] if each.id not in texts]
    assert not {each.text for each in false} & set(texts.values())
    answers = {one.id: one.answers[0] for one in asked}
    for key in changed:
        (question,) = (one for one in asked if one.id == key)
        assert answers[key] in texts[question.document]


def test_figures_are_of_the_answers_and_pairs_of_the_same_questions(
    recipe: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import counterfactual_streams

    lm = toys.lm(window=512)
    monkeypatch.setattr(uptake, "load", lambda *_: lm)
    monkeypatch.setattr(counterfactual_streams, "SETTINGS", ("trainable=all", "learning_rate=1e-3"))
    out = tmp_path / "told.json"
    command = ["stream", "--model", "a/toy", "--documents", "3", "--seeds", "0", "--work", str(tmp_path)]
    recipe.main([*command, "--out", str(out)])
    told = json.loads(out.read_text())["stream"]
    assert told["questions"] == 6 and told["model"] == "toy"
    figures = told["figures"]
    assert set(figures["all"]["arms"]) == {"base", *counterfactual_streams.ARMS}
    for arm in counterfactual_streams.ARMS:
        own = [figures[part]["arms"][arm]["nats"]["mean"] for part in ("all", "changed", "not changed")]
        assert own[0] == pytest.approx(np.mean(own[1:]), abs=2e-4), (
            "half of the questions are on changed facts"
        )
    arms, beyond = (
        figures["all"]["arms"],
        figures["all"]["differences"]["counterfactual - duplicates"]["nats"],
    )
    less = arms["counterfactual"]["nats"]["mean"] - arms["duplicates"]["nats"]["mean"]
    assert beyond["mean"] == pytest.approx(less, abs=2e-4) and less


def test_a_document_without_another_value_is_refused(recipe: Any) -> None:
    import counterfactual_streams

    with pytest.raises(uptake.UptakeError, match="no other value is known for its facts"):
        counterfactual_streams.streams(2, 0)
