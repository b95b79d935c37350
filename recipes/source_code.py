"""Fill in identifiers of packages the base model never read, after a few steps on what stands around them.

On-the-fly adaptation of source code (Shrivastava et al. 2020) on installed packages: support from the
file before the hole, from before and after it, from the project's other files, and, as the control,
random pieces of another project. A start is trained by FOMAML and by Reptile on other packages; what
that start is worth without any adaptation is told apart. Learning rates are chosen on two packages
more, for the file's own support and for the control apart. One hole a file, so that files are what is
resampled.

    python recipes/source_code.py --work build/source-code     # go on after an interruption: the same again
"""

import argparse
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import Top
from uptake.evaluation.records import RecordFile
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.source_code import SourceCode
from uptake.report.metrics import bits_per_byte, gain, gain_difference, gain_interval, ratio_interval
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.tasks.holes import Around, Hole, Making
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document, Found, Passage, stable_hash
from uptake.train import Training, train

TEST, VALID, TRAIN = (
    ("networkx", "rich", "fsspec", "peft"),
    ("jinja2", "mpmath"),
    ("sympy", "sklearn", "pandas"),
)
STEPS, SIZE, PREFIX = 16, 256, 1024
RATES = (5e-4, 2e-3)
COLUMNS = ("bits", "bytes", "right", "seconds")
BASE, CONTROL, BOTH = "base", "random support", "before and after"


@dataclass(frozen=True)
class Variant:
    """What is read for a hole and where adaptation sets out; with `steps` 0 it stays there."""

    around: Around = "none"
    neighbours: str = ""  # "project" or "random"
    start: str = ""  # "fomaml" or "reptile"
    steps: int = STEPS


METHODS = {
    CONTROL: Variant(neighbours="random"),
    "before": Variant("before"),
    BOTH: Variant("both"),
    "project": Variant(neighbours="project"),
    "FOMAML, no steps": Variant("both", start="fomaml", steps=0),
    "FOMAML": Variant("both", start="fomaml"),
    "Reptile, no steps": Variant("both", start="reptile", steps=0),
    "Reptile": Variant("both", start="reptile"),
}
# What is compared with what beside it: the text after the hole, and what a trained start adds.
PAIRS = ((BOTH, "before"), ("FOMAML", BOTH), ("Reptile", BOTH))


def files(package: str, count: int | None = None) -> list[Document]:
    """Return files of an installed package, written by hand, not tiny, not huge, in an order names fix."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install {package}")
    root = Path(found.submodule_search_locations[0])
    chosen: list[Document] = []
    for path in root.rglob("*.py"):
        if "tests" in path.parts or not 3_000 <= path.stat().st_size <= 40_000:
            continue
        text = path.read_text(encoding="utf8")
        if "generated" not in text[:500].lower():  # tables, each much like the next
            chosen.append(Document(f"{package}/{path.relative_to(root).as_posix()}", text))
    chosen.sort(key=lambda document: stable_hash("order", document.id))
    return chosen[:count]


def holes(packages: Sequence[str], count: int) -> list[Hole]:
    """Return one hole a file of so many files, shared evenly between the packages."""
    making = Making(count=1, prefix=PREFIX)
    each = [files(package, math.ceil(count / len(packages))) for package in packages]
    return [hole for some in each for document in some for hole in making.holes(document)][:count]


class Projects:
    """The other files of each test package, to be searched."""

    def __init__(self, work: Path, packages: Sequence[str]) -> None:
        self.stores: dict[str, Datastore] = {}
        for package in packages:
            folder = work / f"{package}.store"
            if not folder.exists():
                store = Datastore.create(folder, retriever="lexical", chunking=Chunking(SIZE))
                store.add(files(package))
            self.stores[package] = Datastore.open(folder)

    def passages(self, hole: Hole, kind: str) -> tuple[Passage, ...]:
        """Return pieces of the hole's own project (nearest) or of another (drawn at random)."""
        own = hole.document.id.split("/")[0]
        names = list(self.stores)
        package = own if kind == "project" else names[(names.index(own) + 1) % len(names)]
        asked = QueryText(hole.before[-512:], hole.document.id, "", hole.before + hole.after)
        (source,) = self.stores[package].sources([asked], LeakFilter())
        if kind == "project":
            return source.search(STEPS).passages
        return source.sample(STEPS, np.random.default_rng(stable_hash("random", hole.document.id))).passages


def method(rate: float, label: Variant, starts: dict[str, Path]) -> SourceCode:
    inner = Finetune(
        trainable=Top(2), optimizer=AdamW(rate, weight_decay=0.0), passes=STEPS, max_steps=label.steps
    )
    made = SourceCode(inner=inner, making=Making(count=2, prefix=PREFIX, size=SIZE))
    return replace(made, weights=str(starts[label.start])) if label.start else made


def attempt(
    lm: Causal, hole: Hole, label: Variant | None, rate: float, starts: dict, projects: Projects
) -> dict:
    """Fill one hole by one method: bits, bytes, whether the greedy identifier is right, CPU seconds."""
    started = time.process_time()
    context = Making(prefix=PREFIX).context(hole)
    model: uptake.lm.base.LM = lm
    if label is not None:
        made = method(rate, label, starts)
        pieces = hole.support(label.around, SIZE)
        if label.neighbours:
            pieces = (*pieces, *projects.passages(hole, label.neighbours))
        (state,) = made.adapt(
            [made.init(lm)], lm, [Evidence(Found().behind(pieces), query=context)], Context()
        )
        model = made.adapted([state], lm)
    (scores,) = model.score([Segment(hole.target, context)])
    said = re.match(r" ?(\w+)", model.generate(context, tokens=len(scores.spans) + 2))
    return {
        "bits": scores.bits,
        "bytes": scores.bytes,
        "right": said is not None and said[1] == hole.target.strip(),
        "seconds": time.process_time() - started,
    }


def train_start(outer: str, lm: Causal, rate: float, arguments: argparse.Namespace, path: Path) -> float:
    """Train a start and write it to `path`; return the CPU seconds it took since it was last interrupted."""
    started = time.process_time()
    made = replace(method(rate, Variant("both"), {}), outer=outer)
    each = math.ceil(arguments.episodes / 2 / len(TRAIN))
    documents = [document for package in TRAIN for document in files(package, each)]
    valid = [document for package in VALID for document in files(package, 40)[-6:]]
    network, points = train(
        made,
        lm,
        made.episodes(lm, TrainingData(tuple(documents))),
        Training(optimizer=AdamW(arguments.outer_rate, weight_decay=0.0), save_every=24),
        path.with_suffix(".checkpoint"),
        valid=made.episodes(lm, TrainingData(tuple(valid)))[::2],
    )
    for point in points:
        print(
            f"  {outer}: {point.step} episodes, loss {point.loss:.3f}, validation {point.valid:.3f}",
            flush=True,
        )
    made.save(network, lm, path)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/source-code"))
    parser.add_argument("--out", type=Path, default=Path("recipes/source_code.json"))
    parser.add_argument("--holes", type=int, default=100, help="test files, one hole each")
    parser.add_argument("--validation", type=int, default=24, help="validation files, one hole each")
    parser.add_argument("--episodes", type=int, default=72, help="holes each start is trained on, about")
    parser.add_argument("--outer-rate", type=float, default=5e-5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    lm = uptake.load(str(arguments.shared / "models/base-5m"), dtype="bfloat16")
    projects = Projects(arguments.work, (*TEST, *VALID))
    journal = RecordFile(arguments.work / "journal", f"source code {lm.fingerprint}")
    done = {record["key"]: record for record in journal.start(dict)}

    def fill(hole: Hole, name: str, rate: float, starts: dict) -> dict:
        label = METHODS.get(name)
        start = f" {starts[label.start].stem}" if label and label.start else ""
        key = f"{hole.document.id}:{hole.start} {name} {rate:g}{start}"
        if key not in done:
            done[key] = {"key": key, **attempt(lm, hole, label, rate, starts, projects)}
            journal.keep(done[key])
        return done[key]

    rates, tuning = {}, {}
    valid, test = holes(VALID, arguments.validation), holes(TEST, arguments.holes)
    for name in (CONTROL, BOTH):
        tuning[name] = {rate: sum(fill(hole, name, rate, {})["bits"] for hole in valid) for rate in RATES}
        rates[name] = min(RATES, key=lambda rate: tuning[name][rate])
        print(f"  {name}: bits on validation {tuning[name]}", flush=True)
    tag = f"{rates[BOTH]:g}-{arguments.episodes}-{arguments.outer_rate:g}"
    starts = {outer: arguments.work / f"{outer}-{tag}.safetensors" for outer in ("fomaml", "reptile")}
    for outer, path in starts.items():
        key = f"start {path.stem}"
        if key not in done:
            done[key] = {"key": key, "seconds": train_start(outer, lm, rates[BOTH], arguments, path)}
            journal.keep(done[key])
    spent = {outer: done[f"start {path.stem}"]["seconds"] for outer, path in starts.items()}
    rows = {BASE: [fill(hole, BASE, 0.0, {}) for hole in test]}
    for name in METHODS:
        rows[name] = [fill(hole, name, rates.get(name, rates[BOTH]), starts) for hole in test]
        print(f"  {name} done", flush=True)
    told = report(rows, [hole.document.id for hole in test])
    written = {
        "rates": rates,
        "training_seconds": spent,
        "ways": told,
        "files": [hole.document.id for hole in test],
        "columns": COLUMNS,
        "rows": {
            name: [[round(row[c], 4) for c in COLUMNS] for row in found] for name, found in rows.items()
        },
    }
    arguments.out.write_text(json.dumps(written) + "\n")


def report(rows: dict[str, list[dict]], documents: list[str]) -> dict[str, dict]:
    """Print the table and return its figures; intervals by file, gains against the base and the control."""
    base, control = ([row["bits"] for row in rows[name]] for name in (BASE, CONTROL))
    table = Table("method", "bits per byte", "gain %", "beyond random", "right %", "CPU s a hole", box=None)
    told = {}
    for name, found in rows.items():
        bits, right = [row["bits"] for row in found], [float(row["right"]) for row in found]
        ones = [1.0] * len(found)
        told[name] = {
            "bits_per_byte": bits_per_byte(bits, [row["bytes"] for row in found]),
            "gain": gain(bits, base),
            "gain_ci": gain_interval(bits, base, documents),
            "beyond_random": gain_difference(bits, control, base, documents),
            "right": sum(right) / len(right),
            "right_ci": ratio_interval(right, ones, documents),
            "cpu_seconds": sum(row["seconds"] for row in found) / len(found),
        }
        one = told[name]
        beyond, ends = one["beyond_random"]
        table.add_row(
            name,
            f"{one['bits_per_byte']:.3f}",
            shown(one["gain"], one["gain_ci"]),
            shown(beyond, ends),
            shown(one["right"], one["right_ci"]),
            f"{one['cpu_seconds']:.2f}",
        )
    Console(width=130).print(table)
    for name, other in PAIRS:
        against = gain_difference(
            [row["bits"] for row in rows[name]], [row["bits"] for row in rows[other]], base, documents
        )
        told[name][f"beyond {other}"] = against
        print(f"{name} beyond {other}: {shown(against.value, against.interval)}")
    return told


def shown(value: float, ends: Sequence[float] | None) -> str:
    return f"{100 * value:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


if __name__ == "__main__":
    main()
