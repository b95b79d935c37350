"""Forgetting by task vectors: a kind of text is unlearnt by going away from what fine-tuning on it changed.

The model is fine-tuned on documents of one kind (the target), and the change is taken away times a scale.
The scale is the largest of 0.05, 0.1 ... 1 at which the control, documents of other kinds that the model
knows, keeps 95 % of its right next tokens on validation text; what is forgotten then is told on test text.
Beside it, a random change of the same size in every weight at the same scale.

    python recipes/task_vectors.py --model MODEL --data FOLDER --out recipes/task_vectors.json

FOLDER holds a folder for each kind of text, with train, valid and test.jsonl.xz, a `text` a line. The kind
"python" is the standard library of the Python that runs this, its files split by their names.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.task_vectors import info, task_vector
from uptake.adaptation.trainable import All
from uptake.lm.causal import Causal
from uptake.text.types import stable_hash

SCALES = [round(0.05 * step, 2) for step in range(1, 21)]
PIECES = 8  # of a document
KEPT = 0.95  # share of the control's right tokens that must be left


def rows_of(lm: Causal, folder: Path, split: str, rows: int, length: int, seed: int) -> torch.Tensor:
    """Return rows [rows, length] of tokens, the first pieces of documents, drawn by seed."""
    found = []
    for text in texts_of(folder, split):
        ids = lm.tokenizer.encode(text[: 8 * length * PIECES])[0]
        ends = range(length - 1, min(len(ids), PIECES * (length - 1)) + 1, length - 1)
        found += [[lm.tokenizer.opening, *ids[end - length + 1 : end]] for end in ends]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    if len(found) < rows:
        raise SystemExit(f"{folder}, {split}: {len(found)} pieces of {length} tokens, {rows} are wanted")
    return torch.tensor([found[place] for place in order[:rows]])


def texts_of(folder: Path, split: str) -> Iterator[str]:
    """Yield the texts of one split of a kind."""
    if folder.name != "python":
        yield from (document.text for document in uptake.read(folder / f"{split}.jsonl.xz"))
        return
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        part = stable_hash(file.name) % 8
        if split == {0: "test", 1: "valid"}.get(part, "train"):
            yield file.read_text(encoding="utf8")


def right(lm: Causal, ids: torch.Tensor) -> float:
    """Return the share of next tokens that the model has right."""
    hits = []
    for some in ids.split(4):
        with torch.no_grad():
            log_probs, _ = lm.step(some)
        hits.append(log_probs[:, :-1].argmax(-1) == some[:, 1:])
    return torch.cat(hits).double().mean().item()


def tuned(lm: Causal, ids: torch.Tensor, rate: float, batch: int) -> Delta:
    """Return the task vector of fine-tuning on these rows once, by Adam."""
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(opened.parameters.values(), lr=rate)
    for some in ids.split(batch):
        log_probs, _ = private.step(some)
        loss = -log_probs[:, :-1].gather(-1, some[:, 1:, None]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return task_vector(lm.module, opened.module, lm.fingerprint)


def random_like(delta: Delta, seed: int) -> Delta:
    """Return a change of the same size in every weight, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, change in delta.differences.items():
        noise = torch.randn(change.shape, generator=generator)
        drawn[name] = noise * (change.norm() / noise.norm())
    return Delta.dense(delta.base, drawn, "random")


def chosen(lm: Causal, delta: Delta, valid: torch.Tensor, most: float) -> tuple[float, list[list[float]]]:
    """Return the largest scale that keeps the control, 0 for none, and what was measured."""
    before, course, scale = right(lm, valid), [], 0.0
    for each in SCALES:
        if each > most:
            break
        kept = right(lm.overlay(delta * -each), valid) / before
        course.append([each, kept])
        if kept < KEPT:
            break
        scale = each
    return scale, course


def measured(lm: Causal, changed: Causal, test: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the right tokens of target and control after, as shares of those before."""
    return {name: right(changed, ids) / right(lm, ids) for name, ids in test.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="python")
    parser.add_argument("--control", nargs="+", default=["books", "textbook_us_history", "news_reuters21578"])
    parser.add_argument("--rows", type=int, default=128, help="of the target that are trained on")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--measured", type=int, default=24, help="rows of each kind that are measured")
    parser.add_argument("--most", type=float, default=1.0, help="largest scale that is tried")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    began, lm = time.process_time(), uptake.load(arguments.model)

    def rows(kinds: Sequence[str], split: str, count: int) -> torch.Tensor:
        each = [rows_of(lm, arguments.data / kind, split, count, arguments.length, 0) for kind in kinds]
        return torch.cat(each)

    delta = tuned(lm, rows([arguments.target], "train", arguments.rows), arguments.rate, arguments.batch)
    share = -(-arguments.measured // len(arguments.control))
    valid = rows(arguments.control, "valid", share)
    test = {
        "target": rows([arguments.target], "test", arguments.measured),
        "control": rows(arguments.control, "test", share),
    }
    found: dict[str, object] = {
        "model": Path(arguments.model).name,
        "settings": {
            name: value for name, value in vars(arguments).items() if name not in ("model", "data", "out")
        },
        "right_before": {name: right(lm, ids) for name, ids in test.items()},
        "added": measured(lm, lm.overlay(delta), test),
        "size": sum((row.size or 0.0) ** 2 for row in info(delta)) ** 0.5,
    }
    scale, course = chosen(lm, delta, valid, arguments.most)
    found["scale"], found["valid"] = scale, course
    for name, change in (("forgotten", delta), ("random", random_like(delta, 1))):
        found[name] = measured(lm, lm.overlay(change * -scale), test)
    found["cpu_seconds"] = time.process_time() - began
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
