"""Trains a fast weight layer beside a real model, on source files of other packages than are tested.

    python recipes/fresh.py build
    python recipes/fresh_layer.py --model SMOLLM2 --documents 40 --valid 3 --json recipes/fresh_layer.json
    python recipes/fresh_layer.py --model SMOLLM2 --retrofit 15,20,25   # what a step of RETROfit costs

It learns from the newer versions of older packages, as long a piece of each as `fresh_methods.py` reads of
a test file, and takes the network that is best on validation files. What it cost and the losses along the
way are written down; an interrupted training goes on.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fresh_common import PROTOCOL, drawn
from fwl import RATES
from fwl_mixture import LEARNT, cut

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.errors import UptakeError
from uptake.methods.contract.learned import TrainingData
from uptake.methods.retro import Retro, TextEpisode
from uptake.train import Point, Training, train

TOKENS, CHUNK = 512, 32  # of an episode of RETROfit, and of a chunk: as in recipes/retrofit.py


def learn(given: argparse.Namespace) -> dict[str, Any]:
    """Train a layer, write it to `out`, and return its losses along the way and what they cost.

    It stops at a checkpoint once it has taken so many CPU minutes.
    """
    model, documents, out, length = given.model, given.documents, given.out, given.characters
    lm, method = uptake.load(model), replace(LEARNT, start=str(given.start or ""))
    before = time.process_time()
    told: dict[str, Any] = {
        "model": Path(model).name,
        "documents": documents,
        "characters": length,
        "goes_on": bool(given.start),
        "points": [],
    }

    def episodes(part: str, count: int) -> Any:
        return method.episodes(lm, TrainingData(tuple(cut(drawn(given.data, part), length, count))))

    def spent() -> float:
        return time.process_time() - before

    def note(point: Point) -> None:
        told["points"].append(
            {
                "step": point.step,
                "loss": point.loss if point.step else None,
                "valid": point.valid,
                "seconds": spent(),
            }
        )
        valid = f"{point.valid} on validation, {spent():.0f} s"
        print(f"step {point.step} of {point.total}: {point.loss:.4f}, {valid}", flush=True)

    network, _ = train(
        method,
        lm,
        episodes("after", documents),
        Training(
            AdamW(RATES[bool(given.start)], weight_decay=0.0),
            save_every=given.save_every,
            warm_up_and_decay=True,
        ),
        out.with_suffix(".training"),
        note,
        episodes("valid", given.valid) if given.valid else [],
        enough=lambda: spent() > 60 * given.minutes,
    )
    method.save(network, lm, out)
    told["cpu_seconds"] = spent()
    return told


def retrofit_step(model: str, layers: str) -> dict[str, float]:
    """Return the new weights of RETROfit in these layers, and the CPU seconds of a step on 512 tokens.

    A step takes as long whatever the tokens are: they are drawn at random.
    """
    lm = uptake.load(model)
    method = Retro(chunk=CHUNK, windows=1, encoder=1, layers=layers, neighbours=2)
    network = method.fresh(lm)
    draw = partial(torch.randint, len(lm.tokenizer), generator=torch.Generator().manual_seed(0))
    chunks = TOKENS // CHUNK
    episode = TextEpisode(
        draw((1, TOKENS + 1)), torch.tensor([TOKENS + 1]), draw((1, chunks, method.neighbours, 2 * CHUNK))
    )
    seconds = []
    for _ in range(2):
        started = time.process_time()
        method.loss(network, lm, episode).backward()
        seconds.append(time.process_time() - started)
    weights = sum(each.numel() for each in network.parameters() if each.requires_grad)
    return {"weights": weights, "tokens": TOKENS, "cpu_seconds": min(seconds)}


def main() -> int:
    """Train as the command says; return the status to exit with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, default=Path("build/fresh"))
    parser.add_argument("--documents", type=int, default=60, help="to learn from")
    parser.add_argument("--valid", type=int, default=4, help="validation documents")
    parser.add_argument(
        "--characters", type=int, default=PROTOCOL.prefix + PROTOCOL.suffix, help="of each document"
    )
    parser.add_argument("--start", type=Path, help="a layer to go on from")
    parser.add_argument("--save-every", type=int, default=10, help="steps from one validation to the next")
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU time, at most")
    parser.add_argument("--out", type=Path, default=Path("build/fresh/fwl.safetensors"))
    parser.add_argument("--retrofit", metavar="LAYERS", help="measure a step of RETROfit in these, no more")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if given.retrofit:
            print(json.dumps(retrofit_step(given.model, given.retrofit)))
            return 0
        told = learn(given)
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
