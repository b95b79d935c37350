"""Reading from neighbours: kNN-LM, RetoMaton, context, TTT-NN, two at once, each beside its control.

A small model on domains it never read. What a method leaves open is chosen on validation documents,
for each method and domain by itself, controls included (reading_settings.py); then test documents are
scored once, a round of one document a domain after another, so that a run that is cut short is a smaller
sample of the same thing. The same command goes on where it stopped.

    OMP_NUM_THREADS=1 python recipes/reading_from_neighbours.py
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reading_settings import COMBINED, Asked, Subject, choose
from rich.console import Console
from rich.table import Table

import uptake
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.records import RecordFile
from uptake.lm.causal import Causal
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.store.datastore import Datastore
from uptake.text.overlap import OVERLAP_BINS, OVERLAP_EDGES, overlap_bin
from uptake.text.types import Document, stable_hash

DOMAINS = ("python_peps", "pmc_ccby", "court_opinions", "stackexchange", "dm_mathematics")
SHORTEST = 1200  # characters of a document that is scored, as in bench/main_job.py


def documents(folder: Path, part: str, count: int | None = None, shortest: int = 2048) -> list[Document]:
    """Return the documents of one part that are long enough, in an order fixed by their names."""
    found = [
        d for d in uptake.read(folder / f"{part}.jsonl.xz") if part == "train" or len(d.text) >= shortest
    ]
    return sorted(found, key=lambda d: stable_hash("order", d.id))[:count]


def opened(folder: Path, data: Path, passages: int, model: Causal) -> tuple[Datastore, dict[str, float]]:
    """Return the store of one domain, its tokens read, and what reading took."""
    if not (folder / "store.json").is_file():
        Datastore.create(folder, retriever="lexical")
    store = Datastore.open(folder)
    if store.count < passages:
        chosen, count = [], 0
        for document in documents(data, "train"):
            chosen.append(document)
            count += len(document.text) // 1000 + 1
            if count >= passages:
                break
        store.add(chosen)
    started = time.process_time()
    read = store.read_tokens(TokenKeyer(model))
    about: dict[str, float] = {"tokens": read.total, "passages": store.count}
    for name in ("tokens", "passages.lance"):
        files = [file for file in (folder / name).rglob("*") if file.is_file()]
        about[f"bytes_per_token_of_{name.removesuffix('.lance')}"] = sum(
            file.stat().st_size for file in files
        ) / max(read.total, 1)
    if read.tokens:
        about["read_tokens_per_second"] = read.tokens / (time.process_time() - started)
    return store, about


def measured(
    one: Asked, subjects: Sequence[Subject], journal: RecordFile, done: dict[str, Any]
) -> dict[str, Any]:
    """Return the bits and CPU seconds of one query under every subject, the base among them."""
    methods = {}
    for subject in (None, *subjects):
        key = f"{one.query.id} {one.key(subject)}"
        if key not in done:
            scores, seconds = one.scored(subject) if subject else one.base
            done[key] = [scores.bits, seconds, scores.bytes, len(scores.log_probs)]
            journal.keep({"key": key, "figures": done[key]})
        methods[subject.name if subject else "base"] = done[key]
    *_, size, tokens = methods["base"]
    overlap = max(one.found["nearest"].overlaps, default=0.0)
    one.forget()
    document = one.query.document.id
    return {"document": document, "bytes": size, "tokens": tokens, "overlap": overlap, "ways": methods}


def figures(rows: Sequence[Mapping[str, Any]], subjects: Sequence[Subject], best: str) -> dict[str, Any]:
    """Return every method's gain over the base and over its controls, and the best combination's over all."""

    def bits(name: str) -> list[float]:
        return [row["ways"][name][0] for row in rows]

    def beyond(one: str, other: str) -> list[Any]:
        told = gain_difference(bits(one), bits(other), base, names)
        return [told.value, told.interval]

    names, base = [row["document"] for row in rows], bits("base")
    told: dict[str, Any] = {
        "queries": len(rows),
        "base_bits_per_byte": sum(base) / sum(row["bytes"] for row in rows),
        "ways": {
            one.name: {
                "gain": gain(bits(one.name), base),
                "interval": gain_interval(bits(one.name), base, names),
                "beyond_controls": {other: beyond(one.name, other) for other in one.controls},
            }
            for one in subjects
        },
        f"{best}, beyond": {
            one.name: beyond(best, one.name) for one in subjects if one.controls and one.name not in COMBINED
        },
    }
    tokens = sum(row["tokens"] for row in rows)
    for name in ("base", *(one.name for one in subjects)):
        spent = sum(row["ways"][name][1] for row in rows) / tokens
        (told["ways"][name] if name != "base" else told)["cpu_seconds_per_token"] = spent
    return told


def write(
    path: Path,
    told: dict[str, Any],
    rows: Mapping[str, Sequence[Any]],
    subjects: Sequence[Subject],
    best: str,
) -> None:
    """Write figures of each domain, of all, of all but mathematics, by overlap, and the leakage curve."""
    every = [row for some in rows.values() for row in some]
    groups = {**rows, "all": every}
    if len(rows) > 1 and "dm_mathematics" in rows:
        groups["without mathematics"] = [
            r for name, some in rows.items() if name != "dm_mathematics" for r in some
        ]
    rest = groups.get("without mathematics", every)
    told["domains"] = {name: figures(some, subjects, best) for name, some in groups.items() if some}
    bins = {label: [r for r in rest if overlap_bin(r["overlap"]) == label] for label in OVERLAP_BINS}
    told["by overlap"] = {name: figures(some, subjects, best) for name, some in bins.items() if some}
    upto = {str(edge): [r for r in rest if r["overlap"] <= edge] for edge in (0.0, *OVERLAP_EDGES[1:], 1.0)}
    told["overlap at most"] = {name: figures(some, subjects, best) for name, some in upto.items() if some}
    told["columns"] = "; ".join(["document", "bytes", "tokens", "overlap", *every[0]["ways"]])
    told["rows"] = {name: [_row(r) for r in some] for name, some in rows.items()}
    path.write_text(json.dumps(told, indent=1) + "\n")


def _row(row: Mapping[str, Any]) -> str:
    """Return what one query came to, in bits a method, on one line."""
    bits = (f"{bits:.2f}" for bits, *_ in row["ways"].values())
    return "; ".join([row["document"], f"{row['bytes']}; {row['tokens']}; {row['overlap']:.4f}", *bits])


def show(told: dict[str, Any], subjects: Sequence[Subject]) -> None:
    table = Table("method", *told["domains"], title="gain in % of the base's bits", box=None)

    def cell(value: float, ends: Sequence[float] | None) -> str:
        return f"{100 * value:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")

    for one in subjects:
        found = [domain["ways"][one.name] for domain in told["domains"].values()]
        table.add_row(one.name, *(cell(each["gain"], each["interval"]) for each in found))
        for other in one.controls:
            table.add_row(f"  beyond {other}", *(cell(*each["beyond_controls"][other]) for each in found))
    Console(width=190).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--model", help="default: the shared base model")
    parser.add_argument("--work", type=Path, default=Path("build/neighbours"))
    parser.add_argument("--out", type=Path, default=Path("recipes/reading_from_neighbours.json"))
    parser.add_argument("--passages", type=int, default=1000, help="passages a domain, about")
    parser.add_argument("--validation", type=int, default=4, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=15, help="test documents a domain")
    parser.add_argument("-k", type=int, default=10, help="passages to train on, or to put in context")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(arguments.model or str(arguments.shared / "models/base-5m"))
    pile, told = arguments.shared / "data/minipile", dict[str, Any]()
    settings = {name: vars(arguments)[name] for name in ("passages", "validation", "test", "k")}
    told["settings"], told["stores"] = settings, {}
    stores, asked = {}, {}
    noted = arguments.work / "stores.json"
    known = json.loads(noted.read_text()) if noted.is_file() else {}
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.domains:
        folder = arguments.work / f"{name}-{arguments.passages}"
        stores[name], about = opened(folder, pile / name, arguments.passages, model)
        told["stores"][name] = known[name] = known.get(name, {}) | about
        noted.write_text(json.dumps(known))
        print(f"  {name}: {known[name]}", flush=True)
        for part in ("valid", "test"):
            count = settings["validation" if part == "valid" else "test"]
            asked[name, part] = [
                Asked(model, stores[name], query, arguments.k)
                for document in documents(pile / name, part, count, SHORTEST)
                for query in PerQuery(search=384).queries(document)
            ]
    # More test documents, or domains, go on from what there is.
    sizes = json.dumps([arguments.passages, arguments.validation])
    key = f"{stable_hash(model.fingerprint, sizes):016x}"
    chosen = {
        name: choose(asked[name, "valid"], RecordFile(arguments.work / f"validation-{name}.journal", key))
        for name in arguments.domains
    }
    subjects = chosen[arguments.domains[0]]
    told["chosen"] = {
        name: {one.name: [one.told, one.gained] for one in found} for name, found in chosen.items()
    }
    gained = {one: sum(each[one][1] for each in told["chosen"].values()) for one in COMBINED}
    best = told["best combination"] = max(gained, key=lambda one: gained[one])
    for subject in subjects:
        print(f"  {subject.name}")
        for name, found in told["chosen"].items():
            print(f"    {name}: {found[subject.name][0]} {100 * found[subject.name][1]:.2f} %", flush=True)
    print(f"  best combination on validation text: {best}", flush=True)
    journals = {name: RecordFile(arguments.work / f"test-{name}.journal", key) for name in arguments.domains}
    done = {row["key"]: row["figures"] for journal in journals.values() for row in journal.start(dict)}
    rows: dict[str, list[Any]] = {name: [] for name in arguments.domains}
    for number in range(arguments.test):
        for name in arguments.domains:
            for one in asked[name, "test"][number : number + 1]:
                row = measured(one, chosen[name], journals[name], done)
                rows[name].append(row)
                print(f"  {number} {name}: " + ", ".join(
                    f"{label} {1 - bits / row['ways']['base'][0]:.3f}"
                    for label, (bits, *_) in row["ways"].items()), flush=True)  # fmt: skip
        if number % 5 == 4 or number == arguments.test - 1:
            write(arguments.out, told, rows, subjects, best)
    show(told, subjects)


if __name__ == "__main__":
    main()
