"""What fast weight layers cost beside static inference and dynamic evaluation, counted and measured.

Counted are the operations of all matrix products that run, on shapes alone. Measured are CPU seconds
with random weights, in turns, as medians of ratios to the static pass next to them. A token is
scored once by each: static is one forward pass, `fwl` what its LM does for a cached stretch of
text, `dynamic evaluation` the forward and backward pass whose loss is also the score, and one step.

    OMP_NUM_THREADS=1 python bench/fwl_cost.py
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

import uptake
from uptake.lm.capabilities import Unembedding
from uptake.lm.causal import Causal
from uptake.lm.loading import DTYPES
from uptake.methods.fwl import FWL
from uptake.methods.fwl.model import FastWeightLM, Known
from uptake.methods.fwl.network import FastWeights

SHAPES = {
    "GPT-2 small": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "1.3 B": {"n_embd": 2048, "n_layer": 24, "n_head": 16},
}


def network(shape: dict[str, int], tokens: int, **how: Any) -> Any:
    return (
        GPT2LMHeadModel(GPT2Config(**shape, n_positions=max(tokens, 1024), **how))
        .eval()
        .requires_grad_(False)
    )


# Of tokens; the shorter one is what recipes/fwl.py found best.
STRETCHES = {"fwl": FWL.stretch, "fwl, stretches of 32": 32}


def passes(lm: Causal, width: int, ids: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return what each method does to score these tokens."""

    @torch.no_grad()
    def static() -> object:
        return lm.step(ids)

    def fwl(stretch: int) -> Callable[[], object]:
        layer = FastWeights(width, stretch=stretch).requires_grad_(False)
        adapting = FastWeightLM(lm, layer, [Known(layer.start(1))])
        return lambda: adapting.step(ids)

    def dynamic() -> object:
        weights = [parameter.requires_grad_() for parameter in lm.module.parameters()]
        log_probs = lm.step(ids)[0][:, :-1]
        loss = -log_probs.gather(-1, ids[:, 1:, None]).mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            torch._foreach_add_(weights, list(gradients), alpha=-1e-9)
        lm.module.requires_grad_(False)
        return loss

    layers = {name: fwl(stretch) for name, stretch in STRETCHES.items()}
    return {"static": static, **layers, "dynamic evaluation": dynamic}


def counted(shape: dict[str, int], tokens: int, tokenizer: Any) -> dict[str, float]:
    """Return the operations a token of each method, and of attention itself in a static pass."""
    found = {}
    with FakeTensorMode():
        lm = Causal(network(shape, tokens, attn_implementation="eager"), tokenizer, base="shape")
        # Without numbers the usual look at a first logit cannot be taken.
        lm.__dict__["unembedding"] = Unembedding(lm.module.get_output_embeddings().weight)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        for name, go in passes(lm, shape["n_embd"], ids).items():
            with FlopCounterMode(display=False) as counter:
                go()
            found[name] = counter.get_total_flops() / tokens
    # Products of states with states: queries with keys, and their weights with values.
    found["attention"] = 4.0 * tokens * shape["n_embd"] * shape["n_layer"]
    return found


def measured(
    shape: dict[str, int], tokens: int, dtype: str, tokenizer: Any, repeats: int, skip: set[str]
) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPES[dtype])
    module = network(shape, tokens)
    torch.set_default_dtype(torch.float32)
    lm = Causal(module, tokenizer, base="random")
    ids = torch.randint(50257, (1, tokens))
    methods = {name: go for name, go in passes(lm, shape["n_embd"], ids).items() if name not in skip}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name, go in methods.items():
            started = time.process_time()
            go()
            if repeat > 0:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    return {
        name: {
            "seconds_a_token": median(own) / tokens,
            "times_static": median(x / y for x, y in zip(own, seconds["static"], strict=True)),
            "spread": [min(own) / median(seconds["static"]), max(own) / median(seconds["static"])],
        }
        for name, own in seconds.items()
    }


def parts(shape: dict[str, int], stretch: int, repeats: int) -> dict[str, float]:
    """Return the CPU seconds a token of what a stretch cannot leave out at this shape, by what it is.

    "unembedding" is the slow pass's logits and their gradient at the states, in bfloat16; "weights" are the
    layer's products and its step, in float32, which go through all of its weights once a stretch.
    """
    torch.manual_seed(0)
    width, hidden, words = shape["n_embd"], 4 * shape["n_embd"], 50257
    matrix = torch.randn(words, width, dtype=torch.bfloat16)
    states, features = torch.randn(stretch, width), torch.randn(stretch, hidden)
    second, sums, rates = (torch.randn(hidden, width) for _ in range(3))
    weights = torch.empty_like(second)

    def unembedding() -> object:
        logits = states.to(matrix.dtype) @ matrix.T
        return logits.float().softmax(-1).to(matrix.dtype) @ matrix

    def layer() -> object:
        sums.addmm_(features.T, states)
        torch.addcmul(second, sums, rates, value=-1, out=weights)
        return features @ weights

    found = {}
    for name, go in {"unembedding": unembedding, "weights": layer}.items():
        seconds = []
        for repeat in range(repeats + 1):
            started = time.process_time()
            go()
            if repeat:
                seconds.append(time.process_time() - started)
        found[name] = median(seconds) / stretch
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--out", type=Path, default=Path("bench/fwl_cost.json"))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--tokens-large", type=int, default=256, help="of the 1.3 B shape")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--measure",
        nargs="*",
        choices=list(SHAPES),
        default=["GPT-2 small"],
        help="the shapes to measure; others keep the figures they have (1.3 B takes 5 GB)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = uptake.load(str(arguments.shared / "models/base-5m")).tokenizer
    told: dict[str, Any] = {"counted": {}, "measured": {}}
    if arguments.out.exists():
        known = json.loads(arguments.out.read_text())
        told |= {name: known[name] for name in ("measured", "parts") if name in known}
    for name, shape in SHAPES.items():
        found = counted(shape, 1024, tokenizer)
        attention, static = found.pop("attention"), found["static"]
        told["counted"][name] = {
            label: {
                "operations_a_token": own,
                "times_static": own / static,
                # A backward pass goes through attention twice.
                "times_static_without_attention": (
                    own - attention * (3 if label == "dynamic evaluation" else 1)
                )
                / (static - attention),
            }
            for label, own in found.items()
        }
        for label, own in told["counted"][name].items():
            print(f"{name}, {label}: {own['times_static']:.3f}, {own['times_static_without_attention']:.3f}")
    jobs: dict[str, list[tuple[int, str, set[str]]]] = {
        "GPT-2 small": [(arguments.tokens, dtype, set()) for dtype in ("float32", "bfloat16")],
        # Gradients of 1.3 B weights would be as much memory again.
        "1.3 B": [(arguments.tokens_large, "bfloat16", {"dynamic evaluation"})],
    }
    for name in arguments.measure:
        for tokens, dtype, skip in jobs[name]:
            found = measured(SHAPES[name], tokens, dtype, tokenizer, arguments.repeats, skip)
            told["measured"][f"{name}, {dtype}"] = {"tokens": tokens, **found}
            print(
                name,
                dtype,
                {label: round(own["times_static"], 2) for label, own in found.items()},
                flush=True,
            )
        told.setdefault("parts", {})[name] = {
            str(stretch): parts(SHAPES[name], stretch, 7) for stretch in (FWL.stretch, 32)
        }
        print(name, told["parts"][name], flush=True)
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
