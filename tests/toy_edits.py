"""A toy protocol in one file: all edits are made first, one after another, then everything is asked once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

from uptake.errors import BadInput
from uptake.evaluation.failures import reason_of
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.evaluation.runner import Runner
from uptake.lm.base import LM, Segment
from uptake.methods.contract.method import Context, Evidence
from uptake.report import metrics
from uptake.report.formatting import filled, number, percent
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page, WordsSection
from uptake.report.results import Results, Row
from uptake.tasks.edits import Edit
from uptake.text.types import Found


@dataclass(frozen=True, slots=True)
class Edited(Row):
    """One edit under one method: nats of its target after its prompts, before and after all edits."""

    edit: str
    base: float
    nats: float  # where the edit failed: the base's
    rephrased_base: float
    rephrased: float
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a method says after the prompt of an edit."""

    method: str
    prompt: str
    said: str


class EditsReport(ReportKind):
    rows = (Edited,)
    showcase: ClassVar[Any] = Spoken

    def figures(self, results: Results) -> Figures:
        return {"methods": {name: _figures(results, name) for name in results.header.settings}}

    def lines(self, figures: Figures) -> TableLines:
        return filled(
            {
                "method": name,
                "edits": str(found["edits"]),
                "worked": percent(found["worked"]),
                "nats saved": number(found["saved"], 2),
                "rephrased": number(found["rephrased_saved"], 2),
            }
            for name, found in figures["methods"].items()
        )

    def caption(self, figures: Figures) -> str:
        return "worked: share of targets that became likelier"

    def page(self, results: Results, figures: Figures) -> Page:
        rows = tuple((one.method, one.prompt, one.said) for one in results.showcases)
        return Page(
            headline=f"{len(results.of(Edited))} edits were measured.",
            caution="",
            extent=f"{len(figures['methods'])} methods",
            legend=self.caption(figures),
            measured="All edits were made first, then everything was asked once.",
            sections=(WordsSection("What is said now", ("method", "prompt", "said"), rows),),
        )


def _figures(results: Results, name: str) -> Figures:
    rows = [row for row in results.of(Edited) if row.method == name]
    saved = [row.base - row.nats for row in rows]
    interval = metrics.ratio_interval(saved, [1.0] * len(rows), [row.edit for row in rows])
    return {
        "edits": len(rows),
        "worked": fmean(gap > 0 for gap in saved),
        "saved": fmean(saved),
        "saved_ci": interval and list(interval),
        "rephrased_saved": fmean(row.rephrased_base - row.rephrased for row in rows),
        "failures": [{"edit": row.edit, "reason": row.failed} for row in rows if row.failed],
    }


@dataclass(frozen=True)
class Editing(Unit):
    """One method's edits."""

    edits: tuple[Edit, ...] = field(kw_only=True)


@dataclass(frozen=True)
class Edits(Protocol):
    """Make all edits, then ask; the state is kept every `save_every` edits."""

    name: ClassVar[str] = "toy-edits"
    report = EditsReport()
    wants: ClassVar[str] = "edits"
    save_every: int = 2

    def units(self, plan: Plan, inputs: Inputs) -> list[Unit]:
        if not inputs.edits:
            raise BadInput("no edit to make: give at least one")
        return [Editing(name, len(inputs.edits), edits=inputs.edits) for name in plan.methods]

    def run(self, batch: Batch, runner: Runner) -> Iterator[Part]:
        (unit,), (place,) = batch.units, batch.places
        assert isinstance(unit, Editing)
        method, lm = runner.plan.methods[unit.id].method, runner.lm
        state: Any = method.init(lm)
        done, failed = 0, dict[str, str]()
        if batch.resume is not None and (left := runner.resume(batch, type(state))) is not None:
            state, done, failed = left, int(batch.resume.data["done"]), dict(batch.resume.data["failed"])
        first = done == 0
        for number_, edit in enumerate(unit.edits[done:], done + 1):
            evidence = Evidence(Found((edit.passage(),), (0.0,)))
            try:
                (state,) = method.adapt([state], lm, [evidence], Context())
            except Exception as error:
                failed[edit.id] = reason_of(error)
            if number_ % self.save_every == 0 and number_ < len(unit.edits):
                data = {"done": number_, "failed": failed}
                yield Part(done=number_, label=edit.id, finished=False, first=first, state=state, data=data)
                first = False
            else:
                yield Part.progress(number_, edit.id)
        adapted = method.adapted([state], lm)
        rows: list[Row] = [_row(unit.id, edit, lm, adapted, failed.get(edit.id, "")) for edit in unit.edits]
        said = [
            Spoken(unit.id, edit.prompt, adapted.generate(edit.prompt, 4))
            for edit in unit.edits[: runner.plan.showcases]
        ]
        yield Part(rows={place: rows}, showcases={place: said}, done=len(unit.edits), first=first)

    def failed(self, unit: Unit, plan: Plan, reason: str) -> list[Row]:
        assert isinstance(unit, Editing)
        return [Edited(unit.id, edit.id, 0.0, 0.0, 0.0, 0.0, reason) for edit in unit.edits]


def _row(method: str, edit: Edit, lm: LM, adapted: LM, failed: str) -> Edited:
    base, other = _nats(lm, edit, (edit.prompt,)), _nats(lm, edit, edit.rephrases)
    if failed:
        return Edited(method, edit.id, base, base, other, other, failed)
    return Edited(
        method,
        edit.id,
        base,
        _nats(adapted, edit, (edit.prompt,)),
        other,
        _nats(adapted, edit, edit.rephrases),
    )


def _nats(lm: LM, edit: Edit, prompts: tuple[str, ...]) -> float:
    return -sum(float(lm.score([Segment(edit.text, prompt)])[0].log_probs.sum()) for prompt in prompts)
