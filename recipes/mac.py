"""MAC's rows beside CaMeLS's: does a trained memory answer questions on documents, and from the right ones?

A network is trained on made-up worlds beside a model that camels.py prepared, or on the SQuAD articles
that camels_squad.py learns from. Then its memory takes up those recipes' test streams, which it never
met, and is asked, closed book. The controls: the untrained network, and the trained one that read other
documents in the place of these. Each seed has a training and a test stream of its own. Before that, on
documents to validate on, a question is asked with its own document alone in the memory and among more:
a network that cannot read fails at one, a network that cannot find fails at many.

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
from uptake.adaptation.optimizers import AdamW
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import UNTRAINED, TrainingData
from uptake.methods.mac import Mac, MacEpisode
from uptake.settings import apply
from uptake.tasks.worlds import Split
from uptake.text.readers import read
from uptake.train import Point, Training, train

METHODS = ("MAC", "MAC, untrained", "MAC, other documents")
VALID = 200  # documents of the world that a training on made-up worlds is watched on
SIZES = (1, 4, 16, 64, VALID)  # of the memory that a question is asked with before the test


@dataclass(frozen=True)
class Stage:
    """A part of the training, each from where the one before it stopped."""

    learnt: Sequence[MacEpisode]
    valid: Sequence[MacEpisode]
    rate: float
    method: Mac


@dataclass(frozen=True)
class Job:
    """What is learnt from and what is asked; `others` is the test world with other texts in its documents."""

    lm: Causal
    stages: Sequence[Stage]
    test: World
    others: World
    seed: int


def made_up(method: Mac, args: argparse.Namespace, seed: int) -> Job:
    """Begin with documents of one sentence: reading is learnt there, and keeps in longer ones."""
    lm = uptake.load(args.model)
    names = Names.fitting(lm.tokenizer)

    # What each part of the training learns from: numbers of distractors, by turns; its share of the rate;
    # the weight of the divergence; whether every question sees every document.
    long = camels.DISTRACTORS
    parts = (
        ((0,), 1.0, 0.0, False),
        ((0, long), 1.0, 0.0, False),
        ((long,), 0.2, method.locality, True),
    )
    stages = []
    for number, (count, (lengths, factor, locality, whole)) in enumerate(
        zip(args.worlds, parts, strict=True)
    ):
        first = 10_000 + 1_000_000 * number + 100_000 * seed
        learnt = [
            episode_of(method, lm, names, lengths[step % len(lengths)], "train", first + step)
            for step in range(count)
        ]
        watched = replace(method, documents=VALID)
        valid = [episode_of(watched, lm, names, lengths[-1], "valid", seed)]
        if whole:
            learnt, valid = (
                [replace(each, seen=torch.ones_like(each.seen)) for each in some] for some in (learnt, valid)
            )
        stages.append(Stage(learnt, valid, args.rate * factor, replace(method, locality=locality)))
    test = common.world(names, args.test, camels.DISTRACTORS, "test", seed)
    elsewhere = common.world(names, args.test, camels.DISTRACTORS, "valid", seed)
    return Job(lm, stages, test, told_otherwise(test, elsewhere), seed)


def episode_of(
    method: Mac, lm: Causal, names: Names, distractors: int, split: Split, seed: int
) -> MacEpisode:
    """Return an episode of as many made-up documents as the method takes, so many distractors in each."""
    made = common.world(names, method.documents, distractors, split, seed)
    shown = TrainingData(made.documents, made.questions, tuple(map(beginning, made.unrelated)))
    return method.episodes(lm, shown)[0]


def squad(method: Mac, args: argparse.Namespace, seed: int) -> Job:
    texts = islice(read(args.text), camels_squad.UNRELATED)
    other = [replace(text, text=text.text[:1000]) for text in texts]
    other, unseen = other[: len(other) // 2], other[len(other) // 2 :]
    found = uptake.read_questions(args.squad)
    titles = camels_squad.Split.of(found)
    part = camels_squad.part
    teaching, meta = part(found, titles.teaching, other), part(found, titles.meta, other)
    watched = part(found, titles.valid, unseen, 48)
    test = part(found, titles.test, unseen, args.documents, args.questions, seed)
    shared = uptake.load(args.model)
    lm = common.taught(shared, teaching.questions, (), camels_squad.FORM, args.work / "large")
    both = TrainingData(
        (*teaching.documents, *meta.documents),
        (*teaching.questions, *meta.questions),
        tuple(map(beginning, other)),
    )
    valid = TrainingData(watched.documents, watched.questions, watched.unrelated[:1])
    looks = replace(method, documents=len(valid.documents)).episodes(lm, valid)
    stages = [Stage(method.episodes(lm, both), looks, args.rate, method)]
    return Job(lm, stages, test, told_otherwise(test, meta), seed)


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
    work = args.work / str(job.seed)
    work.mkdir(parents=True, exist_ok=True)
    clock = work / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    since = time.process_time()

    def told(point: Point) -> None:
        seconds = spent + time.process_time() - since
        clock.write_text(repr(seconds))
        valid = f"validation {point.valid:.3f}"
        print(f"step {point.step}/{point.total}: {point.loss:.3f}, {valid}, {seconds:.0f} CPU s", flush=True)

    network, course = None, []
    for number, stage in enumerate(job.stages):
        optimizer = AdamW(stage.rate, beta2=0.95, weight_decay=0.0)
        training = Training(optimizer, args.passes, save_every=args.save_every, seed=job.seed)
        path = work / f"{number}.training"
        network, points = train(
            stage.method, job.lm, stage.learnt, training, path, told, stage.valid, network
        )
        course.append([[point.step, point.loss, point.valid] for point in points])
    assert network is not None
    method.save(network, job.lm, work / "mac.safetensors")
    told_of = {
        "cpu_seconds": float(clock.read_text()),
        "course": course,
        "sizes": sizes(method, network, job),
    }
    return replace(method, trained=network), told_of


def sizes(method: Mac, network: Any, job: Job) -> list[dict[str, float]]:
    """Return how likely answers on validation documents are, by how many documents the memory holds.

    The question's own is always there. `nll` is of an answer's tokens, its end included; `finding` that
    of attending to the right document among all.
    """
    episode = job.stages[-1].valid[0]
    count = len(episode.documents)
    order = torch.rand(len(episode.own), count, generator=torch.Generator().manual_seed(0))
    order[torch.arange(len(order)), torch.tensor(episode.own)] = -1.0
    rank = order.argsort(1).argsort(1)

    def loss(matching: float, size: int) -> float:
        with torch.no_grad():
            part = replace(method, matching=matching, locality=0.0)
            return part.loss(network, job.lm, replace(episode, seen=rank < size)).item()

    found = [(min(size, count), loss(0.0, size)) for size in SIZES]
    finding = loss(1.0, count) - loss(0.0, count)
    for size, nll in found:
        print(f"{size} documents in the memory: NLL {nll:.3f}, finding {finding:.3f}", flush=True)
    return [{"documents": size, "nll": nll, "finding": finding} for size, nll in found]


def asked(
    job: Job, method: Mac, ready: Mac, args: argparse.Namespace, journal: RecordFile
) -> list[dict[str, Any]]:
    """Return the rows of a test stream: the trained network's, the untrained one's, those on other texts."""
    checkpoints = [at for at in (100, 300, 1000) if at < len(job.test.documents)]
    every = (job.test, ready), (job.test, replace(method, weights=UNTRAINED)), (job.others, ready)
    return [
        row
        for label, (world, each) in zip(METHODS, every, strict=True)
        for row in common.run(
            job.lm, world, [Subject(label, args.rate, each)], journal, "test", checkpoints, job.seed
        )
    ]


def pooled(rows: Sequence[dict[str, Any]], label: str, apart: bool) -> dict[str, Any]:
    """Return the answers of all seeds, as of one row; kept apart, a group of one seed is none of another."""
    return {
        "answers": [
            (f"{row['seed']} {group}" if apart else group, nats, tokens)
            for row in rows
            if row["way"] == label
            for group, nats, tokens in row["answers"]
        ]
    }


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
        nargs=3,
        default=(100, 50, 50),
        help="of each part of training, a step each",
    )
    parser.add_argument("--test", type=int, default=camels.Scale.test, help="documents of the made-up test")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--seeds", type=int, default=3, help="a training and a test stream each")
    parser.add_argument("--settings", nargs="*", default=[], help="of the method, name=value")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    method = apply(Mac(width=64, blocks=1, documents=128, locality=0.1), *args.settings)
    journal = RecordFile(args.work / "rows.jsonl", "mac recipe 2")
    rows, trainings, steps = [], [], []
    for seed in range(args.seeds):
        job = (squad if args.squad else made_up)(method, args, seed)
        steps = [args.passes * len(stage.learnt) for stage in job.stages]
        ready, training = trained(method, job, args)
        trainings.append(training)
        some = asked(job, method, ready, args, journal)
        common.show(f"test, {len(job.test.documents)} documents, seed {seed}", some)
        rows += some
    differences = {}
    for label in METHODS[1:]:
        # Seeds share the articles of SQuAD, and no made-up document.
        mine, other = (pooled(rows, each, apart=not args.squad) for each in (METHODS[0], label))
        gap, interval = differences[label] = common.difference(mine, other)
        print(f"{METHODS[0]} less {label}: NLL {gap:+.4f} a token, 95 % {interval}")
    settings = {
        name: str(value) for name, value in vars(args).items() if name in ("rate", "seeds", "settings")
    }
    whole = {
        "task": "SQuAD" if args.squad else "made-up worlds",
        "settings": {**settings, "steps": steps},
        "bytes_a_document": 4 * method.slots * method.width,
        "trainings": trainings,
        "rows": common.kept(rows),
        "nll_less": differences,
    }
    out = args.out or Path(f"recipes/mac{'-squad' if args.squad else ''}.json")
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
