"""Facts read out of sources by `ast`: found is what was planted, and a question is fair or not asked."""

import json
from collections import Counter

import pytest
from fresh_text.choose import File
from fresh_text.definitions import definitions
from fresh_text.facts import MOST_SHARE, Fact, facts, guarded
from fresh_text.notices import notices
from fresh_text.updates import Update, updates
from fresh_text.wording import QUESTIONS, STATEMENTS, questions
from hypothesis import given, settings
from hypothesis import strategies as st

from uptake.text.files import Skipped

NAMES = st.from_regex(r"[a-z]{3,8}_[a-z]{2,5}", fullmatch=True)
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
VALUES = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    WORDS,
    st.tuples(st.integers(), WORDS),
)
CLASSES = st.from_regex(r"[A-Z][a-z]{2,8}Thing", fullmatch=True)


@st.composite
def planted(draw: st.DrawFn) -> tuple[str, set[tuple[str, str, str, str]]]:
    """Draw a module, and (name, kind, detail, answer) of every fact in it, whatever its layout."""
    known: set[tuple[str, str, str, str]] = set()
    lines = [draw(st.sampled_from(["", '"""A module."""', "import os\n"]))]
    for name in draw(st.lists(st.one_of(NAMES, CLASSES), max_size=5, unique=True)):
        is_class = name[0].isupper()
        parameters = draw(st.dictionaries(NAMES, VALUES, max_size=4))
        if is_class:
            base = draw(CLASSES)
            lines.append(f"class {name}({base}):")
            known.add((name, "base", "", base))
        indent = "    " if is_class else ""
        star = draw(st.integers(0, len(parameters)))
        given = [f"{each}: object = {value!r}" for each, value in parameters.items()]
        listed = [
            *(["self"] if is_class else []),
            *given[:star],
            *(["*"] if given[star:] else []),
            *given[star:],
        ]
        joint = draw(st.sampled_from([", ", ",\n" + indent + "        "]))
        returns, raises = draw(CLASSES), draw(st.none() | CLASSES)
        method = draw(st.sampled_from(["run_it", "__init__"])) if is_class else name
        lines.append(
            f"{indent}{draw(st.sampled_from(['', 'async ']))}def {method}({joint.join(listed)}) -> {returns}:"
        )
        lines.append(f"{indent}    " + (f"raise {raises}('no')" if raises else "return 1"))
        full = name if not is_class or method == "__init__" else f"{name}.{method}"
        for each, value in parameters.items():
            known.add((full, "default", each, value if isinstance(value, str) else repr(value)))
        known.add((full, "returns", "", returns))
        if raises:
            known.add((full, "raises", "", raises))
        lines.append(
            f"{indent}def _inner():\n{indent}    def deep(size=3): raise Deep\n{indent}    return deep"
        )
    return "\n".join(lines) + "\n", known


@given(planted())
def test_what_is_found_is_what_was_planted(made: tuple[str, set[tuple[str, str, str, str]]]) -> None:
    text, known = made
    found = {
        (each.name, stated.kind, stated.detail, stated.answer)
        for each in definitions(text)
        for stated in each.stated
    }
    assert found == known
    for each in definitions(text):
        assert each.source in text and each.leaf in (each.source + each.name)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert isinstance(definitions(text), list) and isinstance(notices(text), list)


def test_fields_of_classes_are_defaults_and_what_is_computed_is_nothing() -> None:
    text = '''
@dataclass
class Settings(Base):
    """What may be set."""
    rate: float = 3e-4
    name: str = Field(default="plain", description="x")
    items: list = field(default_factory=list)
    kind: Kind = Kind.LARGE
    made: int = compute(4)
    bare: int

    later = 5

    def run(self, *, steps: int = 1_000, deep=lambda x: x): ...
'''
    found = {each.name: [(one.detail, one.answer) for one in each.stated] for each in definitions(text)}
    assert found["Settings"] == [("", "Base"), ("rate", "3e-4"), ("name", "plain"), ("kind", "Kind.LARGE")]
    assert found["Settings.run"] == [("steps", "1_000")]
    source = next(each.source for each in definitions(text) if each.name == "Settings")
    assert source.startswith("@dataclass\nclass Settings(Base):") and "def run" not in source


def sources(**texts: str) -> list[tuple[str, File]]:
    kinds = {name: "docs" if name.startswith("docs") else "source" for name in texts}
    return [(f"toy-1/{name}", File(f"{name}.py", text, kinds[name])) for name, text in texts.items()]


FAIR = "def fetch_page(address, patience=17):\n    return address\n"


@pytest.mark.parametrize(
    "others, reason",
    [
        ({"a": FAIR}, ""),
        ({"a": FAIR.replace("17", "None")}, "what most would guess"),
        ({"a": FAIR.replace("fetch", "_fetch")}, "private"),
        ({"a": FAIR.replace("17", "'fetch'")}, "said by the question"),
        ({"a": FAIR.replace("17", repr("x" * 61))}, "longer than 60 characters"),
        ({"a": FAIR, "b": FAIR.replace("17", "19")}, "a name that stands for several things"),
        ({"a": FAIR + FAIR}, "a name that stands for several things"),
        ({"a": FAIR, "docs_b": "`fetch_page` has a patience of 17 seconds."}, "stands in another file too"),
        ({"a": FAIR, "docs_b": "`fetch_page` has a patience." + " x" * 400 + " 17"}, ""),
        ({"a": FAIR.replace("17", r"'\x41bc'")}, "beyond what is shown of it"),
    ],
)
def test_a_question_is_fair_or_not_asked(others: dict[str, str], reason: str) -> None:
    skipped = Skipped()
    found = facts("toy", sources(**others), skipped)
    assert [fact.answer for fact in found] == ([] if reason else ["17"])
    assert set(skipped.counts) == ({reason} if reason else set())


def test_a_fact_rests_on_a_passage_that_states_it() -> None:
    (fact,) = facts("toy", sources(a=FAIR), Skipped())
    assert (fact.kind, fact.name, fact.detail, fact.line) == ("default", "fetch_page", "patience", 1)
    assert fact.passage == f"# toy, a.py: fetch_page\n{FAIR}" and fact.document == "toy-1/a#1"
    assert facts("toy", sources(a=FAIR), Skipped(), frozenset({"fetch_page"})) == []


def test_source_that_does_not_parse_costs_itself() -> None:
    skipped = Skipped()
    assert len(facts("toy", sources(a=FAIR, b="def (:\n"), skipped)) == 1
    assert skipped.counts == {"source that does not parse": 1}


ANSWERS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("pqrstuvwxyz"), st.sampled_from("12345")), max_size=60
)


@given(ANSWERS)
def test_no_answer_has_more_than_its_share_and_the_guess_knows_other_files_alone(
    drawn: list[tuple[str, str, str]],
) -> None:
    found = [
        Fact("toy", f"toy-1/{file}", "default", f"name{place}", detail, answer, "", place)
        for place, (file, detail, answer) in enumerate(drawn)
    ]
    skipped = Skipped()
    kept = guarded(found, skipped)
    assert len(kept) + skipped.total == len(found)
    counts = Counter(fact.answer for fact in kept)
    assert all(count <= max(1, MOST_SHARE * len(kept)) for count in counts.values())
    for fact in kept:
        same = Counter(each.answer for each in found if each.detail == fact.detail and each.file != fact.file)
        if same:
            assert same[fact.guess] == max(same.values())
            assert fact.guess != fact.answer or same[fact.guess] < 2
    assert guarded(found, Skipped()) == kept


@pytest.mark.parametrize(
    "text, found",
    [
        ("`old_name` is renamed to `new_name`.", [("renamed", "old_name", "new_name")]),
        ("- Rename function ``join`` as ``join_trees`` (#1)", [("renamed", "join", "join_trees")]),
        ("Renamed `a_b` -> `c_d`", [("renamed", "a_b", "c_d")]),
        (
            '"`sidebar` is deprecated. Use `Chat.sidebar()` instead."',
            [("replacement", "sidebar", "Chat.sidebar")],
        ),
        ('warn("`a_b` is deprecated. "\n     "Use `c_d` instead.")', [("replacement", "a_b", "c_d")]),
        ("    factory: Deprecated. Use ``config`` instead.", [("replacement", "factory", "config")]),
        ("`a_b` is deprecated in favour of `c_d`", [("replacement", "a_b", "c_d")]),
        ("This is deprecated. Use it instead.", []),
        ("`a_b` is renamed to `c_d`. `a_b` was renamed to `e_f`.", []),
        ("`a_b` was renamed.", []),
    ],
)
def test_notices(text: str, found: list[tuple[str, str, str]]) -> None:
    assert [(notice.kind, notice.old, notice.new) for notice in notices(text)] == found


def test_every_way_to_ask_names_the_package_and_what_is_asked_for() -> None:
    for kind in QUESTIONS:
        asked = questions(kind, package="toy", name="fetch_page", detail="patience")
        assert len({*asked}) == len(asked) >= 3
        assert all("toy" in one and "`fetch_page`" in one and one.endswith("?") for one in asked)
        assert all("`patience`" in one for one in asked) == (kind == "default")
    assert {"default", "returns", "base", "parameter", "renamed"} == STATEMENTS.keys()


LONG = (
    "    total = 0\n" + "".join(f"    total += first[{n}] * {n}\n" for n in range(9)) + "    return total\n"
)
OLD = f"""
class Client(Base):
    def send(self, data, patience=3, retries: int = 5, mode="text") -> Optional[List[int]]:
        return data

    def close(self, hard: bool = False) -> None: ...

    def clone(self) -> Client: ...

def compute_all(first):
{LONG}
def kept(size=12): ...
def gone(size=3): ...
"""
NEW = f"""
class Client(Root):
    def send(self, data, timeout=3, retries: int = 7, mode="text") -> list[int] | None:
        return data

    def close(self, hard: bool = False) -> bool: ...

    def clone(self) -> Self: ...

def compute_everything(first):
{LONG}
def kept(size=12.0): ...
"""


def changes(old: str, new: str) -> list[Update]:
    return updates("toy", sources(a=old), sources(a=new), Skipped())


def test_updates_are_what_changed_and_nothing_that_is_only_laid_out_otherwise() -> None:
    found = changes(OLD, NEW)
    assert {(each.kind, each.name, each.detail, each.old, each.new) for each in found} == {
        ("base", "Client", "", "Base", "Root"),
        ("default", "Client.send", "retries", "5", "7"),
        ("parameter", "Client.send", "data", "patience", "timeout"),
        ("returns", "Client.close", "", "None", "bool"),
        ("renamed", "compute_all", "", "compute_all", "compute_everything"),
    }
    for each in found:
        assert each.new in each.passage and all(f"`{each.name}`" in one for one in each.statements)
        assert all(end != each.new for _, end in each.neighbours)
    (retries,) = [each for each in found if each.detail == "retries"]
    assert retries.neighbours[0] == (
        "In the Python package toy, the default value of `mode` in `Client.send` is",
        "text",
    )
    assert json.dumps([each.id for each in found]) == json.dumps(sorted(each.id for each in found))
    assert changes(OLD, OLD) == []


@settings(max_examples=40)
@given(planted(), st.data())
def test_updates_between_a_module_and_itself_with_other_defaults(
    made: tuple[str, set[tuple[str, str, str, str]]], data: st.DataObject
) -> None:
    text, known = made
    assert changes(text, text) == []
    whole = [
        (name, detail, answer)
        for name, kind, detail, answer in known
        if kind == "default" and len(answer) > 6 and answer.isdigit()
    ]
    if whole:
        name, detail, answer = data.draw(st.sampled_from(sorted(whole)))
        if text.count(answer) == 1:
            found = changes(text, text.replace(answer, answer[:-1]))
            assert [(one.name, one.detail, one.old, one.new) for one in found] == [
                (name, detail, answer, answer[:-1])
            ]
            for prompt, end in found[0].neighbours:
                assert end in text and end != answer[:-1] and prompt.startswith("In the Python package toy")


def test_one_and_the_same_change_is_no_more_than_three_updates() -> None:
    old = "".join(f"def run_{n}(self) -> Old: ...\n" for n in range(9))
    skipped = Skipped()
    found = updates("toy", sources(a=old), sources(a=old.replace("Old", "New")), skipped)
    assert len(found) == 3 and skipped.counts == {"one and the same change more than 3 times": 6}


@pytest.mark.parametrize("old, new", [("3", "_UNSET"), ("NO_DEFAULT", "3"), ("Missing", "None")])
def test_a_stand_in_for_no_value_is_no_update(old: str, new: str) -> None:
    skipped = Skipped()
    before, after = (f"def run(size={value}): ...\n" for value in (old, new))
    assert updates("toy", sources(a=before), sources(a=after), skipped) == []
    assert skipped.counts == {"a stand-in for no value": 1}
