"""The token view: how large it is, how long it takes to make and to search, and what kNN-LM adds to a pass.

A model reads real text into a store until there are enough tokens; then queries of held-out text are
scored with and without neighbours. Three things are timed on the same windows, in turn: the model's pass
alone, one bare batched FAISS search for all scored places, and kNN-LM's scoring, which does both, re-ranks
exactly, applies the leak filter and mixes. What is said of ten million tokens is extrapolated, and says so.

    OMP_NUM_THREADS=1 nice -n 10 python bench/token_view.py --out bench/token_view.json
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

import uptake
from uptake.keys import Keys
from uptake.lm import Segment
from uptake.method import Context, Evidence
from uptake.methods.knn_lm import KnnLm
from uptake.store.datastore import Datastore
from uptake.text import stable_hash


def seconds(do: Callable[[], object]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def documents(pile: Path, part: str, domain: str) -> list[uptake.Document]:
    found = uptake.read(pile / domain / f"{part}.jsonl.xz")
    return sorted(found, key=lambda document: stable_hash("order", document.id))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/token_view"))
    parser.add_argument("--out", type=Path, default=Path("bench/token_view.json"))
    parser.add_argument("--tokens", type=int, default=200_000, help="about")
    parser.add_argument("--domain", default="python_peps")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("-k", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    keys, pile, told = Keys(model), arguments.shared / "data/minipile", {}
    folder = arguments.work / f"{arguments.domain}-{arguments.tokens}"
    if not (folder / "store.json").is_file():
        store, chosen, characters = Datastore.create(folder, retriever="lexical", index="ivf"), [], 0
        for document in documents(pile, "train", arguments.domain):
            chosen.append(document)
            characters += len(document.text)
            if characters >= 3.5 * arguments.tokens:
                break
        store.add(chosen)
    store = Datastore.open(folder, threads=1)
    before = store.info().get("tokens", 0)
    spent = seconds(lambda: store.read_tokens(keys))
    total = int(store.info()["tokens"])
    tokens = store.source("x").tokens(keys.fingerprint)
    indexing = seconds(lambda: tokens.search(np.zeros((1, keys.dimensions), np.float32), 1))
    making = folder.with_suffix(".json")  # what it took, for a later run that finds everything there
    if not before:
        took = {"read_seconds": spent, "read_tokens_per_second": total / spent, "index_seconds": indexing}
        making.write_text(json.dumps(took))
    if making.is_file():
        told |= json.loads(making.read_text())
    files = {f.name: f.stat().st_size for f in (folder / "tokens").rglob("*") if f.is_file()}
    ivf = tokens.view.index._ivf
    told |= {
        "tokens": total, "dimensions": keys.dimensions, "k": arguments.k,
        "bytes_per_token_on_disk": sum(files.values()) / total,
        "bytes_per_token_of_lists": len(faiss.serialize_index(ivf)) / total if ivf is not None else 0,
        "lists": ivf.nlist if ivf is not None else 0,
    }  # fmt: skip
    tests = [d for d in documents(pile, "test", arguments.domain) if len(d.text) >= 2048][: arguments.queries]
    method = KnnLm(neighbours=arguments.k, temperature=30.0)
    spent = {"pass": [], "bare search": [], "knn-lm": []}
    recalls, bind = [], []
    for place, document in enumerate(tests):
        segment = Segment(document.text[1024:2048], document.text[:1024])
        source = store.source(segment.context, document_id=document.id, whole_text=document.text)
        evidence = Evidence(source.search(0), segment.context, source)
        states = []
        bind.append(seconds(lambda e=evidence, s=states: s.extend(
            method.take([method.init(model)], model, [e], Context()))))  # fmt: skip
        mixed = method.on(states, model)
        ids = torch.tensor([[0, *model.tokenizer.encode(document.text[:2048])[0]]])
        own = len(model.tokenizer.encode(segment.text)[0])
        with torch.no_grad():
            queries = np.ascontiguousarray(model.keys(ids)[0, -own - 1 : -1].numpy())
        exact = None
        if ivf is not None:
            bare = lambda q=queries: ivf.search(q, arguments.k, params=faiss.SearchParametersIVF(nprobe=32))  # noqa: E731
            stored = store.source("x").tokens(keys.fingerprint).view.stored.vectors
            _, exact = faiss.knn(queries[:32], np.asarray(stored, np.float32), arguments.k)
        else:
            wide = np.asarray(tokens.view.stored.vectors, np.float32)
            bare = lambda q=queries, w=wide: faiss.knn(q, w, arguments.k)  # noqa: E731
        ways = [("pass", lambda s=segment: model.score([s])), ("bare search", bare),
                ("knn-lm", lambda s=segment, m=mixed: m.score([s]))]  # fmt: skip
        for name, do in ways[place % 3 :] + ways[: place % 3]:
            spent[name].append(seconds(do))
        if exact is not None:
            found = states[0].view.search(queries[:32], arguments.k).places
            recalls.append(
                np.mean([len(np.intersect1d(a, b)) / arguments.k for a, b in zip(found, exact, strict=True)])
            )
    told["seconds_a_query"] = {name: float(np.median(each)) for name, each in spent.items()}
    ratios = [
        m / (p + b) for p, b, m in zip(*(spent[n] for n in ("pass", "bare search", "knn-lm")), strict=True)
    ]
    told["ratio"], told["recall"] = float(np.median(ratios)), float(np.mean(recalls)) if recalls else None
    told["ratio_quartiles"] = np.quantile(ratios, [0.25, 0.75]).tolist()
    told["filter_seconds_a_query"] = float(np.median(bind))
    told["extrapolated_to_10M_tokens"] = {
        "gigabytes_on_disk": told["bytes_per_token_on_disk"] * 1e7 / 1e9,
        "gigabytes_of_lists": told["bytes_per_token_of_lists"] * 1e7 / 1e9,
        "hours_of_reading": 1e7 / told["read_tokens_per_second"] / 3600
        if "read_tokens_per_second" in told
        else None,
    }
    print(json.dumps(told, indent=1))
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
