"""What the commands that evaluate share: the protocol, its store, the journal, and writing the results."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uptake.cli import inputs, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from uptake.evaluation.inputs import Inputs
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.protocol import Protocol
    from uptake.lm.base import LM
    from uptake.report.results import Results
    from uptake.text.files import Skipped
    from uptake.text.reading import Reading


def protocol(name: str, values: "Mapping[str, Any]") -> "Protocol":
    """Return the protocol of this name; `values` are those of the command's options, by their names."""
    from uptake.evaluation import protocols

    inputs.one_of("--protocol", name, protocols.names())
    return protocols.find(name).from_options(values)


def given(
    protocol: "Protocol",
    data: "Sequence[str]",
    reading: "Reading",
    skipped: "Skipped",
    limit: int | None,
    questions: str | None = None,
    locality: "Sequence[str] | None" = None,
    contradictions: str = "refuse",
) -> "Inputs":
    """Return what the files named by options hold, as the protocol takes it: documents or edits."""
    from itertools import islice

    from uptake.evaluation.inputs import Inputs
    from uptake.tasks.edit_files import read_edits
    from uptake.tasks.questions import read_questions
    from uptake.text import readers

    inputs.one_of("--contradictions", contradictions, ["refuse", "last"])
    unrelated = tuple(readers.read(locality, skipped=skipped, reading=reading)) if locality else ()
    if protocol.data == "edits":
        read = read_edits(data, skipped, contradictions)  # type: ignore[arg-type]
        return Inputs(edits=read[:limit], unrelated=unrelated)
    if protocol.data == "questions":
        asked = tuple(one for path in data for one in read_questions(path, skipped).questions)
        return Inputs(questions=asked[:limit], unrelated=unrelated)
    documents = tuple(islice(readers.read(data, skipped=skipped, reading=reading), limit))
    asked = read_questions(questions, skipped).questions if questions else ()
    return Inputs(documents, asked, unrelated=unrelated)


def fitted(given: "Inputs", lm: "LM", skipped: "Skipped") -> "Inputs":
    """Return the inputs without the edits that the model cannot read whole."""
    from dataclasses import replace

    from uptake.tasks.edit_files import fitting

    return replace(given, edits=fitting(given.edits, lm.tokenizer, lm.window, skipped))


def wanted_store(store: str | None, plan: "Plan") -> str | None:
    """Return the store if anything is retrieved from it; BadInput where one is needed and not named."""
    searching = [name for name, spec in plan.methods.items() if spec.searches]
    if plan.searches:
        if store is None and plan.protocol.needs_store(plan):
            raise BadInput(f"{searching[0]} reads neighbours and there is no store: name one with --store")
        return store
    if store is not None:
        reason = "-k is 0" if max(plan.ks) == 0 else f"--protocol {plan.protocol.name} needs none"
        screen.note(
            f"--store {store} is not used: {reason if searching else 'no method retrieves neighbours'}"
        )
    return None


def journal(report_file: Path | None, fresh: bool) -> Path | None:
    """Return the file a run saves its progress in; None where there is no report file to put it next to."""
    # A run cannot resume from a pipe or a device.
    resumable = report_file is not None and (report_file.is_file() or not report_file.exists())
    path = Path(f"{report_file}.journal") if resumable else None
    if fresh:
        forget(path)
    return path


def kept(path: Path | None, plan: "Plan", resumes: str) -> str:
    """Return what an interrupted run has left: `resumes` says where, if anything is there to go on from."""
    from uptake.evaluation.records import RecordFile

    if path is None:
        return "nothing was saved: use --json FILE to be able to resume"
    if plan.sequential:
        return "nothing can be resumed with reference=true, each query needs the one before it"
    if not RecordFile(path).count:
        return "nothing was finished yet: the same command begins again"
    return resumes


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
    """Print the results, write the report and the page, and remove the journal."""
    from uptake.report import summary as report

    for line in report.failure_notes(results):
        screen.note(f"note: {line}")
    if json_path == "-":
        for line in results.header.notes:  # a table has them below it
            screen.note(f"note: {line}")
        screen.echo(json.dumps(report.summary(results), indent=1))
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
    forget(journal)  # the report contains it all
