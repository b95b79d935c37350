"""CaMeLS: the derivative of what it learns, what it must not depend on, and that it learns what matters."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import token_loss, unroll
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import Camels as CamelsWeights
from uptake.adaptation.token_weights.network import Weighing
from uptake.adaptation.trainable import All
from uptake.adaptation.transforms import Losses
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.scoring import losses
from uptake.methods import find
from uptake.methods.camels import Camels, DocumentBatch, answer_loss, drift
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document, Passage
from uptake.train import Training, train

RATE = 0.2
STEPS = Finetune(optimizer=SGD(RATE), clip=None)
METHOD = Camels(steps=STEPS, documents=1, batches=1, locality=0.1)
DOCUMENT = Document("d", "the cat sat")
ASKED = (Question("q", "who?", ("cat",), "d"), Question("r", "did the cat sit or stand?", ("sat",), "d"))
OTHER = Document("o", "two and two")


def double(shape: str = "gpt2", seed: int = 0) -> LM:
    return toys.lm(shape, seed, dtype=torch.float64)


def awake(method: Camels, lm: LM, seed: int = 0) -> Weighing:
    """Return a network whose weights differ from token to token."""
    network = method.fresh(lm, seed)
    assert isinstance(network, Weighing)
    with torch.no_grad():
        network.out.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return network.train()


def nll(lm: LM, values: Mapping[str, Tensor], text: str, weights: Tensor | None = None) -> Tensor:
    ids = torch.tensor([[0, *lm.tokenizer.encode(text)[0]]])
    return token_loss(lm.with_parameters(values).step(ids[:, :-1])[0], ids[:, 1:], weights)


def test_untrained_weights_are_ln_2_over_3_and_see_no_later_token() -> None:
    lm = double()
    weights, spans = METHOD.fresh(lm).weigh("the cat")  # type: ignore[operator]
    assert torch.allclose(weights, torch.full((7,), 2.0, dtype=torch.float64).log() / 3)
    assert spans == lm.tokenizer.encode("the cat")[1]
    network = awake(METHOD, lm)
    one, other = network.weigh("the cat sat")[0], network.weigh("the cat ran")[0]
    assert torch.allclose(one[:8], other[:8]) and not torch.allclose(one[8], other[8])


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_hypergradient_of_one_step_through_the_whole_method(shape: str) -> None:
    """dQ/dw_t = -(alpha / N) <grad Q(theta'), grad nll_t(theta)>, then the chain rule into the network."""
    lm = double(shape)
    network, batch = awake(METHOD, lm), DocumentBatch((DOCUMENT,), ASKED, OTHER)
    loss, found = METHOD.gradients(network, lm, (batch,))

    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
    weights, _ = network.weigh(DOCUMENT.text)
    leaf = weights.detach()
    moving = list(opened.parameters.values())
    grads = torch.autograd.grad(nll(private, opened.parameters, DOCUMENT.text, leaf[None]), moving)
    moved = {
        name: (value - RATE * grad).detach().requires_grad_()
        for (name, value), grad in zip(opened.parameters.items(), grads, strict=True)
    }
    outer = METHOD.outer(lm, private.with_parameters(moved), batch)
    assert loss == pytest.approx(outer.item(), rel=1e-12)
    pull = torch.autograd.grad(outer, list(moved.values()))
    expected = torch.zeros_like(leaf)
    for t in range(len(leaf)):
        only = torch.zeros_like(leaf)
        only[t] = 1.0  # the mean over N tokens stays in: the formula's 1 / N
        inner = torch.autograd.grad(nll(private, opened.parameters, DOCUMENT.text, only[None]), moving)
        expected[t] = -RATE * sum((a * b).sum() for a, b in zip(pull, inner, strict=True))
    by_hand = torch.autograd.grad(weights, list(network.parameters()), expected, allow_unused=True)
    for one, other in zip(found, by_hand, strict=True):
        # Llama's norm works in float32, whatever the model's type is.
        close = 1e-6 if shape == "llama" else 1e-12
        assert torch.allclose(one, torch.zeros_like(one) if other is None else other, atol=close)  # type: ignore[arg-type]
    assert max(float(one.abs().max()) for one in found) > 1e-6  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", [SGD(RATE), AdamW(1e-2, weight_decay=0.0)], ids=str)
def test_gradients_batch_by_batch_are_those_of_batches_that_hang_together_by_numbers(
    optimizer: Optimizer,
) -> None:
    lm = double()
    method = replace(METHOD, steps=replace(STEPS, optimizer=optimizer), documents=2, batches=2)
    texts = ["the cat sat", "a dog ran", "one fish", "red hill"]
    documents = tuple(Document(text, text) for text in texts)
    questions = tuple(Question(text, "what?", (text.split()[-1],), text) for text in texts)
    (walk,) = method.episodes(lm, TrainingData(documents, questions, (OTHER,)))
    network = awake(method, lm)
    loss, found = method.gradients(network, lm, walk)
    assert loss == pytest.approx(method.loss(network, lm, walk).item(), rel=1e-12)
    whole = torch.autograd.grad(method.loss(network, lm, walk), list(network.parameters()), allow_unused=True)
    for one, other in zip(found, whole, strict=True):
        assert other is None or torch.allclose(one, other, atol=1e-12)  # type: ignore[arg-type]
    still = method.loss(network.eval(), lm, walk)
    assert not still.requires_grad and still.item() == pytest.approx(loss, rel=1e-12)


# In place, Adam's epsilon stands outside the root; so small, it does not tell.
@pytest.mark.parametrize("optimizer", [SGD(RATE), AdamW(1e-2, epsilon=1e-15, weight_decay=0.0)], ids=str)
def test_the_walk_in_training_is_the_walk_in_use(optimizer: Optimizer) -> None:
    """Deployed on a stream, one document after another, the model ends where training took it."""
    lm = double()
    method = replace(METHOD, steps=replace(STEPS, optimizer=optimizer))
    network = awake(method, lm)
    texts = ("the cat sat", "a dog ran over the hill", "one fish")
    steps = method.weighed(network)
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
    pieces = steps.pieces(lm, [Passage(i, text) for i, text in enumerate(texts)])
    values, _ = unroll(
        lambda values, piece: Losses(
            losses(private.with_parameters(values), [piece.example], [piece.weights]), (piece.document,)
        ),
        opened.parameters,
        pieces,
        optimizer,
    )
    deployed = replace(method, trained=network.requires_grad_(False))
    state = deployed.init(lm)
    for text in texts:
        (state,) = deployed.adapt([state], lm, [Evidence.of(text)], Context())
    # Compared by what it says: there are weights that change nothing, and Adam moves them by their noise.
    ids = torch.tensor([[0, *lm.tokenizer.encode("the cat ran")[0]]])
    found, expected = method.adapted([state], lm).step(ids)[0], private.with_parameters(values).step(ids)[0]
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(found, lm.step(ids)[0], atol=1e-3)


def test_neither_padding_nor_length_changes_the_size_of_a_step() -> None:
    """The published code counts padding in the mean, so that a step grows with the document."""
    lm = double()
    rows = [replace(ASKED[0], id=str(i), text=text) for i, text in enumerate(("who?", "who " * 9))]
    apart = [answer_loss(lm, [row]) for row in rows]
    together = answer_loss(lm, rows)  # the shorter question is padded, and the answers are of one length
    assert torch.allclose(together, torch.stack(apart).mean(), atol=1e-12)
    constant = METHOD.fresh(lm)
    for text in ("the cat", "the cat sat on the mat and looked at the hill"):
        steps = METHOD.weighed(constant)
        (piece,) = steps.pieces(lm, [Passage(0, text)])
        assert len(piece.example.inputs) == len(text), "no padding"
        plain = losses(lm, [piece.example])
        weighed = losses(lm, [piece.example], [piece.weights])
        assert torch.allclose(weighed, plain * torch.tensor(2.0).double().log() / 3, atol=1e-12)


def test_the_loss_of_answers_is_what_asking_counts() -> None:
    from uptake.tasks.asking import ask, divergence

    lm, other = toys.lm(), toys.lm(seed=4)
    found = ask(lm, ASKED, Asking(tokens=1))
    nats, tokens = sum(each.nats for each in found), sum(each.tokens for each in found)
    assert answer_loss(lm, ASKED).item() == pytest.approx(nats / tokens, rel=1e-5)
    nats, tokens = divergence(lm, other, OTHER.text)
    # One position more than divergence looks at: after the last token.
    ids = torch.tensor([[0, *lm.tokenizer.encode(OTHER.text)[0]]])
    before, after = lm.step(ids)[0], other.step(ids)[0]
    last = (before[:, -1].exp() * (before[:, -1] - after[:, -1])).sum().item()
    assert drift(lm, other, OTHER.text).item() == pytest.approx((nats + last) / (tokens + 1), rel=1e-4)


def test_learnt_weights_serve_other_methods_models_and_tokenizers(tmp_path: Path) -> None:
    small, path = toys.lm("gpt2"), tmp_path / "weights.safetensors"
    network = awake(METHOD, small)
    METHOD.save(network, small, path)
    larger = toys.lm("llama", window=128)
    text = "the cat sat. " * 9  # longer than the small model's window
    spans = larger.tokenizer.encode(text)[1]
    learnt = CamelsWeights(weights=str(path))
    assert torch.equal(learnt.of(Passage(0, text), spans), network.of(text, spans))
    assert replace(METHOD, weights=str(path)).init(larger).base == larger.fingerprint
    for way in ("finetune", "ttt-nn", "online", "dynamic-evaluation"):
        plain = find(way).method
        method = apply(plain, f"token_weights=camels(weights={path})")
        assert method.token_weights == learnt
        at_hand = replace(plain, token_weights=CamelsWeights(network=network))
        states = [
            each.adapt([each.init(larger)], larger, [Evidence.of(text)], Context())[0]
            for each in (method, at_hand, plain)
        ]
        moved = [state.delta.difference("model.norm.weight") for state in states]
        assert torch.equal(moved[0], moved[1]) and not torch.allclose(moved[0], moved[2], rtol=1e-2)
    words = [(0, 3), (3, 7), (7, 11)]  # as a tokenizer of words would have it
    by_words = learnt.of(Passage(0, "the cat sat"), words)
    own = network.weigh("the cat sat")[0]
    assert torch.allclose(by_words, torch.stack([own[start:end].mean() for start, end in words]))
    with pytest.raises(BadInput, match="uptake train camels"):
        CamelsWeights(weights=str(tmp_path / "none")).of(Passage(0, "x"), [(0, 1)])
    Delta(small.fingerprint).save(tmp_path / "delta")
    with pytest.raises(BadInput, match="holds no network"):
        CamelsWeights(weights=str(tmp_path / "delta")).of(Passage(0, "x"), [(0, 1)])

    class Other(Camels):
        pass

    replace_kind = Other(steps=STEPS)
    replace_kind.save(network, small, tmp_path / "other")
    with pytest.raises(Mismatch, match="not of Camels"):
        CamelsWeights(weights=str(tmp_path / "other")).of(Passage(0, "x"), [(0, 1)])


def test_the_small_model_may_be_another_than_the_base(tmp_path: Path) -> None:
    small, path = tmp_path / "small", tmp_path / "weights.safetensors"
    toys.module("gpt2", window=48).save_pretrained(small)
    toys.tokenizer().save_pretrained(small)
    lm, method = toys.lm("llama", window=128), replace(METHOD, reader=str(small))
    network = awake(method, lm)
    assert network.window == 48 and type(network.reader).__name__ == "GPT2Model"
    _, gradients = method.gradients(network, lm, (DocumentBatch((DOCUMENT,), ASKED, OTHER),))
    moved = dict(zip((name for name, _ in network.named_parameters()), gradients, strict=True))
    assert all(tensor is not None and tensor.abs().sum() > 0 for tensor in moved.values())
    method.save(network, lm, path)
    shutil.rmtree(small)
    # The file brings the small model along: neither folder nor setting is asked for any more.
    back = replace(METHOD, weights=str(path)).network(lm)
    assert torch.equal(network.weigh("the cat sat")[0], back.weigh("the cat sat")[0])  # type: ignore[operator]


def test_material_that_lacks_something_is_refused() -> None:
    lm = toys.lm()
    with pytest.raises(BadInput, match="without unrelated text"):
        METHOD.episodes(lm, TrainingData((DOCUMENT,), ASKED))
    for material, words in (
        (
            TrainingData((DOCUMENT,), (replace(ASKED[0], document="x"),), (OTHER,)),
            "the first question names 'x'",
        ),
        (TrainingData((DOCUMENT,), (), (OTHER,)), "with --questions"),
        (TrainingData((), ASKED, (OTHER,)), "with --documents"),
    ):
        with pytest.raises(BadInput, match=words):
            METHOD.episodes(lm, material)
    with pytest.raises(BadInput, match="learns its own"):
        Camels(steps=replace(STEPS, token_weights=CamelsWeights("x")))
    with pytest.raises(BadInput, match="use 1 or more"):
        Camels(documents=0)
    with pytest.raises(BadInput, match="use answers or places"):
        Camels(aim="text")  # type: ignore[arg-type]
    unsaid = (replace(ASKED[0], answers=("elsewhere",)),)
    with pytest.raises(BadInput, match="word for word"):
        replace(METHOD, aim="places").episodes(lm, TrainingData((DOCUMENT,), unsaid))
    method = replace(METHOD, documents=2, batches=2)
    documents = tuple(Document(str(i), "the cat") for i in range(9))
    questions = tuple(Question(str(i), "who?", ("cat",), str(i)) for i in range(9))
    walks = method.episodes(lm, TrainingData(documents, questions, (OTHER,)))
    assert [[len(batch.documents) for batch in walk] for walk in walks] == [[2, 2], [2, 2]]
    with pytest.warns(UserWarning, match="left out: 6 of 9 questions"):
        (short,) = method.episodes(lm, TrainingData(documents[:3], questions, (OTHER,)))
    assert [len(batch.questions) for batch in short] == [2, 1]


NOISE, THINGS, VALUES = (tuple(f"{letter}{i}" for i in range(12)) for letter in "nev")
MARKS = ("<end>", "Question", "Answer", ":", "REL")


def words() -> Tokenizer:
    """A tokenizer of whole words, for a language in which one word is the answer."""
    backend = Backend(models.WordLevel({w: i for i, w in enumerate((*MARKS, *NOISE, *THINGS, *VALUES))}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"))


def facts(count: int, seed: int) -> TrainingData:
    """Documents of noise around one fact "e REL v", and a question e for each."""
    random = Random(seed)
    documents, questions = [], []
    # No thing comes twice among the documents of one batch.
    things = [thing for _ in range(count) for thing in random.sample(THINGS, len(THINGS))]
    for number in range(count):
        thing, value = things[number], random.choice(VALUES)
        noise = random.choices(NOISE, k=8)
        text = " ".join([*noise[:4], thing, "REL", value, *noise[4:]])
        documents.append(Document(str(number), text))
        questions.append(Question(str(number), thing, (value,), str(number)))
    return TrainingData(tuple(documents), tuple(questions), tuple(Document("", " ".join(NOISE)) for _ in "1"))


def speaker(steps: int) -> LM:
    """A tiny model that has learnt how that language goes, and no fact of it."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 41}
    module = GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    tokenizer, optimizer = words(), torch.optim.AdamW(module.parameters(), 3e-3)
    for step in range(steps):
        made = facts(16, 1000 + step)
        asked = [f"Question: {q.text} Answer: {q.answers[0]}" for q in made.questions]
        for texts in ([document.text for document in made.documents], asked):
            ids = torch.tensor([[0, *tokenizer.encode(text)[0]] for text in texts])
            loss = module(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Causal(module, tokenizer)


def test_the_loss_of_places_is_cross_entropy_by_the_odds_that_weights_stand_for() -> None:
    lm, method = double(), replace(METHOD, aim="places", documents=2, batches=1)
    documents = (Document("a", "the cat sat"), Document("b", "a dog ran"))
    asked = (Question("1", "who sat", ("cat",), "a"), Question("2", "who ran", ("dog", "a dog"), "b"))
    (walk,) = method.episodes(lm, TrainingData(documents, asked))
    network = awake(method, lm)
    expected = []
    for document, answer in zip(documents, ("cat", "dog"), strict=True):
        weights, spans = network.weigh(document.text)
        for (start, end), odds in zip(spans, torch.expm1(3 * weights) ** 2, strict=True):
            inside = document.text.index(answer) <= start < end <= document.text.index(answer) + len(answer)
            expected.append(-torch.log((odds if inside else 1.0) / (1 + odds)))
    assert torch.allclose(method.loss(network, lm, walk), torch.stack(expected).mean())


def test_weights_that_learnt_places_weigh_answers_most_and_steps_begin_from_them() -> None:
    lm = speaker(2)
    places = Camels(steps=STEPS, documents=6, batches=1, aim="places")
    network, _ = train(places, lm, places.episodes(lm, facts(60, 0)), Training(AdamW(1e-2), passes=2))
    unseen, largest = facts(20, 5), 0
    for document, question in zip(unseen.documents, unseen.questions, strict=True):
        weights, spans = network.weigh(document.text)  # type: ignore[operator]
        start, end = spans[int(weights.argmax())]
        largest += document.text[start:end] == question.answers[0]
    assert largest >= 18
    after = replace(places, aim="answers", documents=2)
    walks = after.episodes(lm, facts(2, 0))
    begun, points = train(after, lm, walks, Training(AdamW(0.0)), valid=walks, start=network)
    assert points[0].valid == pytest.approx(float(after.loss(network, lm, walks[0])))
    assert torch.equal(begun.out.weight, network.out.weight)  # type: ignore[union-attr, arg-type]


def test_training_lowers_what_it_minimises() -> None:
    lm = speaker(2)
    method = Camels(steps=replace(STEPS, optimizer=SGD(1.0)), documents=2, batches=1)
    walks = method.episodes(lm, facts(4, 0))
    network, _ = train(method, lm, walks, Training(optimizer=AdamW(1e-2), passes=5))
    before = method.fresh(lm).eval()
    assert sum(method.loss(network, lm, walk) for walk in walks) < sum(
        method.loss(before, lm, walk) for walk in walks
    )


@pytest.mark.slow
def test_the_answer_is_what_weighs_most_and_uniform_pays_more_for_less() -> None:
    """CaMeLS answers better, and drifts less, than uniform weights at whichever rate answers best."""
    lm = speaker(150)
    method = Camels(steps=replace(STEPS, optimizer=SGD(1.0)), documents=6, batches=1, locality=0.1)
    walks = method.episodes(lm, facts(6 * 240, 0))
    network, _ = train(method, lm, walks, Training(optimizer=AdamW(3e-3, weight_decay=0.0)))
    unseen = facts(6 * 10, 5)
    largest = 0
    for document, question in zip(unseen.documents, unseen.questions, strict=True):
        weights, spans = network.weigh(document.text)  # type: ignore[operator]
        start, end = spans[int(weights.argmax())]
        largest += document.text[start:end] == question.answers[0]
    assert largest >= 0.95 * len(unseen.documents)

    def figures(steps: Finetune) -> tuple[float, float]:
        answered, drifted = 0.0, 0.0
        walks = method.episodes(lm, unseen)
        for (batch,) in walks:
            state = steps.init(lm)
            for document in batch.documents:
                (state,) = steps.adapt([state], lm, [Evidence.of(document.text)], Context())
            adapted = lm.overlay(state.delta)
            with torch.no_grad():
                answered += answer_loss(adapted, batch.questions).item() / len(walks)
                drifted += drift(lm, adapted, batch.unrelated.text).item() / len(walks)
        return answered, drifted

    mine = figures(method.weighed(network))
    others = [figures(replace(STEPS, optimizer=SGD(rate))) for rate in (0.03, 0.06, 0.1, 0.2, 0.4)]
    print("CaMeLS", mine, "uniform", others)
    best = min(others)
    assert mine[0] < best[0] and mine[1] < best[1], (mine, others)
