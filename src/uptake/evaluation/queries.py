"""What protocols share that score text: the base, neighbours found for each query, a row a method and k.

Splits fall between characters, so never inside a UTF-8 sequence, and depend on the document
alone: every method scores the same bytes.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from uptake.errors import BadInput, Diverged
from uptake.evaluation.failures import attempt
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.noting import NotingSource
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.lm.base import LM, Scores, Segment
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.report.results import Neighbour, Row
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored, Showcase
from uptake.text.round_trip import Losses
from uptake.text.types import Document, Found, Passage, Source, stable_hash

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True, slots=True)
class Query:
    """One thing to score: `target` after `context`, by a model that may read what `search` finds."""

    id: str
    document: Document
    search: str
    context: str
    target: str
    support: tuple[Passage, ...] = ()  # what else of the document may be read, before neighbours are

    @property
    def own(self) -> str:
        """The query's own text as a method sees it: what stands before the target, if anything does."""
        return self.context or self.search


@dataclass(frozen=True)
class QueryUnit(Unit):
    """Queries done in one go: one alone, or all of a document where a method reads on between them."""

    queries: tuple[Query, ...] = ()


@dataclass
class OpenQuery:
    """One unit under way, with what the base made of it and where its neighbours are."""

    queries: Sequence[Query]
    base: list[Scores]
    base_seconds: float
    source: Source | None = None
    search_seconds: float = 0.0
    prepare_seconds: float = 0.0  # of what was done once, to search
    scores: dict[str, Scores] = field(default_factory=dict)  # of the first query, by method

    def row(self, method: str, k: int, scores: Sequence[Scores]) -> Scored:
        """Return the row of these scores, nothing spent; failed where their bytes are not the base's."""
        first = self.queries[0]
        size, own = (sum(part.bytes for part in parts) for parts in (self.base, scores))
        base_bits = sum(part.bits for part in self.base)
        return Scored(
            method=method,
            k=k,
            query=first.id,
            document=first.document.id,
            bytes=size,
            bits=sum(part.bits for part in scores) if own == size else base_bits,
            base_bits=base_bits,
            bytes_not_scored=sum(part.bytes_not_scored for part in self.base),
            failed=""
            if own == size
            else f"it scores other bytes than the base, {own:,} and not {size:,}: the "
            "tokenizer loses other text where this is cut in pieces",
        )


class QueryProtocol(Protocol):
    """A rule that makes queries of a document; each is scored by the base and under every method."""

    report = SCORED
    lacks: ClassVar[str] = "shorter than two characters"  # why a document gives no query
    reads_neighbours: ClassVar[bool] = True  # False: what is read is the text itself, once scored

    @abstractmethod
    def queries(self, document: Document) -> Iterator[Query]:
        """Yield the queries of one document, in order; none if it is too short."""

    def cut(self, documents: Sequence[list[Query]]) -> list[list[Query]]:
        """Return what is done in one go, from the queries of each document: a query by itself."""
        return [[query] for queries in documents for query in queries]

    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        made = [queries for document in inputs.documents if (queries := list(self.queries(document)))]
        if not made:
            raise BadInput(f"no document can be scored: give {self.wants}")
        return [QueryUnit(queries[0].id, 1, tuple(queries)) for queries in self.cut(made)]

    def left_out(self, inputs: Inputs) -> dict[str, list[str]]:
        names = [one.id for one in inputs.documents if next(self.queries(one), None) is None]
        return {self.lacks: names} if names else {}

    def check(self, units: Sequence[Unit], lm: LM) -> None:
        losses = Losses(lm.tokenizer)
        for query in (query for unit in units for query in queries_of(unit)):
            losses.add(query.id, query.target)
        losses.check()

    def charge(self, part: Part, once: dict[str, float]) -> None:
        for rows in part.rows.values():
            for place, row in enumerate(rows):
                if isinstance(row, Scored) and (more := once.pop(row.method, 0.0)):
                    rows[place] = replace(row, prepare_seconds=row.prepare_seconds + more)

    def side_by_side(self, plan: "Plan") -> int:
        return 1 if self.sequential(plan) else plan.batch

    def sequential(self, plan: "Plan") -> bool:
        return any(spec.method.sequential for spec in plan.methods.values())

    def searches(self, plan: "Plan") -> bool:
        wanted = any(spec.searches for spec in plan.methods.values())
        return self.reads_neighbours and max(plan.ks) > 0 and wanted

    def neighbour_counts(self, plan: "Plan", spec: MethodSpec) -> tuple[int, ...]:
        return plan.ks if self.reads_neighbours and spec.searches and spec.select.gives_passages else (0,)

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        plan = runner.plan
        asked = self.asked(batch.units, runner)
        rows: dict[int, list[Row]] = {place: [] for place in batch.places}
        label = queries_of(batch.units[-1])[0].document.id
        for name, spec in plan.methods.items():
            yield Part.progress(0, f"{label}: {name}")
            with runner.meter.memory(name):
                made = self.rows(name, spec, asked, runner)
            for place, some in zip(batch.places, made, strict=True):
                rows[place] += some
        shown = self.shown(plan, batch.places)
        showcases = {
            place: [_showcase(one, max(plan.ks))]
            for place, one in zip(batch.places, asked, strict=True)
            if place in shown
        }
        yield Part(rows=rows, showcases=showcases, done=len(batch.units), label=label)

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        # Not even the base has scored it, so nothing of it counts.
        first = queries_of(unit)[0]
        return [
            Scored(name, k, first.id, first.document.id, 0, 0.0, 0.0, failed=reason)
            for name, spec in plan.methods.items()
            for k in self.neighbour_counts(plan, spec)
        ]

    def asked(self, units: Sequence[Unit], runner: "Runner") -> list[OpenQuery]:
        """Return the units under way: scored by the base, and with a place to find neighbours in."""
        made = [_ask(queries_of(unit), runner) for unit in units]
        _find(made, runner)
        return made

    def rows(
        self, name: str, spec: MethodSpec, asked: Sequence[OpenQuery], runner: "Runner"
    ) -> list[list[Scored]]:
        """Return the rows of each unit under one method, one a k; what fails counts at the base's score."""
        if not spec.method.reads:
            return [[replace(one.row(name, 0, one.base), score_seconds=one.base_seconds)] for one in asked]

        def at_the_base(one: OpenQuery, reason: str) -> list[Scored]:
            one.scores[name] = one.base[0]
            ks = self.neighbour_counts(runner.plan, spec)
            return [replace(one.row(name, k, one.base), failed=reason) for k in ks]

        each = 1 if spec.method.separate else len(asked)
        once: list[float] = []
        with runner.meter.preparation(once):
            made = [
                rows
                for start in range(0, len(asked), each)
                for rows in attempt(
                    asked[start : start + each],
                    lambda some: self.score(name, spec, some, runner),
                    at_the_base,
                )
            ]
        if spec.select.ranks:
            once += [one.prepare_seconds for one in asked]
        made[0][0] = replace(made[0][0], prepare_seconds=sum(once))
        return made

    def score(
        self, name: str, spec: MethodSpec, asked: Sequence[OpenQuery], runner: "Runner"
    ) -> list[list[Scored]]:
        """Read neighbours and score under one method; return the rows of each unit, one a k."""
        lm, plan, method, count = runner.lm, runner.plan, spec.method, len(asked)
        choose: list[float] = []
        with runner.meter.seconds(choose):
            found = [_choose(spec, lm, one, plan) for one in asked]
        fresh = [runner.carried.get(name) or method.init(lm) for _ in asked]
        searching = [one.search_seconds if spec.select.ranks else 0.0 for one in asked]
        states, context = fresh, Context(plan.seed, plan.budget)
        segments = [segment_of(one.queries[0]) for one in asked]
        rows: list[list[Scored]] = [[] for _ in asked]
        sources = [_noting(one) for one in asked]
        start, last = 0, max(self.neighbour_counts(plan, spec))
        for k in self.neighbour_counts(plan, spec):
            if not method.incremental:
                start, states, context = 0, fresh, Context(plan.seed, plan.budget)
                sources = [_noting(one) for one in asked]
            evidence = [
                _evidence(one, some.part(start, k), source, support=states is fresh)
                for some, one, source in zip(found, asked, sources, strict=True)
            ]
            context.continues = spec.segment is not None or (method.incremental and k < last)
            score, gpu = list[float](), list[float]()
            # Methods charge each row its own work; what they do for all at once is shared.
            with context.charging(range(count), lm.device):
                states = method.adapt(states, lm, evidence, context)
            train = [context.ledger(row).cpu_seconds for row in range(count)]
            # Several k from one pass: what k neighbours taught is where the next few begin.
            start = k
            with runner.meter.seconds(score, gpu):
                scores = spec.score(states, lm, segments, context)
            for i, one in enumerate(asked):
                # A reading that was given up counts at the base's score, as every failure does.
                one.scores[name] = one.base[0] if context.ledger(i).failed else scores[i]
                costs = (searching[i] + choose[0] / count, train[i], score[0] / count, gpu[0] / count)
                row = _row(one, name, k, found[i].part(0, k), context, i, costs)
                letters = max(row.letters, _letters_found(one, sources[i], max(plan.ks)))
                rows[i].append(replace(row, letters=letters))
        if method.sequential:
            runner.carried[name] = method.next_state(states[-1], lm)
        return rows


def queries_of(unit: Unit) -> tuple[Query, ...]:
    """Return the queries of a unit that a QueryProtocol made."""
    assert isinstance(unit, QueryUnit)
    return unit.queries


def segment_of(query: Query) -> Segment:
    """Return what of a query is scored."""
    return Segment(query.target, query.context)


def neighbours(found: Found) -> tuple[Neighbour, ...]:
    """Return found passages as a report shows them."""
    return tuple(
        Neighbour(
            passage.document,
            passage.start,
            score,
            overlap,
            passage.text,
            passage.meta.get("place", ""),
            letters,
        )
        for passage, score, overlap, letters in zip(
            found.passages, found.scores, found.overlaps, found.letters, strict=True
        )
    )


def _ask(queries: Sequence[Query], runner: "Runner") -> OpenQuery:
    seconds: list[float] = []
    with runner.meter.seconds(seconds):
        base = [runner.lm.score([segment_of(query)])[0] for query in queries]
    for query, scores in zip(queries, base, strict=True):
        if not math.isfinite(scores.bits):
            # Nothing can be measured against it, so this unit fails under every method.
            raise Diverged(f"the base model's score of {query.id} is not finite: {scores.bits} bits")
    return OpenQuery(queries, base, seconds[0], scores={"base": base[0]})


def _find(asked: Sequence[OpenQuery], runner: "Runner") -> None:
    if runner.store is None:
        return
    seconds, once = list[float](), list[float]()
    with runner.meter.seconds(seconds), runner.meter.preparation(once):
        sources = runner.sources([(one.queries[0].search, one.queries[0].document) for one in asked])
    for one, source in zip(asked, sources, strict=True):
        one.source, one.search_seconds = source, seconds[0] / len(asked)
    asked[0].prepare_seconds = once[0]


def _choose(spec: MethodSpec, lm: LM, one: OpenQuery, plan: "Plan") -> Found:
    k = max(plan.neighbour_counts(spec))
    if one.source is None or k == 0:
        return Found()
    # Seeded by the query alone, so that no query's control depends on which others were run.
    generator = np.random.default_rng(stable_hash(str(plan.seed), "choose", one.queries[0].id))
    return spec.choose(lm, one.source, k, generator)


def _noting(one: OpenQuery) -> NotingSource | None:
    return None if one.source is None else NotingSource(one.source)


def _letters_found(one: OpenQuery, source: NotingSource | None, k: int) -> float:
    """Return the largest share of letters in what a method found by itself, beyond its selection.

    Of one that searched tokens or chunks, which it takes from anywhere in the store, the k nearest passages
    stand for them: they are among those it may read.
    """
    if source is None or one.source is None:
        return 0.0
    nearest = one.source.search(k).letters if source.searched else ()
    return max(source.letters, *nearest, 0.0)


def _evidence(one: OpenQuery, found: Found, source: Source | None, support: bool) -> Evidence:
    query = one.queries[0]
    return Evidence(found.behind(query.support if support else ()), query.own, source, query.context)


def _row(
    one: OpenQuery,
    name: str,
    k: int,
    found: Found,
    context: Context,
    i: int,
    costs: Sequence[float],
) -> Scored:
    ledger = context.ledger(i)
    retrieve, train, score, gpu = costs
    row = one.row(name, k, [one.scores[name]])
    return replace(
        row,
        failed=ledger.failed or row.failed,
        stopped=str(ledger.stopped or ""),
        neighbours=len(found.passages),
        overlap=max(found.overlaps, default=0.0),
        letters=max(found.letters, default=0.0),
        withheld=found.withheld,
        coverage=found.coverage,
        tokens_trained=ledger.tokens_trained,
        tokens_read=ledger.tokens_read,
        steps=ledger.steps,
        retrieve_seconds=retrieve,
        train_seconds=train,
        score_seconds=score,
        gpu_seconds=ledger.gpu_seconds + gpu,
    )


def _showcase(one: OpenQuery, k: int) -> Showcase:
    query, base = one.queries[0], one.base[0]
    ends = [end for _, end in base.spans]
    # Tokens of one character share its span: the character goes to the last of them.
    pieces = [query.target[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    found = one.source.search(k) if one.source else Found()
    return Showcase(
        query=query.id,
        document=query.document.id,
        prefix=query.context,
        tokens=tuple(pieces),
        log_probs={name: tuple(scores.log_probs.tolist()) for name, scores in one.scores.items()},
        neighbours=neighbours(found),
    )
