"""What recipes/trainable.py compares: kinds with their rates, and how a model's answers are marked."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import LoRA, Trainable
from uptake.adaptation.trainable.ia3 import IA3
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.evaluation.memory import gpu_peak_bytes, peak_bytes, reset_gpu_peak, reset_peak
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.choices import chosen
from uptake.lm.examples import Example, encode
from uptake.lm.scoring import kl
from uptake.lm.task_training import in_passes
from uptake.methods.contract.few_shot import shots_of, wrong_of
from uptake.settings import parse
from uptake.tasks.few_shot import Shot
from uptake.tasks.worlds import make_world

EQUAL = "lora like ia3"  # LoRA of as many parameters, or as nearly as its rank allows
UPPER = 3  # one block in so many is an upper one
HALF = "token_weights=randomtokens(share=0.5)"  # of a passage's tokens are learnt, drawn at random


@dataclass(frozen=True)
class Kind:
    """What is trained, {upper} a third of the blocks in it, and the rates of AdamW that are tried.

    Of a query's neighbours the `nearest` so many are read, --k if None. With `view` what enters the upper
    `view` blocks comes from a store that keeps it.
    """

    written: str
    rates: tuple[float, ...]
    nearest: int | None = None
    view: int = 0
    settings: tuple[str, ...] = ()  # of the method, besides


KINDS: Mapping[str, Kind] = {
    "all": Kind("all", (1e-5, 3e-5, 1e-4, 3e-4)),
    "top 4": Kind("top(layers=4)", (5e-5, 1.5e-4, 5e-4)),
    "lora": Kind("lora(rank=16)", (1e-4, 3e-4, 1e-3, 3e-3)),
    EQUAL: Kind("", (1e-3, 3e-3, 1e-2, 3e-2)),
    "lora upper": Kind("lora(rank=1,alpha=2,layers={upper})", (1e-3, 3e-3, 1e-2, 3e-2)),
    "ia3": Kind("ia3", (3e-3, 1e-2, 3e-2, 1e-1)),
    "ia3 upper": Kind("ia3(layers={upper})", (3e-3, 1e-2, 3e-2, 1e-1)),
    "lora, nearest 3": Kind("lora(rank=16)", (3e-4, 1e-3, 3e-3), 3),
    "lora upper, nearest 3": Kind("lora(rank=1,alpha=2,layers={upper})", (3e-3, 1e-2, 3e-2), 3),
    "ia3, nearest 3": Kind("ia3", (1e-2, 3e-2, 1e-1), 3),
    "prompt": Kind("prompt(tokens=20)", (3e-3, 1e-2, 3e-2)),
    "compacter": Kind("compacter", (1e-3, 3e-3, 1e-2)),
    "tarp": Kind("tarp", (3e-4, 1e-3, 3e-3, 1e-2)),
    **{
        f"ia3 of {layers} from view, nearest {k}": Kind(
            f"ia3(layers={layers})", (3e-3, 1e-2, 3e-2, 1e-1), k, layers
        )
        for layers, k in ((4, 8), (10, 6))
    },
    **{
        f"lora of {layers} from view, nearest {k}": Kind(
            f"lora(rank={rank},alpha={2 * rank},layers={layers})", (1e-3, 3e-3, 1e-2), k, layers
        )
        for layers, rank, k in ((4, 3, 8), (10, 1, 6))
    },
    "lora of 4 from view, half of nearest 12": Kind(
        "lora(rank=3,alpha=6,layers=4)", (1e-3, 3e-3, 1e-2), 12, 4, (HALF,)
    ),
    "lora of 4 from view, half of nearest 15": Kind(
        "lora(rank=3,alpha=6,layers=4)", (3e-3, 1e-2), 15, 4, (HALF,)
    ),
}


def middle(rates: Sequence[float], count: int | None) -> Sequence[float]:
    """Return `count` rates from the middle of a list, all if None."""
    some = len(rates) if count is None else min(count, len(rates))
    start = (len(rates) - some) // 2
    return rates[start : start + some]


def best_rate(
    rates: Sequence[float], count: int | None, loss: Callable[[float], float | None], climb: bool = True
) -> float | None:
    """Return the rate that costs least on validation text; None where a loss is missing.

    Tried are `count` from the middle of a list, all if None. To climb is to try what stands beside the best
    as well, until it is between two worse ones or the list ends.
    """
    found: dict[float, float] = {}
    wanted = [*middle(rates, count)]
    if len(wanted) == 1 and not climb:
        return wanted[0]
    while wanted:
        for rate in wanted:
            cost = loss(rate)
            if cost is None:
                return None
            found[rate] = cost
        place = rates.index(min(found, key=found.__getitem__))
        beside = rates[max(0, place - 1) : place + 2] if climb else ()
        wanted = [rate for rate in beside if rate not in found]
    return min(found, key=found.__getitem__)


def trainable_of(lm: Causal, name: str) -> Trainable:
    """Return what a kind trains of this model."""
    count = len(blocks(lm.module)[1])
    if name == EQUAL:
        wanted = parameters_of(lm, IA3())
        choices = [LoRA(rank=1, alpha=2, layers=layers) for layers in range(1, count + 1)]
        return min(choices, key=lambda each: abs(parameters_of(lm, each) - wanted))
    written = KINDS[name].written.format(upper=max(1, count // UPPER))
    found: Trainable = parse(Trainable, written, "trainable")
    return found


def parameters_of(lm: Causal, trainable: Trainable) -> int:
    """Return how many numbers train."""
    opened = trainable.copy(lm.module, Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    return sum(parameter.numel() for parameter in opened.parameters.values())


def bytes_of(delta: Delta) -> int:
    """Return the size of a delta's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta"
        delta.save(path)
        return path.stat().st_size


@dataclass
class Spent:
    """What a block took: CPU seconds, seconds on the clock, and the most memory in bytes, on a GPU that of
    its tensors, else of the process.
    """

    cpu: float = 0.0
    wall: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)


@contextmanager
def spending(lm: LM) -> Iterator[Spent]:
    """Measure a block; on a GPU all that it started is waited for."""
    on_gpu, spent = lm.device.type == "cuda", Spent()
    if on_gpu:
        torch.cuda.synchronize()
        reset_gpu_peak(lm.device)
    else:
        reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    yield spent
    if on_gpu:
        torch.cuda.synchronize()
    spent.cpu, spent.wall = time.process_time() - cpu, time.perf_counter() - wall
    spent.memory = {"gpu_bytes": gpu_peak_bytes(lm.device)} if on_gpu else {"peak_bytes": peak_bytes()}


@dataclass(frozen=True)
class Marks:
    """How shots were answered, one of each a shot: nats and tokens of the answer, whether it was said, and
    picked among wrong ones (NaN of those without).
    """

    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    said: tuple[bool, ...] = ()
    picked: tuple[float, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the marks as JSON data."""
        return {name: list(getattr(self, name)) for name in ("nats", "tokens", "said", "picked")}


def marks(lm: LM, shots: Sequence[Shot], base: LM, before: str = "") -> Marks:
    """Return how a model answers. `before` is read before each prompt, as far as it fits.

    An answer is said where each of its tokens is the likeliest after those before it.
    """
    asked = [Shot(before + shot.prompt, shot.answer, shot.wrong) for shot in shots]
    model = lm.at([0]) if lm.rows is not None else lm
    alone = getattr(model, "parts", [model])[0]
    examples = shots_of(alone, asked)
    if len(examples) != len(shots):
        raise BadInput("a shot's answer is longer than the model's window: make shorter ones")
    found: list[tuple[float, int, bool]] = [(0.0, 0, False)] * len(shots)
    with torch.no_grad():
        for places in in_passes(base, examples):
            told = alone.predictions([examples[place] for place in places])
            for place, log_probs in zip(places, told, strict=True):
                target = torch.tensor(examples[place].target, device=log_probs.device)
                own = log_probs.gather(-1, target[:, None])[:, 0].double()
                found[place] = -float(own.sum()), len(target), bool((log_probs.argmax(-1) == target).all())
    wrong = wrong_of(alone, [shot.passage() for shot in asked])
    marked = [each for each in examples if each in wrong]
    picks = iter(chosen(alone, marked, wrong))
    picked = [float(next(picks) == 0) if each in wrong else float("nan") for each in examples]
    nats, tokens, said = zip(*found, strict=True)
    return Marks(nats, tokens, said, tuple(picked))


@dataclass
class Unrelated:
    """Text that has nothing to do with anything, for what a change costs elsewhere."""

    examples: list[Example] = field(default_factory=list)

    @classmethod
    def of(cls, lm: Causal, texts: int = 4, tokens: int = 256) -> "Unrelated":
        """Return the beginnings of made-up texts."""
        made = make_world(1, unrelated=texts, split="valid", seed=5).unrelated
        whole = [encode(lm.tokenizer, "", document.text) for document in made]
        return cls([each.part(0, min(tokens, len(each.target)), tokens) for each in whole])

    def kl(self, lm: Causal, adapted: LM) -> float:
        """Return KL(base || adapted), in nats a token."""
        alone = getattr(adapted, "parts", [adapted])[0]
        with torch.no_grad():
            return float(torch.cat(kl(lm, alone, self.examples)).double().mean())
