"""The main job on text the shared base model never read: gain, control and cost, domain by domain.

Every long enough test document of six domains, each method with the settings chosen
for it on validation text (recipes/levers.sh). Rounds of documents go through all domains in turn, so
that a run that is cut short is a smaller sample of the same thing; the same command goes on.

    python bench/main_job.py                    # recipes/main_job.sh
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from corpus import DOMAINS, documents, store_of
from rich.console import Console
from rich.table import Table

import uptake
from uptake.codec import plain
from uptake.lm.causal import Causal
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.report.results import Header, Results
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored
from uptake.sealed import write_whole
from uptake.store.datastore import Datastore
from uptake.text.overlap import OVERLAP_BINS, overlap_bin
from uptake.text.types import Document

GUARDED, OWN = "ttt-nn-guarded", "ttt-nn, own prefix"
SHOWN, SOME = ("random", "in-context", "ttt-nn", GUARDED), (OWN, "ttt-nn+in-context")
MOVES = "trainable=top(layers=2)"
# What validation text chose, for each method by itself.
RATES = {
    "random": "1e-3",
    "ttt-nn": "1e-3",
    "ttt-nn+in-context": "1e-3",
}
SEARCH = 384  # characters of the prefix's end that retrieve
KS, LARGEST = (1, 5, 20), 50
AT = (KS[-1],)


@dataclass(frozen=True)
class Call:
    """One call of `compare`: its k for the first round of documents, and for later ones; none is no call."""

    called: str
    methods: tuple[str, ...]
    first: tuple[int, ...]
    later: tuple[int, ...] = ()
    more: tuple[str, ...] = ()


CALLS = (
    Call("plain", ("base", "in-context"), AT, AT),
    Call("ttt-nn", ("ttt-nn",), (*KS, LARGEST), KS),
    Call("random", ("random",), KS, AT),
    Call(OWN, ("ttt-nn",), KS[1:], more=("own_prefix=true",)),
    Call("ttt-nn+in-context", ("ttt-nn+in-context",), AT),
)


def rows_of(
    model: Causal,
    store: Datastore,
    scored: Sequence[Document],
    calls: Sequence[tuple[Call, tuple[int, ...]]],
    journal: Path,
) -> tuple[Header, list[Scored]]:
    """Return every method's rows for some documents of one domain; rows in the journals are kept."""
    rows: list[Scored] = []
    for call, ks in calls:
        results = uptake.compare(
            model,
            scored,
            call.methods,
            store=store,
            k=ks,
            settings=[
                setting
                for label in call.methods
                if label in RATES
                for setting in (f"{label}.{MOVES}", f"{label}.learning_rate={RATES[label]}", *call.more)
            ],
            protocol=uptake.PerQuery(search=SEARCH),
            showcases=0,
            journal=journal.with_name(
                f"{journal.name}-{call.called.replace(', ', '-').replace(' ', '-')}.journal"
            ),
        )
        rows += [replace(row, method=call.called) if call.more else row for row in results.rows]
    return results.header, rows


def guarded(rows: Iterable[Scored]) -> list[Scored]:
    """Return what the mixture of base and TTT-NN scores on the same texts.

    By its definition: half the probability of the text under each. It is charged for the base's pass too.
    """
    rows = list(rows)
    base = {row.query: row.score_seconds for row in rows if row.method == "base"}
    return [
        replace(
            row,
            method=GUARDED,
            bits=1 - float(np.logaddexp2(-row.base_bits, -row.bits)),
            score_seconds=row.score_seconds + base.get(row.query, 0.0),
        )
        for row in rows
        if row.method == "ttt-nn"
    ]


def rounds(count: int, first: int, size: int) -> Iterable[slice]:
    yield slice(0, min(first, count))
    for start in range(first, count, size):
        yield slice(start, min(start + size, count))


def against(rows: Sequence[Scored], label: str, other: str, k: int) -> dict | None:
    """Return how far one method's gain exceeds another's at the same k, over the queries both answered."""
    mine, theirs = (
        {row.query: row for row in rows if row.method == name and row.k in (k, 0)} for name in (label, other)
    )
    both = [query for query in mine if query in theirs]
    if not both:
        return None
    found = gain_difference(
        [mine[query].bits for query in both],
        [theirs[query].bits for query in both],
        [mine[query].base_bits for query in both],
        [mine[query].document for query in both],
    )
    return {"difference": found.value, "ci": found.interval and list(found.interval), "queries": len(both)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--stores", type=Path, default=Path("build/stores"))
    parser.add_argument("--work", type=Path, default=Path("build/main_job"), help="journals")
    parser.add_argument("--out", type=Path, default=Path("bench/main_job.json"))
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--first", type=int, default=8, help="documents a domain for every method and k = 50")
    parser.add_argument("--round", type=int, default=12, help="documents of one round")
    parser.add_argument("--limit", type=int, help="most documents a domain")
    parser.add_argument("--only", nargs="+", help="do these calls ahead, and tell no figures")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(str(given.shared / "models/base-5m"), dtype=given.dtype)
    test = {domain: documents(given.shared, domain, "test", given.limit) for domain in given.domains}
    stores = {domain: store_of(given.stores, given.shared, domain, passages=None) for domain in given.domains}
    headers: dict[str, Header] = {}
    rows: dict[str, list[Scored]] = {domain: [] for domain in given.domains}
    for number, part in enumerate(rounds(max(map(len, test.values())), given.first, given.round)):
        for domain in given.domains:
            if some := test[domain][part]:
                wanted = [call for call in CALLS if call.called in (given.only or [call.called])]
                asked = [(call, call.later if number else call.first) for call in wanted]
                calls = [(call, ks) for call, ks in asked if ks]
                if not calls:
                    continue
                journal = given.work / f"{domain}-{number}"
                headers[domain], made = rows_of(model, stores[domain], some, calls, journal)
                rows[domain] += [*made, *guarded(made)]
                print(f"  round {number}, {domain}: {len(some)} documents", flush=True)
    if given.only:
        return
    told = {
        "search": SEARCH,
        "moves": MOVES,
        "learning_rates": RATES,
        "domains": {domain: figures(headers[domain], rows[domain]) for domain in given.domains},
    }
    firsts = {domain: {d.id for d in test[domain][: given.first]} for domain in given.domains}
    told["first_round"] = {
        domain: curve([row for row in rows[domain] if row.document in firsts[domain]])
        for domain in given.domains
    }
    # A document's name need not be unlike those of other domains.
    named = {
        domain: [
            replace(row, query=f"{domain}/{row.query}", document=f"{domain}/{row.document}")
            for row in rows[domain]
        ]
        for domain in given.domains
    }
    prose = [row for domain in given.domains if domain != "dm_mathematics" for row in named[domain]]
    told["pooled"] = {
        "all": figures(headers[given.domains[0]], [row for some in named.values() for row in some]),
        "without mathematics": figures(headers[given.domains[0]], prose),
    }
    told["overlap_bins"] = bins(prose)
    show(told)
    write_whole(given.out, json.dumps(plain(told), indent=1).encode() + b"\n")


def figures(header: Header, rows: Sequence[Scored]) -> dict:
    """Return the report's summary, and each method against TTT-NN on the queries both answered."""
    summary = uptake.summary(Results(SCORED, header, tuple(rows)))
    # TTT-NN's largest k was read for a few documents alone: its line is that of the k all were scored at.
    for label, method in summary["methods"].items():
        at = next((each for each in method["by_k"] if each["k"] == KS[-1]), method["by_k"][-1])
        summary["methods"][label] = {
            "k": at["k"],
            **at,
            "tokens_trained_per_query": method["tokens_trained_per_query"],
            "by_k": method["by_k"],
            "beyond_random": against(rows, label, "random", KS[-1]),
            "beyond_ttt_nn": against(rows, label, "ttt-nn", KS[-1]),
        }
    return {"queries": len({row.query for row in rows}), "methods": summary["methods"]}


def bins(rows: Sequence[Scored]) -> dict:
    """Return TTT-NN's gain, and that beyond random, by the overlap of what was read with the document."""
    told = {}
    for name in OVERLAP_BINS:
        inside = {
            row.query
            for row in rows
            if (row.method, row.k) == ("ttt-nn", KS[-1]) and overlap_bin(row.overlap) == name
        }
        some = [row for row in rows if row.query in inside]
        if some:
            (line,) = (each for each in curve(some)["ttt-nn"] if each["k"] == KS[-1])
            told[name] = {
                "queries": len(inside),
                **line,
                "beyond_random": against(some, "ttt-nn", "random", KS[-1]),
            }
    return told


def curve(rows: Sequence[Scored]) -> dict:
    """Return each method's gain at every k on the documents that all of them scored."""
    told: dict[str, list[dict]] = {}
    for label, k in sorted({(row.method, row.k) for row in rows}):
        some = [row for row in rows if (row.method, row.k) == (label, k)]
        bits, base = [row.bits for row in some], [row.base_bits for row in some]
        interval = gain_interval(bits, base, [row.document for row in some])
        told.setdefault(label, []).append(
            {"k": k, "gain": gain(bits, base), "gain_ci": interval and list(interval)}
        )
    return told


def show(told: dict) -> None:
    """Print every method's gain; those of the first round alone stand against TTT-NN on its documents."""
    table = Table("domain", "queries", "base", *SHOWN, "ttt-nn beyond random", box=None)
    for domain, line in {**told["domains"], **told["pooled"]}.items():
        methods = line["methods"]
        beyond = methods["ttt-nn"]["beyond_random"]
        table.add_row(
            domain,
            str(line["queries"]),
            f"{methods['base']['bits_per_byte']:.3f}",
            *(shown(methods[label]["gain"], methods[label]["gain_ci"]) for label in SHOWN),
            shown(beyond["difference"], beyond["ci"]),
        )
    firsts = Table("domain", *SOME, box=None)
    for domain, line in {**told["domains"], **told["pooled"]}.items():
        against = [line["methods"][label]["beyond_ttt_nn"] for label in SOME]
        firsts.add_row(domain, *(shown(each["difference"], each["ci"]) for each in against))
    console = Console(width=180)
    console.print(f"gain in % of the base's bits at k = {KS[-1]}", table)
    console.print("gain beyond ttt-nn's, on the documents of the first round", firsts)


def shown(value: float, ends: Sequence[float] | None) -> str:
    return f"{100 * value:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


if __name__ == "__main__":
    main()
