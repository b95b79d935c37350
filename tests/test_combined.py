"""Several methods on one model, `A+B`: what each reads, what they make together, what is refused."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import toys
from uptake import api, methods
from uptake.adaptation.optimizers import SGD
from uptake.errors import BadInput
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.tune import Recipe, Space, tune
from uptake.lm.base import LM, Segment
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.composed import Combined
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.methods.in_context import InContext
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.mixture import KnnMixture
from uptake.store import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.select import Everywhere, Nearest, Nothing, Random
from uptake.text.types import Chunking, Document, Found, Passage

A, B = "the cat sat on the mat. ", "a dog ran over the hill."
SEGMENT = Segment("the cat sat on the hill", "so ")
TEXTS = [f"the {a} {b} sat on the {c}. " * 4 for a, b, c in [
    ("old", "cat", "mat"), ("wet", "dog", "hill"), ("red", "fish", "sea"), ("fat", "hen", "box"),
]]  # fmt: skip
FINETUNE = "optimizer=sgd(learning_rate=0.05)"


def scored(model: LM) -> torch.Tensor:
    return model.score([SEGMENT])[0].log_probs


def adapted(spec: MethodSpec, lm: LM, *evidence: Evidence, context: Context | None = None) -> LM:
    (state,) = [spec.method.init(lm)]
    for each in evidence:
        (state,) = spec.method.adapt([state], lm, [each], context or Context())
    return spec.method.adapted([state], lm)


def passages(*texts: str) -> Found:
    return Evidence.of(*texts).found


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path) -> Datastore:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(48))
    store.add([Document(str(place), text) for place, text in enumerate(TEXTS)])
    return store


def test_each_part_reads_what_its_own_selection_found() -> None:
    lm = toys.lm()
    spec = api.method_specs(["random+in-context"], [FINETUNE])["random+in-context"]
    near, drawn = passages(A), passages(B)
    context = Context()
    together = adapted(spec, lm, Evidence(Found.of_each([drawn, near]), "so "), context=context)
    trained = Finetune(optimizer=SGD(0.05))
    (moved,) = trained.adapt([trained.init(lm)], lm, [Evidence(drawn, "so ")], Context())
    (before,) = InContext().adapt([InContext().init(lm)], lm, [Evidence(near, "so ")], Context())
    expected = Prefixed(trained.adapted([moved], lm), [before.tokens])
    assert torch.equal(scored(together), scored(expected))
    ledger = context.ledger(0)
    assert ledger.tokens_trained == len(B) and ledger.tokens_read == len(before.tokens)


def test_what_is_found_for_each_is_cut_and_put_behind_for_each() -> None:
    near, drawn = passages(A, B), passages(B, "one fish")
    found = Found.of_each([near, drawn, Found()])
    assert [p.text for p in found.passages] == [A, B, "one fish"]
    first = found.part(0, 1)
    assert [[p.text for p in first.of(place).passages] for place in range(3)] == [[A], [B], []]
    assert [p.text for p in first.passages] == [A, B]
    support = Passage(7, "red fish")
    assert [len(part.passages) for part in found.behind([support]).parts] == [3, 3, 1]
    alone = passages(A)
    assert alone.of(0) is alone.of(1) is alone
    worst = Found.of_each([replace(near, withheld=2), replace(drawn, coverage=0.5)])
    assert worst.withheld == 2 and worst.coverage == 0.5


def test_selections_and_settings_are_those_of_the_parts() -> None:
    find = methods.find
    assert find("ttt-nn+in-context").select == Nearest()
    select = find("random+in-context+knn-lm").select
    assert [select.random, select.in_context, select.knn_lm] == [Random(), Nearest(), Everywhere()]
    assert select.searches and select.ranks and select.gives_passages
    running = find("dynamic-evaluation+knn-lm")
    assert running.segment == 256 and running.select.dynamic_evaluation == Nothing()
    name = "sift+knn-lm"
    spec = api.method_specs([name, "sift"], [
        "sift+knn-lm.sift.learning_rate=1e-3", "sift.learning_rate=1e-4", "temperature=3",
        "knn-lm.weight=constant(share=0.1)", "select.candidates=50",
    ])[name]  # fmt: skip
    assert spec.method.sift.optimizer.learning_rate == 1e-3 and spec.method.knn_lm.temperature == 3
    assert spec.method.knn_lm.weight.share == 0.1 and spec.select.sift.candidates == 50
    assert find("sift").select.candidates == 200, "as it was"
    with pytest.raises(BadInput, match=r"could be knn_lm\.neighbours or retro\.neighbours"):
        api.method_specs(["knn-lm+retro"], ["neighbours=3"])
    assert methods.summary("ttt-nn+retro").startswith("ttt-nn and retro")


class Counting:
    """A source that counts how often it is searched."""

    searches = 0

    def search(self, k: int) -> Found:
        self.searches += 1
        return passages(A, B).part(0, k)

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        return passages(B, A).part(0, k)


def test_equal_selections_search_once() -> None:
    source = Counting()
    select = methods.find("ttt-nn+in-context+knn-lm").select
    found = select.choose(source, 1, np.random.default_rng(0))  # type: ignore[arg-type]
    assert source.searches == 1 and [len(part.passages) for part in found.parts] == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ttt-nn+ttt-nn", "names a method twice"),
        ("+", "a name is missing beside a"),
        ("ttt-nn+", "a name is missing beside a"),
        ("in-context+ttt-nn", r"write ttt-nn\+in-context"),
        ("ttt-nn+random", "ttt-nn and random both train the model's weights"),
        ("fwl+knn-lm", "fwl cannot be combined with other methods"),
        ("ttt-nn-guarded+in-context", "cannot be combined with other methods"),
        ("ttt-nn+base", "base cannot be combined"),
        ("ttt-nn+retro+retro-random", "both add modules to the network"),
        ("ttt-nn+in-contxt", "did you mean 'in-context'"),
    ],
)
def test_what_cannot_stand_together_is_refused_with_the_reason(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        methods.find(name)


def test_it_goes_through_the_engine_at_every_k_and_through_other_processes(store: Datastore) -> None:
    lm, name = toys.lm(window=128), "random+in-context+knn-lm"
    store.read_tokens(TokenKeyer(lm))
    specs = api.method_specs([name, "random", "in-context"], [FINETUNE, "knn_lm.neighbours=4"])
    plan = Plan(specs, PerQuery(20, 40), ks=(1, 2), batch=2, leak=LeakFilter.off())
    documents = [Document(f"t{place}", text[:-2] + "!") for place, text in enumerate(TEXTS[:2])]
    rows = {(row.method, row.k, row.query): row for row in evaluate(lm, plan, documents, store).rows}
    alone = replace(plan, methods={name: specs[name]}, batch=1)
    sent = pickle.loads(pickle.dumps(alone))
    assert sent.methods[name].method == specs[name].method
    for row in evaluate(lm, sent, documents, store).rows:
        both = rows[row.method, row.k, row.query]
        assert both.bits == pytest.approx(row.bits, rel=1e-6) and not row.failed
        drawn, near = (rows[part, row.k, row.query] for part in ("random", "in-context"))
        assert row.tokens_trained == drawn.tokens_trained and row.tokens_read == near.tokens_read
        assert row.k <= row.neighbours <= 2 * row.k and row.bits != row.base_bits


def test_dynamic_evaluation_beside_a_memory_of_the_text_so_far() -> None:
    lm = toys.lm()
    specs = api.method_specs(["dynamic-evaluation+knn-lm", "dynamic-evaluation", "knn-lm"], [
        FINETUNE, "temperature=30", "neighbours=4",
    ])  # fmt: skip
    plan = Plan(specs, Running(24, 48))
    rows = {row.method: row for row in evaluate(lm, plan, [Document("a", TEXTS[0])]).rows}
    whole = rows["dynamic-evaluation+knn-lm"]
    assert whole.steps == rows["dynamic-evaluation"].steps > 3
    assert whole.tokens_read == rows["knn-lm"].tokens_read > 0
    assert len({row.bits for row in rows.values()}) == 3


def test_with_nobody_who_trains_the_last_one_stands_around_the_first() -> None:
    lm = toys.lm(dtype=torch.float64)
    spec = methods.find("in-context+knn-lm")
    spec = replace(spec, method=replace(spec.method, knn_lm=KnnLm(neighbours=4, temperature=20.0)))
    read = Evidence(passages(A, B), "so ")
    together = adapted(spec, lm, read)
    parts = {name: part.adapt([part.init(lm)], lm, [read], Context())[0] for name, part in spec.method.parts}
    knn = spec.method.knn_lm
    expected = knn.around([parts["knn_lm"]], Prefixed(lm, [parts["in_context"].tokens]), lm)
    assert isinstance(together, KnnMixture) and torch.equal(scored(together), scored(expected))


def test_forgetting_is_each_parts_own() -> None:
    lm, name = toys.lm(), "random+in-context"
    spec = api.method_specs([name], [FINETUNE])[name]
    method = spec.method

    def read(near: Sequence[str], drawn: Sequence[str]) -> object:
        found = Found.of_each([passages(*drawn), passages(*near)])
        return method.adapt([method.init(lm)], lm, [Evidence(found, "so ")], Context())[0]

    gone = passages(A).passages[0].id
    left = method.forget(read([A, B], [A]), lm, [gone])
    assert torch.equal(scored(method.adapted([left], lm)), scored(method.adapted([read([B], [])], lm)))
    assert [p.text for p in left.passages] == [B]


def test_tune_writes_a_recipe_that_is_read_again(store: Datastore, tmp_path: Path) -> None:
    lm = toys.lm()
    space = Space(trainable=("all",), start=0.01, climbs=0, ks=(1,), others=("own_share=0.5",))
    documents = [Document("t", TEXTS[1][:-2] + "?")]
    recipe, search = tune(
        lm, documents, "ttt-nn+in-context", store=store, space=space, protocol=PerQuery(20, 40)
    )
    recipe.write(tmp_path / "r")
    read = Recipe.read(tmp_path / "r")
    assert read == recipe and len(search.trials) == 2
    assert isinstance(api.method_specs([read.method], read.settings)[read.method].method, Combined)
