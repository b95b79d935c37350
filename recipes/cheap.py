"""Test-time training in fewer CPU seconds than the published loop, on text that SmolLM2 cannot have read.

    python recipes/fresh.py build                                               # build/fresh
    python recipes/cheap.py score --model MODEL --part valid --documents 4 --variants ...      # choices
    python recipes/cheap.py score --model MODEL --part test --documents 24
    python recipes/cheap.py table --part test --json recipes/cheap.json

The published loop trains all weights in float32 by AdamW, a step a neighbour, and scores the query again
after each; its optimizer is fresh for each query here, so that an interrupted run goes on as it would have.
All ways of working read the same neighbours of the same queries; an n-gram memory looks up the same ten.
`score` resumes. The scorings of the published loop are all made on a few documents; elsewhere the last one
is, and counts as many times. On a GPU (`--device cuda --run gpu`) seconds are those of the clock.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fresh_common import PROTOCOL, choosing, difference, drawn, source_of, store_of
from torch import nn

import uptake
from uptake.codec import load
from uptake.errors import UptakeError
from uptake.evaluation.queries import Query
from uptake.evaluation.records import RecordFile
from uptake.lm.activations import ActivationReader
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, pieces
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.n_gram import NGram
from uptake.report.metrics import gain, gain_difference, gain_interval, ratio_interval
from uptake.settings import apply
from uptake.store import Datastore
from uptake.text.types import Document, Found, Source

K = 10
LAYERS = 4  # that train above what the store keeps
RESCORED = 2  # documents on which the published loop's scorings are all made
LN2 = math.log(2)
SHARE = 0.9  # of the published loop's gain beyond random, which is to be kept
PUBLISHED, CHEAP = "published 5e-5", "top 4, 1.5e-4"  # what validation text chose


@dataclass(frozen=True)
class Variant:
    """A way of working; without settings it is the published loop at a learning rate."""

    settings: tuple[str, ...] = ()
    rate: float = 0.0
    drawn: bool = False  # passages at random, the control
    trained: int = K  # passages that train, the nearest ones
    n_gram: bool = False  # what follows the last tokens in all ten is mixed in


def _top(layers: int, rate: float, *more: str, **other: bool | int) -> Variant:
    kept = ("activations=view",) if layers == LAYERS else ()
    settings = (f"trainable=top(layers={layers})", f"optimizer=adamw(learning_rate={rate})", *kept, *more)
    return Variant(settings, **other)


_NOTHING = ("passes=0", "trainable=top(layers=1)")
FEW = 4  # passages that train where seconds are short
VARIANTS: Mapping[str, Variant] = {
    "base": Variant(_NOTHING),
    "n-gram": Variant(_NOTHING, n_gram=True),
    "n-gram, random": Variant(_NOTHING, n_gram=True, drawn=True),
    "n-gram, top 4 of four": _top(4, 3e-4, trained=FEW, n_gram=True),
    "n-gram, top 4 of four, random": _top(4, 3e-4, trained=FEW, n_gram=True, drawn=True),
    "published 2e-5": Variant(rate=2e-5),
    PUBLISHED: Variant(rate=5e-5),
    f"{PUBLISHED}, random": Variant(rate=5e-5, drawn=True),
    "published 1e-4": Variant(rate=1e-4),
    CHEAP: _top(4, 1.5e-4),
    f"{CHEAP}, random": _top(4, 1.5e-4, drawn=True),
    "top 4, 3e-4": _top(4, 3e-4),
    "top 4, 3e-4, worst quarter": _top(4, 3e-4, "token_weights=baseloss(share=0.25)"),
    "top 4, 3e-4, worst half": _top(4, 3e-4, "token_weights=baseloss(share=0.5)"),
    "top 4, 3e-4, random quarter": _top(4, 3e-4, "token_weights=randomtokens(share=0.25)"),
    "top 2, 3e-4": _top(2, 3e-4),
    "top 2, 6e-4": _top(2, 6e-4),
    "top 8, 1e-4": _top(8, 1e-4),
    "top 8, 2e-4": _top(8, 2e-4),
    "top 8, 2e-4, random quarter": _top(8, 2e-4, "token_weights=randomtokens(share=0.25)"),
}
_ASKED = (PUBLISHED, CHEAP, "n-gram", "n-gram, top 4 of four")
SHOWN = ("base", *(each for name in _ASKED for each in (name, f"{name}, random")))


@dataclass(frozen=True, slots=True)
class Scored:
    """One document's target under one variant: its bits, and the CPU seconds of each part of the work."""

    document: str
    variant: str
    bytes: int
    bits: float
    train_seconds: float  # of the CPU; of the clock on a GPU
    score_seconds: float  # of one scoring
    scored_again_seconds: float  # of those before the last, where they were made
    found: int
    tokens: int  # of the passages

    @property
    def seconds(self) -> float:
        """CPU seconds of the way of working; the published loop scores after every neighbour."""
        scorings = 1 if VARIANTS[self.variant].settings else self.found
        return self.train_seconds + scorings * self.score_seconds


def clock(lm: Causal) -> float:
    """Return CPU seconds so far; on a GPU those of the clock, once all it was given is done."""
    if lm.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class PublishedLoop:
    """One module whose weights are put back for each query, all of them trained in float32."""

    def __init__(self, lm: Causal) -> None:
        from transformers import AutoModelForCausalLM

        self.lm = lm
        self.module: nn.Module = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).train()
        self.module.to(lm.device)
        self._saved = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def run(self, found: Found, query: Query, rate: float, every: bool) -> tuple[float, list[float]]:
        """Return the bits of the target after the last passage, and the CPU seconds of its parts.

        Of training, of the last scoring, and of the others, which are made where `every` says so.
        """
        self.module.load_state_dict(self._saved)
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=rate, weight_decay=0.01)
        bits, spent, device = math.nan, [0.0, 0.0, 0.0], self.lm.device
        for place, passage in enumerate(found.passages, start=1):
            started = clock(self.lm)
            for piece in pieces(encode(self.lm.tokenizer, "", passage.text), self.lm.window):
                logits = self.module(input_ids=torch.tensor([piece.inputs], device=device)).logits[0]
                target = torch.tensor(piece.target, device=device)
                loss = nn.functional.cross_entropy(logits, target)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                optimizer.step()
            spent[0] += clock(self.lm) - started
            last = place == len(found.passages)
            if every or last:
                started = clock(self.lm)
                bits = self._bits(query)
                spent[1 if last else 2] += clock(self.lm) - started
        return bits, spent

    def _bits(self, query: Query) -> float:
        example = encode(self.lm.tokenizer, query.context, query.target)
        with torch.no_grad():
            inputs = torch.tensor([example.inputs], device=self.lm.device)
            logits = self.module(input_ids=inputs).logits[0]
            targets = torch.tensor(example.target, device=self.lm.device)
            lost = nn.functional.cross_entropy(logits[-len(targets) :], targets, reduction="sum")
        return lost.item() / LN2


def score(
    model: str, data: Path, part: str, documents: int, names: Sequence[str], run: str, device: str
) -> Iterator[str]:
    """Score so many documents, drawn by a hash, under these variants; yield a line on each."""
    lm = uptake.load(model, device)
    assert isinstance(lm, Causal)
    published = PublishedLoop(lm)
    store = store_of(data)
    journal = _journal(data, part, run)
    done = {(row.document, row.variant) for row in journal.start(lambda row: load(Scored, row))}
    every = drawn(data, part)
    if any(_kept_for(name) for name in names):
        yield _keep(lm, store, every[:documents], names)
    for place, document in enumerate(every[:documents]):
        (query,) = PROTOCOL.queries(document)
        for name in names:
            if (document.id, name) in done:
                continue
            variant = VARIANTS[name]
            found, source = _found(store, document, query, variant.drawn)
            if variant.settings:
                bits, spent = _ours(lm, Evidence(found, query.context, source), query, variant)
            else:
                again = place < RESCORED and not variant.drawn and part == "test"
                bits, spent = published.run(found, query, variant.rate, again)
            tokens = sum(len(lm.tokenizer.encode(passage.text)[0]) for passage in found.passages)
            size = len(query.target.encode())
            row = Scored(document.id, name, size, bits, *spent, len(found.passages), tokens)
            journal.keep(row)
            yield f"{document.id}  {name}  {bits / size:.4f} bits a byte  {row.seconds:.1f} CPU s"


def _kept_for(name: str) -> bool:
    return "activations=view" in VARIANTS[name].settings


def _keep(lm: Causal, store: Datastore, documents: Sequence[Document], names: Sequence[str]) -> str:
    """Have the store keep what enters the upper blocks for all that is read; return what that took."""
    chosen = set()
    for document in documents:
        (query,) = PROTOCOL.queries(document)
        for at_random in {VARIANTS[name].drawn for name in names if _kept_for(name)}:
            chosen |= {passage.id for passage in _found(store, document, query, at_random)[0].passages}
    started = time.process_time()
    told = store.read_activations(ActivationReader(lm, LAYERS), passages=sorted(chosen))
    seconds = time.process_time() - started
    return f"kept {told.documents} passages, {told.tokens:,} tokens, in {seconds:.1f} CPU s"


def _ours(lm: Causal, evidence: Evidence, query: Query, variant: Variant) -> tuple[float, list[float]]:
    method = apply(Finetune(), *variant.settings)
    started = clock(lm)
    context = Context(continues=False)
    read = replace(evidence, found=evidence.found.at(range(min(variant.trained, len(evidence.passages)))))
    (state,) = method.adapt([method.init(lm)], lm, [read], context)
    if stopped := context.ledger(0).stopped:
        raise UptakeError(f"{variant.settings}: {stopped}")
    trained, adapted = clock(lm), method.adapted([state], lm)
    if variant.n_gram:
        memory = NGram()
        (kept,) = memory.adapt([memory.init(lm)], lm, [replace(evidence, source=None)], context)
        adapted = memory.around([kept], adapted, lm)
    (scores,) = adapted.score([Segment(query.target, query.context)])
    return scores.bits, [trained - started, clock(lm) - trained, 0.0]


def _found(store: Datastore, document: Document, query: Query, at_random: bool) -> tuple[Found, Source]:
    source = source_of(store, document, query)
    return source.sample(K, choosing(document)) if at_random else source.search(K), source


def _journal(data: Path, part: str, run: str) -> RecordFile:
    return RecordFile(data / f"{run}-{part}.jsonl", f"{part} {PROTOCOL} {K}")


def table(data: Path, part: str, names: Sequence[str], run: str) -> dict[str, object]:
    """Return what each variant gains and costs, on the documents that all of them have scored.

    Where a variant has a control, `beyond_random` is its gain less that of the control. Against the published
    loop: its share of the CPU seconds, and of the gain beyond random with its interval.
    """
    rows: dict[str, dict[str, Scored]] = {}
    for row in _journal(data, part, run).start(lambda row: load(Scored, row)):
        rows.setdefault(row.document, {})[row.variant] = row
    whole = {document: of for document, of in rows.items() if all(name in of for name in names)}
    if len(whole) < 2:
        raise UptakeError(
            f"{len(whole)} documents were scored by all of {', '.join(names)}: score two or more"
        )
    documents = list(whole)
    bits = {name: [of[name].bits for of in whole.values()] for name in names}
    base = bits["base"]
    variants: dict[str, dict[str, object]] = {}
    for name in names:
        own = [of[name] for of in whole.values()]
        control = f"{name}, random"
        variants[name] = {
            "gain": gain(bits[name], base),
            "interval": gain_interval(bits[name], base, documents),
            "by_document": [1 - one / other for one, other in zip(bits[name], base, strict=True)],
            "cpu_seconds": sum(row.seconds for row in own) / len(own),
            "train_cpu_seconds": sum(row.train_seconds for row in own) / len(own),
            "score_cpu_seconds": sum(row.score_seconds for row in own) / len(own),
        }
        if control in names:
            variants[name]["beyond_random"] = gain_difference(bits[name], bits[control], base, documents)
        if control in names and PUBLISHED in names and name != PUBLISHED:
            ours = np.subtract(bits[control], bits[name])
            theirs = np.subtract(bits[f"{PUBLISHED}, random"], bits[PUBLISHED])
            seconds = [row.seconds for row in own], [of[PUBLISHED].seconds for of in whole.values()]
            variants[name]["share_of_gain"] = float(ours.sum() / theirs.sum())
            variants[name]["share_of_gain_interval"] = ratio_interval(ours, theirs, documents)
            more = ours - SHARE * theirs  # a ratio means little where the divisor's interval holds zero
            variants[name]["beyond_share"] = (
                float(more.sum() / sum(base)),
                ratio_interval(more, base, documents),
            )
            variants[name]["share_of_cpu_seconds"] = sum(seconds[0]) / sum(seconds[1])
    again = [
        of[PUBLISHED] for of in whole.values() if PUBLISHED in names and of[PUBLISHED].scored_again_seconds
    ]
    return {
        "part": part,
        "documents": documents,
        "k": K,
        "base_bits_per_byte": sum(base) / sum(of["base"].bytes for of in whole.values()),
        "variants": variants,
        "scorings_made_over_those_counted": [
            (row.scored_again_seconds + row.score_seconds) / (row.found * row.score_seconds) for row in again
        ],
    }


def _shown(found: Mapping[str, object]) -> str:
    lines = ["| variant | gain | beyond random | CPU s a query |\n|---|---|---|---|"]
    variants = found["variants"]
    assert isinstance(variants, dict)
    for name, own in variants.items():
        low, high = own["interval"]
        beyond = difference(own.get("beyond_random"))
        lines.append(
            f"| {name} | {100 * own['gain']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] | {beyond} "
            f"| {own['cpu_seconds']:.1f} |"
        )
    for name, own in variants.items():
        if "share_of_gain" in own:
            low, high = own["share_of_gain_interval"]
            lines.append(
                f"\n{name}: {100 * own['share_of_cpu_seconds']:.0f} % of the published loop's CPU seconds, "
                f"{100 * own['share_of_gain']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of its gain beyond "
                f"random; less {100 * SHARE:.0f} % of that gain {difference(own['beyond_share'])} points"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the command that was asked for; return the status to exit with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("score", "table"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, default=Path("build/fresh"))
        command.add_argument("--part", choices=("valid", "test"), default="test")
        command.add_argument("--run", default="cheap", help="the name of the file: another one for a GPU")
        command.add_argument("--variants", nargs="*", default=list(SHOWN), choices=list(VARIANTS))
        if name == "score":
            command.add_argument("--model", required=True)
            command.add_argument("--documents", type=int, default=24)
            command.add_argument("--device", default="cpu")
        else:
            command.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "score":
            for line in score(
                options.model,
                options.data,
                options.part,
                options.documents,
                options.variants,
                options.run,
                options.device,
            ):
                print(line, flush=True)
            return 0
        found = table(options.data, options.part, options.variants, options.run)
        print(_shown(found))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    except UptakeError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
