"""Made-up worlds: what they promise about facts, names, changes and seeds."""

import re
from pathlib import Path

import pytest

from uptake.errors import BadInput
from uptake.tasks._words import ATTRIBUTES, SYLLABLES, WORDS
from uptake.tasks.questions import read_questions
from uptake.tasks.worlds import NAMES, SPLITS, make_world, name
from uptake.text.readers import read

WORLD = make_world(documents=400, facts=2, updates=0.2, seed=3)


def test_every_question_is_answered_by_its_document_alone_until_another_changes_it() -> None:
    places = {document.id: place for place, document in enumerate(WORLD.documents)}
    texts = {document.id: document.text for document in WORLD.documents}
    followers = {(q.document, q.meta["attribute"]): q for q in WORLD.questions if "before" in q.meta}
    for question in WORLD.questions:
        (person,) = re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", re.sub(r"^[A-Z][a-z]+ ", "", question.text))
        about = [s for s in texts[question.document].split(". ") if person in s]
        assert sum(question.answers[0] in re.findall(r"\w+", sentence) for sentence in about) == 1
        if question.until:
            later = followers[question.until, question.meta["attribute"]]
            assert later.meta["before"] == question.answers[0] != later.answers[0]
            assert places[question.until] > places[question.document]
    changed = sum(bool(question.until) for question in WORLD.questions)
    assert changed == len(followers) and 40 < changed < 120
    assert len({question.id for question in WORLD.questions}) == len(WORLD.questions)


def test_every_document_has_as_many_sentences_as_asked() -> None:
    for document in make_world(documents=50, facts=3, distractors=4, updates=0).documents:
        assert document.text.count(". ") + 1 == 7 and document.text[0].isupper()
        assert not re.search(r"\b(PERSON|VALUE|" + "|".join(WORDS) + r")\b", document.text)
        assert not re.search(r"\ba [aeio]", document.text)


def test_the_seed_fixes_the_world() -> None:
    assert make_world(documents=20, seed=1) == make_world(documents=20, seed=1)
    assert make_world(documents=20, seed=1) != make_world(documents=20, seed=2)


def test_no_name_is_in_two_splits_and_none_is_there_twice() -> None:
    families = [{name(number, split).split()[1] for number in range(0, NAMES, 97)} for split in SPLITS]
    assert not families[0] & families[1] and not families[0] & families[2] and not families[1] & families[2]
    whole = {a + b for a in SYLLABLES for b in SYLLABLES}
    assert len(whole) == len(SYLLABLES) ** 2, "two pairs of syllables make one name"
    assert name(NAMES - 1, "test") != name(NAMES - 2, "test")


def test_unrelated_texts_name_nobody_and_no_answer() -> None:
    values = {value for attribute in ATTRIBUTES for value in attribute.values}
    for text in make_world(documents=1, unrelated=30).unrelated:
        assert not values & set(re.findall(r"\w+", text.text))


def test_values_are_told_apart_and_take_the_article_a() -> None:
    for attribute in ATTRIBUTES:
        assert len(set(attribute.values)) == len(attribute.values) >= 9
        assert all(value[0].lower() not in "aeio" for value in attribute.values)
        for form in (*attribute.statements, *attribute.updates):
            assert form.count("PERSON") == form.count("VALUE") == 1
        for question in attribute.questions:
            assert question.count("PERSON") == 1 and "VALUE" not in question


@pytest.mark.parametrize(
    "wrong",
    [{"documents": 0}, {"facts": 0}, {"facts": 99}, {"distractors": -1}, {"updates": 1.0}, {"split": "dev"},
     {"documents": NAMES + 1}],
)  # fmt: skip
def test_worlds_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="use"):
        make_world(**wrong)


def test_a_world_comes_back_from_its_files(tmp_path: Path) -> None:
    world = make_world(documents=60, updates=0.3, seed=2)
    assert any(question.until for question in world.questions)
    world.write(tmp_path / "new" / "world")
    for file, documents in (("documents", world.documents), ("unrelated", world.unrelated)):
        assert tuple(read(tmp_path / "new" / "world" / f"{file}.jsonl")) == documents
    assert read_questions(tmp_path / "new" / "world" / "questions.jsonl").questions == world.questions
    with pytest.raises(BadInput, match="name another folder"):
        world.write(tmp_path / "new" / "world" / "questions.jsonl")
