"""What recipes for learning online share: worlds, small models that can be asked, and runs over a stream."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from uptake.adaptation.inner_loop import token_loss
from uptake.adaptation.token_weights import Spans, TokenWeights
from uptake.adaptation.token_weights.base import covering
from uptake.api import stream
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import MethodSpec
from uptake.report import metrics
from uptake.report.results import BASE
from uptake.report.streamed.rows import Answered
from uptake.report.summary import summary
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.tasks.retune import Retuning, retune, save_retuned
from uptake.tasks.worlds import Split, World, make_world
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document, Passage
from uptake.train import Point, Training, train

ASKING = Asking(tokens=6)


@dataclass(frozen=True)
class Names:
    """Names of two words, a token each, so that a model of a million weights can tell them apart."""

    words: tuple[str, ...]

    @classmethod
    def fitting(cls, tokenizer: Tokenizer) -> "Names":
        """Return those of a tokenizer of whole words where it is one, else those of a byte-level one."""
        words = cls.syllables()
        return (
            words if all(len(tokenizer.encode(word)[0]) == 1 for word in words.words) else cls.of(tokenizer)
        )

    @classmethod
    def of(cls, tokenizer: Tokenizer, count: int = 128) -> "Names":
        """Return names for a byte-level tokenizer."""
        vocabulary = tokenizer.inner.get_vocab()
        pieces = sorted(piece[1:] for piece in vocabulary if piece[:1] == "Ġ")
        words = [word for word in pieces if word.isascii() and word.istitle() and len(word) > 2]
        return cls(tuple(Random(0).sample(words, count)))

    @classmethod
    def syllables(cls, count: int = 128) -> "Names":
        """Return names for a tokenizer of whole words."""
        parts = ("ba", "den", "fo", "gar", "ki", "lun", "mo", "nes", "ral", "su", "ti", "vor")
        words = [(one + two).capitalize() for one in parts for two in parts]
        return cls(tuple(words[:count]))

    def pairs(self, number: int, split: Split, seed: int) -> list[str]:
        """Return so many different names; those of the training split never occur in another."""
        random, n = Random(f"{split} {seed}"), len(self.words)
        found: dict[str, None] = {}
        while len(found) < number:
            first, second = random.randrange(n), random.randrange(n)
            # Two pairs in eight are for testing, one is for validation, the others are for training.
            if {0: "test", 1: "valid", 2: "test"}.get((first * 31 + second * 17) % 8, "train") == split:
                found[f"{self.words[first]} {self.words[second]}"] = None
        return list(found)


def world(
    names: Names, documents: int, distractors: int, split: Split, seed: int = 0, facts: int = 1
) -> World:
    """Return a made-up world whose people bear these names; nothing in it changes."""
    made = make_world(documents, facts, distractors, updates=0.0, unrelated=10, split=split, seed=seed)
    people = [_person(each) for each in made.questions[::facts]]
    called = dict(zip(people, names.pairs(documents, split, seed), strict=True))
    by_document = {question.document: _person(question) for question in made.questions}
    return World(
        tuple(
            replace(each, text=each.text.replace(by_document[each.id], called[by_document[each.id]]))
            for each in made.documents
        ),
        tuple(
            replace(each, text=each.text.replace(_person(each), called[_person(each)]))
            for each in made.questions
        ),
        made.unrelated,
    )


def _person(question: Question) -> str:
    """Return the two capitalised words in a row that a question of a made-up world asks about."""
    words = question.text.rstrip("?").split()
    return next(f"{one} {two}" for one, two in pairwise(words[1:]) if one.istitle() and two.istitle())


@dataclass(frozen=True)
class StatedAnswers(TokenWeights):
    """The oracle: the answers' tokens, where the text states them, and no other."""

    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        marked = []
        for sentence in re.finditer(r"[^.]+", passage.text):
            # A name is two words with a capital in a row; distractors mention values, but no name.
            named = any(one.istitle() and two.istitle() for one, two in pairwise(sentence[0].split()))
            for answer in self.answers[passage.document] if named else ():
                if (at := passage.text.find(answer, *sentence.span())) >= 0:
                    marked.append((at, at + len(answer)))
        return covering(spans, marked)


def toy_tokenizer(names: Names) -> Tokenizer:
    """Return a tokenizer for which every word of the worlds is one token."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    made = [world(names, 300, 4, "train", seed) for seed in range(3)]
    texts = [each.text for one in made for each in (*one.documents, *one.questions, *one.unrelated)]
    values = [answer for one in made for question in one.questions for answer in question.answers]
    texts += [*values, *names.words, ASKING.template]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate(("<end>", "<unknown>", *words))}
    backend = Backend(models.WordLevel(vocabulary, "<unknown>"))
    backend.pre_tokenizer = split
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>"))


def small_model(tokenizer: Tokenizer, width: int = 96, layers: int = 3, heads: int = 4) -> LlamaForCausalLM:
    """Return an untrained model; with 8,192 tokens it has about a million weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.opening,
            eos_token_id=tokenizer.end,
        )
    )


def save(module: Any, tokenizer: Tokenizer, folder: Path) -> None:
    module.generation_config = GenerationConfig()  # an LM has put its own aside
    module.save_pretrained(folder)
    tokenizer.inner.save_pretrained(folder)


def taught(
    lm: Causal, questions: Sequence[Question], documents: Sequence[Document], retuning: Retuning, folder: Path
) -> Causal:
    """Return the model after it has learnt answers and documents, from its folder if it is there."""
    if not folder.exists():
        delta = retune(lm, questions, ASKING, retuning, documents)
        save_retuned(lm, delta, folder)
    return load(str(folder))


def learn(
    method: Camels,
    lm: Causal,
    material: TrainingData,
    valid: TrainingData,
    training: Training,
    work: Path,
    name: str = "weights",
    start: Camels | None = None,
) -> Camels:
    """Return CaMeLS with weights trained beside this model, from their file where there is one.

    They begin where those of `start` ended.
    """
    path = work / f"{name}-{training.seed}.safetensors"
    if not path.exists():

        def say(point: Point) -> None:
            told = f"{name}, {point.step}/{point.total}: {point.loss:.3f}"
            print(f"{told}, on validation {point.valid:.3f}", flush=True)

        episodes, looks = method.episodes(lm, material), method.episodes(lm, valid)
        work.mkdir(parents=True, exist_ok=True)
        begun = start and start.network(lm)
        file = work / f"{name}-{training.seed}.training"
        network, _ = train(method, lm, episodes, training, file, say, looks, begun)
        method.save(network, lm, path)
    return replace(method, weights=str(path))


Rows = tuple[Tensor, Tensor]  # ids [batch, time], and which of them are learnt [batch, time - 1]


def rows(lm: Causal, texts: Sequence[str], answers: Sequence[str], most: int = 512) -> Rows:
    """Return padded rows: each text is learnt, or, where it has an answer, that and the end alone.

    `most` bounds the tokens of a text.
    """
    opening, made, learnt = lm.tokenizer.opening, [], []
    for number, text in enumerate(texts):
        ids = lm.tokenizer.encode(text)[0][:most]
        answer = [*lm.tokenizer.encode(answers[number])[0], opening] if answers else []
        made.append([opening, *ids, *answer])
        learnt.append([not answers] * len(ids) + [True] * len(answer))
    longest = max(map(len, made))
    return (
        torch.tensor([[*each, *[0] * (longest - len(each))] for each in made]),
        torch.tensor([[*each, *[False] * (longest - 1 - len(each))] for each in learnt]),
    )


def nll(lm: Any, batch: Rows) -> Tensor:
    ids, learnt = batch
    log_probs, _ = lm.step(ids[:, :-1])
    return token_loss(log_probs[learnt], ids[:, 1:][learnt])


@dataclass(frozen=True)
class Subject:
    """One method at one learning rate, as tables name it; `rehearsal` is trained on before the questions."""

    label: str
    rate: float
    method: Any
    rehearsal: tuple[Question, ...] = ()


def run(
    lm: Causal,
    made: World,
    subjects: Sequence[Subject],
    journal: RecordFile,
    key: str,
    checkpoints: Sequence[int] = (),
    seed: int = 0,
    asking: Asking = ASKING,
) -> list[dict[str, Any]]:
    """Run each subject over the stream once, or read what an earlier run wrote; return their figures."""
    done = {row["key"]: row for row in journal.start(dict)}
    out = []
    for subject in subjects:
        name = f"{key} {subject.label} {subject.rate:g} {seed}"
        if name not in done:
            started = time.process_time()
            results = stream(
                lm,
                made.documents,
                made.questions,
                {subject.label: MethodSpec(subject.method)},
                unrelated=made.unrelated,
                checkpoints=checkpoints,
                asking=asking,
                rehearsal=subject.rehearsal,
                seed=seed,
            )
            told = summary(results)
            figures = told["methods"][subject.label]
            for part in (figures, *figures["at"]):
                part.pop("vs_base", None)
            answers = results.of(Answered)
            last = [row for row in answers if row.method != BASE and row.taken == len(made.documents)]
            nats = [(row.group, row.nats, row.tokens) for row in last]
            before = {row.question: row.exact for row in answers if row.method == BASE}
            done[name] = {
                "key": name,
                "stream": key,
                "way": subject.label,
                "rate": subject.rate,
                "seed": seed,
                "base": told["base"],
                **{
                    field: figures.get(field) for field in ("nll", "f1", "exact", "kl", "adapt_seconds", "at")
                },
                "cpu_seconds": time.process_time() - started,
                "answers": nats,
                # Of each question, before and after, whether it is answered right.
                "right": [(before[row.question], row.exact) for row in last],
            }
            journal.keep(done[name])
        out.append(done[name])
    return out


def chosen(rows: Sequence[dict[str, Any]], most_kl: float) -> dict[str, dict[str, Any]]:
    """Return each method's best row: most right answers within the KL, of equals the likeliest."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if (row["kl"] or 0.0) > most_kl or row["nll"] is None:
            continue
        held = best.get(row["way"])
        if held is None or (row["exact"], -row["nll"]) > (held["exact"], -held["nll"]):
            best[row["way"]] = row
    return best


def difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, Sequence[float] | None]:
    """Return how much more NLL a token one row has than another, and its 95 % interval by group."""
    gap = [one[1] - two[1] for one, two in zip(mine["answers"], other["answers"], strict=True)]
    tokens = [row[2] for row in mine["answers"]]
    groups = [row[0] for row in mine["answers"]]
    return sum(gap) / sum(tokens), metrics.ratio_interval(gap, tokens, groups)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows, the base's own before them."""
    table = Table("method", "rate", "exact %", "F1 %", "NLL", "KL", "CPU s", title=title)
    before = (
        {"way": "no update", "rate": 0.0, "kl": 0.0, "adapt_seconds": 0.0, **rows[0]["base"]} if rows else {}
    )
    for row in [before, *rows] if rows else []:
        figures = (100 * row["exact"], 100 * row["f1"], row["nll"], row["kl"], row["adapt_seconds"])
        told = ("-" if each is None else f"{each:.3f}" for each in figures)
        table.add_row(row["way"], f"{row['rate']:.3g}", *told)
    Console().print(table)


def kept(rows: Sequence[Mapping[str, Any]], *less: str) -> list[dict[str, Any]]:
    """Return the figures of rows, less those named; the answers themselves stay in the work folder."""
    without = ("answers", "right", *less)
    return [{name: value for name, value in row.items() if name not in without} for row in rows]


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figures of rows."""
    path.write_text(json.dumps(kept(rows), indent=1) + "\n", encoding="utf8")
