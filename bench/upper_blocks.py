"""What a passage costs to train on, each lever alone and together: fewer blocks, kept ones, fewer tokens.

    OMP_NUM_THREADS=1 python bench/upper_blocks.py --model MODEL FILE

CPU seconds a passage of 1,024 characters, over some of FILE, a plain text; each variant in turns, medians of
the rounds. What 16 bits lose is told by the bits of the text that follows, after training from a view in each
number format. Prints a table, writes JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.token_weights import BaseLoss, SalientSpans
from uptake.adaptation.trainable import All, Top
from uptake.lm.activations import ActivationReader
from uptake.lm.base import LM, Segment
from uptake.methods import finetune
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.store import Datastore
from uptake.text.types import Chunking, Document, Found, Passage

CHARACTERS = 1024


def adapted(lm: LM, method: Finetune, evidence: Evidence) -> LM:
    states = method.adapt([method.init(lm)], lm, [evidence], Context(continues=False))
    return method.adapted(states, lm)


def seconds(lm: LM, method: Finetune, evidence: Evidence, kept: bool = True) -> float:
    """Return the CPU seconds a passage; without `kept` all blocks are run in every pass."""
    above: Callable[..., LM] = finetune.above_frozen
    if not kept:
        finetune.above_frozen = lambda lm, private, *_: private  # type: ignore[assignment]
    try:
        started = time.process_time()
        method.adapt([method.init(lm)], lm, [evidence], Context(continues=False))
        return (time.process_time() - started) / len(evidence.passages)
    finally:
        finetune.above_frozen = above  # type: ignore[assignment]


def kept_as(dtype: str, lm: LM, layers: int, text: str, folder: Path) -> tuple[Evidence, float]:
    """Return the passages of a text with the store that keeps their activations, and what a passage took."""
    store = Datastore.create(folder / dtype, retriever="lexical", chunking=Chunking(CHARACTERS))
    document = Document("text", text)
    store.add([document])
    started = time.process_time()
    store.read_activations(ActivationReader(lm, layers, dtype=dtype))
    took = time.process_time() - started
    passages: tuple[Passage, ...] = tuple(Chunking(CHARACTERS).passages(document))
    zeros = (0.0,) * len(passages)
    return Evidence(Found(passages, zeros, zeros, zeros), "a", store.source("a")), took / len(passages)


def main() -> None:
    """Measure every variant in turns, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench/upper_blocks.json"))
    options = parser.parse_args()
    lm = uptake.load(options.model)
    whole, end = options.file.read_text(encoding="utf8"), options.passages * CHARACTERS
    top = Finetune(trainable=Top(options.layers), optimizer=AdamW(1e-4))
    view, salient, worst = {"activations": "view"}, SalientSpans(), BaseLoss(0.25)
    name = f"top {options.layers} blocks"
    told: dict[str, Any] = {
        "parameters": sum(each.numel() for each in lm.module.parameters()),  # type: ignore[attr-defined]
        "passages": options.passages,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        kept = {
            dtype: kept_as(dtype, lm, options.layers, whole[:end], Path(folder))
            for dtype in ("float32", "float16", "bfloat16")
        }
        evidence = kept["float16"][0]
        bare = replace(evidence, source=None)
        half = replace(top, trainable=Top(max(1, options.layers // 2)))
        variants = {
            "all weights": lambda: seconds(lm, replace(top, trainable=All()), bare),
            f"{name}, all run": lambda: seconds(lm, top, bare, kept=False),
            f"{name}, frozen ones in memory": lambda: seconds(lm, top, bare),
            f"{name}, frozen ones from the view": lambda: seconds(lm, replace(top, **view), evidence),
            "all run, a quarter of the tokens": lambda: seconds(
                lm, replace(top, token_weights=worst, **view), evidence, kept=False
            ),
            "the view, a quarter of the tokens": lambda: seconds(
                lm, replace(top, token_weights=worst, **view), evidence
            ),
            "the view, salient spans": lambda: seconds(
                lm, replace(top, token_weights=salient, **view), evidence
            ),
            f"top {half.trainable.layers} blocks, frozen ones in memory": lambda: seconds(lm, half, bare),  # type: ignore[attr-defined]
        }
        for method in (top, half):
            seconds(
                lm, method, bare
            )  # each text has gone through the frozen blocks once, as for an earlier query
        rounds = [{name: run() for name, run in variants.items()} for _ in range(options.rounds)]
        target = Segment(whole[end : end + CHARACTERS], whole[end - CHARACTERS : end])
        bits = {
            dtype: adapted(lm, replace(top, **view), read).score([target])[0].bits
            for dtype, (read, _) in kept.items()
        }
        told["bits of what follows"] = {"base": lm.score([target])[0].bits, **bits}
        told["kept, CPU seconds a passage"] = {dtype: took for dtype, (_, took) in kept.items()}
    found = {name: statistics.median(each[name] for each in rounds) for name in variants}
    print("| variant | CPU s a passage | all weights cost |\n|---|---|---|")
    for name, own in found.items():
        print(f"| {name} | {own:.2f} | {found['all weights'] / own:.1f} times as much |")
    print(json.dumps(told, indent=1))
    options.json.write_text(json.dumps({**told, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
