"""An encoder that trains: its candidates, its gradient, its refreshes and what an interruption leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import toy_encoders, toys
from uptake.errors import BadInput, Mismatch
from uptake.retrievers import losses
from uptake.retrievers.corpus import Corpus
from uptake.retrievers.encoder_steps import EncoderTuning, Steps
from uptake.retrievers.encoder_training import train
from uptake.retrievers.schedule import Schedule
from uptake.retrievers.table import ReaderTable
from uptake.retrievers.upper_layers import UpperLayers
from uptake.store import Datastore
from uptake.text.types import Chunking

pytest.importorskip("sentence_transformers")
DOUBLE = torch.float64
ASKED = toy_encoders.questions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_encoders.folder_of(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        where = tmp_path_factory.mktemp("stores")
        patch.setenv("UPTAKE_CACHE", str(where / "cache"))
        made = Datastore.create(where / "s.store", encoder=toy_encoders.encoder(folder), chunking=Chunking())
        made.add(toy_encoders.documents())
        yield made


@pytest.fixture(scope="module")
def table():
    return ReaderTable(toys.lm(window=256))


def upper(folder, dtype=torch.float32, layers=1):
    return UpperLayers(toy_encoders.encoder(folder, dtype), layers)


def tuning(loss="contrastive", **more):
    usual = {"candidates": 3, "over": 2, "batch": 4, "passes": 2, "refresh": "2", "vector_weight": 5.0}
    return EncoderTuning(loss, **{**usual, **more})


def files(path):
    return {each.name: each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def naive(encoder, corpus, questions, pools, settings, table, names):
    """The loss and its gradient by the whole encoder, one text at a time, one question at a time."""
    model = encoder.modules[0].model

    def vector(text):
        states = model(input_ids=torch.tensor(encoder.tokens([text]))).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)

    total = 0.0
    for question, pool in zip(questions, pools, strict=True):
        asked = vector(question.text)
        stored = torch.from_numpy(corpus.vectors).double()
        each = [vector(corpus.texts[p]) if settings.sides == "both" else stored[p] for p in pool.places]
        every = settings.vector_weight * torch.stack([asked @ one for one in each])
        every = every + torch.from_numpy(pool.words)
        best = every.argsort(descending=True)[: settings.candidates].tolist()
        if settings.loss == "contrastive":
            best += [n for n in range(len(every)) if pool.gold[n] and n not in best]
            total = total + losses.contrastive(every[best][None], torch.tensor(pool.gold[best])[None]).sum()
            continue
        tokens = table.tokens(
            question.text, [corpus.texts[pool.places[n]] for n in best], question.answers[0]
        )
        said = torch.from_numpy(tokens)
        if settings.loss == "pdist":
            total = total + losses.pdist(every[best][None], said.mean(1)[None], settings.temperature).sum()
        elif settings.loss == "emdr":
            total = total + losses.emdr(every[best][None], said[None]).sum()
        elif settings.loss == "loop":
            length = torch.tensor([said.shape[1]])
            total = (
                total + losses.loop(every[best][None], said.sum(1)[None], length, settings.temperature).sum()
            )
        else:
            total = total + losses.emdr2(every[best][None], said.sum(1)[None]).sum()
    parameters = dict(model.named_parameters())
    loss = total / len(questions)
    return loss.item(), torch.autograd.grad(loss, [parameters[name] for name in names])


@pytest.mark.parametrize("loss", ["contrastive", "pdist", "emdr2", "emdr", "loop"])
@pytest.mark.parametrize("sides", ["query", "both"])
@pytest.mark.parametrize("words", [False, True])
def test_a_step_is_that_of_a_naive_version(folder, store, table, loss, sides, words):
    settings, corpus = tuning(loss, sides=sides, words=words), Corpus(store)
    steps = Steps(upper(folder, DOUBLE, layers=2), corpus, settings, table, lambda *told: None)
    pools = steps.found(ASKED[:5], settings.over)
    # The encoder has moved since it searched.
    moved = {name: value + 0.05 * torch.randn_like(value) for name, value in steps.encoder.state().items()}
    steps.encoder.put(moved)
    plain = toy_encoders.encoder(folder, DOUBLE)
    plain.modules[0].model.load_state_dict(moved, strict=False)
    value, gradients = steps.step(ASKED[:5], pools)
    expected, wanted = naive(plain, corpus, ASKED[:5], pools, settings, table, moved)
    assert value == pytest.approx(expected, abs=1e-10)
    assert max(float(each.abs().max()) for each in wanted) > 1e-4
    for found, own in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, own, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("way", ["dense", "sum"])
def test_before_a_step_candidates_are_in_the_store_s_own_order(folder, store, way):
    corpus, words = Corpus(store), way == "sum"
    texts = [question.text for question in ASKED]
    vectors = upper(folder).embed(texts)
    pools = corpus.pools(ASKED, vectors, 6, 20.0, words, with_right=False)
    found = store.searched(way, 20.0).search(texts, 6)
    for pool, ranked in zip(pools, found, strict=True):
        assert [corpus.ids[place] for place in pool.places] == ranked.ids.tolist()
    steps = Steps(upper(folder), corpus, tuning("emdr2", over=1, candidates=6, words=words), None, print)
    for pool, vector in zip(pools, vectors, strict=True):
        scores = 20.0 * corpus.vectors[pool.places] @ vector + pool.words
        assert steps.best(scores, pool) == [*range(6)]


def test_retrieved_without_end_and_scored_again_is_the_exact_search(folder, store):
    """The stale index gives everything; what the encoder that has moved then prefers is what is nearest."""
    corpus, encoder = Corpus(store), upper(folder, DOUBLE)
    steps = Steps(encoder, corpus, tuning("emdr2", candidates=4, over=8), None, print)
    stale = corpus.pools(ASKED, encoder.embed([q.text for q in ASKED]), 32, 20.0, False, False)
    encoder.put({name: value + 0.3 * torch.randn_like(value) for name, value in encoder.state().items()})
    passages, moved = encoder.embed(corpus.texts), encoder.embed([q.text for q in ASKED])
    changed = 0
    for pool, vector in zip(stale, moved, strict=True):
        best = pool.places[steps.best(5.0 * passages[pool.places] @ vector, pool)].tolist()
        assert best == np.argsort(-(passages @ vector), kind="stable")[:4].tolist()
        changed += best != pool.places[:4].tolist()
    assert changed > len(ASKED) / 2


def test_query_side_training_leaves_the_passages_and_the_store_alone(folder, store):
    before, corpus = files(store.path), Corpus(store)
    vectors = corpus.vectors.copy()
    encoder = upper(folder)
    start = encoder.state()
    trained = train(encoder, corpus, ASKED, tuning(sides="query", learning_rate=1e-2))
    assert any(not torch.equal(start[name], value) for name, value in encoder.state().items())
    assert np.array_equal(corpus.vectors, vectors) and files(store.path) == before
    assert trained.training[-1] < trained.training[0]


def test_a_refresh_is_the_index_of_a_store_built_anew(folder, store, tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    encoder, corpus = upper(folder), Corpus(store)
    before = files(store.path)
    train(encoder, corpus, ASKED, tuning(learning_rate=1e-2))
    steps = Steps(encoder, corpus, tuning(), None, lambda *told: None)
    pools = steps.refreshed(ASKED)
    encoder.write(tmp_path / "out")
    anew = Datastore.create(tmp_path / "anew.store", encoder=toy_encoders.encoder(tmp_path / "out"))
    anew.add(toy_encoders.documents())
    np.testing.assert_allclose(corpus.vectors, anew.vectors(corpus.ids), atol=1e-6)
    assert not np.allclose(corpus.vectors, store.vectors(corpus.ids), atol=1e-3)
    found = anew.searched("dense").search([question.text for question in ASKED], 6)
    for pool, ranked in zip(pools, found, strict=True):
        assert [corpus.ids[place] for place in pool.places[:6]] == ranked.ids.tolist()
    assert files(store.path) == before


def test_it_learns_and_the_best_pass_is_kept(folder, store):
    settings = tuning(learning_rate=1e-2, passes=6, refresh="4")
    encoder = upper(folder, layers=2)
    trained = train(encoder, Corpus(store), ASKED, settings, ASKED)
    assert min(trained.validation) < trained.validation[0] * 0.8
    corpus = Corpus(store)
    start = upper(folder, layers=2)
    pools = Steps(start, corpus, settings, None, lambda *told: None).found(ASKED, 1)
    kept = Steps(encoder, corpus, settings, None, lambda *told: None)
    assert kept.mean([*zip(ASKED, pools, strict=True)]) == pytest.approx(min(trained.validation), abs=1e-5)
    ruined = upper(folder)
    trained = train(ruined, Corpus(store), ASKED, replace(settings, learning_rate=3.0), ASKED)
    assert trained.validation[-1] > min(trained.validation), "the last pass is not the best"
    kept = Steps(ruined, corpus, settings, None, lambda *told: None)
    assert kept.mean([*zip(ASKED, pools, strict=True)]) == pytest.approx(min(trained.validation), abs=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "emdr2"])
def test_an_interrupted_training_goes_on_to_the_same_weights(folder, store, table, tmp_path, loss):
    settings = tuning(loss, learning_rate=1e-2, passes=3)
    path = tmp_path / "out.training"
    straight = upper(folder)
    whole = train(straight, Corpus(store), ASKED, settings, ASKED[:4], table)

    def stop(doing, done, total):
        if doing == "training" and done == 5:  # after a checkpoint; the step before last had a refresh
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(upper(folder), Corpus(store), ASKED, settings, ASKED[:4], table, path, 5, stop)
    resumed, told = upper(folder), []
    again = train(
        resumed, Corpus(store), ASKED, settings, ASKED[:4], table, path, 5, lambda *each: told.append(each)
    )
    assert [done for doing, done, _ in told if doing == "training"] == [5, 6, 7, 8, 9]
    assert again == whole
    for name, value in straight.state().items():
        assert torch.equal(value, resumed.state()[name]), name
    with pytest.raises(Mismatch, match="other settings"):
        train(upper(folder), Corpus(store), ASKED, replace(settings, over=1), ASKED[:4], table, path)


def test_the_reader_is_asked_after_what_a_refresh_finds(folder, store):
    table, corpus = ReaderTable(toys.lm(window=256)), Corpus(store)
    counts = []

    def report(doing, done, total):
        if doing == "training":
            counts.append(table.count)

    encoder = upper(folder)
    train(encoder, corpus, ASKED, tuning("pdist", learning_rate=0.05, passes=3), report=report, table=table)
    assert counts[0] == len(ASKED) * 6 < counts[-1]


def test_a_schedule_is_read_as_atlas_writes_it():
    due = [step for step in range(1200) if Schedule.of("0-100:50,100-1000:200").due(step)]
    assert due == [50, 200, 400, 600, 800]
    assert [step for step in range(10) if Schedule.of("3").due(step)] == [3, 6, 9]
    assert not any(Schedule.of("").due(step) for step in range(100))
    for wrong in ("0", "often", "5-5:1", "0-10:0", "0-10:2,", "-3"):
        with pytest.raises(BadInput, match="refresh"):
            Schedule.of(wrong)


def test_what_does_not_fit_is_said_in_a_line(folder, store):
    for more, word in (
        ({"loss": "adist"}, "use pdist"),
        ({"sides": "left"}, "query or both"),
        ({"over": 0}, "over 0"),
        ({"candidates": 1}, "candidates 1"),
        ({"refresh": "x"}, "refresh"),
    ):
        with pytest.raises(BadInput, match=word) as caught:
            tuning(**more)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="no reader's word"):
        train(upper(folder), Corpus(store), ASKED, tuning("pdist"))
    lost = [replace(ASKED[0], document="elsewhere")]
    with pytest.raises(BadInput, match="right passage among them"):
        train(upper(folder), Corpus(store), lost, tuning())
