"""RETROfit of the shared model: trained on general text, tested on kinds of text that it never read.

The new parts are trained on text of the kinds that the model was trained on, but which it has not read
(their validation and test parts), beside a store of what it has. What it has read teaches them to be
sure, not to read. Copying comes first: stretches of what comes next are put into many of the neighbours,
then into few. Then, without further training, they read stores of other kinds of text, beside TTT-NN,
both together, and each with random passages and chunks. An interrupted training goes on.

    python recipes/retrofit.py --out recipes/retrofit.json
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retrofit_figures import CONTROLS, METHODS, figures, leakage, show, stretch

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.adaptation.trainable import Top
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import Query
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.retro import Retro, TextEpisode, insert_copies
from uptake.report.metrics import gain
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document, stable_hash
from uptake.train import Point, Training, train

GENERAL = ("news_reuters21578", "wikipedia", "textbook_us_history", "books")
DOMAINS = ("python_peps", "pmc_ccby", "court_opinions", "stackexchange", "dm_mathematics")
SHORTEST = 1200  # characters of a document that is scored, as in bench/main_job.py
CHARACTERS = 3.5  # a token, about
RATE = 1e-3  # of TTT-NN: bench/main_job.py's, chosen on validation text
NEIGHBOURS = (2, 8, 16)
OPEN = (1.0, 0.7, 0.4)  # of the gates, as training left them


def documents(folder: Path, part: str, count: int | None = None, shortest: int = 0) -> list[Document]:
    """Return the documents of one part that are long enough, in an order fixed by their names."""
    found = [d for d in uptake.read(folder / f"{part}.jsonl.xz") if len(d.text) >= shortest]
    return sorted(found, key=lambda d: stable_hash("order", d.id))[:count]


def some(pile: Path, part: str, tokens: float) -> list[Document]:
    """Return whole documents of the general kinds, as much of each, so many tokens together, about."""
    chosen = []
    for name in GENERAL:
        left = tokens * CHARACTERS / len(GENERAL)
        for document in documents(pile / name, part, shortest=0 if part == "train" else 2048):
            if left <= 0:
                break
            chosen.append(document)
            left -= len(document.text)
    return chosen


def store_of(folder: Path, texts: Sequence[Document], model: Causal, chunk: int) -> Datastore:
    if not (folder / "store.json").is_file():
        Datastore.create(folder, retriever="lexical").add(texts)
        Datastore.open(folder).read_chunks(model.tokenizer, length=chunk, name="base-5m")
    return Datastore.open(folder)


def domain_store(folder: Path, data: Path, passages: int, model: Causal, chunk: int) -> Datastore:
    chosen, count = [], 0
    for document in documents(data, "train"):
        chosen.append(document)
        count += len(document.text) // 1000 + 1
        if count >= passages:
            break
    return store_of(folder, chosen, model, chunk)


def episodes(
    file: Path, method: Retro, model: Causal, texts: Sequence[Document], store: Datastore
) -> list[TextEpisode]:
    """Return episodes whose neighbours are found once and then lie in a file."""
    if not file.exists():
        material = TrainingData(
            tuple(texts),
            # As in the paper a document does not find itself; near copies teach to copy.
            sources=lambda d: store.source(
                "", document_id=d.id, group=d.group, leak=LeakFilter(1.0, 1.0, 1.0, 1.0)
            ),
        )
        made = method.episodes(model, material)
        parts = {f"{i}/{name}": part for i, e in enumerate(made) for name, part in e._asdict().items()}
        write_tensors(file, parts, {"format": "uptake-episodes-1"})
    _, tensors = read_tensors(file, "episodes")
    count = len({name.partition("/")[0] for name in tensors})
    return [TextEpisode(*(tensors[f"{i}/{name}"] for name in TextEpisode._fields)) for i in range(count)]


def trained(model: Causal, pile: Path, arguments: Any) -> tuple[Retro, dict[str, Any]]:
    """Return the method with its network, trained or read from an earlier call, and the course of it."""
    file, told = arguments.work / "network.safetensors", arguments.work / "training.json"
    method = Retro(chunk=arguments.chunk, windows=1, encoder=1, layers=arguments.layers, neighbours=2)
    if told.exists():
        return replace(method, weights=str(file)), json.loads(told.read_text())
    store = store_of(
        arguments.work / "general.store", some(pile, "train", arguments.store_tokens), model, arguments.chunk
    )
    held = some(pile, "valid", 24_000)
    names = {document.id for document in held}
    files = [pile / name / f"{part}.jsonl.xz" for part in ("valid", "test") for name in GENERAL]
    unread = [d for file in files for d in uptake.read(file) if d.id not in names and len(d.text) > 400]
    made = episodes(arguments.work / "train.safetensors", method, model, unread, store)
    random.Random(1).shuffle(made)
    looked = {
        draw: episodes(
            arguments.work / f"valid-{draw}.safetensors", replace(method, draw=draw), model, held, store
        )
        for draw in ("nearest", "random")
    }
    course: list[dict[str, Any]] = []
    generator, network, seen = np.random.default_rng(0), None, 0
    passes = -(-arguments.steps[1] // len(made))
    for name, share, texts, decay in (
        ("copying", 0.3, made[: arguments.steps[0]], False),
        ("reading", arguments.planted, (made * passes)[: arguments.steps[1]], True),
    ):
        planted = [insert_copies(each, arguments.chunk, share, generator) for each in texts]
        seen += sum(int((each.lengths - 1).sum()) for each in planted)
        checkpoint = arguments.work / f"{name}.training"

        def look(point: Point, name: str = name, checkpoint: Path = checkpoint) -> None:
            losses = {}
            if point.step and (point.step % 600 == 0 or point.step == point.total):
                _, tensors = read_tensors(checkpoint, "training")
                now = method.fresh(model)
                prefix = "network/"
                now.load_state_dict(
                    {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
                )
                with torch.no_grad():
                    for draw, some in looked.items():
                        losses[draw] = float(np.mean([method.loss(now, model, e).item() for e in some]))
            course.append(
                {"stage": name, "step": point.step, "loss": point.loss if point.step else None, **losses}
            )
            print(f"  {course[-1]}", flush=True)

        # Without the cache: it would keep the weights as they were at the first step.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            network, _ = train(
                replace(method, copied_share=share), model, planted,
                Training(AdamW(learning_rate=arguments.rate, weight_decay=0.0), save_every=200,
                         warm_up_and_decay=decay),
                checkpoint, look, start=network,
            )  # fmt: skip
    assert network is not None
    method.save(network, model, file)
    told.write_text(json.dumps({"tokens": seen, "course": course}))
    return replace(method, weights=str(file)), json.loads(told.read_text())


class Asked:
    """One query and what is found for it; what TTT-NN has learnt for it is kept."""

    def __init__(self, model: Causal, store: Datastore, query: Query, k: int) -> None:
        self.model, self.query, self.segment = model, query, Segment(query.target, query.context)
        self.source = store.source(
            query.search, document_id=query.document.id, group=query.document.group,
            whole_text=query.document.text,
        )  # fmt: skip
        generator = np.random.default_rng(stable_hash("0", "choose", query.id))
        self.found = {"nearest": self.source.search(k), "random": self.source.sample(k, generator)}
        started = time.process_time()
        self.base = model.score([self.segment])[0]
        self.base_seconds = time.process_time() - started
        self.moved: dict[str, tuple[Any, float]] = {}

    def under(self, draw: str) -> tuple[Causal, float]:
        """Return the model after TTT-NN on its passages, and the CPU seconds of that."""
        finetune = Finetune(trainable=Top(2), optimizer=AdamW(learning_rate=RATE))
        if draw not in self.moved:
            started = time.process_time()
            evidence = Evidence(self.found[draw], self.query.own, self.source, self.query.context)
            (state,) = finetune.adapt([finetune.init(self.model)], self.model, [evidence], Context())
            self.moved[draw] = state, time.process_time() - started
        state, seconds = self.moved[draw]
        return finetune.adapted([state], self.model), seconds  # type: ignore[return-value]

    def read(self, method: Retro, draw: str, trained: bool = False) -> tuple[Any, float, Any]:
        """Return scores, CPU seconds and the model that read, with the nearest or random chunks."""
        method = replace(method, draw=draw)
        under, seconds = self.under(draw) if trained else (self.model, 0.0)
        started = time.process_time()
        evidence = Evidence(self.found[draw], self.query.own, self.source, self.query.context)
        (state,) = method.adapt([method.init(self.model)], self.model, [evidence], Context())
        reading = method.around([state], under, self.model)
        scores = reading.score([self.segment])[0]
        return scores, seconds + time.process_time() - started, reading

    def trained(self, draw: str) -> tuple[Any, float]:
        under, seconds = self.under(draw)
        started = time.process_time()
        return under.score([self.segment])[0], seconds + time.process_time() - started


def row(one: Asked, method: Retro) -> dict[str, Any]:
    """Return bits and CPU seconds of a query under every method, and of each of its chunks."""
    found, seconds = {"base": one.base}, {"base": one.base_seconds}
    for name, draw in (("nearest", "nearest"), ("random", "random")):
        retro, ttt, both = (label if name == "nearest" else CONTROLS[label] for label in CONTROLS)
        found[retro], seconds[retro], reading = one.read(method, draw)
        found[ttt], seconds[ttt] = one.trained(draw)
        found[both], seconds[both], _ = one.read(method, draw, trained=True)
        if name == "nearest":
            chunks = _chunks(one, reading.neighbours[0], found, method.chunk)
    first = found["base"]
    return {
        "document": one.query.document.id, "bytes": first.bytes, "tokens": len(first.log_probs),
        "bits": {name: scores.bits for name, scores in found.items()}, "seconds": seconds, "chunks": chunks,
    }  # fmt: skip


def opened(method: Retro, model: Causal, share: float) -> Retro:
    """Return the method with its gates only so far open: what it adds is this share of what was learnt."""
    network = method.load(Path(method.weights), model).requires_grad_(False).eval()
    for cross in network.parts.cross.values():  # type: ignore[union-attr, operator]
        cross.gate.mul_(share)
    return replace(method, trained=network)


def _chunks(one: Asked, neighbours: Any, found: Mapping[str, Any], m: int) -> list[list[float]]:
    """Return of each whole chunk of the target: the share of it in one stretch that stands in the
    neighbours it was read beside, its bytes, and its bits by base and by RETRO."""
    tokenizer = one.model.tokenizer
    target = tokenizer.encode(one.query.target)[0]
    ids = [*tokenizer.opened(one.query.context), *target]
    begun, told = len(ids) - len(target), []
    for at in range(-(-begun // m) * m, len(ids) - m + 1, m):
        tokens, seen = neighbours.of([ids[at - m : at]])
        read = [one[mask].tolist() for one, mask in zip(tokens[0], seen[0], strict=True)]
        longest = max((stretch(ids[at : at + m], each) for each in read), default=0)
        inner = slice(at - begun, at - begun + m)
        size = sum(len(one.query.target[a:b].encode()) for a, b in found["base"].spans[inner])
        bits = [-found[label].log_probs[inner].sum().item() / math.log(2) for label in ("base", "retro")]
        told.append([longest / m, size, *bits])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/retrofit"))
    parser.add_argument("--out", type=Path, default=Path("build/retrofit.json"))
    parser.add_argument("--store-tokens", type=float, default=4e6, help="of the store in training, about")
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 3800), help="to copy, and to read")
    parser.add_argument(
        "--planted", type=float, default=0.05, help="share of neighbours with something to copy"
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the new parts")
    parser.add_argument("--chunk", type=int, default=32, help="tokens of a chunk, of text and store")
    parser.add_argument("--layers", default="2,3,4", help="blocks with cross-attention")
    parser.add_argument("--passages", type=int, default=1000, help="passages of a domain's store, about")
    parser.add_argument("--validation", type=int, default=4, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=12, help="test documents a domain")
    parser.add_argument("-k", type=int, default=10, help="passages TTT-NN trains on")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    pile = arguments.shared / "data/minipile"
    stores, asked = {}, {}
    for name in arguments.domains:
        stores[name] = domain_store(
            arguments.work / f"{name}-{arguments.passages}",
            pile / name,
            arguments.passages,
            model,
            arguments.chunk,
        )
        for part, count in (("valid", arguments.validation), ("test", arguments.test)):
            asked[name, part] = [
                Asked(model, stores[name], query, arguments.k)
                for document in documents(pile / name, part, count, SHORTEST)
                for query in PerQuery(search=384).queries(document)
            ]
    method, course = trained(model, pile, arguments)
    measure(method, course, stores, asked, arguments)


def measure(
    method: Retro,
    course: Mapping[str, Any],
    stores: Mapping[str, Datastore],
    asked: Mapping[Any, Sequence[Asked]],
    arguments: Any,
) -> None:
    """Choose how many neighbours are read on validation text; then score the test text and write."""
    told: dict[str, Any] = {
        "settings": {n: v for n, v in vars(arguments).items() if n not in ("shared", "work", "out")},
        "training": course,
    }
    valid = [one for (_, part), some in asked.items() if part == "valid" for one in some]
    base = [one.base.bits for one in valid]
    gains: dict[tuple[int, float], float] = {}

    def tried(k: int, share: float) -> float:
        reading = replace(opened(method, valid[0].model, share), neighbours=k)
        gains[k, share] = gain([one.read(reading, "nearest")[0].bits for one in valid], base)
        print(
            f"  {k} neighbours, gates {share}: {100 * gains[k, share]:.2f} % on validation text", flush=True
        )
        return gains[k, share]

    many = max(NEIGHBOURS, key=lambda k: tried(k, OPEN[0]))
    for share in OPEN[1:]:
        tried(many, share)
    best = max(gains, key=lambda each: gains[each])
    told["validation"] = [[*each, value] for each, value in gains.items()]
    told["neighbours"], told["gates"] = best
    method = replace(opened(method, valid[0].model, best[1]), neighbours=best[0])
    rows: dict[str, list[Any]] = {}
    for name, store in stores.items():
        rows[name] = [row(one, method) for one in asked[name, "test"]]
        folder = Path(store.path) / "chunks"
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        told.setdefault("stores", {})[name] = {"bytes_of_chunks": size}
        every = [each for some in rows.values() for each in some]
        groups = {**rows, "all": every}
        if "dm_mathematics" in rows:
            groups["without mathematics"] = [
                r for n, some in rows.items() if n != "dm_mathematics" for r in some
            ]
        told["domains"] = {n: figures(some) for n, some in groups.items() if some}
        told["leakage"] = leakage(groups.get("without mathematics", every))
        told["rows"] = {
            n: [
                [
                    r["document"],
                    r["bytes"],
                    r["tokens"],
                    *(round(r["bits"][w], 2) for w in ("base", *METHODS)),
                ]
                for r in some
            ]
            for n, some in rows.items()
        }
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    show(told)


if __name__ == "__main__":
    main()
