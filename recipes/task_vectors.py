"""Forgetting by task vectors: something is unlearnt by going away from what fine-tuning on it changed.

    python recipes/task_vectors.py facts --model MODEL --out recipes/task_vectors.json
    python recipes/task_vectors.py text --model MODEL --data FOLDER

`facts`: a model is taught two sets of made-up facts, A and B, in one change. A copy of the base is taught A
alone; what that changed, times a scale, is taken away again. Told is how many facts of A (the target) and of
B (the control) are still said, and how many next tokens of other text are still right.
`text`: a model is fine-tuned on texts of one kind, and that change is taken away from the base: texts of the
kind, and of others, are the target and the control.

The scale is the largest of 0.05, 0.1 ... 1 up to which every control keeps 95 % on its validation part;
what is forgotten then is told on the other part. Beside it stands a random change of the same size in every
weight at the same scale. `text` wants a folder with a folder for each kind, with train, valid and
test.jsonl.xz, a `text` a line; the kind "python" is the standard library of the Python that runs this.
"""

import argparse
import json
import lzma
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import uptake
from uptake.adaptation.delta import Delta
from uptake.adaptation.task_vectors import info, task_vector
from uptake.adaptation.trainable import All
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import encode
from uptake.tasks.asking import generate
from uptake.tasks.edit_marks import starts_with
from uptake.tasks.edits import Edit
from uptake.tasks.made_up_edits import made_up_edits
from uptake.text.types import stable_hash

SCALES = [round(0.05 * step, 2) for step in range(1, 21)]
PIECES = 8  # of a document
KEPT = 0.95  # share of each control that must be left
Loss = Callable[[LM], Tensor]
Measure = Callable[[LM], float]


def rows_of(lm: Causal, texts: Iterator[str], rows: int, length: int, seed: int) -> Tensor:
    """Return rows [rows, length] of tokens, the first pieces of documents, drawn by seed."""
    found = []
    for text in texts:
        ids = lm.tokenizer.encode(text[: 8 * length * PIECES])[0]
        ends = range(length - 1, min(len(ids), PIECES * (length - 1)) + 1, length - 1)
        found += [[lm.tokenizer.opening, *ids[end - length + 1 : end]] for end in ends]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    if len(found) < rows:
        raise SystemExit(f"{len(found)} pieces of {length} tokens, {rows} are wanted: give more text")
    return torch.tensor([found[place] for place in order[:rows]], device=lm.device)


def texts_of(folder: Path, split: str) -> Iterator[str]:
    """Yield the texts of one split of a kind."""
    if folder.name == "wikitext2":
        with lzma.open(folder / f"{split}.txt.xz", "rt", encoding="utf8") as file:
            yield from (line.strip() for line in file if len(line) > 500)
        return
    if folder.name != "python":
        yield from (document.text for document in uptake.read(folder / f"{split}.jsonl.xz"))
        return
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        part = stable_hash(file.name) % 8
        if split == {0: "test", 1: "valid"}.get(part, "train"):
            yield file.read_text(encoding="utf8")


def right(lm: LM, ids: Tensor) -> float:
    """Return the share of next tokens that the model has right."""
    hits = []
    for some in ids.split(4):
        with torch.no_grad():
            log_probs, _ = lm.step(some)
        hits.append(log_probs[:, :-1].argmax(-1) == some[:, 1:])
    return torch.cat(hits).double().mean().item()


def said(lm: LM, facts: Sequence[Edit]) -> float:
    """Return the share of facts that the model says by itself, in their own words."""
    texts = generate(lm, [fact.prompt for fact in facts], 12, 256)
    return sum(starts_with(text, fact.target) for text, fact in zip(texts, facts, strict=True)) / len(facts)


def tuned(lm: Causal, losses: Iterable[Loss], rate: float) -> Delta:
    """Return the task vector of one step of Adam a loss, on all weights."""
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(opened.parameters.values(), lr=rate)
    for loss in losses:
        adam.zero_grad()
        loss(private).backward()
        adam.step()
    return task_vector(lm.module, opened.module, lm.fingerprint)


def random_like(delta: Delta, seed: int) -> Delta:
    """Return a change of the same size in every weight, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, change in delta.differences.items():
        noise = torch.randn(change.shape, generator=generator).to(change)
        drawn[name] = noise * (change.norm() / noise.norm())
    return Delta.dense(delta.base, drawn, "random")


def chosen(
    lm: Causal, start: Delta, delta: Delta, controls: dict[str, Measure], most: float
) -> tuple[float, list[dict[str, float]]]:
    """Return the largest scale up to which all controls are kept, 0 for none, and what was measured."""
    before = {name: measure(lm.overlay(start)) for name, measure in controls.items()}
    if empty := [name for name, share in before.items() if not share]:
        raise SystemExit(
            f"nothing of the control {empty[0]!r} is right before: train longer, or at another rate"
        )
    course, scale = [], 0.0
    for each in SCALES:
        if each > most:
            break
        changed = lm.overlay(start - delta * each)
        kept = {name: measure(changed) / before[name] for name, measure in controls.items()}
        course.append({"scale": each, **kept})
        if min(kept.values()) < KEPT:
            break
        scale = each
    return scale, course


def measured(lm: Causal, start: Delta, changed: Delta, tests: dict[str, Measure]) -> dict[str, float]:
    """Return what is right after a change, as shares of what was right before it."""
    before, after = lm.overlay(start), lm.overlay(changed)
    shares = {name: (measure(after), measure(before)) for name, measure in tests.items()}
    return {name: now / was if was else 0.0 for name, (now, was) in shares.items()}


def told(
    lm: Causal,
    start: Delta,
    delta: Delta,
    controls: dict[str, Measure],
    tests: dict[str, Measure],
    most: float,
) -> dict[str, Any]:
    """Return what going away from `delta` at the chosen scale forgets, and what a random change does."""
    scale, course = chosen(lm, start, delta, controls, most)
    found: dict[str, Any] = {
        "right_before": {name: measure(lm.overlay(start)) for name, measure in tests.items()},
        "right_of_base": {name: measure(lm) for name, measure in tests.items()},
        "size": sum((row.size or 0.0) ** 2 for row in info(delta)) ** 0.5,
        "scale": scale,
        "valid": course,
    }
    for name, change in (("forgotten", delta), ("random", random_like(delta, 1))):
        found[name] = measured(lm, start, start - change * scale, tests)
    return found


def of_facts(lm: Causal, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Teach facts A and B together, take A's own change away, and return what is left of both."""
    facts = made_up_edits(2 * arguments.facts, 0, seed=seed)
    a, b = facts[: arguments.facts], facts[arguments.facts :]
    both = tuned(lm, fact_losses([*a, *b], arguments.epochs, arguments.batch, seed), arguments.rate)
    alone = tuned(lm, fact_losses(a, arguments.epochs, arguments.batch, seed), arguments.rate)
    folder = arguments.data / "wikitext2"

    def text(split: str) -> Tensor:
        return rows_of(lm, texts_of(folder, split), arguments.measured, arguments.length, 0)

    other = {split: text(split) for split in ("valid", "test")}
    half = len(b) // 2
    controls: dict[str, Measure] = {
        "facts": lambda model: said(model, b[:half]),
        "text": lambda model: right(model, other["valid"]),
    }
    tests: dict[str, Measure] = {
        "target": lambda model: said(model, a),
        "control": lambda model: said(model, b[half:]),
        "text": lambda model: right(model, other["test"]),
    }
    return {"seed": seed, **told(lm, both, alone, controls, tests, arguments.most)}


def fact_losses(facts: Sequence[Edit], epochs: int, batch: int, seed: int) -> Iterator[Loss]:
    """Yield the loss of each step: epochs over facts in an order drawn anew."""
    draws = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(facts), generator=draws).tolist()
        for start in range(0, len(order), batch):
            some = [facts[place] for place in order[start : start + batch]]

            def loss(model: LM, some: list[Edit] = some) -> Tensor:
                examples = [encode(model.tokenizer, fact.prompt, fact.text) for fact in some]
                return -torch.stack([each.mean() for each in model.token_log_probs(examples)]).mean()

            yield loss


def of_text(lm: Causal, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune on one kind of text, go away from that, and return what is left of it and of others."""

    def rows(kinds: Sequence[str], split: str, count: int) -> Tensor:
        each = [
            rows_of(lm, texts_of(arguments.data / kind, split), count, arguments.length, 0) for kind in kinds
        ]
        return torch.cat(each)

    def loss_of(ids: Tensor) -> Loss:
        return lambda model: -model.step(ids)[0][:, :-1].gather(-1, ids[:, 1:, None]).mean()

    learnt = rows([arguments.target], "train", arguments.rows)
    delta = tuned(lm, [loss_of(some) for some in learnt.split(arguments.batch)], arguments.rate)
    share = -(-arguments.measured // len(arguments.control))
    valid = rows(arguments.control, "valid", share)
    test = {
        "target": rows([arguments.target], "test", arguments.measured),
        "control": rows(arguments.control, "test", share),
    }
    tests: dict[str, Measure] = {name: lambda model, ids=ids: right(model, ids) for name, ids in test.items()}
    nothing = Delta(lm.fingerprint)
    added = measured(lm, nothing, delta, tests)
    controls: dict[str, Measure] = {"text": lambda model: right(model, valid)}
    return {"added": added, **told(lm, nothing, delta, controls, tests, arguments.most)}


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("facts", "text"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared")) / "data"
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--facts", type=int, default=40, help="of each set")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", default="python")
    parser.add_argument("--control", nargs="+", default=["books", "textbook_us_history", "news_reuters21578"])
    parser.add_argument("--rows", type=int, default=128, help="of the target that are trained on")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--measured", type=int, default=24, help="rows of each kind that are measured")
    parser.add_argument("--most", type=float, default=1.0, help="largest scale that is tried")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parsed(given)
    began, lm = time.process_time(), uptake.load(arguments.model, arguments.device)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("model", "data", "out", "command")}
    found: dict[str, Any] = {"model": Path(arguments.model).name, "settings": settings}
    if arguments.command == "facts":
        found["runs"] = [of_facts(lm, arguments, seed) for seed in range(arguments.seeds)]
    else:
        found |= of_text(lm, arguments)
    found["cpu_seconds"] = time.process_time() - began
    whole = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    whole[f"{arguments.command}, {found['model']}"] = found
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
