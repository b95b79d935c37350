"""What the opening token before each passage that TTT-NN learns is worth: the published code leaves it out.

The same neighbours and settings, once with it and once without, on validation text of some domains.

    OMP_NUM_THREADS=1 python bench/opening_token.py                       # bench/opening_token.json
    OMP_NUM_THREADS=1 python bench/opening_token.py --model MODEL --rate 2e-5 --count 6 --domains python_peps
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from corpus import DOMAINS, documents, store_of

import uptake
from uptake.lm.causal import Causal
from uptake.report.metrics import gain, gain_difference
from uptake.report.scored.rows import Scored
from uptake.store.datastore import Datastore
from uptake.text.types import Document


def scored(
    model: Causal, store: Datastore, texts: list[Document], rate: str, k: int, opens: bool
) -> dict[str, Scored]:
    """Return the row of each query."""
    settings = ["trainable=all", f"learning_rate={rate}", f"opening_token={str(opens).lower()}"]
    protocol = uptake.PerQuery(search=384)
    found = uptake.compare(
        model, texts, ["ttt-nn"], store=store, k=k, settings=settings, protocol=protocol, batch=1
    )
    return {row.query: row for row in found.rows if isinstance(row, Scored)}


def measured(opened: dict[str, Scored], published: dict[str, Scored]) -> dict[str, object]:
    """Return both gains, their difference with its interval, and the spread over single documents."""
    pairs = [(opened[query], published[query]) for query in opened]
    base = [one.base_bits for one, _ in pairs]
    with_it, without = ([row.bits for row in column] for column in zip(*pairs, strict=True))
    apart = gain_difference(with_it, without, base, [one.document for one, _ in pairs])
    each = (np.array(without) - np.array(with_it)) / np.array(base)
    return {
        "documents": len(pairs),
        "gain": gain(with_it, base),
        "gain_without": gain(without, base),
        "difference": apart.value,
        "ci": apart.interval,
        "least": float(each.min()),
        "most": float(each.max()),
        "median_size": float(np.median(np.abs(each))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = Path(os.environ.get("UPTAKE_SHARED", "shared"))
    parser.add_argument("--model", default=str(shared / "models/base-5m"))
    parser.add_argument("--rate", default="3e-4")
    parser.add_argument(
        "--domains", nargs="+", default=["python_peps", "pmc_ccby", "stackexchange"], choices=DOMAINS
    )
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("build/opening_token"))
    parser.add_argument("--out", type=Path, default=Path("bench/opening_token.json"))
    given = parser.parse_args()
    model, found = uptake.load(given.model), {}
    for domain in given.domains:
        store = store_of(given.work, shared, domain, passages=given.passages)
        texts = documents(shared, domain, "valid", given.count)
        rows = [scored(model, store, texts, given.rate, given.k, opens) for opens in (True, False)]
        found[domain] = measured(*rows)
        print(domain, json.dumps(found[domain]), flush=True)
    asked = {"model": Path(given.model).name, "rate": given.rate, "k": given.k, "passages": given.passages}
    given.out.write_text(json.dumps({**asked, "domains": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
