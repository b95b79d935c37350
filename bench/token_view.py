"""The token view: how large it is, how long it takes to make and to search, and what kNN-LM adds to a pass.

A model reads real text into a store until there are enough tokens; then queries of held-out text are
scored with and without neighbours. Three things are timed on the same windows, in turn: the model's pass
alone, one bare batched FAISS search for all scored places, and kNN-LM's scoring, which does both, re-ranks
exactly, applies the leak filter and mixes. How many of the nearest are found is counted against an exact
search of all keys. Making the store takes hours at ten million tokens; interrupted, it goes on.

    OMP_NUM_THREADS=1 nice -n 10 python bench/token_view.py
    OMP_NUM_THREADS=1 nice -n 10 python bench/token_view.py --tokens 10000000 --domain all --only make
    OMP_NUM_THREADS=1 python bench/token_view.py --tokens 10000000 --domain all --queries 24 \\
        --out bench/token_view_10m.json
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

import uptake
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.store.datastore import Datastore
from uptake.store.views.token_source import BoundTokens
from uptake.text.types import stable_hash

BLOCK = 131_072  # keys searched exactly at a time
RECALLED = 32  # places a window whose neighbours are also searched exactly


def seconds(do: Callable[[], object]) -> float:
    started = time.process_time()
    do()
    return time.process_time() - started


def documents(pile: Path, part: str, domain: str) -> list[uptake.Document]:
    """Return the documents of a domain, or of all, in an order fixed by their names."""
    kinds = sorted(path.name for path in pile.iterdir()) if domain == "all" else [domain]
    found = [document for kind in kinds for document in uptake.read(pile / kind / f"{part}.jsonl.xz")]
    return sorted(found, key=lambda document: stable_hash("order", document.id))


def made(model: Causal, pile: Path, folder: Path, arguments: argparse.Namespace) -> tuple[Datastore, dict]:
    """Return a store whose tokens are read and in lists, and what that took, interruptions and all."""
    file = folder.with_suffix(".json")
    took = json.loads(file.read_text()) if file.is_file() else {}

    def note(**told: float) -> None:
        took.update(told)
        file.write_text(json.dumps(took))

    if "passages" not in took:
        if not (folder / "store.json").is_file():
            Datastore.create(folder, retriever="lexical", index="ivf")
        chosen, tokens = [], 0
        for document in documents(pile, "train", arguments.domain):
            chosen.append(document)
            tokens += len(model.tokenizer.encode(document.text)[0])
            if tokens >= arguments.tokens:
                break
        store = Datastore.open(folder)
        note(add_seconds=seconds(lambda: store.add(chosen)), passages=store.count)
    keys, store = TokenKeyer(model), Datastore.open(folder, threads=1)
    if "tokens" not in took:
        # What an interruption loses was read, and is counted.
        before, started = took.get("read_seconds", 0.0), time.process_time()

        def progress(done: int, every: int) -> None:
            note(read_seconds=before + time.process_time() - started)
            print(f"  {done} of {every} passages read in {took['read_seconds']:.0f} s", flush=True)

        total = store.read_tokens(keys, progress=progress).total
        note(tokens=total, read_tokens_per_second=total / took["read_seconds"])
    tokens = store.source("x").tokens(keys.fingerprint)
    opening = seconds(lambda: tokens.search(np.zeros((1, keys.dimensions), np.float32), 1))
    if "index_seconds" not in took:
        note(index_seconds=opening)
    return store, took


def exact(keys: NDArray[np.float16], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the k keys nearest to each query, all keys compared, a block at a time."""
    heap = faiss.ResultHeap(len(queries), k)
    for start in range(0, len(keys), BLOCK):
        distances, places = faiss.knn(queries, keys[start : start + BLOCK].astype(np.float32), k)
        heap.add_result(distances, places + start)
    heap.finalize()
    return np.asarray(heap.I)


def recall(views: Sequence[BoundTokens], queries: Sequence[NDArray[np.float32]], k: int) -> float:
    """Return the share of the k nearest that may be read which a search finds."""
    # Some of the nearest may be withheld: search for more, and leave those out.
    near = exact(views[0].view.stored.vectors, np.concatenate(queries), k + 256)
    shares, start = [], 0
    for view, own in zip(views, queries, strict=True):
        for found, all_near in zip(view.search(own, k).places, near[start:], strict=False):
            wanted = all_near[view.allowed[all_near]][:k]
            shares.append(len(np.intersect1d(found, wanted)) / k)
        start += len(own)
    return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/token_view"))
    parser.add_argument("--out", type=Path, default=Path("bench/token_view.json"))
    parser.add_argument("--tokens", type=int, default=200_000, help="at least")
    parser.add_argument("--domain", default="python_peps", help="or all")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--only", choices=("make",), help="make the store and measure no search")
    parser.add_argument("-k", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    keys, pile = TokenKeyer(model), arguments.shared / "data/minipile"
    folder = arguments.work / f"{arguments.domain}-{arguments.tokens}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    store, told = made(model, pile, folder, arguments)
    if arguments.only:
        print(json.dumps(told, indent=1))
        return
    tokens, total = store.source("x").tokens(keys.fingerprint), told["tokens"]
    assert isinstance(tokens, BoundTokens)
    tokens.search(np.zeros((1, keys.dimensions), np.float32), 1)
    ivf = tokens.view.index._ivf
    told |= {
        "dimensions": keys.dimensions, "k": arguments.k, "lists": ivf.nlist,
        "bytes_on_disk": sum(f.stat().st_size for f in (folder / "tokens").rglob("*") if f.is_file()),
        "bytes_of_lists": len(faiss.serialize_index(ivf)),
    }  # fmt: skip
    told |= {
        "bytes_per_token_on_disk": told["bytes_on_disk"] / total,
        "bytes_per_token_of_lists": told["bytes_of_lists"] / total,
    }
    tests = [d for d in documents(pile, "test", arguments.domain) if len(d.text) >= 2048][: arguments.queries]
    method = KnnLm(neighbours=arguments.k, temperature=30.0)
    spent: dict[str, list[float]] = {"pass": [], "bare search": [], "knn-lm": []}
    bind, views, looked = [], [], []
    for place, document in enumerate(tests):
        segment = Segment(document.text[1024:2048], document.text[:1024])
        source = store.source(segment.context, document_id=document.id, whole_text=document.text)
        evidence = Evidence(source.search(0), segment.context, source)
        states: list = []
        bind.append(seconds(lambda e=evidence, s=states: s.extend(
            method.adapt([method.init(model)], model, [e], Context()))))  # fmt: skip
        mixed = method.adapted(states, model)
        ids = torch.tensor([[0, *model.tokenizer.encode(document.text[:2048])[0]]])
        own = len(model.tokenizer.encode(segment.text)[0])
        with torch.no_grad():
            queries = np.ascontiguousarray(model.keys(ids)[0, -own - 1 : -1].numpy())
        bare = lambda q=queries: ivf.search(q, arguments.k, params=faiss.SearchParametersIVF(nprobe=32))  # noqa: E731
        methods = [("pass", lambda s=segment: model.score([s])), ("bare search", bare),
                ("knn-lm", lambda s=segment, m=mixed: m.score([s]))]  # fmt: skip
        for name, do in methods[place % 3 :] + methods[: place % 3]:
            spent[name].append(seconds(do))
        views.append(states[0].view)
        looked.append(queries[:RECALLED])
    told["seconds_a_query"] = {name: float(np.median(each)) for name, each in spent.items()}
    ratios = [
        m / (p + b) for p, b, m in zip(*(spent[n] for n in ("pass", "bare search", "knn-lm")), strict=True)
    ]
    told["ratio"], told["ratio_quartiles"] = (
        float(np.median(ratios)),
        np.quantile(ratios, [0.25, 0.75]).tolist(),
    )
    told["filter_seconds_a_query"] = float(np.median(bind))
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    told["recall"] = recall(views, looked, arguments.k)
    print(json.dumps(told, indent=1))
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
