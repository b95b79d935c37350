"""RETRO from scratch on general text, beside the same network without retrieval.

A small network is trained twice in the same steps, with neighbours and without, then reads text of the
same kinds beside the same store, its own documents withheld. Its controls: random neighbours, and none.
What is there already is not done again: the same command goes on. Other sizes want another --work.

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
from retrofit import GENERAL, documents, episodes, some, store_of
from rich.console import Console
from rich.table import Table

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.lm.causal import Causal
from uptake.methods.retro import Retro, TextEpisode
from uptake.report.metrics import gain, gain_interval
from uptake.store.datastore import Datastore
from uptake.text.types import Document
from uptake.train import Training, train


def trained(
    name: str, method: Retro, model: Causal, made: list[TextEpisode], valid: list[TextEpisode], arguments: Any
) -> tuple[Retro, dict]:
    """Return the method with its network, trained or read from an earlier call, and its course."""
    file, told = arguments.work / f"{name}.safetensors", arguments.work / f"{name}.json"
    if not told.exists():
        # Without the cache: it would keep the weights as they were at the first step.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            network, points = train(
                method, model, made,
                Training(AdamW(learning_rate=arguments.rate, weight_decay=0.0), save_every=50,
                         warm_up_and_decay=True),
                file.with_suffix(".training"),
                lambda point: print(f"  {name}: {point}", flush=True), valid,
            )  # fmt: skip
        method.save(network, model, file)
        course = [[p.step, p.loss if p.step else None, p.valid] for p in points]
        about = {"tokens": sum(int((e.lengths - 1).sum()) for e in made), "course": course}
        told.write_text(json.dumps(about))
    return replace(method, weights=str(file)), json.loads(told.read_text())


def measured(
    arguments: Any, name: str, model: Causal, store: Datastore, texts: Sequence[Document], label: str,
    settings: Sequence[str],
) -> list[Any]:  # fmt: skip
    """Return a row a query of one method; a journal keeps what was done."""
    found = uptake.compare(
        model, texts, [label], store=store, settings=list(settings), showcases=0,
        journal=arguments.work / f"{name}.journal",
    )  # fmt: skip
    if failed := [row.failed for row in found.rows if row.failed]:
        raise SystemExit(f"{name}: {failed[0]}")
    return list(found.rows)


def figures(rows: Sequence[Any], against: Sequence[float]) -> dict:
    """Return bits per byte, the gain over `against` and its interval."""
    bits, size = [row.bits for row in rows], sum(row.bytes for row in rows)
    ends = gain_interval(bits, against, [row.document for row in rows])
    seconds = [row.retrieve_seconds + row.train_seconds + row.score_seconds for row in rows]
    return {
        "bits_per_byte": sum(bits) / size, "against": sum(against) / size, "gain": gain(bits, against),
        "gain_ci": list(ends or ()), "cpu_seconds_per_query": sum(seconds) / len(seconds),
        "rows": [[r.document, r.bytes, round(r.bits, 2)] for r in rows],
    }  # fmt: skip


def without(episode: TextEpisode, neighbours: int) -> TextEpisode:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/retro"))
    parser.add_argument("--out", type=Path, default=Path("build/retro.json"))
    parser.add_argument("--tokens", type=float, default=1e6, help="tokens of text in the store, about")
    parser.add_argument("--share", type=float, default=0.6, help="share of them to train on")
    parser.add_argument("--chunk", type=int, default=32, help="tokens of a chunk, of text and store")
    parser.add_argument("--windows", type=int, default=4, help="windows of 512 tokens a step")
    parser.add_argument("--neighbours", type=int, default=2, help="a chunk has")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, which warms up and decays")
    parser.add_argument("--test", type=int, default=12, help="test documents")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    pile = arguments.shared / "data/minipile"
    text = some(pile, "train", arguments.tokens)
    store = store_of(arguments.work / "general.store", text, model, arguments.chunk)
    count = arguments.test // len(GENERAL)
    texts = [d for name in GENERAL for d in documents(pile / name, "test", count, 2048)]
    shape = Retro(chunk=arguments.chunk, windows=arguments.windows, neighbours=arguments.neighbours)
    made, valid = (
        episodes(arguments.work / f"{part}.safetensors", shape, model, read, store)
        for part, read in (("train", text), ("valid", some(pile, "valid", 6_000)))
    )
    # Eight episodes of all lengths say enough, and validation is dear.
    made, valid = made[-max(1, int(len(made) * arguments.share)) :], valid[:: max(1, len(valid) // 8)]
    small = small_model(model, arguments.work / "small")
    settings = {n: v for n, v in vars(arguments).items() if n not in ("shared", "work", "out")}
    told: dict[str, Any] = {"settings": settings, "training": {}, "ways": {}}
    methods: dict[str, tuple[str, list[str]]] = {}
    for name, neighbours in (("alone", 0), ("retro", arguments.neighbours)):
        method = replace(shape, base="fresh", neighbours=neighbours)
        own = [without(e, neighbours) for e in made], [without(e, neighbours) for e in valid]
        method, told["training"][name] = trained(f"scratch-{name}", method, small, *own, arguments)
        methods[name] = ("retro", [f"weights={method.weights}", f"neighbours={neighbours}"])
    parts = methods["retro"][1][0]
    methods |= {"retro-random": ("retro-random", [parts]), "retro, none": ("retro", [parts, "neighbours=0"])}
    alone: list[float] = []
    table = Table("method", "bits per byte", "gain in %", box=None)
    for name, (label, chosen) in methods.items():
        rows = measured(arguments, f"scratch-{name.replace(' ', '-')}", small, store, texts, label, chosen)
        alone = alone or [row.bits for row in rows]
        found = told["ways"][name] = figures(rows, alone)
        ends = ", ".join(f"{100 * end:.2f}" for end in found["gain_ci"])
        table.add_row(name, f"{found['bits_per_byte']:.3f}", f"{100 * found['gain']:.2f} [{ends}]")
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
