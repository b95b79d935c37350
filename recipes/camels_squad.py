"""CaMeLS on SQuAD's development paragraphs: 48 articles, 8 to learn from, 8 to validate on, 16 to
meta-train on, 16 to test.

MODEL learns the form of questions on the first 8 articles, closed book; learning rates are chosen on
the next 8. CaMeLS's weights are meta-trained beside a model of about a million weights, itself trained
on --text, and then serve MODEL. The order of the stream and the meta-training have a seed of their own;
intervals are a bootstrap by article over all seeds.

    python recipes/camels_squad.py --model MODEL --squad dev-v1.1.json.xz --text train.jsonl.xz

Go on after an interruption: the same command again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import online_common as common
import torch
from online_common import Subject, World
from torch import Tensor

from uptake.causal import Causal, load
from uptake.journal import Lines
from uptake.learned import Material
from uptake.methods.camels import Camels
from uptake.methods.finetune import Finetune
from uptake.readers import read
from uptake.rules import SGD, AdamW, Rule
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Questions, read_questions
from uptake.tasks.retune import Retuning
from uptake.text import Document, Passage, stable_hash
from uptake.token_weights import SalientSpans, Spans, TfIdf, TokenWeights, Uniform
from uptake.token_weights.base import covering
from uptake.train import Training

UNSAID = Asking(tokens=0)  # rates are chosen by how likely the answers are: nothing need be said
UNRELATED = 12  # texts, half of them for training
# Learning rates of each way: weights below one want larger steps, few tokens smaller ones.
SWEEP: Mapping[str, tuple[float, ...]] = {
    "uniform": (0.06, 0.2, 0.6),
    "uniform, Adam": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "uniform + re-tune": (0.06, 0.2, 0.6),
    "salient spans": (0.018, 0.06, 0.18),
    "TF-IDF": (0.018, 0.06, 0.18),
    "CaMeLS, untrained": (0.24, 0.8),
    "CaMeLS": (0.24, 0.4, 0.8),
    "CaMeLS, Adam": (1e-4, 3e-4, 1e-3, 3e-3),
    "oracle": (0.018, 0.06, 0.18),
    "TF-IDF, Adam": (3e-4, 1e-3, 3e-3),
    "oracle, Adam": (3e-4, 1e-3, 3e-3),
}
CURVES = ("uniform", "uniform, Adam")  # whose every rate is told of on the test stream

Row = dict[str, Any]
Choice = tuple[str, float]  # a way and its rate


@dataclass(frozen=True)
class Told(TokenWeights):
    """The oracle: the answers' tokens, where the paragraph first states them, and no other."""

    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        places = [(passage.text.find(each), len(each)) for each in self.answers.get(passage.document, ())]
        return covering(spans, [(at, at + length) for at, length in places if at >= 0])

    @classmethod
    def by(cls, made: World) -> "Told":
        """Return the oracle of these questions."""
        answers: dict[str, tuple[str, ...]] = {}
        for question in made.questions:
            answers[question.document] = (*answers.get(question.document, ()), question.answers[0])
        return cls(answers)


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
    """Return so many paragraphs, as many of each article, shuffled, with the first `questions` on each."""
    each = -(-documents // len(titles))
    taken = [
        document
        for title in titles
        for document in islice((one for one in found.documents if one.group == title), each)
    ]
    Random(f"stream {seed}").shuffle(taken)
    asked = [
        question
        for document in taken
        for question in islice((one for one in found.questions if one.document == document.id), questions)
    ]
    return World(tuple(taken), tuple(asked), tuple(other))


def subjects(camels: Camels, made: World, rehearsal: World, most: int) -> list[Subject]:
    """Return every way at each of its rates, of each at `most` so many."""

    def method(way: str, rate: float) -> Finetune | Camels:
        rule: Rule = AdamW(rate, weight_decay=0.0) if way.endswith("Adam") else SGD(rate)
        if way.startswith("CaMeLS"):
            weights = "untrained" if way.endswith("untrained") else camels.weights
            return replace(camels, weights=weights, steps=Finetune(rule=rule, clip=None))
        token_weights = {"salient spans": SalientSpans(), "TF-IDF": TfIdf(0.25), "oracle": Told.by(made)}
        return Finetune(
            rule=rule, clip=None, token_weights=token_weights.get(way.removesuffix(", Adam"), Uniform())
        )

    return [
        Subject(way, rate, method(way, rate), rehearsal.questions[:64] if "re-tune" in way else ())
        for way, rates in SWEEP.items()
        for rate in rates[:most]
    ]


def small(shared: Causal, width: int, texts: Sequence[Document], teaching: World, work: Path) -> Causal:
    """Return a model of about a million weights that has read the texts, then learnt the form of questions.

    Its embedding begins as the principal components of the shared model's, without which so few texts
    teach it little.
    """
    module = common.small_model(shared.tokenizer, width)
    wide: Any = shared.module.get_input_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        centred = wide.weight - wide.weight.mean(0)
        directions = torch.linalg.svd(centred, full_matrices=False)[2][:width]
        narrow = centred @ directions.T
        module.get_input_embeddings().weight[:, : narrow.shape[1]] = 0.02 * narrow / narrow.std()
    untaught = Causal(module, shared.tokenizer, "small")
    language = Retuning(rule=AdamW(2e-3, weight_decay=0.01), batch=8)
    reading = common.taught(untaught, (), texts, language, work / "reading")
    return common.taught(reading, teaching.questions, (), FORM, work / "small")


FORM = Retuning(rule=AdamW(1.5e-4, weight_decay=0.0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--squad", required=True, help="dev-v1.1.json, packed or not")
    parser.add_argument("--text", required=True, help="text that the small model learns from")
    parser.add_argument("--work", type=Path, default=Path("build/camels_squad"))
    parser.add_argument("--out", type=Path, default=Path("recipes/camels_squad.json"))
    parser.add_argument("--documents", type=int, default=64, help="of each stream")
    parser.add_argument("--questions", type=int, default=5, help="most of a paragraph")
    parser.add_argument("--texts", type=int, default=12, help="documents of --text")
    parser.add_argument("--width", type=int, default=96, help="of the small model")
    parser.add_argument("--batches", type=int, default=2, help="of six documents, in an episode")
    parser.add_argument("--passes", type=int, default=1, help="over the meta-training paragraphs")
    parser.add_argument("--rate", type=float, default=0.8, help="of the steps meta-training goes through")
    parser.add_argument("--adam", type=float, help="meta-train through Adam at this rate instead")
    parser.add_argument("--outer", type=float, default=2e-4, help="learning rate of the meta-training")
    parser.add_argument("--most-rates", type=int, default=9, help="of each way")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="these alone, such as uniform CaMeLS")
    parser.add_argument("--adapt", nargs="+", choices=("small", "large"), default=("large",))
    parser.add_argument("--until", choices=("trained", "valid", "test"), default="test", help="stop there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = list(islice(read(args.text), args.texts + UNRELATED))
    other = [replace(text, text=text.text[:1000]) for text in texts[:UNRELATED]]
    other, unseen = other[: UNRELATED // 2], other[UNRELATED // 2 :]
    found = read_questions(args.squad)
    titles = Split.of(found)
    teaching = part(found, titles.teaching, other)
    shared = load(args.model)
    lms = {
        "small": small(shared, args.width, texts[UNRELATED:], teaching, args.work),
        "large": common.taught(shared, teaching.questions, (), FORM, args.work / "large"),
    }
    every = [
        trained(
            args, lms["small"], part(found, titles.meta, other), part(found, titles.valid, unseen, 48), seed
        )
        for seed in range(args.seeds)
    ]
    if args.until == "trained":
        return
    journal = Lines(args.work / "rows.jsonl", "camels squad recipe 2")

    def run(name: str, which: str, asking: Asking, seed: int, rates: set[Choice] | None) -> list[Row]:
        made = part(found, getattr(titles, which), unseen, args.documents, args.questions, seed)
        some = [
            each
            for each in subjects(every[seed], made, teaching, args.most_rates)
            if each.way in (args.ways or [each.way]) and (rates is None or (each.way, each.rate) in rates)
        ]
        rows = common.run(lms[name], made, some, journal, f"{name} {which}", seed=seed, asking=asking)
        common.show(f"{name}: {which}, seed {seed}", rows)
        return rows

    rows: list[Row] = []
    gaps: list[Row] = []
    for name in args.adapt:
        swept = run(name, "valid", UNSAID, 0, None)
        rows += swept
        best = {way: row["rate"] for way, row in common.chosen(swept, float("inf")).items()}
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


def trained(args: argparse.Namespace, lm: Causal, meta: World, valid: World, seed: int) -> Camels:
    """Return CaMeLS with weights meta-trained beside the model."""
    inner = AdamW(args.adam, weight_decay=0.0) if args.adam else SGD(args.rate)
    method = Camels(steps=Finetune(rule=inner, clip=None), batches=args.batches)
    rule = AdamW(args.outer, weight_decay=0.0)
    training = Training(rule, passes=args.passes, save_every=16, seed=seed)
    materials = [Material(each.documents, each.questions, each.unrelated) for each in (meta, valid)]
    return common.learn(method, lm, *materials, training, args.work)


def pooled(told: Sequence[Sequence[Row]], way: str, rate: float) -> Row:
    """Return the answers of all seeds, as of one row."""
    rows = [row for some in told for row in some if (row["way"], row["rate"]) == (way, rate)]
    kl = sum(row["kl"] for row in rows) / len(rows)
    return {"kl": kl, "rate": rate, "answers": [answer for row in rows for answer in row["answers"]]}


def at_kl(curves: Sequence[Sequence[Row]], way: str, kl: float) -> Row | None:
    """Return a way's answers between the two rates on both sides of a KL, straight lines between them.

    None where it has no rate, known for every seed, on one of the sides.
    """
    rates = set.intersection(*({row["rate"] for row in some if row["way"] == way} for some in curves))
    curve = sorted((pooled(curves, way, rate) for rate in rates), key=lambda row: row["kl"])
    for low, high in pairwise(curve):
        if low["kl"] <= kl <= high["kl"]:
            share = (kl - low["kl"]) / (high["kl"] - low["kl"])
            both = zip(low["answers"], high["answers"], strict=True)
            answers = [(one[0], (1 - share) * one[1] + share * two[1], one[2]) for one, two in both]
            return {"kl": kl, "rate": (1 - share) * low["rate"] + share * high["rate"], "answers": answers}
    return None


def helped(row: Row) -> bool:
    """Whether the answers are likelier than without an update."""
    return row["nll"] is not None and bool(row["nll"] < row["base"]["nll"])


def compared(title: str, told: Sequence[Sequence[Row]], best: Mapping[str, float]) -> list[Row]:
    """Return how CaMeLS compares with each way at its best rate, and at the KL that CaMeLS has at its own."""
    of = {way: pooled(told, way, rate) for way, rate in best.items()}
    useful = [[row for row in some if helped(row)] for some in told]
    out = []
    for mine in ("CaMeLS", "CaMeLS, Adam"):
        if mine in of:
            out += compare(f"{title}: each way at its best rate", mine, of)
            same = {way: at_kl(useful, way, of[mine]["kl"]) for way in best if way != mine}
            there = {way: row for way, row in same.items() if row}
            out += compare(f"{title}: at the KL of {mine}", mine, {mine: of[mine], **there})
    return out


def compare(title: str, mine: str, of: Mapping[str, Row]) -> list[Row]:
    """Print and return how much more NLL a token a way has than each other one, with its interval."""
    print(f"\n{title}")
    out = []
    for way, row in of.items():
        if way == mine:
            continue
        gap, interval = common.difference(of[mine], row)
        told = "[{:+.4f}, {:+.4f}]".format(*interval) if interval else ""
        print(f"{mine} less {way} (rate {row['rate']:g}, KL {row['kl']:.3f}): NLL {gap:+.4f} {told} a token")
        figures = {"rate": row["rate"], "kl": row["kl"], "nll": gap, "ci": interval and [*interval]}
        out.append({"compared": title, "way": mine, "less": way, **figures})
    return out


if __name__ == "__main__":
    main()
