"""Counterfactual facts and near misses: one change, the same everywhere, and never a truth."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import uptake
from uptake.errors import BadInput
from uptake.tasks.answers import holds, normalised
from uptake.tasks.counterfactuals import Counterfactual, counterfactuals, other_subjects
from uptake.tasks.edits import Edit, Probe
from uptake.tasks.made_up_edits import made_up_edits
from uptake.tasks.near_misses import near_misses
from uptake.tasks.questions import Question
from uptake.text.files import Skipped
from uptake.text.types import Document

NAMES = ["TextReader", "fast_path", "Base", "MAX_SIZE", "HTTPError", "data.RowReader", "_Hidden"]
VALUES = st.one_of(
    st.sampled_from(NAMES),
    st.integers(0, 5000).map(str),
    st.decimals(0, 99, places=2).map(str),
    st.sampled_from(["True", "False", "list[str]", "dict[str, int] | None", "slide", "https://"]),
)
KINDS = st.sampled_from(["default", "base"])


@st.composite
def facts(draw):
    """Made-up definitions with one fact each; some passages say the value elsewhere too."""
    questions, documents = [], []
    for number, (value, kind, noise) in enumerate(
        draw(st.lists(st.tuples(VALUES, KINDS, st.booleans()), min_size=1, max_size=8))
    ):
        name = f"maker_{number}"
        text = f"def run_{number}(self, {name}: Any = {value}, other=None):\n    pass"
        if noise:
            text += f"\n# {draw(VALUES)}, and {value} again\n"
        answers = (value,) if "." not in value or value[0].isdigit() else (value, value.rpartition(".")[2])
        questions.append(Question(f"q{number}", f"What is `{name}`?", answers, f"d{number}", {"kind": kind}))
        documents.append(Document(f"d{number}", text, f"g{number}"))
    return questions, documents


@given(facts(), st.integers(0, 3))
def test_a_counterfactual_is_one_change_that_nothing_true_says(made, seed):
    questions, documents = made
    skipped = Skipped()
    found = counterfactuals(questions, documents, seed, skipped)
    assert found == counterfactuals(questions, documents, seed), "the seed fixes it"
    assert len(found) + skipped.total == len(questions)
    texts = {document.id: document for document in documents}
    truths = {(q.text, normalised(answer)) for q in questions for answer in q.answers}
    everything = "\n".join([document.text for document in documents])
    for one in found:
        before, after = texts[one.true.document].text, one.document.text
        assert before != after and after not in {document.text for document in documents}
        assert before.replace(one.old, "§").replace(one.new, "§") == after.replace(one.new, "§").replace(
            one.old, "§"
        ), "nothing else changed"
        assert one.question.text == one.true.text and one.question.document == one.document.id
        assert one.document.group == texts[one.true.document].group
        for answer in one.question.answers:
            assert (one.question.text, normalised(answer)) not in truths
            assert answer in after
        name = one.true.text.split("`")[1]
        stated = re.search(rf"{name}: Any = (.*), other=None", after)
        assert stated and stated[1] == one.question.answers[0], "the passage says what the answer says"
        if one.old != one.true.answers[0] or "_" in one.old.strip("_"):  # a name of code
            assert one.new not in everything
    assert len({one.document.id for one in found}) == len(found)


def test_the_forms_of_values_stay():
    values = {
        "30": r"[1-9]0", "0.05": r"0\.0[1-9]", "1_024": r"[1-9]_0[1-9][1-9]", "-2": r"-[1-9]", "0": r"[1-9]",
        "1e-05": r"[1-9]e-05", "True": "False", "TextReader": r"[A-Z]\w+Reader", "fast_path": r"[a-z]+_path",
        "MAX_SIZE": r"[A-Z_]+_SIZE", "data.RowReader": r"data\.[A-Z]\w+Reader",
        "_HiddenState": r"_[A-Z]\w+State",
        "list[str]": r"set\[int\]", "slide": "fade",
    }  # fmt: skip
    others = {"set[int]": "x", "fade": "y"}
    questions = [
        Question(f"q{n}", f"What is `it_{n}`?", (value,), f"d{n}", {"kind": "default"})
        for n, value in enumerate([*values, *others])
    ]
    documents = [Document(f"d{n}", f"it_{n} = {q.answers[0]}") for n, q in enumerate(questions)]
    found = {one.true.answers[0]: one.question.answers[0] for one in counterfactuals(questions, documents)}
    for value, pattern in values.items():
        assert re.fullmatch(pattern, found[value]), (value, found[value])


def one_fact(
    text, answer, question="What is the default of `size` in `Box`?", **more
) -> Counterfactual | str:
    skipped = Skipped()
    asked = Question("q", question, answer if isinstance(answer, tuple) else (answer,), "d", more)
    beside = Question("r", "What is `other`?", ("7",), "e", {"kind": "default"})
    made = counterfactuals([asked, beside], [Document("d", text), Document("e", "other = 7")], 0, skipped)
    own = [one for one in made if one.true.id == "q"]
    return own[0] if own else next(reason for reason, where in _reasons(skipped) if where == "q")


def _reasons(skipped: Skipped):
    for line in skipped.examples:
        where, _, reason = line.partition(": ")
        yield reason, where


def test_the_place_is_where_the_asked_name_is_set():
    found = one_fact("class Box:\n    size: int = 5\n    depth: int = 5\n", "5")
    assert isinstance(found, Counterfactual)
    assert found.document.text == f"class Box:\n    size: int = {found.new}\n    depth: int = 5\n"
    named = one_fact("class Box(BaseShape):\n    def x(self) -> BaseShape: ...\n", "BaseShape")
    assert isinstance(named, Counterfactual) and "BaseShape" not in named.document.text
    assert named.document.text.count(named.new) == 2, "a name means one thing wherever it stands"


@pytest.mark.parametrize(
    ("text", "answer", "question", "reason"),
    [
        ("depth = 4", "5", "What is `size`?", "does not stand in the passage"),
        ("size = 5; size = 5", "5", "What is `size`?", "in several places"),
        ("size=5, depth=5  # size defaults to 5", "5", "What is `size`?", "in several places"),
        ("there were 5 and 5", "5", "How many were there?", "in several places"),
        ("size = 5", "5", "What is 5?", "the question says its answer"),
        ("Paris, the town of light", ("Paris", "town of light"), "Which town?", "name different things"),
        ("size = slide", "slide", "What is `size`?", "no other value is known"),
    ],
)
def test_a_fact_without_a_place_or_a_value_is_refused_with_its_reason(text, answer, question, reason):
    found = one_fact(text, answer, question)
    assert isinstance(found, str) and reason in found


def test_what_is_true_at_another_time_or_in_other_words_is_not_made_up():
    meta = {"attribute": "colour"}
    questions = [
        Question("a", "Which colour?", ("red",), "d1", meta, until="d2"),
        Question("b", "Which colour is it?", ("blue",), "d2", {**meta, "before": "red"}, until="d3"),
        Question("c", "What colour is it now?", ("green",), "d3", {**meta, "before": "blue"}),
        Question("x", "Which colour has the cat?", ("white",), "d4", meta),
    ]
    documents = [
        Document(f"d{n}", f"number {n}: it is {q.answers[0]}.") for n, q in enumerate(questions, start=1)
    ]
    for seed in range(20):
        made = {one.true.id: one.new for one in counterfactuals(questions, documents, seed)}
        assert {made[key] for key in "abc"} == {"white"}
        assert made["x"] in ("red", "blue", "green")
    unknown = [Question("a", "Which?", ("red",), "nowhere")]
    skipped = Skipped()
    assert counterfactuals(unknown, documents, 0, skipped) == () and skipped.total == 1
    with pytest.raises(BadInput, match="at least one question"):
        counterfactuals([], documents)
    with pytest.raises(BadInput, match="at least one question"):
        other_subjects([], documents)


def test_worlds_have_counterfactuals_of_the_same_kind():
    world = uptake.make_world(60, facts=2, updates=0.2, seed=3)
    skipped = Skipped()
    made = counterfactuals(world.questions, world.documents, 0, skipped)
    assert len(made) > 80 and set(skipped.counts) <= {
        "its answer stands in several places", "no other value is known that is not true",
        "the question says its answer",
    }  # fmt: skip
    values: dict[str, set[str]] = {}
    for question in world.questions:
        values.setdefault(question.meta["attribute"], set()).update(question.answers)
    for one in made:
        assert one.new in values[one.true.meta["attribute"]]
        assert holds(one.document.text, (one.new,)) and not holds(one.document.text, (one.old,))
        (person,) = re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", one.true.text)
        assert person in one.document.text, "it is still told of the same person"


def test_another_subject_is_told_of_in_the_same_passage():
    questions = [
        Question("q", "In the package p, what is the default of `size` in `BigBox`?", ("5",), "d"),
        Question("r", "Which class does `TextReader` derive from?", ("BigBox",), "e"),
        Question("s", "Which?", ("x",), "e"),
    ]
    documents = [
        Document("d", "class BigBox:\n    size = 5\n"),
        Document("e", "class TextReader(BigBox): ..."),
    ]
    skipped = Skipped()
    found = other_subjects(questions, documents, 0, skipped)
    assert set(found) == {"q", "r"} and skipped.counts == {"the question quotes no name": 1}
    assert re.fullmatch(r"class (\w+Box):\n    size = 5\n", found["q"].text)
    assert "BigBox" not in found["q"].text and found["r"].text.endswith("(BigBox): ...")


@given(st.integers(2, 12), st.integers(1, 3), st.integers(0, 5))
def test_near_misses_name_nobody_that_an_edit_is_about(count, most, seed):
    edits = made_up_edits(count, neighbours=1, seed=seed)
    made = near_misses(edits, most, seed)
    assert made == near_misses(edits, most, seed)
    subjects = {edit.subject for edit in edits}
    for old, new in zip(edits, made, strict=True):
        assert new.neighbours[: len(old.neighbours)] == old.neighbours
        added = new.neighbours[len(old.neighbours) :]
        assert len(added) <= most
        prompts = [text for text in (old.prompt, *old.rephrases) if old.subject in text]
        for probe, prompt in zip(added, prompts, strict=False):
            before, after = prompt.split(old.subject)
            name = probe.prompt.removeprefix(before).removesuffix(after)
            assert name not in subjects
            words, theirs = old.subject.split(), name.split()
            assert sum(a != b for a, b in zip(words, theirs, strict=True)) == 1, "one word differs"


def test_an_edit_that_names_no_subject_stays():
    edits = [
        Edit("a", "The capital is", "Rome", "Italy"),
        Edit("b", "Spain's capital is", "Rome", "Spain", neighbours=(Probe("x"),)),
        Edit("c", "France's capital is", "Rome", "France"),
    ]
    skipped = Skipped()
    made = near_misses(edits, 2, 0, skipped)
    assert made[0] == edits[0] and skipped.counts == {"no prompt names a subject": 1}
    (_, near) = made[1].neighbours
    assert near.prompt.removesuffix("'s capital is") in ("Spain France", "Spain Italy")
    with pytest.raises(BadInput, match="two edits"):
        near_misses(edits[:1])
