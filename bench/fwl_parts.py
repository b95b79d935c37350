"""What fast weight layers gain before any step size is learnt, and what there is to be had.

On top of the static layer that recipes/fwl.py trained, over the hidden states of validation documents:
the layer with its first step sizes, by length of stretch and pace; explicit steps on the same weights
and on all of the layer's, once a segment; and a cache, which looks up what followed earlier states.

    python recipes/fwl.py && python bench/fwl_parts.py
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

import uptake
from uptake.lm.base import LM
from uptake.lm.examples import encode
from uptake.methods.fwl import FastWeightNetwork
from uptake.methods.fwl.model import windows
from uptake.methods.fwl.network import FAST, FastWeights
from uptake.text.types import Document

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from fwl import LEARNT, PROTOCOL, documents

PACES = (0.1, 0.3, 0.6, 1.0)
RATES = (3e-4, 1e-3, 3e-3)
WEIGHTS = (30.0, 100.0, 300.0)  # of the model beside the cache, in exact repeats
STRETCHES = (32, 128, 512, 0)


class Read(NamedTuple):
    """A document's hidden states [tokens, width], what follows each, and the tokens of its segments."""

    hidden: Tensor
    labels: Tensor
    sizes: list[int]


@torch.no_grad()
def read(lm: LM, document: Document) -> Read:
    """Return the states that `running` scores from: a segment after its context."""
    states, labels, sizes = [], [], []
    for query in PROTOCOL.queries(document):
        example = encode(lm.tokenizer, query.context, query.target)
        for hidden, known in windows(lm, example, lm.window):
            states.append(hidden[0])
            labels.append(known[0])
        sizes.append(len(example.target))
    return Read(torch.cat(states), torch.cat(labels), sizes)


class Trial:
    """Losses in nats of methods to go on from one static layer, on the same documents."""

    def __init__(self, lm: LM, static: FastWeights, texts: list[Read]) -> None:
        self.out, self.static, self.texts = lm.unembedding, static, texts

    def layer(self, stretch: int, pace: float) -> FastWeights:
        """Return the static layer with the step sizes of an untrained one."""
        width, hidden = self.static.first.shape
        layer = FastWeights(width, hidden, rate_scale=pace, stretch=stretch)
        fresh = {n: own.clone() for n, own in layer.state_dict().items() if n.startswith("log_rates")}
        layer.load_state_dict(self.static.state_dict() | fresh)
        return layer.requires_grad_(False)

    def loss(self, answers: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.out.logits(answers), labels, reduction="sum")

    def still(self) -> float:
        return sum(self.loss(self.static.still(text.hidden), text.labels).item() for text in self.texts)

    def fast(self, layer: FastWeights) -> float:
        total = 0.0
        for hidden, labels, _ in self.texts:
            answers, _ = layer(hidden[None], labels[None], self.out, layer.start(1))
            total += self.loss(answers[0], labels).item()
        return total

    def descent(self, rate: float, names: tuple[str, ...]) -> float:
        """Adam on these weights of the layer, a step after each segment."""
        total = 0.0
        for hidden, labels, sizes in self.texts:
            layer = self.layer(0, 0.0)
            moved = [cast(Tensor, getattr(layer, name)).requires_grad_() for name in names]
            optimizer = torch.optim.Adam(moved, rate)
            for states, known in zip(hidden.split(sizes), labels.split(sizes), strict=True):
                loss = self.loss(layer.still(states), known)
                total += loss.item()
                optimizer.zero_grad()
                (loss / len(known)).backward()
                optimizer.step()
        return total

    @torch.no_grad()
    def cache(self, weight: float) -> float:
        """The model's distribution, `weight` exact repeats heavy, and each earlier position by likeness."""
        total = 0.0
        for hidden, labels, _ in self.texts:
            states = functional.normalize(self.static.features(hidden), dim=-1)
            # Features never point away from one another: squared, they are told apart about as well.
            reach = (states @ states.T).square().tril(-1)
            own = self.out.logits(self.static.still(hidden)).softmax(-1).gather(-1, labels[:, None])[:, 0]
            hits = (reach * (labels[:, None] == labels)).sum(-1)
            total -= ((weight * own + hits) / (weight + reach.sum(-1))).log().sum().item()
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--static", type=Path, default=Path("build/fwl/static.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("bench/fwl_parts.json"))
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--domains", nargs="*", default=["court_opinions"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lm = uptake.load(str(arguments.shared / "models/base-5m"))
    network = replace(LEARNT, rate_scale=0.0, weights=str(arguments.static)).network(lm)
    assert isinstance(network, FastWeightNetwork)
    told: dict[str, Any] = {"documents": arguments.documents, "gain_over_static_layer": {}}
    for domain in arguments.domains:
        texts = documents(arguments.shared / "data/minipile", "valid", domain, arguments.documents)
        trial = Trial(lm, network.layer, [read(lm, text) for text in texts])
        still, losses = trial.still(), dict[str, float]()
        for stretch, pace in product(STRETCHES, PACES):
            losses[f"fwl, stretch {stretch}, pace {pace:g}"] = trial.fast(trial.layer(stretch, pace))
        for names, rate in product((FAST, ("first", "first_bias", *FAST)), RATES):
            losses[f"Adam {rate:g} on {' '.join(names)}"] = trial.descent(rate, names)
        for weight in WEIGHTS:
            losses[f"cache, model's weight {weight:g}"] = trial.cache(weight)
        gains = {name: 1 - loss / still for name, loss in losses.items()}
        for name, gain in gains.items():
            print(f"{domain}, {name}: {100 * gain:.2f} %", flush=True)
        told["gain_over_static_layer"][domain] = gains
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
