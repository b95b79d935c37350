"""How answers after edits are marked, and what is asked of an edit."""

import pytest

from uptake.tasks.edit_marks import askings, leaks, same_words, starts_with
from uptake.tasks.edits import Edit, Probe


@pytest.mark.parametrize(
    ("said", "target", "old", "right"),
    [
        (" English, and he", "English", "French", True),
        ("english", "English", "", True),
        ("Englishman", "English", "", False),
        ("not English", "English", "", False),
        ('"English"', "English", "", True),
        ("**the English** language", "English", "", True),
        ("the United States", "the United States", "", True),
        ("New York City is", "New York", "New York City", False),
        ("New York City is", "New York City", "New York", True),
        ("New York is", "New York", "New York City", True),
        ("1.10", "1.1", "", False),
        ("scale_to_zero", "scale_to_zero_timeout", "", False),
        ("`scale_to_zero_timeout`", "scale_to_zero_timeout", "", True),
        ("[3]", "[3]", "", True),
        ("", "English", "", False),
        ("anything", "", "", False),
        ("French English", "English", "French", False),
    ],
)
def test_an_answer_is_right_if_it_begins_with_the_target(
    said: str, target: str, old: str, right: bool
) -> None:
    assert starts_with(said, target, old) is right


def test_leaks_and_same_words() -> None:
    assert leaks("He speaks English now", "english") and not leaks("Englishman", "English")
    assert same_words(" a  b\n", "a b") and not same_words("a b", "a B")


EDIT = Edit(
    "e", "The capital of Oz is", "Rome", "Oz", old="Emerald City",
    rephrases=("r0", "r1", "r2"), loose=("l0",),
    neighbours=(Probe("The capital of Ix is", "Ixa"), Probe("n1")), ripples=(Probe("p", "Italy"),),
)  # fmt: skip


def test_what_is_asked_of_an_edit() -> None:
    found = [(one.kind, one.number, one.prompt, one.target, one.leaks) for one in askings(EDIT, 4, 2)]
    assert found == [
        ("edit", 0, "The capital of Oz is", "Rome", False),
        ("rephrase", 0, "r0", "Rome", False),
        ("rephrase", 1, "r1", "Rome", False),
        ("loose", 0, "l0", "Rome", False),
        ("ripple", 0, "p", "Italy", False),
        ("neighbour", 0, "The capital of Ix is", "Rome", True),
        ("neighbour", 1, "n1", "Rome", True),
        ("denied", 0, "It is false that the capital of Oz is", "Rome", True),
        ("distracted", 0, "The capital of Oz is Rome. The capital of Ix is", "Rome", True),
    ]
    assert all(one.place == 4 and one.edit == "e" for one in askings(EDIT, 4, 2))
    assert [one.kind for one in askings(EDIT, 1, 0)] == ["edit"]


@pytest.mark.parametrize("prompt", ["What is the capital of Oz?", "Q: Oz\nA", "Rain fell. Oz is ruled from"])
def test_what_is_no_statement_is_not_denied(prompt: str) -> None:
    assert {one.kind for one in askings(Edit("e", prompt, "Rome"), 1, 2)} == {"edit"}


def test_a_subject_that_begins_a_statement_keeps_its_letters() -> None:
    _, denied = askings(Edit("e", "Oz has the capital", "Rome", "Oz"), 1, 2)
    assert denied.prompt == "It is false that Oz has the capital"
