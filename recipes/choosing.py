"""Does choosing pay? TTT-NN on half as many neighbours, chosen in several ways, on fresh text.

The 100 nearest passages of each query are the candidates. At half the budget, 10 are read: the nearest,
some at random, those of highest loss, what SIFT chooses by the model's mean states, what BAIT chooses to tell
most about the candidates or about the query; and 10 of the whole store. Beside them the 20 nearest.

    python recipes/choosing.py score --model MODEL --documents 24
    python recipes/choosing.py score --model MODEL --half 5 --candidates 40 --layers 2   # as in the docs
    python recipes/choosing.py table --json recipes/choosing.json
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh_common import PROTOCOL, choosing, difference, drawn, source_of, store_of

import uptake
from uptake.codec import load
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM, Segment
from uptake.lm.fisher import FisherReader
from uptake.methods.bait import in_units
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.text.bait import bait
from uptake.text.select import sift
from uptake.text.types import Document, Found, Source, stable_hash

BASE, FULL = "base", "nearest, whole budget"


@dataclass(frozen=True, slots=True)
class Scored:
    """One document's target under one choice; `seconds` are of choosing, `overlap` with the nearest."""

    document: str
    choice: str
    bits: float
    bytes: int
    tokens: int
    seconds: float
    overlap: int


@dataclass(frozen=True)
class Sizes:
    """How many passages half the budget is, of how many candidates, and how many layers train on them."""

    half: int = 10
    candidates: int = 100
    layers: int = 4
    regularisation: float = 0.01  # in a candidate's information


def choices(
    lm: LM, source: Source, prefix: str, document: Document, sizes: Sizes
) -> dict[str, tuple[Found, float]]:
    """Return what each way reads, and the seconds that choosing took beside the search."""
    found, half = source.search(sizes.candidates), sizes.half
    near, count = [passage.text for passage in found.passages], len(found.passages)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(stable_hash("fisher", document.id))
    read = FisherReader().read(lm, [*near, prefix], generator)
    reading = time.perf_counter() - started
    factors = in_units(np.stack([each.factor for each in read]), count)
    states = np.stack([each.state for each in read])
    states -= states[:-1].mean(0)  # all states of a model share a direction
    losses = [each.nats for each in read[:-1]]
    drawn_at_random = choosing(document).permutation(count)[:half].tolist()
    made: dict[str, tuple[Found, float]] = {
        "nearest": (found.part(0, half), 0.0),
        "random candidates": (found.at(drawn_at_random), 0.0),
        "random": (source.sample(half, choosing(document)), 0.0),
        FULL: (found.part(0, 2 * half), 0.0),
    }
    ways: dict[str, Any] = {
        "highest loss": lambda: sorted(range(count), key=lambda number: -losses[number])[:half],
        "sift": lambda: sift(states[:-1], states[-1], half, repeats=False),
        "bait": lambda: bait(factors[:-1], half, None, sizes.regularisation),
        "bait about the query": lambda: bait(factors[:-1], half, factors[-1], sizes.regularisation),
    }
    for name, way in ways.items():
        started = time.perf_counter()
        made[name] = found.at(way()), reading + time.perf_counter() - started
    return made


def score(arguments: Any) -> Iterator[str]:
    """Score documents under every choice; yield a line on each. Resumes."""
    lm = uptake.load(arguments.model, arguments.device)
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = store_of(arguments.data, arguments.work / "fresh.store")
    part, of = map(int, arguments.shard.split("/"))
    journal = _journal(arguments, f"{part}-of-{of}")
    done = {row.document for row in journal.start(lambda row: load(Scored, row))}
    sizes = _sizes(arguments)
    settings = [
        f"trainable=top(layers={sizes.layers})",
        "optimizer=adamw(learning_rate=3e-4)",
    ]  # fresh_methods' own
    method = method_specs(["ttt-nn"], settings)["ttt-nn"].method
    started = time.monotonic()
    for document in drawn(arguments.data, arguments.part)[: arguments.documents][part::of]:
        if document.id in done or time.monotonic() - started > arguments.seconds:
            continue
        (query,) = PROTOCOL.queries(document)
        source = source_of(store, document, query)
        segment = Segment(query.target, query.context)
        (plain,) = lm.score([segment])
        rows = [Scored(document.id, BASE, plain.bits, plain.bytes, 0, 0.0, 0)]
        made = choices(lm, source, query.context, document, sizes)
        nearest = {passage.id for passage in made["nearest"][0].passages}
        for name, (found, seconds) in made.items():
            context = Context(continues=False)
            evidence = Evidence(found, query.context, source)
            (state,) = method.adapt([method.init(lm)], lm, [evidence], context)
            (scores,) = method.adapted([state], lm).score([segment])
            shared = sum(passage.id in nearest for passage in found.passages)
            trained = context.ledger(0).tokens_trained
            rows.append(Scored(document.id, name, scores.bits, scores.bytes, trained, seconds, shared))
        for row in rows:
            journal.keep(row)
        yield f"{document.id} " + ", ".join(f"{row.choice} {row.bits / row.bytes:.3f}" for row in rows)


def _journal(arguments: Any, name: str) -> RecordFile:
    return RecordFile(
        arguments.work / f"choosing-{arguments.part}-{name}.jsonl",
        f"{arguments.part} {PROTOCOL} {_sizes(arguments)}",
    )


def _sizes(arguments: Any) -> Sizes:
    return Sizes(arguments.half, arguments.candidates, arguments.layers, arguments.regularisation)


def table(arguments: Any) -> dict[str, Any]:
    """Return each choice's gain over the base, and beyond the nearest at both budgets."""
    rows: dict[str, dict[str, Scored]] = {}
    for path in sorted(arguments.work.glob(f"choosing-{arguments.part}-*.jsonl")):
        name = path.stem.removeprefix(f"choosing-{arguments.part}-")
        for row in _journal(arguments, name).start(lambda row: load(Scored, row)):
            rows.setdefault(row.document, {})[row.choice] = row
    names = list(dict.fromkeys(name for of in rows.values() for name in of))
    whole = {document: of for document, of in rows.items() if len(of) == len(names)}
    base = [of[BASE].bits for of in whole.values()]
    told: dict[str, Any] = {
        "part": arguments.part, "documents": len(whole), "sizes": asdict(_sizes(arguments)), "choices": {},
    }  # fmt: skip
    told["base_bits_per_byte"] = sum(base) / sum(of[BASE].bytes for of in whole.values())
    for name in names[1:]:
        bits = [of[name].bits for of in whole.values()]
        told["choices"][name] = {
            "gain": gain(bits, base),
            "interval": gain_interval(bits, base, list(whole)),
            "tokens": sum(of[name].tokens for of in whole.values()) / len(whole),
            "choosing_seconds": sum(of[name].seconds for of in whole.values()) / len(whole),
            "of_the_nearest": sum(of[name].overlap for of in whole.values()) / len(whole),
            **{
                f"beyond {other}": gain_difference(
                    bits, [of[other].bits for of in whole.values()], base, list(whole)
                )
                for other in ("nearest", "random candidates", FULL)
                if other != name
            },
        }
    return told


def _shown(told: dict[str, Any]) -> str:
    lines = [
        f"{told['documents']} documents, base {told['base_bits_per_byte']:.3f} bits a byte\n",
        "| choice | gain | beyond nearest | beyond random candidates | beyond the whole budget | tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in told["choices"].items():
        low, high = each["interval"]
        beyond = " | ".join(
            difference(each.get(f"beyond {other}")) for other in ("nearest", "random candidates", FULL)
        )
        lines.append(
            f"| {name} | {100 * each['gain']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] | {beyond} "
            f"| {each['tokens']:.0f} |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("score", "table"):
        command = commands.add_parser(name)
        command.add_argument(
            "--data", type=Path, default=Path("build/fresh"), help="recipes/fresh.py's folder"
        )
        command.add_argument("--work", type=Path, default=Path("build/choosing"))
        command.add_argument("--part", choices=("valid", "test"), default="test")
        command.add_argument("--half", type=int, default=Sizes.half, help="passages of half the budget")
        command.add_argument("--candidates", type=int, default=Sizes.candidates)
        command.add_argument("--layers", type=int, default=Sizes.layers, help="the last ones, which train")
        command.add_argument(
            "--regularisation", type=float, default=Sizes.regularisation, help="in a candidate's information"
        )
    command.add_argument("--json", type=Path)
    command = commands.choices["score"]
    command.add_argument("--model", required=True)
    command.add_argument("--device", default="cpu")
    command.add_argument("--documents", type=int, default=24)
    command.add_argument("--seconds", type=float, default=float("inf"), help="begin no document after these")
    command.add_argument("--shard", default="0/1", help="this process's part of the documents, of how many")
    arguments = parser.parse_args(given)
    if arguments.command == "score":
        for line in score(arguments):
            print(line, flush=True)
        return
    told = table(arguments)
    print(_shown(told))
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
