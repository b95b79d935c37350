"""JSON and settings from outside: how deep they may nest is checked before anything parses them."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake import settings
from uptake.codec import DEPTH, Malformed, parse
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.evaluation.tune import Recipe
from uptake.report.summary import read_data
from uptake.store.files import read_json
from uptake.tasks.holes import Making
from uptake.tasks.questions import read_questions
from uptake.text.types import Document

DEEP = ["[" * 20_000, '{"a":' * 20_000, "[" * 20_000 + "]" * 20_000, '{"a":' * 400 + "1" + "}" * 400]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\a'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=3),
)


def depth(value: object) -> int:
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(value=values, most=st.integers(0, 4))
def test_depth_is_counted_as_a_plain_recursion_counts_it(value: object, most: int) -> None:
    text = json.dumps(value)
    if depth(value) <= most:
        assert parse(text, most) == parse(text.encode(), most) == value
    else:
        with pytest.raises(Malformed, match=f"nests deeper than {most}"):
            parse(text, most)


@given(text=st.text(alphabet='[]{}"\\:1, ', max_size=30))
def test_broken_text_is_malformed_and_nothing_else(text: str) -> None:
    try:
        found = json.loads(text)
    except ValueError:
        with pytest.raises(Malformed):
            parse(text, 3)
    else:
        assert depth(found) > 3 or parse(text, 3) == found


def test_a_string_that_never_ends_is_read_once() -> None:
    with pytest.raises(Malformed):
        parse("[" * (DEPTH + 1) + '"\\' * 1_000_000)


@pytest.mark.parametrize("text", DEEP)
def test_files_that_nest_too_deep_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.json"
    path.write_text(text)
    for read, kind in (
        (Recipe.read, UptakeError),
        (read_data, UptakeError),
        (read_json, Damaged),
        (read_questions, BadInput),
    ):
        with pytest.raises(kind) as error:
            read(path)
        assert "recursion" not in str(error.value) and len(str(error.value)) < 500
        assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Some:
    one: str | int | None = None
    many: tuple[int, ...] = ()


@pytest.mark.parametrize(
    "deep", ["[", "(", "(1,", "f(", "x(a=", "{", "-", "not ", "lambda:", '"', "a.", "1+"]
)
@pytest.mark.parametrize("name", ["one", "many"])
def test_settings_that_nest_too_deep_are_refused_in_one_line(name: str, deep: str) -> None:
    for text in (deep * 20_000, deep * 20_000 + "1", deep * 200 + "1"):
        try:
            settings.apply(Some(), f"{name}={text}")
        except UptakeError as error:
            assert len(str(error)) < 500 and "\n" not in str(error)


def test_settings_of_many_brackets_side_by_side_are_no_deep_ones() -> None:
    assert settings.apply(Some(), f"many=({'1,' * 500})").many == (1,) * 500
    assert settings.apply(Some(), f"one='{'(' * 300}'").one == "(" * 300


@pytest.mark.parametrize("text", ["-" * 100_000 + "1", "(" * 5000, "x = " + "[" * 150 + "]" * 150, "f(" * 90])
def test_source_that_no_parser_takes_has_no_holes(text: str) -> None:
    assert not list(Making().holes(Document("a.py", text)))
