"""Score a segment of a document, then read it: what a method makes of the text so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from uptake.errors import BadInput
from uptake.evaluation.queries import OpenQuery, Query, QueryProtocol, segment_of
from uptake.lm.base import Scores
from uptake.methods.contract.method import Context, MethodSpec
from uptake.report.scored.rows import Scored
from uptake.text.types import Document

if TYPE_CHECKING:
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True)
class Running(QueryProtocol):
    """Score a segment, then read it, to the end of the document: dynamic evaluation's order.

    Segments are so many characters and may end within a word, which costs tokens: every method scores
    the same ones, the base among them, but bits per byte grow with the number of cuts.
    """

    name: ClassVar[str] = "running"
    lacks: ClassVar[str] = "empty"
    options: ClassVar[Mapping[str, str]] = {"segment": "segment", "context": "prefix"}
    reads_neighbours: ClassVar[bool] = False
    segment: int = 512  # characters
    context: int = 1024  # characters before a segment that its score may see

    def __post_init__(self) -> None:
        if self.segment < 1 or self.context < 0:
            raise BadInput(f"segment {self.segment}, context {self.context}: use 1 or more, and 0 or more")

    def queries(self, document: Document) -> Iterator[Query]:
        text = document.text
        for number, start in enumerate(range(0, len(text), self.segment)):
            context = text[max(0, start - self.context) : start]
            target = text[start : start + self.segment]
            yield Query(f"{document.id}#{number}", document, context, context, target)

    def cut(self, documents: Sequence[list[Query]]) -> list[list[Query]]:
        return list(documents)

    def score(
        self, name: str, spec: MethodSpec, asked: Sequence[OpenQuery], runner: "Runner"
    ) -> list[list[Scored]]:
        return [[self._score_segments(name, spec, one, runner)] for one in asked]

    def _score_segments(self, name: str, spec: MethodSpec, one: OpenQuery, runner: "Runner") -> Scored:
        lm, method, plan = runner.lm, spec.method, runner.plan
        context = Context(plan.seed, plan.budget)
        states = [runner.carried.get(name) or method.init(lm)]
        seconds, gpu = list[float](), list[float]()
        scores: list[Scores] = []
        with runner.meter.seconds(seconds, gpu):
            for query in one.queries:
                found, states = method.read(states, lm, [segment_of(query)], context)
                scores += found
        if method.sequential:
            runner.carried[name] = method.next_state(states[0], lm)
        one.scores[name] = scores[0]
        ledger = context.ledger(0)
        # Scoring and reading are one act here; what the base needs to score is not learning.
        training = max(0.0, seconds[0] - one.base_seconds)
        row = one.row(name, 0, scores)
        return replace(
            row,
            failed=ledger.failed or row.failed,
            stopped=str(ledger.stopped or ""),
            tokens_trained=ledger.tokens_trained,
            tokens_read=ledger.tokens_read,
            steps=ledger.steps,
            train_seconds=training,
            score_seconds=seconds[0] - training,
            gpu_seconds=gpu[0],
        )
