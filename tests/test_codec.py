"""Dataclasses to JSON and back; and every file of ours that is not what was written is refused in a line."""

import dataclasses
import json
import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st
from safetensors import safe_open

import spoiling
import toys
from test_train import EPISODES, LearnedMemory
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.delta.gated import Gated, Near
from uptake.adaptation.optimizers import SGD, Optimizer
from uptake.adaptation.tensors import write_tensors
from uptake.adaptation.token_weights import network as weighing
from uptake.codec import Malformed, dumps, load, loads, plain
from uptake.errors import BadInput, Damaged
from uptake.evaluation.journal import Journal, SavedUnit
from uptake.evaluation.protocol import Part
from uptake.evaluation.tune import Recipe, Trial
from uptake.lm.base import LM
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import UNTRAINED
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.methods.retro import Retro
from uptake.report.results import Header, Neighbour, Sample
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored, Showcase
from uptake.report.streamed.rows import Answered, DocumentFailed, Drifted, ShownQuestion, Spent
from uptake.sealed import FIELD, to_json
from uptake.store.layout import METRICS, Layout, View
from uptake.store.views.chunk_neighbours import NEIGHBOURS
from uptake.store.views.view_files import Commit, ViewMetadata
from uptake.train import Point, Training, train


class Measures(NamedTuple):
    width: int
    layers: tuple[int, ...] = ()


TRIAL, MEASURES = Trial((), 1, 0.5, 1.0, 2), Measures(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """A field of every kind that a file of ours holds, and of a few more."""

    whole: int = 0
    number: float = 0.0
    yes: bool = False
    text: str = ""
    nothing: str | None = None
    maybe: float | None = None
    either: str | int | float = 0
    numeric: int | float | None = None
    choice: Literal["a", 1] = "a"
    many: tuple[int, ...] = ()
    pair: tuple[float, str] = (0.0, "")
    listed: list[str] = dataclasses.field(default_factory=list)
    named: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    inner: Trial = TRIAL
    inners: tuple[Point, ...] = ()
    measures: Measures = MEASURES
    anything: object = None


KINDS = [
    Scored, Neighbour, Showcase, Sample, Answered, Drifted, Spent, DocumentFailed, ShownQuestion, Point,
    Trial, Commit, View, Everything,
]  # fmt: skip
TEXT = st.text(st.characters(), max_size=5)  # lone surrogates as well
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def made(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of what a type hint says."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) or hint is Measures:
        given = {name: made(each) for name, each in get_type_hints(hint).items()}
        if hint is View:
            given |= {"characters": st.integers(16, 999), "metric": st.sampled_from(METRICS)}
        return st.builds(hint, **given)  # type: ignore[call-overload, no-any-return]
    if origin in (Union, types.UnionType):
        drawn = st.one_of(*map(made, inner))
        if str in inner:  # nobody can tell then that a text was an odd float
            return drawn.filter(lambda one: not isinstance(one, float) or math.isfinite(one))
        return drawn
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(made(inner[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(made, inner))
    if origin is list:
        return st.lists(made(inner[0]), max_size=2)
    if origin in (dict, Mapping):
        return st.dictionaries(TEXT, made(inner[1]), max_size=2)
    scalars: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT, int: st.integers(), float: st.floats(), bool: st.booleans(), type(None): st.none(),
        object: DATA.map(frozen), Any: DATA,
    }  # fmt: skip
    return scalars[hint]


def frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(frozen, value))
    return {key: frozen(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("kind", KINDS)
@checks(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back(kind: type[Any], data: st.DataObject) -> None:
    one = data.draw(made(kind))
    text = dumps(one)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert repr(loads(kind, text)) == repr(one)  # repr: NaN is not equal to itself
    assert repr(loads(tuple[kind, ...], dumps([one, one]))) == repr((one, one))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value within JSON data."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@pytest.mark.parametrize("kind", KINDS)
@checks(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_value_of_another_kind_is_found(kind: type[Any], data: st.DataObject) -> None:
    whole = {"it": plain(data.draw(made(kind)))}
    spots = [path for path in places(whole) if path[:2] != ("it", "anything") and path]
    path = data.draw(st.sampled_from(spots))
    holder: Any = whole
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = {"of": ["no", "kind"]} if not isinstance(holder[path[-1]], dict) else 7.5
    with pytest.raises(Malformed) as caught:
        load(kind, whole["it"])
    line = str(caught.value)
    assert "\n" not in line and ("7.5" in line or "of" in line)
    field = str(path[1]) if len(path) > 1 else "it"
    assert field in line


@pytest.mark.parametrize(
    "kind", [Scored, Header, Layout, Recipe, Everything, tuple[Point, ...], dict[str, int]]
)
@checks(max_examples=50, deadline=None)
@given(data=DATA)
def test_any_data_is_read_or_refused(kind: Any, data: Any) -> None:
    try:
        load(kind, data)
    except Malformed as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"whole": True}, "whole is True, not a whole number"),
        ({"whole": 1.0}, "whole is 1.0, not a whole number"),
        ({"whole": "1"}, "whole is '1', not a whole number"),
        ({"number": "1"}, "number is '1', not a number"),
        ({"number": False}, "number is False, not a number"),
        ({"number": 10**400}, "number is too large a number"),
        ({"text": 1}, "text is 1, not text"),
        ({"yes": 1}, "yes is 1, not true or false"),
        ({"either": None}, "either is None, not text or a whole number or a number"),
        ({"either": True}, "either is True"),
        ({"choice": True}, "choice is True, not one of a, 1"),
        ({"choice": []}, "choice is [], not one of a, 1"),
        ({"many": "12"}, "many is '12', not a list"),
        ({"many": {}}, "many is {}, not a list"),
        ({"many": [1, "2"]}, "many[1] is '2', not a whole number"),
        ({"pair": [1.0]}, "pair cannot be: Not enough values"),
        ({"pair": [1.0, "a", 2]}, "pair cannot be: Too many values"),
        ({"listed": "ab"}, "listed is 'ab', not a list"),
        ({"named": []}, "named is [], not an object"),
        ({"named": {"a b": [None]}}, "named['a b'][0] is None, not a number"),
        ({"inner": []}, "inner is [], not an object"),
        ({"inners": [{"step": 1}]}, "inners[0].total is missing (and 1 more)"),
        ({"measures": {"width": 1}}, "measures is {'width': 1}, not a list"),
        ({"later": 1, "a\nb": 2}, "it has fields that nobody knows: 'a\\nb', 'later'"),
        ([], "it is [], not an object"),
        (None, "it is None, not an object"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(given: Any, told: str) -> None:
    with pytest.raises(Malformed) as caught:
        load(Everything, given)
    assert str(caught.value).startswith(told)


def test_what_has_no_place_in_json_is_text_and_numbers_of_numpy_are_numbers() -> None:
    odd = {
        1: [np.float32(0.5), np.int64(3), math.inf, -math.inf, math.nan, Path("/a"), None, (True, Optimizer)]
    }
    assert plain(odd) == {"1": [0.5, 3, "inf", "-inf", "nan", "/a", None, [True, str(Optimizer)]]}
    # What is declared as an abstract class is written by what it is.
    assert plain(Training(optimizer=SGD(0.5)))["optimizer"] == {
        "learning_rate": 0.5,
        "momentum": 0.0,
        "weight_decay": 0.0,
    }
    assert plain(Scored("w", np.int32(1), "q", "d", 2, np.float32(1.5), 2.0))["bits"] == 1.5
    for text in (b"{", b"\xff", b"[" * 100_000, b""):
        with pytest.raises(Malformed, match=r"it is no JSON|nests deeper"):
            loads(Scored, text)


# Files


def a_state(lm: LM, path: Path) -> Callable[[], object]:
    method = Finetune.example()
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("a cat")], Context())
    save_state(state, path)
    return lambda: load_state(WeightState, path, lm)


def a_delta(lm: LM, path: Path) -> Callable[[], object]:
    low, inner = (LowRank(torch.ones(2, 1), torch.ones(1, 2)) for _ in range(2))
    Delta.of("base", {"w": low, "m": Gated(inner, Near(torch.ones(1, 2), 1.0), "w")}, "edit").save(path)
    return lambda: Delta.load(path, "base")


def a_network(lm: LM, path: Path) -> Callable[[], object]:
    method = Retro(weights=UNTRAINED, chunk=4)
    method.save(method.fresh(lm), lm, path)
    return lambda: method.load(path, lm)


def a_weighing(lm: LM, path: Path) -> Callable[[], object]:
    method = Camels()
    method.save(method.fresh(lm), lm, path)
    return lambda: weighing.from_file(path)


def a_training(lm: LM, path: Path) -> Callable[[], object]:
    def run() -> object:
        return train(LearnedMemory(), lm, EPISODES, checkpoint=path)

    run()
    return run


Maker = Callable[[LM, Path], Callable[[], object]]
MAKERS: list[Maker] = [a_state, a_delta, a_network, a_weighing, a_training]


def changes(metadata: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yield what is said beside tensors with a part of it lacking or of another kind, or with one more."""
    for name, text in metadata.items():
        if name == "format":
            continue
        yield {key: each for key, each in metadata.items() if key != name}
        if text[:1] not in '{["':
            continue
        data = json.loads(text)
        for path in places(data)[1:]:
            holders = [data]
            for key in path[:-1]:
                holders.append(holders[-1][key])
            kept = holders[-1][path[-1]]
            # Settings are only compared, and data of any shape may stand there.
            if name != "settings":
                holders[-1][path[-1]] = [None]
                yield metadata | {name: json.dumps(data)}
            holders[-1][path[-1]] = kept
        yield metadata | {name: text[1:]}
        yield metadata | {name: "7"}
    yield metadata | {"later": "1"}


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_what_a_file_says_beside_its_tensors_is_checked(tmp_path: Path, maker: Maker) -> None:
    path = tmp_path / "file"
    read = maker(toys.lm("gpt2"), path)
    read()
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != FIELD}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    every = list(changes(metadata))
    assert len(every) > 4
    for one in every:
        write_tensors(path, tensors, one)
        with pytest.raises(Damaged) as caught:
            read()
        assert "\n" not in str(caught.value) and str(path) in str(caught.value), one
        assert "anew" in str(caught.value)
    write_tensors(path, tensors, metadata)
    read()


def test_a_tensor_that_is_not_in_the_file_is_told(tmp_path: Path) -> None:
    for maker, kind in ((a_state, "there is no such tensor"), (a_delta, "no tensor up of a LowRank")):
        read = maker(toys.lm("gpt2"), tmp_path / "file")
        with safe_open(tmp_path / "file", "pt") as file:
            metadata = {name: text for name, text in file.metadata().items() if name != FIELD}
        write_tensors(tmp_path / "file", {}, metadata)
        with pytest.raises(Damaged, match=kind):
            read()


@pytest.mark.parametrize(
    "change", [{"k": "5"}, {"k": 5.0}, {"settings": "a=1"}, {"settings": [1]}, {"later": 1}]
)
def test_a_recipe_of_other_kinds_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "r.json"
    Recipe("ttt-nn", 5, ("trainable=lora(rank=8)",), {"gain": 0.1, "budget": None}).write(path)
    spoiling.change(path, lambda data: data.update(change))
    with pytest.raises(BadInput, match=f"r.json is no recipe .*{next(iter(change))}.*give a file that"):
        Recipe.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 5}, {"uid": "xyz"}, {"retriever": "lexica"}, {"index": None}, {"index": []}, {"views": []},
        {"words": ""}, {"words": 1}, {"words": "every"},
        {"views": {}}, {"later": 1}, {"views": {"passages": {}}}, {"dimensions": "16"}, {"characters": 3},
        {"characters": 1024.0}, {"metric": "far"}, {"encoder": 1}, {"format": None}, {"format": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_a_store_json_of_other_kinds_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    view = View("", "", "", 0, 1024, "cosine")
    layout = Layout("0" * 32, "lexical", "auto", {"passages": view}, "any-script")
    layout.write(tmp_path)
    assert Layout.read(tmp_path) == layout
    data = spoiling.content(tmp_path / "store.json")
    inner = data["views"]["passages"]
    (inner if change.keys() <= inner.keys() else data).update(change)
    (tmp_path / "store.json").write_bytes(to_json(data))
    with pytest.raises(Damaged, match=r"store\.json: not what was written \(.*\); put it back from a copy"):
        Layout.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 1}, {"id": "../.."}, {"dimensions": -1}, {"dimensions": "2"}, {"settings": {"length": 8}},
        {"commits": {}}, {"commits": [{"bytes": {"ids": 8}, "sums": {}}]}, {"later": 1}, {"format": None},
        {"commits": [{"bytes": {"ids": 9, "documents": 16}, "sums": {"ids": "", "documents": ""}}]},
        {"commits": [{"bytes": {"ids": "16", "documents": 16}, "sums": {"ids": "", "documents": ""}}]},
    ],
    ids=str,
)  # fmt: skip
def test_an_about_json_of_other_kinds_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tmp_path / NEIGHBOURS.name
    folder.mkdir()
    good = Commit({"ids": 16, "documents": 16}, {"ids": "", "documents": ""})
    about = ViewMetadata("abc", "", "f", 2, commits=(good,), kind=NEIGHBOURS)
    about.write(tmp_path)
    assert ViewMetadata.read(NEIGHBOURS, tmp_path) == about
    file = folder / "about.json"
    spoiling.change(file, lambda data: data.update(change))
    with pytest.raises(Damaged, match=r"about\.json: not what was written \(.*\); delete it and search"):
        ViewMetadata.read(NEIGHBOURS, tmp_path)


def test_a_line_of_a_journal_that_is_no_part_is_a_part_not_done(tmp_path: Path) -> None:
    path, row = tmp_path / "journal", Scored("w", 1, "q", "d", 2, math.inf, 2.0)
    shown = Showcase("q", "d", "", ("a",), {"w": (0.5,)}, ())
    journal = Journal(path, "key")
    journal.start(SCORED)
    for place in range(3):
        journal.keep(Part((place,), {place: [row]}, {place: [shown]}, {"w": 5}, done=1))
    lines = path.read_text().splitlines()
    spoilt = [
        ("5}", '"5"}'),
        ("true", "1"),
        ('"rows": [[', '"rows": [[], ['),
        ("scored", "asked"),
        ('"k"', '"j"'),
    ]
    record = lines[2].partition(" ")[2]
    odd = [record.replace(*pair) for pair in spoilt]
    done = SavedUnit([row], [shown], 1, True)
    for second in ('{"rows": 1}', "[]", "null", record[:-1] + ', "x": 1}', *odd):
        assert second != record
        # Under a digest that fits, so that only the content is wrong, and with the one that was there.
        for line in (journal._lines._line("key", second).decode(), f"{lines[2].partition(' ')[0]} {second}"):
            path.write_text("\n".join([*lines[:2], line, lines[3], ""]))
            with pytest.warns(UserWarning, match="line 3 is not what was written"):
                assert Journal(path, "key").start(SCORED).units == {0: done, 2: done}
            assert path.read_text().splitlines() == [*lines[:2], lines[3]]
