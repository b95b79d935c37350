"""A small T5 and a small Switch trained from scratch on the mini-Pile, beside two dense baselines.

Span corruption, as T5 was trained. `dense` spends on a token what `switch` does, `wide` has as many
parameters. All take the same steps on the same text; the same command goes on after an interruption.

    python recipes/seq2seq.py --device cuda --seconds 150 --out recipes/seq2seq.json
"""

import argparse
import copy
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretraining import Clock, Pupil, Stream, batches, patiently, pile, precision, resume, save, write
from rich.console import Console
from rich.table import Table
from switch_routing import Routing
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from uptake.lm.loading import load_tokenizer
from uptake.report.metrics import gain, gain_interval
from uptake.tasks.span_corruption import SpanCorruption
from uptake.text.tokenizer import Tokenizer

END, PAD, SENTINELS = "</s>", "<pad>", 100
EXPERTS, CAPACITY, BALANCE = 8, 1.25, 0.01  # as published
SIZES = {
    "small": {"d_model": 384, "d_kv": 64, "num_heads": 6, "num_layers": 6, "d_ff": 1024},
    "tiny": {"d_model": 128, "d_kv": 32, "num_heads": 4, "num_layers": 4, "d_ff": 384},  # minutes of a CPU
    "toy": {"d_model": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2, "d_ff": 48},
}
NAMES = ("dense", "switch", "wide")
Batch = tuple[Tensor, Tensor]  # inputs and labels, [windows, tokens]


def tokenizer_of(folder: str) -> Tokenizer:
    """Return a folder's tokenizer with T5's end token, padding and sentinels, the first of the highest id."""
    inner: Any = copy.deepcopy(load_tokenizer(folder).inner)
    names = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
    inner.add_special_tokens({"pad_token": PAD, "eos_token": END, "additional_special_tokens": names})
    inner.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, inner.eos_token_id)]
    )
    return Tokenizer(inner)


def networks(tokenizer: Tokenizer, size: str, inputs: int) -> dict[str, nn.Module]:
    """Return the three networks, at random from one seed; `Routing` is put on the sparse one later."""
    inner = tokenizer.inner
    common: Any = {
        **SIZES[size],
        "vocab_size": -(-len(inner) // 64) * 64,
        "pad_token_id": inner.pad_token_id,
        "eos_token_id": inner.eos_token_id,
        "decoder_start_token_id": inner.pad_token_id,
        "dropout_rate": 0.0,
    }
    half = common["num_layers"] // 2
    torch.manual_seed(0)
    dense = T5ForConditionalGeneration(T5Config(**common, n_positions=inputs))
    torch.manual_seed(0)
    switch = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            **common, num_decoder_layers=common["num_layers"], num_sparse_encoder_layers=half,
            num_sparse_decoder_layers=half, num_experts=EXPERTS,
            expert_capacity=math.ceil(CAPACITY * inputs / EXPERTS), router_aux_loss_coef=BALANCE,
            router_z_loss_coef=0.0, router_jitter_noise=0.0, n_positions=inputs,
        )
    )  # fmt: skip
    # Every feed-forward wider by as much as makes up for the experts.
    more = _size(switch) - _size(dense)
    each = 2 * common["d_model"] * 2 * common["num_layers"]
    torch.manual_seed(0)
    wider = {**common, "d_ff": common["d_ff"] + round(more / each)}
    wide = T5ForConditionalGeneration(T5Config(**wider, n_positions=inputs))
    return dict(zip(NAMES, (dense, switch, wide), strict=True))


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class Corrupted:
    """Windows of a stream as batches: the same windows in the same spans for whoever asks."""

    def __init__(self, text: Stream, corruption: SpanCorruption, end: int, inputs: int, device: str) -> None:
        self.text, self.corruption, self.end, self.device = text, corruption, end, device
        self.size = corruption.raw_tokens(inputs)
        self.starts = text.windows(self.size)

    def batch(self, numbers: Sequence[int] | np.ndarray, seed: Sequence[int]) -> Batch:
        generator = np.random.default_rng(list(seed))
        pairs = [
            self.corruption.corrupt(row.tolist(), generator)
            for row in self.text.at(self.starts[np.asarray(numbers)], self.size)
        ]
        inputs = torch.tensor([[*given, self.end] for given, _ in pairs])
        labels = torch.tensor([[*wanted, self.end] for _, wanted in pairs])
        return inputs.to(self.device), labels.to(self.device)

    def some(self, count: int) -> np.ndarray:
        """Return so many of the windows, spread over all."""
        return np.unique(np.linspace(0, len(self.starts) - 1, min(count, len(self.starts))).astype(int))


def loss_of(network: nn.Module, batch: Batch, routing: Routing) -> Tensor:
    """Return the mean loss of a batch in nats a token, with what keeps a Switch's experts in balance."""
    inputs, labels = batch
    routing.clear()
    found: Tensor = network(input_ids=inputs, labels=labels, use_cache=False).loss
    return found + BALANCE * torch.stack(routing.balance).sum() if routing.balance else found


def nats(network: nn.Module, batch: Batch, device: str) -> list[float]:
    """Return the nats of each window's target, without the loss that balances experts."""
    inputs, labels = batch
    network.eval()
    with torch.no_grad(), precision(device):
        logits = network(input_ids=inputs, labels=labels, use_cache=False).logits
        each = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).double().sum(1).tolist()


def flops(network: nn.Module, batch: Batch) -> int:
    """Return the floating-point operations of a forward pass over one window, as they are counted."""
    one = batch[0][:1], batch[1][:1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(input_ids=one[0], labels=one[1], use_cache=False)
    return int(counter.get_total_flops())


def validate(pupils: Sequence[Pupil], held: Sequence[Batch], read: int, device: str) -> None:
    for pupil in pupils:
        some = [each for batch in held for each in patiently(partial(nats, pupil.network, batch, device))]
        mean = sum(some) / (len(some) * held[0][1].shape[1])
        pupil.course.append(
            {"step": pupil.steps, "tokens": read, "valid": mean, "seconds": round(pupil.seconds, 1)}
        )
        print(f"  {pupil.name}: {pupil.course[-1]}", flush=True)


def measured(
    pupils: Sequence[Pupil], routing: Mapping[str, Routing], test: Corrupted, arguments: Any
) -> dict[str, Any]:
    """Return each network's nats a token on test text, its gain over the dense one, by kind of text too."""
    numbers = test.some(arguments.test)
    owners = [int(test.text.owner[test.starts[number]]) for number in numbers]
    kinds = [test.text.domains[owner] for owner in owners]
    names = [str(owner) for owner in owners]
    parts = [numbers[at : at + arguments.batch] for at in range(0, len(numbers), arguments.batch)]
    made = [test.batch(part, (2, number)) for number, part in enumerate(parts)]
    target = made[0][1].shape[1]
    told: dict[str, Any] = {}
    base: list[float] = []
    for pupil in pupils:
        routing[pupil.name].clear()
        found = [
            each
            for batch in made
            for each in patiently(partial(nats, pupil.network, batch, arguments.device))
        ]
        taken = routing[pupil.name].taken
        base = base or found
        one = told[pupil.name] = {
            "parameters": pupil.parameters,
            "flops_of_a_window": flops(pupil.network, made[0]),
            "seconds_a_step": pupil.seconds / pupil.steps,
            "test": sum(found) / (len(found) * target),
            "gain": gain(found, base),
            "gain_ci": list(gain_interval(found, base, names) or ()),
            "kinds": {
                kind: sum(n for n, k in zip(found, kinds, strict=True) if k == kind)
                / (kinds.count(kind) * target)
                for kind in sorted(set(kinds))
            },
            "windows": [[name, round(value, 3)] for name, value in zip(names, found, strict=True)],
            "course": pupil.course,
        }
        if taken:
            shares = torch.stack(taken).cpu()
            one["dropped"] = float(1 - shares.sum(1).mean())
            one["expert_shares"] = [float(least) for least in shares.sort(1).values.mean(0)]
    return told


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    parser.add_argument("--pile", type=Path, default=shared / "data/minipile")
    parser.add_argument("--tokenizer", default=str(shared / "models/base-5m"))
    parser.add_argument("--work", type=Path, default=Path("build/seq2seq"))
    parser.add_argument("--out", type=Path, default=Path("build/seq2seq.json"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="of training in this call, all networks"
    )
    parser.add_argument("--steps", type=int, default=2000, help="of each network, in all")
    parser.add_argument("--every", type=int, default=100, help="steps between looks at validation text")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--inputs", type=int, default=512, help="tokens that the encoder reads")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate, which warms up and falls")
    parser.add_argument("--test", type=int, default=384, help="test windows")
    parser.add_argument("--characters", type=float, default=math.inf, help="of training text")
    arguments = parser.parse_args(given)
    clock = Clock(arguments.seconds)
    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(arguments.tokenizer)
    corruption, end = SpanCorruption.of(tokenizer), int(tokenizer.inner.eos_token_id)
    train, valid, test = (
        Corrupted(
            pile(arguments.pile, part, tokenizer, most), corruption, end, arguments.inputs, arguments.device
        )
        for part, most in (("train", arguments.characters), ("valid", 2e6), ("test", math.inf))
    )
    print(f"  {len(train.text.tokens):,} tokens to train on, {len(train.starts):,} windows", flush=True)
    made = networks(tokenizer, arguments.size, arguments.inputs)
    pupils = [Pupil(name, each.to(arguments.device), arguments.rate) for name, each in made.items()]
    routing = {pupil.name: Routing(pupil.network) for pupil in pupils}
    done = resume(pupils, arguments.work)
    following = batches(len(train.starts), arguments.batch, 0, done)
    some = valid.some(2 * arguments.batch)
    held = [
        valid.batch(some[at : at + arguments.batch], (1, at)) for at in range(0, len(some), arguments.batch)
    ]
    while done < arguments.steps and not clock.over:
        batch = train.batch(following(), (0, done))
        for pupil in pupils:
            learnt = partial(loss_of, batch=batch, routing=routing[pupil.name])
            pupil.learn(learnt, arguments.device)
        done += 1
        if done % arguments.every == 0:
            validate(pupils, held, done * arguments.batch * train.size, arguments.device)
            if clock.save_now():
                save(pupils, arguments.work)
    if not pupils[0].course or pupils[0].course[-1]["step"] != done:
        validate(pupils, held, done * arguments.batch * train.size, arguments.device)
    settings = {
        name: value for name, value in vars(arguments).items()
        if name not in ("pile", "tokenizer", "work", "out", "seconds")
    }  # fmt: skip
    told = {
        "settings": {**settings, "characters": min(arguments.characters, 1e12)}, "steps": done,
        "tokens": done * arguments.batch * train.size, "text_tokens": len(train.text.tokens),
        "networks": measured(pupils, routing, test, arguments),
    }  # fmt: skip
    write(arguments.out, told)
    show(told)
    save(pupils, arguments.work)
    for pupil in pupils:
        pupil.network.save_pretrained(arguments.work / pupil.name)  # type: ignore[operator]
        tokenizer.inner.save_pretrained(arguments.work / pupil.name)


def show(told: Any) -> None:
    table = Table(
        "network", "M parameters", "GFLOP a window", "s a step", "nats a token", "gain, %", box=None
    )
    for name, each in told["networks"].items():
        ends = ", ".join(f"{100 * end:.2f}" for end in each["gain_ci"])
        table.add_row(
            name, f"{each['parameters'] / 1e6:.1f}", f"{each['flops_of_a_window'] / 1e9:.1f}",
            f"{each['seconds_a_step']:.3f}", f"{each['test']:.3f}", f"{100 * each['gain']:.2f} [{ends}]",
        )  # fmt: skip
    Console(width=110).print(f"after {told['tokens'] / 1e6:.1f} M tokens", table)


if __name__ == "__main__":
    main()
