"""SLAG along one edit and along ten: what is left of the first, and which part of the network costs it.

    python recipes/slag_parts.py train --model MODEL --name ten --set length=10 --batch 2 --steps 30
    python recipes/slag_parts.py train --model MODEL --name one --set length=1 --batch 4 --steps 150
    python recipes/slag_parts.py ask --model MODEL --name ten --part test --sequences 40
    python recipes/slag_parts.py ask --model MODEL --name ten --part valid --sequences 16 --back "without B"
    python recipes/slag_parts.py table

`train` takes a small step of `learned_editors.py slag`: some hundred edits of CounterFact, the last network
kept. `ask` makes sequences of ten edits and asks for all of them; with `--back` a part of the network is what
it was before training, `--name untrained` is the control. Each is a minute or two of one core, so that
settings can be looked for on the part `valid`. `table` prints all figures, and how far two networks are
apart, paired by sequence.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import learned_editors

import uptake
from uptake.adaptation.editing.slag import Head, SlagNetwork
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, UptakeError
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.slag import Slag
from uptake.settings import apply
from uptake.tasks.edit_asking import reply_to
from uptake.tasks.edits import Edit
from uptake.text.types import Found
from uptake.train import Training, train

UNTRAINED = "untrained"
SIDE_BY_SIDE = 6  # sequences whose prompts are asked together
# What is put back, by the places of a head's outputs: a, a', b, b', η.
PARTS: dict[str, tuple[int, ...]] = {
    "": (),
    "without B": (1, 3),
    "a": (0,),
    "b": (2,),
    "η": (4,),
    "all but b": (0, 1, 3, 4),
}


def as_at_birth(network: SlagNetwork, places: Sequence[int]) -> SlagNetwork:
    """Return a copy of a network of which some outputs of every head are what they were before training."""
    found = copy.deepcopy(network)
    for head in found.heads:
        assert isinstance(head, Head)
        ends = [sum(head.sizes[: place + 1]) for place in range(len(head.sizes))]
        for place in places:
            rows = slice(ends[place] - head.sizes[place], ends[place])
            with torch.no_grad():
                head.outer.bias[rows] = -1.0 if place == 0 else 0.0
                head.outer.parametrizations.weight.original0[rows] = 0.0
    return found


def known(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the file of figures holds."""
    empty: dict[str, Any] = {"networks": {}, "asked": {}}
    return {**empty, **json.loads(args.out.read_text())} if args.out.exists() else empty


def train_one(args: argparse.Namespace, model: Causal) -> None:
    """Train a network for some steps, and write it and what its training was."""
    learner = apply(Slag(blocks=2, steps=1, batch=args.batch), *args.set)
    edits = learned_editors.parts_of(Path(args.shared), args.train, 2, 2)["train"]
    said = args.work / f"base-words-{args.train}.json"
    edits = tuple(learned_editors.said_by_base(model, edits, 1, said, 256))
    texts = learned_editors.unrelated(args)["train"]
    episodes = learner.episodes(model, TrainingData((), unrelated=texts, edits=edits))
    training = Training(
        AdamW(learning_rate=args.learning_rate, weight_decay=0.0),
        clip=100.0,
        save_every=max(1, args.steps // 5),
        warm_up_and_decay=True,
        seed=args.seed,
    )
    turns = [episodes[step % len(episodes)] for step in range(args.steps)]
    network, points = train(learner, model, turns, training)
    learner.save(network, model, args.work / f"{args.name}.safetensors")
    whole = known(args)
    whole["networks"][args.name] = {
        "set": args.set,
        "batch": args.batch,
        "edits": args.steps * learner.batch * learner.length,
        "learning_rate": args.learning_rate,
        "curve": [[point.step, round(point.loss, 4)] for point in points],
    }
    learned_editors.write(args.out, whole)


def ask(args: argparse.Namespace, model: Causal) -> None:
    """Write down what is said after sequences of ten edits."""
    whole = known(args)
    if args.name != UNTRAINED and args.name not in whole["networks"]:
        raise BadInput(f"--name {args.name}: train it first, or use {UNTRAINED}")
    size = args.sequences * learned_editors.SEQUENCE
    edits = learned_editors.parts_of(Path(args.shared), 2, size, size)[args.part]
    learner = Slag(blocks=2)
    if args.name != UNTRAINED:
        learner = apply(learner, *whole["networks"][args.name]["set"])
        found = learner.load(args.work / f"{args.name}.safetensors", model)
        assert isinstance(found, SlagNetwork)
        learner = learner.with_network(as_at_birth(found, PARTS[args.back]))
    else:
        learner = replace(learner, weights=UNTRAINED)
    told = asked(replace(learner, steps=args.steps_each), model, edits)
    key = f"{args.name}, {args.back} as at birth" if args.back else args.name
    part = f"{told['sequences']} {args.part} sequences, {args.steps_each} steps"
    whole["asked"].setdefault(part, {})[key] = told
    learned_editors.write(args.out, whole)


def asked(method: Method[Any], model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return which edits are said once the last of a sequence is made, by their place in it."""
    size = learned_editors.SEQUENCE
    sequences = [edits[start : start + size] for start in range(0, len(edits) - size + 1, size)]
    marks: list[list[bool]] = []
    for start in range(0, len(sequences), SIDE_BY_SIDE):
        some = sequences[start : start + SIDE_BY_SIDE]
        read = [Evidence(Found(tuple(edit.passage() for edit in own), (0.0,) * size)) for own in some]
        states = method.adapt([method.init(model) for _ in some], model, read, Context(continues=False))
        prompts = [one for own in some for _, one in learned_editors.asked_of(own, ("edit",))]
        rows = [row for row in range(len(some)) for _ in range(size)]
        replies = reply_to(method.adapted(states, model), prompts, learned_editors.TOKENS, 64, rows)
        marks += [[reply.right for reply in replies[at : at + size]] for at in range(0, len(rows), size)]
    by_place = [learned_editors.share([[own[place]] for own in marks]) for place in range(size)]
    return {
        "sequences": len(marks),
        "success": learned_editors.share(marks),  # by sequence: edits of one share what was changed
        "first": by_place[0],
        "last": by_place[-1],
        "by_place": [told["share"] for told in by_place],
        "said": [[int(mark) for mark in own] for own in marks],
    }


def apart(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return how far two networks are apart in the first edit and in all, paired by sequence."""
    return {
        "first": _apart(one, other, slice(0, 1)),
        "all": _apart(one, other, slice(None)),
    }


def _apart(one: dict[str, Any], other: dict[str, Any], places: slice) -> dict[str, Any]:
    shares = [[sum(own[places]) / len(own[places]) for own in told["said"]] for told in (one, other)]
    found = learned_editors.difference(*shares)
    return {name: found[name] for name in ("difference", "interval")}


def table(args: argparse.Namespace) -> None:
    """Print the figures, and write down how far each network is apart from each other one."""
    whole = known(args)
    whole["apart"] = {}
    for part, rows in whole["asked"].items():
        print(part)
        for name, told in rows.items():
            print(f"  {name}:", *(f"{key} {told[key]['share']:.2f} {told[key]['interval']}" for key in SHOWN))
        for name in rows:
            for other in [*rows][[*rows].index(name) + 1 :]:
                found = apart(rows[name], rows[other])
                whole["apart"].setdefault(part, {})[f"{name} - {other}"] = found
                print(f"  {name} - {other}: {found}")
    learned_editors.write(args.out, whole)


SHOWN = ("success", "first", "last")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("command", choices=("train", "ask", "table"))
    made.add_argument("--model", default="")
    made.add_argument("--name", default=UNTRAINED)
    made.add_argument("--set", action="append", default=[])
    made.add_argument("--batch", type=int, default=2)
    made.add_argument("--steps", type=int, default=30)
    made.add_argument("--learning-rate", type=float, default=1e-2)
    made.add_argument("--train", type=int, default=1200, help="edits at most to learn from")
    made.add_argument("--characters", type=int, default=100, help="of a text that is not related")
    made.add_argument("--part", choices=("valid", "test"), default="valid")
    made.add_argument("--sequences", type=int, default=16)
    made.add_argument("--back", choices=tuple(PARTS), default="", help="what is as before training")
    made.add_argument("--steps-each", type=int, default=5, help="most steps of an edit")
    made.add_argument("--work", type=Path, default=Path("build/slag_parts"))
    made.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    made.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    made.add_argument("--seed", type=int, default=0)
    return made.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    try:
        if args.command == "table":
            table(args)
            return
        args.work.mkdir(parents=True, exist_ok=True)
        model = uptake.load(args.model, "cpu", "float32")
        (train_one if args.command == "train" else ask)(args, model)
    except UptakeError as error:
        sys.exit(f"slag_parts: {error}")


if __name__ == "__main__":
    main()
