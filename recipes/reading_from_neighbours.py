"""Reading from neighbours: kNN-LM, RetoMaton and context found anew, each beside its control.

A small model on domains it never read. Everything a way leaves open is chosen on validation documents,
for each way by itself, its control included; then the test documents are scored once. kNN-LM's settings
are chosen from one search a validation document: its neighbours are kept, and every share and
temperature is tried on them.

    python recipes/reading_from_neighbours.py --out recipes/reading_from_neighbours.json
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import uptake
from uptake.causal import Causal
from uptake.keys import Keys
from uptake.lm import rolling_windows
from uptake.method import Context, Evidence
from uptake.methods.knn_lm import KnnLm
from uptake.metrics import gain, gain_interval
from uptake.protocol import PerQuery, Query
from uptake.store.datastore import Datastore
from uptake.text import Document, stable_hash

DOMAINS = ("python_peps", "pmc_ccby", "stackexchange")
NEIGHBOURS = (16, 64, 256)
TEMPERATURES = (3.0, 10.0, 30.0, 100.0)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
REACHES = (30.0, 100.0, 300.0)
REFRESHES = (32, 64)
POINTERS = (4, 16)


def documents(folder: Path, part: str, count: int | None = None) -> list[Document]:
    """Return the documents of one part that are long enough, in an order fixed by their names."""
    found = [d for d in uptake.read(folder / f"{part}.jsonl.xz") if part == "train" or len(d.text) >= 2048]
    return sorted(found, key=lambda d: stable_hash("order", d.id))[:count]


def opened(folder: Path, data: Path, passages: int, model: Causal) -> tuple[Datastore, dict[str, float]]:
    """Return the store of one domain, its tokens read, and what reading took."""
    if not (folder / "store.json").is_file():
        store = Datastore.create(folder, retriever="lexical")
        chosen, count = [], 0
        for document in documents(data, "train"):
            chosen.append(document)
            count += len(document.text) // 1000 + 1
            if count >= passages:
                break
        store.add(chosen)
    store = Datastore.open(folder)
    started = time.process_time()
    read = store.read_tokens(Keys(model))
    about = {"tokens": read.total, "passages": store.count}
    if read.tokens:
        about["read_tokens_per_second"] = read.tokens / (time.process_time() - started)
    return store, about


class Observed:
    """Every scored token of some queries: its own log-probability, its neighbours, which were right."""

    def __init__(self, model: Causal, store: Datastore, queries: Sequence[Query], draw: str) -> None:
        method = KnnLm(neighbours=max(NEIGHBOURS), draw=draw)  # type: ignore[arg-type]
        parts: list[tuple[np.ndarray, ...]] = []
        for query in queries:
            source = store.source(
                query.search,
                document_id=query.document.id,
                group=query.document.group,
                whole_text=query.document.text,
            )
            evidence = Evidence(source.search(0), query.own, source)
            (state,) = method.take([method.init(model)], model, [evidence], Context())
            context = [model.tokenizer.opening, *model.tokenizer.encode(query.context)[0]]
            for window in rolling_windows(0, context, model.tokenizer.encode(query.target)[0], model.window):
                with torch.no_grad():
                    log_probs, keys, _ = model.look(torch.tensor([window.inputs]))
                scored = slice(len(window.inputs) - len(window.targets), len(window.inputs))
                targets = torch.tensor(window.targets)[:, None]
                near = state.view.search(keys[0, scored].numpy(), method.neighbours)  # type: ignore[union-attr]
                own = log_probs[0, scored].gather(-1, targets)[:, 0].double().numpy()
                parts.append((own, near.distances.astype(np.float64), near.values == targets.numpy()))
        self.own, self.losses, self.right = (np.concatenate(each) for each in zip(*parts, strict=True))

    def gain(self, neighbours: int, temperature: float, share: float, reach: float | None) -> float:
        losses, right = self.losses[:, :neighbours], self.right[:, :neighbours]
        weights = np.exp(-(losses - losses[:, :1]) / temperature)
        mass = (weights * right).sum(1) / weights.sum(1)
        shares = share if reach is None else share * np.exp(-losses[:, 0] / reach)
        mixed = np.log(shares * mass + (1 - shares) * np.exp(self.own))
        return float(1 - mixed.sum() / self.own.sum())


def choose(model: Causal, domains: dict, draw: str, fading: bool) -> tuple[list[str], float]:
    """Return the settings with the largest pooled gain on validation documents, and that gain."""
    seen = [
        Observed(model, store, [q for d in valid for q in PerQuery().queries(d)], draw)
        for store, valid, _ in domains.values()
    ]
    best = (float("-inf"), 0, 0.0, 0.0, None)
    for each in product(NEIGHBOURS, TEMPERATURES, SHARES, REACHES if fading else (None,)):
        total = float(np.mean([one.gain(*each) for one in seen]))
        best = max(best, (total, *each), key=lambda found: found[0])
    gained, neighbours, temperature, share, reach = best
    weight = f"constant(share={share})" if reach is None else f"fading(most={share},reach={reach})"
    return [f"neighbours={neighbours}", f"temperature={temperature}", f"weight={weight}"], gained


def measured(
    model: Causal, store: Datastore, part: Sequence[Document], way: str, settings: Sequence[str], k: int
) -> list[dict]:
    """Return one row a query of one way, from its own comparison."""
    rows = uptake.compare(model, part, [way], store=store, k=k, settings=list(settings), showcases=0).rows
    if failed := [row.failed for row in rows if row.failed]:
        raise SystemExit(f"{way}: {failed[0]}")
    return [
        {"document": r.document, "bytes": r.bytes, "bits": r.bits, "base_bits": r.base_bits,
         "seconds": r.retrieve_seconds + r.train_seconds + r.score_seconds} for r in rows
    ]  # fmt: skip


def best_of(
    model: Causal, domains: dict, way: str, choices: Sequence[Sequence[str]], k: int
) -> tuple[list[str], float]:
    found = []
    for settings in choices:
        rows = [
            row
            for store, valid, _ in domains.values()
            for row in measured(model, store, valid, way, settings, k)
        ]
        found.append((gain([r["bits"] for r in rows], [r["base_bits"] for r in rows]), list(settings)))
    gained, settings = max(found, key=lambda each: each[0])
    return settings, gained


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--model", help="default: the shared base model")
    parser.add_argument("--work", type=Path, default=Path("build/neighbours"))
    parser.add_argument("--out", type=Path, default=Path("build/neighbours.json"))
    parser.add_argument("--passages", type=int, default=2000, help="passages a domain, about")
    parser.add_argument("--validation", type=int, default=6, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=20, help="test documents a domain")
    parser.add_argument("--weights", help="also TTT-NN, alone and under kNN-LM, at this learning rate")
    parser.add_argument("-k", type=int, default=5, help="passages in context")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(arguments.model or str(arguments.shared / "models/base-5m"))
    pile = arguments.shared / "data/minipile"
    told: dict = {"stores": {}, "chosen": {}, "domains": {}}
    domains = {}
    for name in arguments.domains:
        store, about = opened(
            arguments.work / f"{name}-{arguments.passages}", pile / name, arguments.passages, model
        )
        told["stores"][name] = about
        valid = documents(pile / name, "valid", arguments.validation)
        domains[name] = (store, valid, documents(pile / name, "test", arguments.test))
        print(f"  {name}: {about}", flush=True)
    plain, faded = (choose(model, domains, "nearest", fading) for fading in (False, True))
    chosen = {
        "in-context": ("in-context", [], 0.0),
        "in-context, refreshed": ("in-context", *best_of(
            model, domains, "in-context", [[f"refresh={each}"] for each in REFRESHES], arguments.k)),
        "knn-lm": ("knn-lm", *plain),
        "knn-lm, fading": ("knn-lm", *faded),
        "retomaton": ("retomaton", *best_of(model, domains, "retomaton",
            [[*plain[0], f"pointers={each}"] for each in POINTERS], arguments.k)),
        "knn-lm-random": ("knn-lm-random", *choose(model, domains, "random", False)),
    }  # fmt: skip
    if arguments.weights:
        rate = f"learning_rate={arguments.weights}"
        chosen["ttt-nn"] = ("ttt-nn", [rate], 0.0)
        chosen["ttt-nn and knn-lm"] = ("weights-and-tokens", [rate, *plain[0]], 0.0)
    told["chosen"] = {name: {"settings": s, "validation_gain": g} for name, (_, s, g) in chosen.items()}
    for name, about in told["chosen"].items():
        print(
            f"  validation  {name:22} {' '.join(about['settings'])}: {100 * about['validation_gain']:.2f} %",
            flush=True,
        )
    table = Table("domain", "base", *chosen, box=None)
    for domain, (store, _, test) in domains.items():
        cells, told["domains"][domain] = [], {}
        for name, (way, settings, _) in chosen.items():
            rows = measured(model, store, test, way, settings, 20 if "ttt" in name else arguments.k)
            bits, base = ([row[key] for row in rows] for key in ("bits", "base_bits"))
            ends = gain_interval(bits, base, [row["document"] for row in rows])
            cells.append(f"{100 * gain(bits, base):.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]")
            told["domains"][domain][name] = {
                "base_bits_per_byte": sum(base) / sum(row["bytes"] for row in rows), "gain": gain(bits, base),
                "gain_ci": list(ends), "cpu_seconds_per_query": float(np.mean([r["seconds"] for r in rows])),
                "rows": rows,
            }  # fmt: skip
            print(f"  {domain}: {name} {cells[-1]}", flush=True)
            arguments.out.write_text(json.dumps(told, indent=1))
        table.add_row(
            domain, f"{next(iter(told['domains'][domain].values()))['base_bits_per_byte']:.3f}", *cells
        )
    Console(width=150).print("gain in % of the base's bits", table)


if __name__ == "__main__":
    main()
