"""A learning rate that is left open is chosen on documents of the store, or is the usual one for the size."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from uptake import api
from uptake.adaptation.by_size import weights_of
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import All, Auto, LoRA, Top
from uptake.cache import cache_root
from uptake.errors import BadInput
from uptake.evaluation import defaults, rates
from uptake.evaluation.climb import peak
from uptake.evaluation.defaults import queries_together, with_defaults
from uptake.evaluation.engine import evaluate
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.rates import ChosenRate, Effort, rate_of
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.report.metrics import gain
from uptake.report.scored.rows import Scored
from uptake.session import Session
from uptake.store import Datastore
from uptake.text.select import Random
from uptake.text.types import Chunking, Document

WORDS = ("cat", "dog", "fish", "hen", "mat", "hill", "sea", "box", "red", "wet", "old", "fat")
OPEN = Finetune(trainable=Top(1), optimizer=AdamW("auto"))


def text(number: int, length: int = 12) -> str:
    draws = np.random.default_rng(number)
    return " ".join(f"the {draws.choice(WORDS)} sat on it" for _ in range(length))


DOCUMENTS = [Document(f"d{number}", text(number)) for number in range(14)]
QUERIES = [Document(f"q{number}", text(100 + number)) for number in range(3)]


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Datastore:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Effort, "of", lambda weights: Effort(3, 3, 512))
    monkeypatch.setattr(rates, "CLIMBS", 2)
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(120))
    store.add(DOCUMENTS)
    return store


def chosen_of(store: Datastore, method: Finetune = OPEN, k: int = 3, seed: int = 0) -> ChosenRate:
    found = rate_of(toys.lm(seed=seed), method, store, k)
    assert found is not None
    return found


def test_it_is_the_top_of_the_curve_through_rates_measured_as_any_evaluation(store: Datastore) -> None:
    chosen = chosen_of(store)
    assert chosen.documents == 3 and chosen.neighbours == 3 and len(chosen.tried) >= 2
    drawn = store.sample(9, 1024, np.random.default_rng(rates.stable_hash("0", "rates")))[:3]
    assert {document.id for document in drawn} <= {document.id for document in DOCUMENTS}
    for each in chosen.tried:
        method = Finetune(trainable=Top(1), optimizer=AdamW(each.rate))
        plan = Plan({"a": MethodSpec(method)}, PerQuery(512, 512), (3,))
        outcome = evaluate(toys.lm(), plan, Inputs(tuple(drawn[: each.documents])), store)
        rows = [row for row in outcome.rows if isinstance(row, Scored)]
        assert gain([row.bits for row in rows], [row.base_bits for row in rows]) == pytest.approx(each.gain)
        assert each.documents == 3 or each.gain < 0
    measured = {each.rate: each.gain for each in chosen.tried}
    first = next(rate for rate in measured if rate == pytest.approx(AdamW("auto").start))
    rate, saved = peak(
        lambda rate: next(measured[each] for each in measured if each == pytest.approx(rate)), first, 3, 2
    )
    assert (chosen.rate, chosen.gain) == (pytest.approx(rate, rel=0.05), pytest.approx(saved))
    assert chosen.rate == float(f"{chosen.rate:.2g}")


def test_a_rate_that_does_harm_is_given_up_before_the_documents_are_through(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = PerQuery.rows

    def harming(protocol: PerQuery, name: str, *given: Any) -> list[list[Scored]]:
        (made,) = rows(protocol, name, *given)
        return [[replace(row, bits=1.1 * row.base_bits) if name == "300.0" else row for row in made]]

    monkeypatch.setattr(PerQuery, "rows", harming)
    for before, after in ((True, 1), (False, 2)):
        choosing = rates._Choosing(toys.lm(), OPEN, store, Effort(3, 3, 512), 0, lambda tried, best: None)
        choosing.queries += choosing._drawn()
        if before:
            assert choosing._measure(1e-3) > 0 and len(choosing.bits[1e-3]) == 3
        assert choosing._measure(300.0) < 0 and len(choosing.bits[300.0]) == after


@given(
    top=st.floats(-9, 0).map(math.exp), height=st.floats(1e-6, 1), factor=st.sampled_from([2.0, 3.0, 10.0])
)
def test_of_a_parabola_the_top_itself_is_found_from_few_rates(
    top: float, height: float, factor: float
) -> None:
    tried = list[float]()

    def gain_at(rate: float) -> float:
        tried.append(rate)
        return height * (2 * rate / top - (rate / top) ** 2)

    rate, saved = peak(gain_at, 1e-2, factor, 20)
    assert rate == pytest.approx(top, rel=1e-6) and saved == pytest.approx(height, rel=1e-6)
    assert len(tried) == len({*tried}) <= 2 + math.ceil(abs(math.log(top / 1e-2, factor))) + 1


def test_a_curve_that_promises_more_beyond_what_was_measured_is_not_followed_far() -> None:
    gains = {-1: 0.5, 0: 0.8, 1: 2.1, 2: -0.2}
    rate, _ = peak(lambda rate: gains[round(math.log(rate / 1e-4, 3))], 1e-4, 3, 6)
    assert 3e-4 < rate <= 5e-4 * (1 + 1e-9)


@given(st.lists(st.sampled_from([-math.inf, -1.0, -0.1, 0.0, 0.1, 0.5, 1.0]), min_size=13, max_size=13))
def test_whatever_the_gains_the_rate_is_beside_the_best_of_those_measured(gains: list[float]) -> None:
    measured = dict[int, float]()

    def gain_at(rate: float) -> float:
        step = round(math.log(rate / 1e-3, 3))
        measured[step] = gains[step + 6]
        return measured[step]

    rate, saved = peak(gain_at, 1e-3, 3, 6)
    best = max(measured.values())
    near = [step for step in measured if measured[step] == best]
    assert len(measured) <= 7 and saved >= best
    assert any(abs(math.log(rate / 1e-3, 3) - step) < 1.5 + 1e-9 for step in near)
    if best <= 0:
        assert saved == best and rate == pytest.approx(1e-3 * 3.0 ** min(near))


def test_what_was_chosen_is_kept_beside_the_store_until_what_it_depends_on_changes(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = list[int]()
    run = rates._Choosing.run

    def counted(choosing: rates._Choosing) -> ChosenRate | None:
        runs.append(1)
        return run(choosing)

    monkeypatch.setattr(rates._Choosing, "run", counted)
    first = chosen_of(store)
    assert chosen_of(store) == first and chosen_of(Datastore.open(str(store.path))) == first
    assert len(runs) == 1
    (kept,) = (Path(str(store.path)) / "rates").glob("*.json")
    kept.write_bytes(kept.read_bytes().replace(b"0", b"1", 1))
    again = chosen_of(store)
    assert (again.rate, again.tried) == (first.rate, first.tried) and len(runs) == 2
    for changed in ("model", "settings", "k", "store"):
        before = len(runs)
        if changed == "store":
            store.add([Document("new", text(50))])
        method = Finetune(trainable=Top(2), optimizer=AdamW("auto")) if changed == "settings" else OPEN
        chosen_of(store, method, 2 if changed == "k" else 3, seed=int(changed == "model"))
        assert len(runs) > before, changed


def test_a_store_that_may_not_be_written_to_has_its_rates_in_the_cache(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates.os, "access", lambda path, mode: False)
    first = chosen_of(store)
    assert not (Path(str(store.path)) / "rates").exists()
    assert len([*cache_root().glob("rates/*.json")]) == 1
    monkeypatch.setattr(rates._Choosing, "run", lambda choosing: None)
    assert chosen_of(store) == first


def test_a_control_and_a_mixture_train_at_the_rate_of_the_method_and_the_report_says_so(
    store: Datastore,
) -> None:
    names = ["ttt-nn", "random", "in-context/ttt-nn", "ttt-nn+in-context", "base"]
    specs = api.method_specs(names, ["trainable=top(layers=1)"])
    found = api.compare(toys.lm(), QUERIES, specs, store=store, k=2)
    shown = {name: str(settings) for name, settings in found.header.settings.items()}
    chosen = chosen_of(store, OPEN, 2)
    for name in specs:
        assert "auto" not in shown[name]
        assert (f"'learning_rate': {chosen.rate}" in shown[name]) == (name != "base")
    said = [note for note in found.header.notes if "learning rate" in note]
    assert said == [f"{', '.join(names[:-1])}: learning rate {chosen}"]


def test_only_what_is_open_is_chosen(store: Datastore) -> None:
    plan = Plan({"a": MethodSpec(Finetune(optimizer=SGD(0.1))), "b": MethodSpec(OPEN, Random())}, ks=(1,))
    filled, notes = with_defaults(toys.lm(), plan, store)
    assert filled.methods["a"].method == Finetune(trainable=All(), optimizer=SGD(0.1)) and len(notes) == 1
    assert filled.methods["b"].select == Random()
    same, none = with_defaults(toys.lm(), Plan({"a": MethodSpec(Finetune(All(), SGD(0.1)))}), None)
    assert same.methods == {"a": MethodSpec(Finetune(All(), SGD(0.1)))} and none == ()


def test_a_session_chooses_once_for_its_store_and_says_so(store: Datastore) -> None:
    spec, told = MethodSpec(OPEN), list[tuple[str, int]]()
    session = api.adapt(
        toys.lm(),
        "the cat sat",
        spec,
        store=store,
        k=2,
        progress=lambda name, tried, best: told.append((name, tried)),
    )
    chosen = chosen_of(store, OPEN, 2)
    assert session.spec.method == Finetune(trainable=Top(1), optimizer=AdamW(chosen.rate))
    assert session.notes == (f"finetune: learning rate {chosen}",)
    assert told[0] == ("finetune", 1) and told[-1][1] == len(chosen.tried)
    assert len(told) == sum(each.documents for each in chosen.tried)


def test_where_nothing_can_be_chosen_the_rate_is_the_usual_one_and_it_says_so(
    store: Datastore, tmp_path: Path
) -> None:
    lm, plan = toys.lm(), Plan({"a": MethodSpec(OPEN)}, ks=(1,))
    alone = Datastore.create(tmp_path / "alone", retriever="lexical")
    alone.add([Document("one", text(1))])
    empty = Datastore.create(tmp_path / "empty", retriever="lexical")
    running = Plan(plan.methods, Running(), (1,))
    cases = {
        "there is no store": (plan, None),
        "no document of the store has neighbours": (plan, alone),
        "reads no neighbours of a store": (plan, empty),
        "--protocol running takes none": (running, store),
    }
    for why, (asked, found) in cases.items():
        settled, (note,) = with_defaults(lm, asked, found)
        assert settled.methods["a"].method == Finetune(trainable=Top(1), optimizer=AdamW(1e-4)), why
        assert (
            note.startswith("a: learning rate 0.0001, the usual one for a model of 0.0 million")
            and why in note
        )
    session = Session(lm, MethodSpec(OPEN))
    assert "there is no store" in session.notes[0]
    with pytest.raises(BadInput, match="use a number or auto"):
        api.method_specs(["ttt-nn"], ["learning_rate=best"])


def test_an_open_rate_that_nobody_has_settled_is_the_usual_one(tmp_path: Path) -> None:
    lm, evidence = toys.lm(), [Evidence.of("some text"), Evidence.of("the cat sat on a mat")]
    for trainable in (All(), LoRA(2)):
        states = [
            Finetune(trainable=trainable, optimizer=optimizer).adapt(
                [Finetune().init(lm)] * 2, lm, evidence, Context()
            )
            for optimizer in (AdamW(), AdamW(1e-4))
        ]
        for mine, named in zip(*states, strict=True):
            assert str(mine.delta.packed()) == str(named.delta.packed())


def test_usual_rates_fall_with_the_size_of_the_model_beyond_what_was_tried() -> None:
    assert AdamW().usual_for(5_000_000) == AdamW().usual_for(135_000_000) == 1e-4
    assert AdamW().usual_for(2_000_000_000) == pytest.approx(1e-5)
    assert SGD().settled(1000) == SGD(1e-3) and SGD(0.5).settled(10**12) == SGD(0.5)


def test_what_is_trained_goes_by_the_size_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toys.lm()
    assert Auto().of(lm.module) == All()
    monkeypatch.setattr("uptake.adaptation.by_size.SMALL", weights_of(lm.module) - 1)
    assert Auto().of(lm.module) == Top(2)
    monkeypatch.setattr("uptake.adaptation.by_size.BLOCKS", 1)
    settled, notes = with_defaults(
        lm, Plan({name: MethodSpec(Finetune(optimizer=AdamW(1e-3))) for name in ("a", "b")}), None
    )
    assert settled.methods["a"].method == Finetune(trainable=Top(1), optimizer=AdamW(1e-3))
    assert notes[0].startswith("a, b: trains the last 1 of 2 blocks, 0.0 of 0.0 million weights")
    (state,) = Finetune(optimizer=AdamW(1e-3)).adapt(
        [Finetune().init(lm)], lm, [Evidence.of("some text")], Context()
    )
    assert {name.path.split(".")[2] for name in state.delta.parts} == {"1"}


def test_queries_go_side_by_side_where_rows_share_a_pass() -> None:
    lm = toys.lm()
    assert queries_together(lm, api.method_specs(["base", "in-context", "ttt-nn"])) == 1
    assert (
        queries_together(lm, api.method_specs(["in-context/ttt-nn"], ["trainable=lora"])) == defaults.TOGETHER
    )


def test_documents_are_put_together_again_as_they_were(store: Datastore) -> None:
    for document in store.sample(14, 10_000, np.random.default_rng(0)):
        (own,) = [each for each in DOCUMENTS if each.id == document.id]
        assert document.text == own.text
    drawn = store.sample(5, 150, np.random.default_rng(1))
    assert len({document.id for document in drawn}) == 5
    for document in drawn:
        (own,) = [each for each in DOCUMENTS if each.id == document.id]
        assert len(document.text) == 150 and document.text in own.text
    assert store.sample(0, 300, np.random.default_rng(1)) == []
