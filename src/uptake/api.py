"""The library in three verbs: `compare` ways of taking text up, `stream` documents, `adapt` to a prompt.

The command line is a thin skin over this file.
"""

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import uptake
from uptake import methods
from uptake.codec import plain
from uptake.errors import BadInput
from uptake.evaluation.engine import Progress, evaluate
from uptake.evaluation.journal import Journal
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import PerQuery, Protocol
from uptake.evaluation.runner import neighbours
from uptake.evaluation.streaming.journal import StreamJournal
from uptake.evaluation.streaming.plan import StreamPlan, in_stream
from uptake.evaluation.streaming.results import Asked, StreamResults
from uptake.evaluation.streaming.run import run
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.spending import Budget
from uptake.report.results import Header, Neighbour, Results
from uptake.settings import apply, describe, find
from uptake.store.datastore import Datastore
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document, Found, stable_hash

SHOWN = 12  # questions of a stream, in words
DEFAULT_METHODS = ("base", "random", "in-context", "ttt-nn")


def method_specs(names: Sequence[str], settings: Sequence[str] = ()) -> dict[str, MethodSpec]:
    """Return the ways called `names`, with their settings.

    `name=value` sets all ways that have such a setting, in their method or else in their selection of
    passages; `way.name=value` one of them. Raises BadInput for a name or a setting that none of them has.
    """
    chosen = {name: methods.find(name) for name in names}
    for setting in settings:
        prefix, dot, rest = setting.partition(".")
        if dot and prefix in chosen:
            chosen[prefix] = _with(chosen[prefix], rest)
            continue
        having = [name for name, spec in chosen.items() if _has(spec, setting)]
        if not having:
            raise _unknown(chosen, setting)
        for name in having:
            chosen[name] = _with(chosen[name], setting)
    return chosen


def _unknown(chosen: Mapping[str, MethodSpec], setting: str) -> BadInput:
    """Return the error of a setting that no way has, with the nearest name that any of them knows."""
    told = []
    for spec in chosen.values():
        try:
            _place(spec, setting)
        except BadInput as error:
            told.append(error)
    return _nearest(told)


def _nearest(told: Iterable[BadInput]) -> BadInput:
    """Return the error that says most of what may have been meant."""
    # "could be" is nearer than "did you mean", and that than a list; a way without settings says least.
    marks = ("could be", "did you mean", "there are")
    lines = [str(error) for error in told]
    return BadInput(
        min(lines, key=lambda line: (next(i for i, m in enumerate(marks) if m in line), -len(line)))
    )


def _place(spec: MethodSpec, setting: str) -> tuple[str, str]:
    """Return which part of the way has the setting, and the setting as that part knows it, or BadInput.

    Parts are its method and its selection; `select.` before a name means the selection alone.
    """
    name = setting.partition("=")[0].strip().replace("-", "_")
    own = name.removeprefix("select.")
    told = []
    for part in ("method", "select") if own == name else ("select",):
        try:
            find(getattr(spec, part), own)
            return part, setting.strip().removeprefix("select.")
        except BadInput as error:
            told.append(error)
    raise _nearest(told)


def _with(spec: MethodSpec, setting: str) -> MethodSpec:
    part, own = _place(spec, setting)
    return replace(spec, **{part: apply(getattr(spec, part), own)})


def _has(spec: MethodSpec, setting: str) -> bool:
    try:
        _place(spec, setting)
    except BadInput:
        return False
    return True


def compare(
    model: Causal,
    documents: Iterable[Document],
    names: Sequence[str] = DEFAULT_METHODS,
    *,
    store: Datastore | None = None,
    k: int | Sequence[int] = 20,
    settings: Sequence[str] = (),
    protocol: Protocol | None = None,
    seed: int = 0,
    batch: int = 8,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
    showcases: int = 4,
    journal: Path | None = None,
    notes: Sequence[str] = (),
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
) -> Results:
    """Score documents under several ways of taking text up, side by side on the same bytes.

    Several `workers` share the queries, a process and a thread each, with the same results; on the
    Ray cluster at the address `ray`, if one is given.
    With `journal` an interrupted call with the same arguments goes on where it stopped. Raises
    BadInput for what cannot be run; a query that fails is listed in the results.
    """
    plan = Plan(
        method_specs(names, settings),
        protocol or PerQuery(),
        (k,) if isinstance(k, int) else tuple(k),
        seed,
        batch,
        budget or Budget(),
        leak or LeakFilter(),
        showcases,
    )
    documents = list(documents)
    header = _header(model, plan, store, notes)
    key = stable_hash(repr(plain(header)), *(text for d in documents for text in (d.id, d.group, d.text)))
    kept = Journal(journal, f"{key:016x}")
    outcome = evaluate(model, plan, documents, store, kept, progress, workers, ray)
    searched = [row.coverage for row in outcome.rows]
    short = sum(each < 1 for each in searched)
    missing = [f"shards were missing: {short} of {len(searched)} rows searched less than the whole store, "
               f"{min(searched):.1%} of it at the least"] if short else []  # fmt: skip
    header = replace(header, peak_rss_bytes=outcome.peaks, notes=(*header.notes, *missing))
    return Results(header, tuple(outcome.rows), tuple(outcome.showcases))


def stream(
    model: Causal,
    documents: Iterable[Document],
    questions: Iterable[Question],
    names: Sequence[str] | Mapping[str, MethodSpec] = ("online",),
    *,
    settings: Sequence[str] = (),
    unrelated: Iterable[Document] = (),
    checkpoints: Sequence[int] = (),
    asking: Asking | None = None,
    rehearsal: Iterable[Question] = (),
    chunking: Chunking | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    journal: Path | None = None,
    save_every: int = 100,
    notes: Sequence[str] = (),
    progress: Progress = lambda done, total, name: None,
) -> StreamResults:
    """Let each way take the documents up in order, then ask the questions, closed book; the base beside.

    `names` are names of ways, or ways by the names to show. The questions on documents taken so far
    are asked at each of `checkpoints` (numbers of documents) as well. How far a way has moved what the
    model says of texts that have nothing to do with the stream is measured on `unrelated`. Questions
    whose document is not in the stream are left out, and the notes say so. With `journal` state and
    rows are kept every `save_every` documents, and an interrupted call with the same arguments goes on
    from there. Raises BadInput for an empty stream or no question.
    """
    documents = list(documents)
    asked, left = in_stream(documents, list(questions))
    if not asked and left:
        raise BadInput(f"no question to ask; {left[0]}: give those documents, with --documents")
    plan = StreamPlan(
        names if isinstance(names, Mapping) else method_specs(names, settings),
        documents,
        asked,
        list(unrelated),
        tuple(checkpoints),
        asking or Asking(),
        list(rehearsal),
        chunking,
        seed,
        budget or Budget(),
        save_every,
    )
    header = _stream_header(model, plan, [*notes, *left])
    texts = (part for d in (*documents, *plan.unrelated) for part in (d.id, d.group, d.text))
    key = stable_hash(repr(plain(header)), repr((plan.questions, plan.rehearsal)), *texts)
    kept = StreamJournal(journal, f"{key:016x}")
    outcome = run(model, plan, kept, progress)
    return StreamResults(
        header,
        tuple(outcome.answers),
        tuple(outcome.drift),
        tuple(outcome.costs),
        tuple(outcome.stopped),
        tuple(Asked(question.id, question.text, question.answers) for question in plan.shown(SHOWN)),
    )


def adapt(
    model: LM,
    prompt: str,
    name: str = "ttt-nn",
    *,
    store: Datastore | None = None,
    k: int = 20,
    settings: Sequence[str] = (),
    seed: int = 0,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
) -> tuple[LM, tuple[Neighbour, ...]]:
    """Return the model as it is after taking up what the store holds near `prompt`, and what it read.

    The model given is untouched.
    """
    spec = method_specs([name], settings)[name]
    state, found = take_up(model, prompt, spec, store=store, k=k, seed=seed, budget=budget, leak=leak)
    return spec.method.adapted([state], model), neighbours(found)


def take_up(
    model: LM,
    prompt: str,
    spec: MethodSpec,
    *,
    store: Datastore | None = None,
    k: int = 20,
    seed: int = 0,
    budget: Budget | None = None,
    leak: LeakFilter | None = None,
    whole_text: str = "",
) -> tuple[State, Found]:
    """Return the state of a way after taking up what is found near `prompt`, and what was found.

    `leak` is off where none is given; it weighs what is found against `whole_text`, or the prompt.
    """
    if k < 0:
        raise BadInput(f"k = {k}: ask for 0 or more neighbours")
    found = Found()
    source = None
    if spec.searches and k > 0:
        if store is None:
            raise BadInput(f"selection {spec.select.name!r} looks in a store and there is none: give one")
        # A prompt is no evaluated document: the passage that holds it is what a person wants found.
        source = store.source(prompt, whole_text=whole_text, leak=leak or LeakFilter.off())
        found = spec.select.choose(source, k, np.random.default_rng(stable_hash(str(seed), "choose", prompt)))
    context = Context(seed, budget or Budget(), continues=False)
    evidence = [Evidence(found, prompt, source)]
    (state,) = spec.method.adapt([spec.method.init(model)], model, evidence, context)
    return state, found


def _header(model: Causal, plan: Plan, store: Datastore | None, notes: Sequence[str]) -> Header:
    leak = {f"leak_{name}": value for name, value in asdict(plan.leak).items()}
    return Header(
        seed=plan.seed,
        versions=_versions(),
        model=_facts(model),
        store={} if store is None else {k: v for k, v in store.info().items() if k not in ("path", "bytes")},
        protocol={
            "name": plan.protocol.name,
            **_told(plan.protocol),
            "k": ", ".join(map(str, plan.ks)),
            "batch": plan.batch,
            **{f"most_{name}": most for name, most in asdict(plan.budget).items() if most is not None},
            **leak,
        },
        settings={
            name: {**_described(spec), "select": describe(spec.select), "segment": spec.segment}
            for name, spec in plan.methods.items()
        },
        notes=tuple(notes),
    )


def _described(spec: MethodSpec) -> dict[str, Any]:
    """Return a method's settings, and what is in the files they name: a name stays when a file changes."""
    settings = describe(spec.method)
    found = sorted(set(_weights(settings)))
    return settings | (
        {"networks": {Path(name).name: _digest(Path(name)) for name in found}} if found else {}
    )


def _weights(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that settings called `weights` or `statistics` name, at any depth."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _weights(value)
        elif name in ("weights", "statistics") and isinstance(value, str) and Path(value).is_file():
            yield value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _told(protocol: Protocol) -> dict[str, str | int | float]:
    """Return a protocol's settings, but those left out."""
    settings = asdict(protocol)  # type: ignore[call-overload]
    return {name: value for name, value in settings.items() if value is not None}


def _stream_header(model: Causal, plan: StreamPlan, notes: Sequence[str]) -> Header:
    return Header(
        seed=plan.seed,
        versions=_versions(),
        model=_facts(model),
        store={},
        protocol={
            "name": "stream",
            "documents": len(plan.documents),
            "questions": len(plan.questions),
            "unrelated": len(plan.unrelated),
            "rehearsal": len(plan.rehearsal),
            "checkpoints": ", ".join(map(str, plan.checkpoints)),
            **asdict(plan.asking),
            "chunk_characters": plan.chunking.characters if plan.chunking else "whole documents",
            **{f"most_{name}": most for name, most in asdict(plan.budget).items() if most is not None},
        },
        settings={name: _described(spec) for name, spec in plan.methods.items()},
        notes=tuple(notes),
    )


def _facts(model: Causal) -> dict[str, str | int]:
    return {
        "name": Path(model.name).name if Path(model.name).exists() else model.name,
        "fingerprint": model.fingerprint,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "uptake": uptake.__version__}
    for package in ("torch", "transformers", "peft", "tokenizers", "pylance", "faiss-cpu", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
