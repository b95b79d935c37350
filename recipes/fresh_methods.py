"""Every method on text that SmolLM2 cannot have read: `docs/fresh.md` says what is in the data.

    python recipes/fresh.py build                                              # build/fresh
    python recipes/fresh_methods.py score --model MODEL --part valid --documents 16
    python recipes/fresh_methods.py table --part valid
    python recipes/fresh_methods.py choose --part test --documents 60        # what SIFT reads
    python recipes/fresh_layer.py --model MODEL                              # the layer that fwl reads with

`score` writes the log-probability of each token under each variant down, so that an n-gram memory can stand
on any of them without another pass, and `table` can mix the predictions of any of them afterwards, exactly
as `A/B` does; it resumes. Choices are made on `valid`.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from fresh_common import PROTOCOL, choosing, difference, drawn, source_of, store_of
from torch import Tensor

import uptake
from uptake.codec import load
from uptake.errors import BadInput, UptakeError
from uptake.evaluation.queries import Query
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM, Cache, Segment, Wrapper
from uptake.lm.examples import Example
from uptake.lm.experts import FixedShare
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.report.metrics import gain, gain_difference, gain_interval
from uptake.store import Datastore
from uptake.text.select import Nearest, Random, Sift
from uptake.text.types import Document, Found, Passage

SHARES = (0.0, 0.01, 0.1)  # as `A/B` has them
LN2 = math.log(2)
RUN = "methods"  # what is scored under one model, kept in one file a part


@dataclass(frozen=True)
class Variant:
    """A method with settings, and how many neighbours it reads; `drawn` at random for a control.

    One that stands `onto` another mixes into what that one predicted, which is known: no model runs again.
    """

    method: str
    k: int = 20
    settings: tuple[str, ...] = ()
    drawn: bool = False
    onto: str = ""
    sift: bool = False  # reads what `choose` wrote down
    trained: bool = False  # has a network of its own, in a file

    def spec(self, weights: Path | None = None) -> MethodSpec:
        """Return the method as it is run, with the network in `weights` where it has one.

        Raises BadInput where that file is not named.
        """
        settings = self.settings
        if self.trained:
            if weights is None:
                raise BadInput(f"{self.method}: give --weights, the file of its network")
            settings = (*settings, f"weights={weights}")
        spec = method_specs([self.method], settings)[self.method]
        if not self.k or self.onto:
            return spec
        return replace(spec, select=Random() if self.drawn else Sift() if self.sift else Nearest())


def _trained(rate: float, *more: str, layers: int | None = 4) -> tuple[str, ...]:
    return (
        f"trainable=top(layers={layers})" if layers else "trainable=all",
        f"optimizer=adamw(learning_rate={rate})",
        *more,
    )


def _beside_the_base(pace: str) -> tuple[str, ...]:
    return ("base_weight=0.5", "stretch=32", f"rate_scale={pace}")


# The rate: chosen among four on `valid`, at 5 neighbours, by recipes/trainable.py.
LORA = ("trainable=lora(rank=16)", "learning_rate=1e-3")
RATE = 3e-4  # chosen on `valid` at 5 neighbours, where 1e-3 gained less, and 1e-4 too
VARIANTS: Mapping[str, Variant] = {
    "base": Variant("base", 0),
    "in-context": Variant("in-context"),
    "in-context random": Variant("in-context", drawn=True),
    "in-context k=5": Variant("in-context", 5),
    "ttt-nn k=5": Variant("ttt-nn", 5, _trained(RATE)),
    "random k=5": Variant("ttt-nn", 5, _trained(RATE), drawn=True),
    "knn-lm k=5": Variant("knn-lm", 5, ("over=passages",)),
    "knn-lm k=5 constant": Variant("knn-lm", 5, ("over=passages", "weight=constant")),
    "in-context k=5 refreshed": Variant("in-context", 5, ("refresh=64",)),
    "rag k=5": Variant("rag", 5),
    "rag sequence k=5": Variant("rag", 5, ("marginal=sequence",)),
    "rag token k=5": Variant("rag", 5, ("marginal=token",)),
    "ttt-nn": Variant("ttt-nn", settings=_trained(RATE)),
    "random": Variant("ttt-nn", settings=_trained(RATE), drawn=True),
    "ttt-nn lora": Variant("ttt-nn", settings=LORA),
    "random lora": Variant("ttt-nn", settings=LORA, drawn=True),
    "ttt-nn lora+n-gram": Variant("n-gram", onto="ttt-nn lora"),
    "sift": Variant("ttt-nn", settings=_trained(RATE), sift=True),
    "ttt-nn 1e-4": Variant("ttt-nn", settings=_trained(1e-4)),
    "ttt-nn 1e-3": Variant("ttt-nn", settings=_trained(1e-3)),
    "ttt-nn all 1e-3": Variant("ttt-nn", settings=_trained(1e-3, layers=None)),
    "random all 1e-3": Variant("ttt-nn", settings=_trained(1e-3, layers=None), drawn=True),
    "ttt-nn all 1e-3+n-gram": Variant("n-gram", onto="ttt-nn all 1e-3"),
    "ttt-nn salient": Variant("ttt-nn", settings=_trained(RATE, "token_weights=salientspans")),
    "ttt-nn+in-context": Variant("ttt-nn+in-context", settings=_trained(RATE)),
    "in-context refreshed": Variant("in-context", settings=("refresh=64",)),
    "knn-lm": Variant("knn-lm", settings=("over=passages",)),
    "knn-lm random": Variant("knn-lm", settings=("over=passages",), drawn=True),
    "retomaton": Variant("retomaton", settings=("over=passages",)),
    "fwl": Variant("fwl", 0, _beside_the_base("1"), trained=True),
    "fwl pace=0.3": Variant("fwl", 0, _beside_the_base("0.3"), trained=True),
    "fwl that learns nothing": Variant("fwl", 0, _beside_the_base("0"), trained=True),
    "dynamic-evaluation": Variant("dynamic-evaluation", 0, _trained(1e-4)),
    "n-gram": Variant("n-gram", onto="base"),
    "n-gram random": Variant("n-gram-random", onto="base"),
    "in-context+n-gram": Variant("n-gram", onto="in-context"),
    "in-context k=5+n-gram": Variant("n-gram", onto="in-context k=5"),
    "in-context random+n-gram": Variant("n-gram", onto="in-context random"),
    "ttt-nn+n-gram": Variant("n-gram", onto="ttt-nn"),
    "random+n-gram": Variant("n-gram", onto="random"),
    "ttt-nn+in-context+n-gram": Variant("n-gram", onto="ttt-nn+in-context"),
    "knn-lm+n-gram": Variant("n-gram", onto="knn-lm"),
    **{
        f"n-gram passages={each}": Variant("n-gram", settings=(f"passages={each}",), onto="base")
        for each in (5, 20, 50, 1000)
    },
}


CONTROLS = {
    "in-context": "in-context random",
    "ttt-nn": "random",
    "sift": "random",
    "ttt-nn k=5": "random k=5",
    "ttt-nn all 1e-3": "random all 1e-3",
    "ttt-nn lora": "random lora",
    "knn-lm": "knn-lm random",
    "retomaton": "knn-lm random",
    "fwl": "fwl that learns nothing",
    "n-gram": "n-gram random",
    "ttt-nn+n-gram": "random+n-gram",
    "in-context+n-gram": "in-context random+n-gram",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """One document's target under one variant: the natural log-probability of each token, and the cost."""

    document: str
    twin: bool
    variant: str
    bytes: int
    log_probs: tuple[float, ...]
    cpu_seconds: float
    found: int
    overlap: float  # the largest share of a passage read that stands in the document

    @property
    def bits(self) -> float:
        return -sum(self.log_probs) / LN2


@dataclass(frozen=True, slots=True)
class Chosen:
    """What SIFT reads for a document."""

    document: str
    passages: tuple[Passage, ...]
    scores: tuple[float, ...]
    overlaps: tuple[float, ...]
    letters: tuple[float, ...]

    @property
    def found(self) -> Found:
        return Found(self.passages, self.scores, self.overlaps, self.letters)


class Recorded(Wrapper):
    """A model of which only the log-probabilities of one text's tokens are known."""

    def __init__(self, inner: LM, log_probs: Sequence[float]) -> None:
        super().__init__(inner)
        self.log_probs = torch.tensor(log_probs, dtype=torch.float64)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.log_probs.tolist())

    def max_input_tokens(self, row: int) -> int:
        return sys.maxsize  # the text was cut into windows, if need be, when it was scored

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        if [len(example.target) for example in examples] != [len(self.log_probs)]:
            raise BadInput("another text was scored: score what is underneath again")
        return [self.log_probs]

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        raise BadInput("only what was scored is known")


def choose(data: Path, part: str, documents: int, encoder: Any = None) -> Iterator[str]:
    """Write down which passages SIFT takes for so many documents; yield a line on each."""
    path = data / "hybrid.store"
    if path.exists():
        store = Datastore.open(path, encoder=encoder)
    else:
        store = Datastore.create(path, encoder=encoder)
        store.add(uptake.read(data / "store.jsonl"))
    journal = _choices(data, part)
    done = {row.document for row in journal.start(lambda row: load(Chosen, row))}
    for document in drawn(data, part)[:documents]:
        if document.id in done:
            continue
        (query,) = PROTOCOL.queries(document)
        source = source_of(store, document, query)
        found = Sift().choose(source, Variant("sift").k, choosing(document))
        journal.keep(Chosen(document.id, found.passages, found.scores, found.overlaps, found.letters))
        yield document.id


def score(
    model: str,
    data: Path,
    part: str,
    documents: int,
    names: Sequence[str],
    run: str = RUN,
    device: str = "cpu",
    weights: Path | None = None,
) -> Iterator[str]:
    """Score so many documents, drawn by a hash, under these variants; yield a line on each.

    `weights` is the file of a network, for the variants that have one.
    """
    specs = {name: VARIANTS[name].spec(weights) for name in names}
    lm = uptake.load(model, device)
    store = store_of(data)
    journal = _journal(data, part, run)
    done = {(row.document, row.variant): row for row in journal.start(lambda row: load(Scored, row))}
    chosen = {}
    if any(VARIANTS[name].sift for name in names):
        chosen = {
            row.document: row.found for row in _choices(data, part).start(lambda row: load(Chosen, row))
        }
    every = drawn(data, part)
    for document in every[:documents]:
        (query,) = PROTOCOL.queries(document)
        for name, spec in specs.items():
            onto = VARIANTS[name].onto
            if (document.id, name) in done or (onto and (document.id, onto) not in done):
                continue
            if VARIANTS[name].sift and document.id not in chosen:
                raise BadInput(f"{document.id}: what SIFT reads is not chosen yet: run `choose` for it")
            read = chosen.get(document.id) if VARIANTS[name].sift else None
            row = _scored(lm, store, document, query, name, spec, done.get((document.id, onto)), read)
            journal.keep(row)
            done[document.id, name] = row
            rate = row.bits / row.bytes
            yield f"{document.id}  {name}  {rate:.3f} bits a byte  {row.cpu_seconds:.1f} CPU s"


def _scored(
    lm: LM,
    store: Datastore,
    document: Document,
    query: Query,
    name: str,
    spec: MethodSpec,
    under: Scored | None,
    read: Found | None = None,
) -> Scored:
    started = time.process_time()
    found, source = read or Found(), None
    if spec.searches:
        source = source_of(store, document, query)
    if source is not None and read is None:
        found = spec.choose(lm, source, VARIANTS[name].k, choosing(document))
    context = Context(continues=spec.segment is not None)
    evidence = Evidence(found, query.context, source)
    whole = lm if under is None else Recorded(lm, under.log_probs)
    (state,) = spec.method.adapt([spec.method.init(whole)], whole, [evidence], context)
    if stopped := context.ledger(0).stopped:
        raise UptakeError(f"{document.id}, {name}: {stopped}")
    (scores,) = spec.score([state], whole, [Segment(query.target, query.context)], context)
    return Scored(
        document.id,
        bool(document.meta.get("twin")),
        name,
        scores.bytes,
        tuple(scores.log_probs.tolist()),
        time.process_time() - started + (under.cpu_seconds if under else 0.0),
        len(state.passages),
        max(found.overlaps, default=0.0),
    )


def _choices(data: Path, part: str) -> RecordFile:
    return RecordFile(data / f"sift-{part}.jsonl", f"{part} {PROTOCOL} {Variant('sift').k}")


def _journal(data: Path, part: str, run: str) -> RecordFile:
    return RecordFile(data / f"{run}-{part}.jsonl", f"{part} {PROTOCOL}")


def mixed(rows: Sequence[Scored], shares: Sequence[float] = SHARES) -> float:
    """Return the bits of one document's target under the mixture of these rows, the base first."""
    log_probs = torch.tensor([row.log_probs for row in rows], dtype=torch.float64).T
    rest = 0.5 / (len(rows) - 1)
    sharing = FixedShare((0.5, *[rest] * (len(rows) - 1)), tuple(shares))
    along, _ = sharing.along(sharing.start(log_probs.device), log_probs)
    return -(along + log_probs).logsumexp(-1).sum().item() / LN2


def repeated(data: Path, part: str, documents: Sequence[str]) -> dict[str, float]:
    """Return the share of each scored text's runs of 13 words that stand in the 200 nearest passages."""
    store, found = store_of(data), {}
    for document in uptake.read(data / f"{part}.jsonl"):
        if document.id not in documents:
            continue
        (query,) = PROTOCOL.queries(document)
        read = {
            run for each in source_of(store, document, query).search(200).passages for run in _runs(each.text)
        }
        own = _runs(query.target)
        found[document.id] = sum(run in read for run in own) / max(1, len(own))
    return found


def _runs(text: str, words: int = 13) -> list[tuple[str, ...]]:
    found = re.findall(r"\w+|[^\w\s]", text)
    return [tuple(found[start : start + words]) for start in range(len(found) - words + 1)]


def table(
    data: Path,
    part: str,
    mixtures: Sequence[Sequence[str]],
    runs: Sequence[str] = (RUN,),
    names: Sequence[str] = (),
) -> dict[str, object]:
    """Return what each variant, and each mixture of some, saves over the base on documents scored by all."""
    rows: dict[str, dict[str, Scored]] = {}
    for run in runs:
        for row in _journal(data, part, run).start(lambda row: load(Scored, row)):
            rows.setdefault(row.document, {})[row.variant] = row
    names = [*names] or [name for name in VARIANTS if any(name in of for of in rows.values())]
    whole = {document: of for document, of in rows.items() if all(name in of for name in names)}
    out: dict[str, object] = {"part": part, "documents": len(whole)}
    shares = repeated(data, part, list(whole))
    for label, chosen in (
        ("all", whole),
        ("no twin", {d: of for d, of in whole.items() if not of["base"].twin}),
        ("nothing repeated", {d: of for d, of in whole.items() if not shares[d]}),
        ("something repeated", {d: of for d, of in whole.items() if shares[d]}),
    ):
        if len(chosen) < 2:
            continue
        base = [of["base"].bits for of in chosen.values()]
        bits = {name: [of[name].bits for of in chosen.values()] for name in names}
        seconds = {name: sum(of[name].cpu_seconds for of in chosen.values()) / len(chosen) for name in names}
        for mixture in mixtures:
            called = " / ".join(mixture)
            bits[called] = [mixed([of["base"], *(of[name] for name in mixture)]) for of in chosen.values()]
            seconds[called] = sum(seconds[name] for name in ("base", *mixture))
        figures = {}
        for name, own in bits.items():
            figure: dict[str, object] = {
                "gain": gain(own, base),
                "interval": gain_interval(own, base, list(chosen)),
                "cpu_seconds": seconds[name],
            }
            for called, other in (("in-context", "in-context"), ("control", CONTROLS.get(name, ""))):
                if other in bits and name != other:
                    figure[f"beyond {called}"] = gain_difference(own, bits[other], base, list(chosen))
            figures[name] = figure
        sizes = [of["base"].bytes for of in chosen.values()]
        out[label] = {
            "documents": len(chosen),
            "base_bits_per_byte": sum(base) / sum(sizes),
            "repeated": sum(shares[d] for d in chosen) / len(chosen),
            "variants": figures,
        }
    return out


def _shown(found: dict[str, object]) -> str:
    lines = []
    for label in ("all", "no twin", "nothing repeated", "something repeated"):
        part = found.get(label)
        if not isinstance(part, dict):
            continue
        lines.append(
            f"{label}: {part['documents']} documents, base {part['base_bits_per_byte']:.3f} bits a byte\n\n"
            "| variant | bits a byte | gain | beyond its control | beyond in-context | CPU s |\n"
            "|---|---|---|---|---|---|"
        )
        for name, figure in part["variants"].items():
            low, high = figure["interval"]
            rate = part["base_bits_per_byte"] * (1 - figure["gain"])
            beyond = " | ".join(
                difference(figure.get(f"beyond {each}")) for each in ("control", "in-context")
            )
            lines.append(
                f"| {name} | {rate:.3f} | {100 * figure['gain']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
                f"| {beyond} | {figure['cpu_seconds']:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Run the command that was asked for; return the status to exit with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("choose", "score", "table"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, default=Path("build/fresh"))
        command.add_argument("--part", choices=("valid", "test"), default="valid")
        if name != "table":
            command.add_argument("--documents", type=int, default=16)
        if name == "choose":
            command.add_argument("--encoder", help="MiniLM's folder, where the hub is out of reach")
            continue
        command.add_argument(
            "--run",
            nargs="+" if name == "table" else None,
            default=[RUN] if name == "table" else RUN,
            help="the name of the file: another for another model; a table can draw on several",
        )
        command.add_argument("--variants", nargs="*", default=[], choices=list(VARIANTS))
        if name == "score":
            command.add_argument("--model", required=True)
            command.add_argument("--device", default="cpu")
            command.add_argument("--weights", type=Path, help="the network of a method that has one")
        else:
            command.add_argument("--mix", action="append", default=[], help="variants, with / between")
            command.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "choose":
            for line in choose(options.data, options.part, options.documents, options.encoder):
                print(line, flush=True)
            return 0
        if options.command == "score":
            names = options.variants or list(VARIANTS)
            for line in score(
                options.model,
                options.data,
                options.part,
                options.documents,
                names,
                options.run,
                options.device,
                options.weights,
            ):
                print(line, flush=True)
            return 0
        mixtures = [[name.strip() for name in each.split("/")] for each in options.mix]
        found = table(options.data, options.part, mixtures, options.run, options.variants)
        print(_shown(found))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
