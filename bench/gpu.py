"""What runs on a GPU, held against the same on the CPU: scores, fine-tuning, seconds and memory.

Each method reads the same passages and scores the same text on both devices. The table gives the bits on
each, seconds of the clock, and what the meter says of the GPU. A GPU whose seconds or memory stay zero while
it works is a fault and ends the run with exit code 1; so is a score that differs by more than `TOLERANCE`.
Then what a larger shape takes: tokens a second, forward and trained, in float32 and bfloat16.

    python bench/gpu.py --device cuda     # writes bench/gpu.json; `sh bench/gpu.sh` does all that wants a GPU
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel

import uptake
from uptake.evaluation.cost_meter import CostMeter
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.sealed import write_whole

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples/demo-model"
NAMES = ("base", "finetune", "finetune, LoRA", "in-context", "knn-lm", "dynamic-evaluation")
TOLERANCE = 2e-3  # of the bits: kernels differ, and a few steps of AdamW divide by small numbers
SHAPES = ((8, 512), (16, 1024))  # rows and tokens of one forward pass


def texts() -> tuple[list[str], Segment]:
    """Return what is read, and what is scored after it: pieces of this repository's own source."""
    source = (ROOT / "src/uptake/text/overlap.py").read_text(encoding="utf8")
    pieces = [source[start : start + 800] for start in range(0, 4000, 800)]
    return pieces, Segment(source[4800:6400], source[4000:4800])


def compared(device: str) -> list[dict[str, Any]]:
    """Return a row a method: bits, seconds and memory on both devices."""
    read, segment = texts()
    rows = []
    for name in NAMES:
        row: dict[str, Any] = {"method": name}
        for place in ("cpu", device):
            lm = uptake.load(str(DEMO), device=place)
            settings = ["trainable=lora(rank=8)"] if name.endswith("LoRA") else []
            called = name.split(",")[0]
            settings += ["learning_rate=1e-4"] if called == "finetune" else []
            (spec,) = method_specs([called], settings).values()
            context, meter = Context(), CostMeter(lm.device)
            score: list[float] = []
            gpu: list[float] = []
            evidence = [Evidence.of(*read, query=segment.context)]
            started = time.perf_counter()
            with meter.memory(name), meter.seconds(score, gpu):
                states = spec.method.adapt([spec.method.init(lm)], lm, evidence, context)
                (scores,) = spec.score(states, lm, [segment], context)
            row[lm.device.type] = {
                "bits": scores.bits,
                "seconds": time.perf_counter() - started,
                "gpu_seconds": sum(gpu),
                "gpu_bytes": meter.gpu_peaks.get(name, 0),
            }
        rows.append(row)
    return rows


def rates(device: str, repeats: int = 5) -> list[dict[str, Any]]:
    """Return tokens a second of a random GPT-2 of 110 M parameters: forward passes, and steps of AdamW."""
    tokenizer = uptake.load(str(DEMO)).tokenizer
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        module = GPT2LMHeadModel(GPT2Config(vocab_size=32_000)).to(device, dtype)
        lm = Causal(module, tokenizer, base="random")
        for rows, tokens in SHAPES:
            ids = torch.randint(1, len(tokenizer), (rows, tokens), device=device)

            def forward(ids: torch.Tensor = ids, lm: Causal = lm) -> None:
                with torch.no_grad():
                    lm.step(ids)

            trained = GPT2LMHeadModel(GPT2Config(vocab_size=32_000)).to(device, dtype)
            optimizer = torch.optim.AdamW(trained.parameters(), 1e-5, fused=True)

            def train(ids: torch.Tensor = ids, trained: Any = trained, optimizer: Any = optimizer) -> None:
                trained(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            line: dict[str, Any] = {
                "dtype": str(dtype).removeprefix("torch."),
                "rows": rows,
                "tokens": tokens,
            }
            for called, job in (("forward", forward), ("trained", train)):
                job()
                seconds = []
                for _ in range(repeats):
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    job()
                    torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - started)
                line[called] = round(rows * tokens / median(seconds))
            found.append(line)
    return found


def faults(rows: list[dict[str, Any]], kind: str) -> list[str]:
    """Return what is wrong with the figures, a line each."""
    wrong = []
    for row in rows:
        here, there = row["cpu"], row[kind]
        if not abs(there["bits"] - here["bits"]) <= TOLERANCE * here["bits"]:
            wrong.append(f"{row['method']}: {there['bits']:.3f} bits there, {here['bits']:.3f} on the CPU")
        if not (there["gpu_seconds"] > 0 and there["gpu_bytes"] > 0):
            wrong.append(f"{row['method']}: the GPU worked and no seconds or no memory were noted")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("bench/gpu.json"))
    arguments = parser.parse_args()
    kind = torch.device(arguments.device).type
    rows = compared(arguments.device)
    table = Table("method", "bits, CPU", f"bits, {kind}", "seconds", "GPU seconds", "GPU memory, MB")
    for row in rows:
        there = row[kind]
        figures = (row["cpu"]["bits"], there["bits"], there["seconds"], there["gpu_seconds"])
        table.add_row(row["method"], *(f"{each:.3f}" for each in figures), f"{there['gpu_bytes'] / 1e6:.0f}")
    Console(width=110).print(table)
    found = {"device": torch.cuda.get_device_name(arguments.device), "torch": torch.__version__, "rows": rows}
    found["rates"] = rates(arguments.device)
    for line in found["rates"]:
        print(json.dumps(line))
    found["faults"] = wrong = faults(rows, kind)
    write_whole(arguments.out, json.dumps(found, indent=1).encode() + b"\n")
    print("\n".join(wrong) or "the GPU says what the CPU says")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
