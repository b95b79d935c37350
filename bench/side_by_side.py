"""What private adaptations cost side by side: decoding and training many rows, each with its own LoRA.

Decoding: `side by side` against `loop`, each row's adapted model by itself, and `plain`, the same batch of
the base without adaptations. Training: all rows together against one after another through peft. Seconds are
CPU seconds on one thread, medians of rounds in which all take turns; ratios are medians of the rounds' own.
On a GPU they are seconds of the clock. Where the loop runs fewer rows than there are (`looped`), its seconds
are reckoned from those.

    OMP_NUM_THREADS=1 python bench/side_by_side.py             # writes bench/side_by_side.json
    OMP_NUM_THREADS=1 python bench/side_by_side.py --gpt2      # a random GPT-2 shape of 110 M as well
    OMP_NUM_THREADS=1 python bench/side_by_side.py --model M   # any causal model, by name or folder, as well
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import gradient_descent
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import Losses, chain
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece
from uptake.lm.scoring import losses
from uptake.lm.side_by_side import side_by_side, train_side_by_side
from uptake.lm.wrappers import Routed
from uptake.sealed import write_whole

DEMO = Path(__file__).parent.parent / "examples/demo-model"


@dataclass(frozen=True)
class Load:
    """How much of everything is measured."""

    rows: tuple[int, ...] = (4, 8, 16, 32)  # of decoding
    steps: int = 12  # tokens a row decodes in a round
    rounds: int = 11
    copies: int = 32  # adapted models the loop holds at most: each is a whole model
    looped: int = 128  # rows the loop runs at most; it takes the same for each, so the rest is reckoned
    shapes: tuple[tuple[int, int], ...] = ((4, 32), (4, 128), (8, 128), (8, 300))  # rows, tokens: of training
    pieces: int = 6  # steps of training a row


# GPT-2 takes seconds a round on a CPU, and a third of a gigabyte a copy.
SMALL = Load((16,), steps=6, rounds=5, copies=2, shapes=((4, 128),), pieces=2)


def gpt2(tokenizer: Any, device: str) -> Causal:
    """Return a GPT-2 of twelve layers with random weights."""
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=32_000))
    return Causal(module.to(device), tokenizer, base="random")


def deltas(lm: Causal, rows: int, rank: int) -> list[Delta]:
    """Return random low-rank deltas over every matrix of the blocks, small enough to keep the model sane."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(rows):
        begun = LoRA(rank).stackable(lm.module, Delta(lm.fingerprint), generator)
        assert begun is not None
        parts = {
            name: replace(part, up=torch.randn(part.up.shape, generator=generator).to(part.up) / 100)
            for name, part in begun.items()
        }
        made.append(Delta.of(lm.fingerprint, parts, "lora"))
    return made


def clock(lm: Causal) -> float:
    if lm.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def decode(model: LM, lm: Causal, prompts: Tensor, steps: int) -> float:
    """Return the seconds of `steps` greedy tokens for every row, after the prompts."""
    with torch.no_grad():
        log_probs, cache = model.step(prompts, model.start())
        started = clock(lm)
        for _ in range(steps):
            log_probs, cache = model.step(log_probs[:, -1:].argmax(-1), cache)
        return clock(lm) - started


def rounds(jobs: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Return the seconds of each job, `count` times in turns, after a turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(count + 1):
        for name, job in jobs.items():
            taken = job()
            if turn > 0:
                seconds[name].append(taken)
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    return round(median(one / other for one, other in zip(of, to, strict=True)), 3)


def decoding(lm: Causal, rows: int, rank: int, load: Load) -> dict[str, Any]:
    some, steps = deltas(lm, rows, rank), load.steps
    prompts = torch.randint(1, len(lm.tokenizer), (rows, 32), generator=torch.Generator().manual_seed(1))
    looped = min(rows, load.looped)
    models: dict[str, tuple[LM, int]] = {
        "plain": (lm, rows),
        "side_by_side": (side_by_side(lm, some), rows),
        "loop": (Routed((rows * [lm.overlay(delta) for delta in some[: load.copies]])[:looped]), looped),
    }

    def job(model: LM, ran: int) -> Callable[[], float]:
        return lambda: decode(model, lm, prompts[:ran].to(lm.device), steps) * rows / ran

    seconds = rounds({name: job(model, ran) for name, (model, ran) in models.items()}, load.rounds)
    return {
        "times_loop": ratio(seconds["loop"], seconds["side_by_side"]),
        "times_plain": ratio(seconds["side_by_side"], seconds["plain"]),
        "tokens": rows * steps,
        "looped": looped,
        "seconds": {name: [round(each, 4) for each in own] for name, own in seconds.items()},
        "tokens_a_second": {name: round(rows * steps / median(own), 1) for name, own in seconds.items()},
    }


def training(lm: Causal, rows: int, tokens: int, rank: int, load: Load) -> dict[str, Any]:
    """Measure whole readings: opening, steps of AdamW over so many tokens each, reading off the delta."""
    steps = load.pieces
    generator, weights = torch.Generator().manual_seed(1), torch.ones(tokens, device=lm.device)
    texts = torch.randint(1, len(lm.tokenizer), (rows, steps, tokens + 1), generator=generator).tolist()
    pieces = [[Piece(Example((text[0],), tuple(text[1:])), weights, "") for text in own] for own in texts]
    start, trainable, optimizer, clip = Delta(lm.fingerprint), LoRA(rank), AdamW(1e-4), chain(1.0)
    looped = min(rows, load.looped)

    def loop() -> float:
        started = clock(lm)
        for own in pieces[:looped]:
            private, copy = lm.trainable_copy(trainable, start, torch.Generator().manual_seed(0))

            def losses_of(piece: Piece, private: LM = private) -> Losses:
                return Losses.one(losses(private, [piece.example], [piece.weights])[0], "")

            gradient_descent(losses_of, copy.parameters, own, optimizer, clip)
            copy.delta()
        return (clock(lm) - started) * rows / looped

    def together() -> float:
        started = clock(lm)
        generators = [torch.Generator().manual_seed(0) for _ in range(rows)]
        assert train_side_by_side(lm, trainable, [start] * rows, generators, pieces, optimizer, clip)
        return clock(lm) - started

    seconds = rounds({"loop": loop, "side_by_side": together}, (load.rounds + 1) // 2)
    return {
        "times_loop": ratio(seconds["loop"], seconds["side_by_side"]),
        "tokens": rows * tokens * steps,
        "looped": looped,
        "seconds": {name: [round(each, 4) for each in own] for name, own in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/side_by_side.json"))
    parser.add_argument("--gpt2", action="store_true", help="a random GPT-2 shape of 110 M too; takes 2 GB")
    parser.add_argument("--model", help="a name or folder: this model too, at as few rounds as GPT-2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    demo = uptake.load(str(DEMO), device=arguments.device)
    found: dict[str, Any] = {"device": arguments.device, "torch": torch.__version__, "rank": arguments.rank}
    found |= measured("demo", demo, arguments.rank, Load())
    load = SMALL if arguments.device == "cpu" else Load()
    if arguments.model:
        name = Path(arguments.model).name
        found[name] = measured(
            name, uptake.load(arguments.model, device=arguments.device), arguments.rank, load
        )
    if arguments.gpt2:
        found["gpt2"] = measured("GPT-2", gpt2(demo.tokenizer, arguments.device), arguments.rank, load)
    write_whole(arguments.out, json.dumps(found, indent=1).encode())


def measured(name: str, lm: Causal, rank: int, load: Load) -> dict[str, Any]:
    """Measure one model and print what was found."""
    figures = {
        "decode": {str(rows): decoding(lm, rows, rank, load) for rows in load.rows},
        "train": {f"{rows}x{tokens}": training(lm, rows, tokens, rank, load) for rows, tokens in load.shapes},
    }
    show(name, figures)
    return figures


def show(name: str, figures: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        "rows",
        "plain",
        "side by side",
        "loop",
        "x loop",
        "x plain",
        title=f"{name}, decoding: tokens a second",
    )
    for rows, line in figures["decode"].items():
        rates = (f"{line['tokens_a_second'][each]:.0f}" for each in ("plain", "side_by_side", "loop"))
        table.add_row(rows, *rates, f"{line['times_loop']:.2f}", f"{line['times_plain']:.2f}")
    console.print(table)
    table = Table("rows x tokens", "side by side", "loop", "x loop", title=f"{name}, training: seconds")
    for shape, line in figures["train"].items():
        seconds = (f"{median(line['seconds'][each]):.2f}" for each in ("side_by_side", "loop"))
        table.add_row(shape, *seconds, f"{line['times_loop']:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
