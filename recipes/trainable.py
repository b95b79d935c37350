"""Kinds of trainable on one bed: TTT-NN on fresh text, a stream with questions, and tasks of 32 examples.

    python recipes/fresh.py build                                                       # build/fresh
    python recipes/trainable.py ttt --model MODEL --out build/trainable.json
    python recipes/trainable.py stream --model MODEL --out build/trainable.json
    python recipes/trainable.py tasks --model MODEL --out build/trainable.json
    python recipes/trainable.py table --out build/trainable.json [more.json ...] --json recipes/trainable.json

Each kind is tried at several rates on validation text, and measured on test text at the best of them. All of
it resumes: what is in the file --out is not run again, and --minutes begins nothing after so many. Several
processes share the work with --kinds and a file each; `table` reads them all.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trainable_kinds as kinds
from fresh_common import PROTOCOL, choosing, drawn, source_of, store_of
from trainable_kinds import KINDS, Unrelated, best_rate, marks, spending
from trainable_table import table
from trainable_tasks import LEARNED, run_tasks

import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import Trainable
from uptake.errors import UptakeError
from uptake.evaluation.queries import Query
from uptake.lm.activations import ActivationReader
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.in_context import InContext
from uptake.settings import apply
from uptake.store import Datastore
from uptake.tasks.few_shot import Shot
from uptake.text.types import Document, Found, Passage, Source

SHOTS = 8  # in context
Read = tuple[Query, Found, Source]  # a query, what is read for it, and where that comes from
AT_RANDOM = "random passages"


@dataclass
class Work:
    """The rows that were measured, by their keys, in a file that is written after each."""

    file: Path
    until: float = math.inf
    rows: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, file: Path, minutes: float) -> "Work":
        """Return what a file holds, if it is there."""
        rows = json.loads(file.read_text()) if file.exists() else {}
        return cls(file, time.monotonic() + 60 * minutes, rows)

    def row(self, key: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return the row of a key, `make(*arguments)` if it is not there; None where the minutes are up."""
        if key not in self.rows:
            if time.monotonic() > self.until:
                print(f"{key}: the minutes are up; the same command goes on", flush=True)
                return None
            self.rows[key] = make(*arguments)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_name(self.file.name + ".part")
            part.write_text(json.dumps(self.rows) + "\n", encoding="utf8")
            part.replace(self.file)
            print(key, flush=True)
        return self.rows[key]


def run_ttt(lm: Causal, work: Work, options: argparse.Namespace) -> None:
    """Measure TTT-NN with each kind on fresh text, and passages in context."""
    store = store_of(options.data, options.store)
    texts = {
        part: drawn(options.data, part)[:count]
        for part, count in (("valid", options.valid), ("test", options.test))
    }
    found = {part: [_found(store, document, options.k) for document in some] for part, some in texts.items()}
    unrelated = Unrelated.of(lm)
    for part, queries in found.items():
        for query, _, _ in queries:
            work.row(f"ttt/{part}/base/{query.id}", _scored, lm, lm, query)
    for name in options.kinds:
        trainable, kind = kinds.trainable_of(lm, name), KINDS[name]
        k = kind.nearest or options.k
        own = _viewed(lm, kind.view, options) if kind.view else store
        read = {part: [_found(own, document, k) for document in some] for part, some in texts.items()}
        if kind.view:
            _keep(lm, own, kind.view, [passages for some in read.values() for _, passages, _ in some])

        def made(rate: float, trainable: Trainable = trainable, kind: kinds.Kind = kind) -> Finetune:
            view = ("activations=view",) if kind.view else ()
            return apply(Finetune(trainable=trainable, optimizer=AdamW(rate)), *view, *kind.settings)

        def bits(
            rate: float, name: str = name, queries: Sequence[Read] = read["valid"], made: Any = made
        ) -> float | None:
            row = work.row(f"ttt/valid/{name}/{rate:g}", _all_of, lm, made(rate), queries)
            return None if row is None else row["bits"]

        chosen = best_rate(kind.rates, options.rates, bits, options.climb)
        if chosen is None:
            continue
        method = made(chosen)
        work.row(f"ttt/about/{name}", _about, lm, trainable, chosen)
        for query, passages, source in read["test"]:
            row = _adapted, lm, method, query, passages, unrelated, source
            work.row(f"ttt/test/{name}/{query.id}", *row)
        if name in options.random:
            for query, passages, source in read["test"]:
                some = source.sample(len(passages.passages), choosing(query.document))
                row = _adapted, lm, method, query, some, unrelated, source
                work.row(f"ttt/test/{name}, {AT_RANDOM}/{query.id}", *row)
    for query, passages, _ in found["test"] if options.in_context else ():
        work.row(f"ttt/test/in-context/{query.id}", _adapted, lm, InContext(), query, passages, None)


def _viewed(lm: Causal, layers: int, options: argparse.Namespace) -> Datastore:
    """Return a store of the same passages that keeps what enters so many upper blocks of this model."""
    path = options.store or options.data / "lexical.store"
    return store_of(options.data, path.with_name(f"{path.name}.{layers}.{lm.fingerprint[:8]}"))


def _keep(lm: Causal, store: Datastore, layers: int, read: Sequence[Found]) -> None:
    """Have a store keep what enters the upper blocks for passages, of those that it lacks."""
    ids = {passage.id for found in read for passage in found.passages}
    if ids:
        store.read_activations(ActivationReader(lm, layers), passages=sorted(ids))


def _all_of(lm: Causal, method: Any, queries: Sequence[Read]) -> dict[str, float]:
    """Return the bits of several queries, and the CPU seconds of one on average."""
    rows = [_adapted(lm, method, query, passages, None, source) for query, passages, source in queries]
    return {"bits": sum(row["bits"] for row in rows), "cpu": sum(row["cpu"] for row in rows) / len(rows)}


def _found(store: Datastore, document: Document, k: int) -> Read:
    (query,) = PROTOCOL.queries(document)
    source = source_of(store, document, query)
    return query, source.search(k), source


def _about(lm: Causal, trainable: Any, rate: float) -> dict[str, Any]:
    """Return what is the same for every query: the rate, the parameters, the bytes of a delta."""
    method = Finetune(trainable=trainable, optimizer=AdamW(rate))
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of("A few words.")], Context())
    return {
        "rate": rate,
        "parameters": kinds.parameters_of(lm, trainable),
        "bytes": kinds.bytes_of(state.delta),
        "all": sum(parameter.numel() for parameter in lm.module.parameters()),
    }


def _scored(lm: Causal, adapted: LM, query: Query) -> dict[str, Any]:
    with spending(lm) as spent:
        (scores,) = adapted.score([Segment(query.target, query.context)])
    return {"bits": scores.bits, "bytes": scores.bytes, "cpu": spent.cpu, "wall": spent.wall}


def _adapted(
    lm: Causal,
    method: Any,
    query: Query,
    passages: Found,
    unrelated: Unrelated | None,
    source: Source | None = None,
) -> dict[str, Any]:
    """Return one query's bits after reading its passages, and what reading and answering took."""
    if not isinstance(method, Finetune) or method.activations == "memory":
        lm = lm.around(lm.module)  # nothing is kept of frozen blocks that another kind ran on these passages
    evidence = Evidence(passages, query.own, source, query.context)
    with spending(lm) as spent:
        context = Context(continues=False)
        (state,) = method.adapt([method.init(lm)], lm, [evidence], context)
        adapted = method.adapted([state], lm)
        (scores,) = adapted.score([Segment(query.target, query.context)])
    row = {"bits": scores.bits, "bytes": scores.bytes, "cpu": spent.cpu, "wall": spent.wall}
    row |= {**spent.memory, "tokens": context.ledger(0).tokens_trained}
    return row | ({"kl": unrelated.kl(lm, adapted)} if unrelated else {})


def run_stream(lm: Causal, work: Work, options: argparse.Namespace) -> None:
    """Measure learning a stream of passages about fresh packages, asked about afterwards, closed book."""
    unrelated = Unrelated.of(lm)
    parts = {
        part: _facts(options.data, part, options.passages, options.characters) for part in ("valid", "test")
    }
    for part, (_, shots) in parts.items():
        work.row(f"stream/{part}/base", _asked, lm, shots, "")
    before = "".join(
        shot.prompt + shot.answer for shot in _facts(options.data, "train", 400, None)[1][:SHOTS]
    )
    work.row("stream/test/in-context", _asked, lm, parts["test"][1], before)
    for name in options.kinds:
        trainable = kinds.trainable_of(lm, name)

        def nats(rate: float, name: str = name, trainable: Trainable = trainable) -> float | None:
            key = f"stream/valid/{name}/{rate:g}"
            row = work.row(key, _streamed, lm, trainable, rate, *parts["valid"], None)
            return None if row is None else sum(row["marks"]["nats"])

        chosen = best_rate(KINDS[name].rates, options.rates, nats, options.climb)
        if chosen is not None:
            work.row(f"stream/test/{name}", _streamed, lm, trainable, chosen, *parts["test"], unrelated)


def _asked(lm: Causal, shots: Sequence[Shot], before: str) -> dict[str, Any]:
    return {"marks": marks(lm, shots, lm, before).plain()}


def _facts(data: Path, part: str, most: int, characters: int | None) -> tuple[list[Passage], list[Shot]]:
    """Return passages about packages in their order, and the questions about them with their answers.

    Passages are cut after so many characters; a question whose answer is cut away is not asked.
    """
    folder, read = data / "facts" / part, list[Passage]()
    for line in (folder / "passages.jsonl").read_text(encoding="utf8").splitlines()[:most]:
        each = json.loads(line)
        read.append(Passage.whole(Document(each["id"], each["text"][:characters], each["group"])))
    there, shots = {passage.document: passage.text for passage in read}, []
    for line in (folder / "questions.jsonl").read_text(encoding="utf8").splitlines():
        each = json.loads(line)
        if each["document"] in there and each["answers"][0] in there[each["document"]]:
            shots.append(Shot(f"Question: {each['question']}\nAnswer:", f" {each['answers'][0]}\n"))
    return read, shots


def _streamed(
    lm: Causal,
    trainable: Any,
    rate: float,
    read: Sequence[Passage],
    shots: Sequence[Shot],
    unrelated: Unrelated | None,
) -> dict[str, Any]:
    """Return how questions are answered after a step on each passage, in their order."""
    method = Finetune(trainable=trainable, optimizer=AdamW(rate))
    with spending(lm) as spent:
        (state,) = method.adapt(
            [method.init(lm)],
            lm,
            [Evidence(Found(tuple(read), (0.0,) * len(read)))],
            Context(continues=False),
        )
    adapted = method.adapted([state], lm)
    row = {"marks": marks(adapted, shots, lm).plain(), "rate": rate, "cpu": spent.cpu, "wall": spent.wall}
    row |= {**spent.memory, "bytes": kinds.bytes_of(state.delta)}
    row["parameters"] = kinds.parameters_of(lm, trainable)
    return row | ({"kl": unrelated.kl(lm, adapted)} if unrelated else {})


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, usage = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("command", choices=("ttt", "stream", "tasks", "table"))
    made.add_argument("more", nargs="*", type=Path, help="table: further files of rows")
    made.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--data", type=Path, default=Path("build/fresh"))
    made.add_argument("--store", type=Path, default=None, help="the lexical store, if it is not in --data")
    made.add_argument("--out", type=Path, default=Path("build/trainable.json"))
    made.add_argument("--json", type=Path, default=None, help="table: write the figures here")
    made.add_argument("--kinds", nargs="*", default=list(KINDS), help="which of them; none for a base alone")
    made.add_argument("--minutes", type=float, default=math.inf)
    made.add_argument("--k", type=int, default=5, help="neighbours of a query")
    made.add_argument("--valid", type=int, default=8, help="documents that choose a rate")
    made.add_argument("--test", type=int, default=24, help="documents that are measured")
    made.add_argument(
        "--rates",
        type=int,
        default=None,
        help="of a kind, from the middle of its list; all\ntasks: 0 takes what the stream in --out chose",
    )
    made.add_argument("--climb", action="store_true", help="try rates on from the best of these")
    made.add_argument(
        "--random", nargs="*", default=["lora"], choices=KINDS, help="ttt: kinds tried on random passages too"
    )
    made.add_argument(
        "--in-context", action=argparse.BooleanOptionalAction, default=True, help="ttt: read them as well"
    )
    made.add_argument("--passages", type=int, default=200, help="of a stream")
    made.add_argument("--characters", type=int, default=None, help="of each passage of a stream; all")
    made.add_argument("--shots", type=int, default=32)
    made.add_argument("--asked", type=int, default=32)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument(
        "--picks", action=argparse.BooleanOptionalAction, default=True, help="tasks: read wrong answers too"
    )
    made.add_argument("--each", type=int, default=None, help="tasks of worlds and of holes a seed; all")
    made.add_argument(
        "--steps", type=int, nargs="*", default=[1, 10], help="tasks: on all examples; 0: one on each"
    )
    made.add_argument(
        "--learned", nargs="*", default=list(LEARNED), choices=LEARNED, help="tasks: trained before"
    )
    made.add_argument("--episodes", type=int, default=200)
    made.add_argument("--sources", type=int, default=8, help="tasks: source prompts")
    made.add_argument("--source-steps", type=int, default=40, help="tasks: steps of each of them")
    found = made.parse_intermixed_args(arguments)
    if unknown := [name for name in found.kinds if name not in KINDS]:
        made.error(f"--kinds {unknown[0]!r}: use some of {', '.join(KINDS)}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    try:
        if options.command == "table":
            table([options.out, *options.more], options.json)
            return
        lm = uptake.load(options.model, options.device, options.dtype)
        work = Work.at(options.out, options.minutes)
        runs = {"ttt": run_ttt, "stream": run_stream, "tasks": run_tasks}
        runs[options.command](lm, work, options)
    except UptakeError as error:
        sys.exit(f"trainable: {error}")


if __name__ == "__main__":
    main()
