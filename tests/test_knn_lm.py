"""kNN-LM against brute force in float64; RetoMaton against it; both over a store and over what was read."""

import numpy as np
import pytest
import torch

import conformance
import toys
from uptake import api, methods
from uptake.adaptation.optimizers import SGD
from uptake.errors import BadInput
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.lm.base import Segment
from uptake.lm.examples import encode
from uptake.methods.contract.composed import Combined, combine
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.state import save_state
from uptake.methods.finetune import Finetune
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.memory import TokenMemory
from uptake.methods.knn_lm.mixture import KnnMixture, Mixing
from uptake.methods.knn_lm.weights import Bayes, Constant, DistanceDecay
from uptake.store import Datastore
from uptake.store.views import key_index
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document

TEXTS = [f"the {a} {b} on the {c}, and the {b} was {d}. " * 2 for a, b, c, d in [
    ("old", "cat", "mat", "red"), ("wet", "dog", "hill", "big"),
    ("red", "fish", "sea", "old"), ("fat", "hen", "box", "wet"),
]]  # fmt: skip
DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]
TARGET = Segment("the old cat on the hill was wet", "so ")


@pytest.fixture(params=toys.SHAPES)
def lm(request):
    return toys.lm(request.param, dtype=torch.float64)


def store_for(lm, path, documents=DOCUMENTS):
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(48))
    store.add(documents)
    store.read_tokens(TokenKeyer(lm))
    return store


def evidence(store, document_id="query", query="so "):
    source = store.source(query, document_id=document_id)
    return Evidence(source.search(0), query, source)


def memory_of(lm, texts):
    """Return every token's key, as a store keeps it, and the token."""
    read = TokenKeyer(lm).read(texts)
    return np.concatenate([r.keys for r in read]).astype(np.float64), np.concatenate([r.values for r in read])


def naive(lm, ids, keys, values, k, temperature, share):
    """Return kNN-LM's probabilities at every place of `ids`, one place at a time."""
    log_probs, found, _ = lm.step_with_keys(torch.tensor([ids]))
    out = []
    for place in range(len(ids)):
        losses = ((keys - found[0, place].numpy()) ** 2).sum(1)
        near = np.argsort(losses, kind="stable")[:k]
        weights = np.exp(-(losses[near] - losses[near].min()) / temperature)
        memory = np.zeros(log_probs.shape[-1])
        np.add.at(memory, values[near], weights / weights.sum())
        part = share(losses.min()) if callable(share) else share
        out.append(part * memory + (1 - part) * log_probs[0, place].exp().numpy())
    return np.array(out)


@pytest.mark.parametrize("over", ["view", "passages"])
@pytest.mark.parametrize("weight", [Constant(0.3), DistanceDecay(0.6, 50.0)])
def test_it_is_the_formula_by_brute_force(lm, tmp_path, over, weight):
    method = KnnLm(neighbours=12, temperature=20.0, weight=weight, over=over)
    read = evidence(store_for(lm, tmp_path / "s")) if over == "view" else Evidence.of(*TEXTS, query="so ")
    (state,) = method.adapt([method.init(lm)], lm, [read], Context())
    model = method.adapted([state], lm)
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode("so " + TARGET.text)[0]]
    share = 0.3 if isinstance(weight, Constant) else lambda d: 0.6 * np.exp(-d / 50.0)
    with torch.no_grad():
        want = naive(lm, ids, *memory_of(lm, TEXTS), 12, 20.0, share)
        found = model.step(torch.tensor([ids]))[0][0].exp().numpy()
    # A store's distances are float32, a memory's float64.
    np.testing.assert_allclose(found, want, rtol=1e-3 if over == "view" else 1e-9, atol=1e-12)
    assert np.allclose(found.sum(-1), 1, atol=1e-9)
    targets = ids[4:]
    np.testing.assert_allclose(
        model.score([TARGET])[0].log_probs.numpy(),
        np.log(found[np.arange(3, 3 + len(targets)), targets]),
        rtol=1e-9,
    )


def test_the_share_that_predicted_best_is_inferred_as_by_brute_force(lm):
    """As a model of text it is the sum over all pairs of a share and a temperature, and the base."""
    weight = Bayes(shares=(0.1, 0.5), temperatures=(1.0, 10.0), base_weight=0.3)
    method = KnnLm(neighbours=12, temperature=2.0, weight=weight)
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS, query="so ")], Context())
    model = method.adapted([state], lm)
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode("so " + TARGET.text)[0]]
    memory = memory_of(lm, TEXTS)
    with torch.no_grad():
        own = lm.step(torch.tensor([ids]))[0][0].exp().numpy()
        grid = [own] + [
            naive(lm, ids, *memory, 12, temperature, share)
            for share in (0.1, 0.5)
            for temperature in (2.0, 20.0)
        ]
        prior = np.array([0.3, *[0.7 / 4] * 4])

        def expected(start):
            weights, out = prior, []
            for place in range(start, len(ids)):
                out.append(sum(w * each[place] for w, each in zip(weights, grid, strict=True)))
                if place + 1 < len(ids):
                    weights = weights * np.array([each[place, ids[place + 1]] for each in grid])
                    weights /= weights.sum()
            return np.array(out)

        whole = model.step(torch.tensor([ids]))[0][0].exp().numpy()
        np.testing.assert_allclose(whole, expected(0), rtol=1e-8, atol=1e-12)
        cache, parts = model.start(), []
        for start, stop in ((0, 5), (5, 6), (6, len(ids))):
            log_probs, cache = model.step(torch.tensor([ids[start:stop]]), cache)
            parts.append(log_probs[0].exp().numpy())
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-8, atol=1e-12)
        example = encode(lm.tokenizer, "so ", TARGET.text)
        (predicted,) = model.predictions([example])
        np.testing.assert_allclose(predicted.exp().numpy(), expected(3)[:-1], rtol=1e-8, atol=1e-12)
        (scores,) = model.score([TARGET])
        targets = torch.tensor(example.target)[:, None]
        assert torch.allclose(scores.log_probs, predicted.gather(-1, targets)[:, 0], atol=1e-9)
    base = lm.score([TARGET])[0].bits
    assert scores.bits <= base + np.log2(1 / 0.3) + 1e-9


def test_weighed_by_bayes_random_neighbours_cost_at_most_a_bit(lm):
    rubbish = ["".join(chr(97 + (7 * i * j) % 26) for j in range(60)) for i in range(1, 5)]
    for weight, bounded in ((Bayes(), True), (Constant(0.25), False)):
        method = KnnLm(neighbours=8, weight=weight)
        (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*rubbish, query="so ")], Context())
        lost = method.adapted([state], lm).score([TARGET])[0].bits - lm.score([TARGET])[0].bits
        assert (lost <= 1 + 1e-9) == bounded


def test_without_a_share_a_memory_or_a_neighbour_it_is_the_base_bit_for_bit(lm, tmp_path):
    store = store_for(lm, tmp_path / "s")
    base = lm.score([TARGET])[0].log_probs
    ids = torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(TARGET.text)[0]]])
    for method, read in [
        (KnnLm(weight=Constant(0.0)), evidence(store)),
        (KnnLm(), Evidence.of()),
        (KnnLm(), Evidence.of(query="so ")),
        (KnnLm(), evidence(store_for(lm, tmp_path / "one", DOCUMENTS[:1]), document_id="d0")),
    ]:
        (state,) = method.adapt([method.init(lm)], lm, [read], Context())
        model = method.adapted([state], lm)
        assert torch.equal(model.score([TARGET])[0].log_probs, base)
        assert torch.equal(model.step(ids)[0], lm.step(ids)[0])


def test_it_reads_no_token_of_the_evaluated_document(lm, tmp_path):
    store = store_for(lm, tmp_path / "s")
    method = KnnLm(neighbours=4, temperature=5.0)
    segment = Segment(TEXTS[1][8:], TEXTS[1][:8])
    bound, free = (
        method.adapt([method.init(lm)], lm, [evidence(store, name, segment.context)], Context())[0]
        for name in ("d1", "elsewhere")
    )
    own, other = (method.adapted([state], lm).score([segment])[0].bits for state in (bound, free))
    assert other < 0.8 * own, "the document itself, were it there, would be found"
    without = store_for(lm, tmp_path / "w", [d for d in DOCUMENTS if d.id != "d1"])
    (state,) = method.adapt([method.init(lm)], lm, [evidence(without)], Context())
    assert method.adapted([state], lm).score([segment])[0].bits == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("pointers", [0, 2])
def test_cached_steps_are_the_full_pass(lm, tmp_path, pointers):
    store = store_for(lm, tmp_path / "s")
    method = KnnLm(neighbours=9, temperature=20.0, pointers=pointers)
    (state,) = method.adapt([method.init(lm)], lm, [evidence(store)], Context())
    for model in (method.adapted([state], lm), method.around([state], lm.overlay(lm_delta(lm)), lm)):
        ids = torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(TARGET.text)[0]]])
        with torch.no_grad():
            whole, _ = model.step(ids)
            cache, parts = model.start(), []
            for start, end in ((0, 7), (7, 8), (8, 9), (9, ids.shape[1])):
                part, cache = model.step(ids[:, start:end], cache)
                parts.append(part)
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert method.adapted([state], lm).generate("the old ", tokens=5, seed=1, temperature=1.0)


def lm_delta(lm):
    from uptake.adaptation.delta import Delta

    name, parameter = next((n, p) for n, p in lm.module.named_parameters() if p.ndim == 2)
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=parameter.dtype)
    return Delta.dense(lm.fingerprint, {name: 0.01 * noise})


class Counting:
    """Tokens that count how often they are searched."""

    def __init__(self, inner):
        self.inner, self.searches, self.measured = inner, 0, []

    def search(self, keys, k):
        self.searches += len(keys)
        return self.inner.search(keys, k)

    def measure(self, keys, places):
        self.measured.append(places)
        return self.inner.measure(keys, places)

    def after(self, places):
        return self.inner.after(places)


def test_retomaton_follows_pointers_and_searches_where_they_run_low(lm):
    keys, values = memory_of(lm, TEXTS)
    ends = np.zeros(len(values), bool)
    ends[np.cumsum([len(t) for t in TEXTS]) - 1] = True
    memory = TokenMemory(
        torch.from_numpy(keys), torch.from_numpy(values.astype(np.int64)), torch.from_numpy(ends)
    )
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode(TEXTS[0][:40])[0]]
    for pointers in (1, 3, 10**6):
        counting = Counting(memory)
        mixing = Mixing(6, 20.0, Constant(0.5), pointers)
        with torch.no_grad():
            found = KnnMixture(lm, lm, [counting], mixing).step(torch.tensor([ids]))[0][0].exp().numpy()
            want, searches = naive_walk(lm, ids, keys, values, ends, mixing)
            plain = KnnMixture(lm, lm, [memory], Mixing(6, 20.0, Constant(0.5)))
            unled = plain.step(torch.tensor([ids]))[0][0].exp().numpy()
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)
        assert counting.searches == searches
        if pointers == 10**6:  # never enough: nothing but kNN-LM
            assert searches == len(ids) and not counting.measured
            np.testing.assert_allclose(found, unled, rtol=1e-9)
        else:
            assert 0 < searches < len(ids)


def naive_walk(lm, ids, keys, values, ends, mixing):
    log_probs, found, _ = lm.step_with_keys(torch.tensor([ids]))
    out, searches, near = [], 0, []
    for place, token in enumerate(ids):
        losses = ((keys - found[0, place].numpy()) ** 2).sum(1)
        live = [i + 1 for i in near if values[i] == token and not ends[i]] if place else []
        if len(live) >= mixing.pointers:
            near = live
        else:
            near, searches = list(np.argsort(losses, kind="stable")[: mixing.neighbours]), searches + 1
        weights = np.exp(-(losses[near] - losses[near].min()) / mixing.temperature)
        memory = np.zeros(log_probs.shape[-1])
        np.add.at(memory, values[near], weights / weights.sum())
        share = mixing.weight.share
        out.append(share * memory + (1 - share) * log_probs[0, place].exp().numpy())
    return np.array(out), searches


def test_missing_neighbours_are_masked_at_every_place(lm):
    from uptake.text.near import Near

    class Holes:
        """Some places have neighbours, some fewer, some none."""

        def search(self, keys, k):
            places = np.tile(np.arange(3), (len(keys), 1))
            places[1, 1:], places[2] = -1, -1
            distances = np.where(places >= 0, 10.0 + places, np.inf)
            return Near(places, distances, np.where(places >= 0, 5 + places, 0))

    ids = torch.tensor([[0, 3, 4, 5]])
    with torch.no_grad():
        model = KnnMixture(lm, lm, [Holes()], Mixing(3, 1.0, DistanceDecay(0.5, 10.0)))
        log_probs, base = model.step(ids)[0][0], lm.step(ids)[0][0]
    assert torch.isfinite(log_probs).all() and torch.equal(log_probs[2], base[2])
    share = 0.5 * np.exp(-1.0)
    assert log_probs[1].exp()[5] == pytest.approx(share + (1 - share) * float(base[1].exp()[5]))
    assert log_probs[1].exp()[0] == pytest.approx((1 - share) * float(base[1].exp()[0])), (
        "not the first token"
    )
    assert log_probs.exp().sum(-1).allclose(torch.ones(4, dtype=torch.float64))


def test_the_mixture_can_be_differentiated(lm):
    opened, weights = lm.trainable_copy(
        methods.find("ttt-nn").method.trainable, lm_delta(lm) * 0.0, torch.Generator()
    )
    keys, values = memory_of(lm, TEXTS[:1])
    memory = TokenMemory(
        torch.from_numpy(keys), torch.from_numpy(values.astype(np.int64)), torch.zeros(len(values)).bool()
    )
    model = KnnMixture(opened, lm, [memory], Mixing(4, 10.0))
    loss = -model.step(torch.tensor([[0, 3, 4, 5]]))[0][0, -1, 7]
    gradients = torch.autograd.grad(loss, list(weights.parameters.values()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_over_a_store_it_keeps_the_laws_that_need_no_disk(tmp_path):
    lm = toys.lm()
    store = store_for(lm, tmp_path / "s")
    memory = KnnLm(neighbours=8, temperature=20.0)
    both = combine({"ttt-nn": MethodSpec(Finetune()), "knn-lm": MethodSpec(memory)})
    for method in (memory, KnnLm(neighbours=8, draw="random"), both.method):

        def take(*names, method=method):
            read = [evidence(store, name) for name in names]
            if isinstance(method, Combined):
                read = [Evidence(r.source.search(2), r.query, r.source) for r in read]
            return method.adapt([method.init(lm) for _ in names], lm, read, Context(seed=1))

        segments = conformance.SEGMENTS
        first, second = take("d0", "d1")
        together = method.adapted([first, second], lm).score(segments)
        assert not torch.equal(together[0].log_probs, lm.score(segments[:1])[0].log_probs)
        for row, name in enumerate(("d0", "d1")):
            (alone,) = take(name)
            assert torch.allclose(
                method.adapted([alone], lm).score([segments[row]])[0].log_probs,
                together[row].log_probs,
                atol=1e-5,
            )
        (again,) = take("d0")
        assert torch.equal(
            method.adapted([again], lm).score(segments[:1])[0].log_probs,
            method.adapted([first], lm).score(segments[:1])[0].log_probs,
        )
        with pytest.raises(BadInput, match="searched and not saved"):
            save_state(first, tmp_path / "state")
        own = [p.id for p in store.passages(store._table.ids) if p.document == "d2"]
        dropped = method.forget(first, lm, own)
        view = dropped.view if isinstance(method, KnnLm) else dropped.knn_lm.view
        assert not set(own) & set(view.view.stored.passages["id"][view.passages].tolist())


def test_dropping_from_a_store_is_never_having_had_it(tmp_path):
    lm = toys.lm()
    method = KnnLm(neighbours=8, temperature=20.0)
    store, less = store_for(lm, tmp_path / "s"), store_for(lm, tmp_path / "l", DOCUMENTS[:3])
    own = [p.id for p in store.passages(store._table.ids) if p.document == "d3"]
    (state,), (want,) = (method.adapt([method.init(lm)], lm, [evidence(s)], Context()) for s in (store, less))
    assert torch.equal(*(method.adapted([s], lm).score([TARGET])[0].log_probs
                         for s in (method.forget(state, lm, own), want)))  # fmt: skip


def test_it_is_one_row_a_query_whatever_k_and_beats_its_control(tmp_path, monkeypatch):
    monkeypatch.setattr(key_index, "LARGE", 100)
    lm = toys.lm(window=128)
    store = store_for(lm, tmp_path / "s")
    tests = [Document(f"t{i}", text[:-2] + "!") for i, text in enumerate(TEXTS)]
    settings = [f"{name}.{each}" for name in ("knn-lm", "knn-lm-random", "retomaton", "ttt-nn+knn-lm")
                for each in ("neighbours=8", "temperature=20")]  # fmt: skip
    ways = ["base", "knn-lm", "knn-lm-random", "retomaton", "ttt-nn+knn-lm"]
    results = api.compare(
        lm, tests, ways, store=store, k=(1, 2), settings=settings, protocol=PerQuery(20, 40),
        leak=LeakFilter.off(),
    )  # fmt: skip
    by = {}
    for row in results.rows:
        by.setdefault((row.method, row.k), []).append(row)
        assert not row.failed
    assert {key: len(rows) for key, rows in by.items()} == {
        ("base", 0): 4, ("knn-lm", 0): 4, ("knn-lm-random", 0): 4, ("retomaton", 0): 4,
        ("ttt-nn+knn-lm", 1): 4, ("ttt-nn+knn-lm", 2): 4,
    }  # fmt: skip
    bits = {way: sum(row.bits for row in rows) for (way, _), rows in by.items()}
    assert bits["knn-lm"] < bits["knn-lm-random"] and bits["knn-lm"] < bits["base"]


def test_a_store_whose_tokens_were_not_read_is_refused(tmp_path):
    lm = toys.lm()
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add(DOCUMENTS)
    with pytest.raises(BadInput, match="holds no tokens; read them with `uptake index tokens"):
        KnnLm().adapt([KnnLm().init(lm)], lm, [evidence(store)], Context())


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (lambda: KnnLm(neighbours=0), "neighbours 0"),
        (lambda: KnnLm(temperature=0.0), "temperature 0.0"),
        (lambda: KnnLm(pointers=-1), "pointers -1"),
        (lambda: KnnLm(over="nothing"), "over 'nothing'"),
        (lambda: Bayes(shares=(1.0,)), "share 1.0"),
        (lambda: Bayes(temperatures=(0.0,)), "above 0"),
        (lambda: Bayes(base_weight=1.0), "probability between"),
        (lambda: Constant(1.0), "share 1.0"),
        (lambda: DistanceDecay(-0.1), "share -0.1"),
        (lambda: DistanceDecay(0.5, 0.0), "reach 0.0"),
    ],
)
def test_bad_settings_are_refused(bad, told):
    with pytest.raises(BadInput, match=told):
        bad()


def test_settings_are_written_as_people_write_them():
    (way,) = api.method_specs(
        ["knn-lm"], ["weight=distancedecay(most=0.4,reach=80)", "neighbours=64"]
    ).values()
    assert (
        isinstance(way, MethodSpec)
        and way.method.weight == DistanceDecay(0.4, 80.0)
        and way.method.neighbours == 64
    )


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_key_penalty_is_added_to_the_loss(shape):
    """One plain step of fine-tuning is one step down cross-entropy + omega |key|^2, by hand."""
    lm, twin = toys.lm(shape, dtype=torch.float64), toys.module(shape, dtype=torch.float64).eval()
    omega, rate = 0.03, 0.1
    method = Finetune(optimizer=SGD(rate), clip=None, key_penalty=omega)
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(TEXTS[0][:40])], Context())
    caught = []
    parts = {"gpt2": "transformer.h.1.mlp", "llama": "model.layers.1.mlp", "neox": "gpt_neox.layers.1.mlp"}
    twin.get_submodule(parts[shape]).register_forward_pre_hook(lambda part, inputs: caught.append(inputs[0]))
    ids = torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(TEXTS[0][:40])[0]]])
    logits = twin(input_ids=ids[:, :-1]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]) + omega * (caught[0][0] ** 2).sum(-1).mean()
    loss.backward()
    for name, parameter in twin.named_parameters():
        assert torch.allclose(state.delta.difference(name), -rate * parameter.grad, atol=1e-10), name
    with pytest.raises(BadInput, match="key_penalty -1"):
        Finetune(key_penalty=-1)


def test_a_prompt_is_continued_with_a_stores_tokens(tmp_path):
    lm = toys.lm()
    store = store_for(lm, tmp_path / "s")
    settings = ["weight=constant(share=0.9)", "temperature=5", "neighbours=4"]
    model = api.adapt(lm, "the old ", "knn-lm", store=store, settings=settings)
    assert not model.neighbours and model.generate("the old ", tokens=8) != lm.generate("the old ", tokens=8)
    store.add([Document("new", "a text that came later")])
    with pytest.raises(BadInput, match="1 of its documents have no tokens yet"):
        api.adapt(lm, "the old ", "knn-lm", store=store)
    assert model.generate("the old ", tokens=8), "what was taken up before still answers"
    store.read_tokens(TokenKeyer(lm), fresh=True)
    assert model.generate("the old ", tokens=8), "from the version it was bound to"
