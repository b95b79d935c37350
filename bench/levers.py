"""What one choice of settings gains on validation text, domain by domain and pooled, and what it costs.

Each call measures one choice at each learning rate given and adds it to the file of all of them;
what is there already is not measured again. `recipes/levers.sh` is the list of choices tried.

    python bench/levers.py --moves "top(layers=2)" --rates 1e-3,3e-3 --search 512 -k 5,10,20
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from corpus import DOMAINS, documents, store_of

import uptake
from uptake.report.metrics import gain
from uptake.report.scored.rows import Scored
from uptake.sealed import write_whole

# What names a choice, where it is not the default.
NAMED = (
    "method",
    "set",
    "retriever",
    "encoder",
    "characters",
    "passages",
    "search",
    "documents",
    "windows",
    "dtype",
)


def measured(rows: Sequence[Scored]) -> dict:
    """Return gain, CPU seconds and trained tokens a query of some rows of one method and k."""
    spent = [row.retrieve_seconds + row.train_seconds + row.score_seconds for row in rows]
    bits, base = [row.bits for row in rows], [row.base_bits for row in rows]
    return {
        "gain": round(gain(bits, base), 5),
        "cpu_seconds": round(fmean(spent), 3),
        "tokens": round(fmean(row.tokens_trained for row in rows), 1),
        "queries": len(rows),
        "bits": [round(each, 2) for each in bits],
        "base_bits": [round(each, 2) for each in base],
    }


def keep(path: Path, told: dict) -> None:
    """Write the file, one line a choice."""
    lines = ",\n".join(f"{json.dumps(label)}: {json.dumps(line)}" for label, line in told.items())
    write_whole(path, f"{{\n{lines}\n}}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/stores"))
    parser.add_argument("--out", type=Path, default=Path("bench/levers.json"))
    parser.add_argument("--method", default="ttt-nn")
    parser.add_argument("--moves", default="top(layers=2)")
    parser.add_argument("--rates", default="1e-3", help="learning rates, separated by commas")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, name=value")
    parser.add_argument("--retriever", default="lexical")
    parser.add_argument("--encoder", default="", help="states or minilm")
    parser.add_argument("--characters", type=int, default=1024, help="of a passage")
    parser.add_argument("--passages", type=int, default=5000, help="a domain, about; 0 for all there are")
    parser.add_argument("--search", type=int, help="characters of the prefix that search")
    parser.add_argument("-k", default="5,10,20")
    parser.add_argument("--documents", type=int, default=4, help="validation documents a domain")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(str(given.shared / "models/base-5m"), dtype=given.dtype)
    for rate in given.rates.split(","):
        named = {
            name: value
            for name in NAMED
            if (value := getattr(given, name)) not in (None, "", [], parser.get_default(name))
        } | {"moves": given.trainable, "rate": rate, "k": given.k}
        label = " ".join(f"{name}={' '.join(v) if isinstance(v, list) else v}" for name, v in named.items())
        told = json.loads(given.out.read_text()) if given.out.exists() else {}
        line = told.get(label, {})
        for domain in given.domains:
            if domain in line:
                continue
            store = store_of(
                given.work,
                given.shared,
                domain,
                given.retriever,
                given.encoder,
                given.characters,
                given.passages or None,
            )
            results = uptake.compare(
                model,
                documents(given.shared, domain, "valid", given.documents),
                [given.method],
                store=store,
                k=[int(k) for k in given.k.split(",")],
                settings=[f"trainable={given.trainable}", f"learning_rate={rate}", *given.set],
                protocol=uptake.PerQuery(windows=given.windows, search=given.search),
                showcases=0,
            )
            line[domain] = {
                str(k): measured([row for row in results.rows if row.k == k])
                for k in sorted({row.k for row in results.rows})
            }
            told = json.loads(given.out.read_text()) if given.out.exists() else {}
            keep(given.out, {**told, label: line})
        show(label, line)


def show(label: str, line: dict) -> None:
    """Print one choice: pooled gain, the gain without mathematics, CPU seconds; then each domain's gain."""
    for k in next(iter(line.values())):
        prose = [domain for domain in line if domain != "dm_mathematics"]
        whole, without = (
            gain(
                [bits for domain in some for bits in line[domain][k]["bits"]],
                [bits for domain in some for bits in line[domain][k]["base_bits"]],
            )
            for some in (list(line), prose or list(line))
        )
        counts = [line[domain][k]["queries"] for domain in line]
        seconds, tokens = (
            sum(line[domain][k][what] * n for domain, n in zip(line, counts, strict=True)) / sum(counts)
            for what in ("cpu_seconds", "tokens")
        )
        each = " ".join(f"{domain[:5]} {100 * line[domain][k]['gain']:.1f}" for domain in line)
        print(
            f"{label} | k={k}: {100 * whole:.2f} % ({100 * without:.2f} % without mathematics), "
            f"{seconds:.2f} s, {tokens:.0f} tokens | {each}",
            flush=True,
        )


if __name__ == "__main__":
    main()
