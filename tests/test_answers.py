"""F1 and exact match, against cases worked out by hand and a plain version of the script's arithmetic."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake.tasks.answers import exact, f1, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("a an the", ""),
        ("anthem theatre Anna", "anthem theatre anna"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("the-end", "theend"),  # punctuation goes before articles do
        ("“the” end", "“ ” end"),  # only ASCII punctuation goes, and an article may stand in other marks
        ("$12.50", "1250"),
        ("Ångström the", "ångström"),
        ("l'a b", "la b"),
        ("a\u00a0dog", "dog"),
    ],
)
def test_normalising(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("said", "answers", "same", "shared"),
    [
        ("The October, 1973", ["October 1973", "1973"], 1, 1),
        ("October", ["October 1973", "1973"], 0, 2 / 3),
        ("October 1973", ["October"], 0, 2 / 3),  # a prefix is no exact match, either way round
        ("1973 October", ["October 1973"], 0, 1),  # words, not their order
        ("very very good", ["very good"], 0, 0.8),  # a word said twice counts twice
        ("", ["1973"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
        ("dog", ["the", "dog"], 1, 1),
        ("the", ["the", "dog"], 0, 0),  # an answer of which nothing is left does not count beside others
        ("dog", ["the"], 0, 0),
    ],
)
def test_marks(said: str, answers: list[str], same: float, shared: float) -> None:
    assert exact(said, answers) == same
    assert f1(said, answers) == pytest.approx(shared)


def plain_f1(said: str, answer: str) -> float:
    """Count shared words one by one, by crossing them out."""
    told, gold = normalised(said).split(), normalised(answer).split()
    if not told or not gold:
        return float(told == gold)
    left, shared = list(gold), 0
    for word in told:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(told) + len(gold))


WORDS = st.lists(st.sampled_from(["the", "a", "cat", "Cat.", "dog", "dog,", "12", "é", "  "]), max_size=6)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.text(string.punctuation + " ", max_size=4))
def test_marks_of_any_texts(said: list[str], golds: list[list[str]], noise: str) -> None:
    told, answers = " ".join(said), [" ".join(gold) for gold in golds]
    kept = [answer for answer in answers if normalised(answer)] or [""]
    assert f1(told, answers) == pytest.approx(max(plain_f1(told, answer) for answer in kept))
    assert exact(told, answers) <= f1(told, answers) <= 1
    # Case, punctuation at the ends and the order of answers make no difference.
    assert f1(f"{noise} {told.upper()} {noise}", answers[::-1]) == f1(told, answers)


@pytest.mark.parametrize(
    ("said", "answers", "same", "shared"),
    [
        ("北京。", ["北京"], 1, 1),
        ("「北京」", ["北京"], 1, 1),
        ("北京市", ["北京"], 0, 0.8),
        ("上海", ["北京"], 0, 0),
        ("北京大学", ["在北京的大学"], 0, 0.8),
        ("東京タワー", ["東京"], 0, 2 * 2 / 7),
        ("1999年", ["1999 年"], 0, 1),  # figures among characters are one word
        ("กรุงเทพ", ["กรุงเทพ"], 1, 1),
        ("القاهرة؟", ["القاهرة"], 1, 1),
        ("दिल्ली।", ["दिल्ली"], 1, 1),
        ("서울은 수도", ["서울 수도"], 0, 0.5),  # Korean has words
    ],
)
def test_marks_in_other_scripts(said: str, answers: list[str], same: float, shared: float) -> None:
    assert exact(said, answers) == same
    assert f1(said, answers) == pytest.approx(shared)


@given(st.text(st.characters(max_codepoint=0x58F)), st.text(st.characters(max_codepoint=0x58F)))
def test_text_of_the_latin_greek_and_cyrillic_scripts_is_marked_as_the_script_does(
    said: str, answer: str
) -> None:
    lowered = said.lower().translate(str.maketrans("", "", string.punctuation))
    assert normalised(said) == " ".join(re.sub(r"\b(?:a|an|the)\b", " ", lowered).split())
    if normalised(said) and normalised(answer):
        assert f1(said, [answer]) == pytest.approx(plain_f1(said, answer))
