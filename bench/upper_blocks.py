"""What a passage costs to train on: all weights, the top blocks run whole, and with the frozen ones kept.

    OMP_NUM_THREADS=1 python bench/upper_blocks.py --model MODEL FILE

CPU seconds a passage of 1,024 characters, over eight of FILE, a plain text; each variant in turns, medians of
three. Prints a table, writes JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.token_weights import SalientSpans
from uptake.adaptation.trainable import All, Top
from uptake.lm.base import LM
from uptake.methods import finetune
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune

PASSAGES, CHARACTERS, ROUNDS = 8, 1024, 3


def seconds(lm: LM, method: Finetune, texts: list[str], kept: bool = True) -> float:
    """Return the CPU seconds a passage; without `kept` all blocks are run in every pass."""
    above: Callable[..., LM] = finetune.above_frozen
    if not kept:
        finetune.above_frozen = lambda lm, private, *_: private  # type: ignore[assignment]
    try:
        started = time.process_time()
        method.adapt([method.init(lm)], lm, [Evidence.of(*texts, query="a")], Context(continues=False))
        return (time.process_time() - started) / len(texts)
    finally:
        finetune.above_frozen = above  # type: ignore[assignment]


def main() -> None:
    """Measure every variant in turns, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("bench/upper_blocks.json"))
    options = parser.parse_args()
    lm = uptake.load(options.model)
    text = options.file.read_text(encoding="utf8")
    texts = [text[start : start + CHARACTERS] for start in range(0, PASSAGES * CHARACTERS, CHARACTERS)]
    top = Finetune(trainable=Top(options.layers), optimizer=AdamW(1e-4))
    salient = replace(top, token_weights=SalientSpans())
    variants = {
        "all weights": lambda: seconds(lm, replace(top, trainable=All()), texts),
        f"top {options.layers} blocks, all run": lambda: seconds(lm, top, texts, kept=False),
        f"top {options.layers} blocks, frozen ones kept": lambda: seconds(lm, top, texts),
        "the same, salient spans alone": lambda: seconds(lm, salient, texts),
    }
    seconds(lm, top, texts)  # each text has gone through the frozen blocks once, as for an earlier query
    rounds = [{name: run() for name, run in variants.items()} for _ in range(ROUNDS)]
    found = {name: statistics.median(each[name] for each in rounds) for name in variants}
    whole = found["all weights"]
    print("| variant | CPU s a passage | all weights cost |\n|---|---|---|")
    for name, own in found.items():
        print(f"| {name} | {own:.2f} | {whole / own:.1f} times as much |")
    parameters = sum(parameter.numel() for parameter in lm.module.parameters())  # type: ignore[attr-defined]
    options.json.write_text(json.dumps({"parameters": parameters, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
