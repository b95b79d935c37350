"""Does a fast weight layer leave known text alone when the base stands beside it in one mixture?

A layer is trained on a hundred documents or more, first as one that does not learn as it reads, then, in
stretches of 32 tokens, as one that does. Then it reads other documents segment by segment, alone and as an
expert beside its base (`base_weight`), and dynamic evaluation does, with all weights and with the top layers
alone, which costs about as much as the layer. Every way has one setting for all domains, chosen on
validation documents. `books` is text that base-5m was trained on.

    python recipes/fwl_mixture.py                                                        # base-5m
    python recipes/fresh_layer.py --model SMOLLM2 --characters 8192 --out LAYER                # fresh text
    python recipes/fwl_mixture.py --model SMOLLM2 --fresh build/fresh --layer LAYER --characters 8192 \
        --segment 2048 --context 2048
"""

import argparse
import hashlib
import json
import lzma
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dynamic_evaluation import count_statistics
from fresh_common import drawn
from fwl import PROTOCOL, RATES, Scored, bits, by_third, shown
from rich.console import Console
from rich.table import Table

import uptake
from uptake import methods
from uptake.adaptation.optimizers import RMS, AdamW
from uptake.adaptation.trainable import Top
from uptake.evaluation.protocols.running import Running
from uptake.lm.base import LM
from uptake.methods.base import spec as base
from uptake.methods.contract.learned import TrainingData
from uptake.methods.fwl import FWL
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.text.types import Document, stable_hash
from uptake.train import Training, train

READ = ("court_opinions", "books")  # domains that the layer is trained on
DOMAINS = ("books", "court_opinions", "pmc_ccby", "python_peps")
LEARNT = FWL(stretch=32, rate_scale=0.3)
PACES = (0.3, 0.6, 1.0)
BASE, ALONE, MIXED = "base", "fwl", "fwl beside the base"
STILL = "fwl that learns nothing, beside the base"
DYNAMIC, TOP = "dynamic evaluation", "dynamic evaluation of the top"
WAYS = (ALONE, MIXED, DYNAMIC, TOP)
SETTINGS = (
    "characters", "segment", "context", "first", "then", "validation", "test", "layers", "paces", "rates",
    "top_rates",
)  # fmt: skip
RMS_RATE = 3e-5  # the best of recipes/fwl.py on books


def pile(folder: Path, domain: str, part: str, length: int, most: int) -> list[Document]:
    """Return the beginnings of some documents that are long enough, in an order fixed by their names."""
    with lzma.open(folder / domain / f"{part}.jsonl.xz", "rt", encoding="utf8") as lines:
        found = [Document(each["id"], each["text"]) for each in map(json.loads, lines)]
    found = sorted(found, key=lambda each: stable_hash("order", each.id))
    return cut(found, length, most)


def cut(found: Sequence[Document], length: int, most: int) -> list[Document]:
    return [replace(each, text=each.text[:length]) for each in found if len(each.text) >= length][:most]


def texts(arguments: Any, part: str, most: int) -> dict[str, list[Document]]:
    """Return documents of each domain."""
    if arguments.fresh:
        # What teaches the layer are new versions of other packages than those it is tested on.
        name = {"train": "after"}.get(part, part)
        return {"fresh": cut(drawn(arguments.fresh, name), arguments.characters, most)}
    names = READ if part == "train" else DOMAINS
    return {name: pile(arguments.pile, name, part, arguments.characters, most) for name in names}


def trained(lm: LM, method: FWL, name: str, material: Sequence[Document], work: Path) -> FWL:
    """Return the method with its network, trained or read from an earlier call."""
    file = work / f"{name}.safetensors"
    if not file.exists():
        network, _ = train(
            method,
            lm,
            method.episodes(lm, TrainingData(tuple(material))),
            Training(
                AdamW(learning_rate=RATES[bool(method.start)], weight_decay=0.0),
                save_every=10,
                warm_up_and_decay=True,
            ),
            file.with_suffix(".training"),
            lambda point: print(f"  {name}: {point}", flush=True),
        )
        method.save(network, lm, file)
    return replace(method, weights=str(file), start="")


def learnt(lm: LM, arguments: Any) -> FWL:
    """Return fast weights as they are trained, without learning, then with; or those that are given."""
    if arguments.layer:
        return replace(LEARNT, weights=str(arguments.layer))
    whole = texts(arguments, "train", arguments.first + arguments.then)
    parts: dict[str, list[Document]] = {"first": [], "then": []}
    for found in whole.values():
        parts["first"] += found[: arguments.first]
        parts["then"] += found[arguments.first :]
    method = LEARNT
    if parts["first"]:
        still = trained(lm, replace(LEARNT, rate_scale=0.0), "first", parts["first"], arguments.work)
        method = replace(LEARNT, start=still.weights)
    return trained(lm, method, "then", parts["then"], arguments.work)


def candidates(lm: Any, layer: FWL, arguments: Any) -> dict[str, dict[str, Any]]:
    """Return what is tried for each way, by a label."""
    dynamic: Any = methods.find("dynamic-evaluation").method

    def adam(rate: float, **how: Any) -> Any:
        return replace(dynamic, optimizer=AdamW(rate, weight_decay=0.0), **how)

    def rms() -> dict[str, Any]:
        if arguments.fresh:
            return {}  # there is no text that the base is known to be trained on, to count gradients of
        statistics = arguments.work / "statistics.safetensors"
        if not statistics.exists():
            count_statistics(lm, arguments.pile, statistics, 64)
        rule = RMS(learning_rate=RMS_RATE, statistics=str(statistics))
        return {f"RMS {RMS_RATE:g}": replace(dynamic, optimizer=rule)}

    top = {"trainable": Top(arguments.layers)}
    found: dict[str, dict[str, Any]] = {
        ALONE: {f"pace={pace}": replace(layer, rate_scale=pace) for pace in arguments.paces},
        MIXED: {f"pace={pace}": replace(layer, rate_scale=pace, base_weight=0.5) for pace in arguments.paces},
        STILL: {"pace=0": replace(layer, rate_scale=0.0, base_weight=0.5)},
        DYNAMIC: {f"Adam {rate:g}": adam(rate) for rate in arguments.rates},
        TOP: {f"Adam {rate:g}": adam(rate, **top) for rate in arguments.top_rates},
    }
    if DYNAMIC in arguments.ways:
        found[DYNAMIC] |= rms()
    return {way: found[way] for way in found if way in arguments.ways}


def chosen(
    scored: Scored, lm: LM, tried: Mapping[str, Mapping[str, Any]], valid: Sequence[Document]
) -> dict[str, str]:
    """Return each way's label of fewest bits on all validation documents together."""
    found = {}
    plain = sum(bits(scored.of(BASE, base.method, lm, valid)))
    for way, of in tried.items():
        if len(of) == 1:  # nothing to choose
            found[way] = next(iter(of))
            continue
        total = {label: sum(bits(scored.of(f"{way} {label}", of[label], lm, valid))) for label in of}
        for label, own in total.items():
            print(f"  validation: {way}, {label}: {100 * (1 - own / plain):.2f} %", flush=True)
        found[way] = min(total, key=lambda label: total[label])
    return found


def figures(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return each way's figures over the base, and beside both kinds of dynamic evaluation."""
    names, plain = [row["document"] for row in rows[BASE]], bits(rows[BASE])
    tokens = sum(row["tokens"] for row in rows[BASE])
    told = {}
    for way, own in rows.items():
        found = bits(own)
        told[way] = {
            "bits": found,
            "bits_per_byte": sum(found) / sum(sum(row["bytes"]) for row in own),
            "gain": gain(found, plain),
            "gain_interval": gain_interval(found, plain, names),
            "gain_by_third": by_third(own, rows[BASE]),
            "seconds_a_token": sum(row["seconds"] for row in own) / tokens,
            **{
                f"beyond {other}": gain_difference(found, bits(rows[other]), plain, names)
                for other in (DYNAMIC, TOP, ALONE, STILL)
                if other != way and other in rows
            },
        }
    return {"documents": len(names), "tokens": tokens, "ways": told}


def show(told: Mapping[str, Any]) -> None:
    names = ("domain", "way", "bits a byte", "gain, %", "beyond DE", "beyond DE of the top", "ms")
    table = Table(*names, box=None)
    for domain, found in told["domains"].items():
        for way, own in found["ways"].items():
            beyond = (own.get(f"beyond {other}") for other in (DYNAMIC, TOP))
            table.add_row(
                domain,
                way,
                f"{own['bits_per_byte']:.4f}",
                shown(own["gain"], own["gain_interval"]),
                *(shown(*each) if each else "" for each in beyond),
                f"{1000 * own['seconds_a_token']:.2f}",
            )
    Console(width=160).print(table)


def measured(lm: LM, arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield what is known after each round of test documents, one of every domain."""
    layer = learnt(lm, arguments)
    protocol = Running(arguments.segment, arguments.context)
    about = (
        f"{hashlib.sha256(Path(layer.weights).read_bytes()).hexdigest()} {arguments.characters} {protocol}"
    )
    scored = Scored(arguments.work / "scores.journal", about, protocol)
    tried = candidates(lm, layer, arguments)
    valid = [each for of in texts(arguments, "valid", arguments.validation).values() for each in of]
    labels = chosen(scored, lm, tried, valid)
    ways = {BASE: ("", base.method)} | {way: (labels[way], of[labels[way]]) for way, of in tried.items()}
    tests = texts(arguments, "test", arguments.test)
    told: dict[str, Any] = {
        "settings": {name: getattr(arguments, name) for name in SETTINGS}, "chosen": labels,
    }  # fmt: skip
    for count in range(1, arguments.test + 1):
        told["domains"] = {}
        for domain, documents in tests.items():
            rows = {
                way: scored.of(f"{way} {label}".strip(), method, lm, documents[:count])
                for way, (label, method) in ways.items()
            }
            told["domains"][domain] = figures(rows)
        yield told


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared = Path(os.environ.get("UPTAKE_SHARED", "../shared"))
    parser.add_argument("--model", default=str(shared / "models/base-5m"))
    parser.add_argument("--pile", type=Path, default=shared / "data/minipile")
    parser.add_argument("--fresh", type=Path, help="recipes/fresh.py's folder, whose text is read instead")
    parser.add_argument("--characters", type=int, default=8000, help="of each document")
    parser.add_argument("--segment", type=int, default=PROTOCOL.segment, help="characters scored at a time")
    parser.add_argument("--context", type=int, default=PROTOCOL.context, help="characters before a segment")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=(*WAYS, STILL))
    parser.add_argument("--layer", type=Path, help="a trained one, instead of training")
    parser.add_argument("--first", type=int, default=50, help="training documents a domain, without learning")
    parser.add_argument("--then", type=int, default=80, help="training documents a domain, with learning")
    parser.add_argument("--validation", type=int, default=1, help="documents a domain")
    parser.add_argument("--test", type=int, default=6, help="documents a domain")
    parser.add_argument("--layers", type=int, default=1, help="the top ones, for dynamic evaluation of these")
    parser.add_argument("--paces", type=float, nargs="+", default=PACES, help="rate scales tried")
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-4, 3e-4), help="Adam's, all weights")
    parser.add_argument("--top-rates", type=float, nargs="+", default=(3e-4, 1e-3), help="of the top layers")
    parser.add_argument("--work", type=Path, default=Path("build/fwl_mixture"))
    parser.add_argument("--out", type=Path, default=Path("recipes/fwl_mixture.json"))
    arguments = parser.parse_args(given)
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    for told in measured(uptake.load(arguments.model), arguments):
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
        show(told)


if __name__ == "__main__":
    main()
