"""CaMeLS against uniform weights, salient spans and TF-IDF, on streams of made-up worlds.

A model of about a million weights is taught to be asked (online_common.prepare), CaMeLS's weights
are meta-trained beside it, and every way then takes up streams of unseen worlds: several learning
rates on a validation world, the best of them on the test world. The rate that is chosen answers
most among those whose KL on unrelated text is at most `--most-kl`; what is judged is the whole pair.

    python recipes/camels.py                    # go on after an interruption: the same command again
    python recipes/camels.py --model MODEL      # MODEL's tokenizer; with --larger MODEL is adapted too

Without MODEL every word of the worlds is a token, which makes small models go a long way. The weights
learnt beside the small model serve the larger one.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import online_common as common
import torch
from online_common import Names, Preparation, Subject, World
from torch import Tensor

from uptake.causal import Causal, load
from uptake.journal import Lines
from uptake.learned import Material
from uptake.methods.camels import Camels
from uptake.methods.finetune import Finetune
from uptake.rules import SGD, AdamW, Rule
from uptake.text import Passage
from uptake.token_weights import SalientSpans, Spans, TfIdf, TokenWeights
from uptake.token_weights.base import covering
from uptake.train import Training

DISTRACTORS = 4  # sentences beside the one that states a fact


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    episodes: int = 40  # steps of the meta-training
    batches: int = 2  # of six documents, in an episode
    valid: int = 200  # documents
    test: int = 1000
    checkpoints: tuple[int, ...] = (100, 300)
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)  # of the rate that the preparation came to


@dataclass(frozen=True)
class Told(TokenWeights):
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


def material(names: Names, documents: int, seed: int) -> Material:
    made = common.world(names, documents, DISTRACTORS, "train", seed)
    return Material(made.documents, made.questions, made.unrelated)


def weights(lm: Causal, names: Names, rate: float, scale: Scale, work: Path, seed: int) -> Camels:
    """Return CaMeLS with weights learnt on training worlds."""
    method = Camels(steps=Finetune(rule=SGD(rate), clip=None), batches=scale.batches)
    walk = method.documents * method.batches
    training = Training(AdamW(1e-3, weight_decay=0.0), save_every=max(1, scale.episodes // 6), seed=seed)
    shown = material(names, walk * scale.episodes, 20_000 + seed)
    return common.learn(method, lm, shown, material(names, walk * 2, 30_000), training, work)


def subjects(
    names: Names, made: World, camels: Camels, rate: float, factors: Sequence[float]
) -> list[Subject]:
    """Return every way at every rate. Weights below one want larger steps: each has its own range."""
    answers = {question.document: question.answers for question in made.questions}
    other = common.world(names, 64, 0, "train", seed=10_000).questions

    def steps(rule: Rule, weights: TokenWeights | None = None) -> Finetune:
        found = Finetune(rule=rule, clip=None)
        return replace(found, token_weights=weights) if weights else found

    out = []
    for factor in factors:
        plain, most = rate * factor, 8 * rate * factor
        uniform = steps(SGD(plain))
        mine = replace(camels, steps=steps(SGD(4 * plain)))
        out += [
            Subject("uniform", plain, uniform),
            Subject("uniform, Adam", 1e-3 * factor, steps(AdamW(1e-3 * factor, weight_decay=0.0))),
            Subject("uniform + re-tune", plain, uniform, other),
            Subject("salient spans", plain * 4, steps(SGD(plain * 4), SalientSpans())),
            Subject("TF-IDF", plain * 4, steps(SGD(plain * 4), TfIdf(0.25))),
            Subject("CaMeLS, untrained", plain * 4, replace(mine, weights="untrained")),
            Subject("CaMeLS", plain * 4, mine),
            Subject("oracle", most, steps(SGD(most), Told(answers))),
        ]
    return out


def experiment(
    lm: Causal, key: str, names: Names, camels: Camels, rate: float, scale: Scale, args: Any, seed: int
) -> list[dict[str, Any]]:
    """Sweep on the validation world, then run each way's best rate over the test world."""
    journal = Lines(args.work / "rows.jsonl", "camels recipe 1")
    valid = common.world(names, scale.valid, DISTRACTORS, "valid", seed)
    every = [
        each
        for each in subjects(names, valid, camels, rate, scale.factors)
        if each.way in (args.ways or [each.way])
    ]
    swept = common.run(lm, valid, every, journal, f"{key} valid {scale.valid}", seed=seed)
    common.show(f"{key}: validation, {scale.valid} documents, seed {seed}", swept)
    best = common.chosen(swept, args.most_kl)
    common.show(f"{key}: chosen within KL {args.most_kl}", list(best.values()))
    test = common.world(names, scale.test, DISTRACTORS, "test", seed)
    final = [
        each
        for each in subjects(names, test, camels, rate, scale.factors)
        if each.way in best and each.rate == best[each.way]["rate"]
    ]
    told = common.run(lm, test, final, journal, f"{key} test {scale.test}", scale.checkpoints, seed)
    common.show(f"{key}: test, {scale.test} documents, seed {seed}", told)
    return [*swept, *told]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder or a hub name")
    parser.add_argument("--work", type=Path, default=Path("build/camels"))
    parser.add_argument("--out", type=Path, default=Path("recipes/camels.json"))
    parser.add_argument("--larger", action="store_true", help="adapt a larger model too")
    parser.add_argument("--most-kl", type=float, default=0.5, help="nats a token of unrelated text")
    parser.add_argument("--valid", type=int, default=Scale.valid, help="documents")
    parser.add_argument("--test", type=int, default=Scale.test, help="documents")
    parser.add_argument("--episodes", type=int, default=Scale.episodes)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", help="these alone, such as uniform CaMeLS")
    parser.add_argument("--most-steps", type=int, default=1 << 30, help="of each half of the preparation")
    parser.add_argument("--factors", type=float, nargs="+", default=Scale.factors)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    checkpoints = tuple(at for at in (100, 300, 1000) if at < args.test)
    scale = Scale(args.episodes, Scale.batches, args.valid, args.test, checkpoints, tuple(args.factors))
    small, large = models(args)
    rows = []
    for seed in range(args.seeds):
        names, lm, rate = small
        camels = weights(lm, names, 4 * rate, scale, args.work, seed)
        rows += experiment(lm, "small", names, camels, rate, scale, args, seed)
        if large:
            names, lm, rate = large
            rows += experiment(lm, "large", names, camels, rate, scale, args, seed)
    common.write(rows, args.out)


Prepared = tuple[Names, Causal, float]


def models(args: argparse.Namespace) -> tuple[Prepared, Prepared | None]:
    """Return the small model, and the larger one if it is asked for, with the rates they came to."""
    if args.model:
        shared = load(args.model)
        names, width, layers = Names.of(shared.tokenizer), 96, 3
        tokenizer = shared.tokenizer
    else:
        names, width, layers = Names.syllables(), 64, 2
        tokenizer = common.toy_tokenizer(names)
        shared = Causal(common.small_model(tokenizer, 128, 4), tokenizer, "large")
    most = args.most_steps
    told = Preparation(min(Preparation.plain, most), min(Preparation.through, most))
    small = Causal(common.small_model(tokenizer, width, layers), tokenizer, "small")
    first = (names, *common.prepared(small, names, told, args.work / "small"))
    if not args.larger:
        return first, None
    return first, (names, *common.prepared(shared, names, told, args.work / "large"))


if __name__ == "__main__":
    main()
