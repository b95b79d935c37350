"""CaMeLS against uniform weights, salient spans and TF-IDF, on long streams of made-up worlds.

A small model is trained to answer questions (online_common.prepare), CaMeLS's weights are meta-trained beside
it, and every method then adapts to streams of unseen worlds. All rates of all methods run over a validation
world; the rate at which each answers most within a KL of `--most-kl` on unrelated text runs over the
test worlds, one a seed. What is judged is the pair of answers and KL: uniform weights and CaMeLS run
at a quarter to twice their rates, uniform to four times, and methods are compared where their KL is the
same. A longer stream shows what is remembered, and `--larger` whether weights learnt beside the small model
serve a larger one: the small one grown to three times as many weights and trained on (preparation.grown).

    python recipes/camels.py --larger           # go on after an interruption: the same command again
    python recipes/camels.py --model MODEL          # MODEL's tokenizer, and MODEL is the larger one

Without MODEL every word of the worlds is a token, which makes small models go a long way.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import camels_figures as figures
import online_common as common
import torch
from online_common import Names, Subject, World
from preparation import Course, Crowd, Preparation, grown, prepared

from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import SalientSpans, TfIdf, TokenWeights
from uptake.adaptation.trainable import Named, Trainable
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.methods.camels import Camels
from uptake.methods.contract.learned import TrainingData
from uptake.methods.finetune import Finetune
from uptake.train import Training

DISTRACTORS = 4  # sentences beside the one that states a fact
LEVELS = (0.1, 0.2, 0.35, 0.5)  # of KL, at which methods are compared
CURVES = (figures.UNIFORM, figures.CAMELS)  # methods that run over the test worlds at several rates
LARGER = (*CURVES, "TF-IDF", "CaMeLS, untrained")  # methods that the larger model is adapted by
OTHERS = ("uniform, Adam", "uniform + re-tune", "salient spans", "oracle")
METHODS = (*LARGER, *OTHERS)


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    episodes: int = 72  # steps of the meta-training
    # Of many documents that one derivative goes through it learns what they do to one another.
    documents: int = 24
    batches: int = 2  # in an episode
    locality: float = 1.0
    valid: int = 500  # documents
    test: int = 1000
    long: int = 3000
    factors: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)  # of the rate that the preparation came to


def material(names: Names, documents: int, seed: int) -> TrainingData:
    made = common.world(names, documents, DISTRACTORS, "train", seed)
    return TrainingData(made.documents, made.questions, made.unrelated)


Prepared = tuple[Names, Causal, float]


def written(lm: Causal) -> Trainable:
    """Return what the stream is written to: the last feed-forward's second matrix, keys in and values out."""
    return Named(f"layers.{lm.module.config.num_hidden_layers - 1}.mlp.down_proj")


def weights(small: Prepared, scale: Scale, work: Path, seed: int) -> Camels:
    """Return CaMeLS with weights learnt on training worlds."""
    names, lm, rate = small
    steps = Finetune(trainable=written(lm), optimizer=SGD(2 * rate), clip=None)
    method = Camels(steps=steps, documents=scale.documents, batches=scale.batches, locality=scale.locality)
    walk = method.documents * method.batches
    training = Training(AdamW(5e-4, weight_decay=0.0), save_every=max(1, scale.episodes // 6), seed=seed)
    shown = material(names, walk * scale.episodes, 20_000 + seed)
    return common.learn(method, lm, shown, material(names, walk * 2, 30_000), training, work)


def subjects(model: Prepared, made: World, camels: Camels, factors: Sequence[float]) -> list[Subject]:
    """Return every method at every rate. Weights below one want larger steps: each has its own range."""
    names, lm, rate = model
    answers = {question.document: question.answers for question in made.questions}
    other = common.world(names, 64, 0, "train", seed=10_000).questions
    trainable = written(lm)

    def steps(optimizer: Optimizer, weights: TokenWeights | None = None) -> Finetune:
        found = Finetune(trainable=trainable, optimizer=optimizer, clip=None)
        return replace(found, token_weights=weights) if weights else found

    out = []
    for factor in factors:
        plain = rate * factor
        uniform = steps(SGD(plain))
        mine = replace(camels, steps=steps(SGD(4 * plain)))
        out += [
            Subject(figures.UNIFORM, plain, uniform),
            Subject("uniform, Adam", 8e-3 * factor, steps(AdamW(8e-3 * factor, weight_decay=0.0))),
            Subject("uniform + re-tune", plain, uniform, other),
            Subject("salient spans", plain * 2, steps(SGD(plain * 2), SalientSpans())),
            Subject("TF-IDF", plain * 2, steps(SGD(plain * 2), TfIdf(0.25))),
            Subject("CaMeLS, untrained", plain * 4, replace(mine, weights="untrained")),
            Subject(figures.CAMELS, plain * 4, mine),
            Subject("oracle", plain * 2, steps(SGD(plain * 2), common.StatedAnswers(answers))),
        ]
    return out


def swept(
    size: str, model: Prepared, camels: Camels, scale: Scale, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return every method at every rate on the validation world, and the rate of each that is best there."""
    names, lm, _ = model
    valid = common.world(names, scale.valid, DISTRACTORS, "valid")
    methods = adapting(size, args)
    every = [each for each in subjects(model, valid, camels, scale.factors) if each.label in methods]
    rows = common.run(lm, valid, every, journal(args), f"{size} valid {scale.valid}")
    common.show(f"{size} model: validation, {scale.valid} documents", rows)
    return rows, {label: row["rate"] for label, row in common.chosen(rows, args.most_kl).items()}


def adapting(size: str, args: argparse.Namespace) -> set[str]:
    """Return the methods that the model of this size is adapted by."""
    return set(args.methods) & set(LARGER if size == "large" else METHODS)


def tested(
    size: str,
    model: Prepared,
    camels: Camels,
    best: Mapping[str, float],
    scale: Scale,
    args: argparse.Namespace,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the rows of a test world: each method at its best rate, and some around that too."""
    names, lm, _ = model
    test = common.world(names, scale.test, DISTRACTORS, "test", seed)
    # Uniform weights go further up, to be seen at their best.
    near = {figures.UNIFORM: (0.25, 0.5, 1.0, 2.0, 4.0), figures.CAMELS: (0.25, 0.5, 1.0, 2.0)}
    some = []
    for each in subjects(model, test, camels, scale.factors):
        times = near.get(each.label, (1.0,))
        if each.label in adapting(size, args) and each.rate in [best[each.label] * much for much in times]:
            some.append(each)
    rows = common.run(lm, test, some, journal(args), f"{size} test {scale.test}", seed=seed)
    common.show(f"{size} model: test, {scale.test} documents, seed {seed}", rows)
    return rows


def followed(
    model: Prepared, camels: Camels, best: Mapping[str, float], scale: Scale, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of a long stream, asked along the way."""
    names, lm, _ = model
    made = common.world(names, scale.long, DISTRACTORS, "test", seed=100)
    some = [
        each
        for each in subjects(model, made, camels, scale.factors)
        if each.label in CURVES and best.get(each.label) == each.rate
    ]
    stops = [at for at in (100, 300, 1000) if at < scale.long]
    return common.run(lm, made, some, journal(args), f"small long {scale.long}", stops)


def journal(args: argparse.Namespace) -> RecordFile:
    return RecordFile(args.work / "rows.jsonl", "camels recipe 2")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder or a hub name")
    parser.add_argument("--work", type=Path, default=Path("build/camels"))
    parser.add_argument("--out", type=Path, default=Path("recipes/camels.json"))
    parser.add_argument("--plots", type=Path, default=Path("docs/images"))
    parser.add_argument("--larger", action="store_true", help="adapt a larger model too")
    parser.add_argument("--most-kl", type=float, default=0.5, help="nats a token of unrelated text")
    parser.add_argument("--valid", type=int, default=Scale.valid, help="documents")
    parser.add_argument("--test", type=int, default=Scale.test, help="documents")
    parser.add_argument("--long", type=int, default=Scale.long, help="documents")
    parser.add_argument("--episodes", type=int, default=Scale.episodes)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help="these alone, uniform and CaMeLS among them"
    )
    parser.add_argument("--tiny", action="store_true", help="a preparation of two steps, for tests")
    parser.add_argument("--factors", type=float, nargs="+", default=Scale.factors)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scale = Scale(
        args.episodes, valid=args.valid, test=args.test, long=args.long, factors=tuple(args.factors)
    )
    small = ready("small", args)
    learnt = [weights(small, scale, args.work, seed) for seed in range(args.seeds)]
    parts: dict[str, list[dict[str, Any]]] = {}
    rates: dict[str, dict[str, float]] = {}
    for size in ("small", "large") if args.larger or args.model else ("small",):
        model = small if size == "small" else ready("large", args, small)
        parts[f"{size} valid"], best = swept(size, model, learnt[0], scale, args)
        rates[size] = best
        parts[f"{size} test"] = [
            row
            for seed, camels in enumerate(learnt)
            for row in tested(size, model, camels, best, scale, args, seed)
        ]
    kept = figures.kept(followed(small, learnt[0], rates["small"], scale, args))
    figures.show_kept(kept)
    figures.plot_kept(kept, args.plots)
    # A method that ran at one rate on the test worlds has no curve to read off.
    curves = {
        name: [row for row in rows if row["way"] in CURVES or name.endswith("valid")]
        for name, rows in parts.items()
    }
    equal = {name: figures.equal_kl(rows, LEVELS) for name, rows in curves.items()}
    for name, rows in parts.items():
        figures.show(f"{name}: answered at equal KL", equal[name])
        figures.plot_curves(rows, args.plots / f"camels-{name.replace(' ', '-')}.svg")
    told = {
        "rates": rates,
        "at equal KL": equal,
        "kept": kept,
        "rows": [figures.light(row) for rows in parts.values() for row in rows],
    }
    args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf8")


def ready(key: str, args: argparse.Namespace, small: Prepared | None = None) -> Prepared:
    """Return the small model or, given that, the larger one, prepared, and the rate that it came to."""
    courses = Preparation().courses
    if args.model:
        shared = load(args.model)
        names, tokenizer = Names.of(shared.tokenizer), shared.tokenizer
        lm = shared if small else Causal(common.small_model(tokenizer), tokenizer, key)
    elif small:
        names, before, rate = small
        module = grown(before.module, common.small_model(before.tokenizer, 96, 3, heads=6))
        lm = Causal(module, before.tokenizer, key)
        crowd = Crowd(200, 64, 1)
        courses = (Course((crowd,), 2e-3, rate * crowd.people),)
    else:
        names = Names.syllables()
        tokenizer = common.toy_tokenizer(names)
        lm = Causal(common.small_model(tokenizer, 64, 2), tokenizer, key)
    if args.tiny:
        courses = (Course((Crowd(1, 4, known=8), Crowd(1, 4, 1)), 1e-3, 1.0),)
    return (names, *prepared(lm, names, Preparation(courses, written(lm)), args.work / key))


if __name__ == "__main__":
    main()
