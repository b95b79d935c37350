"""What finds the neighbours, and how much the leak filter's threshold changes what is found.

TTT-NN under several retrievers on the first test documents of each domain, settings as in
main_job.py, over one set of passages, about 5,000 a domain. What the thresholds change is counted
on every test document, over the stores of all training text; nothing is trained for that.

    python bench/retrieval.py                   # recipes/retrieval.sh
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from corpus import DOMAINS, documents, store_of
from main_job import MOVES, RATES, SEARCH, against, shown
from rich.console import Console
from rich.table import Table

import uptake
from uptake.codec import plain
from uptake.lm.causal import Causal
from uptake.report.metrics import gain, gain_interval
from uptake.report.scored.rows import Scored
from uptake.sealed import write_whole
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document

# Name: retriever, encoder, method. The first is what the others are measured against.
KINDS = {
    "lexical": ("lexical", "", "ttt-nn"),
    "states": ("dense", "states", "ttt-nn"),
    "lexical and states": ("hybrid", "states", "ttt-nn"),
    "SIFT, lexical and states": ("hybrid", "states", "sift"),
    "MiniLM": ("dense", "minilm", "ttt-nn"),
    "lexical and MiniLM": ("hybrid", "minilm", "ttt-nn"),
    "SIFT, lexical and MiniLM": ("hybrid", "minilm", "sift"),
}
USUAL = "0.5"
LEAKS = {
    "0.1": LeakFilter(containment=0.1),
    "0.25": LeakFilter(containment=0.25),
    "0.5": LeakFilter(),
    "1.0": LeakFilter(containment=1.0, spaced_letters=1.0),
    "letters 0.5": LeakFilter(spaced_letters=0.5),
    "off": LeakFilter.off(),
}
PASSAGES = 5000


def scored(
    model: Causal,
    store: Datastore,
    texts: Sequence[Document],
    method: str,
    leak: LeakFilter,
    called: str,
    journal: Path,
) -> list[Scored]:
    """Return one method's rows under the name it is called by."""
    results = uptake.compare(
        model,
        texts,
        [method],
        store=store,
        settings=[MOVES, f"learning_rate={RATES['ttt-nn']}"],
        protocol=uptake.PerQuery(search=SEARCH),
        leak=leak,
        showcases=0,
        journal=journal,
    )
    return [replace(row, method=called) for row in results.rows]


def changes(store: Datastore, texts: Sequence[Document]) -> dict:
    """Return for each threshold how many queries find other neighbours than usual, and what is withheld."""
    found: dict[str, list[tuple[tuple[int, ...], int]]] = {name: [] for name in LEAKS}
    for text in texts:
        query = next(uptake.PerQuery(search=SEARCH).queries(text))
        ask = QueryText(query.search, text.id, text.group, text.text)
        for name, leak in LEAKS.items():
            near = store.sources([ask], leak)[0].search(20)
            found[name].append((tuple(passage.id for passage in near.passages), near.withheld))
    return {
        name: {
            "queries": len(lists),
            "changed": sum(mine != usual for (mine, _), (usual, _) in zip(lists, found[USUAL], strict=True)),
            "neighbours_changed": sum(
                len(set(usual) - set(mine)) for (mine, _), (usual, _) in zip(lists, found[USUAL], strict=True)
            ),
            "withheld": sum(withheld for _, withheld in lists),
        }
        for name, lists in found.items()
    }


def line(rows: Sequence[Scored], name: str, first: str) -> dict:
    some = [row for row in rows if row.method == name]
    bits, base = [row.bits for row in some], [row.base_bits for row in some]
    interval = gain_interval(bits, base, [row.document for row in some])
    return {
        "queries": len(some),
        "gain": gain(bits, base),
        "gain_ci": interval and list(interval),
        "beyond_first": against(rows, name, first, 20),
        "retrieve_cpu_seconds": sum(row.retrieve_seconds for row in some) / len(some),
        "withheld": sum(row.withheld for row in some) / len(some),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--stores", type=Path, default=Path("build/stores"))
    parser.add_argument("--work", type=Path, default=Path("build/retrieval"), help="journals")
    parser.add_argument("--out", type=Path, default=Path("bench/retrieval.json"))
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--minilm", nargs="*", default=[], help="domains MiniLM embeds, 13 passages a second")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--leaks", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(str(given.shared / "models/base-5m"), dtype="bfloat16")
    kinds: dict[str, list[Scored]] = {}
    leaks: dict[str, dict] = {}
    for domain in given.domains:
        texts = documents(given.shared, domain, "test", given.documents)
        for name in given.kinds:
            retriever, encoder, method = KINDS[name]
            if encoder == "minilm" and domain not in given.minilm:
                continue
            store = store_of(given.stores, given.shared, domain, retriever, encoder, passages=PASSAGES)
            journal = given.work / f"{domain}-{name.replace(' ', '-').replace(',', '')}.journal"
            made = scored(model, store, texts, method, LeakFilter(), name, journal)
            kinds.setdefault(domain, []).extend(made)
            print(f"  {domain}, {name}: {100 * line(made, name, name)['gain']:.1f} %", flush=True)
        if given.leaks:
            every = documents(given.shared, domain, "test")
            leaks[domain] = changes(store_of(given.stores, given.shared, domain, passages=None), every)
            print(f"  {domain}: {leaks[domain]}", flush=True)
    told = {
        "passages": PASSAGES,
        "documents": given.documents,
        "kinds": table("retriever", kinds, "lexical") if kinds else {},
        "leaks": leaks,
    }
    write_whole(given.out, json.dumps(plain(told), indent=1).encode() + b"\n")


def table(title: str, rows: dict[str, list[Scored]], first: str) -> dict:
    """Print a table of names against domains, and return its figures."""
    names = list(dict.fromkeys(row.method for some in rows.values() for row in some))
    told = {
        domain: {name: line(some, name, first) for name in names if any(row.method == name for row in some)}
        for domain, some in rows.items()
    }
    # A document's name need not be unlike those of other domains.
    pooled = [
        replace(row, query=f"{domain}/{row.query}", document=f"{domain}/{row.document}")
        for domain, some in rows.items()
        for row in some
    ]
    told["all"] = {name: line(pooled, name, first) for name in names}
    printed = Table(title, *told, f"beyond {first}, all", box=None)
    for name in names:
        beyond = told["all"][name]["beyond_first"]
        cells = [each.get(name) for each in told.values()]
        printed.add_row(
            name,
            *(shown(cell["gain"], cell["gain_ci"]) if cell else "-" for cell in cells),
            shown(beyond["difference"], beyond["ci"]) if beyond else "-",
        )
    Console(width=200).print(printed)
    return told


if __name__ == "__main__":
    main()
