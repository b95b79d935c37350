"""The chunk view: how large it is, and how long it takes to cut, to open, to search and to read.

Real text of every domain goes into a store until there are enough tokens, and the store is cut into
chunks of 64. Then the chunks of held-out documents look for 2 neighbours each, under the leak filter of
their own document: first alone, as when text is generated, then all of a document at once, as when it
is scored. CPU seconds of one thread.

    OMP_NUM_THREADS=1 nice -n 10 python bench/chunk_view.py --out bench/chunk_view.json
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from token_view import documents, seconds

from uptake.lm import loading
from uptake.store import Datastore
from uptake.store.views.chunk_neighbours import queries_of

LENGTH, K = 64, 2


def told(folder: Path, shared: Path, tokens: int, retriever: str, queries: int) -> dict[str, Any]:
    """Make a store of about so many tokens and measure it."""
    model = shared / "models/base-5m"
    tokenizer, pile = loading.load_tokenizer(str(model)), shared / "data/minipile"
    domains = sorted(path.name for path in pile.iterdir() if path.is_dir())
    shutil.rmtree(folder, ignore_errors=True)
    store = Datastore.create(
        folder, retriever=retriever, encoder=None if retriever == "lexical" else f"lm:{model}", threads=1
    )
    chosen, left = [], 3.4 * tokens  # characters
    for domain in domains:
        share = left / (len(domains) - domains.index(domain))  # what a small one lacks the others give
        for document in documents(pile, "train", domain):
            if share <= 0:
                break
            chosen.append(document)
            share, left = share - len(document.text), left - len(document.text)
    found: dict[str, Any] = {"retriever": retriever, "add_seconds": seconds(lambda: store.add(chosen))}
    found["cut_seconds"] = seconds(lambda: store.read_chunks(tokenizer, length=LENGTH))
    store = Datastore.open(folder, threads=1)
    bind: list[float] = []
    chunks = lambda d: store.source("", document_id=d.id, whole_text=d.text).chunks(tokenizer.fingerprint)  # noqa: E731
    tests = [d for domain in domains for d in documents(pile, "test", domain) if len(d.text) >= 2048][::7]
    found["open_seconds"] = seconds(lambda: chunks(tests[0]))
    chunks(tests[0]).search(["warm"], K)
    alone, together, reading, withheld = [], [], [], []
    for document in tests[:queries]:
        texts = queries_of(document, tokenizer, LENGTH)[:32]
        bind.append(seconds(lambda d=document: chunks(d)))
        own, free = chunks(document), chunks(document)
        alone += [seconds(lambda t=text, o=own: o.search([t], K)) for text in texts[:4]]
        together.append(seconds(lambda t=texts, f=free: f.search(t, K)) / len(texts))
        ids = free.search(texts, K)
        reading.append(seconds(lambda i=ids, f=free: f.tokens(i)) / len(texts))
        withheld.append(float((ids < 0).float().mean()))
    files: dict[str, int] = {}
    for path in (folder / "chunks").rglob("*"):
        if path.is_file():
            files[path.name] = files.get(path.name, 0) + path.stat().st_size
    values = files["values"] // 4
    return found | {
        "tokens": values,
        "chunks": store.info()["chunks"],
        "documents": len(chosen),
        "cut_tokens_per_second": values / found["cut_seconds"],
        "bytes_per_token": sum(files.values()) / values,
        "bytes_per_token_of_each_file": {name: size / values for name, size in sorted(files.items())},
        "bind_seconds_a_document": float(np.median(bind)),
        "search_seconds_a_query_alone": float(np.median(alone)),
        "search_seconds_a_query_of_a_document": float(np.median(together)),
        "read_seconds_a_query": float(np.median(reading)),
        "share_without_a_neighbour": float(np.mean(withheld)),
        "documents_searched_for": len(bind),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/chunk_view"))
    parser.add_argument("--out", type=Path, default=Path("bench/chunk_view.json"))
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of the lexical store, about")
    parser.add_argument("--dense", type=int, default=50_000, help="of the dense store, about")
    parser.add_argument("--queries", type=int, default=12, help="documents that look for neighbours")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        told(arguments.work / f"{name}-{size}", arguments.shared, size, name, arguments.queries)
        for name, size in (("dense", arguments.dense), ("lexical", arguments.tokens))
        if size
    ]
    print(json.dumps(rows, indent=1))
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
