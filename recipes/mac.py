"""MAC's rows: does a trained memory answer questions on documents, and from the right ones?

A network is trained on made-up worlds, or on two thirds of SQuAD's articles. Then its memory takes up a
stream of documents it never met and is asked, closed book. The controls: the untrained network, and the
trained one that read other documents in the place of these. The base is asked beside them.

    python recipes/mac.py --model MODEL --work FOLDER                          # made-up worlds
    python recipes/mac.py --model MODEL --work FOLDER --squad dev-v1.1.json.xz --out recipes/mac-squad.json

The same command again goes on after an interruption.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import uptake
from uptake.causal import Causal
from uptake.learned import UNTRAINED, Material
from uptake.method import Way
from uptake.methods.mac import Mac
from uptake.rules import AdamW
from uptake.select import Nothing
from uptake.settings import apply
from uptake.streaming.report import summary
from uptake.tasks.worlds import Split
from uptake.text import stable_hash
from uptake.train import Point, Training, train

FIGURES = ("questions", "nll", "f1", "exact", "kl", "take_seconds", "ask_seconds", "tokens_read", "vs_base")
# Articles, in twelfths.
SHARES: dict[Split, range] = {"train": range(8), "valid": range(8, 9), "test": range(9, 12)}


def made_up(split: Split, documents: int, distractors: int) -> Material:
    world = uptake.make_world(documents, 1, distractors, updates=0.0, unrelated=20, split=split)
    return Material(world.documents, world.questions, world.unrelated)


def squad(path: str, split: Split, most: int) -> Material:
    found = uptake.read_questions(path)
    documents = [each for each in found.documents if stable_hash(each.group) % 12 in SHARES[split]][:most]
    there = {each.id for each in documents}
    questions = [each for each in found.questions if each.document in there]
    return Material(tuple(documents), tuple(questions), made_up(split, 1, 0).unrelated)


def trained(
    method: Mac, model: Causal, texts: dict[Split, Material], given: argparse.Namespace
) -> tuple[Mac, dict[str, Any]]:
    """Return the method with its network, and what the training was; goes on where an earlier one stopped."""
    given.work.mkdir(parents=True, exist_ok=True)
    clock = given.work / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    since = time.process_time()

    def told(point: Point) -> None:
        seconds = spent + time.process_time() - since
        clock.write_text(repr(seconds))
        print(
            f"step {point.step} of {point.total}: loss {point.loss:.3f}, validation {point.valid}, "
            f"{seconds:.0f} CPU s",
            flush=True,
        )

    network, points = train(
        method,
        model,
        method.episodes(model, texts["train"]),
        Training(
            AdamW(given.rate, beta2=0.95, weight_decay=0.0), given.passes, save_every=50, seed=given.seed
        ),
        given.work / "mac.training",
        told,
        method.episodes(model, texts["valid"]),
    )
    method.save(network, model, given.work / "mac.safetensors")
    course = [[point.step, point.loss, point.valid] for point in points]
    return replace(method, trained=network), {"cpu_seconds": float(clock.read_text()), "course": course}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, type=Path, help="folder for the network and its checkpoint")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--squad", help="SQuAD's dev file, in place of made-up worlds")
    parser.add_argument("--documents", type=int, default=16384, help="made-up documents to train on")
    parser.add_argument("--stream", type=int, default=1000, help="most documents of the test stream")
    parser.add_argument(
        "--distractors", type=int, default=1, help="sentences of a document that tell nothing"
    )
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=[], help="of the method, name=value")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(given.model)
    method = apply(Mac(), *given.settings)
    most: dict[Split, int] = {"train": given.documents, "valid": 64, "test": given.stream}
    texts = {
        split: squad(given.squad, split, count) if given.squad else made_up(split, count, given.distractors)
        for split, count in most.items()
    }
    ready, training = trained(method, model, texts, given)
    test = texts["test"]
    # The same questions, and a memory of documents that cannot answer them.
    elsewhere = (
        squad(given.squad, "train", given.stream)
        if given.squad
        else made_up("valid", given.stream, given.distractors)
    )
    others = [
        replace(each, text=other.text)
        for each, other in zip(test.documents, elsewhere.documents, strict=False)
    ]
    ways = {"mac": ready, "mac, untrained": replace(method, weights=UNTRAINED)}
    asking = uptake.Asking(tokens=8, template=method.template)
    rows: dict[str, Any] = {}
    for documents, told in ((test.documents, ways), (others, {"mac, other documents": ready})):
        found = summary(
            uptake.stream(
                model,
                documents,
                test.questions,
                {name: Way(way, Nothing()) for name, way in told.items()},
                unrelated=test.unrelated,
                asking=asking,
                seed=given.seed,
            )
        )
        rows["base"] = {name: found["base"].get(name) for name in FIGURES}
        rows |= {way: {name: figures.get(name) for name in FIGURES} for way, figures in found["ways"].items()}
    settings = {
        name: value for name, value in vars(given).items() if name not in ("model", "work", "out", "squad")
    }
    whole = {
        "task": "SQuAD" if given.squad else "made-up worlds",
        "documents": len(test.documents),
        "bytes_a_document": 4 * method.slots * method.width,
        "settings": settings,
        "training": training,
        "rows": rows,
    }
    given.out.write_text(json.dumps(whole, indent=1) + "\n")
    for name, row in rows.items():
        print(name, {key: row[key] for key in ("nll", "f1", "exact", "kl", "take_seconds", "ask_seconds")})


if __name__ == "__main__":
    main()
