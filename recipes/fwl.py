"""Fast weight layers against dynamic evaluation, on long documents, under *running*.

A layer is trained on training documents of two domains, first as a layer that does not learn as it
reads (pace 0: the control), then, on some of them, as one that does. Step sizes of every way are
chosen on validation documents; then test documents are scored, segment by segment, each learnt once
it is scored. All ways score the same bytes.

    python recipes/fwl.py            # go on after an interruption: the same command again
"""

import argparse
import json
import lzma
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import uptake
from uptake.journal import Lines
from uptake.learned import Material
from uptake.lm import LM, Segment
from uptake.method import Context
from uptake.methods.base import way as base
from uptake.methods.finetune import Finetune
from uptake.methods.fwl import FWL
from uptake.metrics import gain, gain_difference, gain_interval
from uptake.page import chart, write_chart
from uptake.protocol import Running
from uptake.rules import SGD, AdamW
from uptake.text import Document, stable_hash
from uptake.train import Training, train

DOMAINS = ("court_opinions", "books")
PACES = (0.5, 1.0, 2.0)
RULES = (
    *(SGD(learning_rate=rate) for rate in (1e-2, 3e-2)),
    *(AdamW(learning_rate=rate, weight_decay=0.0) for rate in (3e-5, 1e-4, 3e-4)),
)
LEARNT = FWL(episode_tokens=3072)
THIRDS = 3  # of a document, for the figure by position


def documents(folder: Path, part: str, count: int, characters: int) -> list[Document]:
    """Return the first `characters` of some documents that have as many, in an order fixed by their names."""
    with lzma.open(folder / f"{part}.jsonl.xz", "rt", encoding="utf8") as lines:
        found = [Document(each["id"], each["text"]) for each in map(json.loads, lines)]
    long = sorted((d for d in found if len(d.text) >= characters), key=lambda d: stable_hash("order", d.id))
    return [replace(document, text=document.text[:characters]) for document in long[:count]]


def trained(lm: LM, method: FWL, name: str, train_documents: int, arguments: argparse.Namespace) -> FWL:
    """Return the method with its network, trained or read from an earlier call."""
    file = arguments.work / f"{name}.safetensors"
    if not file.exists():
        pile = arguments.shared / "data/minipile"
        texts, held_out = (
            tuple(
                d for domain in DOMAINS for d in documents(pile / domain, part, count, arguments.characters)
            )
            for part, count in (("train", train_documents), ("valid", arguments.validation))
        )
        network, _ = train(
            method,
            lm,
            method.episodes(lm, Material(texts)),
            Training(AdamW(learning_rate=arguments.rate, weight_decay=0.0), save_every=10),
            file.with_suffix(".training"),
            lambda point: print(f"  training {name}: {point}", flush=True),
            method.episodes(lm, Material(held_out)),
        )
        method.save(network, lm, file)
    return replace(method, weights=str(file), start="")


def score(method: Any, lm: LM, document: Document, protocol: Running) -> dict[str, Any]:
    """Return the bits of every segment and the CPU seconds that scoring and learning took."""
    states, bits, sizes, tokens = [method.init(lm)], [], [], 0
    started = time.process_time()
    for query in protocol.queries(document):
        segment = Segment(query.target, query.context)
        (scores,), states = method.read(states, lm, [segment], Context())
        bits.append(scores.bits)
        sizes.append(scores.bytes)
        tokens += len(scores.log_probs)
    return {"bits": bits, "bytes": sizes, "tokens": tokens, "seconds": time.process_time() - started}


class Scored:
    """Scores by way and document, kept on disk as they are made."""

    def __init__(self, path: Path, key: str) -> None:
        self.lines = Lines(path, key)
        self.done = {(row["way"], row["document"]): row for row in self.lines.start(dict)}

    def of(
        self, name: str, method: Any, lm: LM, texts: Sequence[Document], protocol: Running
    ) -> list[dict[str, Any]]:
        for document in texts:
            if (name, document.id) not in self.done:
                row = {"way": name, "document": document.id, **score(method, lm, document, protocol)}
                self.lines.keep(row)
                self.done[name, document.id] = row
        return [self.done[name, document.id] for document in texts]


def bits(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [sum(row["bits"]) for row in rows]


def choose(
    scored: Scored, name: str, candidates: dict[str, Any], lm: LM, texts: list[Document], protocol: Running
) -> str:
    """Return which candidate takes the fewest bits on validation documents."""
    found = {
        label: sum(bits(scored.of(f"{name} {label}", method, lm, texts, protocol)))
        for label, method in candidates.items()
    }
    found = {label: total for label, total in found.items() if math.isfinite(total)}
    plain = sum(bits(scored.of("base", base.method, lm, texts, protocol)))
    for label, total in found.items():
        print(f"  validation  {name:28} {label:40} gain over {'base':5}: {100 * (1 - total / plain):.2f} %")
    return min(found, key=lambda label: found[label])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/fwl"))
    parser.add_argument("--out", type=Path, default=Path("recipes/fwl.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/fwl.svg"))
    parser.add_argument("--train", type=int, default=40, help="training documents a domain")
    parser.add_argument("--train-fast", type=int, default=20, help="of these, to train learning on")
    parser.add_argument("--validation", type=int, default=3, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=10, help="test documents a domain")
    parser.add_argument("--characters", type=int, default=10_000, help="of each document")
    parser.add_argument("--segment", type=int, default=512, help="characters learnt at once by fine-tuning")
    parser.add_argument("--rate", type=float, default=1.5e-4, help="AdamW's, in training the layer")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lm = uptake.load(str(arguments.shared / "models/base-5m"), dtype="bfloat16")
    protocol = Running(segment=arguments.segment)
    static = trained(lm, replace(LEARNT, pace=0.0), "static", arguments.train, arguments)
    second = replace(LEARNT, start=static.weights)
    learnt = trained(lm, second, "fwl", arguments.train_fast, arguments)
    # Dynamic evaluation may stand on the static layer too: then both have been to the same school.
    under = static.on([static.init(lm)], lm)
    scored = Scored(arguments.work / "scores.journal", f"{arguments.segment} {arguments.characters}")
    pile = arguments.shared / "data/minipile"
    parts = {
        part: {domain: documents(pile / domain, part, count, arguments.characters) for domain in DOMAINS}
        for part, count in (("valid", arguments.validation), ("test", arguments.test))
    }
    valid = [document for some in parts["valid"].values() for document in some]
    tuned = {repr(rule): Finetune(rule=rule, clip=None) for rule in RULES}
    untrained = replace(LEARNT, weights="untrained")
    sets: dict[str, tuple[dict[str, Any], LM]] = {
        "dynamic evaluation": (tuned, lm),
        "fwl": ({f"pace={pace}": replace(learnt, pace=pace) for pace in PACES}, lm),
        "fwl, untrained": ({f"pace={pace}": replace(untrained, pace=pace) for pace in PACES}, lm),
    }
    chosen = {}
    for name, (candidates, on) in sets.items():
        label = choose(scored, name, candidates, on, valid, protocol)
        chosen[name] = (label, candidates[label], on)
    # By the rule that is best without the layer.
    rule, method, _ = chosen["dynamic evaluation"]
    chosen["static layer, dynamic evaluation"] = (rule, method, under)
    ways = {"base": ("", base.method, lm), "static layer": ("", static, lm), **chosen}
    ways["fwl at pace 0"] = ("", replace(learnt, pace=0.0), lm)
    told: dict[str, Any] = {
        "settings": {**vars(arguments), "shared": "", "work": "", "out": "", "plot": ""},
        "chosen": {name: label for name, (label, _, _) in chosen.items()},
        "domains": {},
    }
    for domain, texts in parts["test"].items():
        rows = {name: scored.of(name, how, on, texts, protocol) for name, (_, how, on) in ways.items()}
        told["domains"][domain] = figures(rows)
        show(domain, told["domains"][domain])
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    plot(told["domains"], arguments.plot)


def figures(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what a domain's documents say of each way, beside the base, the static layer and the others."""
    names = [row["document"] for row in rows["base"]]
    plain, still = bits(rows["base"]), bits(rows["static layer"])
    sizes = sum(sum(row["bytes"]) for row in rows["base"])
    out = {}
    for name, own in rows.items():
        found = bits(own)
        out[name] = {
            "bits_per_byte": sum(found) / sizes,
            "gain": gain(found, plain),
            "gain_interval": gain_interval(found, plain, names),
            "over_static_layer": gain_difference(found, still, plain, names),
            "over_dynamic_evaluation": gain_difference(found, bits(rows["dynamic evaluation"]), plain, names),
            "seconds_a_token": sum(row["seconds"] for row in own) / sum(row["tokens"] for row in own),
            "gain_by_third": [
                gain([sum(part) for part in some], [sum(part) for part in of])
                for some, of in zip(thirds(own), thirds(rows["base"]), strict=True)
            ],
        }
    return {"documents": len(names), "bytes": sizes, "ways": out}


def thirds(rows: Sequence[dict[str, Any]]) -> list[list[list[float]]]:
    """Return each document's bits in its first, second and last third."""
    return [
        [row["bits"][len(row["bits"]) * at // THIRDS : len(row["bits"]) * (at + 1) // THIRDS] for row in rows]
        for at in range(THIRDS)
    ]


def show(domain: str, found: dict[str, Any]) -> None:
    table = Table(domain, "bits a byte", "gain", "over static layer", "ms a token", "by third", box=None)
    for name, own in found["ways"].items():
        value, interval = own["over_static_layer"]
        table.add_row(
            name,
            f"{own['bits_per_byte']:.4f}",
            shown(own["gain"], own["gain_interval"]),
            shown(value, interval),
            f"{1000 * own['seconds_a_token']:.2f}",
            " ".join(f"{100 * part:.1f}" for part in own["gain_by_third"]),
        )
    Console(width=150).print(table)


def shown(value: float, ends: Sequence[float] | None) -> str:
    return f"{100 * value:.2f}" + (f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else "")


def plot(domains: dict[str, Any], path: Path) -> None:
    told = ("dynamic evaluation", "static layer", "fwl")
    lines = []
    for at, name in enumerate(told):
        marks = []
        for third in range(THIRDS):
            values = [found["ways"][name]["gain_by_third"][third] for found in domains.values()]
            marks.append(chart.Mark(third, 100 * sum(values) / len(values)))
        lines.append(chart.Series(name, at + 1, tuple(marks)))
    values = [mark.y for line in lines for mark in line.marks]
    svg = chart.draw(
        "lines",
        lines,
        chart.names("third of the document", [str(third + 1) for third in range(THIRDS)]),
        chart.linear("gain over the base, %", [min(0.0, *values), *values], digits=1),
        summary="Gain over the base in each third of a document, by way.",
        reference=(0.0, "base"),
    )
    write_chart(svg, path)


if __name__ == "__main__":
    main()
