"""What the reader of a table must know of a run: what was not found, not read or not there to be searched.

Each is a line of the notes, which stand below the table, in the JSON file and on the page.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Protocol
from uptake.report.formatting import many
from uptake.report.results import BASE, Results
from uptake.report.scored.rows import Scored
from uptake.report.streamed.rows import Answered, Spent
from uptake.store.datastore import Datastore
from uptake.store.unfinished import said


def remarks(results: Results, plan: Plan, store: Datastore | None) -> list[str]:
    """Return a line for each such thing; none where all was found and read."""
    searched = store if plan.searches else None
    found = [*_missing_shards(results)]
    if searched is not None:
        if begun := said(searched.unfinished):
            found.append(f"the store is {begun}")
        found += _found_fewer(results, plan, searched)
    return [*found, *_changed_nothing(results, plan)]


def not_scored(protocol: Protocol, inputs: Inputs) -> list[str]:
    """Return a line on the documents that the protocol can make nothing of, if there are any."""
    left = protocol.left_out(inputs)
    if not left:
        return []
    reasons = ", ".join(f"{len(names)} {reason} ({_some(names)})" for reason, names in left.items())
    of = many(len(inputs.documents), "document", "documents")
    return [f"not scored: {sum(map(len, left.values()))} of {of}, {reasons}"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _missing_shards(results: Results) -> Iterator[str]:
    coverage = [row.coverage for row in results.of(Scored)]
    short = sum(each < 1 for each in coverage)
    if short:
        yield (
            f"shards were missing: {short} of {len(coverage)} rows searched less than the whole store, "
            f"{min(coverage):.1%} of it at the least"
        )


def _found_fewer(results: Results, plan: Plan, store: Datastore) -> Iterator[str]:
    """Yield how many queries found fewer neighbours than were asked for, and why; once for equal methods."""
    told: dict[str, list[str]] = {}
    for name, spec in plan.methods.items():
        rows = [row for row in results.of(Scored) if row.method == name]
        largest = max((row.k for row in rows), default=0)
        asked = [row for row in rows if row.k == largest and row.bytes]
        short = [(row, why) for row in asked if (why := _why_fewer(row, store, spec.select.ranks))]
        if short:
            none = sum(not row.neighbours for row, _ in short)
            told.setdefault(
                _fewer("query", "queries", len(asked), largest, Counter(why for _, why in short), none), []
            ).append(name)
        documents = max((row.taken for row in results.of(Spent) if row.method == name), default=0)
        behind = max((row.short for row in results.of(Spent) if row.method == name), default=0)
        if behind:
            k = max(plan.neighbour_counts(spec))
            small = f"{_OF_STORE.format(store.count)}, " if k > store.count else ""
            reason = f"{small}{_WITHHELD}"
            line = _fewer("document", "documents", documents, k, {reason: behind}, 0)
            told.setdefault(line, []).append(name)
    for line, names in told.items():
        yield f"{', '.join(names)}: {line}"


_OF_STORE = "the store holds only {:,}"
_WITHHELD = "the leak filter withheld the rest, or no other passage has a word of it"


def _why_fewer(row: Scored, store: Datastore, ranks: bool) -> str:
    """Return why a query found fewer than k; empty where it did not, or where its selection wanted fewer."""
    if row.neighbours >= row.k:
        return ""
    if row.withheld:
        of = f" of the {store.count:,} that the store holds" if row.k > store.count else ""
        return f"the leak filter withheld the rest{of}"
    if row.k > store.count:
        return _OF_STORE.format(store.count)
    return "no other passage has a word of the query" if ranks and store.layout.retriever == "lexical" else ""


def _fewer(one: str, several: str, count: int, k: int, reasons: Mapping[str, int], none: int) -> str:
    short = sum(reasons.values())
    why = ", ".join(f"{number} because {reason}" for reason, number in reasons.items())
    if len(reasons) == 1:
        why = f"because {next(iter(reasons))}"
    found = f"{short} of {many(count, one, several)} found fewer than {many(k, 'neighbour', 'neighbours')}"
    return f"{found}{f', {none} of them none' if none else ''}: {why}"


def _changed_nothing(results: Results, plan: Plan) -> Iterator[str]:
    """Yield the methods whose every answer is the base's: a gain of 0 is then no measurement."""
    base = {(row.taken, row.question): row.nats for row in results.of(Answered) if row.method == BASE}
    for name, spec in plan.methods.items():
        if not spec.method.reads:
            continue
        scored = [row for row in results.of(Scored) if row.method == name and row.bytes and not row.failed]
        answered = [row for row in results.of(Answered) if row.method == name and not row.failed]
        same = [row.bits == row.base_bits for row in scored] + [_as_base(row, base) for row in answered]
        if same and all(same):
            read = any(row.tokens_trained or row.tokens_read or row.neighbours for row in scored)
            read = read or any(row.tokens_trained or row.tokens_read for row in _spent(results, name))
            cause = (
                ", -k is 0"
                if spec.searches and not max(plan.ks)
                else f" under --protocol {plan.protocol.name}"
            )
            why = "" if read else f": it read nothing{cause}"
            yield f"{name} changed nothing, every answer is the base's{why}"


def _as_base(row: Answered, base: Mapping[tuple[int, str], float]) -> bool:
    return any(base.get((taken, row.question)) == row.nats for taken in (0, row.taken))


def _spent(results: Results, name: str) -> Sequence[Spent]:
    return [row for row in results.of(Spent) if row.method == name]
