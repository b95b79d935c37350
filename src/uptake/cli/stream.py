"""`uptake stream`: documents one after another under several methods, questions at the end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uptake.cli import inputs, options, screen
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.evaluation.streaming.results import StreamResults

EXAMPLES = options.examples(
    "uptake stream -m gpt2 --documents news.jsonl --questions asked.jsonl",
    "uptake stream -m gpt2 --questions dev-v1.1.json --methods online,in-context \\\n"
    "      --checkpoints 100,300 --locality other.txt --html report.html",
    "uptake stream -m gpt2 --questions dev-v1.1.json --set learning_rate=1e-5",
)
QUESTIONS = "What is read and asked"
# What goes first where the screen is narrow. All of it is in the JSON report.
_SPARED = ("passed over", "tokens trained", "CPU seconds", "F1", "vs base")

Questions = Annotated[
    str,
    options.option(
        QUESTIONS,
        "FILE",
        'Questions: lines of {"id", "question", "answers", "document"}, SQuAD or TimeQA.',
        "--questions",
    ),
]
Documents = Annotated[
    list[str] | None,
    options.option(
        QUESTIONS,
        "FILE",
        'The stream, in order: .jsonl of {"id", "text"}. Left out: the documents in the file of questions.',
        "--documents",
    ),
]
Locality = Annotated[
    list[str] | None,
    options.option(
        QUESTIONS, "FILE", "Texts that have nothing to do with the stream, to see how much else changes."
    ),
]
Rehearse = Annotated[
    str | None,
    options.option(
        QUESTIONS,
        "FILE",
        "Questions on other documents, whose answers each method learns right before it is asked.",
    ),
]
Checkpoints = Annotated[
    str | None,
    options.option(QUESTIONS, "N", "Ask after so many documents too; several as in 100,300,1000."),
]
Template = Annotated[
    str, options.option(QUESTIONS, "TEXT", r"What stands before an answer; \n is a new line.")
]
Likelihood = Annotated[
    str, options.option(QUESTIONS, "NAME", "The answer whose likelihood counts: first, or best of them.")
]
AnswerTokens = Annotated[
    int, options.option(QUESTIONS, "N", "Most tokens of what the model says.", "--answer-tokens", least=0)
]
Align = Annotated[
    int,
    options.option(
        QUESTIONS, "N", "Let every question end where a chunk of N tokens ends; RETRO's chunk.", least=1
    ),
]
Chunk = Annotated[
    int | None,
    options.option(QUESTIONS, "N", "Cut documents into passages of so many characters.", "--chunk", least=16),
]
SaveEvery = Annotated[
    int, options.option(options.OUTPUT, "N", "Documents from one keeping of the run to the next.", least=1)
]
LimitDocuments = Annotated[
    int | None, options.option(QUESTIONS, "N", "Most documents to read.", least=1, most=1 << 40)
]


def stream(
    model: options.Model,
    questions: Questions,
    documents: Documents = None,
    methods: Annotated[
        str,
        options.option(
            options.MAIN, "NAMES", "Ways of taking text up, with commas between.", "--methods", "--method"
        ),
    ] = "online",
    settings: options.Setting = None,
    locality: Locality = None,
    rehearse: Rehearse = None,
    checkpoints: Checkpoints = None,
    limit: LimitDocuments = None,
    template: Template = r"Question: {question}\nAnswer:",
    likelihood: Likelihood = "first",
    answer_tokens: AnswerTokens = 16,
    align: Align = 1,
    chunk: Chunk = None,
    max_tokens: options.MaxTokens = None,
    max_steps: options.MaxSteps = None,
    max_cpu_seconds: options.MaxCpuSeconds = None,
    max_wall_seconds: options.MaxWallSeconds = None,
    json_path: options.Json = None,
    html: options.Html = None,
    save_every: SaveEvery = 100,
    fresh: options.Fresh = False,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    batch: options.Batch = 64,
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Read documents one after another, then ask questions about them, closed book.

    Each method reads the whole stream by itself; the base model is asked the same. What a document may
    spend is bounded by --max-tokens, --max-steps, --max-cpu-seconds and --max-wall-seconds. With --json an
    interrupted run goes on.
    """
    names = inputs.methods(methods, "online")
    report_file = inputs.report_file(json_path)
    page_file = inputs.output_file("--html", html)
    stops = inputs.counts(checkpoints, "--checkpoints", "documents") if checkpoints else []
    with screen.status("starting"):
        from itertools import islice

        from uptake import api
        from uptake.evaluation.streaming import journal as journals
        from uptake.evaluation.streaming import report
        from uptake.lm import causal
        from uptake.methods.contract.spending import Budget
        from uptake.tasks.asking import Asking
        from uptake.tasks.questions import read_questions
        from uptake.text import readers
        from uptake.text.types import Chunking
    api.method_specs(names, settings or ())
    asking = Asking(
        template.replace(r"\n", "\n"), inputs.one_of("--likelihood", likelihood, ["first", "best"]),  # type: ignore[arg-type]
        answer_tokens, batch, align,
    )  # fmt: skip
    causal.check(device, dtype)
    inputs.set_threads(threads)

    skipped, unread = readers.Skipped(), readers.Skipped()
    with screen.status("reading questions and documents"):
        asked = read_questions(questions, unread)
        if not documents and not asked.documents:
            raise BadInput(f"{questions} brings no documents: name them with --documents")
        read = list(islice(readers.read(documents, skipped=skipped) if documents else asked.documents, limit))
        rehearsal = read_questions(rehearse, unread).questions if rehearse else ()
        unrelated = list(readers.read(locality, skipped=skipped)) if locality else []
    left_out = [f"left out while reading: {left}" for left in (unread, skipped) if left.total]
    for line in left_out:
        screen.note(f"note: {line}")
    with screen.status("loading the model"):
        loaded = causal.load(model, device, dtype)

    # A pipe or a device can be written to but not gone on from.
    keeps = report_file is not None and (report_file.is_file() or not report_file.exists())
    journal = Path(f"{report_file}.journal") if keeps else None
    if fresh and journal:
        journals.StreamJournal(journal).done()
    hint = (
        f"{journal} keeps what was read, every {save_every:,} documents (--save-every) and at checkpoints: "
        "the same command goes on from there"
        if journal
        else "nothing is kept without --json FILE"
    )
    with screen.interruptible(hint), screen.progress("reading", resumes=True) as update:
        results = api.stream(
            loaded,
            read,
            asked.questions,
            names,
            settings=settings or (),
            unrelated=unrelated,
            checkpoints=stops,
            asking=asking,
            rehearsal=rehearsal,
            chunking=Chunking(chunk) if chunk else None,
            seed=seed,
            budget=Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds),
            journal=journal,
            save_every=save_every,
            notes=left_out,
            progress=update,
        )
    for note in results.header.notes:
        if note not in left_out:  # that was told before anything was read
            screen.note(f"note: {note}")
    for line in report.passed_over(results):
        screen.note(f"note: {line}")
    if json_path == "-":
        typer.echo(json.dumps(report.summary(results), indent=1))
    else:
        _show(results)
    if report_file:
        report.write_json(results, report_file)
        screen.note(f"report: {report_file}")
    if page_file:
        from uptake.evaluation.streaming.page import write_page

        write_page(results, page_file)
        screen.note(f"page: {page_file}")
    if journal:  # what it held is in the report
        journals.StreamJournal(journal).done()


def _show(results: "StreamResults") -> None:
    """Print the figures at the end, and how they came about where there were checkpoints."""
    from uptake.cli import tables
    from uptake.evaluation.streaming import report

    console = screen.results()
    console.print(tables.fitted(lambda spared: report.table(results, spared), _SPARED, console))
    figures = report.summary(results)
    if any(len(spec["at"]) > 1 for spec in figures["ways"].values()):
        console.print(_by_checkpoint(figures))


def _by_checkpoint(figures: dict[str, Any]) -> Any:
    """Return each way's NLL less the base's after so many documents, over all and over the first ones."""
    from rich import box
    from rich.table import Table

    from uptake.report.summary import number

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("NLL less the base's, after documents", no_wrap=True)
    stops = sorted({at["taken"] for spec in figures["ways"].values() for at in spec["at"]})
    for stop in stops:
        made.add_column(f"{stop:,}", justify="right", no_wrap=True)
    for spec, told in figures["ways"].items():
        whole, first = [], []
        for at in told["at"]:
            whole.append(number(at["vs_base"]["nll"]["difference"], 2, "+"))
            band = next((band for band in at["bands"] if band["from"] == 1), None)
            gap = band["nll"] - band["base"]["nll"] if band and band["nll"] is not None else None
            first.append(number(gap, 2, "+"))
        made.add_row(spec, *whole)
        made.add_row(f"  on the first {stops[0]:,}", *first)
    return made
