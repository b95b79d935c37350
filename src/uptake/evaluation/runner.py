"""Do a few queries of an evaluation: find, take up, score, under every way of the plan.

Every way scores the same bytes. A query that fails counts at the base model's score and is listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from uptake.errors import BadInput, UptakeError
from uptake.evaluation.journal import Outcome
from uptake.evaluation.memory import peak_bytes, reset_peak
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Query
from uptake.lm.base import LM, Scores, Segment
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.spending import cpu_seconds
from uptake.report.results import Neighbour, Row, Showcase
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.text.types import Found, Source, stable_hash


@dataclass
class _Asked:
    """One unit under way, with what the base made of it and where its neighbours are."""

    queries: list[Query]
    base: list[Scores]
    base_seconds: float
    source: Source | None = None
    search_seconds: float = 0.0
    scores: dict[str, Scores] = field(default_factory=dict)  # of the first query, by way

    def row(self, way: str, k: int, scores: Sequence[Scores]) -> Row:
        first = self.queries[0]
        return Row(
            method=way,
            k=k,
            query=first.id,
            document=first.document.id,
            bytes=sum(part.bytes for part in self.base),
            bits=sum(part.bits for part in scores),
            base_bits=sum(part.bits for part in self.base),
        )


@dataclass
class Runner:
    lm: LM
    plan: Plan
    store: Datastore | None = None
    carried: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.plan.searches:
            self.store = None
        elif self.store is None:
            name = next(name for name, way in self.plan.methods.items() if way.searches)
            raise BadInput(f"{name} reads neighbours and there is no store: name one with --store")

    def batch(self, units: Sequence[list[Query]], shown: int = 0) -> Outcome:
        """Score a few units under every way; keep the first `shown` of them in full."""
        asked = [self._ask(unit) for unit in units]
        self._find(asked)
        outcome = Outcome()
        for name, way in self.plan.methods.items():
            reset_peak()
            outcome.rows += self._attempt(name, way, asked)
            outcome.peaks[name] = peak_bytes()
        outcome.showcases = [_showcase(one, max(self.plan.ks)) for one in asked[:shown]]
        return outcome

    def _ask(self, unit: list[Query]) -> _Asked:
        seconds: list[float] = []
        with cpu_seconds(seconds):
            base = [self.lm.score([_segment(query)])[0] for query in unit]
        return _Asked(unit, base, seconds[0], scores={"base": base[0]})

    def _find(self, asked: list[_Asked]) -> None:
        if self.store is None:
            return
        seconds: list[float] = []
        firsts = [one.queries[0] for one in asked]
        with cpu_seconds(seconds):
            asks = [
                QueryText(first.search, first.document.id, first.document.group, first.document.text)
                for first in firsts
            ]
            sources = self.store.sources(asks, self.plan.leak)
        for one, source in zip(asked, sources, strict=True):
            one.source, one.search_seconds = source, seconds[0] / len(asked)

    def _attempt(self, name: str, way: MethodSpec, asked: list[_Asked]) -> list[Row]:
        """Take the batch up; where that fails, each query by itself, so that one failure stays one."""
        try:
            if not way.method.reads:
                return [replace(one.row(name, 0, one.base), score_seconds=one.base_seconds) for one in asked]
            take = self._per_query if self.plan.protocol.retrieves else self._running
            return take(name, way, asked)
        except UptakeError:
            raise
        except Exception as error:  # whatever a network can raise is one failed query, named in the report
            if len(asked) > 1:
                return [row for one in asked for row in self._attempt(name, way, [one])]
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            asked[0].scores[name] = asked[0].base[0]
            return [
                replace(asked[0].row(name, k, asked[0].base), failed=reason) for k in self.plan.asked(way)
            ]

    def _per_query(self, name: str, way: MethodSpec, asked: list[_Asked]) -> list[Row]:
        lm, method, count = self.lm, way.method, len(asked)
        choose: list[float] = []
        with cpu_seconds(choose):
            found = [self._choose(way, one) for one in asked]
        fresh = [self.carried.get(name) or method.init(lm) for _ in asked]
        searching = [one.search_seconds if way.select.ranks else 0.0 for one in asked]
        states, context = fresh, Context(self.plan.seed, self.plan.budget)
        segments = [_segment(one.queries[0]) for one in asked]
        rows: list[Row] = []
        start = 0
        last = max(self.plan.asked(way))
        for k in self.plan.asked(way):
            if not method.cumulative:
                start, states, context = 0, fresh, Context(self.plan.seed, self.plan.budget)
            evidence = [
                Evidence(
                    some.part(start, k).behind(one.queries[0].support if states is fresh else ()),
                    one.queries[0].own,
                    one.source,
                    one.queries[0].context,
                )
                for some, one in zip(found, asked, strict=True)
            ]
            context.continues = way.segment is not None or (method.cumulative and k < last)
            score: list[float] = []
            # Methods charge each row its own work; what they do for all at once is shared.
            with context.charging(range(count), lm.device):
                states = method.adapt(states, lm, evidence, context)
            train = [context.ledger(row).cpu_seconds for row in range(count)]
            # Several k from one pass: what k neighbours taught is where the next few begin.
            start = k
            with cpu_seconds(score):
                scores = way.score(states, lm, segments, context)
            for i, one in enumerate(asked):
                ledger, some = context.ledger(i), found[i].part(0, k)
                # A reading that was given up counts at the base's score, as every failure does.
                one.scores[name] = one.base[0] if ledger.failed else scores[i]
                rows.append(
                    replace(
                        one.row(name, k, [one.scores[name]]),
                        failed=ledger.failed,
                        stopped=str(ledger.stopped or ""),
                        neighbours=len(some.passages),
                        overlap=max(some.overlaps, default=0.0),
                        withheld=some.withheld,
                        coverage=some.coverage,
                        tokens_trained=ledger.tokens_trained,
                        tokens_read=ledger.tokens_read,
                        steps=ledger.steps,
                        retrieve_seconds=searching[i] + choose[0] / count,
                        train_seconds=train[i],
                        score_seconds=score[0] / count,
                    )
                )
        if method.sequential:
            self.carried[name] = method.next_state(states[-1], lm)
        return rows

    def _choose(self, way: MethodSpec, one: _Asked) -> Found:
        k = max(self.plan.asked(way))
        if one.source is None or k == 0:
            return Found()
        # Seeded by the query alone, so that no query's control depends on which others were run.
        generator = np.random.default_rng(stable_hash(str(self.plan.seed), "choose", one.queries[0].id))
        return way.select.choose(one.source, k, generator)

    def _running(self, name: str, way: MethodSpec, asked: list[_Asked]) -> list[Row]:
        lm, method = self.lm, way.method
        rows = []
        for one in asked:
            context = Context(self.plan.seed, self.plan.budget)
            states = [self.carried.get(name) or method.init(lm)]
            seconds: list[float] = []
            scores: list[Scores] = []
            with cpu_seconds(seconds):
                for query in one.queries:
                    found, states = method.read(states, lm, [_segment(query)], context)
                    scores += found
            if method.sequential:
                self.carried[name] = method.next_state(states[0], lm)
            one.scores[name] = scores[0]
            ledger = context.ledger(0)
            # Scoring and taking up are one act here; what the base needs to score is not learning.
            training = max(0.0, seconds[0] - one.base_seconds)
            row = replace(
                one.row(name, 0, scores),
                failed=ledger.failed,
                stopped=str(ledger.stopped or ""),
                tokens_trained=ledger.tokens_trained,
                tokens_read=ledger.tokens_read,
                steps=ledger.steps,
                train_seconds=training,
                score_seconds=seconds[0] - training,
            )
            rows.append(row)
        return rows


def _segment(query: Query) -> Segment:
    return Segment(query.target, query.context)


def _showcase(one: _Asked, k: int) -> Showcase:
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


def neighbours(found: Found) -> tuple[Neighbour, ...]:
    """Return found passages as a report shows them."""
    return tuple(
        Neighbour(passage.document, passage.start, score, overlap, passage.text)
        for passage, score, overlap in zip(found.passages, found.scores, found.overlaps, strict=True)
    )
