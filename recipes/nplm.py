"""NPLM and Transformer-N trained from scratch on the mini-Pile, beside a Transformer of equal parameters.

All take the same steps on the same text; the same command goes on after an interruption. `methods` asks
then which of Uptake's methods gains most on each, on fresh text that none has read.

    python recipes/nplm.py train --device cuda --seconds 150 --out recipes/nplm.json
    python recipes/nplm.py methods --device cuda --data build/fresh --out recipes/nplm_methods.json
"""

import argparse
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh_common import drawn, store_of
from pretraining import Clock, Pupil, Stream, batches, pile, precision, resume, save, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import uptake
from uptake.lm.loading import load_tokenizer
from uptake.lm.nplm.configuration import NPLMConfig
from uptake.lm.nplm.network import NPLMForCausalLM
from uptake.report.metrics import gain, gain_interval

NAMES = {"transformer": "all", "transformer-n": "later", "nplm": "none"}  # and which layers attend
LN2 = math.log(2)
SIZES = {
    "small": {
        "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1024,
        "bottleneck": 512,
    },
    "little": {  # what a CPU trains in minutes
        "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 512,
        "bottleneck": 256,
    },
    "tiny": {  # what a busy core trains in minutes
        "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 256,
        "bottleneck": 128,
    },
    "toy": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64,
        "bottleneck": 32,
    },
}  # fmt: skip
NEAR, AVERAGES = {"nplm": 15, "transformer-n": 5}, {"nplm": 5, "transformer-n": 1}  # as published
METHODS = ("base", "random", "ttt-nn", "in-context", "n-gram", "dynamic-evaluation")
SETTINGS = {
    **dict.fromkeys(("ttt-nn", "random"), ("trainable=all", "learning_rate=3e-4")),
    "dynamic-evaluation": ("trainable=all", "learning_rate=1e-4"),
}


def configurations(size: str, vocabulary: int, window: int, opening: int) -> dict[str, NPLMConfig]:
    """Return the three kinds; the width of feed-forwards makes up for what attention has or has not."""
    made: dict[str, NPLMConfig] = {}
    for name, attention in NAMES.items():
        near = NEAR.get(name, 1)
        common: dict[str, Any] = {
            **SIZES[size], "vocab_size": vocabulary, "max_position_embeddings": window,
            "attention": attention, "near": near, "averages": AVERAGES.get(name, 1),
            "far": max(1, window - near - 1), "bos_token_id": opening, "eos_token_id": opening,
        }  # fmt: skip
        made[name] = NPLMConfig(**common)
        if name != "transformer":
            width, inner = common["hidden_size"], common["intermediate_size"]
            more = weights(made["transformer"]) - weights(made[name])
            layers = common["num_hidden_layers"] - 1
            common["intermediate_size"] = inner + round(more / ((2 * width + 1) * layers))
            made[name] = NPLMConfig(**common)
    return made


def weights(config: NPLMConfig) -> int:
    """Return how many weights a network of this configuration has."""
    with torch.device("meta"):
        return sum(each.numel() for each in NPLMForCausalLM(config).parameters())


def loss_of(network: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean loss in nats a token of windows [rows, time + 1]."""
    logits = network(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def bits(network: nn.Module, ids: Tensor, device: str) -> list[float]:
    """Return the bits of each window but for its first token."""
    network.eval()
    with torch.no_grad(), precision(device):
        logits = network(input_ids=ids[:, :-1], use_cache=False).logits
        each = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
    return (each.view(len(ids), -1).double().sum(1) / LN2).tolist()


class Windows:
    """Windows of a stream as tensors; where each begins, its document, and the bytes it scores."""

    def __init__(self, text: Stream, size: int, device: str, tokenizer: Any) -> None:
        self.text, self.size, self.device, self.tokenizer = text, size + 1, device, tokenizer
        self.starts = text.windows(self.size)

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        rows = self.text.at(self.starts[np.asarray(numbers)], self.size)
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def some(self, count: int) -> np.ndarray:
        """Return so many of the windows, spread over all."""
        return np.unique(np.linspace(0, len(self.starts) - 1, min(count, len(self.starts))).astype(int))

    def bytes(self, number: int) -> int:
        """Return the bytes of the tokens that a window scores; opening tokens have none."""
        ids = self.batch([number])[0, 1:].tolist()
        return len(self.tokenizer.inner.decode(ids, skip_special_tokens=True).encode())


def scored(pupil: Pupil, windows: Windows, numbers: np.ndarray, batch: int) -> list[float]:
    parts = [numbers[at : at + batch] for at in range(0, len(numbers), batch)]
    return [each for part in parts for each in bits(pupil.network, windows.batch(part), windows.device)]


def validate(pupils: Sequence[Pupil], valid: Windows, numbers: np.ndarray, sizes: int, batch: int) -> None:
    for pupil in pupils:
        rate = sum(scored(pupil, valid, numbers, batch)) / sizes
        pupil.course.append({"step": pupil.steps, "valid": rate, "seconds": round(pupil.seconds, 1)})
        print(f"  {pupil.name}: {pupil.course[-1]}", flush=True)


def measured(pupils: Sequence[Pupil], test: Windows, count: int, batch: int) -> dict[str, Any]:
    """Return each network's bits a byte on test text, and its gain over the Transformer by document."""
    numbers = test.some(count)
    sizes = [test.bytes(number) for number in numbers]
    owners = [int(test.text.owner[test.starts[number]]) for number in numbers]
    kinds = [test.text.domains[owner] for owner in owners]
    told: dict[str, Any] = {}
    base: list[float] = []
    for pupil in pupils:
        found = scored(pupil, test, numbers, batch)
        base = base or found
        rates = {
            kind: sum(b for b, k in zip(found, kinds, strict=True) if k == kind)
            / sum(s for s, k in zip(sizes, kinds, strict=True) if k == kind)
            for kind in sorted(set(kinds))
        }
        told[pupil.name] = {
            "parameters": pupil.parameters,
            "seconds_a_step": pupil.seconds / max(1, pupil.steps),
            "bits_per_byte": sum(found) / sum(sizes),
            "gain": gain(found, base),
            "gain_ci": list(gain_interval(found, base, [str(owner) for owner in owners]) or ()),
            "kinds": rates,
            "windows": [[owner, round(value, 2)] for owner, value in zip(owners, found, strict=True)],
            "course": pupil.course,
        }
    return told


def train(arguments: Any) -> None:
    """Train all three, in turn on the same batches, and measure them."""
    clock = Clock(arguments.seconds)
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(arguments.tokenizer)
    texts, held, test = (
        Windows(pile(arguments.pile, part, tokenizer, most), arguments.window, arguments.device, tokenizer)
        for part, most in (("train", arguments.characters), ("valid", 1e6), ("test", math.inf))
    )
    vocabulary = -(-len(tokenizer.inner) // 64) * 64
    kinds = configurations(arguments.size, vocabulary, arguments.window, tokenizer.opening)
    pupils = []
    for name, config in kinds.items():
        torch.manual_seed(0)
        network = NPLMForCausalLM(config).to(arguments.device)
        pupils.append(Pupil(name, network, arguments.rate, arguments.warm_up))
    done = resume(pupils, arguments.work)
    following = batches(len(texts.starts), arguments.batch, 0, done)
    numbers = held.some(arguments.valid)
    sizes = sum(held.bytes(number) for number in numbers)
    print(f"  {len(texts.text.tokens):,} tokens, {[pupil.parameters for pupil in pupils]}", flush=True)
    while done < arguments.steps and not clock.over:
        ids = texts.batch(following())
        for pupil in pupils:
            pupil.learn(partial(loss_of, ids=ids), arguments.device)
        done += 1
        if done % arguments.every == 0:
            validate(pupils, held, numbers, sizes, arguments.batch)
            if clock.save_now():
                save(pupils, arguments.work)
    if not pupils[0].course or pupils[0].course[-1]["step"] != done:
        validate(pupils, held, numbers, sizes, arguments.batch)
    for pupil in pupils:
        pupil.network.save_pretrained(arguments.work / pupil.name)  # type: ignore[operator]
        tokenizer.inner.save_pretrained(arguments.work / pupil.name)
    told = {
        "settings": {
            name: getattr(arguments, name)
            for name in ("device", "size", "batch", "window", "rate", "warm_up", "test")
        },
        "steps": done,
        "tokens": done * arguments.batch * arguments.window,
        "text_tokens": len(texts.text.tokens),
        "networks": measured(pupils, test, arguments.test, arguments.batch),
    }
    write(arguments.out, told)
    show(told)
    save(pupils, arguments.work)


def compare(arguments: Any) -> None:
    """Ask which method gains most on each network, on fresh documents."""
    store = store_of(arguments.data, arguments.work / "fresh.store")
    documents = drawn(arguments.data, "test")[: arguments.documents]
    told: dict[str, Any] = {"documents": len(documents), "networks": {}}
    table = Table("network", "method", "bits a byte", "gain, %", box=None)
    for name in NAMES:
        if not (arguments.work / name / "config.json").is_file():
            continue
        lm = uptake.load(str(arguments.work / name), arguments.device)
        settings = [f"{each}.{one}" for each in arguments.methods for one in SETTINGS.get(each, ())]
        results = uptake.compare(
            lm, documents, list(arguments.methods), store=store, k=arguments.k, settings=settings
        )
        told["networks"][name] = found = uptake.summary(results)["methods"]
        write(arguments.out, told)
        for method, figures in found.items():
            ends = ", ".join(f"{100 * end:.1f}" for end in figures["gain_ci"] or ())
            table.add_row(
                name, method, f"{figures['bits_per_byte']:.3f}", f"{100 * figures['gain']:.1f} [{ends}]"
            )
    Console(width=110).print(table)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    commands = parser.add_subparsers(dest="command", required=True)
    for command, run in (("train", train), ("methods", compare)):
        part = commands.add_parser(command)
        part.set_defaults(run=run)
        part.add_argument("--device", default="cpu")
        part.add_argument("--work", type=Path, default=Path("build/nplm"))
        part.add_argument("--out", type=Path, default=Path(f"build/nplm_{command}.json"))
    part.add_argument("--data", type=Path, default=Path("build/fresh"), help="folder of recipes/fresh.py")
    part.add_argument("--documents", type=int, default=12)
    part.add_argument("--methods", nargs="+", default=METHODS)
    part.add_argument("--k", type=int, default=20)
    part = commands.choices["train"]
    part.add_argument("--pile", type=Path, default=shared / "data/minipile")
    part.add_argument("--tokenizer", default=str(shared / "models/base-5m"))
    part.add_argument("--size", choices=SIZES, default="small")
    part.add_argument("--seconds", type=float, default=math.inf, help="of this call, reading included")
    part.add_argument("--steps", type=int, default=2000, help="of each network, in all")
    part.add_argument("--every", type=int, default=100, help="steps between looks at validation text")
    part.add_argument("--batch", type=int, default=32, help="windows a step")
    part.add_argument("--window", type=int, default=512, help="tokens")
    part.add_argument("--rate", type=float, default=1e-3, help="learning rate, which warms up and falls")
    part.add_argument("--warm-up", type=int, default=200, help="steps")
    part.add_argument("--test", type=int, default=512, help="test windows")
    part.add_argument("--valid", type=int, default=64, help="validation windows")
    part.add_argument("--characters", type=float, default=math.inf, help="of training text")
    arguments = parser.parse_args(given)
    arguments.run(arguments)


def show(told: Any) -> None:
    table = Table("network", "M parameters", "s a step", "bits a byte", "gain, %", box=None)
    for name, each in told["networks"].items():
        ends = ", ".join(f"{100 * end:.2f}" for end in each["gain_ci"])
        table.add_row(
            name, f"{each['parameters'] / 1e6:.2f}", f"{each['seconds_a_step']:.3f}",
            f"{each['bits_per_byte']:.3f}", f"{100 * each['gain']:.2f} [{ends}]",
        )  # fmt: skip
    Console(width=110).print(f"after {told['tokens'] / 1e6:.1f} M tokens", table)


if __name__ == "__main__":
    main()
