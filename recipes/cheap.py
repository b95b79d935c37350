"""Test-time training at a tenth of the published loop's CPU seconds, on text that SmolLM2 cannot have read.

    python recipes/fresh.py build                                              # build/fresh
    python recipes/cheap.py score --model MODEL --part valid --documents 6     # choices
    python recipes/cheap.py score --model MODEL --part test --variants published "published random" cheap "cheap random"
    python recipes/cheap.py table --part test --json recipes/cheap.json

The published loop trains all weights in float32 by AdamW, a step a neighbour, and scores the query again after each
(its optimizer is fresh for each query here, so that an interrupted run goes on as it would have). Both ways
of working read the same neighbours of the same queries, one after another on each. `score` resumes.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import uptake
from uptake.codec import load
from uptake.errors import UptakeError
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import Query
from uptake.evaluation.records import RecordFile
from uptake.lm.activations import ActivationReader
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, pieces
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply
from uptake.store import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document, Found, Source, stable_hash

PROTOCOL = PerQuery(search=256)  # what retrieves is the end of the prefix
K = 10
RESCORED = (
    4  # documents on which the published loop's scorings are all made; elsewhere one is, and counts k times
)
LAYERS = 4  # above what the store keeps
LN2 = math.log(2)


@dataclass(frozen=True)
class Variant:
    """A way of working; without settings it is the published loop at a learning rate."""

    settings: tuple[str, ...] = ()
    rate: float = 0.0
    drawn: bool = False  # passages at random, the control


def _top(layers: int, rate: float, *more: str) -> Variant:
    kept = ("activations=view",) if layers == LAYERS else ()
    return Variant(
        (f"trainable=top(layers={layers})", f"optimizer=adamw(learning_rate={rate})", *kept, *more)
    )


VARIANTS: Mapping[str, Variant] = {
    "base": Variant(("trainable=top(layers=2)", "passes=0")),
    "published 2e-5": Variant(rate=2e-5),
    "published 5e-5": Variant(rate=5e-5),
    "published 5e-5, random": Variant(rate=5e-5, drawn=True),
    "published 1e-4": Variant(rate=1e-4),
    "top 4, 1.5e-4": _top(4, 1.5e-4),
    "top 4, 3e-4": _top(4, 3e-4),
    "top 4, 3e-4, worst quarter": _top(4, 3e-4, "token_weights=baseloss(share=0.25)"),
    "top 4, 3e-4, worst half": _top(4, 3e-4, "token_weights=baseloss(share=0.5)"),
    "top 4, 3e-4, random quarter": _top(4, 3e-4, "token_weights=randomtokens(share=0.25)"),
    "top 8, 1e-4": _top(8, 1e-4),
    "top 8, 2e-4": _top(8, 2e-4),
    "top 8, 2e-4, random quarter": _top(8, 2e-4, "token_weights=randomtokens(share=0.25)"),
    "top 12, 1e-4": _top(12, 1e-4),
    "top 12, 2e-4, random quarter": _top(12, 2e-4, "token_weights=randomtokens(share=0.25)"),
    "top 2, 3e-4": _top(2, 3e-4),
    "top 2, 6e-4": _top(2, 6e-4),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """One document's target under one variant: its bits, and the CPU seconds of each part of the work."""

    document: str
    variant: str
    bytes: int
    bits: float
    train_seconds: float
    score_seconds: float  # of one scoring
    scored_again_seconds: float  # of those before the last, where they were made
    found: int
    tokens: int  # of the passages


class PublishedLoop:
    """One module whose weights are put back for each query, all of them trained in float32."""

    def __init__(self, lm: Causal) -> None:
        from transformers import AutoModelForCausalLM

        self.lm = lm
        self.module: nn.Module = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32).train()
        self._saved = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def run(self, found: Found, query: Query, rate: float, every: bool) -> tuple[float, list[float]]:
        """Return the bits of the target after the last passage, and seconds: training, scoring, the others."""
        self.module.load_state_dict(self._saved)
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=rate, weight_decay=0.01)
        bits, spent = math.nan, [0.0, 0.0, 0.0]
        for place, passage in enumerate(found.passages):
            started = time.process_time()
            for piece in pieces(encode(self.lm.tokenizer, "", passage.text), self.lm.window):
                logits = self.module(input_ids=torch.tensor([piece.inputs])).logits[0]
                loss = nn.functional.cross_entropy(logits, torch.tensor(piece.target))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                optimizer.step()
            spent[0] += time.process_time() - started
            last = place == len(found.passages) - 1
            if every or last:
                started = time.process_time()
                bits = self._bits(query)
                spent[1 if last else 2] += time.process_time() - started
        return bits, spent

    def _bits(self, query: Query) -> float:
        example = encode(self.lm.tokenizer, query.context, query.target)
        with torch.no_grad():
            logits = self.module(input_ids=torch.tensor([example.inputs])).logits[0]
            targets = torch.tensor(example.target)
            lost = nn.functional.cross_entropy(logits[-len(targets) :], targets, reduction="sum")
        return lost.item() / LN2


def score(model: str, data: Path, part: str, documents: int, names: Sequence[str]) -> Iterator[str]:
    """Score so many documents, drawn by a hash, under these variants; yield a line on each."""
    lm = uptake.load(model)
    assert isinstance(lm, Causal)
    published = PublishedLoop(lm)
    store = _store(data)
    journal = _journal(data, part)
    done = {(row.document, row.variant) for row in journal.start(lambda row: load(Scored, row))}
    every = sorted(uptake.read(data / f"{part}.jsonl"), key=lambda each: stable_hash("drawn", each.id))
    if any("activations=view" in VARIANTS[name].settings for name in names):
        yield _kept(lm, store, every[:documents], names)
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
            yield f"{document.id}  {name}  {bits / size:.4f} bits a byte  {spent[0]:.1f} + {spent[1]:.1f} CPU s"


def _kept(lm: Causal, store: Datastore, documents: Sequence[Document], names: Sequence[str]) -> str:
    """Have the store keep what enters the upper blocks for all that will be read; return what that took."""
    chosen = set()
    for document in documents:
        (query,) = PROTOCOL.queries(document)
        for drawn in {
            VARIANTS[name].drawn for name in names if "activations=view" in VARIANTS[name].settings
        }:
            chosen |= {passage.id for passage in _found(store, document, query, drawn)[0].passages}
    started = time.process_time()
    told = store.read_activations(ActivationReader(lm, LAYERS), passages=sorted(chosen))
    seconds = time.process_time() - started
    return f"kept {told.documents} passages, {told.tokens:,} tokens, in {seconds:.1f} CPU s"


def _ours(lm: Causal, evidence: Evidence, query: Query, variant: Variant) -> tuple[float, list[float]]:
    method = apply(Finetune(), *variant.settings)
    started = time.process_time()
    context = Context(continues=False)
    (state,) = method.adapt([method.init(lm)], lm, [evidence], context)
    if stopped := context.ledger(0).stopped:
        raise UptakeError(f"{variant.settings}: {stopped}")
    trained = time.process_time()
    (scores,) = method.adapted([state], lm).score([Segment(query.target, query.context)])
    return scores.bits, [trained - started, time.process_time() - trained, 0.0]


def _found(store: Datastore, document: Document, query: Query, drawn: bool) -> tuple[Found, Source]:
    source = store.source(
        query.search,
        document_id=document.id,
        group=document.group,
        whole_text=document.text,
        leak=LeakFilter(),
    )
    draws = np.random.default_rng(stable_hash("choose", document.id))
    return source.sample(K, draws) if drawn else source.search(K), source


def _store(data: Path) -> Datastore:
    path = data / "lexical.store"
    if path.exists():
        return Datastore.open(path)
    store = Datastore.create(path, retriever="lexical")
    store.add(uptake.read(data / "store.jsonl"))
    return store


def _journal(data: Path, part: str) -> RecordFile:
    return RecordFile(data / f"cheap-{part}.jsonl", f"{part} {PROTOCOL} {K}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command")
    parser.add_argument("--data", type=Path, default=Path("build/fresh"))
    parser.add_argument("--part", choices=("valid", "test"), default="valid")
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    o = parser.parse_args()
    for line in score(o.model, o.data, o.part, o.documents, o.variants):
        print(line, flush=True)
