"""Settings written as text."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, example, given, reject
from hypothesis import settings as checks
from hypothesis import strategies as st

from uptake import api, methods
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import Camels as CamelsWeights
from uptake.adaptation.token_weights import TfIdf, TokenWeights
from uptake.adaptation.trainable import All, LoRA, Top, Trainable
from uptake.errors import BadInput
from uptake.methods.camels import Camels
from uptake.methods.contract.method import Method
from uptake.methods.finetune import Finetune
from uptake.methods.hidden_state_optimisation import HiddenStateOptimisation
from uptake.methods.in_context import InContext
from uptake.methods.retro import Retro
from uptake.settings import Miss, NoSuchSetting, apply, describe, fields, find, parse, values, written


@dataclass(frozen=True)
class Several:
    """Settings of kinds that no method has yet."""

    ks: tuple[int, ...] = (1, 5)
    pair: tuple[float, str] = (0.5, "a")
    names: tuple[str, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    moved: tuple[Trainable, ...] = (All(), LoRA(8))
    some: tuple[int, ...] | None = None
    mixed: int | str = 0
    level: Literal[1, 2, "all"] = 1
    note: str | None = None
    steps: Finetune = field(default_factory=lambda: Finetune(passes=3))


def test_values_of_every_kind() -> None:
    changed = apply(
        Finetune(),
        "learning_rate=1e-3",
        "optimizer.beta1=0.5",
        "trainable=lora(rank=8)",
        "clip=none",
        "chunk-tokens=64",
        "dropout=true",
        "order=farthest-first",
    )
    assert changed == Finetune(
        LoRA(rank=8), AdamW(1e-3, beta1=0.5), None, chunk_tokens=64, dropout=True, order="farthest-first"
    )
    assert apply(Finetune(), "trainable=top", "optimizer=sgd(learning_rate=0.1,momentum=0.9)") == Finetune(
        Top(), SGD(0.1, 0.9)
    )
    assert describe(changed)["trainable"] == {
        "kind": "LoRA",
        "rank": 8,
        "alpha": 32,
        "owner": "lora",
        "layers": None,
    }
    assert apply(Finetune(), "clip=None", "own_prefix=TRUE", "optimizer=SGD", "dropout=False") == Finetune(
        optimizer=SGD(), clip=None, own_prefix=True
    )


def test_what_has_no_written_form_is_not_offered() -> None:
    class Kind:
        """A family that a setting names."""

    @dataclass(frozen=True)
    class Plain(Kind):
        size: int = 3

    @dataclass(frozen=True)
    class Told(Kind):
        answers: Mapping[str, str] = field(default_factory=dict)

    @dataclass(frozen=True)
    class Within(Kind):
        told: tuple[Told, ...] = (Told(),)

    owner = dataclasses.make_dataclass("Owner", [("kind", Kind, field(default_factory=Plain))], frozen=True)
    assert values(owner()) == {"kind": "plain(size=3)", "kind.size": "whole number"}


def test_they_nest_to_any_depth() -> None:
    steps = Finetune(optimizer=SGD(learning_rate=1e-3, momentum=0.9))
    assert apply(Camels(), "steps=finetune(optimizer=sgd(learning_rate=1e-3,momentum=0.9))").steps == steps
    deep = apply(
        Several(),
        "steps = finetune( trainable=lora(rank=2), token-weights=tfidf(keep=.5), optimizer.beta1=0.5, "
        "epsilon=1e-7, order = farthest-first, clip=NONE, dropout=True)",
    ).steps
    assert deep == Finetune(
        LoRA(2), AdamW(beta1=0.5, epsilon=1e-7), None, token_weights=TfIdf(0.5),
        order="farthest-first", dropout=True,
    )  # fmt: skip
    # What is not said is as the class has it, not as the field did.
    assert apply(Several(), "steps=finetune(own_prefix=true)").steps == Finetune(own_prefix=True)


def test_tuples() -> None:
    for text in ("(1,5,20)", "1,5,20", "[1, 5, 20]", "( 1, 5,\t20, )"):
        assert apply(Several(), f"ks={text}").ks == (1, 5, 20)
    assert apply(Several(), "ks=5").ks == apply(Several(), "ks=(5)").ks == (5,)
    assert apply(Several(), "ks=()").ks == ()
    assert apply(Several(), "ks=(-1, +2)").ks == (-1, 2)
    assert apply(Several(), "pair=(-1e-3, s3://b/k)").pair == (-1e-3, "s3://b/k")
    assert apply(Several(), "names=('a, (b)', /c/d.txt, e-f, \"it's\")").names == (
        "a, (b)", "/c/d.txt", "e-f", "it's",
    )  # fmt: skip
    assert apply(Several(), "nested=((1,2),(),(3,))").nested == ((1, 2), (), (3,))
    assert apply(Several(), "moved=(top(layers=1), all)").moved == (Top(1), All())
    assert apply(Several(), "some=(1,)").some == (1,) and apply(Several(some=(1,)), "some=none").some is None
    assert values(Several())["ks"] == "(whole number, ...)"
    assert values(Several())["pair"] == "(number, text)"
    assert describe(Several())["moved"][1] == {
        "kind": "LoRA",
        "rank": 8,
        "alpha": 32,
        "owner": "lora",
        "layers": None,
    }


PATHS = [
    "build/x.safetensors", "/tmp/a-1/b.2/x", "s3://bucket/key?version=3", "~/01/x", "a b", "x#1", "./x.y",
    "no", "1", "-", "none", "$HOME/x", "été/ü", "a:b", "lambda", "x=y",
]  # fmt: skip


@pytest.mark.parametrize("path", [*PATHS, "it's", "f(1)/(2", "a, b", "'", '"', "", "'a' or 'b'"])
def test_bare_text_is_what_it_says(path: str) -> None:
    assert apply(Camels(), f"weights={path}").weights == path


@pytest.mark.parametrize("path", PATHS)
def test_bare_text_within_a_choice_too(path: str) -> None:
    text = f"token_weights=camels(weights={path})"
    assert apply(Finetune(), text).token_weights == CamelsWeights(path)
    inner = apply(Several(), f"steps=finetune({text}, passes=2)").steps
    assert inner == Finetune(token_weights=CamelsWeights(path), passes=2)


def test_quotes_keep_text_as_it_is() -> None:
    assert apply(InContext(), r"separator='\n- '").separator == "\n- "
    assert apply(InContext(), r"separator=\n").separator == r"\n"
    assert apply(Finetune(), "token_weights=camels(weights='a, (b)=c')").token_weights == CamelsWeights(
        "a, (b)=c"
    )
    assert apply(Several(), "note=none").note is None and apply(Several(), "note='none'").note == "none"
    assert apply(Several(), "mixed=5").mixed == 5 and apply(Several(), "mixed='5'").mixed == "5"
    assert apply(Several(), "level=2").level == 2 and apply(Several(), "level='all'").level == "all"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate", "write name=value"),
        ("learning_rate=fast", "use a number"),
        ("learning_rate='1'", "learning_rate='1': use a number"),
        ("passes=1.5", "use a whole number"),
        ("dropout=1", "use true or false"),
        ("order=random", "nearest-first"),
        ("order=none", "nearest-first"),
        ("trainable=everything", "use one of all, "),
        ("trainable=none", "use one of all, "),
        ("trainable=lora(size=3)", "no setting 'size'"),
        (
            "trainable=lora(rank=3",
            "trainable=lora(rank=3: write lora(setting=value), with a value after each =",
        ),
        ("trainable=lora(rank=3))", "write lora(setting=value), with a value after each ="),
        ("trainable=lora(rank=)", "write lora(setting=value), with a value after each ="),
        ("trainable=lara(rank=)", "use one of"),
        ("trainable=lora(3)", "trainable=lora(3): in parentheses write setting=value"),
        ("trainable=lora(**rank)", "in parentheses write setting=value"),
        ("trainable=lora(rank=top)", "rank=top: use a whole number"),
        ("trainable=_frozen", "use one of all"),
        ("optimizer=sgd(learning_rate=/x)", "learning_rate='/x': use a number"),
        ("learning_rat=1", "did you mean 'learning_rate'"),
        ("learning_rate=-1", "0 or more"),
        ("optimizer=adamw(beta1=1)", "beta1 1.0: use 0 or more, and less than 1"),
        ("optimizer=adamw(beta2=-0.1)", "beta2 -0.1: use 0 or more, and less than 1"),
        ("optimizer=adamw(epsilon=-1)", "epsilon -1.0: use a finite number, 0 or more"),
        ("optimizer=adamw(weight_decay=inf)", "weight_decay inf: use a finite number, 0 or more"),
        ("optimizer=sgd(momentum=-1)", "momentum -1.0: use a finite number, 0 or more"),
        ("optimizer=sgd(weight_decay=nan)", "weight_decay nan: use a finite number, 0 or more"),
        ("trainable=lora(rank=0)", "rank 0, alpha 32: use 1 or more of each"),
        ("trainable=lora(alpha=0)", "rank 16, alpha 0: use 1 or more of each"),
        ("trainable=lora(owner=two words)", "owner 'two words': use letters"),
        ("trainable=lora(rank=8,rank=9)", "rank is set twice, set it once"),
        ("clip=0", "positive"),
        ("max_steps=-1", "0 or more"),
        ("chunk_tokens=1", "2 or more"),
    ],
)
def test_mistakes_are_named_with_the_cure(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        apply(Finetune(), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ks=(1,x)", "ks=x: use a whole number"),
        ("ks=(1", r"ks=\(1: write \(whole number, ...\)"),
        ("pair=1", r"pair=1: write \(number, text\)"),
        ("pair=(1,2,3)", "write"),
        ("level=3", "use one of 1, 2, all"),
        ("moved=(all,some)", "moved=some: use one of all"),
    ],
)
def test_mistakes_in_tuples_too(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        apply(Several(), text)


def test_what_cannot_be_written_is_said() -> None:
    with pytest.raises(BadInput, match=r"cannot be written as text; set it from Python"):
        parse(bytes, "x", "raw")
    with pytest.raises(BadInput, match="use a whole number or a number"):
        parse(int | float, "x", "size")


def test_settings_that_need_each_other_come_in_any_order() -> None:
    wanted = Retro(chunk=600, episode_tokens=700)
    for pair in (["chunk=600", "episode_tokens=700"], ["episode_tokens=700", "chunk=600"]):
        assert apply(Retro(), *pair) == wanted == parse(Retro, f"retro({','.join(pair)})", "it")
    with pytest.raises(BadInput, match="more than a chunk"):
        apply(Retro(), "chunk=600")


def test_a_field_of_one_class_takes_its_settings_and_names_it() -> None:
    method = HiddenStateOptimisation()
    assert apply(method, "optimizer=adamw(learning_rate=0.5)").optimizer == AdamW(0.5)
    with pytest.raises(BadInput, match="use one of adamw, with settings"):
        apply(method, "optimizer=sgd")


def test_a_name_that_is_no_setting_says_how() -> None:
    def miss(settings: object, name: str) -> NoSuchSetting:
        with pytest.raises(NoSuchSetting) as caught:
            find(settings, name)
        return caught.value

    pair = dataclasses.make_dataclass(
        "Pair", [("one", Optimizer, SGD()), ("two", Optimizer, SGD())], frozen=True
    )()
    several = miss(pair, "momentum")
    assert several.miss is Miss.AMBIGUOUS and several.names == ("one.momentum", "two.momentum")
    near = miss(pair, "momentun")
    assert near.miss is Miss.NEAR and near.names == ("momentum",)
    unknown = miss(LoRA(), "zzz")
    assert unknown.miss is Miss.UNKNOWN and unknown.names == ("rank", "alpha", "owner", "layers")


def test_the_nearest_miss_of_several_ways_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(names: list[str], setting: str) -> NoSuchSetting:
        with pytest.raises(NoSuchSetting) as caught:
            api.method_specs(names, [setting])
        return caught.value

    assert told(["base", "finetune"], "zzz=1").names[0] == "trainable"
    assert told(["in-context", "finetune"], "learning_rat=1").names == ("learning_rate",)
    assert told(["base", "finetune+retro"], "retro.chunk_token=1").miss is Miss.NEAR
    # Whatever the messages say: the kind decides.
    monkeypatch.setattr(NoSuchSetting, "__str__", lambda error: "did you mean: there are could be")
    assert told(["in-context", "finetune"], "learning_rat=1").names == ("learning_rate",)
    assert api.method_specs(["base", "finetune"], ["passes=2"])["finetune"].method == Finetune(passes=2)


@given(st.text(max_size=40))
def test_any_text_is_a_setting_or_bad_input(text: str) -> None:
    try:
        assert isinstance(apply(Finetune(), text), Finetune)
    except BadInput as error:
        assert "\n" not in str(error) or "\n" in text


PIECES = [
    "steps=",
    "finetune",
    "(",
    ")",
    ",",
    "=",
    "rule",
    "sgd",
    "'",
    '"',
    "1e-3",
    "\\",
    "[",
    "#",
    "*",
    ":",
    "\0",
]
NAMES = ["steps", "ks", "names", "moved", "nested", "mixed", "note", "level", "pair"]


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(PIECES) | st.characters(), max_size=30))
def test_any_pieces_of_a_value_are_a_value_or_bad_input(name: str, pieces: list[str]) -> None:
    try:
        assert isinstance(apply(Several(), f"{name}={''.join(pieces)}"), Several)
    except BadInput as error:
        assert type(error) in (BadInput, NoSuchSetting)


@given(st.text(max_size=40).filter(lambda text: text[:1] not in ("'", '"')))
@example("(:)")
def test_any_bare_text_is_itself(text: str) -> None:
    assert apply(Camels(), f"weights={text}").weights == text.strip()


def test_parentheses_without_end_are_no_traceback() -> None:
    for text in (
        "(" * 10_000,
        "top(layers=" * 2000,
        "-" * 100_000 + "1",
        "lora(rank=" + "[" * 150 + "]" * 150 + ")",
    ):
        with pytest.raises(BadInput):
            apply(Finetune(), f"trainable={text}")


# Whatever can be set can be written, and is read back as it was.


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Return values for a field of type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(anything, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(anything(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(anything, arguments))
    if origin is Method:  # any method at all: two will do
        return st.sampled_from([methods.find("finetune").method, methods.find("grace").method])
    plain: dict[Any, st.SearchStrategy[Any]] = {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8) | st.text(st.characters(), max_size=4) | st.sampled_from(PATHS),
    }
    return plain[hint] if hint in plain else st.one_of(*(instances(each) for each in classes(hint)))


def classes(kind: type[Any]) -> Iterator[type[Any]]:
    if dataclasses.is_dataclass(kind) and not kind.__name__.startswith("_"):
        yield kind
    for each in kind.__subclasses__():
        if each.__module__.startswith("uptake."):
            yield from classes(each)


@st.composite
def instances(draw: st.DrawFn, kind: type[Any]) -> Any:
    """Return an object of a class with a few of its settings changed."""
    hints, names = get_type_hints(kind), [part.name for part in fields(kind)]
    changed = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
    try:
        return kind(**{name: draw(anything(hints[name])) for name in changed})
    except BadInput:
        reject()


SPECS = [methods.find(name) for name in methods.names()]
REGISTERED = {
    *(type(part) for spec in SPECS for part in (spec.method, spec.select)),
    *(each for kind in (Trainable, Optimizer, TokenWeights) for each in classes(kind)),
    Several,
}


@pytest.mark.parametrize("kind", sorted(REGISTERED, key=lambda kind: kind.__qualname__))
@checks(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_what_is_written_is_read_back(kind: type[Any], data: st.DataObject) -> None:
    made = data.draw(instances(kind))
    back = parse(kind, written(made), "it")
    assert back == made and describe(back) == describe(made)
    # And within something that is read: as one of several, and as a part of a part.
    assert parse(tuple[kind, ...], f"({written(made)}, {written(made)})", "it") == (made, made)


def test_what_is_written_is_short() -> None:
    assert written(Finetune()) == "finetune"
    assert written(Finetune(optimizer=SGD(learning_rate=0.5), order="farthest-first", clip=None)) == (
        "finetune(optimizer=sgd(learning_rate=0.5), clip=none, order=farthest-first)"
    )
    assert written(CamelsWeights("a/b.safetensors")) == "camels(weights=a/b.safetensors)"
    assert written(CamelsWeights("a b")) == "camels(weights='a b')"
    assert written(Several(ks=(3,), note="none")) == "several(ks=(3,), note='none')"


def test_choices_that_are_not_imported_yet_are_looked_for_once_named() -> None:
    @dataclass(frozen=True)
    class Kind:
        @staticmethod
        def load_choices() -> None:
            loads.append(1)
            made.append(dataclass(frozen=True)(type("Late", (Kind,), {"__annotations__": {}})))

    @dataclass(frozen=True)
    class Early(Kind):
        pass

    @dataclass(frozen=True)
    class Holder:
        kind: Kind

    loads, made = list[int](), list[type]()
    Holder.__annotations__["kind"] = Kind
    assert isinstance(apply(Holder(Early()), "kind=early").kind, Early) and not loads
    assert isinstance(apply(Holder(Early()), "kind=late").kind, made[0]) and loads == [1]
