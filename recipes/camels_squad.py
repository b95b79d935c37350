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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
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


def subjects(camels: Camels, made: World, rates: Sequence[float], rehearsal: World) -> list[Subject]:
    """Return every way at every rate; weights below one want larger steps, few tokens smaller ones."""
    out = []
    for rate in rates:

        def steps(rule: Rule, weights: TokenWeights | None = None) -> Finetune:
            return Finetune(rule=rule, clip=None, token_weights=weights or Uniform())

        mine = replace(camels, steps=steps(SGD(4 * rate)))
        adam, few = 5e-4 * rate, 0.3 * rate
        out += [
            Subject("uniform", rate, steps(SGD(rate))),
            Subject("uniform, Adam", adam, steps(AdamW(adam, weight_decay=0.0))),
            Subject("uniform + re-tune", rate, steps(SGD(rate)), rehearsal.questions[:64]),
            Subject("salient spans", few, steps(SGD(few), SalientSpans())),
            Subject("TF-IDF", few, steps(SGD(few), TfIdf(0.25))),
            Subject("CaMeLS, untrained", 4 * rate, replace(mine, weights="untrained")),
            Subject("CaMeLS", 4 * rate, mine),
            Subject("oracle", few, steps(SGD(few), Told.by(made))),
        ]
    return out


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
    parser.add_argument("--rate", type=float, default=0.4, help="of the steps meta-training goes through")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.06, 0.2, 0.6))
    parser.add_argument("--most-kl", type=float, default=0.3, help="nats a token of unrelated text")
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

    def run(name: str, which: str, chosen: Any, seed: int) -> list[dict[str, Any]]:
        made = part(found, getattr(titles, which), unseen, args.documents, args.questions, seed)
        some = [
            each
            for each in subjects(every[seed], made, args.rates, teaching)
            if each.way in (args.ways or [each.way])
            and (each.way, each.rate) in (chosen or [(each.way, each.rate)])
        ]
        asking = common.ASKING if chosen else UNSAID
        rows = common.run(lms[name], made, some, journal, f"{name} {which}", seed=seed, asking=asking)
        common.show(f"{name}: {which}, seed {seed}", rows)
        return rows

    rows = []
    for name in args.adapt:
        swept = run(name, "valid", None, 0)
        rows += swept
        if args.until == "valid":
            continue
        limits = {"best": float("inf"), f"best within KL {args.most_kl}": args.most_kl}
        best = {limit: common.chosen(swept, most) for limit, most in limits.items()}
        taken = {(way, row["rate"]) for of in best.values() for way, row in of.items()}
        told = [run(name, "test", taken, seed) for seed in range(args.seeds)]
        rows += [row for some in told for row in some]
        for limit, of in best.items():
            compare(f"{name}, {limit}", {way: _pooled(told, way, row["rate"]) for way, row in of.items()})
    common.write(rows, args.out)


def trained(args: argparse.Namespace, lm: Causal, meta: World, valid: World, seed: int) -> Camels:
    """Return CaMeLS with weights meta-trained beside the model."""
    method = Camels(steps=Finetune(rule=SGD(args.rate), clip=None), batches=args.batches)
    rule = AdamW(2e-4, weight_decay=0.0)
    training = Training(rule, passes=args.passes, save_every=16, seed=seed)
    materials = [Material(each.documents, each.questions, each.unrelated) for each in (meta, valid)]
    return common.learn(method, lm, *materials, training, args.work)


def _pooled(told: Sequence[Sequence[dict[str, Any]]], way: str, rate: float) -> dict[str, Any]:
    """Return the answers of all seeds, as of one row."""
    rows = [row for some in told for row in some if (row["way"], row["rate"]) == (way, rate)]
    kl = sum(row["kl"] for row in rows) / len(rows)
    return {"kl": kl, "rate": rate, "answers": [answer for row in rows for answer in row["answers"]]}


def compare(title: str, of: Mapping[str, dict[str, Any]]) -> None:
    """Print how much less likely each way's answers are than those of CaMeLS."""
    print(f"\n{title}")
    mine = of.get("CaMeLS")
    for way, row in of.items() if mine else ():
        gap, interval = common.difference(mine, row)
        told = f"[{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "-"
        print(f"CaMeLS less {way} (rate {row['rate']:g}, KL {row['kl']:.3f}): NLL {gap:+.4f} {told} a token")


if __name__ == "__main__":
    main()
