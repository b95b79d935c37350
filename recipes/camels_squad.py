"""CaMeLS on SQuAD's development paragraphs: 48 articles, 8 to learn from, 8 to validate on, 16 to
meta-train on, 16 to test.

MODEL learns the form of questions on the first 8 articles, closed book; learning rates are chosen on
the next 8. CaMeLS's weights are meta-trained beside a model of about a million weights, itself trained
on --text, and then serve MODEL; what weighs a text reads it with MODEL's own body. They begin alike for
all tokens, as published, or with foretelling which tokens answers are made of (`aim=places`). Every method
takes its steps by Adam, as the weights are trained to. Each seed has paragraphs of its own; intervals
are a bootstrap by article over all seeds.

    python recipes/camels_squad.py --model MODEL --squad dev-v1.1.json.xz --text A.jsonl.xz B.jsonl.xz

Go on after an interruption: the same command again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import online_common as common
import torch
from online_common import Subject, World
from squad_figures import MINE, PLACES, PUBLISHED, compared, helped
from torch import Tensor

from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import Camels as CamelsWeights
from uptake.adaptation.token_weights import SalientSpans, Spans, TfIdf, TokenWeights, Uniform
from uptake.adaptation.token_weights.base import covering
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import TrainingData
from uptake.methods.finetune import Finetune
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Questions, read_questions
from uptake.tasks.retune import Retuning
from uptake.text.readers import read
from uptake.text.types import Document, Passage, stable_hash
from uptake.train import Training

UNSAID = Asking(tokens=0)  # rates are chosen by how likely the answers are: nothing need be said
UNRELATED = 12  # texts, half of them for training
RATES = (3e-4, 6e-4, 1e-3, 1.5e-3, 2.5e-3)  # of Adam
PLAIN = (0.06, 0.2)  # of plain SGD; at 0.6 the steps blow up
METHODS = (
    "uniform",
    "uniform, plain descent",
    "uniform + re-tune",
    "salient spans",
    "TF-IDF",
    PUBLISHED,
    PLACES,
    MINE,
    "CaMeLS from places, shuffled",
    "oracle",
)
CURVES = ("uniform", PUBLISHED, MINE)  # whose every rate is reported on the test stream

Row = dict[str, Any]
Choice = tuple[str, float]  # a method and its rate


@dataclass(frozen=True)
class AnswersByParagraph(TokenWeights):
    """The oracle: the answers' tokens, where the paragraph first states them, and no other."""

    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        places = [(passage.text.find(each), len(each)) for each in self.answers.get(passage.document, ())]
        return covering(spans, [(at, at + length) for at, length in places if at >= 0])

    @classmethod
    def by(cls, made: World) -> "AnswersByParagraph":
        """Return the oracle of these questions."""
        answers: dict[str, tuple[str, ...]] = {}
        for question in made.questions:
            answers[question.document] = (*answers.get(question.document, ()), question.answers[0])
        return cls(answers)


@dataclass(frozen=True)
class Shuffled(TokenWeights):
    """The control: the same weights, dealt out to the tokens of a paragraph by chance."""

    weights: TokenWeights

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        found = self.weights.of(passage, spans, before)
        chance = torch.Generator().manual_seed(stable_hash(passage.text) % 2**63)
        return found[torch.randperm(len(found), generator=chance)]


@dataclass(frozen=True)
class Split:
    """Titles of articles, no article in two parts."""

    teaching: tuple[str, ...]
    valid: tuple[str, ...]
    meta: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, found: Questions) -> "Split":
        """Cut in the order of a hash of the title: a sixth, a sixth, a third, a third."""
        titles = sorted({document.group for document in found.documents}, key=stable_hash)
        third, sixth = len(titles) // 3, len(titles) // 6
        parts = titles[:sixth], titles[sixth:third], titles[third : 2 * third], titles[2 * third :]
        return cls(*map(tuple, parts))


def part(
    found: Questions,
    titles: Sequence[str],
    other: Sequence[Document],
    documents: int = 1 << 30,
    questions: int = 1 << 30,
    seed: int = 0,
) -> World:
    """Return so many paragraphs, as many of each article, shuffled, with the first `questions` on each.

    Each seed has the next ones of every article, and begins again where an article ends.
    """
    each = -(-documents // len(titles))
    taken = []
    for title in titles:
        every = [one for one in found.documents if one.group == title]
        # All of them where as many are asked for: no paragraph comes twice.
        taken += [every[(seed * each + at) % len(every)] for at in range(min(each, len(every)))]
    Random(f"stream {seed}").shuffle(taken)
    asked = [
        question
        for document in taken
        for question in islice((one for one in found.questions if one.document == document.id), questions)
    ]
    return World(tuple(taken), tuple(asked), tuple(other))


def subjects(learnt: Mapping[str, Camels], made: World, rehearsal: World, most: int) -> list[Subject]:
    """Return every method at each of its rates, of each at `most` so many."""
    token_weights: dict[str, TokenWeights] = {
        label: CamelsWeights(camels.weights) for label, camels in learnt.items()
    }
    token_weights |= {
        "salient spans": SalientSpans(),
        "TF-IDF": TfIdf(0.25),
        "CaMeLS from places, shuffled": Shuffled(token_weights[MINE]),
        "oracle": AnswersByParagraph.by(made),
    }

    def method(label: str, rate: float) -> Finetune:
        optimizer: Optimizer = SGD(rate) if label.endswith("plain descent") else AdamW(rate, weight_decay=0.0)
        return Finetune(optimizer=optimizer, clip=None, token_weights=token_weights.get(label, Uniform()))

    return [
        Subject(label, rate, method(label, rate), rehearsal.questions[:64] if "re-tune" in label else ())
        for label in METHODS
        for rate in (PLAIN if label.endswith("plain descent") else RATES)[:most]
    ]


def small(shared: Causal, args: argparse.Namespace, texts: Sequence[Document], teaching: World) -> Causal:
    """Return a model of about a million weights that has read the texts, then learnt the form of questions.

    Its embedding begins as the principal components of the shared model's.
    """
    if not (args.work / "reading").exists():
        module = common.small_model(shared.tokenizer, args.width)
        wide: Any = shared.module.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            centred = wide.weight - wide.weight.mean(0)
            directions = torch.linalg.svd(centred, full_matrices=False)[2][: args.width]
            narrow = centred @ directions.T
            module.get_input_embeddings().weight[:, : narrow.shape[1]] = 0.02 * narrow / narrow.std()
        schooled(module, windows(shared, texts, args.tokens))
        common.save(module, shared.tokenizer, args.work / "reading")
    return common.taught(load(str(args.work / "reading")), teaching.questions, (), FORM, args.work / "small")


def windows(lm: Causal, texts: Sequence[Document], most: float) -> Tensor:
    """Return about `most` tokens of the texts in windows [number, 256], both shuffled."""
    ids: list[int] = []
    order = [*texts]
    Random(0).shuffle(order)
    for text in order:
        ids += lm.tokenizer.opened(text.text)
        if len(ids) > most:
            break
    length = min(256, len(ids))
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def schooled(module: Any, rows: Tensor, rate: float = 4e-3) -> None:
    """Train a model on windows of text, once, at a rate that climbs for 30 steps and then falls to zero."""
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.05, betas=(0.9, 0.95))
    batches = rows[: max(1, len(rows) // 16) * 16].split(16)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30) * (1 - step / len(batches))
        loss = module(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"small model, {step}/{len(batches)}: {loss.item():.2f}", flush=True)


FORM = Retuning(optimizer=AdamW(1.5e-4, weight_decay=0.0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--squad", required=True, help="dev-v1.1.json, packed or not")
    parser.add_argument("--text", required=True, nargs="+", help="text that the small model learns from")
    parser.add_argument("--work", type=Path, default=Path("build/camels_squad"))
    parser.add_argument("--out", type=Path, default=Path("recipes/camels_squad.json"))
    parser.add_argument("--documents", type=int, default=64, help="of each stream")
    parser.add_argument("--questions", type=int, default=5, help="most of a paragraph")
    parser.add_argument("--tokens", type=float, default=3e6, help="of --text")
    parser.add_argument("--width", type=int, default=96, help="of the small model")
    parser.add_argument("--reader", help="what the weights are read with, in place of MODEL's body")
    parser.add_argument(
        "--meta-model",
        choices=("small", "large"),
        default="small",
        help="the model that meta-training adapts",
    )
    parser.add_argument("--batches", type=int, default=2, help="of six documents, in an episode")
    parser.add_argument("--passes", type=int, default=1, help="over the meta-training paragraphs")
    parser.add_argument("--places-passes", type=int, default=4, help="where answers stand is learnt")
    parser.add_argument("--places-rate", type=float, default=2e-4, help="learning rate of that")
    parser.add_argument("--published-passes", type=int, default=4, help="from weights that are all alike")
    parser.add_argument(
        "--save-every", type=int, default=32, help="steps between evaluations on validation text"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="of the steps meta-training goes through")
    parser.add_argument("--outer", type=float, default=3e-4, help="learning rate of the meta-training")
    parser.add_argument("--most-rates", type=int, default=9, help="of each method")
    parser.add_argument("--seeds", type=int, default=3, help="test streams, each of other paragraphs")
    parser.add_argument("--trainings", type=int, default=1, help="of the weights, in turns for the streams")
    parser.add_argument("--methods", nargs="+", help="these alone, such as uniform CaMeLS")
    parser.add_argument("--adapt", nargs="+", choices=("small", "large"), default=("large",))
    parser.add_argument("--until", choices=("trained", "valid", "test"), default="test", help="stop there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = [text for path in args.text for text in read(path)]
    other = [replace(text, text=text.text[:1000]) for text in texts[:UNRELATED]]
    other, unseen = other[: UNRELATED // 2], other[UNRELATED // 2 :]
    found = read_questions(args.squad)
    titles = Split.of(found)
    teaching = part(found, titles.teaching, other)
    shared = load(args.model)
    lms = {
        "small": small(shared, args, texts[UNRELATED:], teaching),
        "large": common.taught(shared, teaching.questions, (), FORM, args.work / "large"),
    }
    meta, valid = part(found, titles.meta, other), part(found, titles.valid, unseen, 48)
    every = [learnt(args, lms[args.meta_model], meta, valid, seed) for seed in range(args.trainings)]
    if args.until == "trained":
        return
    journal = RecordFile(args.work / "rows.jsonl", "camels squad recipe 3")

    def run(name: str, which: str, asking: Asking, seed: int, rates: set[Choice] | None) -> list[Row]:
        made = part(found, getattr(titles, which), unseen, args.documents, args.questions, seed)
        some = [
            each
            for each in subjects(every[seed % args.trainings], made, teaching, args.most_rates)
            if each.label in (args.methods or [each.label])
            and (rates is None or (each.label, each.rate) in rates)
        ]
        rows = common.run(lms[name], made, some, journal, f"{name} {which}", seed=seed, asking=asking)
        common.show(f"{name}: {which}, seed {seed}", rows)
        return rows

    rows: list[Row] = []
    gaps: list[Row] = []
    for name in args.adapt:
        swept = run(name, "valid", UNSAID, 0, None)
        rows += swept
        best = {label: row["rate"] for label, row in common.chosen(swept, float("inf")).items()}
        gaps += compared(f"{name} valid", [swept], best)
        if args.until == "valid":
            continue
        curve = {(row["way"], row["rate"]) for row in swept if row["way"] in CURVES and helped(row)}
        told = [run(name, "test", common.ASKING, seed, {*best.items(), *curve}) for seed in range(args.seeds)]
        gaps += compared(f"{name} test", told, best)
        rows += [row for some in told for row in some]
    args.out.write_text(
        json.dumps({"rows": common.kept(rows, "at"), "differences": gaps}, indent=1) + "\n", encoding="utf8"
    )


def learnt(
    args: argparse.Namespace, lm: Causal, meta: World, valid: World, seed: int
) -> Mapping[str, Camels]:
    """Return CaMeLS with weights learnt beside the model, by method.

    As published they begin alike for all tokens, which wants the longer training.
    """
    steps = Finetune(optimizer=AdamW(args.rate, weight_decay=0.0), clip=None)
    method = Camels(steps=steps, batches=args.batches, reader=args.reader or args.model)
    materials = [TrainingData(each.documents, each.questions, each.unrelated) for each in (meta, valid)]

    def run(name: str, method: Camels, rate: float, passes: int, start: Camels | None = None) -> Camels:
        optimizer = AdamW(rate, weight_decay=0.0)
        training = Training(
            optimizer, passes=passes, save_every=args.save_every, warm_up_and_decay=True, seed=seed
        )
        return common.learn(method, lm, *materials, training, args.work, name, start)

    places = run("places", replace(method, aim="places"), args.places_rate, args.places_passes)
    return {
        PLACES: places,
        MINE: run("from-places", method, args.outer / 3, args.passes, places),
        PUBLISHED: run("published", method, args.outer, args.published_passes),
    }


if __name__ == "__main__":
    main()
