"""MAC: what the memory is asked, what it answers with, and that it can be taken apart again."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.capabilities import Layers, Slots, capability
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.mac import Mac, MacLM, MacState
from uptake.methods.mac.network import BaseShapes, ContextMemory
from uptake.tasks.questions import Question
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document
from uptake.train import Training, train

TEXTS = ("the cat sat on the mat.", "a dog ran.", "one fish, two fish, red fish.", "so be it", "no more")
ASKED = torch.tensor([[0, *b"who sat there"], [0, *b"where it was."]])


def network(seed: int = 0, **settings: Any) -> ContextMemory:
    torch.manual_seed(seed)
    made = ContextMemory(BaseShapes(24, ((2, 5, 3), (1, 4, 4))), width=16, slots=3, heads=2, **settings)
    return made.double().requires_grad_(False)


def bank(documents: int, seed: int = 1) -> Tensor:
    return torch.randn(documents, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double(lm: LM, **settings: Any) -> Mac:
    """Return a method with an untrained network of float64."""
    method = replace(Mac.example(), **settings)
    return replace(method, trained=method.fresh(lm).double().requires_grad_(False))


def taken(method: Mac, lm: LM, *texts: str) -> MacState:
    return method.adapt([method.init(lm)], lm, [Evidence.of(*texts)], Context())[0]


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_slots_stand_beside_the_text_and_out_of_each_others_sight(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    places = torch.tensor([[3, 9, 4], [0, 13, 13]])
    wide = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 2, 3 * 2, 16, dtype=torch.float64, generator=wide) for _ in range(4)]
    _, plain = lm.layers(ASKED, lm.start())
    before = [tensor.clone() for layer in plain for tensor in layer[:2]]
    found = lm.step_with_slots(
        ASKED.gather(1, places), places, Slots(tuple(made[:2]), tuple(made[2:]), 2), plain
    )
    assert all(
        torch.equal(*pair) for pair in zip(before, (t for layer in plain for t in layer[:2]), strict=True)
    )
    for row in range(2):
        for n, place in enumerate(places[row].tolist()):
            text = lm.start()
            if place:
                lm.step(ASKED[row : row + 1, :place], text)
            for layer in range(2):
                own = (slice(row, row + 1), slice(None), slice(2 * n, 2 * n + 2))
                text.update(made[layer][own], made[2 + layer][own], layer)
            out = lm.module(
                input_ids=ASKED[row : row + 1, place : place + 1],
                past_key_values=text,
                position_ids=torch.tensor([[place]]),
            )
            expected = torch.log_softmax(out.logits[0, 0], -1)
            assert torch.allclose(found[row, n], expected, atol=1e-12)


def test_layers_are_those_that_the_model_tells_of() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    states, kept = lm.layers(ASKED, lm.start())
    again = lm.module(ASKED, output_hidden_states=True)
    assert len(states) == 3 and all(map(torch.equal, states, again.hidden_states))
    assert kept.get_seq_length() == ASKED.shape[1] and lm.layers(ASKED)[1] is None


def test_no_document_comes_before_another() -> None:
    net, documents = network(), bank(7)
    asked = torch.randn(2, 4, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = documents[torch.tensor([3, 0, 6, 5, 1, 2, 4])]
    assert torch.allclose(net.aggregate(asked, documents), net.aggregate(asked, turned), atol=1e-13)
    lm = toys.lm(dtype=torch.float64)
    for group in (None, 2):
        method = double(lm, group=group)
        forward, backward = (taken(method, lm, *texts) for texts in (TEXTS, TEXTS[::-1]))
        logs = [method.adapted([state] * len(ASKED), lm).step(ASKED)[0] for state in (forward, backward)]
        assert torch.equal(*logs) and not torch.equal(logs[0], lm.step(ASKED)[0])


def test_groups_are_aggregated_and_then_what_they_gave() -> None:
    net, documents = network(blocks=1), bank(5)
    asked = torch.randn(2, 4, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(net.aggregate(asked, documents, group=5), net.aggregate(asked, documents))
    found = net.aggregate(asked, documents, group=2)
    assert not torch.allclose(found, net.aggregate(asked, documents), atol=1e-6)

    def naive(one: Tensor, held: Tensor) -> Tensor:
        """One place of one text, by recursion."""
        if len(held) <= 2:
            return net.aggregate(one[None, None], held)[0, 0]
        return naive(one, torch.stack([naive(one, held[i : i + 2]) for i in range(0, len(held), 2)]))

    for row in range(2):
        for n in range(4):
            assert torch.allclose(found[row, n], naive(asked[row, n], documents), atol=1e-12)


def test_a_row_sees_the_documents_it_may_see() -> None:
    net, documents = network(), bank(5)
    asked = torch.randn(2, 4, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = torch.tensor([[True, False, True, False, False], [False, True, True, True, True]])
    found = net.aggregate(asked, documents, seen)
    for row in range(2):
        alone = net.aggregate(asked[row : row + 1], documents[seen[row]])
        assert torch.allclose(found[row], alone[0], atol=1e-12)


def test_a_document_is_asked_as_a_question_is_and_padding_is_not_read() -> None:
    net, wide = network(), torch.Generator().manual_seed(4)
    states = torch.randn(2, 6, 24, dtype=torch.float64, generator=wide)
    asked = net.query(states, torch.tensor([[0, 3, 5], [1, 1, 4]]))
    assert torch.allclose(asked[0, 1], net.encode(states[:1, :4], torch.tensor([4]))[0], atol=1e-12)
    assert torch.allclose(asked[1, 2], net.encode(states, torch.tensor([6, 5]))[1], atol=1e-12)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_decoding_with_a_cache_is_reading_the_whole(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = double(lm, group=2)
    remembering = method.adapted([taken(method, lm, *TEXTS)], lm)
    whole = remembering.step(ASKED[:1])[0]
    cache, parts = remembering.start(), []
    for part in ASKED[:1].split([5, 1, 1, 7], 1):
        log_probs, cache = remembering.step(part, cache)
        parts.append(log_probs)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)
    ids = [0, *lm.tokenizer.encode("who")[0]]
    for _ in range(6):
        ids.append(int(remembering.step(torch.tensor([ids]))[0][0, -1].argmax()))
    assert remembering.generate("who", 6) == lm.tokenizer.decode(ids[4:])


def test_with_nothing_read_it_is_the_base_to_the_bit() -> None:
    lm = toys.lm()
    method = Mac.example()
    full, empty = taken(method, lm, *TEXTS), method.init(lm)
    segments = [Segment("sat there", "who "), Segment("it was.", "where ")]
    scores = method.adapted([full, empty], lm).score(segments)
    assert torch.equal(scores[1].log_probs, lm.at([1]).score(segments[1:])[0].log_probs)
    assert not torch.allclose(scores[0].log_probs, lm.score(segments[:1])[0].log_probs, atol=1e-3)


def test_what_is_dropped_was_never_read_and_nothing_is_read_again() -> None:
    lm = toys.lm()
    method = Mac.example()
    long = "far too long for a window of 64 bytes, so that it is read in several pieces, each one by itself. "
    state = taken(method, lm, *TEXTS[:2], long)
    (state,) = method.adapt([state], lm, [Evidence.of(TEXTS[2])], Context())
    assert state.pieces == (1, 1, 2, 1) and len(state.slots) == 5
    gone = [Evidence.of(text).passages[0].id for text in (long, TEXTS[2])]
    nobody: Any = None
    dropped, never = method.forget(state, nobody, gone), taken(method, lm, *TEXTS[:2])
    assert torch.equal(dropped.slots, never.slots)
    assert (dropped.pieces, dropped.history) == (never.pieces, never.history)
    assert torch.equal(method.forget(state, nobody, []).slots, state.slots)
    everything = [passage.id for reading in state.history for passage in reading.passages]
    empty = method.forget(method.forget(state, nobody, everything), nobody, everything)
    assert (empty.pieces, empty.history, len(empty.slots)) == ((), (), 0)


KEYS = [one + other for one in "bcdfghkl" for other in "aeiouyrs"]
Random(0).shuffle(KEYS)


def world(keys: list[str], seed: int = 0, times: int = 1) -> TrainingData:
    """Documents that give each key a value, and questions for it; each time the values are others."""
    random = Random(seed)
    told = [(f"{key}{time}", key, random.choice("1579")) for time in range(times) for key in keys]
    documents = tuple(Document(name, f"{key} {value}") for name, key, value in told)
    return TrainingData(documents, tuple(Question(name, key, (value,), name) for name, key, value in told))


TOY = Mac(width=32, slots=1, heads=2, documents=4, template="{question}")


def test_gradients_reach_every_part_and_the_base_has_none() -> None:
    lm = toys.lm()
    method = replace(TOY, locality=0.5, documents=8)
    material = replace(world(KEYS[:8]), unrelated=(Document("u", "something else"),))
    (episode,) = method.episodes(lm, material)
    made = method.fresh(lm)
    # What begins at zero lets no gradient through to what stands before it.
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) / 100)
    loss, gradients = method.gradients(made, lm, episode)
    for (name, _), gradient in zip(made.named_parameters(), gradients, strict=True):
        assert gradient is not None and gradient.abs().max() > 0, name
    assert not any(p.requires_grad or p.grad is not None for p in lm.module.parameters())
    plain = replace(method, locality=0.0)
    assert loss > plain.gradients(made, lm, episode)[0]


def test_finding_is_the_cross_entropy_of_the_right_document_among_all() -> None:
    lm = toys.lm(dtype=torch.float64)
    method = replace(TOY, slots=2, documents=5, matching=0.0)
    (episode,) = method.episodes(lm, world(KEYS[:5]))
    net: Any = method.fresh(lm).double().requires_grad_(False).eval()
    with torch.no_grad():
        net.selection.keys.weight.add_(torch.randn(32, 32, dtype=torch.float64) / 10)

    def slots(text: tuple[int, ...], made: Tensor) -> Tensor:
        """What a text becomes, in the direction that is compared."""
        states, _ = lm.layers(torch.tensor([text]))
        features = torch.cat([torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in states], -1)
        read = net.encode(features, torch.tensor([len(text)]))[0]
        normed = (read - read.mean(-1, keepdim=True)) / (
            read.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        whole = (normed @ made.T).flatten()
        return whole / whole.norm()

    documents = [slots(text, net.selection.keys.weight) for text in episode.documents]
    surprise = []
    for prompt, answer, own in zip(episode.prompts, episode.answers, episode.own, strict=True):
        for end in range(len(answer)):
            asked = slots((*prompt, *answer[:end]), net.selection.queries.weight)
            scores = torch.stack([10 * asked @ document for document in documents])
            surprise.append(scores.logsumexp(0) - scores[own])
    expected = method.loss(net, lm, episode) + 3 * torch.stack(surprise).mean()
    assert torch.allclose(replace(method, matching=3.0).loss(net, lm, episode), expected, atol=1e-6)


def test_documents_left_out_of_the_backward_pass_are_constants() -> None:
    lm = toys.lm(dtype=torch.float64)
    (episode,) = replace(TOY, documents=8).episodes(lm, world(KEYS[:8]))
    made = TOY.fresh(lm).double()
    assert len(episode.kept) == 8
    few = replace(TOY, documents=8, backward=0.25).episodes(lm, world(KEYS[:8]))[0]
    assert len(few.kept) == 2

    def run(kept: tuple[int, ...]) -> tuple[float, Tensor]:
        loss, gradients = TOY.gradients(made, lm, replace(episode, kept=kept))
        return loss, torch.cat([g.flatten() for g in gradients if g is not None])

    (all_loss, every), (none_loss, none) = run(tuple(range(8))), run(())
    parts = [run((place,))[1] - none for place in range(8)]
    assert all_loss == pytest.approx(none_loss, abs=1e-12) and not torch.allclose(every, none)
    assert torch.allclose(none + torch.stack(parts).sum(0), every, atol=1e-12)


def test_a_question_sees_its_own_document_among_others() -> None:
    lm = toys.lm()
    episodes = replace(TOY, documents=16).episodes(lm, world(KEYS, times=4))
    assert len(episodes) == 16 and all(bool(episode.seen.diagonal().all()) for episode in episodes)
    counts = torch.cat([episode.seen.sum(1) for episode in episodes]).tolist()
    # Evenly on a logarithmic scale: one or two as often as three to five or eleven to sixteen.
    assert 0.15 < sum(count <= 2 for count in counts) / len(counts) < 0.45
    assert 0.08 < sum(count >= 11 for count in counts) / len(counts) < 0.3
    with pytest.raises(BadInput, match="no questions to learn from"):
        TOY.episodes(lm, TrainingData(world(KEYS).documents))


def test_an_answer_is_learnt_with_its_end() -> None:
    lm = toys.lm()
    (episode,) = replace(TOY, documents=8).episodes(lm, world(KEYS[:8]))
    assert all(lm.tokenizer.decode(list(answer)).endswith("\n") for answer in episode.answers)


def trained(seed: int) -> tuple[LM, Mac]:
    module = toys.module()
    # The toy's logits are too flat to give any token half of the probability.
    with torch.no_grad():
        module.get_input_embeddings().weight.mul_(10)
    lm = Causal(module, Tokenizer(toys.tokenizer()))
    episodes = TOY.episodes(lm, world(KEYS[:48], times=12))
    optimizer = AdamW(3e-3, beta2=0.95, weight_decay=0.0)
    made, _ = train(TOY, lm, episodes, Training(optimizer, passes=5, seed=seed))
    return lm, replace(TOY, trained=made)


def right(way: Mac, lm: LM, read: TrainingData, asked: TrainingData) -> int:
    """Return how many questions are answered by a memory of four documents, the same four of `read`."""
    count = 0
    for start in range(0, len(asked.questions), 4):
        state = taken(way, lm, *(document.text for document in read.documents[start : start + 4]))
        for question in asked.questions[start : start + 4]:
            ids = torch.tensor([[0, *lm.tokenizer.encode(f"{question.text} ")[0]]])
            said = int(way.adapted([state], lm).step(ids)[0][0, -1].argmax())
            count += said == lm.tokenizer.encode(question.answers[0])[0][0]
    return count


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.long
def test_a_trained_memory_answers_on_keys_it_never_saw(seed: int) -> None:
    lm, method = trained(seed)
    asked, others = world(KEYS[48:], 7, times=4), world(KEYS[48:], 8, times=4)
    untrained = replace(method, trained=method.fresh(lm))
    assert right(method, lm, asked, asked) >= 48, "of 64, with four answers to choose from"
    assert right(method, lm, others, asked) <= 24, "told other values for the same keys"
    assert right(untrained, lm, asked, asked) <= 24


@pytest.mark.parametrize(
    "settings", [{"width": 30}, {"group": 1}, {"slots": 0}, {"backward": 2.0}, {"template": "?"}], ids=str
)
def test_settings_that_cannot_be_are_refused(settings: Any) -> None:
    with pytest.raises(BadInput, match=r"use|write"):
        Mac(**settings)


def test_a_network_of_other_settings_is_refused_with_those(tmp_path: Path) -> None:
    lm, path, method = toys.lm(), tmp_path / "mac.safetensors", Mac.example()
    method.save(method.fresh(lm), lm, path)
    with pytest.raises(Mismatch, match=r"trained with width=32, slots=2, heads=2, blocks=1: give the same"):
        Mac(weights=str(path)).init(lm)
    with pytest.raises(Mismatch, match=r"trained with slots=2: give"):
        replace(method, weights=str(path), slots=3).init(lm)
    with pytest.raises(Mismatch, match=r"trained with slots=2, group=none: give"):
        replace(method, weights=str(path), slots=3, group=4).init(lm)


def test_a_state_of_another_model_and_a_model_without_layers_are_refused() -> None:
    lm, method = toys.lm(), Mac.example()
    state = taken(method, lm, *TEXTS)
    with pytest.raises(Mismatch, match="load that model"):
        method.adapted([replace(state, base="other")], lm)
    with pytest.raises(BadInput, match="give its base"):
        capability(method.adapted([state], lm), Layers)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_texts_of_different_length_are_answered_in_one_pass_as_each_by_itself(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = double(lm)
    (remembering,) = method.adapted([taken(method, lm, *TEXTS)], lm).parts  # type: ignore[attr-defined]
    prompts = ["who sat", "where was it on", "so"]
    texts = [lm.tokenizer.opened(prompt) for prompt in prompts]
    longest = max(map(len, texts)) + 2
    ids = torch.tensor([[7] * (longest - len(each)) + each for each in texts])
    passes: list[int] = []
    whole = Causal.layers

    def counted(self: Causal, ids: Tensor, *more: Any) -> Any:
        passes.append(len(ids))
        return whole(self, ids, *more)

    monkeypatch.setattr(Causal, "layers", counted)
    found, cache = remembering.step(ids, remembering.start(), [len(each) for each in texts])
    going_on = torch.tensor([[5, 6], [7, 8], [9, 4]])
    for step in range(2):
        more, cache = remembering.step(going_on[:, step : step + 1], cache)
        found = torch.cat([found, more], 1)
    assert passes == [3, 3, 3]
    for row, own in enumerate(texts):
        alone, kept = remembering.step(torch.tensor([own]), remembering.start())
        for step in range(2):
            more, kept = remembering.step(going_on[row : row + 1, step : step + 1], kept)
            alone = torch.cat([alone, more], 1)
        torch.testing.assert_close(found[row, longest - len(own) :], alone[0], rtol=1e-9, atol=1e-9)


def naive_loss(method: Mac, made: Any, lm: Causal, episode: Any) -> Tensor:
    """The loss at `matching=0`, every document, question and token of an answer by itself."""
    bank = torch.cat([encoded(made, lm, text) for text in episode.documents])
    lost = []
    for prompt, answer, seen in zip(episode.prompts, episode.answers, episode.seen, strict=True):
        for end, target in enumerate(answer):
            asked = [lm.tokenizer.opened("")[0], *prompt[1:], *answer[:end]]
            lost.append(-MacLM(lm, made, bank[seen]).step(torch.tensor([asked]))[0][0, -1, target])
    ids = torch.tensor([episode.unrelated])
    before, after = lm.step(ids)[0][:, :-1], MacLM(lm, made, bank).step(ids)[0][:, :-1]
    moved = (before.exp() * (before - after)).sum(-1).mean()
    return torch.stack(lost).mean() + method.locality * moved


def encoded(made: Any, lm: Causal, text: tuple[int, ...]) -> Tensor:
    states, _ = lm.layers(torch.tensor([text]))
    chosen = (states[0], states[len(states) // 2], states[-1])
    read = torch.cat([torch.nn.functional.layer_norm(s, s.shape[-1:]) for s in chosen], -1)
    return made.encode(read, torch.tensor([len(text)]))


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_what_is_kept_of_texts_changes_no_loss_and_is_read_once(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = replace(TOY, slots=2, matching=0.0, locality=0.5)
    material = replace(world(KEYS[:4]), unrelated=(Document("u", "something else"),))
    (episode,) = method.episodes(lm, material)
    made: Any = method.fresh(lm).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    first, gradients = method.gradients(made, lm, episode)
    assert first == pytest.approx(naive_loss(method, made, lm, episode).item(), abs=1e-10)

    read, whole = [], type(lm)._run
    monkeypatch.setattr(
        type(lm), "_run", lambda self, *given, **more: read.append(1) or whole(self, *given, **more)
    )
    again, same = method.gradients(made, lm, episode)
    assert len(read) == 2  # what learns: the answers', and the unrelated text's
    assert again == first and all(map(torch.equal, same, gradients))

    monkeypatch.setattr("uptake.methods.mac.reading.MOST", 0)
    fresh = toys.lm(shape, dtype=torch.float64)
    beyond, other = method.gradients(made, fresh, episode)
    assert beyond == first and all(map(torch.equal, other, gradients))
