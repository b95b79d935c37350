"""RETRO trained on questions: the answers alone are learnt, and they come from what is found, if it tells."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from test_retro_method import Source, evidence, untrained
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.retro import QuestionEpisode, Retro
from uptake.tasks.asking import Asking, ask
from uptake.tasks.questions import Question
from uptake.text.chunks.view import listed
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Document, Found
from uptake.train import Training, train

VALUES = "bdgkmprt"
CORPUS = [Document("a", "the cat sat on the mat"), Document("b", "a dog sat on a hill, on and on")]
QUESTIONS = (
    Question("1", "where did the cat sit?", ("on the mat", "there")),
    Question("2", "the dog?", ("on a hill",)),
    Question("3", "who?", ("me",)),
)


def world(count: int, seed: int) -> tuple[list[Document], list[Question]]:
    """Names that mean a letter each, which nothing but a document of one line tells."""
    chosen = random.Random(seed)
    names = sorted({"".join(chosen.sample("aeiouyhjlnsvwxz", 3)) for _ in range(2 * count)})[:count]
    chosen.shuffle(names)
    means = {name: chosen.choice(VALUES) for name in names}
    documents = [Document(name, f"{name} {value}") for name, value in means.items()]
    return documents, [Question(name, name, (value,)) for name, value in means.items()]


@pytest.mark.long
def test_answers_come_from_the_right_text_and_from_no_other() -> None:
    (taught, asked), (held, unseen) = world(320, 0), world(40, 1)
    view = listed([*taught, *held], toys.lm().tokenizer, 6)
    source: Any = Source([])
    source.bound = view.bound("", "", Overlap(""), LeakFilter.off())
    lm = toys.lm()
    shape: dict[str, Any] = {"chunk": 24, "episode_tokens": 40, "windows": 8, "neighbours": 1}
    method = Retro(base="trained", **shape)
    material = TrainingData((), tuple(asked), sources=lambda document: source)
    training = Training(AdamW(1e-2, weight_decay=0.0), passes=4, warm_up_and_decay=True, save_every=40)
    network, points = train(method, lm, method.episodes(lm, material), training)
    assert points[-1].loss < 0.2 * points[0].loss

    def right(**settings: Any) -> float:
        way = replace(method.with_network(network), **settings)  # type: ignore[type-var]
        (state,) = way.adapt([way.init(lm)], lm, [Evidence(Found(), "", source)], Context())  # type: ignore[attr-defined]
        found = ask(way.adapted([state], lm), unseen, Asking(tokens=3, align=24))  # type: ignore[attr-defined]
        return sum(answer.exact for answer in found) / len(found)

    assert right() > 0.9
    assert right(draw="random") < 0.35 and right(neighbours=0) < 0.35


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_the_loss_is_that_of_the_answers_tokens_beside_what_is_found_with_the_question(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = untrained(lm, chunk=8, episode_tokens=60, windows=2)
    source: Any = Source(CORPUS, chunk=4)
    asked_of: list[tuple[str, str]] = []

    def sources(document: Document) -> Any:
        asked_of.append((document.id, document.text))
        return source

    episodes = method.episodes(lm, TrainingData(tuple(CORPUS), QUESTIONS, sources=sources))
    assert asked_of == [("", question.text) for question in QUESTIONS], "and no document is a text to learn"
    (state,) = method.adapt([method.init(lm)], lm, [evidence(CORPUS)], Context())
    state = replace(state, chunks=source.bound)
    model = method.adapted([state], lm)
    # Naively: every question by itself, aligned by hand, one token after another.
    expected: dict[str, Tensor] = {}
    for question in QUESTIONS:
        prompt = lm.tokenizer.encode(f"Question: {question.text}\nAnswer:")[0]
        answer = lm.tokenizer.encode(f" {question.answers[0]}\n")[0]
        ids = [0] * (8 - len(prompt) % 8 or 8) + prompt
        assert len(ids) % 8 == 0 and ids[0] == lm.tokenizer.opening
        nats = []
        for token in answer:
            nats.append(-model.step(torch.tensor([ids]))[0][0, -1, token])
            ids.append(token)
        expected[question.answers[0]] = torch.stack(nats)
    assert method.trained is not None
    seen = 0
    for episode in episodes:
        assert isinstance(episode, QuestionEpisode)
        told = []
        for row, length, asked in zip(*episode.windows[:2], episode.asked, strict=True):
            text = lm.tokenizer.decode(row[asked:length].tolist()).strip()
            told.append(expected[text])
            seen += 1
        loss = method.loss(method.trained, lm, episode)
        assert torch.allclose(loss, torch.cat(told).mean(), atol=1e-10)
        # What is asked is not learnt: another question's tokens change no target, but what is read.
        value, gradients = method.gradients(method.trained.requires_grad_(), lm, episode)
        assert value == pytest.approx(loss.item()) and any(g is not None and g.any() for g in gradients)
    assert seen == len(QUESTIONS)


def test_asking_so_that_a_question_ends_where_a_chunk_does() -> None:
    lm = toys.lm(window=128)
    for align in (1, 7, 64):
        asking = Asking(align=align, tokens=4)
        for question in QUESTIONS:
            placed = asking.aligned_prompt(question, lm.tokenizer)
            assert placed.endswith(asking.prompt(question))
            assert align == 1 or (1 + len(lm.tokenizer.encode(placed)[0])) % align == 0
            (answer,) = ask(lm, [question], asking)
            bare = Asking(template=placed.replace(question.text, "{question}"), tokens=4)
            assert answer == ask(lm, [question], bare)[0]
    assert Asking().aligned_prompt(QUESTIONS[0], lm.tokenizer) == Asking().prompt(QUESTIONS[0])
    with pytest.raises(BadInput, match="align 0"):
        Asking(align=0)


def test_a_question_too_long_loses_its_first_chunks_and_never_its_answer() -> None:
    lm = toys.lm()
    method = Retro(chunk=8, episode_tokens=40, windows=1, neighbours=0, base="trained")
    for answer, said in (("because", "Answer: because\n"), ("because " * 20, "Answer: because because")):
        (episode,) = method.episodes(lm, TrainingData((), (Question("1", "why? " * 30, (answer,)),)))
        assert isinstance(episode, QuestionEpisode)
        (row,), (asked,) = episode.windows.ids.tolist(), episode.asked.tolist()
        assert len(row) <= 41 and asked % 8 == 0 and asked >= 8
        assert said in lm.tokenizer.decode(row)
        assert lm.tokenizer.decode(row[asked:]).startswith(" because")


def test_questions_want_a_store_too() -> None:
    with pytest.raises(BadInput, match="name one with --store"):
        Retro(chunk=8, episode_tokens=40).episodes(toys.lm(), TrainingData((), QUESTIONS))
