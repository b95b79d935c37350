"""What learning the text so far gains on whole documents, and what it costs: dynamic evaluation and its kin.

Gradient statistics are counted on text that the base model was trained on; learning rates are
chosen on validation documents; then test documents are scored once. What is done is stored in
--work, so that an interrupted run goes on, and so that parts of it can be run side by side:

    python recipes/dynamic_evaluation.py
    python recipes/dynamic_evaluation.py --only valid --domains books
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import uptake
from uptake import api
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.records import RecordFile, digest_of
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Method
from uptake.methods.dynamic_evaluation import GradientCounting
from uptake.report.metrics import bits_per_byte, gain, gain_interval
from uptake.report.page import chart, write_chart
from uptake.text.types import Document, stable_hash
from uptake.train import Training, train

KNOWN = ("books", "news_reuters21578", "textbook_us_history", "wikipedia")  # what the base was trained on
DOMAINS = ("books", "court_opinions", "pmc_ccby", "python_peps")  # it has read none but the first
PROTOCOL = Running()  # segments of 512 characters after at most 1,024
STATIC, STATISTICS = "base", "statistics=STATISTICS"
DE, HSO = "dynamic-evaluation", "hidden-state-optimisation"
# What is tried on validation documents: the method and its settings.
TRIED: dict[str, list[tuple[str, ...]]] = {
    "RMS": [
        (DE, f"optimizer=rms(learning_rate={rate},decay={decay})", STATISTICS)
        for rate, decay in (("3e-6", 0.002), ("1e-5", 0.002), ("3e-5", 0.002), ("5e-5", 0.002))
    ],
    "Adam": [
        (DE, f"optimizer=adamw(learning_rate={rate},weight_decay=0)") for rate in ("3e-5", "1e-4", "3e-4")
    ],
    "SGD": [(DE, f"optimizer=sgd(learning_rate={rate})") for rate in ("3e-3", "1e-2", "3e-2")],
    "HSO": [(HSO, f"learning_rate={rate}") for rate in ("1e-2", "3e-2", "1e-1")],
}
CONTROLS: dict[str, tuple[str, ...]] = {"HSO at rate 0": (HSO, "learning_rate=0")}
FROZEN = (DE, "optimizer=rms(learning_rate=0)", STATISTICS)  # the static model, bit for bit
Asked = tuple[str, ...]
Done = dict[tuple[str, str], dict[str, Any]]  # (document, method) -> bits, bytes and seconds


def documents(folder: Path, count: int, characters: int) -> list[Document]:
    """Return so many documents of a file, cut to a length, in an order fixed by their names."""
    found = sorted(uptake.read(folder), key=lambda document: stable_hash("order", document.id))
    long = [document for document in found if len(document.text) >= characters // 2]
    return [Document(document.id, document.text[:characters]) for document in long[:count]]


def count_statistics(model: Causal, pile: Path, file: Path, pieces: int) -> None:
    """Count gradients on pieces of 128 tokens, as many from each of the known domains."""
    method = GradientCounting(chunk_tokens=128)
    episodes = []
    for name in KNOWN:
        read = documents(pile / name / "train.jsonl.xz", 40, 4000)
        made = method.episodes(model, TrainingData(tuple(read)))
        episodes += random.Random(0).sample(made, pieces // len(KNOWN))
    started = time.process_time()
    network, _ = train(method, model, episodes, Training(save_every=16), file.with_suffix(".training"))
    method.save(network, model, file)
    print(f"statistics of {pieces} pieces: {time.process_time() - started:.0f} CPU seconds", flush=True)


def method_of(asked: Asked, statistics: Path) -> Method[Any]:
    name, *settings = asked
    spec = api.method_specs([name], [setting.replace("STATISTICS", str(statistics)) for setting in settings])[
        name
    ]
    return spec.method


def score(model: Causal, method: Method[Any], document: Document) -> dict[str, Any]:
    """Return bits and bytes of every segment, and CPU seconds, of one document read from its start."""
    context, states = Context(), [method.init(model)]
    bits, sizes = [], []
    started = time.process_time()
    for query in PROTOCOL.queries(document):
        (scores,), states = method.read(states, model, [Segment(query.target, query.context)], context)
        bits.append(scores.bits)
        sizes.append(scores.bytes)
    seconds = time.process_time() - started
    tokens = len(model.tokenizer.encode(document.text)[0])
    return {
        "bits": bits,
        "bytes": sizes,
        "seconds": seconds,
        "tokens": tokens,
        "stopped": context.ledger(0).failed,
    }


def stays_still(model: Causal, document: Document, statistics: Path) -> bool:
    """Return whether dynamic evaluation at a rate of 0 makes of a document just what the base does."""
    still, static = (score(model, method_of(label, statistics), document) for label in (FROZEN, (STATIC,)))
    return bool(still["bits"] == static["bits"])


def scored(
    model: Causal, given: Sequence[Document], asked: Sequence[Asked], journal: Path, statistics: Path
) -> Done:
    """Return what every method makes of every document; what the journal has is not done again."""
    network = digest_of(statistics) if statistics.exists() else ""
    lines = RecordFile(journal, f"dynamic evaluation recipe 2 {model.weights_fingerprint} {network}")
    done: Done = {(kept["document"], kept["way"]): kept for kept in lines.start(dict)}
    for document in given:
        for label in asked:
            key = document.id, " ".join(label)
            if key not in done:
                made = score(model, method_of(label, statistics), document)
                done[key] = {"document": key[0], "way": key[1], **made}
                lines.keep(done[key])
    return {
        (document.id, " ".join(label)): done[document.id, " ".join(label)]
        for document in given
        for label in asked
    }


def columns(done: Done, label: Asked) -> Iterator[tuple[str, float, float, int]]:
    """Yield of each document its name, the method's bits, the static bits and its bytes."""
    for (document, name), made in done.items():
        if name == " ".join(label):
            static = done[document, STATIC]
            yield document, sum(made["bits"]), sum(static["bits"]), sum(made["bytes"])


def figures(done: Done, label: Asked) -> dict[str, Any]:
    names, bits, static, sizes = zip(*columns(done, label), strict=True)
    seconds, of_static = (
        sum(made["seconds"] for (_, name), made in done.items() if name == " ".join(each))
        for each in (label, (STATIC,))
    )
    return {
        "way": " ".join(label),
        "documents": len(names),
        "bits_per_byte": bits_per_byte(bits, sizes),
        "gain": gain(bits, static),
        "gain_ci": gain_interval(bits, static, names),
        "cpu_relative": seconds / of_static,
        "stopped": sum(bool(made["stopped"]) for (_, name), made in done.items() if name == " ".join(label)),
    }


def by_position(done: Done, label: Asked, segments: int = 4) -> list[float]:
    """Return the gain over each so many segments of the documents, from their beginning on."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for (document, name), made in done.items():
        if name == " ".join(label):
            for place, (bits, static) in enumerate(
                zip(made["bits"], done[document, STATIC]["bits"], strict=True)
            ):
                pairs.setdefault(place // segments, []).append((bits, static))
    return [gain(*zip(*pairs[place], strict=True)) for place in sorted(pairs)]


def plot(gains: Mapping[str, Sequence[float]], path: Path, characters: int = 4 * PROTOCOL.segment) -> None:
    """Draw the gain over the static model against the place in the document."""
    series = [
        chart.Series(
            kind,
            colour,
            tuple(chart.Mark((place + 0.5) * characters, 100 * each) for place, each in enumerate(found)),
        )
        for colour, (kind, found) in enumerate(gains.items(), 1)
    ]
    places = [mark.x for one in series for mark in one.marks]
    heights = [mark.y for one in series for mark in one.marks]
    svg = chart.draw(
        "lines",
        series,
        chart.linear("characters into the document", [0.0, *places]),
        chart.linear("gain over the static model", [0.0, *heights], unit=" %"),
        summary="Gain over the static model against the place in the document, one line a method.",
    )
    write_chart(svg, path)


def shown(found: Mapping[str, Any]) -> str:
    ends = found["gain_ci"]
    return f"{100 * found['gain']:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/dynamic_evaluation"))
    parser.add_argument("--out", type=Path, default=Path("recipes/dynamic_evaluation.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/dynamic-evaluation.svg"))
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument(
        "--tuned-on",
        nargs="+",
        default=["court_opinions", "pmc_ccby", "python_peps"],
        help="domains that choose settings",
    )
    parser.add_argument("--only", choices=("statistics", "valid", "test"), help="do one part and stop")
    parser.add_argument("--kinds", nargs="+", default=list(TRIED), help="kinds tried under --only valid")
    parser.add_argument("--pieces", type=int, default=64, help="pieces of text in the statistics")
    parser.add_argument("--validation", type=int, default=1, help="validation documents a domain")
    parser.add_argument("--test", type=int, default=3, help="test documents a domain")
    parser.add_argument("--characters", type=int, default=10_000, help="most of a document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = uptake.load(str(arguments.shared / "models/base-5m"))
    pile, work = arguments.shared / "data/minipile", arguments.work
    work.mkdir(parents=True, exist_ok=True)
    statistics = work / "statistics.safetensors"
    if not statistics.exists() and arguments.only in (None, "statistics"):
        count_statistics(model, pile, statistics, arguments.pieces)
    if arguments.only == "statistics":
        return

    def part(name: str, domain: str, count: int, asked: Sequence[Asked], suffix: str = "") -> Done:
        given = documents(pile / domain / f"{name}.jsonl.xz", count, arguments.characters)
        return scored(model, given, asked, work / f"{name}-{domain}.jsonl", statistics)

    tried = [(STATIC,), *(asked for kind in arguments.kinds for asked in TRIED[kind])]
    valid: Done = {}
    for domain in arguments.domains if arguments.only == "valid" else arguments.tuned_on:
        valid |= part("valid", domain, arguments.validation, tried)
    if arguments.only == "valid":
        return
    chosen = {
        kind: max(TRIED[kind], key=lambda asked: figures(valid, asked)["gain"]) for kind in arguments.kinds
    }
    for kind in arguments.kinds:
        for asked in TRIED[kind]:
            mark = ">" if asked == chosen[kind] else " "
            print(f"{mark} validation {' '.join(asked):80} {shown(figures(valid, asked))} %", flush=True)
    last = {**chosen, **CONTROLS}
    test: dict[str, Done] = {
        domain: part("test", domain, arguments.test, [(STATIC,), *last.values()])
        for domain in arguments.domains
    }
    if arguments.only == "test":
        return
    if not stays_still(model, documents(pile / "python_peps/valid.jsonl.xz", 1, 2000)[0], statistics):
        raise SystemExit("at a rate of 0 dynamic evaluation is not the static model")
    pooled: Done = {key: made for done in test.values() for key, made in done.items()}
    told: dict[str, Any] = {
        "characters": arguments.characters,
        "validation": {" ".join(asked): figures(valid, asked) for asked in tried},
        "test": {
            domain: {kind: figures(done, asked) for kind, asked in {"static": (STATIC,), **last}.items()}
            for domain, done in {**test, "all": pooled}.items()
        },
        "by_position": {kind: by_position(pooled, asked) for kind, asked in last.items()},
    }
    table = Table("domain", "static", *last, box=None)
    for domain, found in told["test"].items():
        table.add_row(
            domain, f"{found['static']['bits_per_byte']:.3f}", *(shown(found[kind]) for kind in last)
        )
    costs = told["test"]["all"]
    table.add_row("CPU, static = 1", "1.0", *(f"{costs[kind]['cpu_relative']:.1f}" for kind in last))
    Console(width=170).print("bits per byte, and gain in % of the static bits", table)
    for kind, gains in told["by_position"].items():
        print(f"{kind:16} by 2,048 characters: {' '.join(f'{100 * each:5.1f}' for each in gains)}")
    plot(told["by_position"], arguments.plot)
    arguments.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
