"""`uptake stream`: read documents one after another under several methods, then answer questions."""

from typing import TYPE_CHECKING, Annotated

from uptake.cli import evaluating, inputs, options, privacy_options, screen, searching
from uptake.errors import BadInput

if TYPE_CHECKING:
    from uptake.store.datastore import Datastore
    from uptake.text.reading import Reading

EXAMPLES = options.examples(
    "uptake stream -m gpt2 --documents news.jsonl --questions asked.jsonl",
    "uptake stream -m gpt2 --questions dev-v1.1.json --methods online,in-context \\\n"
    "      --checkpoints 100,300 --locality other.txt --html report.html",
    "uptake stream -m gpt2 --questions dev-v1.1.json --set learning_rate=1e-5",
)
QUESTIONS = "Documents and questions"

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
        'Documents in stream order: .jsonl of {"id", "text"}. Default: those in the questions file.',
        "--documents",
    ),
]
Locality = Annotated[
    list[str] | None,
    options.option(
        QUESTIONS,
        "FILE",
        "Texts unrelated to the stream, to measure how much the model drifts on other text.",
    ),
]
Rehearse = Annotated[
    str | None,
    options.option(
        QUESTIONS,
        "FILE",
        "Questions on other documents, whose answers each method is trained on right before each checkpoint.",
    ),
]
Checkpoints = Annotated[
    str | None,
    options.option(QUESTIONS, "N", "Also ask the questions after N documents; several as in 100,300,1000."),
]
Template = Annotated[str, options.option(QUESTIONS, "TEXT", r"Prompt before an answer; \n is a new line.")]
Likelihood = Annotated[
    str,
    options.option(
        QUESTIONS, "NAME", "Which right answer is scored: the first, or the best (the likeliest)."
    ),
]
AnswerTokens = Annotated[
    int, options.option(QUESTIONS, "N", "Maximum number of tokens of an answer.", "--answer-tokens", least=0)
]
Align = Annotated[
    int,
    options.option(
        QUESTIONS, "N", "Pad every question to end at a multiple of N tokens, RETRO's chunk length.", least=1
    ),
]
Chunk = Annotated[
    int | None,
    options.option(
        QUESTIONS,
        "N",
        "Cut documents into passages of N characters. Default: whole documents.",
        "--chunk",
        least=16,
    ),
]
SaveEvery = Annotated[int, options.option(options.OUTPUT, "N", "Save the run every N documents.", least=1)]
LimitDocuments = Annotated[
    int | None, options.option(QUESTIONS, "N", "Maximum number of documents to read.", least=1, most=1 << 40)
]


@options.reads_files
def stream(
    model: options.Model,
    questions: Questions,
    reading: "Reading",
    documents: Documents = None,
    methods: Annotated[
        str,
        options.option(
            options.MAIN,
            "NAMES",
            "Adaptation methods, separated by commas; see `uptake methods`.",
            "--methods",
            "--method",
        ),
    ] = "online",
    store: options.Store = None,
    k: options.Neighbours = "20",
    settings: options.Setting = None,
    encoder: options.Encoder = None,
    search_by: searching.SearchBy = None,
    vector_weight: searching.VectorWeight = 20.0,
    query_encoder: searching.QueryEncoder = None,
    locality: Locality = None,
    rehearse: Rehearse = None,
    checkpoints: Checkpoints = None,
    limit: LimitDocuments = None,
    template: Template = r"Question: {question}\nAnswer:",
    likelihood: Likelihood = "first",
    answer_tokens: AnswerTokens = 16,
    align: Align = 1,
    chunk: Chunk = None,
    epsilon: privacy_options.Epsilon = None,
    delta: privacy_options.Delta = None,
    clip: privacy_options.Clip = None,
    leak_containment: options.Containment = 0.5,
    leak_jaccard: options.Jaccard = 0.8,
    leak_letters: options.Letters = 0.5,
    leak_spaced_letters: options.SpacedLetters = 0.8,
    no_leak_filter: options.NoFilter = False,
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
    workers: options.Workers = 1,
    ray: options.Ray = None,
    shard_rows: options.ShardRows = None,
    missing: options.Missing = "fail",
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Read documents one after another, then answer questions about them, closed book.

    Each method reads the whole stream by itself; the base model answers the same questions. With --store,
    methods that use neighbours read those of a document before the document. The budget of the options
    --max-... is that of one document. With --json, an interrupted run resumes when started again.
    """
    names = inputs.methods(methods, "online")
    report_file = inputs.report_file(json_path)
    page_file = inputs.output_file("--html", html)
    inputs.check_outputs(
        {"--json": report_file, "--html": page_file}, questions, documents, locality, rehearse
    )
    stops = inputs.counts(checkpoints, "--checkpoints", "documents") if checkpoints else []
    with screen.status("starting"):
        from itertools import islice

        from uptake import api
        from uptake.evaluation.plan import Plan
        from uptake.evaluation.protocols.stream import Stream
        from uptake.lm import loading
        from uptake.methods.contract.spending import Budget
        from uptake.tasks.asking import Asking
        from uptake.tasks.questions import read_questions
        from uptake.text import readers
        from uptake.text.types import Chunking
    ks = inputs.counts(k, "-k")
    private = privacy_options.given(epsilon, delta, clip, settings or ())
    settings = [*([f"privacy={private}"] if private else ()), *(settings or ())]
    open_ = privacy_options.without_any(names) if private else []
    specs = {} if open_ else api.method_specs(names, settings)
    open_ += [name for name, spec in specs.items() if spec.method.reads and not spec.method.private]
    if private and open_:
        raise BadInput(f"--epsilon: {open_[0]} reads the documents without any privacy: leave it out")
    leak = inputs.leak_filter(
        leak_containment, leak_jaccard, leak_letters, leak_spaced_letters, no_leak_filter
    )
    asking = Asking(
        template.replace(r"\n", "\n"), inputs.one_of("--likelihood", likelihood, ["first", "best"]),  # type: ignore[arg-type]
        answer_tokens, batch, align,
    )  # fmt: skip
    loading.check(device, dtype)
    plan = Plan(specs, Stream(), tuple(ks))
    wanted = store and evaluating.wanted_store(store, plan)
    cluster = inputs.shards(ray, shard_rows, missing)
    inputs.set_threads(threads)

    skipped, unread = readers.Skipped(), readers.Skipped()
    with screen.status("reading questions and documents"):
        asked = read_questions(questions, unread)
        if not documents and not asked.documents:
            raise BadInput(f"{questions} brings no documents: name them with --documents")
        read = list(
            islice(
                readers.read(documents, skipped=skipped, reading=reading) if documents else asked.documents,
                limit,
            )
        )
        rehearsal = read_questions(rehearse, unread).questions if rehearse else ()
        unrelated = list(readers.read(locality, skipped=skipped, reading=reading)) if locality else []
    left_out = [f"left out while reading: {left}" for left in (unread, skipped) if left.total]
    for line in left_out:
        screen.note(f"note: {line}")
    opened: Datastore | None = None
    if wanted:
        with screen.status("opening the store"):
            opened = inputs.open_store(
                wanted, encoder, device, threads, cluster, search_by, vector_weight, query_encoder
            )
    with screen.status("loading the model"):
        loaded = loading.load(model, device, dtype)

    journal = evaluating.journal(report_file, fresh)
    hint = (
        f"progress is saved in {journal} every {save_every:,} documents (--save-every) and at checkpoints: "
        "the same command resumes from there"
    )
    with (
        screen.on_cluster(ray),
        screen.interruptible(lambda: evaluating.kept(journal, plan, hint)),
        screen.progress("reading", resumes="an interrupted run") as update,
    ):
        results = api.stream(
            loaded,
            read,
            asked.questions,
            names,
            store=opened,
            k=ks,
            settings=settings,
            unrelated=unrelated,
            checkpoints=stops,
            asking=asking,
            rehearsal=rehearsal,
            chunking=Chunking(chunk) if chunk else None,
            seed=seed,
            budget=Budget(max_tokens, max_steps, max_cpu_seconds, max_wall_seconds),
            leak=leak,
            journal=journal,
            save_every=save_every,
            notes=left_out,
            progress=update,
            workers=workers,
            ray=ray,
        )
    evaluating.finish(results, json_path, report_file, page_file, journal)
