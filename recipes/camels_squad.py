"""CaMeLS on SQuAD's development paragraphs: 48 articles, 16 to learn from, 16 to meta-train on, 16 to test.

MODEL learns the form of questions on 12 of the first 16 articles; learning rates are chosen on the
other 4. CaMeLS's weights are meta-trained beside a model of about a million weights, itself trained
on --text, and then serve MODEL. Intervals are a bootstrap by article.

    python recipes/camels_squad.py --model MODEL --squad dev-v1.1.json.xz --text train.jsonl.xz

Go on after an interruption: the same command again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import online_common as common
import torch
from online_common import Subject, World

from uptake.causal import Causal, load
from uptake.journal import Lines
from uptake.learned import Material
from uptake.methods.camels import Camels
from uptake.methods.finetune import Finetune
from uptake.readers import read
from uptake.rules import SGD, AdamW
from uptake.tasks.questions import Questions, read_questions
from uptake.tasks.retune import Retuning
from uptake.text import Document, stable_hash
from uptake.token_weights import SalientSpans, TfIdf, TokenWeights, Uniform
from uptake.train import Training


@dataclass(frozen=True)
class Split:
    """Paragraphs and their questions, no article in two parts."""

    teaching: World
    valid: World
    meta: World
    test: World


def split(found: Questions, paragraphs: int, questions: int, other: Sequence[Document]) -> Split:
    """Cut by article, in the order of a hash of its title; at most so many paragraphs of each article."""
    titles = sorted({document.group for document in found.documents}, key=stable_hash)
    third = len(titles) // 3

    def part(some: Sequence[str], unrelated: Sequence[Document]) -> World:
        documents = [
            document
            for title in some
            for document in islice((each for each in found.documents if each.group == title), paragraphs)
        ]
        asked = [
            question
            for document in documents
            for question in islice(
                (each for each in found.questions if each.document == document.id), questions
            )
        ]
        return World(tuple(documents), tuple(asked), tuple(unrelated))

    half = len(other) // 2
    last = third - third // 4
    return Split(
        part(titles[:last], other[:half]),
        part(titles[last:third], other[half:]),
        part(titles[third : 2 * third], other[:half]),
        part(titles[2 * third :], other[half:]),
    )


def subjects(camels: Camels, made: World, rates: Sequence[float], rehearsal: World) -> list[Subject]:
    """Return every way at every rate; weights below one want larger steps."""
    out = []
    for rate in rates:

        def steps(weights: TokenWeights, times: float = 1.0, rate: float = rate) -> Finetune:
            return Finetune(rule=SGD(rate * times), clip=None, token_weights=weights)

        mine = replace(camels, steps=steps(Uniform(), 4))
        out += [
            Subject("uniform", rate, steps(Uniform())),
            Subject("uniform + re-tune", rate, steps(Uniform()), rehearsal.questions[:64]),
            Subject("salient spans", 4 * rate, steps(SalientSpans(), 4)),
            Subject("TF-IDF", 4 * rate, steps(TfIdf(0.25), 4)),
            Subject("CaMeLS, untrained", 4 * rate, replace(mine, weights="untrained")),
            Subject("CaMeLS", 4 * rate, mine),
        ]
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--squad", required=True, help="dev-v1.1.json, packed or not")
    parser.add_argument("--text", required=True, help="text that the small model learns from")
    parser.add_argument("--work", type=Path, default=Path("build/camels_squad"))
    parser.add_argument("--out", type=Path, default=Path("recipes/camels_squad.json"))
    parser.add_argument("--paragraphs", type=int, default=8, help="most of an article")
    parser.add_argument("--questions", type=int, default=3, help="most of a paragraph")
    parser.add_argument("--texts", type=int, default=400, help="documents of --text")
    parser.add_argument("--width", type=int, default=96, help="of the small model")
    parser.add_argument("--batches", type=int, default=2, help="of six documents, in an episode")
    parser.add_argument("--passes", type=int, default=1, help="over the meta-training paragraphs")
    parser.add_argument("--rate", type=float, default=0.03, help="of the steps meta-training goes through")
    parser.add_argument("--rates", type=float, nargs="+", default=(0.003, 0.01, 0.03, 0.1))
    parser.add_argument("--most-kl", type=float, default=0.1, help="nats a token of unrelated text")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = list(islice(read(args.text), args.texts + 20))
    other = [replace(text, text=text.text[:1000]) for text in texts[:20]]
    made = split(read_questions(args.squad), args.paragraphs, args.questions, other)
    shared = load(args.model)
    form = Retuning(rule=AdamW(3e-4, weight_decay=0.0))
    large = common.taught(shared, made.teaching.questions, (), form, args.work / "large")
    untaught = Causal(common.small_model(shared.tokenizer, args.width), shared.tokenizer, "small")
    language = Retuning(rule=AdamW(2e-3, weight_decay=0.01))
    cut = [replace(text, text=text.text[:2000]) for text in texts[20:]]
    small = common.taught(untaught, made.teaching.questions, cut, language, args.work / "small")
    method = Camels(steps=Finetune(rule=SGD(args.rate), clip=None), batches=args.batches)
    training = Training(AdamW(1e-3, weight_decay=0.0), passes=args.passes, save_every=10)
    camels = common.learn(method, small, _material(made.meta), _material(made.valid), training, args.work)
    journal = Lines(args.work / "rows.jsonl", "camels squad recipe 1")
    rows = []
    for name, lm in (("small", small), ("large", large)):
        every = subjects(camels, made.valid, args.rates, made.teaching)
        swept = common.run(lm, made.valid, every, journal, f"{name} valid")
        common.show(f"{name}: validation", swept)
        best = common.chosen(swept, args.most_kl)
        final = [each for each in every if each.way in best and each.rate == best[each.way]["rate"]]
        told = common.run(lm, made.test, final, journal, f"{name} test")
        common.show(f"{name}: test", told)
        mine = next((row for row in told if row["way"] == "CaMeLS"), None)
        for row in told if mine else ():
            gap, interval = common.difference(mine, row)
            print(f"CaMeLS less {row['way']}: NLL {gap:+.4f} a token, 95 % {interval}")
        rows += [*swept, *told]
    common.write(rows, args.out)


def _material(part: World) -> Material:
    return Material(part.documents, part.questions, part.unrelated)


if __name__ == "__main__":
    main()
