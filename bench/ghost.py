"""What a private step costs: clipping by ghost norms beside the same step without privacy, time and memory.

Each variant runs in a process of its own, so that its peak is its own: `plain` sums the losses and takes one
gradient, `ghost` clips each row's and takes the sum. Seconds are CPU seconds on one thread, the median of
`--rounds` steps after a first one; memory is the most that the process held, and what of it the step added.

    OMP_NUM_THREADS=1 python bench/ghost.py --model MODEL    # any causal model; writes bench/ghost.json
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.privacy.clipping import ClippedSum
from uptake.adaptation.trainable import All, LoRA, Trainable
from uptake.lm.examples import Example
from uptake.lm.scoring import losses

KINDS: dict[str, Trainable] = {"lora(rank=4)": LoRA(rank=4), "all": All()}
WAYS = ("plain", "ghost")
AIMS = {"seconds": 2.2, "peak_bytes": 1.3}


def measure(model: str, kind: str, way: str, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Return seconds a step, the process's peak, and what stood before the first step, of one variant."""
    torch.set_num_threads(1)
    lm = uptake.load(model)
    private, opened = lm.trainable_copy(KINDS[kind], Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(1, len(lm.tokenizer), (rows, tokens + 1), generator=draws).tolist()
    examples = [Example((row[0],), tuple(row[1:])) for row in ids]

    def run(some: Any) -> Tensor:
        return losses(private, [examples[row] for row in some])

    summing = ClippedSum(opened.module, opened.parameters, 0.1) if way == "ghost" else None

    def step() -> float:
        started = time.process_time()
        if summing is None:
            torch.autograd.grad(run(range(rows)).sum(), [*opened.parameters.values()])
        else:
            summing.add(run, range(rows))
            summing.take()
            assert not summing.unsuited, summing.unsuited
        return time.process_time() - started

    gc.collect()
    before = _held()
    seconds = [step() for _ in range(rounds + 1)][1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": median(seconds), "peak_bytes": peak, "step_bytes": peak - before}


def _held() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--out", type=Path, default=Path("bench/ghost.json"))
    parser.add_argument("--one", nargs=2, metavar=("KIND", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.model, *options.one, options.rows, options.tokens, options.rounds)
        print(json.dumps(found))
        return
    sizes = ["--rows", str(options.rows), "--tokens", str(options.tokens), "--rounds", str(options.rounds)]
    told: list[dict[str, Any]] = []
    for kind in options.kinds:
        each = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--model", options.model, *sizes, "--one", kind, way]
            each[way] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ratios = {name: each["ghost"][name] / each["plain"][name] for name in each["plain"]}
        told.append({"trainable": kind, **each, "ratios": ratios})
        print(
            f"{kind:14} plain {each['plain']['seconds']:.2f} s, {each['plain']['peak_bytes'] / 1e9:.2f} GB; "
            f"ghost {each['ghost']['seconds']:.2f} s, {each['ghost']['peak_bytes'] / 1e9:.2f} GB; "
            + ", ".join(f"{name} {ratios[name]:.2f} (aim {aim})" for name, aim in AIMS.items())
            + f", the step's own memory {ratios['step_bytes']:.2f}",
            flush=True,
        )
    whole = {"rows": options.rows, "tokens": options.tokens, "rounds": options.rounds, "table": told}
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
