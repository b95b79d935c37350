"""MAC's rows beside CaMeLS's: does a trained memory answer questions on documents, and from the right ones?

A network is trained on made-up worlds beside a model that camels.py prepared, or on the SQuAD articles
that camels_squad.py learns from. Then its memory takes up those recipes' test streams, which it never
met, and is asked, closed book. The controls: the untrained network, and the trained one that read other
documents in the place of these.

    python recipes/mac.py --model build/camels/small
    python recipes/mac.py --model MODEL --squad dev-v1.1.json.xz --text train.jsonl.xz --work build/mac_squad

The same command again goes on after an interruption.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import camels
import camels_squad
import online_common as common
import torch
from online_common import Names, Subject, World

import uptake
from uptake.causal import Causal
from uptake.journal import Lines
from uptake.learned import UNTRAINED, Material
from uptake.methods.mac import Episode, Mac
from uptake.readers import read
from uptake.rules import AdamW
from uptake.settings import apply
from uptake.train import Point, Training, train

VALID = 200  # documents of the world that a training on made-up worlds is watched on


@dataclass(frozen=True)
class Stage:
    """A part of the training, each from where the one before it stopped."""

    learnt: Sequence[Episode]
    valid: Sequence[Episode]
    rate: float
    method: Mac


@dataclass(frozen=True)
class Job:
    """What is learnt from and what is asked; `others` is the test world with other texts in its documents."""

    lm: Causal
    stages: Sequence[Stage]
    test: World
    others: World


def made_up(method: Mac, args: argparse.Namespace) -> Job:
    """Begin with documents of one sentence: reading is learnt there, and keeps in longer ones."""
    lm = uptake.load(args.model)
    names = Names.fitting(lm.tokenizer)

    def episode(documents: int, distractors: int, split: Any, seed: int) -> Episode:
        made = common.world(names, documents, distractors, split, seed)
        shown = Material(made.documents, made.questions, tuple(map(beginning, made.unrelated)))
        return replace(method, documents=documents).episodes(lm, shown)[0]

    # What each part of the training learns from: numbers of distractors, by turns; its share of the rate;
    # the weight of the divergence; whether every question sees every document.
    long = camels.DISTRACTORS
    parts = (
        ((0,), 1.0, 0.0, False),
        ((0, long), 1.0, 0.0, False),
        ((0, long), 1.0, 0.0, True),
        ((long,), 0.2, method.locality, True),
    )
    stages = []
    for number, (count, (lengths, factor, locality, whole)) in enumerate(
        zip(args.worlds, parts, strict=True)
    ):
        first = 10_000 + 1_000_000 * number + 100_000 * args.seed
        learnt = [
            episode(method.documents, lengths[step % len(lengths)], "train", first + step)
            for step in range(count)
        ]
        valid = [episode(VALID, lengths[-1], "valid", args.seed)]
        if whole:
            learnt, valid = (
                [replace(each, seen=torch.ones_like(each.seen)) for each in some] for some in (learnt, valid)
            )
        stages.append(Stage(learnt, valid, args.rate * factor, replace(method, locality=locality)))
    test = common.world(names, args.test, camels.DISTRACTORS, "test", args.seed)
    elsewhere = common.world(names, args.test, camels.DISTRACTORS, "valid", args.seed)
    return Job(lm, stages, test, told_otherwise(test, elsewhere))


def squad(method: Mac, args: argparse.Namespace) -> Job:
    texts = islice(read(args.text), camels_squad.UNRELATED)
    other = [replace(text, text=text.text[:1000]) for text in texts]
    other, unseen = other[: len(other) // 2], other[len(other) // 2 :]
    found = uptake.read_questions(args.squad)
    titles = camels_squad.Split.of(found)
    part = camels_squad.part
    teaching, meta = part(found, titles.teaching, other), part(found, titles.meta, other)
    watched = part(found, titles.valid, unseen, 48)
    test = part(found, titles.test, unseen, args.documents, args.questions, args.seed)
    shared = uptake.load(args.model)
    lm = common.taught(shared, teaching.questions, (), camels_squad.FORM, args.work / "large")
    both = Material(
        (*teaching.documents, *meta.documents),
        (*teaching.questions, *meta.questions),
        tuple(map(beginning, other)),
    )
    valid = Material(watched.documents, watched.questions, watched.unrelated[:1])
    looks = replace(method, documents=len(valid.documents)).episodes(lm, valid)
    stages = [Stage(method.episodes(lm, both), looks, args.rate, method)]
    return Job(lm, stages, test, told_otherwise(test, meta))


def beginning(text: uptake.Document) -> uptake.Document:
    """Return what of an unrelated text the divergence is measured on in training: every place costs."""
    return replace(text, text=text.text[:150])


def told_otherwise(world: World, elsewhere: World) -> World:
    """Return the same questions, on documents that cannot answer them."""
    texts = [document.text for document in elsewhere.documents]
    documents = [replace(each, text=texts[place % len(texts)]) for place, each in enumerate(world.documents)]
    return replace(world, documents=tuple(documents))


def trained(method: Mac, job: Job, args: argparse.Namespace) -> tuple[Mac, dict[str, Any]]:
    """Return the method with its network, and what the training was; goes on where an earlier one stopped."""
    args.work.mkdir(parents=True, exist_ok=True)
    clock = args.work / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    since = time.process_time()

    def told(point: Point) -> None:
        seconds = spent + time.process_time() - since
        clock.write_text(repr(seconds))
        valid = f"validation {point.valid:.3f}"
        print(f"step {point.step}/{point.total}: {point.loss:.3f}, {valid}, {seconds:.0f} CPU s", flush=True)

    network, course = None, []
    for number, stage in enumerate(job.stages):
        rule = AdamW(stage.rate, beta2=0.95, weight_decay=0.0)
        training = Training(rule, args.passes, save_every=args.save_every, seed=args.seed)
        path = args.work / f"{number}.training"
        network, points = train(
            stage.method, job.lm, stage.learnt, training, path, told, stage.valid, network
        )
        course.append([[point.step, point.loss, point.valid] for point in points])
    assert network is not None
    method.save(network, job.lm, args.work / "mac.safetensors")
    return replace(method, trained=network), {"cpu_seconds": float(clock.read_text()), "course": course}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="camels.py's WORK/small, or with --squad any model")
    parser.add_argument("--work", type=Path, default=Path("build/mac"))
    parser.add_argument("--out", type=Path, help="recipes/mac.json, or mac-squad.json")
    parser.add_argument("--squad", help="dev-v1.1.json, packed or not, in place of made-up worlds")
    parser.add_argument("--text", help="with --squad, unrelated text")
    parser.add_argument("--documents", type=int, default=64, help="of the test stream from SQuAD")
    parser.add_argument("--questions", type=int, default=5, help="most of a paragraph")
    parser.add_argument("--passes", type=int, default=2, help="over what is learnt from")
    parser.add_argument(
        "--worlds",
        type=int,
        nargs=4,
        default=(150, 250, 50, 50),
        help="of each part of training, a step each",
    )
    parser.add_argument("--test", type=int, default=camels.Scale.test, help="documents of the made-up test")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=[], help="of the method, name=value")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    method = apply(Mac(width=64, blocks=1, documents=128, locality=0.1), *args.settings)
    job = squad(method, args) if args.squad else made_up(method, args)
    ready, training = trained(method, job, args)
    journal = Lines(args.work / "rows.jsonl", "mac recipe 1")
    checkpoints = [at for at in (100, 300, 1000) if at < len(job.test.documents)]
    untrained = replace(method, weights=UNTRAINED)
    rows = []
    for world, way, each in (
        (job.test, "MAC", ready),
        (job.test, "MAC, untrained", untrained),
        (job.others, "MAC, other documents", ready),
    ):
        rows += common.run(
            job.lm, world, [Subject(way, args.rate, each)], journal, "test", checkpoints, args.seed
        )
    common.show(f"test, {len(job.test.documents)} documents, seed {args.seed}", rows)
    differences = {}
    for row in rows[1:]:
        gap, interval = differences[row["way"]] = common.difference(rows[0], row)
        print(f"MAC less {row['way']}: NLL {gap:+.4f} a token, 95 % {interval}")
    settings = {
        name: str(value) for name, value in vars(args).items() if name in ("rate", "seed", "settings")
    }
    whole = {
        "task": "SQuAD" if args.squad else "made-up worlds",
        "settings": {**settings, "steps": [args.passes * len(stage.learnt) for stage in job.stages]},
        "bytes_a_document": 4 * method.slots * method.width,
        "training": training,
        "rows": common.kept(rows),
        "nll_less": differences,
    }
    out = args.out or Path(f"recipes/mac{'-squad' if args.squad else ''}.json")
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
