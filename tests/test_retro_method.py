"""RETRO as a method: trained, saved, scoring and generating, alone and with weights that were trained too."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import toys
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.tensors import read_tensors
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, rolling_windows
from uptake.lm.wrappers import Routed
from uptake.methods.contract.composed import combine
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.methods.retro import Retro, TextEpisode
from uptake.methods.retro.lm import RetroLM
from uptake.text.chunks.view import BoundChunks, listed
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Document, Found
from uptake.train import Training, train

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def documents(count: int, name: str, seed: int = 0) -> list[Document]:
    """Texts of words that are in no other text, no letter twice in one."""
    chosen, made = random.Random(seed), []
    for number in range(count):
        letters = chosen.sample(LETTERS, 45)
        text = " ".join("".join(letters[at : at + 3]) for at in range(0, 45, 3))
        made.append(Document(f"{name}{number}", text))
    return made


class Source:
    """Where one document's chunks are: itself withheld, as a store's leak filter does."""

    def __init__(self, corpus: list[Document], own: str = "", chunk: int = 12) -> None:
        view = listed(corpus, toys.lm().tokenizer, chunk)
        self.bound = view.bound(own, "", Overlap(""), LeakFilter())

    def chunks(self, fingerprint: str) -> BoundChunks:
        return self.bound


def evidence(corpus: list[Document], query: str = "so ") -> Evidence:
    return Evidence(Found(), query, Source(corpus, chunk=4))  # type: ignore[arg-type]


def untrained(lm: LM, **settings: Any) -> Retro:
    """The parts before training, of an output that is not zero; in float64 where the base is."""
    method = Retro(**{"chunk": 4, "initial_scale": 4.0, **settings})
    return replace(method, trained=method.fresh(lm).requires_grad_(False).eval())


def consulting(method: Retro, lm: LM, *corpora: list[Document]) -> LM:
    fresh = [method.init(lm) for _ in corpora]
    return method.adapted(method.adapt(fresh, lm, [evidence(corpus) for corpus in corpora], Context()), lm)


CORPUS = [Document("a", "the cat sat on the mat and the dog sat on the cat"), Document("b", "one fish")]
OTHER = [Document("c", "the dog ran up the hill to fetch a pail of water")]
TEXT = "the dog and the cat sat on the hill and one fish sat too"


def ids_of(lm: LM, *texts: str) -> Tensor:
    return torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(text)[0]] for text in texts])


def test_what_is_planted_is_a_stretch_of_what_comes_next_and_nothing_else() -> None:
    texts, others = documents(6, "t"), documents(6, "o", seed=1)
    lm, kept = toys.lm(), 0
    bare = Retro(chunk=12, episode_tokens=60, windows=3, draw="random")
    material = TrainingData(tuple(texts), sources=lambda document: Source(others))  # type: ignore[arg-type, return-value]
    for plain, planted in zip(
        bare.episodes(lm, material), replace(bare, copied_share=1.0).episodes(lm, material), strict=True
    ):
        assert torch.equal(plain.ids, planted.ids)
        assert torch.equal(plain.tokens < 0, planted.tokens < 0)
        for window, chunk, neighbour in np.ndindex(*plain.tokens.shape[:3]):
            before, after = (each.tokens[window, chunk, neighbour] for each in (plain, planted))
            length = int(plain.lengths[window])
            coming = plain.ids[window, (chunk + 1) * 12 : min((chunk + 2) * 12, length)].tolist()
            other = torch.nonzero(before != after)[:, 0].tolist()
            if len(coming) < 4 or (before < 0).all():
                assert not other
                continue
            first, last = other[0], other[-1] + 1
            stretch = after[first:last].tolist()
            kept += len(stretch) >= 3  # its ends may be what stood there before
            assert any(coming[at : at + len(stretch)] == stretch for at in range(len(coming)))
    assert kept > 20
    assert all(
        torch.equal(one.tokens, other.tokens)
        for one, other in zip(bare.episodes(lm, material), bare.episodes(lm, material), strict=True)
    )


def test_a_fresh_network_finds_words_in_hidden_states_that_a_few_dimensions_fill() -> None:
    lm = toys.lm("llama")
    with torch.no_grad():
        lm.module.model.embed_tokens.weight[:, :2] += 0.5  # type: ignore[union-attr, operator, index]
    method = Retro(chunk=12, episode_tokens=60, windows=8, draw="random")
    material = TrainingData(tuple(documents(16, "t")), sources=lambda d: Source(documents(16, "o", seed=1)))  # type: ignore[arg-type, return-value]
    network = method.fresh(lm)

    def loss(planted: float, opened: float) -> float:
        for cross in network.parts.cross.values():  # type: ignore[union-attr, operator]
            torch.nn.init.constant_(cross.gate, opened)
        with torch.no_grad():
            made = replace(method, copied_share=planted).episodes(lm, material)
            return sum(method.loss(network, lm, episode).item() for episode in made) / len(made)

    assert loss(1.0, 0.0) == pytest.approx(loss(0.0, 0.0))
    assert loss(1.0, 0.1) < loss(0.0, 0.1) - 0.06


@pytest.mark.long
def test_it_learns_to_copy_from_the_right_neighbours_and_from_no_others() -> None:
    taught, held = documents(256, "t"), documents(16, "v", seed=1)
    copies = [Document("copy of " + document.id, document.text) for document in (*taught, *held)]
    view = listed(copies, toys.lm().tokenizer, 12)

    def made(method: Retro, lm: LM, texts: list[Document]) -> list[TextEpisode]:
        bound = view.bound("", "", Overlap(""), LeakFilter.off())
        source: Any = type("Here", (), {"chunks": lambda self, fingerprint: bound})()
        return method.episodes(lm, TrainingData(tuple(texts), sources=lambda document: source))

    def loss(method: Retro, network: Any, lm: LM) -> float:
        with torch.no_grad():
            found = [method.loss(network, lm, episode).item() for episode in made(method, lm, held)]
        return sum(found) / len(found)

    # First a model that knows what such texts look like: RETRO's control, trained without retrieval.
    shape = {"chunk": 12, "episode_tokens": 60, "windows": 8}
    alone = Retro(**shape, neighbours=0, base="fresh")  # type: ignore[arg-type]
    bare = toys.lm("llama")
    network, points = train(
        alone, bare, made(alone, bare, taught), Training(AdamW(1e-2, weight_decay=0.0), passes=4)
    )
    lm = alone.with_network(network).under(bare)  # type: ignore[attr-defined]
    before = loss(alone, network, bare)
    assert before < points[0].loss
    losses = {}
    for draw in ("nearest", "random"):
        method = Retro(**shape, draw=draw)  # type: ignore[arg-type]
        training = Training(AdamW(1e-2, weight_decay=0.0), passes=4)
        network, _ = train(method, lm, made(method, lm, taught), training)
        losses[draw] = loss(method, network, lm)
        assert loss(replace(method, neighbours=0, base="trained"), network, lm) == pytest.approx(before)
        if draw == "nearest":
            assert loss(replace(method, draw="random"), network, lm) > before - 0.05
    assert losses["nearest"] < before - 0.4 and losses["random"] > before - 0.05


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_what_it_is_trained_on_is_what_it_scores_with(shape: str) -> None:
    """An episode's loss is that of the same text scored beside the same chunks."""
    lm = toys.lm(shape, dtype=torch.float64)
    method = untrained(lm, episode_tokens=20, windows=3)
    source: Any = Source(CORPUS, chunk=4)
    texts = [Document("x", TEXT), Document("y", TEXT[30:])]
    episodes = method.episodes(lm, TrainingData(tuple(texts), sources=lambda document: source))
    assert sum(int((episode.lengths - 1).sum()) for episode in episodes) == len(TEXT) + len(TEXT[30:])
    model = consulting(method, lm, CORPUS)
    for episode in episodes:
        expected = []
        for row, length in zip(episode.ids, episode.lengths.tolist(), strict=True):
            log_probs, _ = model.step(row[None, : length - 1])
            expected.append(log_probs[0].gather(-1, row[1:length, None])[:, 0])
        assert method.trained is not None
        loss = method.loss(method.trained, lm, episode)
        assert torch.allclose(loss, -torch.cat(expected).mean(), atol=1e-10)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_generating_step_by_step_is_reading_at_once(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    model = consulting(untrained(lm), lm, CORPUS, OTHER)
    ids = ids_of(lm, TEXT, TEXT[::-1])
    whole, _ = model.step(ids)
    for cuts in ([1] * 20, [7, 1, 1, 11], [3, 17]):
        cache, parts, at = model.start(), [], 0
        for cut in cuts:
            log_probs, cache = model.step(ids[:, at : at + cut], cache)
            parts.append(log_probs)
            at += cut
        assert torch.allclose(torch.cat(parts, 1), whole[:, :20], atol=1e-10)
    # Rows consult what is theirs alone.
    for row, corpus in enumerate((CORPUS, OTHER)):
        alone, _ = consulting(untrained(lm), lm, corpus).step(ids[row : row + 1])
        assert torch.allclose(alone[0], whole[row], atol=1e-10)
    swapped, _ = consulting(untrained(lm), lm, OTHER, CORPUS).step(ids)
    assert not torch.allclose(swapped, whole, atol=1e-2)
    one = consulting(untrained(lm), lm, CORPUS)
    assert one.generate("the cat", 80) == one.generate("the cat", 80) != lm.generate("the cat", 80)


def test_scores_are_those_of_each_window_by_itself_and_padding_is_not_looked_for() -> None:
    lm = toys.lm("llama", window=16, dtype=torch.float64)
    method = untrained(lm)
    asked: list[str] = []

    class Listening(BoundChunks):
        def search(self, queries: Any, k: int) -> Tensor:
            asked.extend(queries)
            return super().search(queries, k)

    source = Source(CORPUS, chunk=4)
    source.bound.__class__ = Listening
    states = method.adapt(
        [method.init(lm)] * 2, lm, [Evidence(Found(), "", source)] * 2, Context()  # type: ignore[arg-type]
    )  # fmt: skip
    model = method.adapted(states, lm)
    scores = model.score([Segment(TEXT), Segment("the dog")])
    assert "".join(sorted(asked)).count("\0") == 0 and max(map(len, asked)) == 4
    expected = []
    for window in rolling_windows(encode(lm.tokenizer, "", TEXT), 16):
        log_probs, _ = model.at([0]).step(torch.tensor([window.inputs]))
        targets = torch.tensor(window.target)
        expected.append(log_probs[0, -len(targets) :].gather(-1, targets[:, None])[:, 0])
    assert torch.allclose(scores[0].log_probs, torch.cat(expected), atol=1e-10)
    # Each chunk of text is looked for once, whatever is scored again.
    count = len(asked)
    model.score([Segment(TEXT), Segment("the dog")])
    assert len(asked) == count and len(asked) == len(set(asked[:-1])) + 1


def test_a_row_with_nothing_to_consult_is_the_base_bit_for_bit() -> None:
    lm = toys.lm()
    method = untrained(lm)
    ids = ids_of(lm, TEXT, TEXT)
    (state,) = method.adapt([method.init(lm)], lm, [evidence(CORPUS)], Context())
    model = method.adapted([method.init(lm), state], lm)
    assert torch.equal(model.step(ids)[0][0], lm.step(ids[:1])[0][0])
    assert not torch.equal(model.step(ids)[0][1], lm.step(ids[:1])[0][0])
    off = replace(method, neighbours=0)
    assert torch.equal(off.adapted([state], lm).step(ids[:1])[0], lm.step(ids[:1])[0])
    for nothing in ([], [Document("short", "")], [Document("none", "zebra")]):
        assert torch.equal(consulting(method, lm, nothing).step(ids[:1])[0], lm.step(ids[:1])[0])
    # The control of every learned method: before training it is the base, whatever it reads.
    plain = Retro(weights="untrained", chunk=4)
    (state,) = plain.adapt([plain.init(lm)], lm, [evidence(CORPUS)], Context())
    assert torch.equal(plain.adapted([state], lm).step(ids[:1])[0], lm.step(ids[:1])[0])


def test_neighbours_may_be_missing_anywhere() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    method = untrained(lm, neighbours=3)

    class Thin(BoundChunks):
        """Finds the first only, in the last place, and nothing at all for some."""

        def search(self, queries: Any, k: int) -> Tensor:
            found = super().search(queries, k)
            for row, query in zip(found, queries, strict=True):
                row[:] = torch.tensor([-1] * (k - 1) + [row[0] if "o" in query else -1])
            return found

    source = Source(CORPUS, chunk=4)
    source.bound.__class__ = Thin
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(Found(), "", source)], Context())  # type: ignore[arg-type]
    found, _ = method.adapted([state], lm).step(ids_of(lm, TEXT))
    assert torch.isfinite(found).all() and not torch.allclose(found, lm.step(ids_of(lm, TEXT))[0])
    one, _ = replace(method, neighbours=1).adapted([state], lm).step(ids_of(lm, TEXT))
    assert torch.allclose(one, found, atol=1e-10), "what is missing counts for nothing"


def test_an_episode_without_any_neighbour_moves_nothing_beside_a_frozen_base() -> None:
    lm = toys.lm()
    method = Retro(chunk=4, episode_tokens=20)
    source: Any = Source([Document("none", "zebra")], chunk=4)
    material = TrainingData((Document("x", TEXT),), sources=lambda document: source)
    network, points = train(method, lm, method.episodes(lm, material), Training(AdamW(1e-2), save_every=1))
    assert all(
        torch.equal(own, start)
        for own, start in zip(network.parameters(), method.fresh(lm).parameters(), strict=True)
    )
    assert points[-1].loss == pytest.approx(-lm.score([Segment(TEXT)])[0].log_probs.mean().item(), abs=0.3)


def test_random_neighbours_depend_on_seed_and_text_alone() -> None:
    lm = toys.lm(dtype=torch.float64)
    method = untrained(lm, draw="random")

    def scores(seed: int) -> Tensor:
        (state,) = method.adapt([method.init(lm)], lm, [evidence(CORPUS)], Context(seed))
        return method.adapted([state], lm).step(ids_of(lm, TEXT))[0]

    assert torch.equal(scores(1), scores(1)) and not torch.allclose(scores(1), scores(2))
    nearest = consulting(replace(method, draw="nearest"), lm, CORPUS).step(ids_of(lm, TEXT))[0]
    assert not torch.allclose(scores(1), nearest)


def test_a_network_comes_back_with_its_own_shape_and_nothing_of_a_frozen_base(tmp_path: Path) -> None:
    lm, path = toys.lm(), tmp_path / "retro.safetensors"
    method = untrained(lm, chunk=5, width=16, heads=4, layers="2")
    assert method.trained is not None
    method.save(method.trained, lm, path)
    _, tensors = read_tensors(path, "network")
    assert all(name.startswith("parts.") for name in tensors)
    assert {name.split(".")[2] for name in tensors if ".cross." in name} == {"1"}
    ids = ids_of(lm, TEXT)
    read = Retro(weights=str(path))
    assert torch.equal(consulting(read, lm, CORPUS).step(ids)[0], consulting(method, lm, CORPUS).step(ids)[0])
    more = consulting(replace(read, neighbours=4), lm, CORPUS).step(ids)[0]
    assert not torch.equal(more, consulting(read, lm, CORPUS).step(ids)[0])
    with pytest.raises(Mismatch, match="train again"):
        read.adapted([], toys.lm(seed=4))


@pytest.mark.parametrize("base", ["trained", "fresh"])
def test_a_base_that_is_trained_along_is_kept_with_the_network(base: str, tmp_path: Path) -> None:
    lm, path = toys.lm(), tmp_path / "retro.safetensors"
    method = Retro(chunk=4, neighbours=0, base=base, episode_tokens=20)  # type: ignore[arg-type]
    episodes = method.episodes(lm, TrainingData((Document("x", TEXT),)))
    network, _ = train(method, lm, episodes, Training(AdamW(1e-2), passes=3))
    method.save(network, lm, path)
    read = Retro(weights=str(path), neighbours=0)
    under = read.under(lm)
    ids = ids_of(lm, TEXT)
    (trained,) = method.episodes(lm, TrainingData((Document("x", TEXT[:20]),)))
    assert not torch.allclose(under.step(ids)[0], lm.step(ids)[0], atol=1e-2)
    with torch.no_grad():
        loss = -under.step(trained.ids[:, :-1])[0].gather(-1, trained.ids[:, 1:, None]).mean()
        assert loss.item() == pytest.approx(method.loss(network, lm, trained).item(), abs=1e-4)
        before = -lm.step(trained.ids[:, :-1])[0].gather(-1, trained.ids[:, 1:, None]).mean()
    assert loss < before
    # From scratch, the weights there were tell nothing; a base trained along begins from them.
    first = {name: own.detach() for name, own in method.fresh(lm).named_parameters() if "moved" in name}
    given = {f"moved.{name.replace('.', '/')}": own for name, own in lm.module.named_parameters()}
    assert first.keys() == given.keys()
    assert (base == "trained") == all(torch.equal(first[name], given[name]) for name in given)


def test_together_with_weights_that_were_trained_on_the_passages() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    retro = untrained(lm)
    trains = Finetune.example()
    both = combine({"ttt-nn": MethodSpec(trains), "retro": MethodSpec(retro)}).method
    read = replace(evidence(CORPUS), found=Evidence.of("the cat sat on the hill. ").found)
    (state,) = both.adapt([both.init(lm)], lm, [read], Context())
    ids = ids_of(lm, TEXT)
    together, _ = both.adapted([state], lm).step(ids)
    (moved,) = trains.adapt([trains.init(lm)], lm, [read], Context())
    expected, _ = consulting(retro, lm.overlay(moved.delta), CORPUS).step(ids)
    assert torch.allclose(together, expected, atol=1e-10)
    for alone in (trains.adapted([moved], lm), consulting(retro, lm, CORPUS)):
        assert not torch.allclose(together, alone.step(ids)[0], atol=1e-3)
    # Two rows with weights of their own each.
    two = both.adapted([state, both.init(lm)], lm)
    assert isinstance(two, Routed)
    assert torch.allclose(two.step(torch.cat([ids, ids]))[0][0], expected[0], atol=1e-10)
    key = read.passages[0].id
    left = both.forget(state, lm, [key])
    assert torch.allclose(both.adapted([left], lm).step(ids)[0], consulting(retro, lm, CORPUS).step(ids)[0])


def test_a_stores_passages_can_be_taken_back() -> None:
    lm = toys.lm(dtype=torch.float64)
    method = untrained(lm)
    (state,) = method.adapt([method.init(lm)], lm, [evidence(CORPUS)], Context())
    key = listed(CORPUS, lm.tokenizer, 4).passages[0].tolist()
    left = method.forget(state, lm, key[1:])
    ids = ids_of(lm, TEXT)
    assert torch.equal(
        method.adapted([left], lm).step(ids)[0], consulting(method, lm, CORPUS[:1]).step(ids)[0]
    ) and not torch.equal(method.adapted([left], lm).step(ids)[0], method.adapted([state], lm).step(ids)[0])


def test_a_copy_of_the_model_brings_the_parts_along() -> None:
    lm = toys.lm(dtype=torch.float64)
    model = consulting(untrained(lm), lm, CORPUS)
    moved = Finetune.example()
    (state,) = moved.adapt([moved.init(lm)], lm, [Evidence.of("the cat sat")], Context())
    ids = ids_of(lm, TEXT)
    expected, _ = consulting(untrained(lm), lm.overlay(state.delta), CORPUS).step(ids)
    assert torch.allclose(model.overlay(state.delta).step(ids)[0], expected, atol=1e-10)
    opened, found = model.trainable_copy(moved.trainable, state.delta, torch.Generator())
    log_probs, _ = opened.step(ids)
    assert torch.allclose(log_probs, expected, atol=1e-10)
    log_probs.sum().backward()  # type: ignore[no-untyped-call]
    assert all(own.grad is not None for own in found.parameters.values())
    with pytest.raises(BadInput, match="give them to its base"):
        model.with_parameters({})


def test_what_cannot_be_is_refused_in_one_line() -> None:
    lm = toys.lm()
    source: Any = Source(CORPUS, chunk=4)
    material = TrainingData((Document("x", TEXT),), sources=lambda document: source)
    for method, said in {
        Retro(chunk=4, episode_tokens=20): "name one with --store",
        Retro(chunk=4, episode_tokens=20, neighbours=0): "leaves nothing to train",
    }.items():
        with pytest.raises(BadInput, match=said):
            method.episodes(lm, TrainingData((Document("x", TEXT),)))
    with pytest.raises(BadInput, match="more than 64 tokens"):
        Retro().episodes(lm, material)
    for wrong, said in {
        "neighbours=-1": "use 0 or more", "layers=0,2": "numbers from 1 on", "chunk=600": "more than a chunk",
    }.items():  # fmt: skip
        name, _, value = wrong.partition("=")
        with pytest.raises(BadInput, match=said):
            Retro(**{name: value if name == "layers" else int(value)})  # type: ignore[arg-type]
    for settings, shape, said in (
        ({"layers": "3"}, "llama", "the model has 2 blocks"),
        ({"heads": 3}, "llama", "the heads divide"),
        ({}, "neox", "no place between"),
    ):
        with pytest.raises(BadInput, match=said):
            Retro(**settings).fresh(toys.lm(shape))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="uptake train"):
        Retro().adapted([Retro().init(lm)], lm)
    (state,) = (Retro.example().init(lm),)
    with pytest.raises(Mismatch, match="load that model"):
        Retro.example().adapted([state], toys.lm(seed=2))


def test_a_half_precision_base_keeps_its_bits_and_is_read_beside_parts_of_more() -> None:
    lm = Causal(toys.module().bfloat16(), toys.lm().tokenizer)
    method = untrained(lm)
    assert method.trained is not None and next(method.trained.parameters()).dtype == torch.float32
    ids = ids_of(lm, TEXT)
    model = consulting(method, lm, CORPUS)
    assert isinstance(model, RetroLM)
    assert torch.isfinite(model.step(ids)[0]).all()
    assert not torch.equal(model.step(ids)[0], lm.step(ids)[0])
    cache = model.start()
    parts = []
    for part in ids.split(9, 1):
        found, cache = model.step(part, cache)
        parts.append(found)
    assert torch.allclose(torch.cat(parts, 1), model.step(ids)[0], atol=0.5)


def test_layers_are_numbers_that_can_be_read() -> None:
    with pytest.raises(BadInput, match="write numbers from 1 on"):
        Retro(layers="²")
