"""Edits as people write them: what becomes a passage, and every line of bad input, named and counted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toys
from uptake.errors import BadInput
from uptake.tasks.edit_files import fitting, read_edits
from uptake.tasks.edits import Edit, Probe, after, says
from uptake.text.files import Skipped

GOOD: dict[str, Any] = {"id": "a", "prompt": "The capital of Oz is", "target": "Rome", "subject": "Oz"}


def written(folder: Path, *records: Mapping[str, Any] | str) -> Path:
    path = folder / "edits.jsonl"
    lines = (one if isinstance(one, str) else json.dumps(one) for one in records)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_edit_is_read_as_a_passage() -> None:
    edit = Edit("e1", "The capital of Oz is", "Rome", "Oz", old="Emerald City")
    passage = edit.passage()
    assert (passage.prompt, passage.text, passage.document) == ("The capital of Oz is", " Rome", "e1")
    assert passage.meta == {"subject": "Oz", "old": "Emerald City"}
    assert passage.id == edit.passage_id == Edit(**{**_fields(edit), "rephrases": ("Oz?",)}).passage_id
    for name in ("id", "prompt", "target", "subject", "old"):
        assert Edit(**{**_fields(edit), name: "other"}).passage_id != edit.passage_id


def _fields(edit: Edit) -> dict[str, Any]:
    return {name: getattr(edit, name) for name in ("id", "prompt", "target", "subject", "old")}


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("It is", "red", " red"),
        ("It is", " red ", " red"),
        ("It is\n", "red", "red"),
        ("chart(", "df)", "df)"),
        ("首都是", "巴黎", "巴黎"),
        ("수도는", "파리", " 파리"),
        ("столица -", "Париж", " Париж"),
        ("It is", "", ""),
    ],
)
def test_a_target_stands_behind_a_space_where_words_are_kept_apart(
    prompt: str, target: str, text: str
) -> None:
    assert after(prompt, target) == text


@pytest.mark.parametrize(
    ("text", "target", "found"),
    [
        ("They speak french there", "French", True),
        ("The Frenchman is", "French", False),
        ("version 1.10", "1.1", False),
        ("x = [3]", "[3]", True),
        ("New  York\ncity", "new york", True),
        ("他住在巴黎市", "巴黎", True),
        ("anything", " ", False),
    ],
)
def test_a_text_says_a_target_as_words_of_its_own(text: str, target: str, found: bool) -> None:
    assert says(text, target) is found


def test_a_file_of_edits(tmp_path: Path) -> None:
    record = {
        **GOOD,
        "old": "Emerald City",
        "kind": "capital",
        "document": "news/7",
        "rephrases": ["Oz has the capital "],
        "loose": "Rain fell. Oz is ruled from",
        "neighbours": ["The capital of Ix is", {"prompt": "The capital of Ev is", "target": "Evna"}],
        "ripples": [{"prompt": "The mayor of the capital of Oz is", "target": "Livia"}],
        "more": [1, 2],
    }
    bare = {"prompt": "Seven plus one is ", "target": 8}
    skipped = Skipped()
    first, second = read_edits(written(tmp_path, record, "", bare), skipped)
    assert first == Edit(
        "a",
        "The capital of Oz is",
        "Rome",
        "Oz",
        "Emerald City",
        ("Oz has the capital",),
        ("Rain fell. Oz is ruled from",),
        (Probe("The capital of Ix is"), Probe("The capital of Ev is", "Evna")),
        (Probe("The mayor of the capital of Oz is", "Livia"),),
        "news/7",
        "capital",
    )
    assert (second.id, second.prompt, second.text) == (f"{tmp_path}/edits.jsonl:3", "Seven plus one is", " 8")
    assert not skipped.total


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**GOOD, "target": " "}, "empty target; write what the model is to say"),
        ({**GOOD, "prompt": ""}, "no prompt; write the text that stands before the target"),
        ({"target": "x"}, "no prompt; its keys are target"),
        (
            {**GOOD, "prompt": "Rome is the capital of Oz, called"},
            "prompt holds its target; ask without saying",
        ),
        ({**GOOD, "subject": "Kansas"}, "subject not in the prompt; 'Kansas': write it as it stands"),
        ({**GOOD, "target": ["Rome"]}, "target is not text; write it in quotes"),
        ({**GOOD, "prompt": 7}, "prompt is not text; write it in quotes"),
        ({**GOOD, "subject": 7}, "subject is not text; write it in quotes"),
        ({**GOOD, "rephrases": 3}, "rephrases is not a list of prompts"),
        ({**GOOD, "neighbours": [{"target": "x"}]}, "neighbours is not a list of prompts"),
        ({**GOOD, "id": [1]}, "id or document is neither text nor a number"),
        ({**GOOD, "target": "\ud800"}, "lone surrogate"),
        ({**GOOD, "target": "a\0b"}, "NUL character"),
        ('{"id": ', "broken JSON"),
        ("[1]", "not a JSON object"),
        ({**GOOD, "id": "0"}, "duplicate id"),
        (
            {**GOOD, "prompt": "the capital of  Ix is", "subject": ""},
            "contradicts an earlier edit; 0 says 'Ixa'",
        ),
    ],
)
def test_bad_edits_are_left_out_and_named_and_the_others_are_made(
    tmp_path: Path, record: Mapping[str, Any] | str, reason: str
) -> None:
    others = [{"id": "0", "prompt": "The capital of Ix is", "target": "Ixa"}, {**GOOD, "id": "z"}]
    skipped = Skipped()
    found = read_edits(written(tmp_path, others[0], record, others[1]), skipped)
    assert [edit.id for edit in found] == ["0", "z"]
    assert skipped.total == 1 and reason in skipped.examples[0]
    assert skipped.examples[0].startswith(f"{tmp_path}/edits.jsonl:2: ")
    alone = record if "earlier" not in reason and "duplicate" not in reason else "{}"
    with pytest.raises(BadInput, match=r"no edit to make in .*edits\.jsonl"):
        read_edits(written(tmp_path, alone))


def test_of_two_edits_that_contradict_the_person_says_which_stands(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "id": "b", "target": "Bern"}, {**GOOD, "id": "c"})
    skipped = Skipped()
    assert [edit.id for edit in read_edits(path, skipped)] == ["a"]
    assert skipped.counts == {"contradicts an earlier edit": 1, "said twice": 1}
    skipped = Skipped()
    assert [edit.id for edit in read_edits(path, skipped, "last")] == ["c"]
    assert skipped.counts == {"replaced by a later edit": 2}


def test_ten_thousand_edits_in_one_file(tmp_path: Path) -> None:
    records = [{"id": n, "prompt": f"Number {n} is called", "target": f"n{n % 7}x"} for n in range(10_000)]
    records[5_000] = {**records[5_000], "target": ""}
    skipped = Skipped()
    found = read_edits(written(tmp_path, *records), skipped)
    assert len(found) == 9_999 and skipped.counts == {"empty target": 1}


def test_an_edit_longer_than_the_window_is_left_out() -> None:
    tokenizer = toys.lm().tokenizer
    short = Edit("s", "It is", "red")
    count = 1 + len(tokenizer.encode(short.prompt)[0]) + len(tokenizer.encode(short.text)[0])
    long = Edit("l", "It is really", "red")
    skipped = Skipped()
    assert fitting([long, short], tokenizer, count, skipped) == (short,)
    assert "longer than the window" in skipped.examples[0] and skipped.examples[0].startswith("l: ")


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_JSON = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
_KEYS = [
    "id",
    "prompt",
    "target",
    "subject",
    "old",
    "rephrases",
    "neighbours",
    "ripples",
    "loose",
    "document",
    "kind",
]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(_KEYS), _JSON), max_size=4))
def test_whatever_stands_there_nothing_is_lost_uncounted(tmp_path: Path, records: list[Any]) -> None:
    skipped = Skipped()
    found = read_edits(
        written(tmp_path, *records, {**GOOD, "id": "good", "prompt": "?!"} | {"subject": ""}), skipped
    )
    assert len(found) + skipped.total == len(records) + 1
    assert not any(edit.fault() for edit in found)
