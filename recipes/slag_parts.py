"""Which part of what a trained SLAG network writes costs the edits that were made before.

    python recipes/slag_parts.py --model MODEL --work WORK --edits 200 slag-ten.json slag-one.json

Takes runs of `learned_editors.py slag`, whose networks lie in `--work`; puts one part of a network after
another back to what it was before training, and asks for all edits of sequences of ten. It goes by edits of
the part `valid`, so that what is learnt from it may be used in another training.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import learned_editors

import uptake
from uptake.adaptation.editing.slag import Head, SlagNetwork
from uptake.errors import UptakeError
from uptake.lm.causal import Causal
from uptake.methods.slag import Slag

# What is put back, by the places of a head's outputs: a, a', b, b', η.
PARTS: dict[str, tuple[int, ...]] = {
    "as trained": (),
    "without B": (1, 3),
    "the gradient's part as at birth": (0, 2),
    "a as at birth": (0,),
    "η as at birth": (4,),
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


def parts(args: argparse.Namespace, model: Causal) -> dict[str, Any]:
    """Return what is said after sequences of ten edits, for each run and each part that is put back."""
    edits = learned_editors.parts_of(Path(args.shared), 2, args.edits, 2)["valid"]
    found: dict[str, Any] = {}
    for file in args.files:
        run = json.loads(file.read_text())
        known = {field.name for field in fields(Slag)}
        learner = Slag(**{name: value for name, value in run["settings"].items() if name in known})
        network = learner.load(args.work / f"{run['name']}.safetensors", model)
        assert isinstance(network, SlagNetwork)
        for name, places in PARTS.items():
            method = replace(learner.with_network(as_at_birth(network, places)), steps=args.steps_each)
            told = learned_editors.sequences(method, model, edits)
            found.setdefault(run["name"], {})[name] = told
            print(run["name"], name, json.dumps(told), file=sys.stderr)
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("files", nargs="+", type=Path, help="runs of learned_editors.py slag")
    made.add_argument("--model", required=True)
    made.add_argument("--work", type=Path, default=Path("build/learned_editors"))
    made.add_argument("--edits", type=int, default=200)
    made.add_argument("--steps-each", type=int, default=5)
    made.add_argument("--shared", default=os.environ.get("UPTAKE_SHARED", "../shared") + "/data")
    made.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    return made.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    try:
        learned_editors.write(args.out, parts(args, uptake.load(args.model, "cpu", "float32")))
    except UptakeError as error:
        sys.exit(f"slag_parts: {error}")


if __name__ == "__main__":
    main()
