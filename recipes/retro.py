"""RETROfit of the shared model, and RETRO from scratch beside the same network without retrieval.

RETROfit is trained on text of the kinds the model was trained on, beside a store of that text in which no
document finds itself; then it reads stores of kinds that neither has ever seen. Beside it stand the
model alone, the same network with random neighbours, TTT-NN, both together, and kNN-LM.
From scratch, a small network is trained twice in the same steps, with neighbours and without. What is
there already is not done again: the same command goes on. Other kinds or sizes want another --work.

    python recipes/retro.py --out recipes/retro.json
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from reading_from_neighbours import documents, opened
from rich.console import Console
from rich.table import Table

import uptake
from uptake.causal import Causal
from uptake.learned import Material
from uptake.methods.retro import Episode, Retro
from uptake.metrics import gain, gain_interval
from uptake.overlap import LeakFilter
from uptake.rules import AdamW
from uptake.store.datastore import Datastore
from uptake.tensors import read_tensors, write_tensors
from uptake.text import Document
from uptake.train import Training, train

# Kinds of text that the shared model was trained on.
GENERAL = ("news_reuters21578", "wikipedia", "textbook_us_history", "books")
CHARACTERS = 3.5  # a token, about
KNN = ("neighbours=256", "temperature=10", "weight=constant(share=0.4)")  # of reading_from_neighbours.py


def some(pile: Path, kinds: Sequence[str], part: str, tokens: float) -> list[Document]:
    """Return whole documents of these kinds, as much of each, so many tokens together, about."""
    chosen = []
    for name in kinds:
        left = tokens * CHARACTERS / len(kinds)
        for document in documents(pile / name, part):
            if left <= 0:
                break
            chosen.append(document)
            left -= len(document.text)
    return chosen


def store_of(folder: Path, texts: Sequence[Document]) -> Datastore:
    if not (folder / "store.json").is_file():
        Datastore.create(folder, retriever="lexical").add(texts)
    return Datastore.open(folder)


def episodes(
    file: Path, method: Retro, model: Causal, texts: Sequence[Document], store: Datastore
) -> list[Episode]:
    """Return episodes whose neighbours are found once and then lie in a file."""
    if not file.exists():
        material = Material(
            tuple(texts),
            # As in the paper a document does not find itself; near copies teach to copy.
            sources=lambda d: store.source("", document_id=d.id, group=d.group, leak=LeakFilter(1.0, 1.0)),
        )
        made = method.episodes(model, material)
        parts = {f"{i}/{name}": part for i, e in enumerate(made) for name, part in e._asdict().items()}
        write_tensors(file, parts, {"format": "uptake-episodes-1"})
    _, tensors = read_tensors(file, "episodes")
    count = len({name.partition("/")[0] for name in tensors})
    return [Episode(*(tensors[f"{i}/{name}"] for name in Episode._fields)) for i in range(count)]


def trained(
    name: str, method: Retro, model: Causal, made: list[Episode], valid: list[Episode], arguments: Any
) -> tuple[Retro, dict]:
    """Return the method with its network, trained or read from an earlier call, and its course."""
    file, told = arguments.work / f"{name}.safetensors", arguments.work / f"{name}.json"
    checkpoint = file.with_suffix(".training")
    if not told.exists() and arguments.now:
        return _so_far(method, model, checkpoint, file)
    if not told.exists():
        # Without the cache: it would keep the weights as they were at the first step.
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.half, cache_enabled=False):
            network, points = train(
                method, model, made,
                Training(AdamW(learning_rate=arguments.rate, weight_decay=0.0), save_every=50,
                         fade=arguments.fade), checkpoint,
                lambda point: print(f"  {name}: {point}", flush=True), valid,
            )  # fmt: skip
        method.save(network, model, file)
        course = [[p.step, p.loss if p.step else None, p.valid] for p in points]
        about = {"tokens": sum(int((e.lengths - 1).sum()) for e in made), "course": course}
        told.write_text(json.dumps(about))
    return replace(method, weights=str(file)), json.loads(told.read_text())


def _so_far(method: Retro, model: Causal, checkpoint: Path, file: Path) -> tuple[Retro, dict]:
    """Return the method with the best network of a training that is not at its end."""
    about, tensors = read_tensors(checkpoint, "training")
    network = method.fresh(model)
    best = {name.removeprefix("best/"): t for name, t in tensors.items() if name.startswith("best/")}
    network.load_state_dict(best)
    file = file.with_name("so-far-" + file.name)
    method.save(network, model, file)
    points = json.loads(about["points"])
    course = [[p["step"], p["loss"] if p["step"] else None, p["valid"]] for p in points]
    return replace(method, weights=str(file)), {"interrupted": True, "course": course}


def measured(
    arguments: Any, name: str, model: Causal, store: Datastore, texts: Sequence[Document], way: str,
    settings: Sequence[str], k: int = 20,
) -> list[Any]:  # fmt: skip
    """Return a row a query of one way; a journal keeps what was done."""
    found = uptake.compare(
        model, texts, [way], store=store, k=k, settings=list(settings), showcases=0,
        journal=arguments.work / f"{name}.journal",
    )  # fmt: skip
    if failed := [row.failed for row in found.rows if row.failed]:
        raise SystemExit(f"{name}: {failed[0]}")
    return list(found.rows)


def figures(rows: Sequence[Any], against: Sequence[float] | None = None) -> dict:
    """Return bits per byte, the gain over `against` (the base, if none) and its interval."""
    bits, size = [row.bits for row in rows], sum(row.bytes for row in rows)
    base = [row.base_bits for row in rows] if against is None else list(against)
    ends = gain_interval(bits, base, [row.document for row in rows])
    seconds = [row.retrieve_seconds + row.train_seconds + row.score_seconds for row in rows]
    return {
        "bits_per_byte": sum(bits) / size, "against": sum(base) / size, "gain": gain(bits, base),
        "gain_ci": list(ends), "cpu_seconds_per_query": sum(seconds) / len(seconds),
        "rows": [[row.document, row.bytes, row.bits, other] for row, other in zip(rows, base, strict=True)],
    }  # fmt: skip


def retrofit(model: Causal, stores: dict, texts: dict, general: tuple, arguments: Any, told: dict) -> None:
    made, valid = general
    method = Retro(chunk=arguments.chunk, windows=arguments.windows, neighbours=arguments.neighbours)
    method, told["training"] = trained("retrofit", method, model, made, valid, arguments)
    parts = [f"weights={method.weights}"]
    rate = [f"learning_rate={arguments.weights_rate}"]
    # Without neighbours it is the model itself, bit for bit (tests/test_retro_method.py): "against" is that.
    ways = {
        "retro": ("retro", parts), "retro-random": ("retro-random", parts),
        "knn-lm": ("knn-lm", KNN), "ttt-nn": ("ttt-nn", rate),
        "ttt-nn and retro": ("weights-and-chunks", [*rate, f"chunks.{parts[0]}"]),
    }  # fmt: skip
    for name, (way, settings) in ways.items():
        for domain, store in stores.items():
            if not texts[domain] or (domain not in arguments.domains and "retro" not in way):
                continue
            key = f"retrofit-{domain}-{name.replace(' ', '-')}"
            rows = measured(arguments, key, model, store, texts[domain], way, settings, arguments.k)
            told.setdefault("domains", {}).setdefault(domain, {})[name] = figures(rows)
            report(arguments, told["domains"], domain, name)


def from_scratch(
    model: Causal, stores: dict, texts: dict, general: tuple, arguments: Any, told: dict
) -> None:
    small = small_model(model, arguments.work / "small")
    made, valid = general
    count = max(1, int(len(made) * arguments.scratch))
    shape = Retro(chunk=arguments.chunk, windows=arguments.windows, base="fresh")
    ways, told["training"] = {}, {}
    for name, neighbours in (("alone", 0), ("retro", arguments.neighbours)):
        method = replace(shape, neighbours=neighbours)
        own = [without(e, neighbours) for e in made[-count:]], [without(e, neighbours) for e in valid]
        method, told["training"][name] = trained(f"scratch-{name}", method, small, *own, arguments)
        ways[name] = ("retro", [f"weights={method.weights}", f"neighbours={neighbours}"])
    parts = ways["retro"][1][0]
    ways |= {"retro-random": ("retro-random", [parts]), "retro, none": ("retro", [parts, "neighbours=0"])}
    for domain, store in stores.items():
        alone: list[float] | None = None
        for name, (way, settings) in ways.items():
            key = f"scratch-{domain}-{name.replace(' ', '-')}"
            rows = measured(arguments, key, small, store, texts[domain], way, settings)
            alone = alone or [row.bits for row in rows]
            told.setdefault("domains", {}).setdefault(domain, {})[name] = figures(rows, alone)
            report(arguments, told["domains"], domain, name)


def without(episode: Episode, neighbours: int) -> Episode:
    return episode._replace(tokens=episode.tokens[:, :, :neighbours])


def small_model(model: Causal, folder: Path) -> Causal:
    """Return a network of the shared model's shape and a quarter of its blocks' weights, at random."""
    if not (folder / "model.safetensors").is_file():
        config: Any = type(model.module.config).from_dict(model.module.config.to_dict())
        config.update(
            {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32, "num_attention_heads": 4}
        )
        config.num_key_value_heads = 4
        torch.manual_seed(0)
        type(model.module)(config).save_pretrained(folder)  # type: ignore[call-arg, operator]
        model.tokenizer.inner.save_pretrained(folder)
    return uptake.load(str(folder))


def report(arguments: Any, domains: dict, domain: str, name: str) -> None:
    found = domains[domain][name]
    ends = ", ".join(f"{100 * end:.2f}" for end in found["gain_ci"])
    print(
        f"  {domain}: {name} {found['bits_per_byte']:.4f}, {100 * found['gain']:.2f} % [{ends}]", flush=True
    )
    arguments.out.write_text(json.dumps(arguments.told, indent=1))


def shown(title: str, domains: dict) -> None:
    names = list(next(iter(domains.values()), ()))
    table = Table("domain", "bits per byte", *names, title=title, box=None)
    for domain, ways in domains.items():
        cells = [
            f"{100 * each['gain']:.2f} [{', '.join(f'{100 * end:.2f}' for end in each['gain_ci'])}]"
            for each in (ways[name] for name in names if name in ways)
        ]
        table.add_row(domain, f"{next(iter(ways.values()))['against']:.3f}", *cells)
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/retro"))
    parser.add_argument("--out", type=Path, default=Path("build/retro.json"))
    parser.add_argument("--kinds", nargs="+", default=GENERAL, help="domains to train on")
    parser.add_argument("--tokens", type=float, default=1.2e6, help="tokens of training text, about")
    parser.add_argument("--scratch", type=float, default=0.3, help="share of them from scratch")
    parser.add_argument("--chunk", type=int, default=32, help="tokens of a chunk, of text and store")
    parser.add_argument("--windows", type=int, default=1, help="windows of 512 tokens a step")
    parser.add_argument("--neighbours", type=int, default=1, help="a chunk has in training")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the new parts")
    parser.add_argument("--fade", action="store_true", help="begin slowly, and let the rate fall")
    parser.add_argument("--half", action=argparse.BooleanOptionalAction, default=True, help="bfloat16")
    parser.add_argument("--passages", type=int, default=1000, help="passages of a new domain's store, about")
    parser.add_argument("--test", type=int, default=10, help="test documents a domain")
    parser.add_argument("--weights-rate", default="1e-3", help="TTT-NN's learning rate")
    parser.add_argument("-k", type=int, default=20, help="passages TTT-NN trains on")
    parser.add_argument("--domains", nargs="*", default=("python_peps", "pmc_ccby"))
    parser.add_argument("--now", action="store_true", help="measure with what an interrupted training left")
    parser.add_argument("--only", choices=("retrofit", "scratch"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    pile = arguments.shared / "data/minipile"
    text = some(pile, arguments.kinds, "train", arguments.tokens)
    stores = {"seen kinds": store_of(arguments.work / "general.store", text)}
    tests = {
        "seen kinds": [
            d
            for name in arguments.kinds
            for d in documents(pile / name, "test", arguments.test // len(arguments.kinds))
        ]
    }
    for name in arguments.domains:
        folder = arguments.work / f"{name}-{arguments.passages}"
        stores[name], _ = opened(folder, pile / name, arguments.passages, model)
        tests[name] = documents(pile / name, "test", arguments.test)
    for store in stores.values():
        store.read_chunks(model.tokenizer, length=arguments.chunk, name="base-5m")
    stores = {name: Datastore.open(store.path) for name, store in stores.items()}
    method = Retro(chunk=arguments.chunk, windows=arguments.windows, neighbours=arguments.neighbours)
    kept = some(pile, arguments.kinds, "valid", 6_000)
    general = tuple(
        episodes(arguments.work / f"{part}.safetensors", method, model, texts, stores["seen kinds"])
        for part, texts in (("train", text), ("valid", kept))
    )
    # Eight episodes of all lengths say enough, and validation is dear.
    general = general[0], general[1][:: max(1, len(general[1]) // 8)]
    print(f"  {len(general[0])} steps, {len(general[1])} to validate with", flush=True)
    arguments.told = told = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    settings = {
        name: str(value) for name, value in vars(arguments).items()
        if name not in ("told", "shared", "work", "out", "only", "now", "kinds")
    }  # fmt: skip
    for name, part in (("retrofit", retrofit), ("scratch", from_scratch)):
        if arguments.only in (None, name):
            own = told.setdefault(f"{name}, {' and '.join(arguments.kinds)}", {"settings": settings})
            part(model, stores, tests, general, arguments, own)
            shown(f"{name}: gain in %", own.get("domains", {}))
    arguments.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
