"""A learning rate that is left open is chosen on documents of the store, and nothing else is looked at."""

from pathlib import Path

import numpy as np
import pytest

import toys
from uptake import api
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import Top
from uptake.errors import BadInput
from uptake.evaluation import rates
from uptake.evaluation.engine import evaluate
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.rates import rate_of, with_rates
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
    monkeypatch.setattr(rates, "DOCUMENTS", 2)
    monkeypatch.setattr(rates, "CLIMBS", 2)
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(120))
    store.add(DOCUMENTS)
    return store


def test_it_is_the_best_of_the_rates_tried_measured_as_any_evaluation(store: Datastore) -> None:
    lm = toys.lm()
    chosen = rate_of(lm, OPEN, store, 3)
    assert chosen.documents == 2 and chosen.neighbours == 3 and len(chosen.tried) >= 3
    held_out = store.sample(2, 2048, np.random.default_rng(rates.stable_hash("0", "rates")))
    assert {document.id for document in held_out} <= {document.id for document in DOCUMENTS}
    for rate, saved in chosen.tried:
        plan = Plan({"a": MethodSpec(Finetune(trainable=Top(1), optimizer=AdamW(rate)))}, PerQuery(), (3,))
        outcome = evaluate(lm, plan, Inputs(tuple(held_out)), store)
        rows = [row for row in outcome.rows if isinstance(row, Scored)]
        assert gain([row.bits for row in rows], [row.base_bits for row in rows]) == pytest.approx(saved)
    assert chosen.gain == max(saved for _, saved in chosen.tried) > 0
    assert dict(chosen.tried)[chosen.rate] == chosen.gain


def test_what_was_chosen_is_kept_until_what_it_depends_on_changes(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, runs = toys.lm(), list[int]()

    def counted(*given: object) -> object:
        runs.append(1)
        return evaluate(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rates, "evaluate", counted)
    first = rate_of(lm, OPEN, store, 3)
    measured = len(runs)
    assert measured == len(first.tried)
    assert rate_of(toys.lm(), OPEN, store, 3) == first and len(runs) == measured
    (kept,) = rates.cache_root().glob("rates/*.json")
    kept.write_bytes(kept.read_bytes().replace(b"0", b"1", 1))
    again = rate_of(lm, OPEN, store, 3)
    assert (again.rate, again.tried) == (first.rate, first.tried) and len(runs) == 2 * measured
    for changed in ("model", "settings", "k", "store"):
        before = len(runs)
        if changed == "store":
            store.add([Document("new", text(50))])
        other = toys.lm(seed=1) if changed == "model" else lm
        method = Finetune(trainable=Top(2), optimizer=AdamW("auto")) if changed == "settings" else OPEN
        rate_of(other, method, store, 2 if changed == "k" else 3)
        assert len(runs) > before, changed


def test_a_control_and_a_mixture_train_at_the_rate_of_the_method_and_the_report_says_so(
    store: Datastore,
) -> None:
    specs = api.method_specs(
        ["ttt-nn", "random", "in-context/ttt-nn", "ttt-nn+in-context", "base"],
        ["optimizer=adamw(learning_rate=auto)", "trainable=top(layers=1)"],
    )
    found = api.compare(toys.lm(), QUERIES, specs, store=store, k=2)
    shown = {name: str(settings) for name, settings in found.header.settings.items()}
    chosen = rate_of(toys.lm(), specs["ttt-nn"].method, store, 2)
    for name in specs:
        assert "auto" not in shown[name]
        assert (f"'learning_rate': {chosen.rate}" in shown[name]) == (name != "base")
    said = [note for note in found.header.notes if "learning rate" in note]
    assert len(said) == 4 and all(str(chosen) in note for note in said)
    assert said[0].startswith("ttt-nn: learning rate")


def test_only_what_is_open_is_chosen(store: Datastore) -> None:
    plan = Plan({"a": MethodSpec(Finetune(optimizer=SGD(0.1))), "b": MethodSpec(OPEN, Random())}, ks=(1,))
    filled, notes = with_rates(toys.lm(), plan, store)
    assert filled.methods["a"] == plan.methods["a"] and len(notes) == 1
    assert filled.methods["b"].select == Random()
    same, none = with_rates(toys.lm(), Plan({"a": plan.methods["a"]}), None)
    assert same.methods == {"a": plan.methods["a"]} and none == ()


def test_a_session_chooses_once_for_its_store_and_says_so(store: Datastore) -> None:
    spec = MethodSpec(OPEN)
    session = api.adapt(toys.lm(), "the cat sat", spec, store=store, k=2)
    chosen = rate_of(toys.lm(), OPEN, store, 2)
    assert session.spec.method == Finetune(trainable=Top(1), optimizer=AdamW(chosen.rate))
    assert session.notes == (f"finetune: learning rate {chosen}",)
    with pytest.raises(BadInput, match="give a store, or a rate"):
        Session(toys.lm(), spec)


def test_where_nothing_can_be_chosen_it_says_so(store: Datastore, tmp_path: Path) -> None:
    plan = Plan({"a": MethodSpec(OPEN)}, ks=(1,))
    with pytest.raises(BadInput, match="give a store, or a rate"):
        with_rates(toys.lm(), plan, None)
    with pytest.raises(BadInput, match="give a store, or a rate"):
        OPEN.adapt([OPEN.init(toys.lm())], toys.lm(), [Evidence.of("some text")], Context())
    empty = Datastore.create(tmp_path / "empty", retriever="lexical")
    with pytest.raises(BadInput, match="holds no document"):
        rate_of(toys.lm(), OPEN, empty, 1)
    with pytest.raises(BadInput, match="use a number or auto"):
        api.method_specs(["ttt-nn"], ["learning_rate=best"])


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
