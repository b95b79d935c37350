"""A Llama shape on a GPU: shares of the roofline, private adaptations side by side, and seconds a query.

Weights are random, so nothing is fetched and no score means anything: this is about speed alone. Shares are
of what this very device does, measured first: a large matrix product and a large copy. A forward pass counts
two operations a weight and token, training all weights six; a decoding step reads each weight once, however
many rows there are. What the time limit leaves no room for is named and left out.

    python bench/llama.py --device cuda                  # a shape of 1.2 B, bfloat16; writes bench/llama.json
    python bench/llama.py --device cpu --shape tiny      # a dry run
    python bench/llama.py --again shares                # this anew, the other figures of the file stay
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import uptake
from bench.side_by_side import DEMO, Load, decoding, training
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import segment_of
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.sealed import write_whole
from uptake.text.types import Document, Found

ROOT = Path(__file__).parent.parent
TOP = ("trainable=top(layers=4)", "learning_rate=1e-4")
METHODS = {
    "base": (),
    "in-context": (),
    "n-gram": (),
    "ttt-nn": TOP,
    "random": TOP,
    "ttt-nn+in-context": TOP,
}


@dataclass(frozen=True)
class Shape:
    """A Llama shape, and how much of everything is measured on it."""

    width: int
    inner: int
    layers: int
    heads: int
    shared_heads: int
    window: int
    dtype: torch.dtype
    product: int  # side of the square matrices whose product is the peak
    batch: tuple[int, int]  # rows and tokens of a pass
    load: Load
    queries: int
    neighbours: int

    def model(self, device: str) -> Causal:
        tokenizer = uptake.load(str(DEMO)).tokenizer
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.shared_heads,
            max_position_embeddings=self.window,
            tie_word_embeddings=True,
        )
        with torch.device(device):
            module = LlamaForCausalLM(config).to(self.dtype)
        return Causal(module.eval(), tokenizer, base="random")


ROWS = (1, 8, 32, 128)
SHAPES = {
    # Llama 3.2 1B, but for its vocabulary.
    "1b": Shape(
        2048, 8192, 16, 32, 8, 8192, torch.bfloat16, 8192, (8, 512),
        Load(ROWS, 8, 3, copies=8, looped=8, shapes=tuple((rows, 128) for rows in ROWS), pieces=2), 6, 20,
    ),
    "tiny": Shape(
        32, 64, 4, 4, 2, 2048, torch.float32, 128, (2, 16),
        Load((1, 2), steps=2, rounds=1, copies=2, shapes=((2, 8),), pieces=1), 1, 2,
    ),
}  # fmt: skip


def seconds(job: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the median seconds of the clock that a job takes, after one to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    taken = []
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        job()
        wait()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def peaks(shape: Shape, device: torch.device) -> dict[str, float]:
    """Return operations a second of a large product, and bytes a second read and written by a large copy."""
    side = shape.product
    left, right = (torch.randn(side, side, device=device, dtype=shape.dtype) for _ in range(2))
    from_, to = (torch.empty(4 * side * side, dtype=torch.float32, device=device) for _ in range(2))
    return {
        "operations": 2 * side**3 / seconds(lambda: left @ right, device),
        "bytes": 2 * from_.nbytes / seconds(lambda: to.copy_(from_), device),
    }


def shares(lm: Causal, shape: Shape, peak: dict[str, float]) -> dict[str, Any]:
    """Return tokens a second of passes, and the share of the peak that they reach; trains the model."""
    lm.module.requires_grad_(True)
    rows, tokens = shape.batch
    weights = sum(weight.numel() for weight in lm.module.parameters())
    ids = torch.randint(1, len(lm.tokenizer), (rows, tokens), device=lm.device)
    optimizer = torch.optim.AdamW(lm.module.parameters(), 1e-9, fused=lm.device.type == "cuda")

    def forward() -> None:
        with torch.no_grad():
            lm.module(input_ids=ids)

    def train() -> None:
        lm.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Any] = {"weights": weights}
    for name, job, each in (("forward", forward, 2), ("train all", train, 6)):
        taken = seconds(job, lm.device)
        found[name] = {
            "tokens_a_second": round(rows * tokens / taken),
            "share_of_peak": round(each * weights * rows * tokens / taken / peak["operations"], 3),
        }
    return found


def with_shares(line: dict[str, Any], lm: Causal, rows: int, peak: dict[str, float]) -> dict[str, Any]:
    """Add the share of the peak bandwidth that decoding reaches, plain and side by side."""
    size = sum(weight.nbytes for weight in lm.module.parameters())
    steps = {name: rate / rows for name, rate in line["tokens_a_second"].items()}
    return line | {
        "share_of_bytes": {name: round(size * each / peak["bytes"], 3) for name, each in steps.items()}
    }


def queries(lm: Causal, shape: Shape) -> dict[str, Any]:
    """Return seconds a query under the first methods of the main table, on this repository's own sources."""
    files = sorted((ROOT / "src/uptake").rglob("*.py"))
    documents = [Document(path.name + str(n), path.read_text("utf8")) for n, path in enumerate(files)]
    held, rest = documents[: shape.queries], documents[shape.queries : 8 * shape.queries]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = uptake.Datastore.create(Path(folder) / "store", retriever="lexical")
        store.add(rest)
        for name, settings in METHODS.items():
            (spec,) = method_specs([name], list(settings)).values()
            taken = []
            for document in held:
                (query,) = PerQuery().queries(document)
                source = store.source(query.search, document_id=document.id, whole_text=document.text)
                started = time.perf_counter()
                chosen = Found()
                if spec.searches:
                    chosen = spec.choose(lm, source, shape.neighbours, np.random.default_rng(0))
                evidence = [Evidence(chosen, query.context, source)]
                states = spec.method.adapt([spec.method.init(lm)], lm, evidence, Context(continues=False))
                spec.score(states, lm, [segment_of(query)], Context())
                taken.append(time.perf_counter() - started)
            found[name] = {"seconds": [round(each, 4) for each in taken], "median": round(median(taken), 4)}
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Measure what there is time for; print and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which nothing new is begun")
    parser.add_argument("--again", nargs="+", default=[], help="measure these anew, keep the rest of --out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("bench/llama.json"))
    arguments = parser.parse_args(given)
    started, shape = time.perf_counter(), SHAPES[arguments.shape]
    lm = shape.model(arguments.device)
    card = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else "cpu"
    peak = peaks(shape, lm.device)
    found: dict[str, Any] = json.loads(arguments.out.read_bytes()) if arguments.again else {}
    found |= {
        "device": card, "torch": torch.__version__, "shape": arguments.shape, "dtype": str(shape.dtype),
        "rank": arguments.rank, "peak": peak, "left_out": [],
    }  # fmt: skip
    jobs: dict[str, Callable[[], Any]] = {"queries": lambda: queries(lm, shape)}
    for rows in shape.load.rows:
        jobs[f"decode {rows}"] = lambda rows=rows: with_shares(
            decoding(lm, rows, arguments.rank, shape.load), lm, rows, peak
        )
    for rows, tokens in shape.load.shapes:
        jobs[f"train {rows}x{tokens}"] = lambda rows=rows, tokens=tokens: training(
            lm, rows, tokens, arguments.rank, shape.load
        )
    jobs["shares"] = lambda: shares(lm, shape, peak)  # last: it trains the model itself
    if unknown := [name for name in arguments.again if name not in jobs]:
        parser.error(f"--again {unknown[0]}: use {', '.join(jobs)}")
    for name in arguments.again or list(jobs):
        job = jobs[name]
        if time.perf_counter() - started > arguments.limit:
            found["left_out"].append(name)
            continue
        found[name] = job()
        print(name, json.dumps(found[name]), flush=True)
        write_whole(arguments.out, json.dumps(found, indent=1).encode() + b"\n")
    if found["left_out"]:
        print(f"left out, for want of time: {', '.join(found['left_out'])}")
    write_whole(arguments.out, json.dumps(found, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
