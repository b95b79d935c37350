"""From a plan and inputs to results, and results back from a file: the evaluation as callers see it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from uptake.errors import BadInput
from uptake.evaluation import protocols
from uptake.evaluation.defaults import choosing, with_defaults
from uptake.evaluation.engine import Progress, checked, evaluate
from uptake.evaluation.header import header_of
from uptake.evaluation.identity import identity, key_of
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.journal import Journal
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Protocol
from uptake.evaluation.remarks import not_scored, remarks
from uptake.lm.pretrained import Pretrained
from uptake.report import summary
from uptake.report.formatting import many
from uptake.report.results import Results
from uptake.report.scored import SCORED
from uptake.report.scored.best import checked as checked_cost
from uptake.report.scored.rows import Scored
from uptake.store.datastore import Datastore


def run(
    model: Pretrained,
    plan: Plan,
    inputs: Inputs,
    store: Datastore | None = None,
    *,
    journal: Path | None = None,
    notes: Sequence[str] = (),
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
    within: str = "",
    by: str = "",
) -> Results:
    """Do an evaluation and return its results; with `journal` an interrupted one goes on where it stopped.

    `within` is the cost that the best method is told within, such as 3x the base's or 20s a query; `by` a
    field of the documents' meta that figures are told by as well, such as their language.
    Raises as `evaluate` does, and BadInput where nothing could be scored.
    """
    within = within and checked_cost(within)
    values = _values(plan, inputs, by) if by else {}
    # What cannot be done at all is told before anything is chosen for it.
    once = checked(model, plan, inputs, store)
    plan, chosen = with_defaults(model, plan, store, _telling(progress))
    notes = (*notes, *chosen)
    header = replace(header_of(model, plan, inputs, store, notes), within=within)
    about = identity(model, plan, inputs, store, header)
    kept = Journal(journal, key_of(about), about)
    outcome = evaluate(model, plan, inputs, store, kept, progress, workers, ray, once)
    try:
        _check_scored([row for row in outcome.rows if isinstance(row, Scored)])
    except BadInput:
        kept.done()  # nothing of it is worth going on from
        raise
    results = Results(
        plan.protocol.report,
        replace(
            header, peak_rss_bytes=outcome.peaks, peak_gpu_bytes=outcome.gpu_peaks, by=by, by_document=values
        ),
        tuple(outcome.rows),
        tuple(outcome.showcases),
    )
    said = [*not_scored(plan.protocol, inputs), *remarks(results, plan, store)]
    return replace(results, header=replace(results.header, notes=(*header.notes, *said)))


def _values(plan: Plan, inputs: Inputs, by: str) -> dict[str, str]:
    """Return by document what it has in a field of its meta. Raises BadInput where none has any."""
    if plan.protocol.report is not SCORED:
        raise BadInput(f"--by {by}: --protocol {plan.protocol.name} scores no text; use it with per-query")
    found = {one.id: one.meta[by] for one in inputs.documents if one.meta.get(by)}
    if not found:
        known = sorted({name for one in inputs.documents for name in one.meta})
        there = f"they have {', '.join(known)}" if known else "they have no fields"
        raise BadInput(f"--by {by}: no document has such a field; {there}")
    return found


def _telling(progress: Progress) -> Callable[[str, int, float], None]:
    """Return how the choice of a learning rate is shown: nothing is done yet of what was asked for."""
    return lambda name, tried, best: progress(0, 0, choosing(name, tried, best))


def _check_scored(rows: Sequence[Scored]) -> None:
    """Raise BadInput where not even the base has scored anything: a table of nothing is no result."""
    if rows and not any(row.bytes for row in rows):
        count = many(len({row.query for row in rows}), "query", "queries")
        raise BadInput(f"nothing was scored of {count}; the first, {rows[0].query}: {rows[0].failed}")


def read_json(path: str | Path, protocol: type[Protocol] | None = None) -> Results:
    """Return the results that `write_json` wrote to `path`, exactly. Raises Missing, Damaged and BadInput.

    Their protocol is found by the name that the file gives; `protocol` is one that is not installed.
    """
    if protocol is None:
        settings = summary.read_data(path).get("protocol")
        name = settings.get("name") if isinstance(settings, dict) else None
        if not isinstance(name, str):
            raise BadInput(
                f"{path} is not an Uptake report: it names no protocol; give a file that --json wrote"
            )
        protocol = protocols.find(name)
    return summary.read_json(path, protocol.report)
