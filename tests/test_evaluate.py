"""Evaluation: protocols, fairness between ways, failures, resuming, and independence of queries."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toys
from stubs import a_second
from uptake import api, methods
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.errors import BadInput
from uptake.evaluation import cost_meter
from uptake.evaluation.engine import evaluate
from uptake.evaluation.header import described
from uptake.evaluation.journal import Journal
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.protocols.whole import Whole
from uptake.lm.base import Scores, Segment
from uptake.lm.causal import Causal
from uptake.methods.base import Base
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.spending import Budget
from uptake.methods.finetune import Finetune
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.select import Nothing
from uptake.text.types import Chunking, Document, stable_hash

WORDS = "the cat dog fish sat ran swam on under by mat hill pond red blue green and then again"


def sentence(seed: int, count: int = 60) -> str:
    words = WORDS.split()
    return " ".join(words[stable_hash(str(seed), str(i)) % len(words)] for i in range(count))


DOCUMENTS = [Document(f"test/{i}", sentence(i)) for i in range(4)]
SMALL = PerQuery(prefix=80, suffix=80)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    made = Datastore.create(
        tmp_path_factory.mktemp("store") / "store", retriever="lexical", chunking=Chunking(characters=100)
    )
    made.add([Document(f"train/{i}", sentence(100 + i)) for i in range(12)])
    return made


def plan(*names: str, **changes: Any) -> Plan:
    ways = api.method_specs(
        names or ("base", "random", "in-context", "ttt-nn"), ["optimizer=sgd(learning_rate=0.05)"]
    )
    return replace(Plan(ways, SMALL, (1, 3), showcases=2), **changes)


def figures(rows: list[Scored]) -> dict[tuple[str, int, str], tuple[float, float]]:
    return {(row.method, row.k, row.query): (row.bits, row.base_bits) for row in rows}


@given(
    text=st.text(max_size=300),
    prefix=st.integers(1, 40),
    suffix=st.integers(1, 40),
    windows=st.integers(1, 5),
    search=st.none() | st.integers(1, 50),
)
def test_per_query_windows_stand_in_the_text_and_never_overlap(
    text: str, prefix: int, suffix: int, windows: int, search: int | None
) -> None:
    protocol = PerQuery(prefix, suffix, windows, search)
    end = 0
    for query in protocol.queries(Document("d", text)):
        joined = query.context + query.target
        start = text.index(joined, end)
        assert (
            query.search == query.context[-(search or prefix) :]
            and 1 <= len(query.target) <= suffix
            and len(query.context) <= prefix
        )
        end = start + len(joined)
    assert (end == 0) == (len(text) < 2)


@given(text=st.text(max_size=300), size=st.integers(1, 50))
def test_running_and_whole_score_every_character_once(text: str, size: int) -> None:
    for protocol in (Running(segment=size, context=7), Whole()):
        assert "".join(query.target for query in protocol.queries(Document("d", text))) == text


@given(text=st.text(alphabet="ab \n", max_size=200), size=st.integers(1, 50))
def test_an_answer_in_pieces_is_cut_before_white_space(text: str, size: int) -> None:
    pieces: list[Segment] = []

    class Seen(Base):
        def read(self, states: Any, lm: Any, segments: Any, context: Any) -> Any:
            pieces.extend(segments)
            return [Scores(torch.zeros(1), ((0, 1),), 1)], states

    MethodSpec(Seen(), Nothing(), segment=size).score(
        [State(base="")], toys.lm(), [Segment(text, "c")], Context()
    )
    assert "".join(piece.text for piece in pieces) == text
    for number, piece in enumerate(pieces):
        before = "".join(earlier.text for earlier in pieces[:number])
        assert 0 < len(piece.text) <= size and piece.context == "c" + before
        late = text[len(before) :][1 + size // 2 : size + 1]
        if len(before) + len(piece.text) < len(text) and set(late) & set(" \n"):
            following = text[len(before) + len(piece.text)]
            assert following in " \n" and len(piece.text) > size // 2


def test_every_way_scores_the_same_bytes_against_the_same_base(store: Datastore) -> None:
    rows = evaluate(toys.lm(), plan(), DOCUMENTS, store).rows
    assert {(row.method, row.k) for row in rows} == {
        ("base", 0),
        *((way, k) for way in ("random", "in-context", "ttt-nn") for k in (1, 3)),
    }
    for document in DOCUMENTS:
        of = [row for row in rows if row.document == document.id]
        assert len({(row.bytes, row.base_bits) for row in of}) == 1
    assert all(row.bits == row.base_bits for row in rows if row.method == "base")
    assert all(row.neighbours == row.k and row.bits != row.base_bits for row in rows if row.method != "base")
    trained = {(row.query, row.k): row.tokens_trained for row in rows if row.method == "ttt-nn"}
    assert all(0 < trained[document.id + "#0", 1] < trained[document.id + "#0", 3] for document in DOCUMENTS)


def test_a_row_is_what_the_method_gives_by_hand(store: Datastore) -> None:
    lm = toys.lm()
    rows = figures(evaluate(lm, plan("ttt-nn"), DOCUMENTS, store).rows)
    method = Finetune(optimizer=SGD(0.05))
    for document in DOCUMENTS:
        prefix, target = document.text[:80], document.text[80:160]
        source = store.source(prefix, document_id=document.id, whole_text=document.text)
        found = source.search(3)
        (state,) = method.adapt([method.init(lm)], lm, [Evidence(found, prefix)], Context())
        (scores,) = method.adapted([state], lm).score([Segment(target, prefix)])
        assert rows["ttt-nn", 3, document.id + "#0"][0] == pytest.approx(scores.bits, rel=1e-6)


def test_a_shorter_search_changes_what_is_found_and_not_what_is_read(store: Datastore) -> None:
    lm, method = toys.lm(), Finetune(optimizer=SGD(0.05), own_prefix=True)
    rule = PerQuery(prefix=80, suffix=80, search=20)
    rows = figures(
        evaluate(lm, plan(methods={"own": MethodSpec(method)}, protocol=rule), DOCUMENTS, store).rows
    )
    different = 0
    for document in DOCUMENTS:
        prefix, target = document.text[:80], document.text[80:160]
        found, of_all = (
            store.source(text, document_id=document.id, whole_text=document.text).search(3)
            for text in (prefix[-20:], prefix)
        )
        different += found.passages != of_all.passages
        (state,) = method.adapt([method.init(lm)], lm, [Evidence(found, prefix)], Context())
        (scores,) = method.adapted([state], lm).score([Segment(target, prefix)])
        assert rows["own", 3, document.id + "#0"][0] == pytest.approx(scores.bits, rel=1e-6)
    assert different


def test_order_and_company_of_queries_change_no_bit(store: Datastore) -> None:
    lm = toys.lm()
    forward = figures(evaluate(lm, plan(batch=1), DOCUMENTS, store).rows)
    backward = figures(evaluate(lm, plan(batch=1), DOCUMENTS[::-1], store).rows)
    assert forward == backward
    alone = figures(evaluate(lm, plan(batch=1), DOCUMENTS[2:3], store).rows)
    assert alone.items() <= forward.items()
    batched = figures(evaluate(lm, plan(batch=4), DOCUMENTS, store).rows)
    assert {key: pytest.approx(value, rel=1e-6) for key, value in forward.items()} == batched


def test_reference_mode_runs_one_by_one_and_depends_on_order(store: Datastore) -> None:
    ways = api.method_specs(["ttt-nn"], ["reference=true", "learning_rate=1e-3"])
    forward = figures(evaluate(toys.lm(), plan(methods=ways, batch=4), DOCUMENTS, store).rows)
    backward = figures(evaluate(toys.lm(), plan(methods=ways, batch=4), DOCUMENTS[::-1], store).rows)
    assert forward.keys() == backward.keys() and forward != backward


def test_zero_neighbours_and_more_than_there_are(store: Datastore) -> None:
    rows = evaluate(toys.lm(), plan("ttt-nn", "random", ks=(0, 5000)), DOCUMENTS[:1], store).rows
    for row in rows:
        assert row.failed == "" and row.neighbours == (store.count if row.k else 0)
        assert (row.bits == row.base_bits) == (row.k == 0)
    assert all(row.bits == row.base_bits for row in evaluate(toys.lm(), plan(ks=(0,)), DOCUMENTS).rows)


class Unlucky(Finetune):
    def adapt(self, states: Any, lm: Any, evidence: Any, context: Context, donate: bool = False) -> Any:
        if any(each.query == DOCUMENTS[1].text[:80] for each in evidence):
            raise RuntimeError("the network\nbroke")
        return super().adapt(states, lm, evidence, context, donate)


def test_a_failed_query_counts_at_the_base_and_spoils_no_other(store: Datastore) -> None:
    unlucky = Unlucky(optimizer=SGD(0.05))
    rows = evaluate(toys.lm(), plan(methods={"ttt-nn": MethodSpec(unlucky)}), DOCUMENTS, store).rows
    failed = [row for row in rows if row.failed]
    assert {row.document for row in failed} == {"test/1"} and len(failed) == 2
    assert all(row.bits == row.base_bits and row.failed == "RuntimeError: the network" for row in failed)
    right = figures(evaluate(toys.lm(), plan("ttt-nn"), DOCUMENTS, store).rows)
    others = {key: value for key, value in figures(rows).items() if "test/1" not in key[2]}
    assert {key: pytest.approx(right[key], rel=1e-6) for key in others} == others


def test_settings_that_cannot_work_stop_the_run(store: Datastore) -> None:
    ways = api.method_specs(["ttt-nn"], ["trainable=top(layers=9)"])
    with pytest.raises(BadInput, match="the model has 2"):
        evaluate(toys.lm(), plan(methods=ways), DOCUMENTS, store)
    with pytest.raises(BadInput, match="--store"):
        evaluate(toys.lm(), plan(), DOCUMENTS)
    with pytest.raises(BadInput, match="two characters"):
        evaluate(toys.lm(), plan(), [Document("d", "x")], store)


def test_an_interrupted_run_goes_on_where_it_stopped(store: Datastore, tmp_path: Path) -> None:
    lm, path = toys.lm(), tmp_path / "journal"
    whole = evaluate(lm, plan(batch=1), DOCUMENTS, store)

    def interrupt(done: int, total: int, name: str) -> None:
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, plan(batch=1), DOCUMENTS, store, Journal(path, "key"), interrupt)
    # A line cut short by the crash is a batch not done.
    path.write_bytes(path.read_bytes()[:-40])
    seen: list[int] = []
    journal = Journal(path, "key")
    resumed = evaluate(
        lm, plan(batch=1), DOCUMENTS, store, journal, lambda done, total, name: seen.append(done)
    )
    assert seen[0] == 1, "the first document was whole in the journal, the second was not"
    assert figures(resumed.rows) == figures(whole.rows) and len(resumed.rows) == len(whole.rows)
    assert len(resumed.showcases) == 2
    # Under another key the journal is refused, and what it holds is kept.
    with pytest.raises(BadInput, match="what another run has done"):
        Journal(path, "other").start(SCORED)
    assert len(Journal(path, "key").start(SCORED).units) == 4


def test_running_scores_before_it_reads() -> None:
    lm, protocol = toys.lm(), Running(segment=40, context=20)
    found = evaluate(lm, plan("base", "finetune", "in-context", protocol=protocol), DOCUMENTS[:2])
    rows = {(row.method, row.document): row for row in found.rows}
    assert len(rows) == 6 and all(row.k == 0 and not row.failed for row in found.rows)
    assert {row.bytes for row in found.rows} == {len(document.text) for document in DOCUMENTS[:2]}
    row = rows["finetune", "test/0"]
    assert row.bits < row.base_bits and row.tokens_trained == len(DOCUMENTS[0].text)
    # By hand: each segment is scored by the model that read all before it.
    method = api.method_specs(["finetune"], ["optimizer=sgd(learning_rate=0.05)"])["finetune"].method
    state, bits = method.init(lm), 0.0
    for query in protocol.queries(DOCUMENTS[0]):
        bits += method.adapted([state], lm).score([Segment(query.target, query.context)])[0].bits
        (state,) = method.adapt([state], lm, [Evidence.of(query.target)], Context())
    assert bits == pytest.approx(row.bits, rel=1e-6)


def test_on_random_bytes_reading_first_pays_only_if_it_cheats() -> None:
    import numpy as np

    # Letters drawn evenly: no honest model takes less than log2(16) bits each.
    letters = np.random.default_rng(0).integers(0, 16, 600)
    document = Document("noise", "".join("abcdefghijklmnop"[i] for i in letters))
    lm, settings = toys.lm(), ["optimizer=sgd(learning_rate=0.3)"]
    honest = evaluate(
        lm, plan(methods=api.method_specs(["finetune"], settings), protocol=Running(30, 0)), [document]
    ).rows[0]
    assert honest.bits / honest.bytes > 3.9
    method = api.method_specs(["finetune"], [*settings, "passes=40"])["finetune"].method
    (cheat,) = method.adapt([method.init(lm)], lm, [Evidence.of(document.text)], Context())
    assert method.adapted([cheat], lm).score([Segment(document.text)])[0].bits / honest.bytes < 3.9


def test_the_leak_filter_withholds_the_document_itself(store: Datastore, tmp_path: Path) -> None:
    made = Datastore.create(tmp_path / "leaky", retriever="lexical", chunking=Chunking(characters=100))
    made.add([*DOCUMENTS, Document("copy", DOCUMENTS[0].text), Document("train", sentence(7))])
    rows = evaluate(toys.lm(), plan("ttt-nn", ks=(2,)), DOCUMENTS[:1], made).rows
    assert rows[0].withheld > 0 and rows[0].overlap < 0.5
    open_rows = evaluate(toys.lm(), plan("ttt-nn", ks=(2,), leak=LeakFilter.off()), DOCUMENTS[:1], made).rows
    assert open_rows[0].withheld == 0 and open_rows[0].overlap == 1.0


def test_compare_writes_down_what_was_run(store: Datastore) -> None:
    results = api.compare(
        toys.lm(),
        DOCUMENTS[:2],
        ["base", "ttt-nn"],
        store=store,
        k=2,
        protocol=SMALL,
        seed=5,
        settings=["learning_rate=2e-5"],
    )
    header = results.header
    assert header.seed == 5 and header.model["parameters"] > 0 and len(str(header.model["fingerprint"])) == 16
    assert header.store["passages"] == store.count and "torch" in header.versions
    rule = header.settings["ttt-nn"]["optimizer"]
    assert rule == {"kind": "AdamW", **asdict(AdamW(2e-5))} and rule["learning_rate"] == 2e-5
    assert header.protocol["prefix"] == 80 and header.protocol["leak_containment"] == 0.5
    assert len(results.showcases) == 2 and "".join(results.showcases[0].tokens) == DOCUMENTS[0].text[80:160]
    assert results.showcases[0].log_probs.keys() == {"base", "ttt-nn"}


def test_adapt_gives_a_model_and_leaves_the_base_alone(store: Datastore) -> None:
    lm = toys.lm()
    before = lm.generate("the cat", 8)
    session = api.adapt(lm, "the cat", store=store, k=3, settings=["optimizer=sgd(learning_rate=0.1)"])
    assert len(session.neighbours) == 3 and lm.generate("the cat", 8) == before
    assert session.score("the cat").bits < lm.score([Segment("the cat")])[0].bits
    assert api.adapt(lm, "x", "base").neighbours == ()
    with pytest.raises(BadInput, match="there is none"):
        api.adapt(lm, "x")


def test_names_are_found_or_the_nearest_is_named() -> None:
    with pytest.raises(BadInput, match="did you mean 'ttt-nn'"):
        methods.find("tt-nn")
    with pytest.raises(BadInput, match="did you mean 'learning_rate'"):
        api.method_specs(["ttt-nn"], ["learning_rat=1"])
    chosen = api.method_specs(["ttt-nn", "random"], ["learning_rate=1e-3", "random.learning_rate=5e-4"])
    assert [way.method.optimizer.learning_rate for way in chosen.values()] == [1e-3, 5e-4]


def test_dynamic_evaluation_learns_the_prefix_then_each_piece_once_it_is_scored() -> None:
    lm = toys.lm()
    ways = api.method_specs(["dynamic-evaluation"], ["optimizer=sgd(learning_rate=0.05)"])
    ways = {name: replace(way, segment=30) for name, way in ways.items()}
    (row,) = evaluate(lm, plan(methods=ways, batch=1), DOCUMENTS[:1]).rows
    assert row.k == 0 and row.bytes == 80 and row.bits < row.base_bits
    text, ids = DOCUMENTS[0].text[:160], [0, *lm.tokenizer.encode(DOCUMENTS[0].text[:160])[0]]
    module, bits = toys.module(), 0.0
    first = text.rindex(" ", 80, 111)
    second = text.rindex(" ", first, first + 31)
    for start, end in ((0, 40), (40, 80), (80, first), (first, second), (second, 160)):
        # Every piece after what stands before it; two steps for a prefix longer than the window.
        if start >= 80:
            bits += Causal(module, lm.tokenizer).score([Segment(text[start:end], text[:start])])[0].bits
            module.requires_grad_(True)
        inputs = torch.tensor([ids[max(0, end - lm.window) : end]])
        logits = module(inputs).logits[0, start - end :]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start + 1 : end + 1]))
        gradients = torch.autograd.grad(nll, list(module.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    assert row.bits == pytest.approx(bits, rel=1e-5)
    # What the last piece taught came too late to be scored, but it was paid for.
    assert row.tokens_trained == 160


def test_the_guard_bounds_the_loss_of_a_harmful_reading(store: Datastore) -> None:
    harmful = ["optimizer=adamw(learning_rate=1)"]
    rows = evaluate(
        toys.lm(), plan(methods=api.method_specs(["ttt-nn", "ttt-nn-guarded"], harmful)), DOCUMENTS, store
    ).rows
    assert all(row.bits > row.base_bits + 20 for row in rows if row.method == "ttt-nn")
    assert all(row.bits <= row.base_bits + 1 + 1e-6 for row in rows if row.method == "ttt-nn-guarded")


def test_the_own_prefix_is_learnt_once_whatever_the_ks(store: Datastore) -> None:
    def last(*ks: int) -> Scored:
        ways = api.method_specs(["ttt-nn"], ["optimizer=sgd(learning_rate=0.05)", "own_prefix=true"])
        return evaluate(toys.lm(), plan(methods=ways, ks=ks, batch=1), DOCUMENTS[:1], store).rows[-1]

    plain = evaluate(toys.lm(), plan("ttt-nn", ks=(3,), batch=1), DOCUMENTS[:1], store).rows[-1]
    assert last(0, 1, 3).bits == pytest.approx(last(3).bits, rel=1e-6) != plain.bits
    assert last(3).tokens_trained == last(0, 1, 3).tokens_trained == plain.tokens_trained + 80


@pytest.mark.parametrize(
    "setting", ["passes=2", "order=farthest-first", "dropout=true", "clip=0.5", "optimizer=adamw"]
)
def test_the_ks_asked_for_together_are_those_asked_for_apart(store: Datastore, setting: str) -> None:
    ways = api.method_specs(["ttt-nn"], ["optimizer=sgd(learning_rate=0.05)", setting])
    together = evaluate(toys.lm("gpt2"), plan(methods=ways, ks=(1, 3), batch=2), DOCUMENTS[:2], store).rows
    for k in (1, 3):
        apart = evaluate(toys.lm("gpt2"), plan(methods=ways, ks=(k,), batch=2), DOCUMENTS[:2], store).rows
        for one, other in zip([row for row in together if row.k == k], apart, strict=True):
            assert (
                one.bits == pytest.approx(other.bits, rel=1e-6) and one.tokens_trained == other.tokens_trained
            )


def test_the_last_k_of_a_query_leaves_nothing_to_go_on_with(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    adapt = Finetune.adapt

    def watched(
        self: Finetune, states: Any, lm: Any, evidence: Any, context: Any, donate: bool = False
    ) -> Any:
        asked.append(context.continues)
        return adapt(self, states, lm, evidence, context, donate)

    monkeypatch.setattr(Finetune, "adapt", watched)
    evaluate(toys.lm(), plan("ttt-nn", ks=(0, 1, 3), batch=2), DOCUMENTS[:2], store)
    assert asked == [True, True, False] * 2, "all weights are trained, so one query after another"
    asked.clear()
    again = api.method_specs(["ttt-nn"], ["passes=2"])
    evaluate(toys.lm(), plan(methods=again, ks=(1, 3), batch=2), DOCUMENTS[:2], store)
    assert asked == [False, False] * 2, "each k begins anew"


def test_each_query_pays_for_what_it_learnt_while_it_was_scored() -> None:
    ways = api.method_specs(["dynamic-evaluation"])
    short = [Document("a", sentence(1)[:120]), Document("b", sentence(2))]
    rows = evaluate(toys.lm(), plan(methods=ways, batch=2), short).rows
    assert [row.tokens_trained for row in rows] == [120, 160]


def test_random_neighbours_do_not_pay_for_a_search_they_do_not_make(
    store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_meter, "cpu_seconds", a_second)
    rows = evaluate(toys.lm(), plan("random", "ttt-nn"), DOCUMENTS, store).rows
    # Queries that are trained one by one choose each in a block of its own, of one second. Where there is
    # a ranking, one more made it for the whole batch, of which each pays its share.
    assert {(row.method, round(row.retrieve_seconds * len(DOCUMENTS), 6)) for row in rows} == {
        ("random", len(DOCUMENTS)),
        ("ttt-nn", len(DOCUMENTS) + 1),
    }


@pytest.mark.parametrize("name", ["ttt-nn", "dynamic-evaluation", "hidden-state-optimisation"])
def test_no_way_learns_the_whole_document_before_it_is_scored(name: str) -> None:
    own = [] if name != "ttt-nn" else ["own_prefix=true"]
    chosen = {n: replace(way, segment=None) for n, way in api.method_specs([name], own).items()}
    (row,) = evaluate(toys.lm(), plan(methods=chosen, protocol=Whole(), ks=(0,)), DOCUMENTS[:1]).rows
    assert row.bits == row.base_bits and row.tokens_trained == 0


def test_another_budget_or_network_needs_a_journal_of_its_own(store: Datastore, tmp_path: Path) -> None:
    def run(name: str, **more: Any) -> float:
        made = api.compare(
            toys.lm(), DOCUMENTS[:1], ["ttt-nn"], store=store, k=2, journal=tmp_path / name,
            protocol=PerQuery(80, 80), leak=LeakFilter.off(), **more,
        )  # fmt: skip
        return made.rows[-1].tokens_trained

    assert run("a", budget=Budget(steps=1)) < run("b") == run("c", budget=Budget(steps=9))
    with pytest.raises(BadInput, match="not the same: protocol"):
        run("a")
    network, told = tmp_path / "network", []
    for content in (b"one", b"other"):
        network.write_bytes(content)
        way = replace(methods.find("fwl"), method=replace(methods.find("fwl").method, weights=str(network)))
        told.append(described(way)["networks"])
    assert told[0].keys() == told[1].keys() == {"network"} and told[0] != told[1]


@pytest.mark.parametrize(
    ("settings", "together"), [([], 1), (["trainable=top(layers=1)"], 1), (["trainable=lora(rank=2)"], 4)]
)
@pytest.mark.parametrize("name", ["ttt-nn", "ttt-nn+in-context", "ttt-nn-guarded"])
def test_copies_of_the_model_are_held_one_at_a_time(
    store: Datastore, monkeypatch: pytest.MonkeyPatch, name: str, settings: list[str], together: int
) -> None:
    made = api.method_specs([name], [*settings, "optimizer=sgd(learning_rate=0.05)"])
    held: list[int] = []
    adapted = Finetune.adapted

    def counted(self: Finetune, states: Any, lm: Any) -> Any:
        held.append(len(states))
        return adapted(self, states, lm)

    monkeypatch.setattr(Finetune, "adapted", counted)
    lm = toys.lm("llama")
    batched = evaluate(lm, Plan(made, SMALL, (2,), batch=4), DOCUMENTS, store)
    assert max(held) == together
    alone = evaluate(lm, Plan(made, SMALL, (2,), batch=1), DOCUMENTS, store)
    if together == 1:
        assert figures(batched.rows) == figures(alone.rows)
