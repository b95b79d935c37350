"""What the verbs that evaluate share: the protocol, the store it wants, the journal, and how they end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from uptake.cli import inputs, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uptake.evaluation.plan import Plan
    from uptake.evaluation.protocol import Protocol
    from uptake.report.results import Results


def protocol(name: str, values: "Mapping[str, Any]") -> "Protocol":
    """Return the protocol of this name; `values` are those of the verb's options, by their names."""
    from uptake.evaluation import protocols

    inputs.one_of("--protocol", name, protocols.names())
    return protocols.find(name).from_options(values)


def wanted_store(store: str | None, plan: "Plan") -> str | None:
    """Return the store if anything will be looked for in it; BadInput where one is wanted and not named."""
    searching = [name for name, spec in plan.methods.items() if spec.searches]
    if plan.searches:
        if store is None and plan.protocol.needs_store(plan):
            raise BadInput(f"{searching[0]} reads neighbours and there is no store: name one with --store")
        return store
    if store is not None:
        reason = "-k is 0" if max(plan.ks) == 0 else f"--protocol {plan.protocol.name} needs none"
        screen.note(
            f"--store {store} is not used: {reason if searching else 'no method looks for neighbours'}"
        )
    return None


def journal(report_file: Path | None, fresh: bool) -> Path | None:
    """Return where a run keeps what it has done; None where there is no file to keep it beside."""
    # A pipe or a device can be written to but not gone on from.
    keeps = report_file is not None and (report_file.is_file() or not report_file.exists())
    path = Path(f"{report_file}.journal") if keeps else None
    if fresh:
        forget(path)
    return path


def forget(path: Path | None) -> None:
    """Remove a journal and the states beside it."""
    from uptake.evaluation.journal import Journal

    Journal(path).done()


def finish(
    results: "Results",
    json_path: str | None,
    report_file: Path | None,
    page_file: Path | None,
    journal: Path | None,
) -> None:
    """Show results and write them where they were asked for; then the journal is not needed any more."""
    from uptake.report import summary as report

    for line in report.failure_notes(results):
        screen.note(f"note: {line}")
    if json_path == "-":
        typer.echo(json.dumps(report.summary(results), indent=1))
    else:
        from uptake.cli import tables

        tables.show(results)
    if report_file:
        report.write_json(results, report_file)
        screen.note(f"report: {report_file}")
    if page_file:
        from uptake.report.page import write_page

        write_page(results, page_file)
        screen.note(f"page: {page_file}")
    forget(journal)  # what it held is in the report
