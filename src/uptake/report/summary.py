"""From results to a summary, a JSON file and a table for the terminal, whatever the protocol.

The summary is the one place where rows become figures; the file, the table and the page show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uptake import arguments
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Missing
from uptake.report.kind import AnyShowcase, ReportKind, reader, tagged
from uptake.report.results import Header, Results, Row, Sample
from uptake.report.scored.best import checked
from uptake.sealed import from_json, to_json, write_whole

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "uptake report 2"
_CURE = "give a file that --json wrote, as it was written"
_HEADER = ("seed", "versions", "model", "store", "protocol", "settings", "notes", "within", "by")


@dataclass(frozen=True)
class _Content:
    """What a report's file says beside its figures; the fields of `header` lie beside the others."""

    header: Header
    rows: tuple[Row, ...]
    showcases: tuple[AnyShowcase, ...]
    samples: tuple[Sample, ...]


def summary(results: Results) -> dict[str, Any]:
    """Return the report's figures as plain JSON data: finite numbers, text, lists, dicts and None.

    `methods` holds each method's figures and failures; the rest depends on the protocol. What failed
    counts at the base's score. Seconds are CPU seconds. Raises BadInput for what are no results.
    """
    arguments.records("results", [results], "kind", "what uptake.compare or uptake.stream returns")
    figures = results.kind.figures(results)
    if odd := figures.keys() ^ set(results.kind.figure_names):
        raise TypeError(f"{type(results.kind).__name__}.figure_names and its figures differ in {sorted(odd)}")
    return {
        "format": FORMAT,
        **figures,
        **{name: plain(getattr(results.header, name)) for name in _HEADER},
    }


def write_json(results: Results, path: str | Path) -> None:
    """Write summary, rows, showcases and samples to `path`, whole or not at all. Raises BadInput."""
    whole = {
        **summary(results),
        "peak_rss_bytes": plain(results.header.peak_rss_bytes),
        "peak_gpu_bytes": plain(results.header.peak_gpu_bytes),
        "by_document": plain(results.header.by_document),
        "rows": [tagged(row) for row in results.rows],
        "showcases": plain(results.showcases),
        "samples": plain(results.samples),
    }
    write_whole(path, to_json(whole))


def read_data(path: str | Path) -> dict[str, Any]:
    """Return the JSON data of a report. Raises Missing, Damaged and BadInput."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}; {_CURE}") from None
    data = from_json(raw, path, "report", _CURE)
    if data.get("format") != FORMAT:
        raise _no_report(path, f'it has no "format": "{FORMAT}"')
    return data


def read_json(path: str | Path, kind: ReportKind) -> Results:
    """Return the results of this kind that `write_json` wrote, exactly. Raises Missing, Damaged and BadInput.

    Settings come back as plain data: lists as tuples, objects as their text.
    """
    data = read_data(path)
    rest = {name: value for name, value in data.items() if name not in ("format", *kind.figure_names)}
    header = {part.name: rest.pop(part.name) for part in fields(Header) if part.name in rest}
    try:
        content = load(_Content, {**rest, "header": header}, reader(kind))
        if content.header.within:
            checked(content.header.within)
    except (Malformed, BadInput) as error:
        raise _no_report(path, error) from None
    return Results(kind, content.header, content.rows, content.showcases, content.samples)


def _no_report(path: str | Path, why: object) -> BadInput:
    return BadInput(f"{path} is not an Uptake report: {why}; {_CURE}")


def failure_notes(results: Results) -> list[str]:
    """Return a line for each method under which something failed: how much, and the first with its reason."""
    found = results.kind.failures(summary(results))
    return [f"{method}: {count}, first {lines[0]}" for method, (count, lines) in found.items()]


def table(results: Results, leave_out: Sequence[str] = ()) -> "Table":
    """Return the report as a rich table that fits 100 columns, one line a method.

    `leave_out` names headings to do without on a narrower screen.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    figures = summary(results)
    caption = results.kind.caption(figures)
    if quantisation := results.header.model.get("quantisation"):
        caption += f"\n{results.header.model['name']}: dequantised from {quantisation}"
    failed = [f"{count} under {method}" for method, (count, _) in results.kind.failures(figures).items()]
    if failed:
        caption += f"\n{', '.join(failed)}"
    caption += "".join(f"\nnote: {note}" for note in figures["notes"])
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, caption=Text(caption))
    made.caption_justify = "left"
    for whole in results.kind.lines(figures):
        line = {heading: text for heading, text in whole.items() if heading not in leave_out}
        if not made.columns:
            made.add_column("method", min_width=10, vertical="bottom", no_wrap=True)
            for heading in list(line)[1:]:
                # Two words take two lines, for the width.
                made.add_column(Text(heading.replace(" ", "\n", 1)), justify="right", no_wrap=True)
        made.add_row(*map(Text, line.values()))
    return made
