"""Fast weight layers against dynamic evaluation, on long documents, under *running*.

A layer is trained on training documents of two domains, first as one that does not learn as it reads
(rate scale 0), then, on more of them, as one that does. Its control goes on at rate scale 0, with the same
training. Rows on disk and on the screen call the rate scale "pace", as those recorded in fwl.json do.
Step sizes of every method are chosen on validation documents, for each domain; then test documents are
scored, segment by segment, each learnt once it is scored. All methods score the same bytes.

    python recipes/fwl.py            # go on after an interruption: the same command again
"""

import argparse
import hashlib
import json
import lzma
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from dynamic_evaluation import count_statistics
from rich.console import Console
from rich.table import Table

import uptake
from uptake import methods
from uptake.adaptation.optimizers import RMS, AdamW
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM, Segment
from uptake.methods.base import spec as base
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context
from uptake.methods.finetune import Finetune
from uptake.methods.fwl import FWL
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.report.page import chart, write_chart
from uptake.text.types import Document, stable_hash
from uptake.train import Training, train


@dataclass(frozen=True)
class Domain:
    """How much of a domain is read: documents of each part, and the first characters of each."""

    characters: int
    train: tuple[int, int]  # at first, and then
    validation: int
    test: int


# Hardly a book is in one piece of more than 12,000 characters.
DOMAINS = {"court_opinions": Domain(20_000, (40, 24), 2, 8), "books": Domain(12_000, (40, 24), 1, 6)}
# Each with the paces it is tried at: the first is the stretch of training.
STRETCHES = {128: (0.075, 0.15, 0.3, 0.6, 1.2), 32: (0.6, 1.0)}
ADAM = {rate: AdamW(learning_rate=rate, weight_decay=0.0) for rate in (1e-4, 3e-4, 1e-3)}
# On an earlier static layer plain SGD, and rates outside of these, were behind.
RULES = (ADAM[1e-4], ADAM[3e-4], *(RMS(learning_rate=rate) for rate in (1e-5, 3e-5, 1e-4)))
# On the bare base others were behind on these documents: Adam at 1e-4 and 1e-3, RMS at 1e-5.
BARE = (ADAM[3e-4], RMS(learning_rate=3e-5))
RATES = (2e-3, 1.5e-3)  # of training, at first and then
PROTOCOL = Running()  # segments of 512 characters after at most 1,024
LEARNT = FWL(episode_tokens=6144, rate_scale=0.3)  # a document each
FIRST_PACE = 0.6  # the best of bench/fwl_parts.py, on validation text
RIVAL, SCHOOLED = "dynamic evaluation", "static layer, dynamic evaluation"
THIRDS = 3  # of a document, for the figure by position


def documents(folder: Path, part: str, domain: str, count: int, skip: int = 0) -> list[Document]:
    """Return the beginnings of some documents that are long enough, in an order fixed by their names."""
    length = DOMAINS[domain].characters
    with lzma.open(folder / domain / f"{part}.jsonl.xz", "rt", encoding="utf8") as lines:
        found = [Document(each["id"], each["text"]) for each in map(json.loads, lines)]
    long = sorted((d for d in found if len(d.text) >= length), key=lambda d: stable_hash("order", d.id))
    return [replace(document, text=document.text[:length]) for document in long[skip : skip + count]]


def trained(lm: LM, method: FWL, name: str, arguments: argparse.Namespace) -> FWL:
    """Return the method with its network, trained or read from an earlier call."""
    file = arguments.work / f"{name}.safetensors"
    if not file.exists():
        texts = []
        for domain, sizes in DOMAINS.items():
            first, then = sizes.train
            count, skip = (then, first) if method.start else (first, 0)
            texts += documents(arguments.pile, "train", domain, count, skip)
        started = time.process_time()
        network, _ = train(
            method,
            lm,
            method.episodes(lm, TrainingData(tuple(texts))),
            Training(
                AdamW(learning_rate=RATES[bool(method.start)], weight_decay=0.0),
                save_every=10 if not method.start else 5,
                warm_up_and_decay=True,
            ),
            file.with_suffix(".training"),
            lambda point: print(f"  {name}, {time.process_time() - started:.0f} s: {point}", flush=True),
        )
        method.save(network, lm, file)
    return replace(method, weights=str(file), start="")


def score(method: Any, lm: LM, document: Document, protocol: Running = PROTOCOL) -> dict[str, Any]:
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
    """Scores by method and document, kept on disk as they are made."""

    def __init__(self, path: Path, key: str, protocol: Running = PROTOCOL) -> None:
        self.protocol = protocol
        self.lines = RecordFile(path, key)
        self.done = {(row["way"], row["document"]): row for row in self.lines.start(dict)}

    def of(self, name: str, method: Any, lm: LM, texts: Sequence[Document]) -> list[dict[str, Any]]:
        for document in texts:
            if (name, document.id) not in self.done:
                row = {"way": name, "document": document.id, **score(method, lm, document, self.protocol)}
                self.lines.keep(row)
                self.done[name, document.id] = row
        return [self.done[name, document.id] for document in texts]


def bits(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [sum(row["bits"]) for row in rows]


def choose(
    scored: Scored, name: str, candidates: dict[str, Any], lm: LM, texts: list[Document], plain: list[float]
) -> str:
    """Return which takes the fewest bits on validation text: the best third reads one more document."""
    left, found = list(candidates), dict.fromkeys(candidates, 0.0)
    for place, document in enumerate(texts, 1):
        for label in left:
            own = bits(scored.of(f"{name} {label}", candidates[label], lm, [document]))[0]
            found[label] += own if math.isfinite(own) else math.inf
            value = 100 * gain([found[label]], [sum(plain[:place])])
            print(f"  {place} for validation: {name} {label}: {value:.2f} %", flush=True)
        left = sorted(left, key=lambda label: found[label])[: max(1, len(left) // 3)]
    return left[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/fwl"))
    parser.add_argument("--out", type=Path, default=Path("recipes/fwl.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/fwl.svg"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.pile = arguments.shared / "data/minipile"
    torch.set_num_threads(1)
    lm = uptake.load(str(arguments.shared / "models/base-5m"))
    first = trained(lm, replace(LEARNT, rate_scale=0.0), "first", arguments)
    learnt = trained(lm, replace(LEARNT, start=first.weights), "fwl", arguments)
    static = trained(lm, replace(LEARNT, start=first.weights, rate_scale=0.0), "static", arguments)
    statistics = arguments.work / "statistics.safetensors"
    if not statistics.exists():
        count_statistics(lm, arguments.pile, statistics, 64)
    # Dynamic evaluation may stand on the static layer too: then both have been to the same school.
    under = static.adapted([static.init(lm)], lm)
    sets: dict[str, tuple[dict[str, Any], LM]] = {
        "fwl": (
            {
                f"stretch={stretch} pace={pace}": replace(learnt, stretch=stretch, rate_scale=pace)
                for stretch, paces in STRETCHES.items()
                for pace in paces
            },
            lm,
        ),
        SCHOOLED: (dynamic(RULES, statistics), under),
        RIVAL: (dynamic(BARE, statistics), lm),
    }
    networks = b"".join(Path(method.weights).read_bytes() for method in (learnt, static))
    lengths = [sizes.characters for sizes in DOMAINS.values()]
    scored = Scored(arguments.work / "scores.journal", f"{hashlib.sha256(networks).hexdigest()} {lengths}")
    told: dict[str, Any] = {
        "settings": {"rates": RATES, "segment": PROTOCOL.segment, "episode": LEARNT.episode_tokens},
        "domains": {},
    }
    for domain, sizes in DOMAINS.items():
        valid, test = (
            documents(arguments.pile, part, domain, count)
            for part, count in (("valid", sizes.validation), ("test", sizes.test))
        )
        plain = bits(scored.of("base", base.method, lm, valid))
        chosen = {name: choose(scored, name, of, on, valid, plain) for name, (of, on) in sets.items()}
        methods = {
            "base": (base.method, lm),
            "static layer": (static, lm),
            **{name: (of[chosen[name]], on) for name, (of, on) in sets.items()},
            "fwl at pace 0": (replace(learnt, rate_scale=0.0), lm),
            "fwl, untrained": (replace(LEARNT, weights="untrained"), lm),
            # Pace 0 has left the step sizes as they began.
            "static layer, first step sizes": (replace(static, rate_scale=FIRST_PACE), lm),
        }
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
        for document in test:
            for name, (how, on) in methods.items():
                # A method is another one for every setting.
                rows[name] += scored.of(f"{name} {chosen.get(name, '')}".strip(), how, on, [document])
        told["domains"][domain] = {"read": vars(sizes), "chosen": chosen, **figures(rows)}
        show(domain, told["domains"][domain])
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
        plot(told["domains"], arguments.plot)


def dynamic(rules: Sequence[RMS | AdamW], statistics: Path) -> dict[str, Finetune]:
    """Return dynamic evaluation by each rule."""
    plain: Finetune = methods.find("dynamic-evaluation").method
    return {
        f"{type(rule).__name__} {rule.learning_rate:g}": replace(
            plain, optimizer=replace(rule, statistics=str(statistics)) if isinstance(rule, RMS) else rule
        )
        for rule in rules
    }


def figures(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return each method's figures on a domain, over the base, the static layer and the other methods."""
    names = [row["document"] for row in rows["base"]]
    plain, still = bits(rows["base"]), bits(rows["static layer"])
    sizes = sum(sum(row["bytes"]) for row in rows["base"])
    out = {}
    for name, own in rows.items():
        found = bits(own)
        out[name] = {
            "bits": found,
            "bits_per_byte": sum(found) / sizes,
            "gain": gain(found, plain),
            "gain_interval": gain_interval(found, plain, names),
            "over_static_layer": gain(found, still),
            "over_static_layer_interval": gain_interval(found, still, names),
            "over_dynamic_evaluation": gain_difference(found, bits(rows[RIVAL]), plain, names),
            "over_schooled_dynamic_evaluation": gain_difference(found, bits(rows[SCHOOLED]), still, names),
            "seconds_a_token": sum(row["seconds"] for row in own) / sum(row["tokens"] for row in own),
            "gain_by_third": by_third(own, rows["base"]),
            "over_static_layer_by_third": by_third(own, rows["static layer"]),
        }
    return {"documents": len(names), "bytes": sizes, "ways": out}


def by_third(own: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> list[float]:
    """Return the gain over another method in the first, second and last third of each document."""

    def part(row: dict[str, Any], at: int) -> float:
        return float(
            sum(row["bits"][len(row["bits"]) * at // THIRDS : len(row["bits"]) * (at + 1) // THIRDS])
        )

    return [gain([part(row, at) for row in own], [part(row, at) for row in other]) for at in range(THIRDS)]


def show(domain: str, found: dict[str, Any]) -> None:
    table = Table(
        domain, "chosen", "bits a byte", "gain", "over static layer", "ms a token", "by third", box=None
    )
    for name, own in found["ways"].items():
        table.add_row(
            name,
            found["chosen"].get(name, ""),
            f"{own['bits_per_byte']:.4f}",
            shown(own["gain"], own["gain_interval"]),
            shown(own["over_static_layer"], own["over_static_layer_interval"]),
            f"{1000 * own['seconds_a_token']:.2f}",
            " ".join(f"{100 * part:.1f}" for part in own["over_static_layer_by_third"]),
        )
    Console(width=150).print(table)


def shown(value: float, ends: Sequence[float] | None) -> str:
    return f"{100 * value:.2f}" + (f" [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]" if ends else "")


def plot(domains: dict[str, Any], path: Path) -> None:
    lines = []
    for domain, found in domains.items():
        for name, label in ((SCHOOLED, "DE"), ("fwl", "fwl")):
            thirds = enumerate(found["ways"][name]["over_static_layer_by_third"])
            marks = tuple(chart.Mark(third, 100 * own) for third, own in thirds)
            lines.append(chart.Series(f"{label}, {domain.split('_')[0]}", len(lines) + 1, marks))
    values = [mark.y for line in lines for mark in line.marks]
    svg = chart.draw(
        "lines",
        lines,
        chart.names("third of the document", [str(third + 1) for third in range(THIRDS)]),
        chart.linear("gain over the static layer, %", [min(0.0, *values), *values], digits=1),
        summary="Gain over the static layer in each third of a document, by method and domain.",
        reference=(0.0, "static layer"),
    )
    write_chart(svg, path)


if __name__ == "__main__":
    main()
