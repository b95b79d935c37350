"""The recipe on counterfactuals: arms differ in one thing, and figures are of the answers that were given."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import recipe_modules
import toys
from uptake.tasks.asking import Spoken


@pytest.fixture(name="recipe")
def recipe_fixture(monkeypatch):
    yield from recipe_modules.imported("counterfactuals", monkeypatch)


@pytest.fixture(name="fresh")
def fresh_fixture(tmp_path: Path) -> Path:
    """Made-up facts of twelve packages, one file each."""
    for part in ("train", "valid", "test"):
        folder = tmp_path / "facts" / part
        folder.mkdir(parents=True)
        facts, passages = [], []
        for number in range(12):
            key = f"{part}-{number}"
            facts.append(
                {
                    "id": f"{key}?0",
                    "question": f"Which class does `Thing{part}{number}` derive from?",
                    "answers": [f"BigBase{number}"],
                    "document": key,
                    "kind": "base",
                    "package": f"package-{number}",
                }
            )
            passages.append(
                {"id": key, "text": f"class Thing{part}{number}(BigBase{number}): ...", "group": key}
            )
        for name, rows in (("questions", facts), ("passages", passages)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_arms_learn_the_same_facts_in_the_same_order(recipe, fresh):
    facts = recipe.facts_of(fresh, 0)
    learnt, other = recipe.drawn(facts, False, 500), recipe.drawn(facts, True, 500)
    assert len(learnt) + len(other) == 36
    assert not {q.meta["package"] for q in learnt} & {q.meta["package"] for q in other}
    arms = {arm: recipe.lessons(arm, facts, learnt, 4) for arm in ("duplicates", "counterfactual", "more")}
    assert {len(some) for some in arms.values()} == {8}
    twice, changed = arms["duplicates"], arms["counterfactual"]
    assert sorted(one.text for one in twice) == sorted(2 * [f" {q.answers[0]}\n" for q in learnt[:4]])
    differ = [place for place in range(8) if twice[place].text != changed[place].text]
    assert len(differ) == 4
    for place, (one, two) in enumerate(zip(twice, changed, strict=True)):
        question = one.prompt.partition("\nQuestion: ")[2]
        assert two.prompt.endswith(question)
        assert two.text.strip() in two.prompt and (place in differ or one.prompt == two.prompt)
    assert len({one.prompt for one in arms["more"]}) == 8


def test_what_is_asked_stands_in_the_passage_that_is_read(recipe, fresh):
    facts, others = recipe.facts_of(fresh, 0), recipe.facts_of(fresh, recipe.OTHER_SEED)
    some = recipe.drawn(facts, True, 500)
    for plain, changed in zip(recipe.plain(facts, some), recipe.changed(others, some), strict=True):
        assert plain.question.answers[0] in plain.prompt and changed.question.answers[0] in changed.prompt
        assert changed.before == plain.question.answers and changed.before[0] not in changed.passage
        marked = recipe.marked(changed, Spoken(plain.question.answers[0], 0.7, 3))
        assert (marked["exact"], marked["true"], marked["nats"]) == (0.0, 1.0, 0.7)


def test_answers_are_kept_and_figures_are_of_them(recipe, fresh, tmp_path, monkeypatch):
    facts = recipe.facts_of(fresh, 0)
    some = recipe.plain(facts, recipe.drawn(facts, True, 500))
    asked: list[str] = []

    def says(lm, prompts, *_):
        asked.extend(prompts)
        return [Spoken(prompt.partition("(")[2].partition(")")[0], 0.1, 4) for prompt in prompts]

    monkeypatch.setattr(recipe, "speak", says)
    given, lm = Namespace(work=tmp_path, facts=4, rows=5), toys.lm()
    rows = recipe.answered(lm, "base", "a set", some, given)
    assert recipe.answered(lm, "base", "a set", some, given) == rows and len(asked) == len(some)
    assert all(row["exact"] == 1.0 for row in rows)
    wrong = [{**row, "exact": 0.0} for row in rows]
    found = recipe.reading_figures({"a set": {"base": rows, "duplicates": wrong}})["a set"]
    assert found["arms"]["base"]["brier"]["mean"] == round(float((1 - np.exp(-0.1)) ** 2), 4)
    assert found["differences"]["duplicates - base"]["exact"] == {"mean": -1.0, "ci": [-1.0, -1.0]}
    assert found["differences"]["duplicates - base"]["error"] == {"mean": None, "ci": None}, "too few answers"


def test_counterfactuals_are_written_as_files_that_a_stream_reads(recipe, fresh, tmp_path):
    import uptake

    recipe.main(["make", "--fresh", str(fresh), "--work", str(tmp_path / "made")])
    for part in ("train", "valid", "test"):
        questions = uptake.read_questions(tmp_path / "made" / part / "questions.jsonl").questions
        texts = {d.id: d.text for d in uptake.read(tmp_path / "made" / part / "passages.jsonl")}
        assert len(questions) == 12
        for one in questions:
            assert one.answers[0] in texts[one.document] and one.meta["true"] not in texts[one.document]
