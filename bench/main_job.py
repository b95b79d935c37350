"""The main job on text the shared base model never read: gain, control and cost, domain by domain.

Learning rates are chosen on validation documents, for TTT-NN and for its random control apart, so
that the control is as well tuned as what it controls. Then the test documents are scored once.

    python bench/main_job.py --out bench/main_job.json
"""

import argparse
import json
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import uptake
from uptake.causal import Causal
from uptake.metrics import gain
from uptake.store.datastore import Datastore
from uptake.text import Document, stable_hash

DOMAINS = ("python_peps", "court_opinions", "pmc_ccby", "stackexchange", "dm_mathematics")
RATES = ("1e-4", "3e-4", "1e-3")
TOLD = ("random", "in-context", "dynamic-evaluation", "ttt-nn")
WAYS = ("ttt-nn", "random", "dynamic-evaluation")


def documents(folder: Path, part: str, count: int | None = None) -> list[Document]:
    """Return the documents of one part that are long enough, in an order fixed by their names."""
    found = [d for d in uptake.read(folder / f"{part}.jsonl.xz") if part == "train" or len(d.text) >= 1200]
    return sorted(found, key=lambda d: stable_hash("order", d.id))[:count]


def make_store(folder: Path, data: Path, passages: int, encoder: str | None) -> Datastore:
    if encoder is None:
        store = Datastore.create(folder, retriever="lexical")
    else:
        store = Datastore.create(folder, retriever="hybrid", encoder=encoder)
    chosen, count = [], 0
    for document in documents(data, "train"):
        chosen.append(document)
        count += len(document.text) // 1000 + 1
        if count >= passages:
            break
    store.add(chosen)
    return store


def choose_rates(model: Causal, domains: dict, arguments: argparse.Namespace) -> dict[str, str]:
    """Return each way's learning rate with the largest pooled gain on validation documents."""
    best: dict[str, tuple[float, str]] = {}
    for rate in RATES:
        rows = []
        for store, valid, _ in domains.values():
            made = uptake.compare(
                model,
                valid,
                WAYS,
                store=store,
                k=arguments.k,
                settings=[f"learning_rate={rate}"],
                showcases=0,
            )
            rows += made.rows
        for way in WAYS:
            of = [row for row in rows if row.way == way]
            pooled = gain([row.bits for row in of], [row.base_bits for row in of])
            print(f"  validation  {way:18} learning rate {rate}: gain {100 * pooled:.1f} %", flush=True)
            best[way] = max(best.get(way, (float("-inf"), "")), (pooled, rate))
    return {way: rate for way, (_, rate) in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--model", help="default: the shared base model")
    parser.add_argument("--work", type=Path, default=Path("build/main_job"))
    parser.add_argument("--out", type=Path, default=Path("bench/main_job.json"))
    parser.add_argument("--passages", type=int, default=5000, help="passages a domain, about")
    parser.add_argument("--validation", type=int, default=3, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=10, help="test documents a domain")
    parser.add_argument("--part", default="test", help="the documents scored in the end: test or valid")
    parser.add_argument("--windows", type=int, default=1, help="most queries of one document")
    parser.add_argument("--rate", help="take this learning rate for every way, and choose none")
    parser.add_argument("--encoder", help="hybrid search with this encoder (default: lexical)")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = uptake.load(arguments.model or str(arguments.shared / "models/base-5m"), dtype=arguments.dtype)
    pile = arguments.shared / "data/minipile"
    domains = {}
    for name in arguments.domains:
        folder = (
            arguments.work / f"{name}-{stable_hash(name, str(arguments.passages), str(arguments.encoder)):x}"
        )
        store = (
            Datastore.open(folder)
            if folder.exists()
            else make_store(folder, pile / name, arguments.passages, arguments.encoder)
        )
        valid = documents(pile / name, "valid", arguments.validation)
        domains[name] = (store, valid, documents(pile / name, arguments.part, arguments.test))
    rates = dict.fromkeys(WAYS, arguments.rate) if arguments.rate else choose_rates(model, domains, arguments)
    told = {"learning_rates": rates, "k": arguments.k, "domains": {}}
    table = Table("domain", "base", *TOLD, "ttt-nn - random", "CPU s a query", box=None)
    for name, (store, _, test) in domains.items():
        results = uptake.compare(
            model,
            test,
            ["base", *TOLD],
            store=store,
            k=arguments.k,
            settings=[f"{way}.learning_rate={rate}" for way, rate in rates.items()],
            showcases=0,
            protocol=uptake.PerQuery(windows=arguments.windows),
            journal=arguments.work / f"{name}.journal",
        )
        figures = uptake.summary(results)
        told["domains"][name] = figures
        methods = figures["methods"]
        against = methods["ttt-nn"]["against_random"]
        table.add_row(
            name,
            f"{methods['base']['bits_per_byte']:.3f}",
            *(shown(methods[way]["gain"], methods[way]["gain_ci"]) for way in TOLD),
            shown(against["difference"], against["ci"]),
            f"{methods['ttt-nn']['cpu_seconds_per_query']['total']:.2f}",
        )
        print(f"  {name} done", flush=True)
        for number in range(arguments.windows if arguments.windows > 1 else 0):
            told_by_way = []
            for way in TOLD:
                rows = [row for row in results.rows if row.way == way and row.query.endswith(f"#{number}")]
                saved = gain([row.bits for row in rows], [row.base_bits for row in rows])
                told_by_way.append(f"{way} {100 * saved:.1f} %")
            print(f"    window {number + 1}: {', '.join(told_by_way)}", flush=True)
    Console(width=130).print(
        f"gain in % of the base's bits, k = {arguments.k}, learning rates {rates}", table
    )
    arguments.out.write_text(json.dumps(told, indent=1))


def shown(value: float, ends: list[float] | None) -> str:
    return f"{100 * value:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


if __name__ == "__main__":
    main()
